"""Tasks and their results as files, which move from folder to folder by rename.

waiting/NAME          a task that nobody has taken
taken/NAME@MACHINE    being done
done/NAME             its result, or its error
kept/NAME             a result that the planner has read, for the one that takes its place
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from tfpipe.building.engines.results import TYPES, Outcome, function_of
from tfpipe.common.files import read_bytes, written_atomically

_WAITING, _TAKEN, _DONE, _KEPT = "waiting", "taken", "done", "kept"
_BY = "@"


class Tasks:
    """The tasks of one listing of the inputs, seen by one process."""

    def __init__(self, folder: Path, machine: str) -> None:
        self._folder, self._machine = folder, machine

    def create(self) -> None:
        """Makes the folders."""
        for name in (_WAITING, _TAKEN, _DONE, _KEPT):
            (self._folder / name).mkdir(parents=True, exist_ok=True)

    def _names(self, place: str) -> list[str]:
        return [name for name in os.listdir(self._folder / place) if not name.startswith(".")]

    def num_waiting(self) -> int:
        """Returns the number of tasks that nobody has taken."""
        return len(self._names(_WAITING))

    def unfinished(self) -> set[str]:
        """Returns the names of tasks that wait or are being done."""
        return {*self._names(_WAITING), *(file.partition(_BY)[0] for file in self._names(_TAKEN))}

    def publish(self, name: str, task: Any) -> None:
        """Lets any machine do a task."""
        (self._folder / _DONE / name).unlink(missing_ok=True)
        with written_atomically(self._folder / _WAITING / name) as file:
            file.write(msgspec.json.encode(task))

    def task(self, name: str) -> Any:
        """Returns a task that waits, and leaves it there."""
        return _decode_task(self._folder / _WAITING / name)

    def _taken(self, name: str) -> Path:
        return self._folder / _TAKEN / f"{name}{_BY}{self._machine}"

    def take(self) -> tuple[str, Any] | None:
        """Returns (name, task) of a task that is this process's now, or None."""
        try:
            names = self._names(_WAITING)
        except FileNotFoundError:  # all are done, and cleared up
            return None
        random.shuffle(names)  # so that few meet at one
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another was faster
                os.rename(self._folder / _WAITING / name, self._taken(name))
            try:  # whatever rename said: NFS repeats a call of which the answer was lost
                return name, _decode_task(self._taken(name))
            except FileNotFoundError:
                continue
        return None

    def is_held(self, name: str) -> bool:
        """True where this process still has a task that it took."""
        return self._taken(name).exists()

    def takers(self) -> set[str]:
        """Returns the machines that have a task."""
        return {file.partition(_BY)[2] for file in self._names(_TAKEN)}

    def give_back_of(self, machines: Collection[str]) -> None:
        """Lets the tasks of some machines be done by others."""
        for file in self._names(_TAKEN) if machines else ():
            name, _, machine = file.partition(_BY)
            if machine in machines:
                with contextlib.suppress(FileNotFoundError):  # handed in after all
                    os.rename(self._folder / _TAKEN / file, self._folder / _WAITING / name)

    def hand_in(self, name: str, outcome: Outcome) -> None:
        """Stores what became of a task."""
        with contextlib.suppress(FileNotFoundError):  # all are done, and cleared up
            with written_atomically(self._folder / _DONE / name) as file:
                file.write(msgspec.json.encode(outcome))
            self._taken(name).unlink()

    def handed_in(self) -> list[str]:
        """Returns the names of results that the planner has not read."""
        return self._names(_DONE)

    def read(self, name: str, *, kept: bool = False) -> Outcome | None:
        """Returns what was handed in, or None."""
        try:
            data = read_bytes(self._folder / (_KEPT if kept else _DONE) / name)
        except FileNotFoundError:
            return None
        outcome = msgspec.json.decode(data, type=Outcome)
        if outcome.error is not None:
            return outcome
        return outcome._replace(result=msgspec.convert(outcome.result, TYPES[function_of(name)][1]))

    def keep(self, name: str) -> None:
        """Puts a result aside that has been read."""
        os.replace(self._folder / _DONE / name, self._folder / _KEPT / name)
        (self._folder / _WAITING / name).unlink(missing_ok=True)  # given back before it was handed in


def _decode_task(path: Path) -> Any:
    return msgspec.json.decode(read_bytes(path), type=TYPES[function_of(path.name)][0])
