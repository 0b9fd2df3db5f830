"""The ways of transfer: which phases a mode has, what each trains, and on what.

    for phase in Phases(recipe, networks, train, val, ...).of_mode():
        ...  # train it: what comes next depends on it

Where something is frozen, its features in training mode are compared with those in inference mode
before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.files import read_json, write_json
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import exactly
from tfpipe.models import features
from tfpipe.models.features import Features
from tfpipe.models.split_images import SplitImages
from tfpipe.networks import arithmetic
from tfpipe.networks.heads import Pooling
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.records import class_weights
from tfpipe.records.run_folders import HEAD_NAME, state_file
from tfpipe.training import curves, regression
from tfpipe.training.batches import Batches, FeatureBatches, ImageBatches
from tfpipe.training.loop import BEFORE
from tfpipe.training.networks import Networks
from tfpipe.training.recipes import Recipe
from tfpipe.training.regression import STRENGTHS, Found
from tfpipe.training.schedules import Constant, EarlyStopping, Plateau, Schedule, WarmupCosine
from tfpipe.training.steps import Phase, count_workers

_LOWEST_RATE = 0.01  # of the peak: plateau's floor


@dataclass(frozen=True)
class Phases:
    """What phases are made from.

    Attributes:
        recipe: a complete one.
        networks: the layers.
        train: images to train on.
        val: images to validate on.
        folder: of the run.
        cache: folder for features.
        strategy: of the devices.
        progress: show bars.
        report: takes lines that tell what is done and why.
        first_steps: where the course of the learning rate begins anew, of phases of a run that was
            trained longer.
        fits: compute a batch in parts where it does not fit into memory.
    """

    recipe: Recipe
    networks: Networks
    train: SplitImages
    val: SplitImages
    folder: Path
    cache: Path
    strategy: tf.distribute.Strategy
    progress: bool
    report: Callable[[str], None]
    first_steps: Mapping[str, int] = field(default_factory=dict)
    fits: bool = False

    def of_mode(self) -> Iterator[Phase]:
        """Yields the phases of the recipe's mode; each is to be trained before the next is asked for."""
        mode = self.recipe.mode
        if mode == "frozen":
            yield self._frozen()
        elif mode in ("scratch", "full"):
            yield self._all()
        else:
            yield self._regression() if self.recipe.solver == "regression" else self._head()
        if mode == "finetune":
            yield from self._finetuning()

    def _finetuning(self) -> Iterator[Phase]:
        """Unfreezes what the recipe says, then, if it says so, one block more as long as that gains (Howard, Ruder 2018)."""
        blocks = list(self.networks.backbone.blocks)
        phase = self._finetune("finetune")
        yield phase
        for depth in range(2, len(blocks) + 1) if self.recipe.deepen else ():
            failed, perfect = phase.stopping.best_epoch == BEFORE, phase.stopping.best == 1.0
            if failed or perfect:
                why = f"{phase.name} did not improve validation" if failed else "every validation image is right"
                self.report(f"{blocks[-depth]} and what is below it stay frozen: {why}")
                return
            self.networks.unfreeze(blocks[-depth:])
            phase = self._finetune(f"finetune_{blocks[-depth]}")
            yield phase

    def schedule(self, name: str, rate: float, num_steps: int) -> Schedule:
        """Returns the course of a phase's learning rate with a peak of `rate`."""
        return make_schedule(self.recipe, name, rate, num_steps, self.first_steps.get(name, 0))

    def _all(self) -> Phase:
        return self._phase(self.recipe.mode, self.networks.all_trained(), self._images(), backbone=True)

    def _frozen(self) -> Phase:
        network = self.networks.frozen()
        self._check(self.networks.backbone.network, network, None)
        return self._phase("head", network, self._images(), backbone=False)

    def _head(self) -> Phase:
        batches = self._features(self.networks.backbone.network)
        self._check(self.networks.backbone.network, self.networks.frozen(), batches)
        return self._phase("head", self.networks.on_features(), batches, backbone=False)

    def _regression(self) -> Phase:
        """Returns a phase of no step: its head has been chosen among logistic regressions."""
        batches = self._features(self.networks.backbone.network)
        self._check(self.networks.backbone.network, self.networks.frozen(), batches)
        path, network = self.folder / HEAD_NAME, self.networks.on_features()
        if state_file(self.folder, "head").exists():  # a run that goes on: the state has the weights
            if path.exists():
                self.networks.choose_pooling(read_json(path)["best"]["pooling"])
            return self._phase("head", self.networks.on_features(), batches, backbone=False)
        path.unlink(missing_ok=True)  # of a first try, maybe with other options
        found = self._search(batches)
        if self.networks.head_from is not None and (loss := _loss(network, batches)) <= found.best.val_loss:
            self.report(f"head: the weights that it began with stay: their validation loss is {loss:.4f}")
            return self._phase("head", network, batches, backbone=False)
        write_json(path, found.facts())
        curves.draw_candidates(found.candidates, found.best, path.with_suffix(".png"))
        self.networks.choose_pooling(found.best.pooling)
        network = self.networks.on_features()
        self.networks.head[-1].set_weights([found.kernel, found.bias])
        return self._phase("head", network, batches, backbone=False)

    def _search(self, batches: FeatureBatches) -> Found:
        pooling = self.recipe.pooling
        given: tuple[Pooling, ...] = get_args(Pooling) if pooling is None else (pooling,)
        labels = self.train.labels
        weight_of = self._class_weights(always=self.recipe.balanced)
        weights = None if weight_of is None else weight_of[labels]
        train = regression.Rows(batches.views, self.train.positions, labels, weights)
        val = regression.Rows([batches.val_features], self.val.positions, self.val.labels)
        poolings = regression.fitting(train, given)
        if len(poolings) < len(given):
            why = "maps of one place have one pooling" if len(poolings) == 1 else "its rows would not fit into memory"
            self.report(f"head: not tried is {', '.join(given[len(poolings) :])} pooling: {why}")
        with ProgressBar("head", len(poolings) * len(STRENGTHS), unit="regressions", enabled=self.progress) as bar:
            found = regression.search(train, val, poolings, lambda _: bar.add(1))
        self.report(f"head: {found}")
        return found

    def _finetune(self, name: str) -> Phase:
        networks, network = self.networks, self.networks.partly_trained()
        if networks.front is None:
            self.report("finetune: no single tensor separates what stays frozen; all of it is computed in each step")
            return self._phase(name, network, self._images(), backbone=True)
        cached = self._features(networks.front) if self._caches_prefix(networks.front) else None
        self._check(networks.front, network, cached)
        if cached is None:
            return self._phase(name, network, self._images(), backbone=True)
        return self._phase(name, networks.partly_trained_on_features(), cached, backbone=True)

    def _caches_prefix(self, front: keras.Model) -> bool:
        """Returns `caches_prefix`, and says so."""
        views, epochs = self.recipe.views or 1, self.recipe.finetune_epochs or 1
        caches = caches_prefix(self.recipe)
        gigabytes = views * features.bytes_per_image(front) * self.train.num_records / 1e9
        how = f"computed once ({gigabytes:.2f} GB)" if caches else "computed in each step"
        self.report(f"finetune: the frozen part is {how}: {exactly(views, 'pass', 'passes')} against {epochs}")
        return caches

    def _images(self) -> ImageBatches:
        return ImageBatches(**self._shared())

    def _features(self, network: keras.Model) -> FeatureBatches:
        def extract(images: SplitImages, view: int | None) -> Features:
            preprocessing = self.networks.preprocessing
            return features.extract(self.cache, network, preprocessing, images, view=view, progress=self.progress)

        augmented = self.train.augmentation != Augmentation()
        views = [extract(self.train, view if augmented else None) for view in range(self.recipe.views or 1)]
        return FeatureBatches(views=views, val_features=extract(self.val, None), **self._shared())

    def _check(self, frozen: keras.Model, network: keras.Model, batches: FeatureBatches | None) -> None:
        """Compares what the frozen part of `network` gives in training with the cache, or with inference if there is none."""
        view = 0 if batches is not None and self.train.augmentation != Augmentation() else None
        images = features.sample(self.train, view)
        if batches is None:
            expected = features.computation(frozen, self.networks.preprocessing, self.train.image_size)(images)
        else:
            expected = batches.views[0].rows(np.arange(len(images)))
        tapped = keras.Model(network.inputs, network.get_layer("frozen").output)
        difference = features.check_frozen(expected, images, lambda batch: tapped(batch, training=True))
        self.report(
            f"frozen layers in training equal {'inference' if batches is None else 'the cache'} within {difference:.1g}"
        )

    def _phase(self, name: str, network: keras.Sequential, batches: Batches, *, backbone: bool) -> Phase:
        recipe = self.recipe
        tuned, epochs = is_tuning(name), epochs_of(recipe, name)
        rate = recipe.finetune_learning_rate if tuned else recipe.learning_rate
        return Phase(
            name=name,
            network=network,
            groups=self.networks.groups(backbone=backbone),
            batches=batches,
            epochs=epochs,
            schedule=self.schedule(name, 1e-3 if isinstance(rate, str) or rate is None else rate, batches.num_steps),
            stopping=EarlyStopping(recipe.patience or epochs or 1),
            label_smoothing=recipe.label_smoothing,
            class_weights=self._class_weights(),
            ema=recipe.ema,
            continues=not epochs or tuned or self.networks.head_from is not None,
            tf32=self.networks.precision == "tf32",
            accumulate=recipe.accumulate or 1,
            fits=self.fits,
        )

    def _class_weights(self, *, always: bool = False) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        if not (self.recipe.class_weights or always):
            return None
        found = class_weights.class_weights(self.train.directory, self.train.split)
        return np.array([found[label] for label in range(self._num_classes)])

    @property
    def _num_classes(self) -> int:
        return len(self.train.manifest.class_names)

    def _shared(self) -> dict[str, Any]:
        """Returns what both kinds of batches are made of, for this worker."""
        replicas, num_workers = self.strategy.num_replicas_in_sync, count_workers(self.strategy)
        batch_size = int(self.recipe.batch_size)
        if batch_size % replicas:
            raise ValueError(f"batch_size={batch_size} cannot be shared by {exactly(replicas, 'replica')}")
        resolver = self.strategy.cluster_resolver
        index = resolver.task_id if resolver is not None and resolver.task_id is not None else 0
        return {
            "train": self.train,
            "val": self.val,
            "batch_size": batch_size // num_workers,
            "num_classes": self._num_classes,
            "reader": (index, num_workers),
            "equal": replicas > 1,
        }


@arithmetic.exact()
def _loss(network: keras.Model, batches: FeatureBatches) -> float:
    """Returns the mean loss on the validation images."""
    losses = [
        tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(network(inputs, training=False), tf.float32))
        for inputs, targets, _ in batches.validation()
    ]
    return float(tf.reduce_mean(tf.concat(losses, 0)))


def names_of(mode: str) -> tuple[str, ...]:
    """Returns the names of a mode's phases, in order, without those of `deepen`, which depend on the course."""
    return {"bottleneck": ("head",), "frozen": ("head",), "finetune": ("head", "finetune")}.get(mode, (mode,))


def epochs_of(recipe: Recipe, name: str) -> int:
    """Returns how many epochs a phase has, at most; 0 for a head by regression."""
    if is_tuning(name):
        return recipe.finetune_epochs or 1
    return 0 if recipe.solver == "regression" else recipe.epochs or 1


def is_tuning(name: str) -> bool:
    """Returns whether a phase is one of fine-tuning; deeper ones are called finetune_BLOCK."""
    return name.startswith("finetune")


def caches_prefix(recipe: Recipe) -> bool:
    """Returns whether to compute the frozen part of fine-tuning once: when that is fewer passes, or as the recipe says."""
    if recipe.cache_prefix is not None:
        return recipe.cache_prefix
    return (recipe.views or 1) < (recipe.finetune_epochs or 1)


def make_schedule(recipe: Recipe, name: str, rate: float, num_steps: int, first_step: int = 0) -> Schedule:
    """Returns the course of a phase's learning rate.

    Args:
        recipe: a complete one.
        name: of the phase.
        rate: the peak.
        num_steps: of an epoch.
        first_step: from which on a cosine begins anew.
    """
    total_steps = epochs_of(recipe, name) * num_steps
    warmup = round(recipe.warmup_epochs * num_steps)
    if recipe.schedule == "cosine":
        return WarmupCosine(rate, total_steps, min(warmup, (total_steps - first_step) // 2), first_step=first_step)
    if recipe.schedule == "constant":  # as in plateau, nothing depends on the number of epochs: it can be raised
        return Constant(rate, warmup)
    patience = max(1, (recipe.patience or 1) // 2)
    return Plateau(rate, patience=patience, floor=rate * _LOWEST_RATE, warmup_steps=warmup)
