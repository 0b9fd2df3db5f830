"""Drawings for an HTML page: SVG for curves, PNG for large matrices, JPEG for photographs.

None contains a class name: the page writes those, in whatever font the browser has for them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from scipy.sparse import coo_array

INK, ACCENT, FAINT = "#22252a", "#1f6f8b", "#8a9099"
# Okabe and Ito 2008, distinct to colour-blind readers; the last two are a darker and a lighter
# variant.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#5b5b5b", "#a05a2c", "#8fbc3b")

_STYLE = {
    "font.family": ["DejaVu Sans"],  # matplotlib's own, so that a page looks the same everywhere
    "font.size": 10,
    "svg.hashsalt": "tfpipe",  # equal pages for equal tables
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e6e8ea",
    "axes.axisbelow": True,
}
_MAX_MATRIX_SIDE = 1000  # pixels that a figure of 8.5 inches at 110 per inch has, roughly

Array = np.ndarray[Any, Any]
Curve = tuple[Array, Array]


def roc_curves(classes: Sequence[tuple[Array, Array]]) -> str:
    """Returns a drawing of a ROC curve of each class, by truth bool [N] and scores float [N]."""
    from sklearn.metrics import roc_curve

    curves = [roc_curve(truth, scores)[:2] for truth, scores in classes]
    return _curves(curves, "1 - specificity (false positive rate)", "sensitivity (true positive rate)", diagonal=True)


def precision_recall_curves(classes: Sequence[tuple[Array, Array]]) -> str:
    """Returns a drawing of precision-recall curves, as `roc_curves`."""
    from sklearn.metrics import precision_recall_curve

    def curve(truth: Array, scores: Array) -> Curve:
        precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        return recall, precision

    return _curves([curve(*one) for one in classes], "recall", "precision", steps=True)


def _curves(curves: Sequence[Curve], x_label: str, y_label: str, *, diagonal: bool = False, steps: bool = False) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        for colour, (x, y) in zip(COLOURS, curves, strict=False):
            axes.plot(x, y, color=colour, linewidth=1.8, drawstyle="steps-post" if steps else "default", clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label, aspect="equal")

    return _drawn((4.2, 4.0), draw)


def reliability_diagram(bins: Sequence[Mapping[str, Any]]) -> str:
    """Returns accuracy against confidence above the number of images; bins as in metrics.json."""
    lows = [bin_["low"] for bin_ in bins]
    bars = {"width": [bin_["high"] - bin_["low"] for bin_ in bins], "align": "edge", "edgecolor": "white"}
    filled = [bin_ for bin_ in bins if bin_["count"]]

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--")
        upper.bar(lows, [bin_["accuracy"] or 0 for bin_ in bins], color=ACCENT, alpha=0.35, **bars)
        upper.plot([bin_["confidence"] for bin_ in filled], [bin_["accuracy"] for bin_ in filled], "o", color=ACCENT, ms=5)
        upper.set(ylim=(0, 1.02), ylabel="accuracy")
        lower.bar(lows, [bin_["count"] for bin_ in bins], color=FAINT, **bars)
        lower.set(xlim=(0, 1), xlabel="confidence (largest probability)", ylabel="images")
        lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)

    return _drawn((4.2, 4.6), draw)


def scatter(targets: Array, values: Array) -> str:
    """Returns a drawing of predicted numbers over the right ones, float [N] each."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        both = [*_span(np.concatenate([targets, values]))]
        axes.plot(both, both, color=FAINT, linewidth=1, linestyle="--")
        axes.plot(targets, values, **_DOTS)
        axes.set(xlim=both, ylim=both, xlabel="target", ylabel="predicted", aspect="equal")

    return _drawn((4.2, 4.0), draw, _kind_of_dots(len(targets)))


def residuals(targets: Array, values: Array) -> str:
    """Returns a drawing of the errors of predicted numbers over the right ones, and how often each is."""
    errors = values - targets

    def draw(figure: Figure) -> None:
        axes, counts = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        axes.axhline(0, color=FAINT, linewidth=1, linestyle="--")
        axes.plot(targets, errors, **_DOTS)
        axes.set(xlim=_span(targets), ylim=_span(np.append(errors, 0)), xlabel="target", ylabel="predicted - target")
        counts.hist(errors, bins=min(30, max(5, int(len(errors) ** 0.5))), orientation="horizontal", color=ACCENT, alpha=0.5)
        counts.set(xlabel="images")
        counts.xaxis.get_major_locator().set_params(integer=True, nbins=3)

    return _drawn((4.9, 4.0), draw, _kind_of_dots(len(targets)))


_DOTS: dict[str, Any] = {
    "marker": "o",
    "linestyle": "none",
    "color": ACCENT,
    "markersize": 4,
    "alpha": 0.45,
    "markeredgewidth": 0,
}
_MANY_DOTS = 2000  # more are an image: each is an element of a vector drawing


def _kind_of_dots(count: int) -> str:
    return "svg" if count <= _MANY_DOTS else "png"


def _span(values: Array) -> tuple[float, float]:
    """Returns the ends of an axis with some room, also where all values are equal."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or abs(low) or 1.0
    return low - room, high + room


def matrix_image(matrix: coo_array) -> str:
    """Returns a confusion matrix, counts [C, C], as an image of the shares of each row.

    Of more than 1,000 classes, one cell of the image stands for several.
    """
    num_classes = matrix.shape[0]
    side = min(num_classes, _MAX_MATRIX_SIDE)
    counts = np.zeros((side, side))
    np.add.at(counts, (matrix.row * side // num_classes, matrix.col * side // num_classes), matrix.data)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.grid(visible=False)
        extent = (-0.5, num_classes - 0.5, num_classes - 0.5, -0.5)
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        axes.set(xlabel="predicted (number of class)", ylabel="true (number of class)")
        figure.colorbar(shown, ax=axes, fraction=0.04, label="share of the true class")

    return _drawn((8.5, 7.6), draw, "png")


def _drawn(inches: tuple[float, float], draw: Callable[[Figure], None], kind: str = "svg") -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return data_uri(file.getvalue(), "image/svg+xml" if kind == "svg" else "image/png")


def photograph(image: Array, side: int) -> str:
    """Returns an image, uint8 [H, W, 3], as JPEG of at most `side` pixels; never enlarged."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85, subsampling=0)
    return data_uri(file.getvalue(), "image/jpeg")


def png(image: Array) -> str:
    """Returns an image, uint8 [H, W, 3], as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return data_uri(file.getvalue(), "image/png")


def data_uri(content: bytes, media_type: str) -> str:
    """Returns a URI that holds the content itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
