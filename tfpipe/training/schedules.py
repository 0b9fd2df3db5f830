"""Learning rates, early stopping and the range test; checkpoints keep their states."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class LearningRate:
    """The learning rate of every step: a linear warm-up to the peak, then one of three schedules.

    "constant" stays at the peak. "cosine" falls along a cosine to 0 (Loshchilov, Hutter 2016).
    "plateau" is multiplied by `factor` after `patience` epochs without a better validation.
    """

    schedule: str
    peak: float
    warmup_steps: int = 0  # the step of this number is the first at the peak
    total_steps: int = 0  # a cosine is at 0 from this step on
    first_step: int = 0  # where a cosine begins; later than 0 in a run that is trained longer
    patience: int = 3
    factor: float = 0.3
    floor: float = 0.0  # the lowest rate of "plateau"
    _best: float | None = None
    _num_waited: int = 0
    _num_falls: int = 0

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, from 0, after the epochs observed so far."""
        step -= self.first_step
        level = self.peak
        if self.schedule == "plateau":
            level = max(self.peak * self.factor**self._num_falls, self.floor)
        elif self.schedule == "cosine" and step >= self.warmup_steps:
            num_falling = max(self.total_steps - self.first_step - self.warmup_steps, 1)
            level = self.peak * (1.0 + math.cos(math.pi * min((step - self.warmup_steps) / num_falling, 1.0))) / 2.0
        if step >= self.warmup_steps:
            return level
        return min(level, self.peak * ((step + 1) / (self.warmup_steps + 1)))

    def observe(self, value: float) -> None:
        """Records the validation of an epoch; higher is better, NaN never is."""
        if math.isfinite(value) and (self._best is None or value > self._best):
            self._best, self._num_waited = value, 0
            return
        self._num_waited += 1
        if self._num_waited >= self.patience:
            self._num_waited, self._num_falls = 0, self._num_falls + 1

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""
        state = {"best": self._best, "num_waited": self._num_waited, "num_falls": self._num_falls}
        return state if self.schedule == "plateau" else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`, bit for bit."""
        if state:
            self._best, self._num_waited, self._num_falls = state["best"], state["num_waited"], state["num_falls"]


@dataclass
class EarlyStopping:
    """Finds the best epoch, and when there was none for `patience` epochs.

    An epoch, counted from 0, is better if its accuracy is higher, or the same with a lower loss:
    small validation sets give equal accuracies all the time. NaN and infinity are never better.
    `by_loss`, the loss alone counts.
    """

    patience: int
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int | None = None
    num_waited: int = 0
    by_loss: bool = False

    @property
    def best_number(self) -> int:
        """Number of the best epoch, from 1; 0 if none was better than the start."""
        return 0 if self.best_epoch is None else self.best_epoch + 1

    @property
    def should_stop(self) -> bool:
        """True after `patience` epochs in a row that were not better."""
        return self.num_waited >= self.patience

    def observe(self, epoch: int, accuracy: float, loss: float) -> bool:
        """Records the validation of an epoch; returns True if it is the best so far."""
        is_finite = math.isfinite(accuracy) and math.isfinite(loss)
        if is_finite and (self.best is None or self.best_loss is None or self._is_better(accuracy, loss)):
            self.best, self.best_loss, self.best_epoch, self.num_waited = accuracy, loss, epoch, 0
            return True
        self.num_waited += 1
        return False

    def _is_better(self, accuracy: float, loss: float) -> bool:
        if self.best is None or self.best_loss is None:
            return True
        if self.by_loss:
            return loss < self.best_loss
        return (accuracy, -loss) > (self.best, -self.best_loss)

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""
        return {name: value for name, value in vars(self).items() if name not in ("patience", "by_loss")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state`."""
        self.best, self.best_loss, self.best_epoch = state["best"], state["best_loss"], state["best_epoch"]
        self.num_waited = state["num_waited"]


@dataclass
class RangeTest:
    """Finds a learning rate by training with ever higher ones (Smith 2017).

    test = RangeTest()
    for step in range(test.num_steps):
        if not test.observe(train_step(test.rate(step))):
            break
    test.suggestion()
    """

    low: float = 1e-6
    high: float = 1.0
    num_steps: int = 100  # below about 30 the curve shows little
    losses: list[float] = field(default_factory=list)
    _diverged: bool = False
    _mean: float = 0.0
    _best: float = math.inf

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, 0..num_steps - 1: equal factors from low to high."""
        return float(self.low * (self.high / self.low) ** (step / (self.num_steps - 1)))

    def observe(self, loss: float) -> bool:
        """Records the loss of the next step; returns False if it diverged or was the last."""
        memory, diverged, min_steps = 0.9, 4.0, 5  # of the running mean; times its best; before it can have risen
        if not math.isfinite(loss):
            self._diverged = True
            return False
        self.losses.append(loss)
        self._mean = memory * self._mean + (1.0 - memory) * loss
        mean = self._mean / (1.0 - memory ** len(self.losses))  # it began at 0
        self._best = min(self._best, mean)
        self._diverged = len(self.losses) >= min_steps and mean > diverged * self._best
        return not self._diverged and len(self.losses) < self.num_steps

    def rates(self) -> list[float]:
        """Returns the rates of the steps with a finite loss, whose `losses` these are."""
        return [self.rate(step) for step in range(len(self.losses))]

    def suggestion(self) -> float | None:
        """Returns the rate to train with, or None where the curve shows none.

        Straight lines are fitted to the loss over the logarithm of the rate, in windows of a sixth
        of the curve, which levels noise without the lag of a running mean. The suggestion is the
        middle of the steepest one, between the first fifth of the fall and the last, but no more
        than a tenth of the rate at which the loss diverged. The fall must exceed the noise; where
        it does not (a trained head has nothing to learn), a tenth of the diverging rate is left,
        and where nothing diverged either, None.
        """
        highest = self.rate(len(self.losses)) / 10.0 if self._diverged else math.inf
        steepest = _steepest_fall(self.losses)
        chosen = min(highest, math.inf if steepest is None else self.rate(steepest))
        return chosen if math.isfinite(chosen) else None


def smooth(losses: Sequence[float]) -> list[float]:
    """Returns each loss as the mean of a window around it, narrower at the ends."""
    half, last = _window(len(losses)) // 2, len(losses) - 1
    reaches = [min(half, index, last - index) for index in range(len(losses))]  # as far to the left as to the right
    return [statistics.fmean(losses[index - reach : index + reach + 1]) for index, reach in enumerate(reaches)]


def _window(num_losses: int) -> int:
    return max(7, num_losses // 6)


def _steepest_fall(losses: Sequence[float]) -> int | None:
    """Returns the step at which the loss falls fastest, or None if the fall is noise."""
    size = _window(len(losses))
    if len(losses) < size:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(np.array(losses, np.float64), size)
    places = np.arange(size) - (size - 1) / 2.0
    means, slopes = windows.mean(1), windows @ places / (places @ places)
    lowest = int(means.argmin())
    fall = means[0] - means[lowest]
    residuals = (windows - means[:, None] - slopes[:, None] * places)[: lowest + 1]
    noise = np.median(np.sqrt(np.square(residuals).sum(1) / (size - 2)))  # two degrees of freedom went into the line
    if fall <= 4.0 * noise * math.sqrt(2.0 / size):  # four standard errors of a difference of means
        return None
    # Only where a fifth of the fall is done and a fifth is left: a wiggle of the flat part at the
    # start can be steep, too
    inside = np.flatnonzero(np.abs(means[:lowest] - means[lowest] - fall / 2.0) <= 0.3 * fall)
    start = inside[slopes[inside].argmin()] if len(inside) else lowest
    return int(start) + size // 2
