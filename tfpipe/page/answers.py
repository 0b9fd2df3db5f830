"""Predictions for one image, or for many, and what explains them: all that the demo page shows.

    answers = Answers(load("runs/a"), index)
    answer = answers.answer("cat.jpg")                 # probabilities, Grad-CAM, neighbours, the model's input
    for row in answers.rows([Upload("a.jpg", path)]): ...

Header checks, decoder, orientation and resize are those of `predict` and of evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.evaluation.feature_index import FeatureIndex, Neighbour
from tfpipe.images import decoding, headers
from tfpipe.listing import image_files
from tfpipe.models import explanation
from tfpipe.models.classifiers import Classifier, Predictor, samples_of, task_of
from tfpipe.models.predictions import are_probabilities
from tfpipe.report import figures

_SHOWN_SIDE, _NEIGHBOUR_SIDE, _THUMBNAIL_SIDE = 640, 192, 96  # pixels
_BATCH_SIZE = 32

Array = np.ndarray[Any, Any]


class Upload(NamedTuple):
    """A file: its original name, and its path here."""

    name: str
    path: str


@dataclass(frozen=True)
class Answer:
    """The prediction for one image, and what explains it.

    Attributes:
        probabilities: float32 [C].
        image: upright, uint8 [H, W, 3].
        seen: the model's input, uint8 [h, w, 3].
        prepared: after the model's preprocessing, float32 [h, w, 1 or 3]; None for an exported
            model.
        heat: Grad-CAM of the most probable class over the part that the model sees, uint8 [H, W,
            3]; None for an exported model.
        has_heatmap: False where Grad-CAM is all zeros.
        neighbours: training images, the most similar first, each with a data URI; "" where it
            cannot be read any more.
    """

    probabilities: Array
    image: Array
    seen: Array
    prepared: Array | None = None
    heat: Array | None = None
    has_heatmap: bool = False
    neighbours: Sequence[tuple[Neighbour, str]] = ()


class FileResult(NamedTuple):
    """One of many files: probabilities, float32 [C], and thumbnail, a data URI; or the problem."""

    name: str
    probabilities: Array | None = None
    thumbnail: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Answers:
    """A model that predicts and explains uploaded images.

    Attributes:
        predictor: the model; what goes beyond probabilities needs a `Classifier`.
        index: training images to compare with; of a `Classifier` only.
        max_pixels: height times width above which an image is rejected.
    """

    predictor: Predictor
    index: FeatureIndex | None = None
    max_pixels: int = headers.DEFAULT_MAX_PIXELS

    def answer(self, path: str) -> Answer | RejectedImage:
        """Returns the prediction for a file, or why there is none."""
        decoded = self._decode(path)
        if isinstance(decoded, RejectedImage):
            return decoded
        seen, shown = self._resize(decoded), decoded.numpy()
        batch, classifier = seen[tf.newaxis], self.predictor
        if not isinstance(classifier, Classifier):
            probabilities = classifier.predict(batch)[0]
            return self._unsound(probabilities) or Answer(probabilities, shown, seen.numpy())
        (probabilities,), (features,) = classifier.predict_with_features(batch)
        if problem := self._unsound(probabilities):
            return problem
        heat = explanation.explain(classifier, batch, probabilities[np.newaxis].argmax(axis=1))[0]
        return Answer(
            probabilities,
            shown,
            seen.numpy(),
            prepared=classifier.model.get_layer("preprocessing")(batch)[0].numpy(),
            heat=explanation.overlay(_enlarged(decoded, classifier), heat),
            has_heatmap=bool(heat.any()),
            neighbours=list(self._neighbours(features)),
        )

    def _neighbours(self, features: Array) -> Iterator[tuple[Neighbour, str]]:
        if self.index is None:
            return
        for neighbour in self.index.nearest(features):
            try:
                yield neighbour, figures.photograph(self.index.image(neighbour), _NEIGHBOUR_SIDE)
            except DataError:
                yield neighbour, ""

    def rows(self, uploads: Sequence[Upload]) -> Iterator[FileResult]:
        """Yields a result for each file, in order; a rejected one does not stop the others."""
        for start in range(0, len(uploads), _BATCH_SIZE):
            batch = [(upload.name, self._shown(upload.path)) for upload in uploads[start : start + _BATCH_SIZE]]
            seen = [shown[0] for _, shown in batch if not isinstance(shown, RejectedImage)]
            probabilities = iter(self.predictor.predict(tf.stack(seen)) if seen else ())
            for name, shown in batch:
                if isinstance(shown, RejectedImage):
                    yield FileResult(name, problem=shown.message)
                elif problem := self._unsound(predicted := next(probabilities)):
                    yield FileResult(name, problem=problem.message)
                else:
                    yield FileResult(name, predicted, shown[1])

    def _shown(self, path: str) -> tuple[tf.Tensor, str] | RejectedImage:
        """Returns the model's input and a thumbnail; the decoded image is not kept."""
        image = self._decode(path)
        if isinstance(image, RejectedImage):
            return image
        return self._resize(image), figures.photograph(image.numpy(), _THUMBNAIL_SIDE)

    def _decode(self, path: str) -> tf.Tensor | RejectedImage:
        """Returns a file's image, upright, uint8 [H, W, 3], or why there is none."""
        encoded = image_files.read(path, self.max_pixels)
        if isinstance(encoded, RejectedImage):
            return encoded
        try:
            return decoding.decode_image(encoded.data, encoded.orientation, samples_of(self.predictor))
        except tf.errors.OpError as error:
            return image_files.undecodable(decoding.plain_reason(error))

    def _resize(self, image: tf.Tensor) -> tf.Tensor:
        return decoding.resize_image(image, self.predictor.image_size, self.predictor.resize)

    def _unsound(self, probabilities: Array) -> RejectedImage | None:
        if are_probabilities(probabilities[np.newaxis], task=task_of(self.predictor)).all():
            return None
        return RejectedImage("no_probabilities", f"the model gives no probabilities for it: {probabilities.tolist()}")


def _enlarged(image: tf.Tensor, classifier: Classifier) -> Array:
    """Returns the part of an image that the model sees, enlarged and not distorted."""
    height, width = image.shape[:2] if classifier.resize == "stretch" else classifier.image_size
    scale = _SHOWN_SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    enlarged: Array = decoding.resize_image(image, size, classifier.resize).numpy()
    return enlarged
