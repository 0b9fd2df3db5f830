#!/usr/bin/env python3
"""Trains a Keras model of your own on tfpipe's data, and exports it with its preprocessing.

    python examples/own_keras_model.py shards/ own/ --epochs=30

tfpipe gives exact, seeded batches, and wraps what Keras trained: the export takes files of images,
names the classes, and is compared with the model before its folder appears.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfpipe


def scale(images: Any, labels: Any) -> tuple[Any, Any]:
    """Returns levels of 0..1, what the preprocessing "unit" of the export does."""
    return tf.cast(images, tf.float32) / 255.0, labels


def make_network(side: int, num_classes: int) -> keras.Model:
    """Returns any network you like, float [B, H, W, 3] -> probabilities [B, C]."""
    layers = keras.layers
    blocks = [
        layer
        for filters in (16, 32, 64)
        for layer in (layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D())
    ]
    top = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(num_classes, "softmax")]
    return keras.Sequential([keras.Input((side, side, 3)), *blocks, *top])


def main() -> None:
    """Trains, evaluates and exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set that `tfpipe build` made")
    parser.add_argument("output", type=Path, help="folder for the model")
    parser.add_argument("--side", type=int, default=96, help="of the images")
    parser.add_argument("--epochs", type=int, default=30)
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    manifest = tfpipe.load_manifest(given.data)

    # Each epoch of fit gets another permutation of the split, augmented anew.
    size = {"batch_size": 32, "image_size": (given.side, given.side)}
    light = dataclasses.replace(tfpipe.Augmentation.named("light"), horizontal_flip=0.0)  # a mirror may change the class
    train = tfpipe.dataset(given.data, "train", training=True, augment=light, seed=0, **size)
    val = tfpipe.dataset(given.data, "val", **size)
    network = make_network(given.side, len(manifest.class_names))
    network.compile(keras.optimizers.AdamW(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(train.map(scale), epochs=given.epochs, validation_data=val.map(scale), verbose=2)

    tfpipe.export(network, given.output / "export", class_names=manifest.class_names, preprocessing="unit")
    exported = tfpipe.load(given.output / "export" / "saved_model")
    print(tfpipe.evaluate(exported, given.data, "test", given.output / "eval"))


if __name__ == "__main__":
    main()
