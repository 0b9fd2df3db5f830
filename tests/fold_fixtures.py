"""A data set of four folds and a test split, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import write
from transfer_fixtures import CLASS_NAMES, colour_image

import tfpipe

NUM_FOLDS = 4
FOLDS = [f"fold{index}" for index in range(NUM_FOLDS)]
COUNTS = dict(zip(CLASS_NAMES, (20, 19, 25), strict=True))
OPTIONS: dict[str, Any] = {
    "name": "colours",
    "layout": "folders",
    "class_names": CLASS_NAMES,
    "num_shards": 2,
    "workers": 1,
    "progress": False,
}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, number = tmp_path_factory.mktemp("folds") / "photos", 0
    for name, count in COUNTS.items():
        for index in range(count):
            number += 1
            write(root / name / f"{index}.jpg", colour_image(name, number, (16, 16)))
    return root


@pytest.fixture(scope="session")
def shards(photos: Path) -> Path:
    """Four folds of 12 or 13 images, and a test split of 13."""
    tfpipe.build_tfrecords(photos, photos.parent / "shards", splits={"folds": NUM_FOLDS, "test": 0.2}, **OPTIONS)
    return photos.parent / "shards"
