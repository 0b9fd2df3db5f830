"""The training loop: steps, validation, checkpoints, for one device, several, or several workers.

    last = Loop(phase, strategy, state_file, run_log).run()     # the network has the best weights; these are the last

Everything that decides the next step (weights, optimisers, averages, stopping, schedule, the place
in the data) is saved together; data and augmentation follow from (seed, epoch, step). So a run that
is killed at any point and started again ends with the same bits as one that was not. Keras' `fit`
cannot: its `BackupAndRestore` restarts the epoch and forgets `EarlyStopping`, and it fails under
`MultiWorkerMirroredStrategy` (Keras 3.15).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import exactly
from tfpipe.networks import arithmetic
from tfpipe.training import checkpoints
from tfpipe.training.batches import Batch, Block
from tfpipe.training.cluster import Workers
from tfpipe.training.logs.profiling import Watch
from tfpipe.training.logs.run_log import RunLog
from tfpipe.training.schedules import EarlyStopping, RangeTest
from tfpipe.training.steps import Phase, Steps, assign

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

BEFORE = -1  # best epoch of a phase whose first weights no epoch improved
_LOG_STEPS = 20  # between two lines of the log
_CALL_SECONDS = 0.25  # of many steps in one call, which no signal stops
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Position:
    """The place of the next step in a phase, and the sums of its epoch so far."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0


@dataclass(repr=False)  # TensorFlow's warnings would print all weights
class Loop:
    """Runs a phase from its last saved state; saves it after every epoch and on signals, too."""

    phase: Phase
    strategy: tf.distribute.Strategy  # the phase's variables were made in its scope
    state_file: Path
    run_log: RunLog
    workers: Workers
    checkpoint_seconds: float
    show: bool  # a progress bar
    report: Callable[[str], None]  # called with lines about what is done and why
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self._steps = Steps(self.phase, self.strategy, self.workers.count)
        self._best: list[Array] = []
        self._batches: Iterator[Batch] | None = None
        self._batch: Batch = (None, None, None)  # the next one
        self._graph_is_new = True
        self._received: list[int] = []  # signals that stop the run
        self._stops = False  # all workers know of one
        self._must_save = False
        self._saved = time.monotonic()
        self._num_calls = 0
        self._step_seconds = math.inf  # of the last call but the first, which traces the graph
        self._has_fit = False

    # ---- the loop

    def run(self) -> list[Array]:
        """Trains; returns the weights of the last step. The network has the best ones."""
        self._restore()
        phase = self.phase
        if phase.continues and self._number == 0 and phase.stopping.best_epoch is None:
            self._keep_if_best(BEFORE, *self.validate())
            self._save()  # the only state of a phase without epochs
        with _interrupts() as self._received:
            while not is_done(self.position.epoch, phase.epochs, phase.stopping):
                self._run_epoch()
            self._stops = any(self.workers.gather_json(bool(self._received)))
            self._stop_if_requested()  # in the last validation
        self._batches = None
        last = [variable.numpy() for variable in self._steps.result]
        self.assign(self._best or last)
        return last

    def assign(self, values: Sequence[Array]) -> None:
        """Assigns values to the trained variables and BatchNorm's statistics."""
        assign(self._steps.result, values)

    def explore(self, test: RangeTest) -> None:
        """Takes steps at the rates of the test, then restores everything."""
        before = self._steps.values()
        num_steps = self.phase.batches.num_steps
        for step, batch in enumerate(self.phase.batches.start(0, 0)):
            self.position.step = step % num_steps
            loss, *_ = self.train_step(batch, test.rate(step))
            if not test.observe(float(loss) / self._rows(self.position.step)):
                break
        self.position = Position()
        self._steps.restore(before)

    def _run_epoch(self) -> None:
        phase, now = self.phase, self.position
        num_steps = phase.batches.num_steps
        begun = self._saved = time.monotonic()
        title = f"{phase.name} {now.epoch + 1}/{phase.epochs}"
        with ProgressBar(title, num_steps, unit="steps", initial=now.step, enabled=self.show) as bar:
            while now.step < num_steps:
                with self.run_log.step() as watch:
                    for loss, correct in self._advance(self._saved + self.checkpoint_seconds, watch):
                        self._count(loss, correct)
                        scores: dict[str, Any] = {phase.objective.score: now.correct / now.rows}
                        bar.add(1, loss=now.loss / now.rows, **scores)
                if self._steps.num_workers == 1:
                    self._stops, self._must_save = bool(self._received), self._is_time_to_save
                if self._stops or self._must_save:
                    now.seconds += time.monotonic() - begun
                    self._save()
                    begun = self._saved = time.monotonic()
                self._stop_if_requested()
            self._end_epoch(now.seconds + time.monotonic() - begun, bar)

    def _advance(self, deadline: float, watch: Watch) -> list[tuple[float, float]]:
        """Takes steps before a deadline; returns (sum of losses, right answers) of each."""
        now, cached = self.position, self._steps.in_blocks
        if cached is not None:
            begun = time.monotonic()
            seconds = min(deadline - begun, _CALL_SECONDS)
            block = cached.block(now.epoch, now.step, max(1, int(seconds / self._step_seconds)))
            watch("input")
            results: list[tuple[float, float]] = np.stack(self.train_block(block), axis=1).tolist()
            watch("device", len(results))
            if self._num_calls:
                self._step_seconds = (time.monotonic() - begun) / len(results)
            self._num_calls += 1
            return results
        if self._batches is None:  # one for all epochs: opening the data takes longer than a step
            self._batches = self.phase.batches.start(now.epoch, now.step)
            self._batch = next(self._batches)
        watch("input")
        loss, correct, *requests = self.train_step(self._batch, self._rates(1)[0])
        watch("device")
        self._batch = next(self._batches)  # while a GPU computes
        watch("ahead")
        result = float(loss), float(correct)
        if requests:
            self._stops, self._must_save = (float(request) > 0 for request in requests)
        watch("device")
        return [result]

    def _count(self, loss: float, correct: float) -> None:
        now = self.position
        now.loss, now.correct, now.rows = now.loss + loss, now.correct + correct, now.rows + self._rows(now.step)
        now.step += 1
        if self._number % _LOG_STEPS == 0:
            values = {"loss": now.loss / now.rows, "accuracy": now.correct / now.rows}
            self.run_log.scalars(self._number, now.epoch + 1, self.phase.name, **values)

    def _end_epoch(self, train_seconds: float, bar: ProgressBar) -> None:
        phase, now = self.phase, self.position
        values = {"train_loss": now.loss / now.rows, "train_accuracy": now.correct / now.rows}
        self._check_finite("training", values["train_loss"])
        begun = time.monotonic()
        values["val_loss"], values["val_accuracy"] = self.validate()
        if self._stops:  # they may be of some images only: the next process validates again
            now.seconds = train_seconds
            self._save()
            self._stop_if_requested()
        self._check_finite("validation", values["val_loss"])
        is_best = self._keep_if_best(now.epoch, values["val_loss"], values["val_accuracy"])
        number = phase.stopping.best_number
        best = "so far" if is_best else f"epoch {number}" if number else "before epoch 1"
        bar.finish(val_loss=values["val_loss"], best=best, **{f"val_{phase.objective.score}": values["val_accuracy"]})
        values["learning_rate"] = phase.schedule.rate(self._number - 1)
        values |= {"train_seconds": train_seconds, "val_seconds": time.monotonic() - begun}
        phase.schedule.observe(-values["val_loss"] if phase.objective.by_loss else values["val_accuracy"])
        self.position = Position(now.epoch + 1)
        self.run_log.epoch({"phase": phase.name, "epoch": now.epoch + 1, **values})
        self._save()

    def _check_finite(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            where = f"{self.state_file.parent.parent}: {self.phase.name}, epoch {self.position.epoch + 1}"
            raise DataError(f"{where}: the {name} loss is {loss}; take a lower learning rate and another folder")

    def _keep_if_best(self, epoch: int, val_loss: float, val_accuracy: float) -> bool:
        is_best = self.phase.stopping.observe(epoch, val_accuracy, val_loss)
        if is_best:
            self._best = [variable.numpy() for variable in (self._steps.averages or self._steps.result)]
        return is_best

    def _stop_if_requested(self) -> None:
        if self._stops:
            # A worker that no signal reached ends as those that one did.
            self._received.append(max(number for found in self.workers.gather_json(self._received) for number in found))
            raise KeyboardInterrupt

    @property
    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self._saved >= self.checkpoint_seconds

    @property
    def _requests(self) -> list[float]:
        """Requests of this worker after the step: to stop, and, of the chief alone, to save."""
        stops, saves = bool(self._received), self.workers.is_chief and self._is_time_to_save
        return [float(stops), float(saves)] if self._steps.num_workers > 1 else []

    # ---- steps

    def train_step(self, batch: Batch, rate: float) -> tuple[Any, ...]:
        """Takes one step; returns (sum of losses, number of right answers, *requests), float32 []."""
        rows, decay, requests = self._rows(self.position.step), self._decays(1)[0], self._requests
        return self._fitting(lambda: self._steps.take(batch, rows, rate, decay, requests))

    def train_block(self, block: Block) -> tuple[Any, Any]:
        """Takes the steps of a block in one call; returns these for each, float32 [steps]."""
        count = -(-len(block.places) // self.phase.batches.batch_size)
        return self._fitting(lambda: self._steps.take_block(block, self._rates(count), self._decays(count)))

    def _rates(self, count: int) -> list[float]:
        return [self.phase.schedule.rate(number) for number in range(self._number, self._number + count)]

    def _decays(self, count: int) -> list[float]:
        """Returns decays that rise: an average must not stay near the random first weights."""
        return [min(self.phase.ema, (1 + number) / (10 + number)) for number in range(self._number, self._number + count)]

    @property
    def _number(self) -> int:
        """Number of the next step, in the phase."""
        return self.position.epoch * self.phase.batches.num_steps + self.position.step

    def validate(self) -> tuple[float, float]:
        """Returns (mean loss, accuracy) of validation, with the averaged weights if there are any.

        Of the first images only, once a signal that stops the run was received.
        """
        steps = self._steps
        current = [variable.numpy() for variable in steps.result] if steps.averages else []
        if current:
            self.assign([average.numpy() for average in steps.averages])
        sums = np.zeros(3)
        for found in self._validated():
            sums += found
            if self._received:
                break
        if current:
            self.assign(current)
        parts = self.workers.gather_json([*sums.tolist(), bool(self._received)])
        loss, correct, rows, stops = np.sum(parts, axis=0).tolist()
        self._stops = stops > 0
        if rows != (expected := len(self.phase.batches.val.positions)) and not self._stops:
            raise DataError(f"{self.phase.name}: validated {exactly(int(rows), 'image')}, expected {expected}")
        return loss / max(rows, 1), correct / max(rows, 1)

    def _validated(self) -> Iterator[Array]:
        """Yields (sum of the losses, number of right answers, of images) of each batch."""
        steps, cached = self._steps, self._steps.in_blocks
        if cached is None:
            for batch in self.phase.batches.validation():
                self._show_graph(steps.validate, batch)
                yield self._fitting(functools.partial(self._validate_batch, batch), trains=False)
            return
        for block in cached.validation_blocks():
            self._show_graph(steps.validate_block, block)
            yield from self._fitting(functools.partial(self._validate_block, block), trains=False)

    def _validate_batch(self, batch: Batch) -> Array:
        size = self._steps.validation_size
        parts = [[values[first : first + size] for values in batch] for first in range(0, len(batch[0]), size)]
        found: Array = np.sum([[float(value) for value in self._steps.validate(*part)] for part in parts], axis=0)
        return found

    def _validate_block(self, block: Block) -> Array:
        return np.stack(self._steps.validate_block(*block), axis=1).astype(np.float64)

    def _show_graph(self, function: Any, examples: Sequence[Any]) -> None:
        if self._graph_is_new:
            self.run_log.graph(function, *examples)
            self._graph_is_new = False

    def _fitting(self, call: Callable[[], Result], *, trains: bool = True) -> Result:
        """Returns the result of a call; out of memory, repeats it in parts where allowed."""
        steps, phase = self._steps, self.phase
        while True:
            # What fits once fits: copies before every step would take longer than the step.
            before = steps.values() if phase.fits and trains and not self._has_fit else None
            advice = f", or accumulate={2 * steps.parts}: the same batch in as many parts (batch_size=auto finds how many)"
            try:
                batch_size = phase.batches.batch_size * steps.num_workers if steps.part_size > 1 else 1
                with arithmetic.within_memory(batch_size, advice), arithmetic.computing(tf32=phase.tf32):
                    found = call()
            except MemoryError:
                can_divide = phase.fits and steps.part_size > 1 and steps.num_workers == 1
                if not can_divide or (trains and before is None):
                    raise
            else:
                self._has_fit = self._has_fit or trains
                return found
            if before is not None:
                steps.restore(before)
            steps.divide(2 * steps.parts)
            self.report(f"{phase.name}: out of memory; batches are now computed in {exactly(steps.parts, 'part')} (accumulate)")

    def _rows(self, step: int) -> int:
        """Returns the number of images in a step of all workers."""
        size = self.phase.batches.batch_size * self._steps.num_workers
        return min(size, self.phase.batches.num_rows - step * size)

    # ---- state

    def _save(self) -> None:
        values = self._steps.values()
        if self.workers.count > 1:
            self._compare(values)
        if not self.workers.is_chief:
            return
        facts = {
            "progress": vars(self.position),
            "stopping": self.phase.stopping.state(),
            "schedule": self.phase.schedule.state(),
            "num_steps": self.phase.batches.num_steps,
            "accumulate": self._steps.parts,
            "journal": self.run_log.position(),
        }
        checkpoints.save(self.state_file, {**values, "best": self._best}, facts)

    def _compare(self, values: Mapping[str, Sequence[Array]]) -> None:
        """Raises an error on all workers if one has other numbers than the chief."""
        content = hashlib.sha256()
        for name in sorted(values):
            for array in values[name]:  # one by one: all together are copied twice
                content.update(array.tobytes())
        position = {"epoch": self.position.epoch, "step": self.position.step, "weights": content.hexdigest()[:16]}
        where = f"{self.phase.name} cannot go on; the state before is kept: start the same command on all workers again"
        self.workers.compare(position, f"{where} (all must have the same CPU and GPU)")

    def _restore(self) -> None:
        try:
            groups, facts = checkpoints.load(self.state_file)
        except FileNotFoundError:
            groups = None
        if groups is not None:
            self._take(groups, facts)
        if self.workers.count > 1:
            self._compare(self._steps.values())

    def _take(self, groups: dict[str, list[Array]], facts: dict[str, Any]) -> None:
        self._steps.restore(groups)
        if (parts := facts.get("accumulate", self._steps.parts)) != self._steps.parts:
            self._steps.divide(parts)
        self._best = groups["best"]
        self.position = Position(**facts["progress"])
        self.phase.stopping.restore(facts["stopping"])
        self.phase.schedule.restore(facts["schedule"])


def is_done(epoch: int, epochs: int, stopping: EarlyStopping) -> bool:
    """Returns whether a phase of at most `epochs` ends before `epoch`, counted from 0."""
    return epoch >= epochs or (epoch > 0 and stopping.should_stop)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yields a list that gets each Ctrl-C, SIGTERM and SIGHUP: the step ends first.

    When the block is left for that, the previous handler gets SIGTERM or SIGHUP: a process without
    a handler ends. A second Ctrl-C stops at once.
    """
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        # Not an ignored one, as by a script's shell for `train &`, nor one that is not Python's (None).
        for number in _STOPPING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except KeyboardInterrupt:
        if received[-1:] not in ([], [signal.SIGINT]):
            signal.raise_signal(received[-1])
        raise
