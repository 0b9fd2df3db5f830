"""Several classifiers as one: the mean of their probabilities, in one graph.

    model = average([keras.Model, ...])     # uint8 [B, H, W, 3] -> float32 [B, C]

Members of which the backbones have the same weights, as heads on frozen features have, share one:
the ensemble then costs little more than one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfpipe.networks.layers import Probabilities, Trunk, Values, last_of
from tfpipe.networks.submodels import hash_network


@keras.saving.register_keras_serializable("tfpipe")
class Ensemble(keras.layers.Layer):  # type: ignore[misc]
    """float [B, H, W, C], preprocessed -> float32 [B, C], the mean of the members' probabilities.

    Args:
        networks: the backbone of each member, or one that all share.
        heads: features -> outputs, of each member.
        probabilities: the layer that turns outputs into probabilities, with the names of the classes.
    """

    def __init__(
        self,
        networks: Sequence[keras.Model],
        heads: Sequence[keras.Model],
        probabilities: Probabilities | Values,
        **options: Any,
    ) -> None:
        super().__init__(**{**options, "dtype": "float32"})
        self.networks, self.heads, self.probabilities = list(networks), list(heads), probabilities

    def build(self, shape: Any) -> None:
        """Does nothing: the members are built."""

    def call(self, values: Any) -> Any:
        """Returns the mean of the probabilities."""
        features = [network(values, training=False) for network in self.networks]
        shared = features * len(self.heads) if len(features) == 1 else features
        pairs = zip(self.heads, shared, strict=True)
        # The function of the layer, not the layer: a file of Keras then needs no class of tfpipe.
        found = [self.probabilities.call(head(one, training=False)) for head, one in pairs]
        return ops.mean(ops.stack(found), axis=0)  # not a chain of sums, which would order layers by their place in it

    def compute_output_spec(self, values: Any) -> keras.KerasTensor:
        """Returns the shape and dtype of the result."""
        return keras.KerasTensor((values.shape[0], len(self.probabilities.class_names)), "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer, the architecture of all members included."""
        config = super().get_config()
        for name in ("networks", "heads"):
            config[name] = [keras.saving.serialize_keras_object(one) for one in getattr(self, name)]
        return {**config, "probabilities": keras.saving.serialize_keras_object(self.probabilities)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Ensemble:
        """Returns the layer that `get_config` described."""
        parts = {name: config.pop(name) for name in ("networks", "heads", "probabilities")}
        restored = {name: keras.saving.deserialize_keras_object(value) for name, value in parts.items()}
        return cls(**restored, **config)


def average(models: Sequence[keras.Model]) -> keras.Model:
    """Returns a classifier whose probabilities are the mean of those of classifiers of `tfpipe.train`.

    What members have fitted for themselves, as thresholds of classes in an order, is in their heads.

    Raises:
        ValueError: they differ in classes, size of the images or preprocessing.
    """
    first = models[0]
    if any(_facts(model) != _facts(first) for model in models):
        raise ValueError("classifiers that are averaged must have the same classes, image size and preprocessing")
    networks = [_trunk(model).network for model in models]
    if len({hash_network(network) for network in networks}) == 1:
        networks = networks[:1]
    named = [keras.Model(one.inputs[0], one.outputs[0], name=f"backbone_{index}") for index, one in enumerate(networks)]
    heads = [_head(model, f"head_{index}") for index, model in enumerate(models)]
    preprocessing, last = first.get_layer("preprocessing"), last_of(first)
    own = _copy(last, **last.without_fit) if _has_fit(last) else _copy(last)
    ensemble = Ensemble(named, heads, own, name="ensemble")
    images = keras.Input(first.input_shape[1:], dtype="uint8", name="image")
    mean = ensemble(_copy(preprocessing)(images))
    return keras.Model(images, _copy(last, **last.without_fit)(mean), name="classifier")


def _facts(model: keras.Model) -> tuple[Any, ...]:
    configs = [layer.get_config() for layer in (model.get_layer("preprocessing"), last_of(model))]
    fitted = {"thresholds", "means", "deviations"}
    return model.input_shape, *({name: one[name] for name in one if name not in fitted} for one in configs)


def _has_fit(last: Probabilities | Values) -> bool:
    return isinstance(last, Values) or bool(last.thresholds)


def _copy(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    return type(layer).from_config({**layer.get_config(), **changes})


def _trunk(model: keras.Model) -> Trunk:
    return next(layer for layer in model.layers if isinstance(layer, Trunk))


def _head(model: keras.Model, name: str) -> keras.Model:
    first, last = (model.layers.index(layer) for layer in (_trunk(model), last_of(model)))
    values = features = keras.Input(model.get_layer("pooling").input.shape[1:])
    for layer in model.layers[first + 1 : last]:
        values = layer(values)
    if _has_fit(ends := last_of(model)):
        values = ends.call(values)
    return keras.Model(features, values, name=name)
