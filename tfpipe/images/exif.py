r"""The orientation of an image: from its EXIF block, else from its XMP packet.

    >>> orientation(b"MM\0*\0\0\0\x08" + b"\0\1" + b"\x01\x12\0\3\0\0\0\1\0\6\0\0", b"")
    6

EXIF is a TIFF file (TIFF 6.0, June 1992, section 2) of which only the first directory matters here.
Where a block is damaged, the result is that of Pillow's `ImageOps.exif_transpose`, so that viewers
and this library agree.
"""

from __future__ import annotations

import math
import re
import struct

ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12

# TIFF field types: bytes per value, and how to unpack one number (None: not a number, so never an
# orientation).
TYPES: dict[int, tuple[int, str | None]] = {
    1: (1, None),  # BYTE: Pillow gives the bytes, which equal no orientation
    2: (1, None),  # ASCII
    3: (2, "H"),  # SHORT, as the standard has it; all others are mistakes of writers
    4: (4, "L"),
    5: (8, "LL"),  # RATIONAL: numerator, denominator
    6: (1, "b"),
    7: (1, None),  # UNDEFINED
    8: (2, "h"),
    9: (4, "l"),
    10: (8, "ll"),
    11: (4, "f"),
    12: (8, "d"),
    13: (4, "L"),
    16: (8, "Q"),
}

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_EXIF_PREFIX = re.compile(rb"\A(?:Exif\0\0){1,2}")


def orientation(exif: bytes, xmp: bytes) -> int:
    r"""Finds the orientation, 1..8; 1 where absent, damaged or out of range.

    Args:
        exif: the EXIF block, with or without its "Exif\0\0" prefix; empty where there is none.
        xmp: the XMP packet, searched only if the EXIF block has no orientation.
    """
    tiff = _EXIF_PREFIX.sub(b"", exif)
    value: float | None = None
    if tiff:
        byte_order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
        if byte_order is None or tiff[2:4] not in (b"\x2a\0", b"\0\x2a") or len(tiff) < 8:
            return 1
        value = _find_tag(tiff, byte_order)
    if value is None and (match := _XMP_ORIENTATION.search(xmp)):
        value = int(match[1])
    return 1 if value is None or value not in range(1, 9) else int(value)


def _find_tag(tiff: bytes, byte_order: str) -> float | None:
    """Returns the tag's value in the first directory; NaN if not a number, None if absent."""
    (position,) = struct.unpack_from(byte_order + "L", tiff, 4)
    if position + 2 > len(tiff):
        return None
    (num_entries,) = struct.unpack_from(byte_order + "H", tiff, position)
    position += 2
    tags: set[int] = set()
    out_of_line_bytes = 0
    for start in range(position, position + num_entries * _ENTRY_BYTES, _ENTRY_BYTES):
        if start + _ENTRY_BYTES > len(tiff):
            return None
        tag, kind, count = struct.unpack_from(byte_order + "HHL", tiff, start)
        if kind not in TYPES or tag in tags:
            continue
        num_bytes = count * TYPES[kind][0]
        value_start = start + 8
        if num_bytes > 4:
            (value_start,) = struct.unpack_from(byte_order + "L", tiff, start + 8)
            out_of_line_bytes += num_bytes
            if out_of_line_bytes > len(tiff):
                continue  # more data than the block has: this entry lies, the next may not
            if value_start + num_bytes > len(tiff):
                return None  # the block is truncated: what follows cannot be trusted
        if tag == ORIENTATION_TAG and num_bytes:
            return _number(tiff, value_start, byte_order, kind)
        if num_bytes:
            tags.add(tag)
    return None


def _number(tiff: bytes, start: int, byte_order: str, kind: int) -> float:
    layout = TYPES[kind][1]
    if layout is None:
        return math.nan
    numerator, *denominator = struct.unpack_from(byte_order + layout, tiff, start)
    if not denominator:
        return float(numerator)
    return float(numerator / denominator[0]) if denominator[0] else math.nan
