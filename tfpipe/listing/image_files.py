"""Image files read and checked without decoding, for build, prediction and demo page.

read("1.jpg").orientation      # 6
read("page.html")              # RejectedImage: reason "not_an_image"
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import open_regular
from tfpipe.common.text import exactly
from tfpipe.images import headers
from tfpipe.listing import conversion

_HEAD_BYTES = 4096


class Encoded(NamedTuple):
    """The encoded bytes of an image with a valid header, and its EXIF orientation."""

    data: bytes
    orientation: int


def undecodable(message: str, path: str = "") -> RejectedImage:
    """Returns the error for bytes that the decoder rejects although their header is valid."""
    return RejectedImage("undecodable", f"cannot be decoded: {message}", path=path or None)


def examine(data: bytes, max_pixels: int = headers.DEFAULT_MAX_PIXELS, path: str = "") -> Encoded | RejectedImage:
    """Returns encoded bytes with their orientation, or why TensorFlow cannot decode them.

    The error is returned without a traceback, which would keep alive everything that was in memory.
    """
    try:
        return Encoded(data, headers.read_header(data, max_pixels=max_pixels).orientation)
    except RejectedImage as error:
        return RejectedImage(error.reason, error.message, path=path or None, offset=error.offset)


def read(path: str, max_pixels: int = headers.DEFAULT_MAX_PIXELS) -> Encoded | RejectedImage:
    """Returns the content of an image file, or why it is not one."""
    shown = path.encode("utf-8", "backslashreplace").decode()
    try:
        data, _ = read_start(path)
    except (DataError, OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.message if isinstance(error, DataError) else getattr(error, "strerror", error)
        return RejectedImage("unreadable", f"cannot be read: {why}", path=shown)
    return examine(data, max_pixels, shown)


def read_start(path: str, max_bytes: int | None = None, *, convert: bool = False) -> tuple[bytes, int]:
    """Returns a file's bytes and size; only 4096 bytes of what is not an image, say a film.

    With `convert`, images that `conversion.to_png` takes are read, too.

    Raises RejectedImage above `max_bytes`, DataError for what is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise RejectedImage("too_large", f"{exactly(size, 'byte')}, a record holds {max_bytes}", path=path)
        head = file.read(_HEAD_BYTES)
        is_image = headers.has_known_format(head) or (convert and conversion.format_of(head))
        return (head + file.read(size) if is_image else head), size
