"""The training loop: steps, validation, checkpoints, for one device, several, or several workers.

    last = Loop(phase, strategy, state_file, journal).run()     # the network has the best weights; these are the last

Everything that decides the next step (weights, optimisers, averages, stopping, schedule, the place in the data) is saved
together; data and augmentation follow from (seed, epoch, step). So a run that is killed at any point and started again ends
with the same bits as one that was not. Keras' `fit` cannot: its `BackupAndRestore` begins the epoch anew and forgets
`EarlyStopping`, and it fails under `MultiWorkerMirroredStrategy` (Keras 3.15).
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.pipeline import arithmetic
from tfpipe.records.errors import DataError
from tfpipe.records.progress import ProgressBar
from tfpipe.records.words import exactly
from tfpipe.transfer import states
from tfpipe.transfer.batches import Batch, Batches
from tfpipe.transfer.journal import Journal
from tfpipe.transfer.schedules import EarlyStopping, RangeTest, Schedule

Array = np.ndarray[Any, Any]

BEFORE = -1  # best epoch of a phase whose first weights no epoch improved
_LOG_STEPS = 20  # between two lines of the log
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class RateGroup:
    """Variables that are trained at `multiplier` times the learning rate, by an optimiser of their own."""

    optimizer: keras.optimizers.Optimizer
    variables: Sequence[keras.Variable]
    multiplier: float


@dataclass
class Phase:
    """One stretch of training: a network, what of it is trained, on what, and for how long.

    Attributes:
        name: in logs and files.
        network: batch inputs -> logits float32 [B, C].
        groups: what is trained.
        batches: training and validation data.
        epochs: at most.
        schedule: of the learning rate.
        stopping: when to end before.
        label_smoothing: share of each target that is spread over all classes.
        class_weights: float [C], weight of each class in the loss.
        ema: decay of the moving average of the weights, which validation and the result then take; 0 for none.
        continues: the weights are those of a phase before, and stay if no epoch makes them better.
        tf32: float32 is multiplied in TF32, where the device can.
    """

    name: str
    network: keras.Sequential
    groups: Sequence[RateGroup]
    batches: Batches
    epochs: int
    schedule: Schedule
    stopping: EarlyStopping
    label_smoothing: float = 0.0
    class_weights: Array | None = None
    ema: float = 0.0
    continues: bool = False
    tf32: bool = False

    @property
    def trained(self) -> list[keras.Variable]:
        """All variables that are trained."""
        return [variable for group in self.groups for variable in group.variables]


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
        checkpoint_seconds: a state is saved when the last is as old, at the end of every epoch, and on Ctrl-C or SIGTERM.
        show: whether to show a progress bar.
    """

    phase: Phase
    strategy: tf.distribute.Strategy
    state_file: Path
    journal: Journal
    checkpoint_seconds: float = 60.0
    show: bool = True
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        phase = self.phase
        with self.strategy.scope():
            for group in phase.groups:
                group.optimizer.build(group.variables)
        trained = {id(variable) for variable in phase.trained}
        trained |= {id(variable) for layer in phase.network.layers if layer.name == "frozen" for variable in layer.variables}
        # Seeds of dropout and statistics of BatchNorm change while training, too.
        self._others = [variable for variable in phase.network.variables if id(variable) not in trained]
        # What the network is after training: what is trained, and BatchNorm's statistics, which belong to these weights.
        moving = [variable for variable in self._others if keras.backend.is_float_dtype(variable.dtype)]
        self._result = [*phase.trained, *moving]
        self._averages = [tf.Variable(variable.numpy()) for variable in self._result] if phase.ema else []
        self._best: list[Array] = []
        self._batches: Iterator[Batch] | None = None
        self._graph_is_new = True
        self._interrupted = threading.Event()
        self._num_workers = count_workers(self.strategy)
        self._replicas = self.strategy.num_replicas_in_sync // self._num_workers
        self._train = tf.function(self._train_step, autograph=False, reduce_retracing=True)
        self._validate = tf.function(self._validation_step, autograph=False, reduce_retracing=True)
        self._average = tf.function(self._average_step, autograph=False)

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
        last = [variable.numpy() for variable in self._result]
        self.assign(self._best or last)
        return last

    def assign(self, values: Sequence[Array]) -> None:
        """Gives the trained variables and BatchNorm's statistics values."""
        _assign(self._result, values)

    def explore(self, test: RangeTest) -> None:
        """Takes steps at rising rates and tells the test their losses; everything is as before afterwards."""
        before = {name: [variable.numpy() for variable in group] for name, group in self._variables().items()}
        batches = self.phase.batches.start(0, 0)
        num_steps = self.phase.batches.num_steps
        for step, batch in enumerate(batches):
            self.progress.step = step % num_steps
            loss, _ = self.train_step(batch, test.rate(step))
            if not test.observe(loss / self._rows(self.progress.step)):
                break
        self.progress = Progress()
        for name, variables in self._variables().items():
            _assign(variables, before[name])

    def _run_epoch(self) -> None:
        phase, now = self.phase, self.progress
        num_steps = phase.batches.num_steps
        begun = saved = time.monotonic()
        title = f"{phase.name} {now.epoch + 1}/{phase.epochs}"
        with ProgressBar(title, num_steps, unit="steps", initial=now.step, enabled=self.show) as bar:
            while now.step < num_steps:
                if self._batches is None:  # one for all epochs: opening the data takes longer than a step
                    self._batches = phase.batches.start(now.epoch, now.step)
                batch, rate = next(self._batches), phase.schedule.rate(now.epoch * num_steps + now.step)
                with self.journal.step():
                    loss, correct = self.train_step(batch, rate)
                self._count(loss, correct)
                bar.add(1, loss=now.loss / now.rows, accuracy=now.correct / now.rows)
                if self._interrupted.is_set() or time.monotonic() - saved >= self.checkpoint_seconds:
                    now.seconds += time.monotonic() - begun
                    self._save()
                    begun = saved = time.monotonic()
                if self._interrupted.is_set():
                    raise KeyboardInterrupt
            self._end_epoch(now.seconds + time.monotonic() - begun, bar)

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
        if self._interrupted.is_set():  # they may be of some pictures only: the next process validates again
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
            self._best = [variable.numpy() for variable in (self._averages or self._result)]
        return is_best

    # ---- steps

    def train_step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """Takes one step; returns (sum of the losses, number of right answers) of this batch's pictures."""
        for group in self.phase.groups:
            group.optimizer.learning_rate = rate * group.multiplier
        rows = tf.constant(self._rows(self.progress.step), tf.float32)
        with arithmetic.computing(tf32=self.phase.tf32):
            loss, correct = self._train(*self._distribute(batch), rows)
        if self._averages:
            step = self.progress.epoch * self.phase.batches.num_steps + self.progress.step
            # Rises from 0.1: the first weights, drawn at random, would be most of a short run's average.
            decay = min(self.phase.ema, (1 + step) / (10 + step))
            self._average(tf.constant(decay, tf.float32))
        return float(loss), float(correct)

    def validate(self) -> tuple[float, float]:
        """Returns (mean loss, accuracy) on the validation pictures; of the averaged weights where there are such.

        Of the first pictures only, once a signal has come that stops the run.
        """
        current = [variable.numpy() for variable in self._result] if self._averages else []
        if current:
            self.assign([average.numpy() for average in self._averages])
        sums = np.zeros(3)
        for batch in self.phase.batches.validation():
            if self._graph_is_new:
                self.journal.graph(self._validate, *batch)
                self._graph_is_new = False
            with arithmetic.computing(tf32=self.phase.tf32):
                sums += [float(value) for value in self._validate(*batch)]
            if self._interrupted.is_set():
                break
        if current:
            self.assign(current)
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])

    def _train_step(self, inputs: Any, targets: Any, weights: Any, rows: Any) -> tuple[Any, Any]:
        loss, correct = self.strategy.run(self._replica_step, args=(inputs, targets, weights, rows))
        total = tf.distribute.ReduceOp.SUM
        return self.strategy.reduce(total, loss, axis=None), self.strategy.reduce(total, correct, axis=None)

    def _replica_step(self, inputs: Any, targets: Any, weights: Any, rows: Any) -> tuple[Any, Any]:
        phase = self.phase
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in phase.trained])
            logits = phase.network(inputs, training=True)
            losses = self._losses(logits, targets) * weights
            # Gradients are summed over replicas: each has its share of the mean over the global batch.
            loss = tf.reduce_sum(losses) / rows + _penalty(phase.network) / self.strategy.num_replicas_in_sync
        gradients = tape.gradient(loss, [variable.value for variable in phase.trained])
        for group in phase.groups:
            size = len(group.variables)
            group.optimizer.apply(gradients[:size], group.variables)
            gradients = gradients[size:]
        return tf.reduce_sum(losses), _count_correct(logits, targets, weights)

    def _validation_step(self, inputs: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
        logits = self.phase.network(inputs, training=False)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32)) * weights
        return tf.reduce_sum(losses), _count_correct(logits, targets, weights), tf.reduce_sum(weights)

    def _average_step(self, decay: Any) -> None:
        for average, variable in zip(self._averages, self._result, strict=True):
            average.assign_sub((1 - decay) * (average - variable.value))

    def _losses(self, logits: Any, targets: Any) -> Any:
        smoothing = self.phase.label_smoothing
        smooth = targets * (1 - smoothing) + smoothing / targets.shape[-1]
        losses = tf.nn.softmax_cross_entropy_with_logits(smooth, tf.cast(logits, tf.float32))
        if self.phase.class_weights is None:
            return losses
        return losses * tf.linalg.matvec(targets, tf.constant(self.phase.class_weights, tf.float32))

    def _rows(self, step: int) -> int:
        """Returns how many pictures a step of all workers has."""
        size = self.phase.batches.batch_size * self._num_workers
        return min(size, self.phase.batches.num_rows - step * size)

    def _distribute(self, batch: Batch) -> tuple[Any, ...]:
        """Returns the batch's parts, one for each replica of this worker."""
        if self._replicas == 1:
            return batch
        inputs, targets, weights = (tf.convert_to_tensor(values) for values in batch)
        # In place of blank rows, real pictures of the batch, still of weight 0: BatchNorm would take black ones into account.
        real = tf.where(weights > 0)[:, 0]
        if len(real):
            places = tf.range(len(weights), dtype=tf.int64)
            inputs = tf.gather(inputs, tf.where(weights > 0, places, tf.gather(real, places % len(real))))

        def part(values: Any) -> Any:
            size = len(values) // self._replicas
            return self.strategy.experimental_distribute_values_from_function(
                lambda context: values[context.replica_id_in_sync_group % self._replicas * size :][:size]
            )

        return part(inputs), part(targets), part(weights)

    # ---- state

    def _variables(self) -> dict[str, list[Any]]:
        optimizers = [variable for group in self.phase.groups for variable in group.optimizer.variables]
        return {"trained": self.phase.trained, "others": self._others, "optimizers": optimizers, "averages": self._averages}

    def _save(self) -> None:
        groups = {name: [variable.numpy() for variable in group] for name, group in self._variables().items()}
        facts = {
            "progress": vars(self.progress),
            "stopping": self.phase.stopping.state(),
            "schedule": self.phase.schedule.state(),
            "num_steps": self.phase.batches.num_steps,
            "journal": self.journal.position(),
        }
        states.save(self.state_file, {**groups, "best": self._best}, facts)

    def _restore(self) -> None:
        try:
            groups, facts = states.load(self.state_file)
        except FileNotFoundError:
            return
        for name, variables in self._variables().items():
            _assign(variables, groups[name])
        self._best = groups["best"]
        self.progress = Progress(**facts["progress"])
        self.phase.stopping.restore(facts["stopping"])
        self.phase.schedule.restore(facts["schedule"])


def is_done(epoch: int, epochs: int, stopping: EarlyStopping) -> bool:
    """Returns whether a phase of at most `epochs` ends before `epoch`, counted from 0."""
    return epoch >= epochs or (epoch > 0 and stopping.should_stop)


def count_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns how many processes train together; TensorFlow 2.21 has no public name for it."""
    return int(getattr(strategy.extended, "_num_workers", 1))


def _penalty(network: keras.Model) -> Any:
    return tf.add_n(network.losses) if network.losses else tf.zeros([])


def _count_correct(logits: Any, targets: Any, weights: Any) -> Any:
    right = tf.equal(tf.argmax(logits, -1), tf.argmax(targets, -1))
    return tf.reduce_sum(tf.cast(right, tf.float32) * tf.sign(weights))


def _assign(variables: Sequence[Any], values: Sequence[Array]) -> None:
    if len(variables) != len(values):
        raise DataError(f"the saved state has {exactly(len(values), 'array')} where {len(variables)} are needed")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C, SIGTERM or SIGHUP sets: a step is not to be stopped in its middle.

    When the block is left for that, SIGTERM and SIGHUP get to whoever would have got them: a process without a handler ends.
    A second Ctrl-C stops at once.
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
