"""The errors of bad data. A caller's mistake is a builtin (ValueError, FileNotFoundError); bad data is one of these."""

from __future__ import annotations

import os


class DataError(Exception):
    """Data on disk that is not what it should be, and where.

    Attributes:
        path: the file, or None where no single file is at fault.
        offset: the byte in it, or None.
    """

    def __init__(self, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None) -> None:
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        self.message = message
        where = "" if self.path is None else f"{self.path}: " if offset is None else f"{self.path}: at byte {offset}: "
        super().__init__(where + message)


class RejectedImage(DataError):
    """Bytes that cannot go into a data set, with the reason as a short code for counting.

    Attributes:
        reason: one of `tfpipe.records.images.REASONS`.
    """

    def __init__(
        self, reason: str, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None
    ) -> None:
        self.reason = reason
        super().__init__(message, path=path, offset=offset)
