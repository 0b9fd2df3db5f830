"""Progress of a build that many processes share: each shows the whole."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from tfpipe.building.engines.workers_folder import Status, WorkersFolder
from tfpipe.common.progress import ProgressBar

_STATUS_SECONDS = 1.0


class PublishedBar(ProgressBar):
    """The planner's bar, which the others show, too."""

    def __init__(self, shared: WorkersFolder, status: Status, *, enabled: bool) -> None:
        super().__init__(status.title, status.total, initial=status.done, enabled=enabled and status.total > 0)
        self._shared, self._status, self._published = shared, status, time.monotonic()
        shared.publish(status)

    def add(self, num_done: int, num_bytes: int = 0, **values: Any) -> None:
        """Counts, and publishes the counts now and then."""
        super().add(num_done, num_bytes, **values)
        status = self._status
        self._status = status._replace(done=status.done + num_done, num_bytes=status.num_bytes + num_bytes)
        if time.monotonic() > self._published + _STATUS_SECONDS:
            self._shared.publish(self._status)
            self._published = time.monotonic()


class Mirror:
    """Shows the planner's progress."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled, self._shown = enabled, Status()
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def show(self, status: Status) -> None:
        """Shows what the planner has published."""
        if self._bar is None or (status.title, status.total) != (self._shown.title, self._shown.total):
            self.finish()
            is_enabled = self._enabled and status.total > 0
            self._bar = ProgressBar(status.title, status.total, initial=status.done, enabled=is_enabled)
        else:
            self._bar.add(status.done - self._shown.done, status.num_bytes - self._shown.num_bytes)
        self._shown = status

    def finish(self) -> None:
        """Ends the bar of a step that is done."""
        if self._bar is not None:
            self._bar.add(self._shown.total - self._shown.done)
        self.close()

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
