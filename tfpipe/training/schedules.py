"""Learning rates, when to stop, and where to start: plain arithmetic whose state is a few numbers in a checkpoint.

schedule = WarmupCosine(peak=1e-3, total_steps=1000, warmup_steps=50)
schedule.rate(step)                            # for every step
schedule.observe(val_accuracy)                 # after every epoch
checkpoint["schedule"] = schedule.state()      # JSON; restore() goes on from there, bit for bit
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Schedule(Protocol):
    """The learning rate of every step."""

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""

    def observe(self, value: float) -> None:
        """Takes note of an epoch's validation; higher is better."""

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""


class Constant:
    """Rises in a straight line to the peak, which step `warmup_steps` has, and stays there.

    Args:
        peak: the highest rate, > 0.
        warmup_steps: >= 0.
    """

    def __init__(self, peak: float, warmup_steps: int = 0) -> None:
        _check_rates(peak, 0.0)
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be >= 0 (got {warmup_steps})")
        self._peak, self._warmup_steps = peak, warmup_steps

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step: a function of nothing else."""
        return _warm_up(self._peak, step, self._warmup_steps) if step < self._warmup_steps else self._peak

    def observe(self, value: float) -> None:
        """Does nothing: the course was set beforehand."""

    def state(self) -> dict[str, Any]:
        """Returns nothing, as there is none."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Does nothing."""


class WarmupCosine(Constant):
    """Rises in a straight line to the peak, which step `warmup_steps` has, and falls along a cosine (Loshchilov, Hutter 2016).

    Args:
        peak: the highest rate, > 0.
        total_steps: the rate is at the floor from this step on.
        warmup_steps: 0..total_steps - first_step.
        floor: the rate at the end, 0..peak.
        first_step: where the course begins: that of a run that was trained longer begins anew.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int, floor: float = 0.0, *, first_step: int = 0) -> None:
        super().__init__(peak)
        _check_rates(peak, floor)
        if not 0 <= warmup_steps <= total_steps - first_step:
            raise ValueError(f"warmup_steps must be 0..total_steps (got {warmup_steps} of {total_steps - first_step})")
        self._floor, self._first_step = floor, first_step
        self._total_steps, self._warmup_steps = total_steps - first_step, warmup_steps

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step: a function of nothing else."""
        step -= self._first_step
        if step < self._warmup_steps:
            return super().rate(step)
        progress = min((step - self._warmup_steps) / max(self._total_steps - self._warmup_steps, 1), 1.0)
        return self._floor + (self._peak - self._floor) * (1.0 + math.cos(math.pi * progress)) / 2.0


class Plateau:
    """Stays at the peak, after the warm-up, and is multiplied by `factor` when validation has not improved for a while.

    Args:
        peak: the highest rate, > 0.
        factor: between 0 and 1.
        patience: epochs without a better value after which the rate falls; they are counted anew
            from there.
        floor: the rate falls no lower, 0..peak.
        warmup_steps: steps of a straight rise to the peak.
    """

    def __init__(
        self, peak: float, factor: float = 0.3, patience: int = 3, floor: float = 0.0, *, warmup_steps: int = 0
    ) -> None:
        _check_rates(peak, floor)
        if not 0.0 < factor < 1.0:
            raise ValueError(f"factor must be between 0 and 1 (got {factor})")
        if patience < 1 or warmup_steps < 0:
            raise ValueError(f"patience must be >= 1 and warmup_steps >= 0 (got {patience}, {warmup_steps})")
        self._peak, self._factor, self._floor = peak, factor, floor
        self._patience, self._warmup_steps = patience, warmup_steps
        self._best: float | None = None
        self._num_waited = self._num_falls = 0

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, after the epochs observed so far."""
        level = max(self._peak * self._factor**self._num_falls, self._floor)
        return min(level, _warm_up(self._peak, step, self._warmup_steps)) if step < self._warmup_steps else level

    def observe(self, value: float) -> None:
        """Takes note of an epoch's validation; higher is better, NaN never is."""
        value = float(value)
        if math.isfinite(value) and (self._best is None or value > self._best):
            self._best, self._num_waited = value, 0
            return
        self._num_waited += 1
        if self._num_waited >= self._patience:
            self._num_waited, self._num_falls = 0, self._num_falls + 1

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""
        return {"best": self._best, "num_waited": self._num_waited, "num_falls": self._num_falls}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._best, self._num_waited, self._num_falls = state["best"], state["num_waited"], state["num_falls"]


class EarlyStopping:
    """Knows the best epoch, and when there was none for long enough.

    An epoch is better if its accuracy is no lower than the best one's, and its accuracy is higher
    or its loss lower by more than `min_delta`: of equal accuracies, which small validation sets
    give all the time, the smaller loss wins. Without `min_delta`, that is the order of (accuracy,
    -loss), the first of equal ones. NaN and infinity are never better.

    Args:
        patience: epochs without a better one before it is time to stop, >= 1.
        min_delta: gains of this much or less do not count.

    Attributes:
        best: accuracy of the best epoch, or None.
        best_loss: its loss.
        best_epoch: its number.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        if patience < 1 or not min_delta >= 0.0:
            raise ValueError(f"patience must be >= 1 and min_delta >= 0 (got {patience}, {min_delta})")
        self._patience, self._min_delta = patience, min_delta
        self.best: float | None = None
        self.best_loss: float | None = None
        self.best_epoch: int | None = None
        self._num_waited = 0

    @property
    def best_number(self) -> int:
        """Number of the best epoch, counted from 1; 0 where none was better than what was there before the first."""
        return 0 if self.best_epoch is None else self.best_epoch + 1

    @property
    def should_stop(self) -> bool:
        """True after `patience` epochs in a row that were not better."""
        return self._num_waited >= self._patience

    def observe(self, epoch: int, accuracy: float, loss: float) -> bool:
        """Takes note of an epoch's validation; returns True if it is the best so far, whose weights are to be kept."""
        accuracy, loss = float(accuracy), float(loss)
        if not self._is_better(accuracy, loss):
            self._num_waited += 1
            return False
        self.best, self.best_loss, self.best_epoch = accuracy, loss, int(epoch)
        self._num_waited = 0
        return True

    def _is_better(self, accuracy: float, loss: float) -> bool:
        if not (math.isfinite(accuracy) and math.isfinite(loss)):
            return False
        if self.best is None or self.best_loss is None:
            return True
        gain = max(accuracy - self.best, self.best_loss - loss)
        return accuracy >= self.best and gain > self._min_delta

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""
        best = {"best": self.best, "best_loss": self.best_loss, "best_epoch": self.best_epoch}
        return {**best, "num_waited": self._num_waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.best, self.best_loss, self.best_epoch = state["best"], state["best_loss"], state["best_epoch"]
        self._num_waited = state["num_waited"]


class RangeTest:
    """Finds a learning rate by training with ever higher ones (Smith 2017, "Cyclical learning rates").

    test = RangeTest()
    for step in range(test.num_steps):
        if not test.observe(train_step(test.rate(step))):
            break
    test.suggestion()

    Args:
        low: the rate of the first step, > 0.
        high: the rate of the last one.
        num_steps: >= 2; below about 30 there is not much to be seen.
    """

    _MEMORY = 0.9  # of the running mean that watches for divergence
    _DIVERGED = 4.0  # times the best
    _MIN_STEPS = 5  # before a loss can be said to have risen

    def __init__(self, low: float = 1e-6, high: float = 1.0, num_steps: int = 100) -> None:
        if not 0.0 < low < high < math.inf or num_steps < 2:
            raise ValueError(f"needed: 0 < low < high, num_steps >= 2 (got {low}, {high}, {num_steps})")
        self.num_steps = num_steps
        self._low, self._high = low, high
        self._losses: list[float] = []
        self._diverged = False
        self._mean, self._best = 0.0, math.inf

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, 0..num_steps - 1: equal factors from low to high."""
        return float(self._low * (self._high / self._low) ** (step / (self.num_steps - 1)))

    def observe(self, loss: float) -> bool:
        """Takes note of the next step's loss; returns False when it has diverged, or all steps are done."""
        loss = float(loss)
        if not math.isfinite(loss):
            self._diverged = True
            return False
        self._losses.append(loss)
        self._mean = self._MEMORY * self._mean + (1.0 - self._MEMORY) * loss
        mean = self._mean / (1.0 - self._MEMORY ** len(self._losses))  # it began at 0
        self._best = min(self._best, mean)
        self._diverged = self._diverged or (len(self._losses) >= self._MIN_STEPS and mean > self._DIVERGED * self._best)
        return not self._diverged and len(self._losses) < self.num_steps

    def curve(self) -> tuple[list[float], list[float]]:
        """Returns (rates, losses) of the steps with a finite loss."""
        return [self.rate(step) for step in range(len(self._losses))], list(self._losses)

    def suggestion(self) -> float | None:
        """Returns the rate to train with, or None where the curve says nothing.

        Straight lines are fitted to the loss over the logarithm of the rate, in windows of a sixth
        of the curve, which levels noise without the lag of a running mean. The suggestion is the
        middle of the steepest one, of those between the first fifth of the fall and the last, but
        no more than a tenth of the rate at which the loss diverged. The fall must stand out of the
        noise; where it does not (a trained head has nothing to learn), a tenth of the diverging
        rate is left, and where nothing diverged either, None.
        """
        highest = self.rate(len(self._losses)) / 10.0 if self._diverged else math.inf
        steepest = _steepest_fall(self._losses)
        chosen = min(highest, math.inf if steepest is None else self.rate(steepest))
        return chosen if math.isfinite(chosen) else None

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs, as JSON can hold it."""
        return {"losses": list(self._losses), "diverged": self._diverged}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._losses, self._mean, self._best, self._diverged = [], 0.0, math.inf, False
        for loss in state["losses"]:
            self.observe(loss)
        self._diverged = state["diverged"]


def smooth(losses: Sequence[float]) -> list[float]:
    """Returns each loss as the mean of a window around it, as `RangeTest.suggestion` looks at them; narrower at the ends."""
    half, last = _window(len(losses)) // 2, len(losses) - 1
    reaches = [min(half, index, last - index) for index in range(len(losses))]  # as far to the left as to the right
    return [statistics.fmean(losses[index - reach : index + reach + 1]) for index, reach in enumerate(reaches)]


def _window(num_losses: int) -> int:
    return max(7, num_losses // 6)


def _steepest_fall(losses: Sequence[float]) -> int | None:
    """Returns the step at which the loss falls fastest, or None if it does not fall by more than the noise."""
    size = _window(len(losses))
    windows = [losses[start : start + size] for start in range(len(losses) - size + 1)]
    if not windows:
        return None
    means = [statistics.fmean(window) for window in windows]
    lines = [statistics.linear_regression(range(size), window) for window in windows]
    lowest = means.index(min(means))
    fall = means[0] - means[lowest]
    noise = statistics.median(map(_deviation, windows[: lowest + 1], lines))
    if fall <= 4.0 * noise * math.sqrt(2.0 / size):  # four standard errors of a difference of means
        return None
    # Only where a fifth of the fall is done and a fifth is left: a wiggle of the flat part at the
    # start can be steep, too
    inside = [start for start in range(lowest) if abs(means[start] - means[lowest] - fall / 2.0) <= 0.3 * fall]
    return min(inside or [lowest], key=lambda start: lines[start].slope) + size // 2


def _deviation(window: Sequence[float], line: Any) -> float:
    """Returns the standard deviation of a window around its line; two degrees of freedom went into the line."""
    residuals = [loss - line.slope * index - line.intercept for index, loss in enumerate(window)]
    return math.sqrt(math.fsum(residual * residual for residual in residuals) / (len(window) - 2))


def _warm_up(peak: float, step: int, warmup_steps: int) -> float:
    """Returns the rate of a step below `warmup_steps`: above 0 from the first, and below the peak."""
    return peak * ((step + 1) / (warmup_steps + 1))


def _check_rates(peak: float, floor: float) -> None:
    if not 0.0 < peak < math.inf:
        raise ValueError(f"peak must be a rate above 0 (got {peak})")
    if not 0.0 <= floor <= peak:
        raise ValueError(f"floor must be 0..peak, {peak} (got {floor})")
