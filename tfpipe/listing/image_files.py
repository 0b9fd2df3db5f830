"""A look at a picture's bytes before anyone decodes them, as the conversion does it.

read("1.jpg").orientation      # 6
read("page.html").message      # why it is no picture
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.files import open_regular
from tfpipe.images import headers

_HEAD_BYTES = 4096
_UNREADABLE = "unreadable"


class Problem(NamedTuple):
    """Why a picture has no probabilities; no exception, since those keep alive all that was at hand when they were raised.

    `code` is one of `tfpipe.images.headers.REASONS`, "unreadable", "undecodable", or, on the page, "no_probabilities": the
    picture is one, and the model fails at it. `path` and `offset` say where.
    """

    code: str
    message: str
    path: str = ""
    offset: int | None = None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def error(self) -> DataError:
        """Returns it as an error to raise."""
        if self.code == _UNREADABLE:
            return DataError(self.message, path=self.path or None, offset=self.offset)
        return RejectedImage(self.code, self.message, path=self.path or None, offset=self.offset)


class Encoded(NamedTuple):
    """The bytes of a picture that seems to be one, and its EXIF orientation."""

    data: bytes
    orientation: int


def unreadable(message: str, path: str = "", offset: int | None = None) -> Problem:
    """Returns the problem of a file or record whose bytes cannot be had."""
    return Problem(_UNREADABLE, message, path, offset)


def undecodable(message: str, path: str = "") -> Problem:
    """Returns the problem of bytes that the decoder refuses, though their header is in order."""
    return Problem("undecodable", f"cannot be decoded: {message}", path)


def examine(data: bytes, max_pixels: int = headers.DEFAULT_MAX_PIXELS, path: str = "") -> Encoded | Problem:
    """Returns bytes with their orientation, or why they are no picture that TensorFlow can decode."""
    try:
        return Encoded(data, headers.read_header(data, max_pixels=max_pixels).orientation)
    except RejectedImage as error:
        return Problem(error.reason, error.message, path, error.offset)


def read(path: str, max_pixels: int = headers.DEFAULT_MAX_PIXELS) -> Encoded | Problem:
    """Returns what is in a picture's file, or why it is none."""
    shown = path.encode("utf-8", "backslashreplace").decode()
    try:
        data = _read(path)
    except DataError as error:
        return unreadable(f"cannot be read: {error.message}", shown)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return unreadable(f"cannot be read: {getattr(error, 'strerror', error)}", shown)
    return examine(data, max_pixels, shown)


def _read(path: str) -> bytes:
    """Returns a file's bytes; only the first where they say that it is no picture, so that a film is not read whole."""
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
        return head + file.read(os.fstat(file.fileno()).st_size) if head.startswith(headers.SIGNATURES) else head
