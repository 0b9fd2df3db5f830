"""Progress of long work: a bar on a terminal or in a notebook, now and then a plain line in a log.

    with ProgressBar("head 1/3", 40, unit="steps") as bar:
        bar.add(1, loss=0.3)
        bar.finish(val_loss=0.4, best="so far")    # the last line of the bar, or in the log

Lines go to the logger "tfpipe", at level INFO; `log_line` shows them where nobody has configured
logging.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tfpipe.common.text import display_width, shortened

_log = logging.getLogger("tfpipe")

_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.1
_MAX_COLUMNS = 110
_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_BAR_COLUMNS = 31  # what this takes beside title, counts and postfix, with a bar of 4


def log_line(line: str) -> None:
    """Logs a line; shows it on stderr, as Keras does, where nobody has configured logging."""
    if not _log.hasHandlers():
        _log.addHandler(_Console())
        if _log.level == logging.NOTSET:
            _log.setLevel(logging.INFO)
    _log.info("%s", line)


class _Console(logging.Handler):
    """Writes to the current stderr while the root logger has no handler."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None and not logging.getLogger().handlers:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()


class ProgressBar:
    """Counts records or steps; shows them with the speed and the time left.

    Of `total` units, `initial` were done before. Bytes are shown where any are counted.
    """

    def __init__(self, title: str, total: int, *, unit: str = "records", initial: int = 0, enabled: bool = True) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._initial = self._done = initial
        self._enabled, self._is_finished = enabled, False
        self._num_bytes = 0
        self._values: dict[str, Any] = {}
        self._start = self._shown = time.monotonic()
        self._columns = _terminal_columns()
        self._bar = self._new_bar() if enabled and (self._columns or "ipykernel" in sys.modules) else None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._describe()
            self._bar.close()
        elif self._enabled and error is None:
            self._line()

    def add(self, num_done: int, num_bytes: int = 0, **values: Any) -> None:
        """Counts units done since the last call; shows the latest of each value, say loss=0.3."""
        self._done += num_done
        self._num_bytes += num_bytes
        self._values |= values
        waited = time.monotonic() - self._shown
        if self._bar is not None:
            if waited > _BAR_SECONDS:
                self._describe()
            self._bar.update(num_done)
        elif self._enabled and waited > _LINE_SECONDS:
            self._line()

    def finish(self, **values: Any) -> None:
        """Shows the results: on a terminal in place of the bar."""
        self._values |= values
        self._is_finished = True

    def _new_bar(self) -> Any:
        from tqdm.auto import tqdm

        options = {"total": self._total, "initial": self._initial, "desc": self._title, "unit": f" {self._unit}"}
        if self._columns:
            # Not tqdm's own measure of the width: it draws nothing on a terminal that does not know
            # its size
            options |= {"ncols": self._columns, "nrows": 2, "bar_format": _BAR_FORMAT, "desc": self._fitted(self._room, [])[0]}
        return tqdm(**options)

    @property
    def _room(self) -> int:
        """Columns for title and values beside the bar."""
        return self._columns - _BAR_COLUMNS - 2 * len(str(self._total))

    def _describe(self) -> None:
        """Shows the latest values that fit beside the bar, or, at the end, all in its place."""
        if self._bar is None:
            return
        self._shown = time.monotonic()
        if not self._columns:
            self._bar.set_postfix_str(", ".join([*self._speed(), *self._shown_values()]), refresh=False)
        elif self._is_finished:
            title, text = self._fitted(self._columns - 2, [*self._counts(), *self._shown_values()])
            self._bar.bar_format = "{desc}"
            self._bar.set_description_str(f"{title}: {text}")
        else:
            title, text = self._fitted(self._room, self._shown_values() or self._speed())
            self._bar.set_description_str(title, refresh=False)
            self._bar.set_postfix_str(text, refresh=False)

    def _fitted(self, room: int, parts: Sequence[str]) -> tuple[str, str]:
        """Returns the title and the last parts that fit, together no wider than `room`."""
        parts = list(parts)
        while len(parts) > 1 and min(display_width(self._title), room // 3) + display_width(", ".join(parts)) > room:
            parts.pop(0)
        text = ", ".join(parts)
        return shortened(self._title, room - display_width(text)), text

    def _speed(self) -> list[str]:
        seconds = max(time.monotonic() - self._start, 1e-9)
        speeds = [f"{(self._done - self._initial) / seconds:.4g} {self._unit}/s"]
        return [*speeds, f"{self._num_bytes / seconds / 1e6:.1f} MB/s"] if self._num_bytes else speeds

    def _counts(self) -> list[str]:
        seconds = time.monotonic() - self._start
        num_done, left = self._done - self._initial, self._total - self._done
        counts = [f"{self._done} of {self._total} {self._unit}"]
        if self._num_bytes:
            counts += [f"{self._num_bytes / max(seconds, 1e-9) / 1e6:.1f} MB/s"]
        return [*counts, f"{seconds:.0f} s", *([f"{seconds / num_done * left:.0f} s left"] if num_done and left > 0 else [])]

    def _shown_values(self) -> list[str]:
        return [f"{name} {value if isinstance(value, str) else f'{float(value):.4g}'}" for name, value in self._values.items()]

    def _line(self) -> None:
        self._shown = time.monotonic()
        log_line(f"{self._title}: {', '.join([*self._counts(), *self._shown_values()])}")


def _terminal_columns() -> int:
    """Returns the width of lines on stderr, one less than the terminal's; 0 without a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return 0
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return min(columns or shutil.get_terminal_size().columns, _MAX_COLUMNS) - 1
