"""The modes of training: which phases each has, what each phase trains, and on which data.

    for phase in Phases(recipe, networks, train, val, ...).of_mode():
        ...  # train it: the next one depends on it

Where layers are frozen, their features in training mode are compared with those in inference mode
before the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.files import read_json, write_json
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import exactly
from tfpipe.models import features
from tfpipe.models.features import Features, JoinedFeatures
from tfpipe.models.split_images import NOT_AUGMENTED, SplitImages
from tfpipe.networks import arithmetic, objectives
from tfpipe.networks.heads import Pooling
from tfpipe.networks.objectives import Objective
from tfpipe.pipeline.loader import targets_of
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import class_weights
from tfpipe.records.run_folders import HEAD_NAME, state_file
from tfpipe.training import regression
from tfpipe.training.batches import Batches, FeatureBatches, ImageBatches
from tfpipe.training.cluster import Workers
from tfpipe.training.logs import curves
from tfpipe.training.loop import BEFORE
from tfpipe.training.networks import Networks
from tfpipe.training.recipes import Recipe
from tfpipe.training.schedules import EarlyStopping, LearningRate
from tfpipe.training.steps import Phase


@dataclass(frozen=True)
class Phases:
    """Makes the phases of a run."""

    recipe: Recipe  # a complete one
    networks: Networks
    train: SplitImages
    val: SplitImages
    folder: Path  # of the run
    cache: Path  # folder for features
    strategy: tf.distribute.Strategy
    workers: Workers
    progress: bool  # show bars
    report: Callable[[str], None]  # called with lines about what is done and why
    first_steps: Mapping[str, int]  # where the schedule starts over, by phase, in a run that is trained longer
    fits: bool  # compute a batch in parts where it does not fit into memory
    _samples: dict[int | None, tf.Tensor] = dataclasses.field(default_factory=dict)  # by view, see `_check`

    def of_mode(self) -> Iterator[Phase]:
        """Yields the phases of the mode; each must be trained before the next is requested."""
        mode, networks = self.recipe.mode, self.networks
        if mode in ("scratch", "full"):
            yield self._phase(mode, networks.all_trained(), self._images(), backbone=True)
        elif mode == "frozen":
            network = networks.frozen()
            self._check(networks.backbone.network, network, None)
            yield self._phase("head", network, self._images(), backbone=False)
        else:
            batches = self._features(networks.backbone.network)
            self._check(networks.backbone.network, networks.frozen(), batches)
            if self.recipe.solver == "regression":
                self._fit_head(batches)
            yield self._phase("head", networks.on_features(), batches, backbone=False)
        if mode == "finetune":
            yield from self._finetuning()

    def _finetuning(self) -> Iterator[Phase]:
        """Unfreezes the recipe's blocks, then one more while that gains (Howard, Ruder 2018)."""
        blocks = list(self.networks.backbone.blocks)
        phase = self._finetune("finetune")
        yield phase
        for depth in range(2, len(blocks) + 1) if self.recipe.deepen else ():
            failed, perfect = phase.stopping.best_epoch == BEFORE, phase.stopping.best == 1.0
            if failed or perfect:
                why = f"{phase.name} did not improve validation" if failed else "every validation image is right"
                self.report(f"{blocks[-depth]} and the blocks below it stay frozen: {why}")
                return
            self.networks.unfreeze(blocks[-depth:])
            phase = self._finetune(f"finetune_{blocks[-depth]}")
            yield phase

    def _fit_head(self, batches: FeatureBatches) -> None:
        """Gives the head the weights of the best logistic regression; its phase has no step."""
        networks, path = self.networks, self.folder / HEAD_NAME
        if state_file(self.folder, "head").exists():  # a run that goes on: the state has the weights
            if path.exists():
                networks.choose_pooling(read_json(path)["best"]["pooling"])
            return
        path.unlink(missing_ok=True)  # of a first try, maybe with other options
        network = networks.on_features()  # builds the head

        def choose() -> regression.Search | None:
            found = self._search(batches)
            if (
                networks.head_from is not None
                and (loss := self._loss(network, dataclasses.replace(batches, reader=(0, 1)))) <= found.best.val_loss
            ):
                self.report(f"head: the weights that it began with stay: their validation loss is {loss:.4f}")
                return None
            write_json(path, found.facts())
            how = regression.KINDS[networks.task], self._objective.score
            curves.draw_candidates(found.candidates, found.best, path.with_suffix(".png"), *how)
            return found

        workers = self.workers
        found = workers.agree(lambda: choose() if workers.is_chief else None)
        pooling = workers.from_chief(None if found is None else found.best.pooling)
        if pooling is None:
            return
        workers.share(self.folder, [Path(HEAD_NAME)])
        networks.choose_pooling(pooling)
        networks.on_features()
        values = [variable.numpy() for variable in networks.head_weights] if found is None else [found.kernel, found.bias]
        for variable, value in zip(networks.head_weights, values, strict=True):
            variable.assign(workers.array_of_chief(value))

    def _search(self, batches: FeatureBatches) -> regression.Search:
        requested: tuple[Pooling, ...] = (self.recipe.pooling,) if self.recipe.pooling else get_args(Pooling)
        labels, task = self.train.labels, self.networks.task
        weight_of = self._class_weights(always=self.recipe.balanced)
        if self._table is None:
            weights = None if weight_of is None else weight_of[labels]
            train = regression.Rows(batches.views, self.train.positions, labels, weights, task)
            val = regression.Rows([batches.val_features], self.val.positions, self.val.labels, task=task)
        else:  # weights are those of positive labels
            table = self._table if self.networks.scale is None else self.networks.scale.standardised(self._table)
            of_task: dict[str, Any] = {"weights": weight_of, "task": task, "loss": self.recipe.loss}
            train = regression.Rows(batches.views, self.train.positions, table[labels], **of_task)
            val = regression.Rows([batches.val_features], self.val.positions, table[self.val.labels], **of_task)
        poolings = regression.fitting(train, requested)
        if len(poolings) < len(requested):
            why = "maps of one place have one pooling" if len(poolings) == 1 else "its rows would not fit into memory"
            self.report(f"head: not tried is {', '.join(requested[len(poolings) :])} pooling: {why}")
        total = len(poolings) * len(regression.STRENGTHS)
        with ProgressBar("head", total, unit="regressions", enabled=self.progress) as bar:
            found = regression.search(train, val, poolings, lambda _: bar.add(1))
        self.report(f"head: {found}")
        return found

    def _finetune(self, name: str) -> Phase:
        networks, network = self.networks, self.networks.partly_trained()
        cached = None
        if networks.front is None:
            self.report("finetune: no single tensor separates the frozen layers; all of them are computed in each step")
        else:
            views, epochs = self.recipe.views or 1, self.recipe.finetune_epochs or 1
            caches = caches_prefix(self.recipe)
            gigabytes = views * features.bytes_per_image(networks.front) * self.train.num_records / 1e9
            how = f"computed once ({gigabytes:.2f} GB)" if caches else "computed in each step"
            self.report(f"finetune: the frozen part is {how}: {exactly(views, 'pass', 'passes')} against {epochs}")
            cached = self._features(networks.front) if caches else None
            self._check(networks.front, network, cached)
        if cached is None:
            return self._phase(name, network, self._images(), backbone=True)
        return self._phase(name, networks.partly_trained_on_features(), cached, backbone=True)

    def _images(self) -> ImageBatches:
        return ImageBatches(**self._shared())

    def _features(self, network: keras.Model) -> FeatureBatches:
        def extract(images: SplitImages, view: int | None) -> Features | JoinedFeatures:
            preprocessing = self.networks.preprocessing
            parts = features.Parts(self.workers.index, self.workers.count, self.workers.agree, self.workers.from_chief)
            return features.extract(self.cache, network, preprocessing, images, view=view, progress=self.progress, parts=parts)

        views = [extract(self.train, view if self._is_augmented else None) for view in range(self.recipe.views or 1)]
        return FeatureBatches(views=views, val_features=extract(self.val, None), **self._shared())

    @property
    def _is_augmented(self) -> bool:
        return self.train.augmentation != NOT_AUGMENTED

    def _check(self, frozen: keras.Model, network: keras.Model, batches: FeatureBatches | None) -> None:
        """Compares the frozen part of `network` in training with the cache, else with inference."""
        view = 0 if batches is not None and self._is_augmented else None
        if view not in self._samples:  # the same for each phase
            self._samples[view] = features.sample(self.train, view)
        images = self._samples[view]
        if batches is None:
            expected = features.computation(frozen, self.networks.preprocessing, self.train.image_size)(images)
        else:
            expected = batches.views[0].rows(np.arange(len(images)))
        tapped = keras.Model(network.inputs, network.get_layer("frozen").output)
        difference = features.check_frozen(expected, images, lambda batch: tapped(batch, training=True))
        other = "inference" if batches is None else "the cache"
        self.report(f"frozen layers in training equal {other} within {difference:.1g}")

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
            schedule=self.schedule(name, rate if isinstance(rate, float) else 1e-3, batches.num_steps),
            stopping=EarlyStopping(recipe.patience or epochs or 1, by_loss=self._objective.by_loss),
            label_smoothing=recipe.label_smoothing,
            class_weights=self._class_weights(),
            objective=self._objective,
            ema=recipe.ema,
            continues=not epochs or tuned or self.networks.head_from is not None,
            tf32=self.networks.precision == "tf32",
            accumulate=recipe.accumulate or 1,
            fits=self.fits,
        )

    def schedule(self, name: str, rate: float, num_steps: int) -> LearningRate:
        """Returns the schedule of a phase with a peak of `rate`."""
        return make_schedule(self.recipe, name, rate, num_steps, self.first_steps.get(name, 0))

    def _class_weights(self, *, always: bool = False) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        if not (self.recipe.class_weights or always):
            return None
        found = class_weights.class_weights(self.train.directory, self.train.split)
        return np.array([found[label] for label in range(self._num_classes)])

    @arithmetic.exact()
    def _loss(self, network: keras.Model, batches: FeatureBatches) -> float:
        """Returns the mean loss on the validation images."""
        weights = self._class_weights()
        losses = [
            self._objective.validation_losses(network(inputs, training=False), targets, weights)
            for inputs, targets, _ in batches.validation()
        ]
        return float(tf.reduce_mean(tf.concat(losses, 0)))

    @property
    def _objective(self) -> Objective:
        return objectives.of_task(self.networks.task, self.recipe.loss, self.networks.scale)

    @cached_property
    def _table(self) -> np.ndarray[Any, Any] | None:
        """The targets of each label, where an image has several labels, or numbers."""
        found = RecordReader(self.train.directory, self.train.split).label_rows
        return None if found is None else targets_of(found)

    @property
    def _num_classes(self) -> int:
        return len(self.train.manifest.class_names)

    def _shared(self) -> dict[str, Any]:
        """Returns the arguments of both kinds of batches, for this worker."""
        replicas, count = self.strategy.num_replicas_in_sync, self.workers.count
        batch_size = int(self.recipe.batch_size)
        if batch_size % replicas:
            raise ValueError(f"batch_size={batch_size} cannot be shared by {exactly(replicas, 'replica')}")
        shared = {"train": self.train, "val": self.val, "batch_size": batch_size // count}
        reader = (self.workers.index, count)
        return {**shared, "num_classes": self._num_classes, "table": self._table, "reader": reader, "equal": replicas > 1}


def names_of(mode: str) -> tuple[str, ...]:
    """Returns the names of a mode's phases, in order, without those that `deepen` adds."""
    return {"bottleneck": ("head",), "frozen": ("head",), "finetune": ("head", "finetune")}.get(mode, (mode,))


def epochs_of(recipe: Recipe, name: str) -> int:
    """Returns the largest number of epochs of a phase; 0 for a head by regression."""
    if is_tuning(name):
        return recipe.finetune_epochs or 1
    return 0 if recipe.solver == "regression" else recipe.epochs or 1


def is_tuning(name: str) -> bool:
    """Returns whether a phase is one of fine-tuning; deeper ones are called finetune_BLOCK."""
    return name.startswith("finetune")


def caches_prefix(recipe: Recipe) -> bool:
    """Returns whether to compute the frozen part once: by default if that is fewer passes."""
    fewer = (recipe.views or 1) < (recipe.finetune_epochs or 1)
    return fewer if recipe.cache_prefix is None else recipe.cache_prefix


def make_schedule(recipe: Recipe, name: str, rate: float, num_steps: int, first_step: int = 0) -> LearningRate:
    """Returns the schedule of a phase with a peak of `rate` and epochs of `num_steps`."""
    warmup = round(recipe.warmup_epochs * num_steps)
    if recipe.schedule != "cosine":  # of the others nothing depends on the number of epochs: it can be raised
        patience = max(1, (recipe.patience or 1) // 2)
        return LearningRate(recipe.schedule, rate, warmup, patience=patience, floor=rate * 0.01)
    total = epochs_of(recipe, name) * num_steps
    return LearningRate("cosine", rate, min(warmup, (total - first_step) // 2), total, first_step)
