"""Images of coloured squares, any number of colours in each, and tables that list them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write
from PIL import Image

import tfpipe

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
NAMES = tuple(COLOURS)
SHARES = (0.5, 0.35, 0.2)


def squares(seed: int, present: Sequence[bool], size: int = 32) -> bytes:
    """A PNG file with a square of each colour that is there, at any place."""
    random = np.random.default_rng(seed)
    image = np.full((size, size, 3), random.integers(90, 150, 3), np.uint8)
    for is_there, colour in zip(present, COLOURS.values(), strict=True):
        if is_there:
            row, column = random.integers(0, size - 11, 2)
            image[row : row + 10, column : column + 10] = colour
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def draw_labels(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """int8 [count, 3]: 1 or 0; and -1 in a tenth of them."""
    random = np.random.default_rng(seed)
    present = random.random((count, len(NAMES))) < SHARES
    return np.where(random.random(present.shape) < 0.1, -1, present).astype(np.int8)


def write_table(root: Path, labels: np.ndarray[Any, Any], name: str = "columns.csv", **extra: Sequence[str]) -> Path:
    """Writes images, of unknown colours without them, and a table with a column for each colour."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / name, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *NAMES, *extra])
        for index, row in enumerate(labels.tolist()):
            path = f"images/{index:04d}.png"
            if not (root / path).exists():
                write(root / path, squares(index, [value == 1 for value in row]))
            cells = ["" if value < 0 else value for value in row]
            rows.writerow([path, *cells, *(values[index] for values in extra.values())])
    return root / name


def build(root: Path, count: int = 240, output: str = "shards", **options: Any) -> Path:
    """Builds root/shards of `count` images."""
    table = write_table(root, draw_labels(count))
    given = {"label_columns": NAMES, "splits": {"train": 0.6, "val": 0.2, "test": 0.2}, "name": "squares", "workers": 1}
    tfpipe.build_tfrecords(table, root / output, layout="csv", progress=False, **{**given, **options})
    return root / output
