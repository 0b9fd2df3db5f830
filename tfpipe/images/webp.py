"""Reads the chunks of a still WebP file, without decoding; an animated one is rejected.

    >>> header = read(data)
    >>> header.height, header.width, header.coding, header.color

By the WebP Container Specification and RFC 9649; lossy headers by RFC 6386, section 9.1. Where
libwebp, the decoder inside TensorFlow and Pillow, is more or less strict, it decides.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import NoReturn

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly
from tfpipe.images import exif
from tfpipe.images.image_header import ImageHeader

RIFF, WEBP = b"RIFF", b"WEBP"
FIRST_CHUNK, CHUNK_HEADER = 12, 8  # where chunks begin, and the bytes before a chunk's payload
LOSSY, LOSSLESS, EXTENDED = b"VP8 ", b"VP8L", b"VP8X"
EXTENDED_BYTES = 10
ANIMATION, XMP, EXIF, ALPHA = 0x02, 0x04, 0x08, 0x10  # flags of an extended file

_FRAME_BYTES, _LOSSLESS_BYTES = 10, 5
_FRAME_SIGNATURE, _LOSSLESS_SIGNATURE = b"\x9d\x01\x2a", 0x2F
_SIDE = 0x3FFF  # 14 bits


def is_webp(data: bytes) -> bool:
    """Returns whether bytes begin as a WebP file does."""
    return data[:4] == RIFF and data[8:12] == WEBP


def read(data: bytes, *, decode: bool = False) -> ImageHeader:
    """Reads the header of a file, and checks all its chunks, in linear time.

    Args:
        data: the whole file.
        decode: decode the pixels, too, by Pillow.

    Raises:
        RejectedImage: the file is animated, truncated or damaged, or decoding would fail.
    """
    end = CHUNK_HEADER + int.from_bytes(data[4:8], "little")
    if end > len(data):
        _reject("truncated", f"a RIFF file of {exactly(end, 'byte')}, {len(data)} are there (truncated file)", 4)
    flags, canvas, coding, height, width, has_alpha = 0, None, "", 0, 0, False
    metadata: dict[bytes, bytes] = {}
    for kind, payload, place in _chunks(data, end):
        if place == FIRST_CHUNK and kind == EXTENDED:
            flags, canvas = _read_extended(payload, place)
        elif kind in (LOSSY, LOSSLESS) and not coding:
            coding = "lossy" if kind == LOSSY else "lossless"
            height, width, uses_alpha = (_read_frame if kind == LOSSY else _read_lossless)(payload, place)
            has_alpha = uses_alpha if kind == LOSSLESS else has_alpha or bool(flags & ALPHA)
            if canvas is None:
                break  # what follows has no meaning
        elif place == FIRST_CHUNK:
            _reject("damaged_header", f"the first chunk is {kind!r}; VP8, VP8L or VP8X is expected", place)
        else:
            has_alpha |= kind == b"ALPH"
            metadata.setdefault(kind, payload)
    if not coding:
        _reject("no_image_data", "no VP8 or VP8L chunk", end)
    if canvas is not None and canvas != (height, width):
        _reject("damaged_header", f"a frame of {height} x {width} on a canvas of {canvas[0]} x {canvas[1]}", FIRST_CHUNK)
    if decode:
        _decode(data)
    return ImageHeader(
        format="WEBP",
        height=height,
        width=width,
        channels=3 + has_alpha,
        orientation=exif.orientation(
            metadata.get(b"EXIF", b"") if flags & EXIF else b"", metadata.get(b"XMP ", b"") if flags & XMP else b""
        ),
        precision=8,
        coding=coding,
        subsampling="",
        color="rgb+alpha" if has_alpha else "rgb",
        restart_interval=0,
        trailing_bytes=len(data) - end,
        transparent=has_alpha,
        has_profile=b"ICCP" in metadata,
    )


def _chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Yields (type, payload, place) of the chunks before `end`."""
    place = FIRST_CHUNK
    while place < end:
        start = place + CHUNK_HEADER
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : start], "little")
        if start + length > end:
            message = (
                f"chunk {kind!r} of {exactly(length, 'byte')}, {max(end - start, 0)} are left in the file that RIFF declares"
            )
            _reject("truncated", f"{message} (truncated file)", place)
        yield kind, data[start : start + length], place
        place = start + length + length % 2


def _read_extended(payload: bytes, place: int) -> tuple[int, tuple[int, int]]:
    if len(payload) != EXTENDED_BYTES:
        _reject("damaged_header", f"VP8X of {exactly(len(payload), 'byte')}; {EXTENDED_BYTES} are expected", place)
    if payload[0] & ANIMATION:
        _reject("animated", "an animated WebP; a still image is expected", place)
    width, height = (1 + int.from_bytes(payload[start : start + 3], "little") for start in (4, 7))
    return payload[0], (height, width)


def _read_frame(payload: bytes, place: int) -> tuple[int, int, bool]:
    """Returns height, width and False of a lossy image."""
    tag = int.from_bytes(payload[:3], "little")
    first_partition = tag >> 5
    if len(payload) < _FRAME_BYTES or payload[3:6] != _FRAME_SIGNATURE or tag & 1 or tag >> 1 & 7 > 3 or not tag & 16:
        _reject("damaged_header", "not the header of a key frame of VP8 that is shown", place)
    if first_partition >= len(payload):
        what = f"a first partition of {exactly(first_partition, 'byte')} in {exactly(len(payload), 'byte')} of VP8"
        _reject("damaged_header", what, place)
    width, height = (int.from_bytes(payload[start : start + 2], "little") & _SIDE for start in (6, 8))
    if not (height and width):
        _reject("bad_dimensions", f"height {height}, width {width}; the decoder takes 1 to {_SIDE}", place)
    return height, width, False


def _read_lossless(payload: bytes, place: int) -> tuple[int, int, bool]:
    """Returns height, width and whether alpha is used of a lossless image."""
    bits = int.from_bytes(payload[1:_LOSSLESS_BYTES], "little")
    if len(payload) < _LOSSLESS_BYTES or payload[0] != _LOSSLESS_SIGNATURE or bits >> 29:
        _reject("damaged_header", "not the header of a lossless image of version 0", place)
    return 1 + (bits >> 14 & _SIDE), 1 + (bits & _SIDE), bool(bits >> 28 & 1)


def _decode(data: bytes) -> None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller's limit holds
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
                image.load()
    except Exception as error:  # whatever a decoder raises
        raise RejectedImage("damaged_scan", f"the compressed data cannot be decoded ({error})") from None


def _reject(reason: str, message: str, offset: int) -> NoReturn:
    raise RejectedImage(reason, message, offset=offset)
