#!/usr/bin/env python3
"""Trains a Keras model of your own on a data set of tfpipe, and exports it for files.

    python examples/custom_model.py --data=shards/ --output=mine/ new_photos/1.jpg new_photos/2.png

The training is plain Keras: the network, its preprocessing and `fit` are below. tfpipe reads and
augments the images, wraps the network with class names and preprocessing, evaluates what it
exported, and predicts. The split val chooses the epoch. The split test is evaluated once.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from digits import build_digits

import tfpipe

AUGMENTATION = tfpipe.Augmentation(crop=0.7, rotation=10)  # no flips: a mirrored digit is none
PREPROCESSING = "tf"  # the name that `tfpipe.export` has for `preprocess` below


def preprocess(images: Any, labels: Any) -> tuple[Any, Any]:
    """Returns uint8 images 0..255 as float32 -1..1."""
    return tf.cast(images, tf.float32) / 127.5 - 1.0, labels


def make_network(side: int, num_classes: int) -> keras.Model:
    """Returns a small residual network: float32 [B, side, side, 3] -> probabilities [B, C]."""
    images = keras.Input((side, side, 3))
    values = keras.layers.Conv2D(16, 3, padding="same")(images)
    for filters in (32, 64):
        branch = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(values)
        branch = keras.layers.BatchNormalization(momentum=0.9)(branch)  # Keras' 0.99 is slow where epochs have few steps
        branch = keras.layers.Conv2D(filters, 3, padding="same")(keras.layers.ReLU()(branch))
        shortcut = keras.layers.Conv2D(filters, 1, strides=2, padding="same")(values)
        values = keras.layers.ReLU()(keras.layers.Add()([shortcut, branch]))
    features = keras.layers.GlobalAveragePooling2D()(values)
    probabilities = keras.layers.Dense(num_classes, "softmax")(keras.layers.Dropout(0.2)(features))
    return keras.Model(images, probabilities, name="small_resnet")


def train(data: Path, side: int, epochs: int, seed: int) -> tuple[keras.Model, list[str]]:
    """Returns the network of the epoch with the least loss on val, and the names of its columns."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    shape: dict[str, Any] = {"batch_size": 32, "image_size": (side, side)}
    training = tfpipe.dataset(data, "train", training=True, augment=AUGMENTATION, seed=seed, **shape)
    names = list(training.class_names)  # before `map`, which returns a dataset without them
    network = make_network(side, len(names))
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(training))  # len: steps of an epoch
    network.compile(keras.optimizers.AdamW(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(
        training.map(preprocess),
        validation_data=tfpipe.dataset(data, "val", **shape).map(preprocess),
        epochs=epochs,
        class_weight=tfpipe.class_weights(data, "train"),
        callbacks=[keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)],
        shuffle=False,  # tfpipe has shuffled them
        verbose=2,
    )
    return network, names


def check_preprocessing(network: keras.Model, exported: tfpipe.Model, data: Path, side: int) -> None:
    """Compares network and export on the same images: nobody else can notice a wrong preprocessing."""
    images, labels = next(iter(tfpipe.dataset(data, "val", image_size=(side, side))))
    ours = network.predict(preprocess(images, labels)[0], verbose=0)
    theirs = np.stack([found.probabilities for found in exported.predict(images.numpy())])
    difference = np.abs(ours - theirs).max()
    if difference > 1e-4:
        raise SystemExit(f"probabilities of network and export differ by {difference:.1g}: PREPROCESSING is not `preprocess`")
    print(f"network and export agree on {len(ours)} images of val: probabilities differ by {difference:.1g} at most")


def main() -> None:
    """Trains, exports, compares, evaluates and predicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="files to predict the class of (default: three of the digits)")
    parser.add_argument("--data", type=Path, help="data set with splits train, val and test (default: digits, made here)")
    parser.add_argument("--output", type=Path, default=Path("custom_output"), help="folder for all files (%(default)s)")
    parser.add_argument("--side", type=int, default=32, help="height and width that images are resized to (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (%(default)s)")
    given = parser.parse_args()
    data = given.data or build_digits(given.output / "digits")

    network, names = train(data, given.side, given.epochs, given.seed)
    export = tfpipe.export(
        network,
        given.output / "export",
        class_names=names,
        preprocessing=PREPROCESSING,
        data=data,
        formats=("saved_model",),
        overwrite=True,
    )
    model = tfpipe.load(export.folder / "saved_model")
    check_preprocessing(network, model, data, given.side)

    evaluation = tfpipe.evaluate(model, data, "test", given.output / "evaluation")
    low, high = evaluation.metrics["accuracy_interval"]
    print(
        f"accuracy on test: {evaluation.metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}); see {evaluation.folder}/report.html"
    )

    files = given.images or sorted((given.output / "digits" / "photos").glob("*/*7.png"))[::60][:3]
    for file, found in zip(files, model.predict(files), strict=True):
        print(f"{file}: {found.class_name} {found.score:.3f}" if found.class_name else f"{file}: {found.reason}")


if __name__ == "__main__":
    main()
