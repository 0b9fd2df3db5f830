"""A tiny classifier and a tiny data set for the tests of evaluation, report and prediction."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl import flags
from conftest import CHECKOUT, make_image, write

import tfpipe
from tfpipe.common import seeds
from tfpipe.models.classifiers import Classifier, check
from tfpipe.models.predictions import Predictions
from tfpipe.networks import layers
from tfpipe.records.manifest import Manifest

CLASS_NAMES = ("cat", "a, \"b\" 'c'", "小 猫")


def make_classifier(class_names: Sequence[str] = CLASS_NAMES, *, seed: int = 0, size: tuple[int, int] = (8, 8)) -> Classifier:
    """An untrained classifier whose answers differ between images, and between seeds."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((*size, 3), dtype="uint8", name="image")
    values = layers.Preprocessing("tf", name="preprocessing")(inputs)
    trunk_inputs = keras.Input((*size, 3))
    convolution = keras.layers.Conv2D(8, 3, padding="same", activation="tanh", name="convolution")
    network = keras.Model(trunk_inputs, convolution(trunk_inputs), name="network")
    values = layers.Trunk(network, inference=True, name="frozen")(values)
    values = keras.layers.GlobalAveragePooling2D(name="pooling")(values)
    logits = keras.layers.Dense(
        len(class_names), kernel_initializer=keras.initializers.RandomNormal(stddev=20.0), name="logits"
    )
    outputs = layers.Probabilities(class_names, name="probabilities")(logits(values))
    return check(keras.Model(inputs, outputs))


def build_images(
    root: Path, counts: Mapping[str, Mapping[str, int]], *, class_names: Sequence[str] = CLASS_NAMES, **options: Any
) -> Manifest:
    """Builds root/shards of counts[split][class] images, each different; its bytes follow from split, class and number."""
    for split, classes in counts.items():
        for name, count in classes.items():
            for number in range(count):
                seed = hash_of(split, name, number)
                write(root / "photos" / split / name / f"{number}.jpg", make_image(seed, (12, 10)))
    inputs = {split: root / "photos" / split for split in counts}
    return tfpipe.build_tfrecords(
        inputs, root / "shards", layout="folders", class_names=class_names, workers=1, progress=False, **options
    )


def hash_of(*parts: object) -> int:
    return seeds.derive(0, *map(str, parts))


def make_table(labels: Sequence[int], probabilities: Any, class_names: Sequence[str] | None = None) -> Predictions:
    """A table whose images are called 0, 1, ..."""
    values = np.float32(probabilities)
    keys = [str(number) for number in range(len(labels))]
    names = list(class_names or [f"class {index}" for index in range(values.shape[1])])
    return Predictions(keys, [f"{key}.jpg" for key in keys], np.array(labels, np.int64), values, names)


def random_table(seed: int, num_rows: int, num_classes: int, *, decimals: int | None = None) -> Predictions:
    """A table drawn from a seed; with `decimals`, many probabilities are equal."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_rows, num_classes)) * 2
    if decimals is not None:
        logits = logits.round(decimals)
    exponentials = np.exp(logits)
    labels = random.integers(0, num_classes, num_rows)
    return make_table(labels.tolist(), exponentials / exponentials.sum(axis=1, keepdims=True))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """tools.evaluate without its flags: in one process, those of other tools have the same names."""
    for kind in ("string", "integer", "float", "bool"):
        monkeypatch.setattr(flags, f"DEFINE_{kind}", lambda name, default, *_: types.SimpleNamespace(value=default))
    spec = importlib.util.spec_from_file_location("tools.evaluate_without_flags", CHECKOUT / "tools" / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
