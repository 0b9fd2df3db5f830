"""The networks of a run: one set of layers, assembled for each phase and for the result.

    networks = Networks(recipe, class_names, precision, strategy)
    networks.partly_trained()               # uint8 [B, H, W, 3] -> logits
    networks.classifier()                   # the result, in float32

Layers are shared: a phase goes on with the weights of the one before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common import seeds
from tfpipe.models.classifiers import Classifier
from tfpipe.networks import arithmetic, backbones, heads, layers
from tfpipe.networks.heads import Pooling
from tfpipe.networks.links import PACE, FittedLinks, free_of
from tfpipe.networks.objectives import Scale
from tfpipe.networks.submodels import cut, find_layers
from tfpipe.records.manifest import ORDINAL, SINGLE
from tfpipe.records.samples import USUAL, Samples
from tfpipe.training.recipes import Recipe
from tfpipe.training.steps import RateGroup


@dataclass(frozen=True)
class BlockCount:
    """A line of the table of parameters."""

    block: str
    num_layers: int
    num_trained: int
    num_frozen: int


class Networks:
    """The layers of a run.

    Attributes:
        recipe: a complete one, with the chosen pooling.
        precision: of training, one of `arithmetic.PRECISIONS`.
        backbone: up to the feature layer; `preprocessing` comes before, `head` after it.
        front: the part that fine-tuning does not train, or None where nothing can be cut off.
        back: the rest.
        scale: of the targets of a regression, else None.
        head_from: hash of the model that the head's first weights are of, or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        class_names: Sequence[str],
        precision: str,
        strategy: tf.distribute.Strategy,
        samples: Samples = USUAL,
        task: str = SINGLE,
        scale: Scale | None = None,
        units: Sequence[str] = (),
    ) -> None:
        self.task, self.scale, self._units = task, scale, units
        self.recipe, self.precision, self._class_names, self._strategy = recipe, precision, class_names, strategy
        self._pretrained = recipe.mode != "scratch" and recipe.weights != "none"
        weights = "none" if recipe.mode == "scratch" or recipe.weights == "own" else recipe.weights
        if recipe.image_size is None:
            raise ValueError("the recipe is not complete: image_size is None")
        # New weights and the dropout of backbones draw from Keras' seed; the head's layers have
        # their own.
        keras.utils.set_random_seed(seeds.derive(recipe.seed, "weights") >> 32)
        given: dict[str, Any] = {"image_size": recipe.image_size, "preprocessing": recipe.preprocessing, "grey": recipe.grey}
        with strategy.scope(), heads.dtype_policy(arithmetic.policy(precision)):
            self.backbone = backbones.build(recipe.backbone, weights=weights, **given)
            if recipe.feature_layer is not None:
                self.backbone = backbones.truncate(self.backbone, recipe.feature_layer)
            mode = self.backbone.preprocessing
            self.preprocessing = layers.Preprocessing(mode, recipe.resize, samples, name="preprocessing")
        self.choose_pooling(recipe.head.pooling)
        self.head_from: str | None = None
        self.unfrozen: set[str] = set()
        self.front: keras.Model | None = None
        self.back = self.backbone.network
        if recipe.mode == "finetune":
            self.unfreeze(recipe.unfreeze or (list(self.backbone.blocks)[-1],))

    def choose_pooling(self, pooling: Pooling) -> None:
        """Makes a new head, on another pooling."""
        self.recipe = dataclasses.replace(self.recipe, pooling=pooling)
        with self._strategy.scope():
            self.head = self._new_head()
            if self.task == ORDINAL:
                self.head.append(FittedLinks(len(self._class_names), name="links"))

    def _new_head(self) -> list[keras.layers.Layer]:
        in_order = self.task == ORDINAL
        return self.recipe.head.layers(1 if in_order else len(self._class_names), self.recipe.seed, use_bias=not in_order)

    @property
    def head_weights(self) -> list[keras.Variable]:
        """The weights of the head; without hidden layers, those that a regression fits."""
        return [variable for layer in self.head for variable in layer.weights]

    def _last(self) -> keras.layers.Layer:
        """Returns the last layer of the result."""
        names, links = self._class_names, self.head[-1]
        if self.scale is not None:
            return layers.Values(names, self._units, *self.scale, name="values")
        thresholds = links.thresholds if isinstance(links, FittedLinks) else ()
        return layers.Probabilities(names, task=self.task, thresholds=thresholds, name="probabilities")

    def unfreeze(self, words: Sequence[str]) -> None:
        """Sets the blocks or layers that fine-tuning trains, with all that follow."""
        boundary, self.unfrozen = backbones.find_trainable(self.backbone, words)
        self.front, self.back = None, self.backbone.network
        if boundary is not None:
            self.front, self.back = cut(self.backbone.network, boundary)
        names = [name for name, layer in find_layers(self.back).items() if not isinstance(layer, keras.layers.InputLayer)]
        beside = [name for name in names if name not in self.unfrozen]
        if self.recipe.train_batch_norm and beside:  # the frozen ones would have their Dropout on
            raise ValueError(
                f"train_batch_norm: unfreeze={','.join(self.recipe.unfreeze)} leaves layers frozen beside those that are"
                f" trained ({', '.join(beside[:3])}); unfreeze a whole block"
            )

    def take_head(self, other: Classifier) -> str:
        """Assigns another head's weights, if classes and layers match; returns what was done."""
        if other.task != self.task:
            return f"the head starts over: it is of task {other.task}"
        if other.class_names != tuple(self._class_names):
            return "the head starts over: the classes differ"
        self.on_features()  # builds the head
        names = [layer.name for layer in other.model.layers]
        theirs = other.model.layers[names.index("pooling") :]
        if _structure(theirs) != _structure(self.head):
            return "the head starts over: its layers differ"
        for layer in self.head:
            if isinstance(layer, FittedLinks):
                layer.set_weights([free_of(np.array(layers.last_of(other.model).thresholds)) / PACE])
            elif layer is self.head[-1] and self.scale is not None:
                layer.set_weights(_rescaled(other.model, self.scale))
            elif layer.weights:
                layer.set_weights(other.model.get_layer(layer.name).get_weights())
        self.head_from = other.sha256
        return "the head begins with its weights, too"

    # ---- networks, one for each way of training; each sets `trainable`, which BatchNorm reads

    def on_features(self) -> keras.Sequential:
        """Returns the head alone: features [B, h, w, D] -> logits."""
        _set_trainable(self.backbone.network, False)
        return self._sequence(self.backbone.network.outputs[0], self.head)

    def frozen(self) -> keras.Sequential:
        """Returns the whole network, its backbone frozen: uint8 [B, H, W, 3] -> logits."""
        _set_trainable(self.backbone.network, False)
        return self._on_images([layers.Trunk(self.backbone.network, True, name="frozen")])

    def all_trained(self) -> keras.Sequential:
        """Returns the whole network, all of it trained: uint8 [B, H, W, 3] -> logits."""
        _set_trainable(self.backbone.network, True)
        return self._on_images([layers.Trunk(self.backbone.network, self._is_inference, name="tuned")])

    def partly_trained(self) -> keras.Sequential:
        """Returns the whole network, the unfrozen layers trained: uint8 [B, H, W, 3] -> logits."""
        self._unfreeze()
        front = [] if self.front is None else [layers.Trunk(self.front, True, name="frozen")]
        return self._on_images([*front, layers.Trunk(self.back, self._is_inference, name="tuned")])

    def partly_trained_on_features(self) -> keras.Sequential:
        """Returns the part after `front`: its features -> logits."""
        self._unfreeze()
        if self.front is None:
            raise ValueError("nothing of the backbone stays frozen: there is no prefix to compute once")
        return self._sequence(self.front.outputs[0], [layers.Trunk(self.back, self._is_inference, name="tuned"), *self.head])

    def _unfreeze(self) -> None:
        _set_trainable(self.backbone.network, True)
        for layer in self.backbone.network.layers:
            layer.trainable = layer.name in self.unfrozen

    @property
    def _is_inference(self) -> bool:
        return not self.recipe.train_batch_norm

    def _on_images(self, trunks: Sequence[keras.layers.Layer]) -> keras.Sequential:
        images = keras.KerasTensor((None, *(self.recipe.image_size or ()), 3), "uint8")
        return self._sequence(images, [self.preprocessing, *trunks, *self.head])

    def _sequence(self, values: Any, parts: Sequence[keras.layers.Layer]) -> keras.Sequential:
        with self._strategy.scope():
            return keras.Sequential([keras.Input(values.shape[1:], dtype=values.dtype), *parts])

    # ---- trained variables and their rates

    def groups(self, *, backbone: bool) -> list[RateGroup]:
        """Returns the trained variables by rate: of the head, then each block from the top."""
        decay = self.recipe.layer_decay if self._pretrained else 1.0
        blocks = [block for _, block in reversed(self._blocks())] if backbone else []
        trained = [group for block in blocks if (group := [v for layer in block for v in layer.trainable_variables])]
        if decay == 1.0:
            trained = [[variable for group in trained for variable in group]]
        groups = [([v for layer in self.head for v in layer.trainable_variables], 1.0)]
        groups += [(group, decay**depth) for depth, group in enumerate(trained)]
        with self._strategy.scope():
            return [RateGroup(self._optimizer(), variables, multiplier) for variables, multiplier in groups if variables]

    def _blocks(self) -> list[tuple[str, list[Any]]]:
        """Returns the layers of each block, from input to output."""
        found = find_layers(self.backbone.network)
        order, all_layers = list(found), list(found.values())
        ends = [order.index(last) + 1 for last in self.backbone.blocks.values()]
        spans = zip(self.backbone.blocks, [0, *ends], ends, strict=False)
        # Not bare operations, x + y, which have no weights.
        return [
            (name, [one for one in all_layers[start:end] if isinstance(one, keras.layers.Layer)]) for name, start, end in spans
        ]

    def _optimizer(self) -> keras.optimizers.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adamw":
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=recipe.weight_decay)
        else:
            optimizer = keras.optimizers.SGD(1e-3, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay)
        if recipe.weight_decay:
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        return optimizer

    def parameters(self, trained: Sequence[keras.Variable]) -> list[BlockCount]:
        """Returns the counts of parameters of each block of the backbone, and of the head."""
        ids = {id(variable) for variable in trained}
        lines = []
        for name, block in [*self._blocks(), ("head", self.head)]:
            weights = [weight for layer in block for weight in layer.weights]
            sizes = [(id(weight) in ids, int(tf.size(weight.value))) for weight in weights]
            num_trained = sum(size for is_trained, size in sizes if is_trained)
            lines.append(BlockCount(name, len(block), num_trained, sum(size for _, size in sizes) - num_trained))
        return lines

    # ---- the result

    def classifier(self) -> keras.Model:
        """Returns a classifier with the present weights, a copy that computes in float32."""
        recipe, network = self.recipe, self.backbone.network
        with heads.dtype_policy("float32"):
            # Not rebuilt: Keras would give other names, and a function by import path may draw
            # its weights.
            clone = keras.models.clone_model(network, clone_function=_in_float32, recursive=True)
            mode, samples = self.backbone.preprocessing, self.preprocessing.samples
            preprocessing = layers.Preprocessing(mode, recipe.resize, samples, name="preprocessing")
            head = self._new_head()
            trunk = layers.Trunk(clone, True, name="trunk")
            model = heads.assemble([trunk], preprocessing, head, self._class_names, recipe.image_size or (0, 0), self._last())
        clone.set_weights(network.get_weights())
        for layer, trained in zip(head, self.head, strict=False):  # but the links
            layer.set_weights(trained.get_weights())
        return model


def _rescaled(model: keras.Model, scale: Scale) -> list[Any]:
    """Returns kernel and bias of the last layer of another regression, for targets of this scale."""
    kernel, bias = model.get_layer("logits").get_weights()
    last = layers.last_of(model)
    factors = np.array(last.deviations) / scale.deviations
    return [kernel * factors, bias * factors + (np.array(last.means) - scale.means) / scale.deviations]


def _in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    if "dtype" in config and not isinstance(layer, keras.layers.InputLayer):
        config["dtype"] = "float32"
    return type(layer).from_config(config)


def _structure(head: Sequence[keras.layers.Layer]) -> list[Any]:
    """Returns what two heads must have in common for one to take the other's weights."""
    weighted = [layer for layer in head if layer.weights and not isinstance(layer, FittedLinks)]
    return [type(head[0]), *[(layer.name, [weight.shape for weight in layer.weights]) for layer in weighted]]


def _set_trainable(network: keras.Model, value: bool) -> None:
    # A model skips an assignment of the value that it has, whatever its inner models have (Keras
    # 3.15).
    network.trainable = not value
    network.trainable = value
