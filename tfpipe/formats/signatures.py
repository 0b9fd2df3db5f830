"""What an exported model can be asked: functions of a graph, from files or pixels to probabilities and names.

    functions = make(ask(model), specification, has_features=True)
    functions["serving_default"](image_bytes)    # {"probabilities", "classes", "scores", "valid"}

    serving_default   image_bytes string [B] -> probabilities float32 [B, C], classes string [B, K], scores float32 [B, K],
                      valid bool [B]
    image             image uint8 [B, H, W, 3] -> probabilities, classes, scores
    features          image_bytes string [B] -> features float32 [B, D], valid; only where the model knows its features
    pixels            image_bytes string [B] -> image uint8 [B, H, W, 3], valid: what the model sees

A file that is no image is not valid: its probabilities, scores and features are 0 and its classes
empty; the others of the batch are what they are without it. The same is said of an image of which
the model gives no probabilities, as NaN; only `pixels` knows nothing of it. Names follow TensorFlow
Serving's conventions: `_bytes` ends what is base64 in JSON, "classes" and "scores" are those of its
classification API.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfpipe.formats.specifications import Specification
from tfpipe.images.decoding import decode_batch
from tfpipe.models import predictions
from tfpipe.models.classifiers import NamedModel

Tensors = dict[str, tf.Tensor]
Answer = Callable[[tf.Tensor], Tensors]

DEFAULT = "serving_default"
OUTPUTS = ("probabilities", "features")  # of a model, see `NamedModel.network`


def make(answer: Answer, specification: Specification, *, has_features: bool) -> dict[str, Any]:
    """Returns the functions by name, `serving_default` first, each a `tf.function` with a fixed signature.

    Args:
        answer: what the model says of pixels, see `ask`.
        specification: of the model.
        has_features: whether "features" is among what it says.
    """

    def classify_files(image_bytes: tf.Tensor) -> Tensors:
        answers = answer_files(answer, specification, image_bytes)
        return {name: answers[name] for name in ("probabilities", "classes", "scores", "valid")}

    def classify_images(image: tf.Tensor) -> Tensors:
        answers = _sound(specification, answer(image))
        return {name: answers[name] for name in ("probabilities", "classes", "scores")}

    def describe_files(image_bytes: tf.Tensor) -> Tensors:
        answers = answer_files(answer, specification, image_bytes)
        return {"features": answers["features"], "valid": answers["valid"]}

    def decode(image_bytes: tf.Tensor) -> Tensors:
        image, valid = _decode(specification, image_bytes)
        return {"image": image, "valid": valid}

    files, images = bytes_spec(), image_spec(specification)
    functions = {DEFAULT: _function(classify_files, files), "image": _function(classify_images, images)}
    if has_features:
        functions["features"] = _function(describe_files, files)
    return {**functions, "pixels": _function(decode, files)}


def bytes_spec() -> tf.TensorSpec:
    """Returns what a batch of files is."""
    return tf.TensorSpec([None], tf.string, name="image_bytes")


def image_spec(specification: Specification) -> tf.TensorSpec:
    """Returns what a batch of pixels is."""
    return tf.TensorSpec([None, *specification.image_size, 3], tf.uint8, name="image")


def ask(model: NamedModel, *, allow_empty: bool = True) -> Answer:
    """Returns the function from pixels to "probabilities" and, where the model knows them, "features".

    Args:
        model: to be asked.
        allow_empty: a batch of no images is answered, too: TensorFlow's fused product of matrices
            fails on one.
    """

    def answer(image: tf.Tensor) -> Tensors:
        return dict(model.trace(image))

    def answer_padded(image: tf.Tensor) -> Tensors:
        count = tf.shape(image)[0]
        one_more = tf.cast(count == 0, tf.int32)
        padded = tf.pad(image, [[0, one_more], [0, 0], [0, 0], [0, 0]])
        padded.set_shape([None, *image.shape[1:]])
        answers = answer(padded)
        return {name: value[:count] for name, value in answers.items()}

    return answer_padded if allow_empty else answer


def answer_files(answer: Answer, specification: Specification, image_bytes: tf.Tensor) -> Tensors:
    """Returns all that can be said of files: what `answer` says of their pixels, "classes", "scores", "valid", "pixels".

    The model sees zeros for a bad file: a batch keeps its size, and with it every other row its
    bits.
    """
    image, valid = _decode(specification, image_bytes)
    return {**_sound(specification, answer(image), valid), "pixels": image}


def _sound(specification: Specification, answers: Tensors, valid: tf.Tensor | bool = True) -> Tensors:
    """Returns answers with "classes" and "scores", zeros and no classes where not "valid": no probabilities, or not `valid`."""
    probabilities = answers["probabilities"]
    sums = tf.abs(tf.reduce_sum(probabilities, axis=1) - 1) <= predictions.TOLERANCE  # as `predictions.are_probabilities`
    inside = tf.reduce_all(tf.abs(probabilities - 0.5) <= 0.5 + predictions.TOLERANCE, axis=1)
    valid = valid & sums & inside
    everything = {**answers, **_top(specification, probabilities)}
    masked = {name: tf.where(valid[:, tf.newaxis], value, tf.zeros_like(value)) for name, value in everything.items()}
    return {**masked, "valid": valid}


def _function(function: Callable[[tf.Tensor], Tensors], spec: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=[spec], autograph=False)


def _decode(specification: Specification, image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size, resize = specification.image_size, specification.resize
    return decode_batch(image_bytes, size, resize, specification.max_pixels, specification.samples)


def _top(specification: Specification, probabilities: tf.Tensor) -> Tensors:
    scores, indices = tf.math.top_k(probabilities, specification.top_k)  # of equal ones the first, as argmax
    # From a constant: a lookup table would need an initialiser, which a frozen graph does not run.
    names = tf.constant([name.encode("utf-8", "surrogateescape") for name in specification.class_names])
    return {"classes": tf.gather(names, indices), "scores": scores}
