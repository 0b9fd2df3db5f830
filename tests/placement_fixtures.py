"""All that makes pixels, features or drawn numbers when it is called, for the tests of where that is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from conftest import make_image, write
from prediction_fixtures import Averages
from tensorflow.python.framework import op_callbacks

import tfpipe
from tfpipe.evaluation import near_duplicates
from tfpipe.images import decoding
from tfpipe.models import explanation
from tfpipe.page.answers import Answers
from tfpipe.pipeline.loader import Loader
from tfpipe.pipeline.options import Options
from tfpipe.prediction.models import Model
from tfpipe.records.samples import Samples
from tfpipe.report.augmentation_sheet import show

SIZE = (40, 56)
KEYS = ("cat/0.jpg", "cat/1.jpg", "dog/0.png")
STRONG = tfpipe.Augmentation.named("strong")
NOISE = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
LARGE = np.tile(NOISE, (2, 40, 1))  # to a height of 400, more than 4 million numbers on the way
EXACT = {"ExpandDims", "Pack", "Range", "StridedSlice"}  # round nothing
SEEN = {"seed": 3, "image_size": SIZE, "augment": STRONG}


def build(root: Path) -> Path:
    """A data set of a small, a large and a turned image."""
    write(root / "in/cat/0.jpg", make_image(0, (90, 60)))
    write(root / "in/cat/1.jpg", make_image(1, (700, 500)))
    write(root / "in/dog/0.png", make_image(2, (70, 80), format="PNG"))
    tfpipe.build_tfrecords(root / "in", root / "out", layout="folders", splits={"train": 1}, workers=1, progress=False)
    return root / "out"


def deep_png() -> bytes:
    """A PNG of 16 bits."""
    from test_samples import RAMP, png

    return png(RAMP)


def of_tensors() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """Functions from tensors to tensors, with arguments: usable in a graph."""
    jpeg, uncropped = make_image(1, (60, 44)), tfpipe.Augmentation(rotation=20, hue=0.1, contrast=0.2)
    deep = Samples(png16="percentile", background="white")

    def augmented(image: tf.Tensor, augmentation: tfpipe.Augmentation) -> tf.Tensor:
        return tfpipe.augment_image(image, SIZE, augmentation, key="cat/1.jpg", seed=3, epoch=tf.constant(2, tf.int64))

    return {
        "decode_image": (lambda file: tfpipe.decode_image(file, 6), [jpeg]),
        "decode_image of 16 bits": (lambda file: tfpipe.decode_image(file, 1, deep), [deep_png()]),
        "resize_image": (lambda image: tfpipe.resize_image(image, SIZE, "crop"), [NOISE]),
        "resize_image of a large one": (lambda image: tfpipe.resize_image(image, (400, 300)), [LARGE]),
        "augment_image": (lambda image: augmented(image, STRONG), [NOISE]),
        "augment_image without a crop": (lambda image: augmented(image, uncropped), [NOISE]),
    }


def of_a_record(data_set: Path) -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    """As `of_tensors`, of a record's bytes."""
    reader = _loader(data_set).rows.reader
    return {
        "parse_example": (tfpipe.parse_example, [reader.read(0)]),
        "parse_batch": (decoding.parse_batch, [[reader.read(0), reader.read(1)]]),
    }


def of_python(data_set: Path) -> dict[str, Callable[[], Any]]:
    """Functions that give arrays, each called eagerly."""
    photo = data_set.parent / "in/cat/1.jpg"

    def sheet() -> bytes:
        output = data_set.parent / "sheet.png"
        show(data_set, output, images=1, tile=48, image_size=SIZE, augment=STRONG, seed=3)
        return output.read_bytes()

    def page() -> list[Any]:
        answer = Answers(Averages()).answer(str(photo))
        return [answer.seen, answer.image]

    def model() -> Any:
        predictor = Averages()
        Model(predictor).predict([str(photo), NOISE])
        return predictor.images

    return {
        "replay": lambda: [tfpipe.replay(data_set, "train", key, epoch=2, **SEEN) for key in KEYS],
        "show": sheet,
        "Answers.answer": page,
        "Model.predict": model,
        "Loader.positions": lambda: _loader(data_set).positions(5),
        "near_duplicates.shrink": lambda: near_duplicates.shrink(tf.constant(NOISE[np.newaxis])),
        "explanation.overlay": lambda: explanation.overlay(NOISE, np.float32([[0, 0.5], [1, 0.3]])),
        "decode_batch": lambda: decoding.decode_batch(tf.constant([photo.read_bytes(), b""]), SIZE, "pad", 10**8)[0].numpy(),
    }


def _loader(data_set: Path) -> Loader:
    return Loader(data_set, "train", Options(training=True, seed=3))


@contextmanager
def operations() -> Iterator[list[tuple[str, str]]]:
    """Lists the kind of each operation that is executed in this thread, and where its result is."""
    found: list[tuple[str, str]] = []

    def note(kind: Any, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> Any:
        if graph is None:
            name = kind.decode() if isinstance(kind, bytes) else kind
            found.extend((name, output.device.rpartition("/device:")[2]) for output in outputs)
        return outputs

    op_callbacks.add_op_callback(note)
    try:
        yield found
    finally:
        op_callbacks.remove_op_callback(note)


def main(root: str) -> None:
    """Prints the operations of each call that ran on the second CPU, the device of the caller or of a strategy's replica."""
    tf.config.set_visible_devices([], "GPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    data_set, second = Path(root), "/CPU:1"
    calls = of_python(data_set)
    tensors = {**of_tensors(), **of_a_record(data_set)}
    calls |= {name: lambda call=call, given=given: call(*map(tf.constant, given)) for name, (call, given) in tensors.items()}
    strategy = tf.distribute.OneDeviceStrategy(second)

    def by_default(call: Callable[[], Any]) -> Any:
        with tf.device(second):
            return call()

    def in_replica(call: Callable[[], Any]) -> Any:
        return strategy.run(tf.autograph.experimental.do_not_convert(call))

    for way in (by_default, in_replica):
        for name, call in {**calls, "control": lambda: tf.constant(1.0) * 2.0}.items():
            with operations() as found:
                way(call)
            elsewhere = sorted({kind for kind, device in found if device != "CPU:0" and kind not in EXACT})
            sys.stdout.write(f"{way.__name__} | {name} | {' '.join(elsewhere)}\n")
