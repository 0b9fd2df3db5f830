"""Tiny data sets that a small network learns in seconds, and its runs, made once: three colours under noise, in any size."""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write
from PIL import Image

import tfpipe
from tfpipe import Recipe

COLOURS = {"amber, dark": (150, 110, 60), "green": (70, 150, 90), "蓝 色": (70, 90, 170)}  # mean levels of each class
CLASS_NAMES = tuple(COLOURS)
# Images of each class: in whole batches of 8, as a smaller last one is traced anew, in every run; and not.
COUNTS = {"train": (13, 11, 16), "val": (5, 5, 6), "test": (4, 4, 5)}
UNEVEN_COUNTS = {"train": (14, 12, 15), "val": (4, 4, 4), "test": (4, 4, 5)}
IMAGE_SIZE = (16, 16)


def colour_image(class_name: str, seed: int, size: tuple[int, int] = (20, 16), image_format: str = "JPEG") -> bytes:
    """A file of noise around the colour of its class; size is (width, height)."""
    noise = np.random.default_rng(seed).normal(0, 25, (size[1], size[0], 3))
    levels = np.clip(np.array(COLOURS[class_name]) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, image_format)
    return file.getvalue()


def build_colours(root: Path, counts: Mapping[str, tuple[int, ...]], *, copies: int = 0) -> Path:
    """Builds root/shards of counts[split] images per class, every third a PNG, with `copies` copies of the first of each."""
    number = 0
    for split, of_classes in counts.items():
        for name, count in zip(CLASS_NAMES, of_classes, strict=True):
            for index in range(count):
                number += 1
                image_format, ending = ("PNG", "png") if number % 3 == 0 else ("JPEG", "jpg")
                size = (16 + number % 5, 16 + number % 7)
                data = colour_image(name, number, size, image_format)
                write(root / "photos" / split / name / f"{index}.{ending}", data)
                for copy in range(copies if index == 0 else 0):
                    write(root / "photos" / split / name / f"{index} copy {copy}.{ending}", data)
    inputs = {split: root / "photos" / split for split in counts}
    tfpipe.build_tfrecords(
        inputs,
        root / "shards",
        layout="folders",
        class_names=CLASS_NAMES,
        name="colours",
        num_shards=2,
        workers=1,
        progress=False,
    )
    return root / "shards"


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 images to train on, 16 to validate, 13 to test."""
    return build_colours(tmp_path_factory.mktemp("colours"), COUNTS)


@pytest.fixture(scope="session")
def uneven_colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 41 images to train on, 12 to validate, 13 to test; import it as `colours`."""
    return build_colours(tmp_path_factory.mktemp("uneven"), UNEVEN_COUNTS)


@pytest.fixture(scope="session")
def colours_without_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a val split, and with three copies of an image of each class."""
    counts = {split: count for split, count in COUNTS.items() if split != "val"}
    return build_colours(tmp_path_factory.mktemp("colours without val"), counts, copies=3)


SMALL = Recipe(
    backbone="small_backbone:two_convolutions",
    weights="none",
    mode="frozen",
    image_size=(16, 16),
    epochs=3,
    batch_size=8,
    hidden=(8,),
    dropout=0.3,
    learning_rate=1e-2,
    precision="float32",
)


def run(data: Path, folder: Path, recipe: Recipe = SMALL, **options: Any) -> tfpipe.Run:
    """Trains; features are shared by the runs of a data set, as by those of a user."""
    given = {"progress": False, "tensorboard": False, "log": lambda line: None, "cache": data.parent / "features"}
    return tfpipe.train(data, folder, recipe, **given | options)


@pytest.fixture(scope="session")
def finished(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of a finished run of a recipe, made once and not to be changed, or a copy of it to go on in."""

    @functools.cache
    def once(recipe: Recipe) -> Path:
        folder = tmp_path_factory.mktemp("finished") / "run"
        lines: list[str] = []
        run(colours, folder, recipe, log=lines.append)
        (folder.parent / "lines").write_text("\n".join(lines), "utf-8")  # what it reported; no file of the run
        return folder

    return lambda recipe, copy=None: once(recipe) if copy is None else shutil.copytree(once(recipe), copy)


def summary_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())
