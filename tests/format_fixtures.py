"""A frozen graph of few operations, for the tests of the formats it is written in, and files that are none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from evaluation_fixtures import CLASS_NAMES

from tfpipe.formats.specifications import Specification

SIZE = (12, 10)
SPECIFICATION = Specification(CLASS_NAMES, SIZE, "pad", "caffe", "5" * 64, top_k=3, version="1.2.3")


def make_graph() -> Any:
    """image -> features, probabilities; weights are numbers of float16, two of them large enough to be stored as such."""
    random = np.random.default_rng(0)

    def weights(*shape: int, scale: float) -> tf.Tensor:
        return tf.constant(np.float32(np.float16(random.normal(size=shape) * scale)))

    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.uint8, [None, *SIZE, 3], name="image")
        values = tf.reverse(tf.cast(image, tf.float32), [-1]) - tf.constant([103.939, 116.779, 123.68])
        values = tf.nn.relu(tf.nn.conv2d(values, weights(3, 3, 3, 64, scale=0.02), 2, "SAME") + weights(64, scale=0.1))
        values = tf.nn.max_pool2d(values, 2, 2, "VALID")
        values = tf.nn.conv2d(values, weights(1, 1, 64, 32, scale=0.1), 1, "VALID") * weights(32, scale=1.0)
        features = tf.reduce_mean(tf.nn.relu(values), [1, 2], name="features")
        logits = tf.matmul(features, weights(32, len(CLASS_NAMES), scale=0.1)) + weights(len(CLASS_NAMES), scale=0.5)
        tf.nn.softmax(logits, name="probabilities")
    return graph.as_graph_def()


def as_function(graph: Any, output: str = "probabilities") -> Callable[[Any], Any]:
    """What TensorFlow makes of a frozen graph."""
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
    function = wrapped.prune("image:0", f"{output}:0")
    return lambda images: function(tf.constant(images)).numpy()


def draw_images(number: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    """Noise, each image of another brightness."""
    random = np.random.default_rng([seed, number])
    brightness = random.uniform(0, 255, (number, 1, 1, 3))
    return np.uint8(np.clip(brightness + random.normal(0, 40, (number, *size, 3)), 0, 255))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
