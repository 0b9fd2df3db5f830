"""Small classifiers and labelled data sets for the tests of reports."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from tfpipe.building.build import build_tfrecords
from tfpipe.models.classifiers import Classifier
from tfpipe.networks import layers

HOSTILE_NAMES = ('<b>&"', "小 猫, 深", "o'wl</td>")
POOLINGS = {
    "average": keras.layers.GlobalAveragePooling2D,
    "max": keras.layers.GlobalMaxPooling2D,
    "flatten": keras.layers.Flatten,
}


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_splits(folder: Path, images: Mapping[str, Sequence[bytes]], class_names: Sequence[str] = ("cat", "dog")) -> Path:
    """Builds a data set whose image i of a split has the key SPLIT/i.jpg and the i-th class, over and over."""
    rows = [["path", "label", "split"]]
    for split, contents in images.items():
        (folder / "in" / split).mkdir(parents=True)
        for index, content in enumerate(contents):
            path = Path(split, f"{index}.jpg")
            (folder / "in" / path).write_bytes(content)
            rows.append([str(path), class_names[index % len(class_names)], split])
    with open(folder / "in" / "all.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    options = {"allow_leaks": True, "on_conflict": "keep", "workers": 1, "progress": False, "class_names": list(class_names)}
    build_tfrecords(folder / "in" / "all.csv", folder / "data", name="pets", layout="csv", **options)
    return folder / "data"


def make_classifier(class_names: Sequence[str], side: int = 16, pooling: str = "average", seed: int = 0) -> Classifier:
    """An untrained classifier with a feature map of side / 4."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((side, side, 3))
    features = keras.layers.Conv2D(8, 5, strides=4, padding="same", activation="relu")(image)
    pixels = keras.Input((side, side, 3), dtype="uint8")
    values = layers.Preprocessing("unit", name="preprocessing")(pixels)
    values = layers.Trunk(keras.Model(image, features), True, name="frozen")(values)
    values = POOLINGS[pooling](name="pooling")(values)
    values = keras.layers.Dense(len(class_names), name="logits")(values)
    return Classifier(keras.Model(pixels, layers.Probabilities(class_names, name="probabilities")(values)))
