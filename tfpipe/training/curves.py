"""Images of a training: how it went, and how its learning rate was found.

    draw_history(read_history(folder), folder / "history.png")
    draw_range_test(*test.curve(), test.suggestion(), folder / "learning_rate.png")

They are drawn without pyplot: nothing that the caller has set up in matplotlib is touched, and no
screen is needed.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfpipe.common.files import written_atomically
from tfpipe.training.schedules import EarlyStopping, smooth

if TYPE_CHECKING:
    from tfpipe.training.regression import Candidate

_DPI = 100
_TRAIN, _VAL, _BEST = "#7f7f7f", "#1f77b4", "#d62728"  # grey, blue, red: told apart by most colour-blind people
_BANDS = ("#f4f4f4", "#ffffff")
_MANY_EPOCHS = 40  # above this, a dot for each is clutter
_NAMED_SHARE = 0.15
_WIDE = 30.0  # a loss that spans this factor is drawn on a logarithmic scale

HistoryRow = Mapping[str, Any]


def draw_history(rows: Sequence[HistoryRow], path: Path) -> None:
    """Draws accuracy and loss of training and validation over the epochs of all phases, and the learning rate below.

    Args:
        rows: one per epoch, as `tfpipe.training.run_log.read_history` returns them.
        path: the PNG file, 1000 pixels wide.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no epochs to draw: rows is empty")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.0, 8.0), dpi=_DPI, layout="constrained")
    accuracy, loss, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        _draw_lines(axes, rows, (f"train_{name}", f"val_{name}"), name)
    _draw_lines(rate, rows, ("learning_rate",), "learning rate")
    if _spread(rows, "train_loss", "val_loss") > _WIDE:
        loss.set_yscale("log")
    if _spread(rows, "learning_rate") > _WIDE:
        rate.set_yscale("log")
    figure.suptitle(_mark_best((accuracy, loss), rows), fontsize=12)
    _mark_phases((accuracy, loss, rate), rows)
    accuracy.legend(loc="lower right")
    rate.set_xlabel("epoch")
    rate.set_xlim(0.5, len(rows) + 0.5)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, min_n_ticks=1))
    _save(figure, path)


def draw_range_test(rates: Sequence[float], losses: Sequence[float], suggestion: float | None, path: Path) -> None:
    """Draws the loss of a range test over its learning rates, and the suggestion.

    Args:
        rates: of each step, rising.
        losses: of each step.
        suggestion: what came of it, or None.
        path: the PNG file, 1000 pixels wide.

    Raises:
        ValueError: there are no losses.
    """
    if not losses:
        raise ValueError("no learning rates to draw: losses is empty")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.0), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    bottom, top = _limits(losses)
    axes.plot(rates, losses, ".", color=_TRAIN, markersize=5, label="loss of a step")
    axes.plot(rates, smooth([min(loss, top) for loss in losses]), color=_VAL, label="smoothed")
    if suggestion is None:
        title = "No learning rate stands out"
    else:
        title = f"Suggested learning rate: {suggestion:.2g}"
        axes.axvline(suggestion, color=_BEST, linestyle="--", label="suggestion")
    axes.set_xscale("log")
    axes.set_ylim(bottom, top)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    _save(figure, path)


def draw_candidates(candidates: Sequence[Candidate], best: Candidate, path: Path) -> None:
    """Draws the validation loss of each head that was tried over its strength, a line for each pooling.

    Args:
        candidates: in the order in which they were tried.
        best: the one that was taken.
        path: the PNG file, 1000 pixels wide.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.0), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for pooling, group in itertools.groupby(candidates, lambda candidate: candidate.pooling):
        points = [(candidate.strength, candidate.val_loss) for candidate in group]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{pooling} pooling")
    axes.plot(best.strength, best.val_loss, "o", markersize=14, markerfacecolor="none", markeredgecolor=_BEST, label="taken")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("C: higher holds the weights down less")
    axes.set_ylabel("validation log loss")
    title = f"logistic regression on {best.pooling} pooling: loss {best.val_loss:.4f}, accuracy {best.val_accuracy:.2%}"
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    _save(figure, path)


def _draw_lines(axes: Any, rows: Sequence[HistoryRow], names: Sequence[str], title: str) -> None:
    """Draws columns over the epochs; phases are not joined, nor what a NaN parts."""
    epochs = range(1, len(rows) + 1)
    for name, color in zip(names, (_TRAIN, _VAL) if len(names) == 2 else (_TRAIN,), strict=True):
        label = "validation" if name.startswith("val_") else "training"
        size = 4.0 if len(rows) <= _MANY_EPOCHS else 1.5  # never without: a number between two NaN has no line
        for start, end in _phases(rows):
            axes.plot(
                epochs[start:end],
                [_number(row, name) for row in rows[start:end]],
                marker="o",
                markersize=size,
                color=color,
                linewidth=1.5,
                label=label if start == 0 else None,
            )
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)


def _mark_best(panels: Sequence[Any], rows: Sequence[HistoryRow]) -> str:
    """Marks the epoch that early stopping would keep of all; returns what to say of it."""
    judge = EarlyStopping(1)
    for index, row in enumerate(rows):
        judge.observe(index, _number(row, "val_accuracy"), _number(row, "val_loss"))
    if judge.best_epoch is None or judge.best is None:
        return "no epoch has a validation"
    for axes in panels:
        axes.axvline(judge.best_epoch + 1, color=_BEST, linestyle=":", label="best epoch")
    return f"best: epoch {judge.best_epoch + 1}, validation accuracy {judge.best:.2%}, loss {judge.best_loss:.4g}"


def _mark_phases(panels: Sequence[Any], rows: Sequence[HistoryRow]) -> None:
    """Shades the phases by turns and names them above the uppermost panel."""
    for (start, end), color in zip(_phases(rows), itertools.cycle(_BANDS), strict=False):
        for axes in panels:
            axes.axvspan(start + 0.5, end + 0.5, color=color, zorder=0)
        wide = end - start > _NAMED_SHARE * len(rows)  # a name in the middle of a narrow phase would reach into others
        place = {"x": (start + end + 1) / 2 if wide else start + 0.5, "y": 1.02, "ha": "center" if wide else "left"}
        name = str(rows[start].get("phase") or "")
        panels[0].text(s=name, transform=panels[0].get_xaxis_transform(), parse_math=False, color="#444444", **place)


def _phases(rows: Sequence[HistoryRow]) -> list[tuple[int, int]]:
    """Returns (first row, end) of each stretch of rows of one phase."""
    ends = list(itertools.accumulate(len(list(group)) for _, group in itertools.groupby(rows, lambda row: row.get("phase"))))
    return list(zip([0, *ends], ends, strict=False))


def _number(row: HistoryRow, name: str) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)


def _spread(rows: Sequence[HistoryRow], *names: str) -> float:
    """Returns the largest value over the smallest; 1 where one is not above 0, as a logarithm needs."""
    numbers = [number for name in names for row in rows if math.isfinite(number := _number(row, name))]
    return max(numbers) / min(numbers) if numbers and min(numbers) > 0.0 else 1.0


def _limits(losses: Sequence[float]) -> tuple[float, float]:
    """Returns the heights to show: all of the fall, and of an explosion at the end about as much again."""
    bottom = min(losses)
    top = min(max(losses), bottom + 2.0 * (statistics.median(losses) - bottom))
    room = 0.1 * (top - bottom or abs(bottom) or 1.0)
    return bottom - room, top + room


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with written_atomically(path) as file:
        figure.savefig(file, format="png")
