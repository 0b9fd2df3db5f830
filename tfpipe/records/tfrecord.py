"""TFRecord framing: writing, checked reading, and rescue of intact records in a damaged file.

A record on disk is `length` (uint64, little endian), the masked CRC-32C of those 8 bytes, `length`
bytes of data, and the masked CRC-32C of the data; numbers as in
tensorflow/core/lib/io/record_writer.h. Nothing marks the end of a file, which is why a file truncated
between two records reads as a clean, shorter one: only the manifest's counts reveal it
(`manifest.py`).
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

from tfpipe.common import stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, size_of
from tfpipe.common.text import exactly

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_BYTES = HEADER_BYTES + FOOTER_BYTES

_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h
_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_FOOTER = struct.Struct("<I")


def masked_crc32c(data: bytes | memoryview) -> int:
    """Returns the CRC-32C of `data`, rotated and offset as TFRecord stores it."""
    crc: int = google_crc32c.value(bytes(data) if isinstance(data, memoryview) else data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns a record's header, `data` itself and footer: a TFRecord, written one by one."""
    return _header(len(data)), data, _FOOTER.pack(masked_crc32c(data))


@functools.lru_cache(4096)
def _header(num_bytes: int) -> bytes:
    length = _LENGTH.pack(num_bytes)
    return length + _FOOTER.pack(masked_crc32c(length))


class RawRecord(NamedTuple):
    """One intact record; its frame covers the bytes [offset, offset + FRAME_BYTES + len(data))."""

    offset: int
    data: bytes

    @property
    def length(self) -> int:
        """Bytes on disk, frame included."""
        return FRAME_BYTES + len(self.data)


def read_frames(path: str | os.PathLike[str]) -> Iterator[RawRecord]:
    """Yields every record of a TFRecord file in order, both CRCs checked.

    Raises:
        DataError: with path and offset, at the first byte that is not as written, or where the file
            ends inside a record.
    """
    with open_regular(path) as file:
        size, offset = size_of(file), 0
        while offset < size:
            data = read_frame(file, offset, size, path)
            yield RawRecord(offset, data)
            offset += FRAME_BYTES + len(data)


def read_frame(file: BinaryIO, offset: int, size: int, path: str | os.PathLike[str]) -> bytes:
    """Returns the data of the record at `offset` of a file of `size` bytes, or raises DataError."""
    file.seek(offset)
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        raise DataError(
            f"the file ends after {exactly(len(header), 'byte')} of a record's {HEADER_BYTES}-byte header (truncated file)",
            path=path,
            offset=offset,
        )
    length, length_crc = _HEADER.unpack(header)
    if masked_crc32c(header[:8]) != length_crc:
        raise DataError("the record's length does not match its CRC (damaged, or not a TFRecord)", path=path, offset=offset)
    # Checked before reading, so that no length, however wrong, makes us allocate more than the file
    # holds.
    if offset + FRAME_BYTES + length > size:
        raise DataError(
            f"the record needs {exactly(FRAME_BYTES + length, 'byte')}, the file has {size - offset} left (truncated file)",
            path=path,
            offset=offset,
        )
    data = file.read(length)
    (data_crc,) = _FOOTER.unpack(file.read(FOOTER_BYTES))
    if masked_crc32c(data) != data_crc:
        raise DataError("the record's data does not match its CRC (damaged)", path=path, offset=offset)
    return data


class Gap(NamedTuple):
    """Bytes [start, end) of a file that hold no intact record."""

    start: int
    end: int


def salvage_frames(path: str | os.PathLike[str]) -> Iterator[RawRecord | Gap]:
    """Yields every intact record of a damaged file, and a `Gap` for the bytes between them.

    After damage, the next record is the first later position whose length matches its CRC and whose
    data matches its own: a chance match has a probability of 2**-64, a record is lost only where
    its own bytes are hit.
    """
    with open_regular(path) as file, contextlib.ExitStack() as stack:
        size, offset = size_of(file), 0
        if size == 0:  # an empty file cannot be mapped
            return
        view: mmap.mmap | bytes = b""
        if stores.is_remote(path):
            view = file.read()
        else:
            view = stack.enter_context(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        while offset < size:
            data = _intact(view, offset, size)
            if data is not None:
                yield RawRecord(offset, data)
                offset += FRAME_BYTES + len(data)
                continue
            # With an intact header the next record begins where this one ends, whatever its data
            # may look like inside.
            end = _frame_end(view, offset, size)
            if end is None or (end < size and _intact(view, end, size) is None):
                end = _next_intact(view, offset + 1, size)
            yield Gap(offset, end)
            offset = end


def _intact(view: mmap.mmap | bytes, offset: int, size: int) -> bytes | None:
    end = _frame_end(view, offset, size)
    if end is None:
        return None
    data = view[offset + HEADER_BYTES : end - FOOTER_BYTES]
    return data if masked_crc32c(data) == _FOOTER.unpack_from(view, end - FOOTER_BYTES)[0] else None


def _frame_end(view: mmap.mmap | bytes, offset: int, size: int) -> int | None:
    """Returns the end of the record at `offset` by its header, or None without an intact header."""
    if offset + FRAME_BYTES > size:
        return None
    length, length_crc = _HEADER.unpack_from(view, offset)
    end: int = offset + FRAME_BYTES + length
    if end > size or masked_crc32c(view[offset : offset + 8]) != length_crc:
        return None
    return end


# A record is shorter than 4 GiB, so the upper half of its length is four zero bytes: a regular
# expression skips the rest in C, 1 GB/s. In a long stretch of zeros (a hole in a file) only the two
# ends can belong to a header, since the CRC of the length 0 is not 0: the middle is not looked at.
_ZEROS = re.compile(rb"\0{4,}")


def _next_intact(view: mmap.mmap | bytes, start: int, size: int) -> int:
    for zeros in _ZEROS.finditer(view, start + 4):
        first, last = zeros.start() - 4, zeros.end() - 8
        edges = (first, last + 1) if last - first < 16 else (first, first + 4, last - 3, last + 1)
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            for offset in range(low, high):
                if _intact(view, offset, size) is not None:
                    return offset
    return size
