"""A split's frames: what a reader needs of each record, in one binary file that takes no parsing.

    header, rows = read_header(file), numpy.frombuffer(file.read(), [("offset", "<i8"), ...])

`index/NAME-SPLIT.frames` has 32 bytes of header and 20 bytes per record, in reading order: offset in
its shard, length of its frame, masked CRC-32C and label, as in index and catalog. It is for
programs; the catalog is for people, and takes nine times as much and a hundred times as long to read.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, written_atomically
from tfpipe.records.catalog import CatalogRow
from tfpipe.records.manifest import INDEX_FOLDER, Split

_MAGIC = b"tfpframe"
_HEADER = struct.Struct("<8sQIBB10x")  # records, longest side, whether there are PNG files, turned images
_ROW = struct.Struct("<qIIi")
HEADER_BYTES, ROW_BYTES = _HEADER.size, _ROW.size
_ROWS = 1 << 14  # that are written or compared at a time

Frame = tuple[CatalogRow, int, int]  # a record's row, offset and length


class Header(NamedTuple):
    """What is true of all images of a split.

    Attributes:
        num_records: of the split.
        longer: the longest of their longer sides, in pixels; 1 where there are none.
        png: some are PNG files.
        turned: some are stored in another orientation than 1.
    """

    num_records: int
    longer: int
    png: bool
    turned: bool


def file_name(name: str, split: str) -> str:
    """Returns the path of a split's frames relative to the data set `name`."""
    return f"{INDEX_FOLDER}/{name}-{split}.frames"


def write(path: Path, frames: Iterable[Frame]) -> None:
    """Writes a split's frames, whole or not at all."""
    with written_atomically(path) as file:
        file.write(bytes(HEADER_BYTES))
        header = _header()
        for piece in _pieces(frames, header):
            file.write(piece)
        file.seek(0)
        file.write(_packed(header))


def _header() -> dict[str, int]:
    return {"num_records": 0, "longer": 1, "png": 0, "turned": 0}


def _packed(header: dict[str, int]) -> bytes:
    return _HEADER.pack(_MAGIC, *header.values())


def _pieces(frames: Iterable[Frame], header: dict[str, int]) -> Iterator[bytes]:
    """Yields the packed rows, many at a time, and gathers what is true of all."""
    rest = iter(frames)
    while some := list(itertools.islice(rest, _ROWS)):
        header["num_records"] += len(some)
        for row, _, _ in some:
            header["longer"] = max(header["longer"], row.height, row.width)
            header["png"] |= row.format == "PNG"
            header["turned"] |= row.orientation != 1
        yield b"".join([_ROW.pack(offset, length, row.crc32c, row.label) for row, offset, length in some])


def compare(path: Path, frames: Iterable[Frame]) -> None:
    """Raises DataError unless a file is what `write` would write for these frames."""
    header = _header()
    with open_regular(path) as file:
        begin, done = file.read(HEADER_BYTES), 0
        for piece in _pieces(frames, header):
            if file.read(len(piece)) != piece:
                raise DataError("a record's offset, length, CRC or label is not that of index and catalog", path=path)
            done += len(piece)
        if file.read(1) or begin != _packed(header):
            raise DataError("its header is not that of its records, or it has more of them", path=path)


def parse_header(content: bytes, path: Path, split: Split) -> Header:
    """Returns the header of a file's content; raises DataError where it is not that of the split."""
    try:
        magic, num_records, longer, png, turned = _HEADER.unpack_from(content)
    except struct.error:
        magic, num_records = b"", -1
    if magic != _MAGIC or num_records != split.num_records or len(content) != HEADER_BYTES + num_records * ROW_BYTES:
        raise DataError(f"not the frames of {split.num_records} records", path=path)
    return Header(num_records, longer, bool(png), bool(turned))
