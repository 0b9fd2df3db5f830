"""The training loop: steps, validation, checkpoints, for one device, several, or several workers.

    last = Loop(phase, strategy, state_file, journal).run()     # the network has the best weights; these are the last

Everything that decides the next step (weights, optimisers, averages, stopping, schedule, the place
in the data) is saved together; data and augmentation follow from (seed, epoch, step). So a run that
is killed at any point and started again ends with the same bits as one that was not. Keras' `fit`
cannot: its `BackupAndRestore` begins the epoch anew and forgets `EarlyStopping`, and it fails under
`MultiWorkerMirroredStrategy` (Keras 3.15).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from tfpipe.training.profiling import Watch
from tfpipe.training.run_log import Journal
from tfpipe.training.schedules import EarlyStopping, RangeTest
from tfpipe.training.steps import Phase, Steps, assign

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

_log = logging.getLogger("tfpipe")

BEFORE = -1  # best epoch of a phase whose first weights no epoch improved
_LOG_STEPS = 20  # between two lines of the log
_CALL_SECONDS = 0.25  # of many steps in one call, which no signal stops
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Progress:
    """Where a phase is: all of it that is no array."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0


@dataclass(repr=False)  # TensorFlow's warnings would print all weights
class Loop:
    """Runs a phase, from where it was left.

    Attributes:
        phase: what to do.
        strategy: of the devices; the phase's variables were made in its scope.
        state_file: where the state is kept.
        journal: where the course of it is written.
        checkpoint_seconds: a state is saved when the last is as old, at the end of every epoch, and
            on Ctrl-C or SIGTERM.
        show: whether to show a progress bar.
        report: takes lines that tell what is done and why.
    """

    phase: Phase
    strategy: tf.distribute.Strategy
    state_file: Path
    journal: Journal
    checkpoint_seconds: float = 60.0
    show: bool = True
    report: Callable[[str], None] = _log.info
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self._steps = Steps(self.phase, self.strategy)
        self._best: list[Array] = []
        self._batches: Iterator[Batch] | None = None
        self._batch: Batch = (None, None, None)  # the next one
        self._graph_is_new = True
        self._interrupted = threading.Event()
        self._num_calls = 0
        self._step_seconds = math.inf  # of the last call but the first, which traces the graph
        self._has_fit = False

    # ---- the loop

    def run(self) -> list[Array]:
        """Trains; the network then has the best weights and their statistics. Returns those of the last step."""
        self._restore()
        phase, now = self.phase, self.progress
        if phase.continues and (now.epoch, now.step) == (0, 0) and phase.stopping.best_epoch is None:
            self._keep_if_best(BEFORE, *self.validate())
            self._save()  # all that there is of a phase without epochs
        with _interrupts() as self._interrupted:
            while not is_done(now.epoch, phase.epochs, phase.stopping):
                self._run_epoch()
            if self._interrupted.is_set():
                raise KeyboardInterrupt  # it came in the last validation
        self._batches = None
        last = [variable.numpy() for variable in self._steps.result]
        self.assign(self._best or last)
        return last

    def assign(self, values: Sequence[Array]) -> None:
        """Gives the trained variables and BatchNorm's statistics values."""
        assign(self._steps.result, values)

    def explore(self, test: RangeTest) -> None:
        """Takes steps at rising rates and tells the test their losses; everything is as before afterwards."""
        before = self._steps.values()
        batches = self.phase.batches.start(0, 0)
        num_steps = self.phase.batches.num_steps
        for step, batch in enumerate(batches):
            self.progress.step = step % num_steps
            loss, _ = self.train_step(batch, test.rate(step))
            if not test.observe(float(loss) / self._rows(self.progress.step)):
                break
        self.progress = Progress()
        self._steps.restore(before)

    def _run_epoch(self) -> None:
        phase, now = self.phase, self.progress
        num_steps = phase.batches.num_steps
        begun = saved = time.monotonic()
        title = f"{phase.name} {now.epoch + 1}/{phase.epochs}"
        with ProgressBar(title, num_steps, unit="steps", initial=now.step, enabled=self.show) as bar:
            while now.step < num_steps:
                with self.journal.step() as watch:
                    for loss, correct in self._advance(saved + self.checkpoint_seconds, watch):
                        self._count(loss, correct)
                        bar.add(1, loss=now.loss / now.rows, accuracy=now.correct / now.rows)
                if self._interrupted.is_set() or time.monotonic() - saved >= self.checkpoint_seconds:
                    now.seconds += time.monotonic() - begun
                    self._save()
                    begun = saved = time.monotonic()
                if self._interrupted.is_set():
                    raise KeyboardInterrupt
            self._end_epoch(now.seconds + time.monotonic() - begun, bar)

    def _advance(self, deadline: float, watch: Watch) -> list[tuple[float, float]]:
        """Takes a step, or as many as one call takes before a deadline; returns (sum of the losses, right answers) of each."""
        now, cached = self.progress, self._steps.in_blocks
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
        loss, correct = self.train_step(self._batch, self._rate(0))
        watch("device")
        self._batch = next(self._batches)  # while a GPU computes
        watch("ahead")
        result = float(loss), float(correct)
        watch("device")
        return [result]

    def _count(self, loss: float, correct: float) -> None:
        """Takes note of a step; every few steps, the log does, too."""
        now = self.progress
        now.loss, now.correct, now.rows = now.loss + loss, now.correct + correct, now.rows + self._rows(now.step)
        now.step += 1
        step = now.epoch * self.phase.batches.num_steps + now.step
        if step % _LOG_STEPS == 0:
            values = {"loss": now.loss / now.rows, "accuracy": now.correct / now.rows}
            self.journal.scalars(step, now.epoch + 1, self.phase.name, **values)

    def _end_epoch(self, train_seconds: float, bar: ProgressBar) -> None:
        phase, now = self.phase, self.progress
        rate = phase.schedule.rate((now.epoch + 1) * phase.batches.num_steps - 1)
        train_loss, train_accuracy = now.loss / now.rows, now.correct / now.rows
        self._check_finite("training", train_loss)
        begun = time.monotonic()
        val_loss, val_accuracy = self.validate()
        if self._interrupted.is_set():  # they may be of some images only: the next process validates again
            now.seconds = train_seconds
            self._save()
            raise KeyboardInterrupt
        self._check_finite("validation", val_loss)
        is_best = self._keep_if_best(now.epoch, val_loss, val_accuracy)
        number = phase.stopping.best_number
        best = f"epoch {number}" if number else "before epoch 1"
        bar.finish(val_loss=val_loss, val_accuracy=val_accuracy, best="so far" if is_best else best)
        phase.schedule.observe(val_accuracy)
        now.epoch, now.step = now.epoch + 1, 0
        now.loss = now.correct = now.rows = now.seconds = 0.0
        values = {
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "learning_rate": rate,
            "train_seconds": train_seconds,
            "val_seconds": time.monotonic() - begun,
        }
        self.journal.epoch({"phase": phase.name, "epoch": now.epoch, **values})
        self._save()

    def _check_finite(self, name: str, loss: float) -> None:
        if not math.isfinite(loss):
            where = f"{self.state_file.parent.parent}: {self.phase.name}, epoch {self.progress.epoch + 1}"
            raise DataError(f"{where}: the {name} loss is {loss}; take a lower learning rate and another folder")

    def _keep_if_best(self, epoch: int, val_loss: float, val_accuracy: float) -> bool:
        is_best = self.phase.stopping.observe(epoch, val_accuracy, val_loss)
        if is_best:
            self._best = [variable.numpy() for variable in (self._steps.averages or self._steps.result)]
        return is_best

    # ---- steps

    def train_step(self, batch: Batch, rate: float) -> tuple[Any, Any]:
        """Takes one step; returns (sum of the losses, number of right answers) of this batch's images, float32 []."""
        return self._fitting(lambda: self._steps.take(batch, self._rows(self.progress.step), rate, self._decay(0)))

    def train_block(self, block: Block) -> tuple[Any, Any]:
        """Takes the steps of a block in one call; returns what `train_step` does of each, float32 [steps]."""
        numbers = range(-(-len(block.places) // self.phase.batches.batch_size))
        rates, decays = [self._rate(number) for number in numbers], [self._decay(number) for number in numbers]
        return self._fitting(lambda: self._steps.take_block(block, rates, decays))

    def _rate(self, ahead: int) -> float:
        """Returns the learning rate of a step, so many after the present one."""
        return self.phase.schedule.rate(self._number + ahead)

    def _decay(self, ahead: int) -> float:
        """Returns the decay of the averages, which rises: the first weights, drawn at random, would be most of them."""
        number = self._number + ahead
        return min(self.phase.ema, (1 + number) / (10 + number))

    @property
    def _number(self) -> int:
        """Steps that were taken in this phase."""
        return self.progress.epoch * self.phase.batches.num_steps + self.progress.step

    def validate(self) -> tuple[float, float]:
        """Returns (mean loss, accuracy) on the validation images; of the averaged weights where there are such.

        Of the first images only, once a signal has come that stops the run.
        """
        steps = self._steps
        current = [variable.numpy() for variable in steps.result] if steps.averages else []
        if current:
            self.assign([average.numpy() for average in steps.averages])
        sums = np.zeros(3)
        for found in self._validated():
            sums += found
            if self._interrupted.is_set():
                break
        if current:
            self.assign(current)
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])

    def _validated(self) -> Iterator[Array]:
        """Yields (sum of the losses, number of right answers, of images) of each batch."""
        steps, cached = self._steps, self._steps.in_blocks
        if cached is not None:
            for block in cached.validation_blocks():
                self._show_graph(steps.validate_block, block)
                found = self._fitting(functools.partial(steps.validate_block, *block), trains=False)
                yield from np.stack(found, axis=1).astype(np.float64)
            return
        for batch in self.phase.batches.validation():
            self._show_graph(steps.validate, batch)
            yield self._fitting(functools.partial(self._validated_batch, batch), trains=False)

    def _validated_batch(self, batch: Batch) -> Array:
        size = self._steps.validation_size
        parts = [[values[first : first + size] for values in batch] for first in range(0, len(batch[0]), size)]
        found: Array = np.sum([[float(value) for value in self._steps.validate(*part)] for part in parts], axis=0)
        return found

    def _show_graph(self, function: Any, examples: Sequence[Any]) -> None:
        if self._graph_is_new:
            self.journal.graph(function, *examples)
            self._graph_is_new = False

    def _fitting(self, call: Callable[[], Result], *, trains: bool = True) -> Result:
        """Returns what a call gives; what needs too much memory is done again in smaller parts, where the phase allows it."""
        steps, phase = self._steps, self.phase
        while True:
            # What fits once fits: copies before every step would take longer than the step.
            before = steps.values() if phase.fits and trains and not self._has_fit else None
            try:
                batch_size = phase.batches.batch_size * steps.num_workers if steps.part_size > 1 else 1
                with arithmetic.within_memory(batch_size, self._advice()), arithmetic.computing(tf32=phase.tf32):
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

    def _advice(self) -> str:
        return f", or accumulate={2 * self._steps.parts}: the same batch in as many parts (batch_size=auto finds how many)"

    def _rows(self, step: int) -> int:
        """Returns how many images a step of all workers has."""
        size = self.phase.batches.batch_size * self._steps.num_workers
        return min(size, self.phase.batches.num_rows - step * size)

    # ---- state

    def _save(self) -> None:
        facts = {
            "progress": vars(self.progress),
            "stopping": self.phase.stopping.state(),
            "schedule": self.phase.schedule.state(),
            "num_steps": self.phase.batches.num_steps,
            "accumulate": self._steps.parts,
            "journal": self.journal.position(),
        }
        checkpoints.save(self.state_file, {**self._steps.values(), "best": self._best}, facts)

    def _restore(self) -> None:
        try:
            groups, facts = checkpoints.load(self.state_file)
        except FileNotFoundError:
            return
        self._steps.restore(groups)
        if (parts := facts.get("accumulate", self._steps.parts)) != self._steps.parts:
            self._steps.divide(parts)
        self._best = groups["best"]
        self.progress = Progress(**facts["progress"])
        self.phase.stopping.restore(facts["stopping"])
        self.phase.schedule.restore(facts["schedule"])


def is_done(epoch: int, epochs: int, stopping: EarlyStopping) -> bool:
    """Returns whether a phase of at most `epochs` ends before `epoch`, counted from 0."""
    return epoch >= epochs or (epoch > 0 and stopping.should_stop)


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C, SIGTERM or SIGHUP sets: a step is not to be stopped in its middle.

    When the block is left for that, SIGTERM and SIGHUP get to whoever would have got them: a
    process without a handler ends. A second Ctrl-C stops at once.
    """
    event = threading.Event()
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT and event.is_set():
            raise KeyboardInterrupt
        received.append(number)
        event.set()

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _STOPPING:  # but what is ignored, as by a script's shell for `train &`, or is not Python's (None)
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        try:
            yield event
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except KeyboardInterrupt:
        if received[-1:] not in ([], [signal.SIGINT]):
            signal.raise_signal(received[-1])
        raise
