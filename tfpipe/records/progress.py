"""Progress of long work: a bar on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from types import TracebackType

_log = logging.getLogger("tfpipe")

_LINE_SECONDS = 10.0
_MAX_COLUMNS = 110


class ProgressBar:
    """Counts records and bytes; shows them with the speed and the time left. Where no bytes are counted, none are shown.

    Args:
        title: what is being done.
        total: records there will be.
        initial: records that were done before.
        enabled: False shows nothing.
    """

    def __init__(self, title: str, total: int, *, initial: int = 0, enabled: bool = True) -> None:
        self._title, self._total, self._done = title, total, initial
        self._enabled = enabled
        self._num_bytes = 0
        self._start = self._last_line = time.monotonic()
        self._bar = None
        if enabled and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            # Not tqdm's own measure of the width: it draws nothing on a terminal that does not know its size
            width = min(shutil.get_terminal_size().columns, _MAX_COLUMNS)
            self._bar = tqdm(total=total, initial=initial, desc=title, unit=" records", ncols=width, nrows=2)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and error is None:
            self._line()

    def add(self, num_records: int, num_bytes: int) -> None:
        """Counts what was done since the last call."""
        self._done += num_records
        self._num_bytes += num_bytes
        seconds = max(time.monotonic() - self._start, 1e-9)
        if self._bar is not None:
            if self._num_bytes:
                self._bar.set_postfix_str(f"{self._num_bytes / seconds / 1e6:.1f} MB/s", refresh=False)
            self._bar.update(num_records)
        elif self._enabled and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        seconds = max(self._last_line - self._start, 1e-9)
        speed = f" {self._num_bytes / seconds / 1e6:.1f} MB/s," if self._num_bytes else ""
        _log.info("%s: %d of %d records,%s %.0f s", self._title, self._done, self._total, speed, seconds)
