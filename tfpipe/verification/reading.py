"""Strict reading of shards: records as they were written, or a finding with its place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly
from tfpipe.records import schema, tfrecord
from tfpipe.records.manifest import Shard
from tfpipe.records.schema import Record

_MOST = 255  # bytes of a name in a path, and such names


class Finding(DataError):
    """One thing in a data set that is not as it was written.

    Attributes:
        source: file name of the image concerned, as the catalog or the record gives it; "" where
            unknown.
    """

    def __init__(
        self, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None, source: str = ""
    ) -> None:
        self.source = source
        super().__init__(f"{message} [source file {source!r}]" if source else message, path=path, offset=offset)


def read_shard(directory: Path, shard: Shard) -> Iterator[tuple[int, Record]]:
    """Yields (offset, record) of every record of a shard; needs neither index nor catalog.

    Raises DataError if a frame, an image's hash, or, at the end, count or hash is not as written.
    """
    path = directory / shard.file
    whole = hashlib.sha256()
    count = 0
    for offset, data in tfrecord.read_frames(path):
        for piece in tfrecord.frame(data):
            whole.update(piece)
        yield offset, checked_record(data, path, offset)
        count += 1
    if count != shard.num_records:
        raise DataError(f"{exactly(count, 'record')}, the manifest lists {shard.num_records}", path=path)
    if whole.hexdigest() != shard.sha256:
        raise DataError("the shard's SHA-256 is not the one that the manifest lists", path=path)


def name_problem(filename: str) -> str:
    """Returns why no file of this name could be written below a folder, "" where one could."""
    name, parts = PurePosixPath(filename), filename.encode().split(b"/")
    if name.is_absolute() or not name.name or ".." in name.parts or "\0" in filename:
        return f"the file name {filename!r:.200} would lead out of the output folder"
    if len(parts) > _MOST or max(map(len, parts)) > _MOST:
        return f"the file name {filename!r:.200} has more than {_MOST} bytes, or folders, which no file can have"
    return ""


def checked_record(data: bytes, path: Path, offset: int) -> Record:
    """Returns the record in a frame's data; raises DataError unless its image has its hash."""
    try:
        record = schema.decode(data)
    except DataError as error:
        raise DataError(error.message, path=path, offset=offset) from None
    digest = hashlib.sha256(record.encoded).hexdigest()
    if digest != record.sha256:
        message = f"the image of {record.key!r} has SHA-256 {digest}, the record has {record.sha256}"
        raise DataError(message, path=path, offset=offset)
    return record
