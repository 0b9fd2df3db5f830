"""Signatures of an exported model: functions from files or pixels to probabilities and names.

    functions = make(model_function(model), specification, has_features=True)
    functions["serving_default"](image_bytes)    # {"probabilities", "classes", "scores", "valid"}

    serving_default   image_bytes string [B] -> probabilities float32 [B, C], classes string [B, K], scores float32 [B, K],
                      valid bool [B]
    image             image uint8 [B, H, W, 3] -> probabilities, classes, scores
    features          image_bytes string [B] -> features float32 [B, D], valid; only where the model has features
    tta, image_tta    as the first two, of an export with `tta`: means over the views of an image
    pixels            image_bytes string [B] -> image uint8 [B, H, W, 3], the model's input, and valid

Of several labels an image, the first two have another output, labels string [B, C]: the name of
each class at its threshold or above, and "" in the place of the others. Of a regression, they have
values float32 [B, D] in place of probabilities, classes and scores.

A file that is not an image is not valid: its probabilities, scores and features are 0 and its
classes empty, and the others of the batch do not change. So is an image for which the model gives
no probabilities, such as NaN, except in `pixels`. Names follow TensorFlow Serving's conventions:
names that end with `_bytes` are base64 in JSON, "classes" and "scores" are those of its
classification API.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfpipe.formats.specifications import Specification
from tfpipe.images.decoding import decode_batch
from tfpipe.models import predictions, tta
from tfpipe.models.classifiers import NamedModel
from tfpipe.records.manifest import MULTILABEL, PROBABILITIES, REGRESSION, VALUES

Tensors = dict[str, tf.Tensor]
Function = Callable[[tf.Tensor], Tensors]

DEFAULT = "serving_default"
OUTPUTS = (PROBABILITIES, VALUES, "features")  # of a model, see `NamedModel.network`


def make(function: Function, specification: Specification, *, has_features: bool) -> dict[str, Any]:
    """Returns the signatures by name, `serving_default` first, as `tf.function`s.

    Args:
        function: from pixels to the model's outputs, see `model_function`.
        specification: of the model.
        has_features: whether "features" is one of the outputs.
    """
    of_task = {MULTILABEL: ("probabilities", "classes", "scores", "labels"), REGRESSION: (VALUES,)}
    named = of_task.get(specification.task, ("probabilities", "classes", "scores"))

    def of_files(*names: str, function: Function = function) -> Any:
        def run(image_bytes: tf.Tensor) -> Tensors:
            outputs = apply_to_files(function, specification, image_bytes)
            return {name: outputs[name] for name in names}

        return _function(run, bytes_spec())

    def of_pixels(function: Function = function) -> Any:
        def run(image: tf.Tensor) -> Tensors:
            outputs = _with_classes(specification, function(image))
            return {name: outputs[name] for name in named}

        return _function(run, image_spec(specification))

    def decode(image_bytes: tf.Tensor) -> Tensors:
        image, valid = _decode(specification, image_bytes)
        return {"image": image, "valid": valid}

    averages = {}
    if specification.tta is not None:
        mean = tta.averaging(function, specification.tta)
        averages = {"tta": of_files(*named, "valid", function=mean), "image_tta": of_pixels(mean)}
    return {
        DEFAULT: of_files(*named, "valid"),
        "image": of_pixels(),
        **({"features": of_files("features", "valid")} if has_features else {}),
        "pixels": _function(decode, bytes_spec()),
        **averages,
    }


def bytes_spec() -> tf.TensorSpec:
    """Returns the type of a batch of files."""
    return tf.TensorSpec([None], tf.string, name="image_bytes")


def image_spec(specification: Specification) -> tf.TensorSpec:
    """Returns the type of a batch of pixels."""
    return tf.TensorSpec([None, *specification.image_size, 3], tf.uint8, name="image")


def model_function(model: NamedModel, *, allow_empty: bool = True) -> Function:
    """Returns the function from pixels to "probabilities" and, if there are any, "features".

    With `allow_empty` it takes a batch of no images, on which TensorFlow's fused product of
    matrices fails.
    """

    def run(image: tf.Tensor) -> Tensors:
        return dict(model.trace(image))

    def run_padded(image: tf.Tensor) -> Tensors:
        count = tf.shape(image)[0]
        one_more = tf.cast(count == 0, tf.int32)
        padded = tf.pad(image, [[0, one_more], [0, 0], [0, 0], [0, 0]])
        padded.set_shape([None, *image.shape[1:]])
        return {name: value[:count] for name, value in run(padded).items()}

    return run_padded if allow_empty else run


def apply_to_files(function: Function, specification: Specification, image_bytes: tf.Tensor) -> Tensors:
    """Returns the outputs of `function`, "classes", "scores", "valid" and "pixels" for files.

    Pixels of a bad file are 0: the batch keeps its size, and with it all other rows their bits.
    """
    image, valid = _decode(specification, image_bytes)
    return {**_with_classes(specification, function(image), valid), "pixels": image}


def _with_classes(specification: Specification, outputs: Tensors, valid: tf.Tensor | bool = True) -> Tensors:
    """Adds "classes", "scores" and "valid", of a regression "valid" alone; rows that are not valid are 0 or empty."""
    if specification.task == REGRESSION:
        valid = valid & tf.reduce_all(tf.math.is_finite(outputs[VALUES]), axis=1)
        masked = {name: tf.where(valid[:, tf.newaxis], value, tf.zeros_like(value)) for name, value in outputs.items()}
        return {**masked, "valid": valid}
    probabilities = outputs["probabilities"]
    sums = tf.abs(tf.reduce_sum(probabilities, axis=1) - 1) <= predictions.TOLERANCE  # as `predictions.are_probabilities`
    inside = tf.reduce_all(tf.abs(probabilities - 0.5) <= 0.5 + predictions.TOLERANCE, axis=1)
    valid = valid & inside & (sums | (specification.task == MULTILABEL))
    scores, indices = tf.math.top_k(probabilities, specification.top_k)  # of equal ones the first, as argmax
    # From a constant: a lookup table would need an initialiser, which a frozen graph does not run.
    names = tf.constant([name.encode("utf-8", "surrogateescape") for name in specification.class_names])
    everything = {**outputs, "classes": tf.gather(names, indices), "scores": scores}
    if specification.task == MULTILABEL:
        present = probabilities >= tf.constant(specification.thresholds, tf.float32)
        everything["labels"] = tf.where(present, names, "")
    masked = {name: tf.where(valid[:, tf.newaxis], value, tf.zeros_like(value)) for name, value in everything.items()}
    return {**masked, "valid": valid}


def _function(function: Function, spec: tf.TensorSpec) -> Any:
    return tf.function(function, input_signature=[spec], autograph=False)


def _decode(specification: Specification, image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    size, resize = specification.image_size, specification.resize
    return decode_batch(image_bytes, size, resize, specification.max_pixels, specification.samples)
