"""Drawings: files of the right kind, equal for equal tables, quiet about what cannot be drawn."""

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import coo_array

from tfpipe.report import figures

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 3, 60)
PROBABILITIES = RANDOM.dirichlet(np.ones(3), 60)
BINS = [
    {
        "low": i / 15,
        "high": (i + 1) / 15,
        "count": i % 3,
        "confidence": (i + 0.5) / 15 if i % 3 else None,
        "accuracy": 0.5 if i % 3 else None,
    }
    for i in range(15)
]


def content(uri):
    head, _, data = uri.partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data, validate=True)


def of_class(*indices):
    return [(index == LABELS, PROBABILITIES[:, index]) for index in indices]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.roc_curves(of_class(0, 1, 2)),
        lambda: figures.precision_recall_curves(of_class(2)),
        lambda: figures.reliability_diagram(BINS),
        lambda: figures.matrix_image(coo_array(np.eye(100))),
    ],
    ids=["roc", "pr", "reliability", "matrix"],
)
def test_drawings_are_images_and_repeat(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uri = draw()
    kind, data = content(uri)
    assert uri == draw()
    if kind == "image/png":
        assert Image.open(io.BytesIO(data)).size[0] > 500
    else:
        assert kind == "image/svg+xml"
        assert data.rstrip().endswith(b"</svg>")
        assert b"<path" in data
        assert len(data) < 100_000


def test_curves_are_those_of_their_classes():
    one, other = figures.roc_curves(of_class(0)), figures.roc_curves(of_class(1))
    assert one != other
    assert figures.COLOURS[0].encode() in content(one)[1]
    assert figures.COLOURS[1].encode() not in content(one)[1]
    assert figures.COLOURS[1].encode() in content(figures.roc_curves(of_class(0, 1)))[1]


def test_a_large_table_gives_a_small_drawing():
    labels, scores = RANDOM.integers(0, 2, 50_000), RANDOM.normal(size=50_000)
    classes = [(labels == 1, (scores + labels).round(3))]
    assert len(figures.roc_curves(classes)) < 1_000_000
    assert len(figures.precision_recall_curves(classes)) < 1_000_000


@pytest.mark.parametrize(("height", "width", "shown"), [(300, 600, (160, 80)), (16, 8, (8, 16)), (160, 160, (160, 160))])
def test_photographs_become_smaller_and_never_larger(height, width, shown):
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    kind, data = content(figures.photograph(image, 160))
    decoded = Image.open(io.BytesIO(data))
    assert (kind, decoded.format, decoded.size) == ("image/jpeg", "JPEG", shown)
    assert np.abs(np.asarray(decoded, int) - (200, 100, 50)).max() <= 3
