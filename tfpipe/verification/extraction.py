"""Extraction: the original files back, bit for bit.

extract("shards/", "photos/")                  # photos/cat/1.jpg, ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_up, temporary_beside
from tfpipe.common.progress import ProgressBar
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_catalog, read_split
from tfpipe.records.manifest import Manifest, Shard
from tfpipe.records.schema import Record
from tfpipe.verification.reading import Finding, name_problem, read_shard

_SHORT_NAME = "tfpipe"  # of temporary files: an image's own may be as long as names can be


def extract(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    progress: bool = True,
) -> int:
    """Writes each record's image to `output`/`image/filename`; returns their number.

    Each image's hash, and each shard's, is checked. A file that is there with the same bytes is
    left alone, one with other bytes is never overwritten, nothing is written outside `output`, and
    no unfinished file has a final name. After an error the same call continues with the missing
    files.

    Args:
        directory: the data set's folder.
        output: folder to write to, not within the data set; created if missing.
        split: the split to extract, default all.
        progress: show it on stderr.

    Raises:
        FileNotFoundError: there is no manifest.
        FileExistsError: another file is in the way; the message names it.
        ValueError: there is no such split, or `output` lies within the data set or in a store.
        DataError: the data set is damaged (the message names shard, offset and source file), or a
            record's file name leads out of `output`.
        OSError: a file cannot be written: `filename` is its path.
    """
    output = arguments.path("output", output)
    manifest = manifests.load(directory)
    names = list(manifest.splits) if split is None else list(manifest.parts(split))
    shards = [(name, shard) for name in names for shard in manifest.split(name).shards]
    if Path(output).resolve().is_relative_to(Path(directory).resolve()):
        raise ValueError(f"{os.fspath(output)}: the output must be outside the data set's folder")
    manifests.check_files(directory, manifest, names)
    count = sum(shard.num_records for _, shard in shards)
    writer = _Writer(Path(directory), Path(output))
    with ProgressBar("extract", count, enabled=progress) as bar:
        for name, shard in shards:
            for offset, record in _records(Path(directory), manifest, name, shard):
                writer.write(record, Path(directory) / shard.file, offset)
                bar.add(1, len(record.encoded))
    # Once for all: a sync per file would take longer than everything else.
    os.sync()
    return count


def _records(directory: Path, manifest: Manifest, split: str, shard: Shard) -> Iterator[tuple[int, Record]]:
    try:
        yield from read_shard(directory, shard)
    except DataError as error:
        source = ""
        with contextlib.suppress(OSError, DataError):  # only needed for a better message
            for row, start, _ in read_split(directory, manifest, split):
                if start == error.offset and manifest.splits[split].shards[row.shard] == shard:
                    source = row.filename
                    break
        message = f"{error.message}; `tfpipe verify` lists all damage, `tfpipe salvage` rescues the intact records of a shard"
        raise Finding(message, path=error.path, offset=error.offset, source=source) from None


def _stopped(error: OSError, path: Path) -> OSError:
    """Returns the error with its path, which a full disk does not give, and advice."""
    advice = "what was extracted is kept: once this is fixed, the same command continues"
    return OSError(error.errno, f"{error.strerror or error} ({advice})", os.fspath(path))


class _Writer:
    def __init__(self, directory: Path, output: Path) -> None:
        self._directory = directory
        output.mkdir(parents=True, exist_ok=True)
        self._root = output.resolve()
        self._safe: set[Path] = set()

    def write(self, record: Record, shard: Path, offset: int) -> None:
        """Writes one image, unless it is there."""
        target = self._target(record, shard, offset)
        if os.path.lexists(target):
            self._compare(target, record)
            return
        try:
            with temporary_beside(target.with_name(_SHORT_NAME)) as temporary:
                temporary.write_bytes(record.encoded)
                os.replace(temporary, target)
        except OSError as error:
            raise _stopped(error, target) from error

    def _target(self, record: Record, shard: Path, offset: int) -> Path:
        """Returns where the record's file goes; its folder exists and lies within the output."""
        if problem := name_problem(record.filename):
            raise DataError(problem, path=shard, offset=offset)
        target = self._root / PurePosixPath(record.filename)
        if target.parent not in self._safe:
            self._make_folder(target.parent, record.filename)
        return target

    def _make_folder(self, folder: Path, filename: str) -> None:
        existing = folder
        while not os.path.lexists(existing):
            existing = existing.parent
        # Before anything is made: a link within the output may lead out of it.
        if not existing.resolve().is_relative_to(self._root):
            raise FileExistsError(f"{existing}: a link that leads out of the output folder is in the way of {filename!r}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise FileExistsError(f"{existing}: a file is in the way of the folder of {filename!r}") from None
        except OSError as error:
            raise _stopped(error, self._root / filename) from error
        clear_up(folder / _SHORT_NAME)
        self._safe.add(folder)

    def _compare(self, target: Path, record: Record) -> None:
        if target.is_file() and target.stat().st_size == len(record.encoded) and target.read_bytes() == record.encoded:
            return
        rival = None
        with contextlib.suppress(OSError, DataError):  # only needed for a better message
            rows = read_catalog(self._directory)
            rival = next((row for row in rows if row.filename == record.filename and row.sha256 != record.sha256), None)
        if rival is not None:
            raise FileExistsError(
                f"{target}: two records with different bytes have this file name: {record.key!r} and {rival.key!r} (split"
                f" {rival.split!r}); extract one split at a time, each to its own folder, with --split"
            )
        raise FileExistsError(f"{target}: there is another file of this name; it was not overwritten")
