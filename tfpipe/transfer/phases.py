"""The ways of transfer: which phases a mode has, what each trains, and on what.

    for make in Phases(recipe, networks, train, val, ...).of_mode():
        phase = make()

Where something is frozen, its features in training mode are compared with those in inference mode before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.records import weights
from tfpipe.records.words import exactly
from tfpipe.transfer import features
from tfpipe.transfer.batches import Batches, FeatureBatches, PictureBatches
from tfpipe.transfer.features import Features
from tfpipe.transfer.networks import Networks
from tfpipe.transfer.pictures import Pictures
from tfpipe.transfer.recipes import Recipe
from tfpipe.transfer.schedules import EarlyStopping, Plateau, Schedule, WarmupCosine
from tfpipe.transfer.training import Phase, count_workers

_LOWEST_RATE = 0.01  # of the peak: plateau's floor


@dataclass(frozen=True)
class Phases:
    """What phases are made from.

    Attributes:
        recipe: a complete one.
        networks: the layers.
        train: pictures to train on.
        val: pictures to validate on.
        cache: folder for features.
        strategy: of the devices.
        progress: show bars.
        report: takes lines that tell what is done and why.
    """

    recipe: Recipe
    networks: Networks
    train: Pictures
    val: Pictures
    cache: Path
    strategy: tf.distribute.Strategy
    progress: bool
    report: Callable[[str], None]

    def of_mode(self) -> list[Callable[[], Phase]]:
        """Returns what makes each phase of the recipe's mode, in order; each is called when the one before has ended."""
        return {
            "scratch": [self._all],
            "full": [self._all],
            "frozen": [self._frozen],
            "bottleneck": [self._head],
            "finetune": [self._head, self._finetune],
        }[self.recipe.mode]

    def schedule(self, rate: float, epochs: int, num_steps: int) -> Schedule:
        """Returns the course of the learning rate with a peak of `rate`."""
        warmup = min(round(self.recipe.warmup_epochs * num_steps), epochs * num_steps // 2)
        if self.recipe.schedule == "cosine":
            return WarmupCosine(rate, epochs * num_steps, warmup)
        patience = max(1, (self.recipe.patience or 1) // 2)
        return Plateau(rate, patience=patience, floor=rate * _LOWEST_RATE, warmup_steps=warmup)

    def _all(self) -> Phase:
        return self._phase(self.recipe.mode, self.networks.all_trained(), self._pictures(), backbone=True)

    def _frozen(self) -> Phase:
        network = self.networks.frozen()
        self._check(self.networks.backbone.network, network, None)
        return self._phase("head", network, self._pictures(), backbone=False)

    def _head(self) -> Phase:
        batches = self._features(self.networks.backbone.network)
        self._check(self.networks.backbone.network, self.networks.frozen(), batches)
        return self._phase("head", self.networks.on_features(), batches, backbone=False)

    def _finetune(self) -> Phase:
        networks, network = self.networks, self.networks.partly_trained()
        if networks.front is None:
            self.report("finetune: no single tensor separates what stays frozen; all of it is computed in each step")
            return self._phase("finetune", network, self._pictures(), backbone=True)
        cached = self._features(networks.front) if self._caches_prefix(networks.front) else None
        self._check(networks.front, network, cached)
        if cached is None:
            return self._phase("finetune", network, self._pictures(), backbone=True)
        return self._phase("finetune", networks.partly_trained_on_features(), cached, backbone=True)

    def _caches_prefix(self, front: keras.Model) -> bool:
        """Returns whether to compute the frozen part once: when that is fewer passes than epochs, or as the recipe says."""
        views, epochs = self.recipe.views or 1, self.recipe.finetune_epochs or 1
        caches = views < epochs if self.recipe.cache_prefix is None else self.recipe.cache_prefix
        gigabytes = views * features.bytes_per_picture(front) * self.train.num_records / 1e9
        how = f"computed once ({gigabytes:.2f} GB)" if caches else "computed in each step"
        self.report(f"finetune: the frozen part is {how}: {exactly(views, 'pass', 'passes')} against {epochs}")
        return caches

    def _pictures(self) -> PictureBatches:
        return PictureBatches(**self._shared())

    def _features(self, network: keras.Model) -> FeatureBatches:
        def extract(pictures: Pictures, view: int | None) -> Features:
            preprocessing = self.networks.preprocessing
            return features.extract(self.cache, network, preprocessing, pictures, view=view, progress=self.progress)

        augmented = self.train.augmentation != Augmentation()
        views = [extract(self.train, view if augmented else None) for view in range(self.recipe.views or 1)]
        return FeatureBatches(views=views, val_features=extract(self.val, None), **self._shared())

    def _check(self, frozen: keras.Model, network: keras.Model, batches: FeatureBatches | None) -> None:
        """Compares what the frozen part of `network` gives in training with the cache, or with inference if there is none."""
        view = 0 if batches is not None and self.train.augmentation != Augmentation() else None
        images = features.sample(self.train, view)
        if batches is None:
            expected = features.computation(frozen, self.networks.preprocessing, self.train.image_size)(images).numpy()
        else:
            expected = batches.views[0].rows(np.arange(len(images)))
        tapped = keras.Model(network.inputs, network.get_layer("frozen").output)
        difference = features.check_frozen(expected, images, lambda pictures: tapped(pictures, training=True))
        self.report(
            f"frozen layers in training equal {'inference' if batches is None else 'the cache'} within {difference:.1g}"
        )

    def _phase(self, name: str, network: keras.Sequential, batches: Batches, *, backbone: bool) -> Phase:
        recipe = self.recipe
        tuned = name == "finetune"
        epochs = (recipe.finetune_epochs if tuned else recipe.epochs) or 1
        rate = recipe.finetune_learning_rate if tuned else recipe.learning_rate
        return Phase(
            name=name,
            network=network,
            groups=self.networks.groups(backbone=backbone),
            batches=batches,
            epochs=epochs,
            schedule=self.schedule(1e-3 if isinstance(rate, str) or rate is None else rate, epochs, batches.num_steps),
            stopping=EarlyStopping(recipe.patience or epochs),
            label_smoothing=recipe.label_smoothing,
            class_weights=self._class_weights(),
            ema=recipe.ema,
            continues=tuned,
        )

    def _class_weights(self) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        if not self.recipe.class_weights:
            return None
        found = weights.class_weights(self.train.directory, self.train.split)
        return np.array([found[label] for label in range(self._num_classes)])

    @property
    def _num_classes(self) -> int:
        return len(self.train.manifest.class_names)

    def _shared(self) -> dict[str, Any]:
        """Returns what both kinds of batches are made of, for this worker."""
        replicas, num_workers = self.strategy.num_replicas_in_sync, count_workers(self.strategy)
        if self.recipe.batch_size % replicas:
            raise ValueError(f"batch_size={self.recipe.batch_size} cannot be shared by {exactly(replicas, 'replica')}")
        resolver = self.strategy.cluster_resolver
        index = resolver.task_id if resolver is not None and resolver.task_id is not None else 0
        return {
            "train": self.train,
            "val": self.val,
            "batch_size": self.recipe.batch_size // num_workers,
            "num_classes": self._num_classes,
            "reader": (index, num_workers),
            "equal": replicas > 1,
        }
