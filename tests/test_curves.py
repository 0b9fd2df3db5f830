"""The images of a training: whole for any numbers, and without a trace in matplotlib's global state."""

import math
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import CHECKOUT
from PIL import Image, ImageColor

from tfpipe.training.logs import curves
from tfpipe.training.logs.curves import draw_history, draw_range_test

NAN = math.nan


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def epochs(num_epochs, phase="head", best=None, **columns):
    """Rows of a phase whose validation is best in one epoch, by default the last."""
    rows = []
    for index in range(num_epochs):
        left = math.exp(-index / 5)
        row = {"phase": phase, "epoch": index + 1, "train_loss": left, "train_accuracy": 1 - left / 2, "val_loss": left + 0.1}
        row |= {"val_accuracy": 0.9 - left / 2 + (index == best), "learning_rate": 1e-3 * left}
        rows.append({**row, **columns})
    return rows


def pixels(path, color):
    """(rows, columns) of all pixels of one colour."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.nonzero((abs(image - ImageColor.getrgb(color)) <= 2).all(axis=-1))


@pytest.mark.parametrize(
    "rows",
    [
        epochs(1),
        epochs(100),
        epochs(12) + epochs(8, "finetune"),
        epochs(1) + epochs(60, "fine $tuning_{"),
        epochs(3, None),
        epochs(3, train_loss=NAN, val_loss=math.inf),
        epochs(3, train_loss=1e30, val_loss=1e-30),
        epochs(3, train_loss=0.0, val_loss=-1.0, learning_rate=0.0),
        [{"phase": "head", "epoch": 1}],
        [{}],
    ],
)
def test_any_history_becomes_an_image(tmp_path, rows):
    draw_history(rows, tmp_path / "history.png")
    image = Image.open(tmp_path / "history.png")
    image.load()
    assert (image.format, image.width) == ("PNG", 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["history.png"]


def test_the_best_epoch_is_marked_where_it_is(tmp_path):
    places = []
    for best in (2, 10, 18):
        draw_history(epochs(21, best=best), tmp_path / "history.png")
        columns = pixels(tmp_path / "history.png", curves._BEST)[1]
        places.append(np.bincount(columns).argmax())
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=2)
    assert places[1] - places[0] > 250


def test_equal_accuracies_are_decided_by_the_loss_and_nan_is_never_the_best(tmp_path):
    drawn = {}
    for name, losses in {"last": (0.3, NAN, 0.2), "first": (0.2, NAN, 0.3), "none": (NAN, NAN, NAN)}.items():
        rows = [{"phase": "head", "val_accuracy": 0.5, "val_loss": loss} for loss in losses]
        draw_history(rows, tmp_path / "history.png")
        columns = pixels(tmp_path / "history.png", curves._BEST)[1]
        drawn[name] = np.bincount(columns).argmax() if len(columns) else None
    assert drawn["none"] is None
    assert drawn["first"] < 400 < 600 < drawn["last"]


def test_a_number_between_two_nan_is_seen(tmp_path):
    rows = [{"phase": "head", "val_loss": 0.5 if index == 30 else NAN} for index in range(60)]
    draw_history(rows, tmp_path / "one.png")
    draw_history([{**row, "val_loss": NAN} for row in rows], tmp_path / "none.png")
    assert len(pixels(tmp_path / "one.png", curves._VAL)[0]) > len(pixels(tmp_path / "none.png", curves._VAL)[0])


def test_phases_are_shaded_by_turns(tmp_path):
    draw_history(epochs(10) + epochs(10, "finetune"), tmp_path / "two.png")
    draw_history(epochs(20), tmp_path / "one.png")
    shaded = [len(pixels(tmp_path / name, curves._BANDS[0])[0]) for name in ("two.png", "one.png")]
    assert shaded[0] == pytest.approx(shaded[1] / 2, rel=0.05)


def noisy(num_losses, explosion=()):
    drawn = random.Random(0)
    losses = [1.0 + drawn.gauss(0, 0.1) for _ in range(num_losses)]
    return [*losses, *explosion]


@pytest.mark.parametrize("losses", [[1.0], [1.0, 1.0], [0.0] * 9, noisy(100), noisy(50, [10.0, 1e30]), [5.0, 1e300]])
@pytest.mark.parametrize("suggestion", [None, 1e-4])
def test_any_range_test_becomes_an_image(tmp_path, losses, suggestion):
    rates = [1e-6 * 1.1**index for index in range(len(losses))]
    draw_range_test(rates, losses, suggestion, tmp_path / "learning_rate.png")
    image = Image.open(tmp_path / "learning_rate.png")
    image.load()
    assert (image.format, image.width) == ("PNG", 1000)
    assert bool(len(pixels(tmp_path / "learning_rate.png", curves._BEST)[0])) == (suggestion is not None)


def test_an_explosion_does_not_flatten_the_rest(tmp_path):
    heights = []
    for name, explosion in {"calm": (), "exploded": (1e6,)}.items():
        losses = [1.0 - index / 50 for index in range(40)] + list(explosion)
        draw_range_test([1.1**index for index in range(len(losses))], losses, None, tmp_path / f"{name}.png")
        heights_of_line, columns = pixels(tmp_path / f"{name}.png", curves._VAL)
        heights.append(np.ptp(heights_of_line[columns < 700]))  # left of where it explodes
    assert heights[1] > 0.4 * heights[0] > 80


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="rows is empty"):
        draw_history([], tmp_path / "history.png")
    with pytest.raises(ValueError, match="losses is empty"):
        draw_range_test([], [], None, tmp_path / "learning_rate.png")
    assert not list(tmp_path.iterdir())


def test_nothing_of_matplotlib_is_set_for_others(tmp_path):
    code = (
        "import pathlib, sys, matplotlib\nbefore = matplotlib.rcParams.copy()\n"
        "from tfpipe.training.logs.curves import draw_history\n"
        "draw_history([{'phase': 'head', 'val_loss': 0.5}], pathlib.Path(sys.argv[1]))\n"
        "after = matplotlib.rcParams.copy()\n"  # dict.items() below: RcParams' own looks for a backend, which imports pyplot
        "print('matplotlib.pyplot' in sys.modules, list(dict.items(before)) == list(dict.items(after)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "history.png")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    assert (tmp_path / "history.png").stat().st_size > 1000
