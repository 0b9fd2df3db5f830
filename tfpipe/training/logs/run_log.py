"""The log of a run: log.jsonl, history.csv and TensorBoard's events.

    run_log = RunLog(folder, position=saved)     # 0 for a new run
    run_log.scalars(step, epoch, "head", loss=0.3)
    run_log.epoch({"phase": "head", "epoch": 1, "train_loss": 0.3, "val_accuracy": 0.9, "train_seconds": 4.2})
    saved = run_log.position()                    # goes into the checkpoint
    run_log.close()

log.jsonl has a line per event; history.csv is the table of its epochs. A run that was killed and
went on from a checkpoint leaves the files of one that was not, except for values whose names end
with _seconds. TensorBoard's events after the checkpoint stay, doubled.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, read_bytes, written_atomically
from tfpipe.common.text import plural
from tfpipe.training.logs.profiling import Profile

LOG_NAME = "log.jsonl"
HISTORY_NAME = "history.csv"
TENSORBOARD_NAME = "tensorboard"
PROFILE_NAME = "profile.txt"

COLUMNS = (
    "phase",
    "epoch",  # of the phase, from 1
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "train_seconds",
    "val_seconds",
)

_log = logging.getLogger("tfpipe")


class RunLog:
    """Writes the events of a run, each line at once.

    Lines after `position`, that of the checkpoint from which the run goes on, are removed, and a
    torn one that a kill left.

    Raises:
        DataError: a line before `position` is damaged.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = True, position: int = 0, profile_steps: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = _read_lines(folder / LOG_NAME, position)
        epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
        with written_atomically(folder / LOG_NAME) as file:
            file.writelines(lines)
        with written_atomically(folder / HISTORY_NAME) as file:  # from the log, so that the two agree wherever a kill came
            file.writelines([_csv_line(COLUMNS), *(_csv_line(map(event.get, COLUMNS)) for event in epochs)])
        self._num_events, self._num_epochs = len(lines), len(epochs)
        self._files = [open(folder / name, "ab", buffering=0) for name in (LOG_NAME, HISTORY_NAME)]  # noqa: SIM115 (close)
        self._writer: Any = None
        if tensorboard:
            import tensorflow as tf

            self._writer = tf.summary.create_file_writer(str(folder / TENSORBOARD_NAME))
        self._profile = Profile(folder / TENSORBOARD_NAME, folder / PROFILE_NAME, profile_steps)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def scalars(self, step: int, epoch: int, phase: str, **values: Any) -> None:
        """Writes values of a step to the log and, named PHASE/NAME, to TensorBoard."""
        self._write({"event": "step", "phase": phase, "epoch": epoch, "step": step, **values})
        self._plot(phase, step, values)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Writes values of COLUMNS to history, log and, as epoch/NAME, TensorBoard."""
        event = self._write({"event": "epoch", **row})
        self._files[1].write(_csv_line(map(event.get, COLUMNS)))
        self._num_epochs += 1
        self._plot("epoch", self._num_epochs, {name: row[name] for name in row if name not in ("phase", "epoch")})

    def position(self) -> int:
        """Returns the number of lines, once they are on the disk; a checkpoint must keep it."""
        for file in self._files:
            os.fsync(file.fileno())
        return self._num_events

    def graph(self, function: Any, *examples: Any) -> None:
        """Writes the graph of a `tf.function` called with examples for TensorBoard."""
        if self._writer is not None:
            import tensorflow as tf

            with self._writer.as_default():
                concrete = function if hasattr(function, "graph") else function.get_concrete_function(*examples)
                tf.summary.graph(concrete.graph)

    def step(self) -> Any:
        """Returns a context for a step of training; see `Profile.step`."""
        return self._profile.step()

    def close(self) -> None:
        """Closes the files; a second call does nothing."""
        self._profile.close()
        for file in self._files:
            file.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, event: Mapping[str, Any]) -> dict[str, Any]:
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in event.items()
        }  # JSON lacks NaN
        self._files[0].write(json.dumps(plain, allow_nan=False).encode() + b"\n")
        self._num_events += 1
        return plain

    def _plot(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default(step):  # flushes at its end
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", float(value))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a history: phase is str, epoch int, the others float or NaN."""
    path = folder / HISTORY_NAME
    with io.TextIOWrapper(open_regular(path), "utf-8", newline="") as file:
        try:
            return [{name: _parse(name, row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise DataError(f"not a history as tfpipe writes it ({type(error).__name__}: {error})", path=path) from None


def _parse(name: str, text: str) -> Any:
    if name == "phase":
        return text
    if name == "epoch":
        return int(text) if text else None
    return float(text) if text else math.nan


def _read_lines(path: Path, position: int) -> list[bytes]:
    """Returns the first lines of a log; a torn last one does not count."""
    data = read_bytes(path) if position and path.exists() else b""
    lines = [line + b"\n" for line in data.split(b"\n")[:-1][:position]]
    if len(lines) < position:
        _log.warning("%s: %s before the checkpoint, left: %d", path, plural(position, "line"), len(lines))
    for index, line in enumerate(lines):
        with contextlib.suppress(ValueError):
            if isinstance(event := json.loads(line), dict) and "event" in event:
                continue
        offset = sum(map(len, lines[:index]))
        raise DataError(f"line {index + 1} is damaged; delete the file to go on without it", path=path, offset=offset)
    return lines


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
