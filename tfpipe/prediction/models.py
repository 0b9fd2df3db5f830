"""`tfpipe.load()`: a trained model to call from Python, whatever its format.

    model = load("runs/a")                                   # or export/saved_model, export/frozen_image.pb, ...
    for found in model.predict(["1.jpg", "2.png"]):
        print(found.class_name, found.score, found.reason)

Images are checked, decoded, turned and resized as in evaluation.
"""

from __future__ import annotations

import io
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.common.errors import RejectedImage
from tfpipe.common.workers import count_cores
from tfpipe.formats import opening
from tfpipe.images import decoding, headers
from tfpipe.images.decoding import Resize
from tfpipe.listing import image_files
from tfpipe.models import predictions
from tfpipe.models import tta as views
from tfpipe.models.classifiers import Predictor, samples_of, task_of, thresholds_of
from tfpipe.prediction.tables import TOP_K, Labels, best_of
from tfpipe.records.manifest import MULTILABEL, REGRESSION
from tfpipe.records.samples import Samples

Array = np.ndarray[Any, Any]
Input = str | os.PathLike[str] | bytes | BinaryIO | Array
_Item = str | bytes | Array

_TEXTS = "OTU"  # kinds of dtype that keep text and bytes whole; S cuts off zeros at their end


class Prediction(NamedTuple):
    """A model's prediction for one image.

    Of a file that is not an image, `class_name` is None, `score` 0, `top` empty, every probability
    0, and `reason` is a code and a sentence: "truncated: ...". Of an image, `reason` is "".

    Attributes:
        class_name: the likeliest class.
        score: its probability.
        top: the likeliest classes with their probabilities, the likeliest first.
        probabilities: float32 [C], in the order of the model's class names.
        reason: why there is no prediction.
        labels: of a model of several labels an image, the names at their thresholds or above, in the
            model's order; else None.
        values: of a regression, the number of each target by name, in its unit; else None. Then
            `class_name` is None, `score` 0, `top` empty, and `probabilities` are these numbers.
    """

    class_name: str | None
    score: float
    top: Sequence[tuple[str, float]]
    probabilities: Array
    reason: str = ""
    labels: Sequence[str] | None = None
    values: Mapping[str, float] | None = None

    def __repr__(self) -> str:
        if self.values is not None:
            return f"Prediction(values={reprlib.repr(dict(self.values))})"
        rest = f"reason={self.reason!r}" if self.reason else f"top={reprlib.repr(list(self.top))}"
        labels = "" if self.labels is None else f"labels={list(self.labels)!r}, "
        return f"Prediction({self.class_name!r}, {self.score!r}, {labels}{rest})"


@dataclass(frozen=True)
class Model:
    """A model that takes images of any kind and size.

    Attributes:
        predictor: takes images of the right size; for `tfpipe.evaluate` and `tfpipe.predict`.
        max_pixels: height times width above which a file is not decoded.
        source: path that it was loaded from.
    """

    predictor: Predictor
    max_pixels: int = headers.DEFAULT_MAX_PIXELS
    source: str | os.PathLike[str] | None = None

    def __repr__(self) -> str:
        facts = f"class_names={reprlib.repr(list(self.class_names))}, image_size={self.image_size}, resize={self.resize!r}"
        return f"Model({facts}, sha256={self.predictor.sha256[:12]!r})"

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""
        return self.predictor.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that images are resized to."""
        return self.predictor.image_size

    @property
    def resize(self) -> Resize:
        """How they are resized, see `tfpipe.dataset`."""
        mode: Resize = self.predictor.resize
        return mode

    @property
    def samples(self) -> Samples:
        """How 16-bit and transparent PNG are converted."""
        return samples_of(self.predictor)

    def predict(
        self,
        inputs: Input | Iterable[Input],
        *,
        top_k: int = TOP_K,
        batch_size: int = 64,
        tta: str | int | views.Tta | None = None,
    ) -> list[Prediction]:
        """Returns a prediction per input, in their order, with the `reason` of a bad file.

        Args:
            inputs: paths of image files, their bytes, files opened in binary mode, or images
                as uint8 [H, W, 3], RGB, 0..255, of any size, alone or in any iterable; or one
                array, uint8 [B, H, W, 3].
            top_k: number of classes to name, at most all.
            batch_size: images per call of the model. Probabilities depend on it by about 1e-6.
            tta: average several views of each image, see `tfpipe.evaluate`.

        Raises:
            ValueError: an invalid argument.
            DataError: the model's outputs are not probabilities, but NaN, say; names the images.
        """
        top_k, batch_size = arguments.check(top_k=top_k, batch_size=batch_size)
        predictor, items = self.averaging(tta), _listed(inputs)
        with ThreadPoolExecutor(count_cores()) as pool:
            found: list[Prediction] = []
            for start in range(0, len(items), batch_size):
                part = items[start : start + batch_size]
                names = [item if isinstance(item, str) else f"input {index}" for index, item in enumerate(part, start)]
                found += self._predict_batch(predictor, list(pool.map(self._pixels, part)), names, top_k)
        return found

    def averaging(self, tta: str | int | views.Tta | None) -> Predictor:
        """Returns the predictor, or one that averages views, see `tfpipe.evaluate`."""
        return views.averaged(self.predictor, views.find(tta, self.source, self.predictor))

    def _predict_batch(
        self, predictor: Predictor, images: Sequence[Array | RejectedImage], names: Sequence[str], top_k: int
    ) -> list[Prediction]:
        good = {index: image for index, image in enumerate(images) if not isinstance(image, RejectedImage)}
        values = predictor.predict(np.stack([*good.values()])) if good else np.empty((0, 1))
        predictions.check(values, [names[index] for index in good], self.predictor)
        predicted = iter(values)
        return [self._prediction(image if isinstance(image, RejectedImage) else next(predicted), top_k) for image in images]

    def _prediction(self, outcome: Array | RejectedImage, top_k: int) -> Prediction:
        labels = None
        if task_of(self.predictor) == MULTILABEL:
            labels = Labels(self.class_names, thresholds_of(self.predictor))
        if isinstance(outcome, RejectedImage):
            zeros = np.zeros(len(self.class_names), np.float32)
            return Prediction(None, 0.0, [], zeros, outcome.summary, None if labels is None else ())
        if task_of(self.predictor) == REGRESSION:
            values = dict(zip(self.class_names, map(float, outcome), strict=True))
            return Prediction(None, 0.0, [], outcome, values=values)
        top = [(self.class_names[best], float(outcome[best])) for best in best_of(outcome, top_k)]
        return Prediction(*top[0], top, outcome, labels=None if labels is None else labels.names(outcome))

    def _pixels(self, item: _Item) -> Array | RejectedImage:
        """Returns the model's input, uint8 [H, W, 3], or why there is none."""
        if isinstance(item, np.ndarray):
            resized: Array = self._resize(item).numpy()
            return resized
        limit = self.max_pixels
        found = image_files.examine(item, limit) if isinstance(item, bytes) else image_files.read(item, limit)
        if isinstance(found, RejectedImage):
            return found
        try:
            decoded: Array = self._decode(found.data, found.orientation).numpy()
        except tf.errors.OpError as error:
            return image_files.undecodable(decoding.plain_reason(error))
        return decoded

    @cached_property
    def _decode(self) -> Any:
        def decode(encoded: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
            return decoding.decode_and_resize(encoded, orientation, self.image_size, self.resize, self.samples)

        signature = [tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)]
        return tf.function(decode, input_signature=signature, autograph=False)

    @cached_property
    def _resize(self) -> Any:
        def resize(image: tf.Tensor) -> tf.Tensor:
            return decoding.resize_image(image, self.image_size, self.resize)

        return tf.function(resize, input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)


@arguments.renamed(path="model")
def load(model: str | os.PathLike[str], *, max_pixels: int = headers.DEFAULT_MAX_PIXELS, trust: bool = False) -> Model:
    """Returns the model of a run's folder, a .keras file, or a file or folder of an export.

    Args:
        model: its path.
        max_pixels: height times width above which a file is not decoded.
        trust: trust its author: open it also if it holds Python code, or operations that do more
            than compute.

    Raises:
        ValueError: not a path.
        FileNotFoundError: there is no such model.
        DataError: it cannot be read, is not a model of tfpipe, has changed since it was written, or
            must not be opened without `trust`.
        ImportError: its format needs an extra that is not installed.
    """
    max_pixels, trust = arguments.check(max_pixels=max_pixels, trust=trust)
    return Model(opening.load(model, trust=trust), max_pixels, model)


def _listed(inputs: Any) -> list[_Item]:
    if isinstance(inputs, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(inputs, "read"):
        return [_item(inputs)]  # an open file would be iterated line by line
    if not hasattr(inputs, "__array__"):
        return [_item(given) for given in inputs] if isinstance(inputs, Iterable) else [_item(inputs)]
    values = np.asarray(inputs)
    if values.dtype.kind in _TEXTS:  # a column of a table: paths or contents of files
        return [_item(given) for given in values.ravel().tolist()]
    images = _checked(values)
    return list(images) if images.ndim == 4 else [images]


def _item(given: Any) -> _Item:
    if isinstance(given, str | os.PathLike):
        return os.fsdecode(given)
    if hasattr(given, "read"):
        given = _content(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if not hasattr(given, "__array__"):
        advice = "; of a PIL image: np.asarray(image.convert('RGB'))" if hasattr(given, "__array_interface__") else ""
        wanted = "a path, an open file or the bytes of one, or an array, uint8 [H, W, 3]"
        raise ValueError(f"an input must be {wanted} (got {type(given).__name__}){advice}")
    values = np.asarray(given)
    if not values.ndim and values.dtype.kind in _TEXTS:  # tf.io.read_file
        return _item(values.item())
    image = _checked(values)
    if image.ndim != 3:
        raise ValueError(
            f"an image among others must be [H, W, 3] (got the shape {list(image.shape)}); [B, H, W, 3] goes alone"
        )
    return image


def _content(file: Any) -> bytes:
    content = None if isinstance(file, io.TextIOBase) else file.read()
    if not isinstance(content, bytes):
        raise ValueError(f"an open file must give bytes: open(path, 'rb') (got {type(file).__name__})")
    return content


def _checked(images: Array) -> Array:
    if images.dtype.kind == "f":
        advice = "0..1 and 0..255 cannot be told apart; give uint8, 0..255, as files have it"
        raise ValueError(f"images must be uint8 (got {images.dtype}): in floats, {advice}")
    if images.dtype.kind in "OSTU":
        advice = "paths and bytes are given as they are, in a list"
        raise ValueError(f"images in an array must be uint8, 0..255 (got {images.dtype}); {advice}")
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, 0..255 (got {images.dtype})")
    shape = list(images.shape)
    if len(shape) not in (3, 4) or shape[-1] != 3 or 0 in shape[-3:]:
        raise ValueError(f"images must be [H, W, 3] or [B, H, W, 3], RGB (got the shape {shape}){_advice(shape)}")
    return images


def _advice(shape: Sequence[int]) -> str:
    if len(shape) == 2:
        return "; of a grey image: np.stack([x] * 3, axis=-1)"
    return {1: "; of grey images: np.repeat(x, 3, axis=-1)", 4: "; of RGBA: x[..., :3]"}.get(shape[-1] if shape else 0, "")
