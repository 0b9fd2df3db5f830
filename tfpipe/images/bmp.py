"""Reads the header of a BMP file of 8 bits a sample: the forms that TensorFlow decodes rightly.

    >>> header = read(data)
    >>> header.height, header.width, header.color

By Microsoft's documentation of BITMAPFILEHEADER and BITMAPINFOHEADER to BITMAPV5HEADER. TensorFlow
takes the indices of any palette for levels of grey, and 32 bits in any order for BGRA: only files
for which that is right are accepted.
"""

from __future__ import annotations

from typing import NoReturn

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly
from tfpipe.images.image_header import ImageHeader

SIGNATURE = b"BM"
HEADER_SIZES = (40, 52, 56, 108, 124)  # of BITMAPINFOHEADER and its later versions
INFO_START, MASKS = 14, 54  # where the header, and the masks of colours, begin
MIN_BYTES = INFO_START + 40
RGB, BITFIELDS = 0, 3  # compressions
COLOUR_MASKS = bytes.fromhex("0000ff00 00ff0000 ff000000")  # of BGRA
ALPHA_MASK = bytes.fromhex("000000ff")
MOST_PIXELS = (2**31 - 1) // 8 - 1
"""TensorFlow refuses more of a BMP: tensorflow/core/kernels/image/decode_image_op.cc."""

GREY = b"".join(bytes([level, level, level, 0]) for level in range(256))
"""The palette whose indices are levels of grey; the fourth bytes do not count."""


def read(data: bytes) -> ImageHeader:
    """Reads the header of a file, and checks that all its rows are there.

    Raises:
        RejectedImage: the file is truncated or damaged, or of a kind that TensorFlow decodes wrongly
            or not at all.
    """
    if len(data) < MIN_BYTES:
        _reject("truncated", f"{exactly(len(data), 'byte')}; a header has {MIN_BYTES} (truncated file)", 0)
    start, info, width, height = (_number(data, place, signed=place > INFO_START) for place in (10, 14, 18, 22))
    bits, compression = _number(data, 28, 2), _number(data, 30)
    if info not in HEADER_SIZES:
        _reject(
            "unsupported_coding", f"a BMP header of {exactly(info, 'byte')}; 40, 52, 56, 108 or 124 are expected", INFO_START
        )
    if width <= 0 or height == 0 or width * abs(height) > MOST_PIXELS:
        message = f"height {height}, width {width}; the decoder takes {MOST_PIXELS} pixels, and no sides of 0"
        _reject("bad_dimensions", message, 18)
    has_masks = compression == BITFIELDS and bits == 32
    if bits not in (8, 24, 32) or (compression != RGB and not has_masks):
        message = (
            f"a BMP of {exactly(bits, 'bit')} a pixel, compression {compression}; 24 or 32 bits, or 8 of grey, uncompressed"
        )
        _reject("unsupported_coding", f"{message}, are expected", 28)
    has_alpha = has_masks and info >= 56 and data[MASKS + 12 : MASKS + 16] != bytes(4)
    if has_masks and (data[MASKS : MASKS + 12] != COLOUR_MASKS or (has_alpha and data[MASKS + 12 : MASKS + 16] != ALPHA_MASK)):
        _reject("unsupported_coding", "masks of colours other than BGRA", MASKS)
    before = INFO_START + info
    if bits == 8:
        num_colours = _number(data, 46) or 256
        palette = data[before : before + 4 * min(num_colours, 256)]
        if num_colours > 256 or any(palette[place::4] != GREY[place : len(palette) : 4] for place in range(3)):
            _reject("unsupported_coding", "a palette of colours, which TensorFlow takes for levels of grey", before)
        before += 4 * num_colours
    before += 12 if has_masks and info == 40 else 0
    if start < before:
        _reject("damaged_header", f"pixels at {start}, in the header, which ends at {before}", 10)
    end = start + (width * bits // 8 + 3) // 4 * 4 * abs(height)
    if end > len(data):
        _reject(
            "truncated",
            f"pixels of {exactly(end - start, 'byte')}, {max(len(data) - start, 0)} are left (truncated file)",
            start,
        )
    return ImageHeader(
        format="BMP",
        height=abs(height),
        width=width,
        channels=1 if bits == 8 else 3 + has_alpha,
        orientation=1,
        precision=8,
        coding="plain",
        subsampling="",
        color="grey" if bits == 8 else "rgb+alpha" if has_alpha else "rgb",
        restart_interval=0,
        trailing_bytes=len(data) - end,
        transparent=has_alpha,
    )


def _number(data: bytes, place: int, size: int = 4, *, signed: bool = False) -> int:
    return int.from_bytes(data[place : place + size], "little", signed=signed)


def _reject(reason: str, message: str, offset: int) -> NoReturn:
    raise RejectedImage(reason, message, offset=offset)
