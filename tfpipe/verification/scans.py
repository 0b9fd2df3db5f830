"""Images with damaged compressed data, which a decoder would only warn of.

findings, num_decoded = check_images(folder, manifest, 2, progress=True)
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import open_regular, size_of
from tfpipe.common.progress import ProgressBar
from tfpipe.common.workers import Done, Workers
from tfpipe.images import headers
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import read_index
from tfpipe.records.manifest import Manifest, index_file
from tfpipe.verification.reading import Finding

_TASK_RECORDS = 32


def check_images(directory: Path, manifest: Manifest, workers: int, *, progress: bool) -> tuple[list[Finding], int]:
    """Returns the damaged images in reading order, and the number of readable records."""
    total = sum(split.num_records for split in manifest.splits.values())
    found: list[Finding] = []
    num_decoded = 0
    with ProgressBar("decode", total, enabled=progress) as bar, Workers(workers, __name__) as pool:
        for message in pool.run("decode", _tasks(directory, manifest)):
            if isinstance(message, Done):
                bar.add(*message)
            else:
                num_decoded += message[0]
                found += message[1]
    order = {str(directory / shard.file): i for i, shard in enumerate(s for x in manifest.splits.values() for s in x.shards)}
    return sorted(found, key=lambda finding: (order[str(finding.path)], finding.offset)), num_decoded


def _tasks(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, tuple[int, ...]]]:
    """Yields (shard, offsets of some of its records)."""
    for split in manifest.splits.values():
        for shard in split.shards:
            with contextlib.suppress(DataError, OSError):  # an index that cannot be read is a finding of its own
                offsets = (offset for offset, _ in read_index(directory / index_file(shard.file)))
                while batch := tuple(itertools.islice(offsets, _TASK_RECORDS)):
                    yield directory / shard.file, batch


def decode(task: tuple[Path, tuple[int, ...]], report: Callable[[int, int], None]) -> tuple[int, list[Finding]]:
    """Returns the number of readable images of a task, and the damaged ones; runs in a worker."""
    path, offsets = task
    found: list[Finding] = []
    num_decoded = num_bytes = 0
    with contextlib.suppress(OSError, DataError), open_regular(path) as file:
        size = size_of(file)
        for offset in offsets:
            try:
                record = schema.decode(tfrecord.read_frame(file, offset, size, path))
            except DataError:
                continue
            num_decoded, num_bytes = num_decoded + 1, num_bytes + len(record.encoded)
            try:
                header = headers.read_header(record.encoded, max_pixels=headers.TENSORFLOW_MAX_PIXELS, decode=True)
                facts, known = ((of.format, of.height, of.width) for of in (header, record))
                problem = "" if facts == known else f"the image's format, height and width are {facts}, the record has {known}"
            except RejectedImage as error:
                problem = f"{error.reason}: {error}"
            if problem:
                found.append(Finding(problem, path=path, offset=offset, source=record.filename))
    report(len(offsets), num_bytes)
    return num_decoded, found
