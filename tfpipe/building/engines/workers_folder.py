"""A folder on a shared file system by which machines divide tasks, without a server.

    WORKERS_FOLDER/
      build.json                        what is built; the first to come writes it
      machines/HOST-PID-xxxxxxxx        touched by each process as long as it lives
      planners/000002/                  touched by the process that plans; the highest number counts
        status.json                     what it does, for everyone's progress; why it failed
      tasks-DIGEST/                     of one listing of the inputs, see `Tasks`

Only what is atomic on NFS, too, decides anything: mkdir (who plans) and rename (who does a task).
No locks. Time is the file system's: a process compares the time at which it touched its own file
with that at which another touched another, and never looks at its own clock.

A process that stops for longer than `lease_seconds` counts as dead: another one plans, its tasks
are done again. When it goes on, it does no harm: what a task makes depends on the task alone, and
gets its name by rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tfpipe.building.engines.tasks_on_disk import Tasks
from tfpipe.common.errors import DataError
from tfpipe.common.files import read_bytes, written_atomically

_ATTEMPTS = 50  # to read a file that another process has just created


class Superseded(Exception):
    """This process did not touch its folder in time, and another one plans now."""


class Status(NamedTuple):
    """What a planner does; `failed` is the reason why it ended."""

    digest: str = ""  # of the listing, once there is one
    title: str = ""  # of the step
    total: int = 0
    done: int = 0
    num_bytes: int = 0
    failed: str | None = None


class WorkersFolder:
    """One process's view of the folder. `beat` may be called by another thread."""

    def __init__(self, folder: Path, lease_seconds: float) -> None:
        self.folder, self.lease_seconds = folder, lease_seconds
        host = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter in "-_.")
        self.machine = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self._own = folder / "machines" / self.machine
        self._planners = folder / "planners"
        self._number = 0  # of the planner that this process is
        for place in (self._own.parent, self._planners):
            place.mkdir(parents=True, exist_ok=True)
        self.beat()

    def join(self, what: Mapping[str, Any]) -> Mapping[str, Any]:
        """Stores what is built, if nobody has; returns what is stored."""
        path = self.folder / "build.json"
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            json.dump(what, file)
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(json.JSONDecodeError):
                return dict(json.loads(read_bytes(path)))
            time.sleep(self.lease_seconds / _ATTEMPTS)
        raise DataError("cannot be read, since who wrote it was killed: delete the folder", path=path)

    def beat(self) -> float:
        """Shows that this process lives; returns the file system's time, in seconds."""
        self._own.touch()
        if self._number:
            os.utime(self._planner(self._number))
        return self._own.stat().st_mtime

    def leave(self) -> None:
        """Shows that this process ends, so that nobody waits for its lease."""
        with contextlib.suppress(OSError):
            self._own.unlink(missing_ok=True)
            if self._number:
                os.utime(self._planner(self._number), (0, 0))

    def _is_alive(self, path: Path, now: float) -> bool:
        try:  # opened: NFS may give attributes that it remembers to those who do not
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return now - os.fstat(descriptor).st_mtime <= self.lease_seconds
        finally:
            os.close(descriptor)

    def tasks(self, digest: str) -> Tasks:
        """Returns the tasks of a listing of the inputs."""
        return Tasks(self.folder / f"tasks-{digest}", self.machine)

    def give_back_lost(self, tasks: Tasks) -> None:
        """Lets the tasks of dead processes be done again."""
        now = self.beat()
        takers = tasks.takers()
        tasks.give_back_of({name for name in takers if not self._is_alive(self._own.with_name(name), now)})

    def clear(self) -> None:
        """Removes all tasks: the build is complete."""
        for path in self.folder.glob("tasks-*"):
            shutil.rmtree(path, ignore_errors=True)

    # Planners

    def _planner(self, number: int) -> Path:
        return self._planners / f"{number:06d}"

    def last_planner(self) -> int:
        """Returns the number of the last planner; 0 where there was none."""
        return max((int(name) for name in os.listdir(self._planners) if name.isdecimal()), default=0)

    def is_planned_by(self, number: int) -> bool:
        """True where a planner lives."""
        return self._is_alive(self._planner(number), self.beat())

    def lead(self, last: int) -> bool:
        """Makes this process the planner after the last one, unless another was faster."""
        try:
            self._planner(last + 1).mkdir()
        except FileExistsError:
            return False
        self._number = last + 1
        return True

    def check_lead(self) -> None:
        """Raises Superseded if another process plans now."""
        if self._number != self.last_planner():
            self._number = 0
            raise Superseded

    def status(self, number: int) -> Status:
        """Returns what a planner has published last."""
        try:
            return msgspec.json.decode(read_bytes(self._planner(number) / "status.json"), type=Status)
        except FileNotFoundError:
            return Status()

    def publish(self, status: Status) -> None:
        """Publishes what this planner does."""
        with written_atomically(self._planner(self._number) / "status.json") as file:
            file.write(msgspec.json.encode(status))
