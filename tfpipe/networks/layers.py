"""Layers of a saved classifier beside Keras' own: preprocessing, trunk, probabilities.

Every step from pixels to class is a layer, so that one file carries all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfpipe.common.text import hash_names as hash_names
from tfpipe.networks.architectures import PREPROCESSINGS as PREPROCESSINGS
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION, SINGLE, TASKS
from tfpipe.records.samples import USUAL, Samples

# Mean of ImageNet's training images in BGR, levels 0..255 (VGG, Simonyan and Zisserman 2014), and
# of RGB with its standard deviation, 0..1: the numbers that keras.applications subtracts and
# divides by.
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_DEVIATION = (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"

OUTPUTS = ("logits", "probabilities", "sigmoid")


@keras.saving.register_keras_serializable("tfpipe")
class Preprocessing(keras.layers.Layer):  # type: ignore[misc]
    """uint8 [B, H, W, 3], RGB, 0..255 -> float [B, H, W, C], C being 1 for "grey", else 3.

    Args:
        mode: one of PREPROCESSINGS: "caffe" (BGR minus mean), "tf" (-1..1), "torch" (standardised),
            "unit" (0..1), "grey" (luma, 0..1), "none".
        resize: how images must be resized to the input's size, as in `tfpipe.dataset`; only stored.
        samples: treatment of 16 bits and of alpha, `Samples` or its options by name; only stored.
    """

    def __init__(
        self, mode: str, resize: str = "stretch", samples: Samples | Mapping[str, str] = USUAL, **options: Any
    ) -> None:
        super().__init__(**options)
        if mode not in PREPROCESSINGS:
            raise ValueError(f"mode must be one of {', '.join(PREPROCESSINGS)} (got {mode!r})")
        self.mode, self.resize = mode, resize
        self.samples = samples if isinstance(samples, Samples) else Samples(**samples)

    def call(self, images: Any) -> Any:
        """Returns float images; computed in float32 and cast last: bfloat16 rounds once."""
        values = ops.cast(images, "float32")  # first: arithmetic on uint8 wraps around
        if self.mode == "caffe":
            values = ops.flip(values, axis=-1) - ops.array(_CAFFE_MEAN, "float32")
        elif self.mode == "tf":
            values = values / 127.5 - 1.0
        elif self.mode == "torch":
            if isinstance(values, keras.KerasTensor):
                values = _standardise_channels(values / 255.0)
            else:
                values = (values / 255.0 - ops.array(_TORCH_MEAN, "float32")) / ops.array(_TORCH_DEVIATION, "float32")
        elif self.mode == "unit":
            values = values / 255.0
        elif self.mode == "grey":
            values = ops.sum(values * ops.array(_LUMA, "float32"), axis=-1, keepdims=True) / 255.0
        return ops.cast(values, self.compute_dtype)

    def compute_output_spec(self, images: Any) -> keras.KerasTensor:
        """Returns the shape and dtype of the result."""
        channels = 1 if self.mode == "grey" else images.shape[-1]
        return keras.KerasTensor((*images.shape[:-1], channels), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer."""
        samples = self.samples.options()  # none if usual: the hash of older models stays
        return {**super().get_config(), "mode": self.mode, "resize": self.resize, **({"samples": samples} if samples else {})}


def _standardise_channels(values: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the same bits as the other branch of "torch", in operations that keep them in a file.

    An array of constants is not a constant to TensorFlow when it comes from a file: it then divides
    instead of multiplying by the inverse.
    """
    numbers = enumerate(zip(_TORCH_MEAN, _TORCH_DEVIATION, strict=True))
    channels = [(values[..., index : index + 1] - mean) / deviation for index, (mean, deviation) in numbers]
    return ops.concatenate(channels, axis=-1)


@keras.saving.register_keras_serializable("tfpipe")
class Trunk(keras.layers.Layer):  # type: ignore[misc]
    """A network, or the front or back part of one, that runs as the trunk of a classifier.

    With `inference`, the network always computes as in inference: `fit`'s training=True reaches
    every layer of a Functional model, past a `training=False` given while it was built
    (keras#20285), so that a frozen base has its Dropout on. This layer does not pass it on.

    Args:
        network: a Functional model, float tensor in, one float tensor out.
        inference: Dropout is off and BatchNorm uses its moving statistics, also in training.
    """

    def __init__(self, network: keras.Model, inference: bool, **options: Any) -> None:
        super().__init__(**options)
        self.network, self.inference = network, inference

    def call(self, values: Any, training: bool | None = None) -> Any:
        """Returns the network's output."""
        return self.network(values, training=False if self.inference else training)

    def compute_output_spec(self, values: Any, training: bool | None = None) -> keras.KerasTensor:  # noqa: ARG002
        """Returns the shape and dtype of the result."""
        return self.network.compute_output_spec(values)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer, the network's architecture included."""
        network = keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network, "inference": self.inference}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Trunk:
        """Returns the layer that `get_config` described."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("network")), **config)


@keras.saving.register_keras_serializable("tfpipe")
class Values(keras.layers.Layer):  # type: ignore[misc]
    """A network's outputs [B, D] -> float32 numbers [B, D] in the units of the targets, the last layer of a regression.

    Args:
        class_names: name of each target.
        units: of each target; "" where it is not known.
        means: of the targets in the training split, which is an output of 0; none: outputs are in
            units already.
        deviations: standard deviation of each target there, which is an output of 1.
        sha256: as of `Probabilities`.
    """

    task = REGRESSION
    source = "logits"

    def __init__(
        self,
        class_names: Sequence[str],
        units: Sequence[str],
        means: Sequence[float],
        deviations: Sequence[float],
        sha256: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{**options, "dtype": "float32"})
        self.class_names, self.units = tuple(class_names), tuple(units)
        self.means, self.deviations = tuple(map(float, means)), tuple(map(float, deviations))
        self.sha256 = _checked_hash(self.class_names, sha256)

    def call(self, outputs: Any) -> Any:
        """Returns the numbers."""
        outputs = ops.cast(outputs, "float32")
        scales = enumerate(zip(self.means, self.deviations, strict=False))  # numbers, see `_standardise_channels`
        values = [outputs[:, index : index + 1] * deviation + mean for index, (mean, deviation) in scales]
        return ops.concatenate(values, axis=-1) if values else outputs

    @property
    def without_fit(self) -> dict[str, Any]:
        """Arguments that make it a layer of numbers as they are, for the mean of several models."""
        return {"means": ()}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer."""
        names = ("class_names", "units", "means", "deviations")
        return {**super().get_config(), **{name: list(getattr(self, name)) for name in names}, "sha256": self.sha256}


def last_of(model: keras.Model) -> Probabilities | Values:
    """Returns the last layer of a classifier, "probabilities", or of a regression, "values"."""
    names = [layer.name for layer in model.layers]
    found: Probabilities | Values = model.get_layer("values" if "values" in names else "probabilities")
    return found


def _checked_hash(class_names: Sequence[str], sha256: str | None) -> str:
    found = hash_names(class_names)
    if sha256 not in (None, found):
        raise ValueError(f"the model's class names were changed: they hash to {found}, not to {sha256}")
    return found


@keras.saving.register_keras_serializable("tfpipe")
class Probabilities(keras.layers.Layer):  # type: ignore[misc]
    """A network's outputs [B, C] -> float32 probabilities [B, C], whose columns have names.

    Args:
        class_names: name of each column.
        sha256: `hash_names` of them; compared when a model is loaded.
        source: kind of the outputs, one of OUTPUTS: "logits" (softmax follows; of [B, 1], the
            sigmoid, for the second of two classes), "probabilities", "sigmoid" ([B, 1], of the
            second of two classes).
        task: "single": the probabilities of a row add up to 1. "multilabel": each is of its class
            alone, the sigmoid of its logit. "ordinal": they add up to 1, and logits are a score,
            [B, 1]; that a class is above the k-th has the sigmoid of the score less threshold k.
        thresholds: of "ordinal", rising, one less than there are classes.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        sha256: str | None = None,
        source: str = "logits",
        task: str = SINGLE,
        thresholds: Sequence[float] = (),
        **options: Any,
    ) -> None:
        super().__init__(**{**options, "dtype": "float32"})
        if source not in OUTPUTS:
            raise ValueError(f"source must be one of {', '.join(OUTPUTS)} (got {source!r})")
        if task not in TASKS or task == REGRESSION or (task != SINGLE and source == "sigmoid"):
            raise ValueError(f"task must be one of {', '.join(TASKS)}, of which source={source} (got {task!r})")
        self.class_names, self.source, self.task = tuple(class_names), source, task
        self.thresholds = tuple(map(float, thresholds))
        count = len(self.class_names) - 1 if task == ORDINAL and source == "logits" else 0
        if len(self.thresholds) != count or any(np.diff(self.thresholds) <= 0):
            raise ValueError(f"thresholds must rise, one less of them than of the classes of a score (got {self.thresholds})")
        self.sha256 = _checked_hash(self.class_names, sha256)

    def call(self, outputs: Any) -> Any:
        """Returns the probabilities."""
        outputs = ops.cast(outputs, "float32")
        if self.task == MULTILABEL:
            return ops.sigmoid(outputs) if self.source == "logits" else outputs
        if self.thresholds:
            return self._in_order(outputs)
        one = outputs.shape[-1] == 1 < len(self.class_names)
        if self.source == "logits":
            outputs = ops.sigmoid(outputs) if one else ops.softmax(outputs, axis=-1)
        return ops.concatenate([1.0 - outputs, outputs], axis=-1) if one else outputs

    @property
    def without_fit(self) -> dict[str, Any]:
        """Arguments that make it a layer of probabilities as they are, for the mean of several models."""
        return {"source": "probabilities", "thresholds": ()}

    def _in_order(self, score: Any) -> Any:
        # Products, see `links.FittedLinks`; numbers, not arrays, see `_standardise_channels`.
        below = [ops.sigmoid(threshold - score) for threshold in self.thresholds]
        above = [ops.sigmoid(score - threshold) for threshold in self.thresholds]
        factors = [float(value) for value in -np.expm1(-np.diff(self.thresholds))]
        inner = [one * other * factor for one, other, factor in zip(below[1:], above, factors, strict=False)]
        return ops.concatenate([below[0], *inner, above[-1]], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer."""
        source = {} if self.source == "logits" else {"source": self.source}  # the hash of older models stays
        task: dict[str, Any] = {} if self.task == SINGLE else {"task": self.task}
        task |= {"thresholds": list(self.thresholds)} if self.thresholds else {}
        return {**super().get_config(), "class_names": list(self.class_names), "sha256": self.sha256, **source, **task}
