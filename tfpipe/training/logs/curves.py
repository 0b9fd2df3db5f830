"""Images of a training: its history, its range test, and the heads that were tried.

They are drawn without pyplot: the caller's settings of matplotlib stay, and no screen is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfpipe.common.files import written_atomically
from tfpipe.training.schedules import EarlyStopping, smooth

if TYPE_CHECKING:
    from tfpipe.training.regression import Candidate

_TRAIN, _VAL, _BEST = "#7f7f7f", "#1f77b4", "#d62728"  # grey, blue, red: most colour-blind people can distinguish them
_BANDS = ("#f4f4f4", "#ffffff")
_MANY_EPOCHS = 40  # above this, a dot for each is clutter
_NAMED_SHARE = 0.15
_WIDE = 30.0  # a loss that spans this factor is drawn on a logarithmic scale

HistoryRow = Mapping[str, Any]


@contextlib.contextmanager
def _figure(path: Path, height: float) -> Iterator[Any]:
    """Yields a figure 1000 pixels wide, and writes it to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, height), dpi=100)
    # Margins of fixed size: a layout that is computed draws everything twice.
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.5 / height, top=1 - 0.6 / height, hspace=0.12)
    yield figure
    FigureCanvasAgg(figure)
    with written_atomically(path) as file:
        figure.savefig(file, format="png")


def draw_history(rows: Sequence[HistoryRow], path: Path, *, by_loss: bool = False, score: str = "accuracy") -> None:
    """Draws accuracy, or another score, loss and learning rate over the epochs of `run_log.read_history`."""
    if not rows:
        raise ValueError("no epochs to draw: rows is empty")
    from matplotlib.ticker import MaxNLocator

    with _figure(path, 8.0) as figure:
        panels = accuracy, loss, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
        train, val = ("training", _TRAIN), ("validation", _VAL)
        _draw_lines(accuracy, rows, {"train_accuracy": train, "val_accuracy": val}, score)
        _draw_lines(loss, rows, {"train_loss": train, "val_loss": val}, "loss")
        _draw_lines(rate, rows, {"learning_rate": train}, "learning rate")
        figure.suptitle(_mark_best((accuracy, loss), rows, score, by_loss=by_loss), fontsize=12)
        _mark_phases(panels, rows)
        accuracy.legend(loc="lower right")
        rate.set_xlabel("epoch")
        rate.set_xlim(0.5, len(rows) + 0.5)
        rate.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=20, min_n_ticks=1))


def draw_range_test(rates: Sequence[float], losses: Sequence[float], suggestion: float | None, path: Path) -> None:
    """Draws the loss of each step of a range test over its learning rate, and the suggestion."""
    if not losses:
        raise ValueError("no learning rates to draw: losses is empty")
    bottom = min(losses)  # all of the fall is shown, and of an explosion at the end about as much again
    top = min(max(losses), bottom + 2.0 * (statistics.median(losses) - bottom))
    room = 0.1 * (top - bottom or abs(bottom) or 1.0)
    with _figure(path, 5.0) as figure:
        axes = figure.subplots()
        axes.plot(rates, losses, ".", color=_TRAIN, markersize=5, label="loss of a step")
        axes.plot(rates, smooth([min(loss, top + room) for loss in losses]), color=_VAL, label="smoothed")
        title = "No learning rate stands out"
        if suggestion is not None:
            title = f"Suggested learning rate: {suggestion:.2g}"
            axes.axvline(suggestion, color=_BEST, linestyle="--", label="suggestion")
        axes.set(xscale="log", ylim=(bottom - room, top + room), xlabel="learning rate", ylabel="loss")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")


def draw_candidates(
    candidates: Sequence[Candidate], best: Candidate, path: Path, kind: str = "logistic regression", score: str = "accuracy"
) -> None:
    """Draws the validation loss of each head over its strength, and marks the best."""
    with _figure(path, 5.0) as figure:
        axes = figure.subplots()
        for pooling, group in itertools.groupby(candidates, lambda candidate: candidate.pooling):
            points = [(candidate.strength, candidate.val_loss) for candidate in group]
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{pooling} pooling")
        ring = {"markersize": 14, "markerfacecolor": "none", "markeredgecolor": _BEST}
        axes.plot(best.strength, best.val_loss, "o", label="chosen", **ring)
        axes.set(xscale="log", yscale="log", xlabel="C: higher is a weaker decay", ylabel="validation loss")
        title = f"{kind} on {best.pooling} pooling: loss {best.val_loss:.4f}, {_shown(score, best.val_accuracy)}"
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend()


def _shown(score: str, value: float) -> str:
    return f"accuracy {value:.2%}" if score == "accuracy" else f"{score} {value:.4f}"


def _draw_lines(axes: Any, rows: Sequence[HistoryRow], columns: Mapping[str, tuple[str, str]], title: str) -> None:
    """Draws columns over the epochs, with gaps between phases and at NaN."""
    for name, (label, color) in columns.items():
        # Markers in any case: a number between two NaN has no line
        style = {"color": color, "linewidth": 1.5, "marker": "o", "markersize": 4.0 if len(rows) <= _MANY_EPOCHS else 1.5}
        for start, end in _phases(rows):
            values = [_number(row, name) for row in rows[start:end]]
            axes.plot(range(start + 1, end + 1), values, label=label if start == 0 else None, **style)
    numbers = [number for name in columns for row in rows if math.isfinite(number := _number(row, name))]
    if title not in ("accuracy", "R2") and numbers and min(numbers) > 0.0 and max(numbers) / min(numbers) > _WIDE:
        axes.set_yscale("log")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)


def _mark_best(panels: Sequence[Any], rows: Sequence[HistoryRow], score: str, *, by_loss: bool) -> str:
    """Marks the epoch that early stopping would keep of all; returns the title."""
    stopping = EarlyStopping(1, by_loss=by_loss)
    for index, row in enumerate(rows):
        stopping.observe(index, _number(row, "val_accuracy"), _number(row, "val_loss"))
    number = stopping.best_number
    if not number:
        return "no epoch has a validation"
    for axes in panels:
        axes.axvline(number, color=_BEST, linestyle=":", label="best epoch")
    shown = "" if stopping.best is None else _shown(score, stopping.best)
    return f"best: epoch {number}, validation {shown}, loss {stopping.best_loss:.4g}"


def _mark_phases(panels: Sequence[Any], rows: Sequence[HistoryRow]) -> None:
    """Shades the phases alternately and names them above the uppermost panel."""
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
