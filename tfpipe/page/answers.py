"""What a model says of one picture, or of many, and what helps to understand it: all that the demo page shows.

    answers = Answers(load("runs/a"), gallery)
    answer = answers.answer("cat.jpg")                 # probabilities, Grad-CAM, neighbours, what the model saw
    for row in answers.rows([Upload("a.jpg", path)]): ...

Files go the way of `predict` and of evaluation: the same look at the header, decoder, orientation and resize.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.evaluation.feature_index import Gallery, Neighbour, shrink
from tfpipe.images import decoding, headers
from tfpipe.listing import image_files
from tfpipe.models import explanation
from tfpipe.models.classifiers import Classifier, Predictor, samples_of
from tfpipe.models.predictions import are_probabilities

_SHOWN_SIDE = 640  # pixels
_THUMBNAIL_SIDE = 96
_BATCH_SIZE = 32

Array = np.ndarray[Any, Any]


class Upload(NamedTuple):
    """A file: the name that it had where it came from, and the path where it is now."""

    name: str
    path: str


class Resemblance(NamedTuple):
    """A neighbour and its picture, uint8 [H, W, 3]; None where it cannot be read any more."""

    neighbour: Neighbour
    picture: Array | None


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Attributes:
        probabilities: float32 [C].
        picture: as a person sees it, upright, uint8 [H, W, 3].
        seen: what the model is given, uint8 [h, w, 3].
        prepared: what the model itself makes of that first, float32 [h, w, 1 or 3]; None for an exported model.
        heat: what speaks for the most probable class (Grad-CAM) over the part that the model sees, uint8 [H, W, 3]; None for an
            exported model.
        speaks: False where the heat is all zeros.
        neighbours: training pictures, the most similar first.
    """

    probabilities: Array
    picture: Array
    seen: Array
    prepared: Array | None = None
    heat: Array | None = None
    speaks: bool = False
    neighbours: Sequence[Resemblance] = ()


class Row(NamedTuple):
    """One of many files: probabilities, float32 [C], and a small picture, uint8 [H, W, 3]; or why it has none."""

    name: str
    probabilities: Array | None = None
    picture: Array | None = None
    problem: str = ""


@dataclass(frozen=True)
class Answers:
    """A model, ready to be asked.

    Attributes:
        predictor: the model; what goes beyond probabilities needs a `Classifier`.
        gallery: training pictures to compare with; of a `Classifier` only.
        max_pixels: height times width above which a picture is refused.
    """

    predictor: Predictor
    gallery: Gallery | None = None
    max_pixels: int = headers.DEFAULT_MAX_PIXELS

    def answer(self, path: str) -> Answer | RejectedImage:
        """Returns what there is to say of a file, or why there is nothing."""
        image = self._decode(path)
        if isinstance(image, RejectedImage):
            return image
        seen, picture = self._resize(image), shrink(image, _SHOWN_SIDE)
        if isinstance(self.predictor, Classifier):
            return self._explained(self.predictor, image, seen, picture)
        probabilities = self.predictor.predict(seen[tf.newaxis])
        return _unsound(probabilities[0]) or Answer(probabilities[0], picture, seen.numpy())

    def _explained(self, classifier: Classifier, image: tf.Tensor, seen: tf.Tensor, picture: Array) -> Answer | RejectedImage:
        batch = seen[tf.newaxis]
        probabilities, features = classifier.predict_with_features(batch)
        if problem := _unsound(probabilities[0]):
            return problem
        heat = explanation.explain(classifier, batch, probabilities.argmax(axis=1))[0]
        return Answer(
            probabilities[0],
            picture,
            seen.numpy(),
            prepared=classifier.model.get_layer("preprocessing")(batch)[0].numpy(),
            heat=explanation.overlay(_enlarged(image, classifier), heat),
            speaks=bool(heat.any()),
            neighbours=self._neighbours(features[0]),
        )

    def _neighbours(self, features: Array) -> list[Resemblance]:
        if self.gallery is None:
            return []
        return [Resemblance(found, _picture_of(self.gallery, found)) for found in self.gallery.nearest(features)]

    def rows(self, uploads: Sequence[Upload]) -> Iterator[Row]:
        """Yields what there is to say of each file, in their order; what is no picture does not stop the others."""
        for start in range(0, len(uploads), _BATCH_SIZE):
            yield from self._rows(uploads[start : start + _BATCH_SIZE])

    def _rows(self, uploads: Sequence[Upload]) -> Iterator[Row]:
        shown = [self._shown(upload.path) for upload in uploads]
        seen = [found[0] for found in shown if not isinstance(found, RejectedImage)]
        probabilities = iter(self.predictor.predict(tf.stack(seen)) if seen else ())
        for upload, found in zip(uploads, shown, strict=True):
            if isinstance(found, RejectedImage):
                yield Row(upload.name, problem=found.message)
                continue
            said = next(probabilities)
            problem = _unsound(said)
            yield Row(upload.name, problem=problem.message) if problem else Row(upload.name, said, found[1])

    def _shown(self, path: str) -> tuple[tf.Tensor, Array] | RejectedImage:
        """Returns what the model and what a person sees of a file; the decoded picture is not kept."""
        image = self._decode(path)
        return image if isinstance(image, RejectedImage) else (self._resize(image), shrink(image, _THUMBNAIL_SIDE))

    def _decode(self, path: str) -> tf.Tensor | RejectedImage:
        """Returns a file's picture, upright, uint8 [H, W, 3], or why there is none."""
        encoded = image_files.read(path, self.max_pixels)
        if isinstance(encoded, RejectedImage):
            return encoded
        try:
            return decoding.decode_image(encoded.data, encoded.orientation, samples_of(self.predictor))
        except tf.errors.OpError as error:
            return image_files.undecodable(decoding.plain_reason(error))

    def _resize(self, image: tf.Tensor) -> tf.Tensor:
        return decoding.resize_image(image, self.predictor.image_size, self.predictor.resize)


def _unsound(probabilities: Array) -> RejectedImage | None:
    if are_probabilities(probabilities[np.newaxis]).all():
        return None
    return RejectedImage("no_probabilities", f"the model gives no probabilities for it: {probabilities.tolist()}")


def _enlarged(image: tf.Tensor, classifier: Classifier) -> Array:
    """Returns what the model sees of a picture, in a size that a person can look at, and not distorted."""
    if classifier.resize == "stretch":  # all of the picture: as it is
        height, width = image.shape[:2]
    else:
        height, width = classifier.image_size
    scale = _SHOWN_SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    enlarged: Array = decoding.resize_image(image, size, classifier.resize).numpy()
    return enlarged


def _picture_of(gallery: Gallery, neighbour: Neighbour) -> Array | None:
    try:
        return gallery.picture(neighbour, 2 * _THUMBNAIL_SIDE)
    except DataError:
        return None
