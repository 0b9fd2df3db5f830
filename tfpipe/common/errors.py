"""The tree of errors: a caller's mistake is a builtin exception, bad data a `DataError`.

    Exception
    ├── ValueError, TypeError     an argument is not what it must be, or arguments do not go together
    ├── OSError                   the system refuses: FileNotFoundError (no such data set, run, model or image),
    │                             BlockingIOError (another process writes there), PermissionError, a full disk,
    │                             ConnectionError (another worker of a training ended)
    ├── ImportError               an extra is not installed
    └── DataError                 data on disk is not what it must be: path, offset, message, problems
        ├── RejectedImage         an image that cannot be packed or predicted: and reason, a code for counting
        └── Finding               of `tfpipe.verify`: and source, the file name of the image

While a `tfpipe.dataset` is iterated, TensorFlow raises its own `tf.errors.InvalidArgumentError`,
with file, byte and source file in its message.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable

from tfpipe.common import stores

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}  # what moves a terminal
_MAX_CHARACTERS = 500  # of a line; Keras names its remedy at the end of a long one


def lines_of(error: Exception) -> list[str]:
    """Returns the lines of another library's error, each cut at a word where long; at least one.

    An empty message is replaced by the error's class; a `DataError` gives its message without the
    place.
    """
    text = error.message if isinstance(error, DataError) else str(error)
    return [textwrap.shorten(line, _MAX_CHARACTERS) for line in text.strip().splitlines()] or [type(error).__name__]


class DataError(Exception):
    """Bad data on disk, with its place.

    Attributes:
        path: the file, or None where no single file is at fault.
        offset: the byte in it, or None.
        message: what is wrong, without the place.
        problems: where several files are at fault, an error for each.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        problems: Iterable[DataError] = (),
    ) -> None:
        self.path = None if path is None else stores.url(path)
        self.offset = offset
        self.problems = tuple(problems)
        self.message = message = message.translate(_ESCAPED)
        where = "" if self.path is None else f"{self.path}: " if offset is None else f"{self.path}: at byte {offset}: "
        super().__init__(where + message)


class RejectedImage(DataError):
    """An image that cannot be packed or predicted, with the reason as a short code for counting.

    Attributes:
        reason: one of `tfpipe.images.headers.REASONS`; "unreadable" (the file), "too_large",
            "undecodable" (the decoder fails after a valid header) or "no_probabilities" (the model
            fails at it).
    """

    def __init__(
        self, reason: str, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None
    ) -> None:
        self.reason = reason
        super().__init__(message, path=path, offset=offset)

    @property
    def summary(self) -> str:
        """Reason and message, for a table that names the file already."""
        return f"{self.reason}: {self.message}"
