"""What a training run is: the recipe, and what is chosen where it leaves a choice.

recipe, reasons = complete(Recipe(mode="auto"), num_images=1400, num_blocks=5)
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tfpipe.common import arguments
from tfpipe.common.text import exactly
from tfpipe.networks import architectures, arithmetic
from tfpipe.networks.architectures import PREPROCESSINGS
from tfpipe.networks.heads import Head, Pooling
from tfpipe.pipeline.presets import Augmentation
from tfpipe.records.samples import RESIZES

Mode = Literal["auto", "scratch", "bottleneck", "frozen", "finetune", "full"]
_CACHED = ("bottleneck", "finetune")  # modes whose head is trained on cached features
_FEW = 100  # images: fewer do not say whether fine-tuning helps
_VIEWS = ((2_000, 8), (20_000, 4), (math.inf, 2))  # (up to so many images, versions of each): a version takes a pass
_BATCH_SIZE = 32
_EPOCHS = {"bottleneck": 60, "finetune": 60, "frozen": 20, "scratch": 30, "full": 15}
# (first phase, fine-tuning) of AdamW; of SGD only those of pre-trained weights are usual: what a
# new head bears depends on the size of its features.
_RATES = {"full": 5e-5}
_SGD_RATES = {"full": 1e-4, "scratch": 1e-2}
_FINETUNE_RATES = {"adamw": 2e-5, "sgd": 1e-4}
_DEEPEN_PATIENCE = 2  # epochs of fine-tuning without a gain
# What only a head that is trained step by step knows; in a run that is nothing else, the second
# line, too.
_OF_GRADIENT = ("hidden", "dropout", "l2", "learning_rate", "epochs")
_OF_STEPS = (
    *("batch_size", "accumulate", "label_smoothing", "optimizer", "weight_decay", "momentum", "schedule", "warmup_epochs"),
    *("patience", "ema"),
)
_CHOICES = {
    "mode": get_args(Mode),
    "optimizer": ("adamw", "sgd"),
    "pooling": get_args(Pooling),
    "preprocessing": PREPROCESSINGS,
    "resize": RESIZES,
    "schedule": ("cosine", "constant", "plateau"),
    "solver": ("regression", "gradient"),
}
_WORDS = {"batch_size": "auto", "learning_rate": "find"}  # in place of a number
# Options that only some modes know.
_MODES_OF = {
    "unfreeze": ("finetune",),
    "deepen": ("finetune",),
    "solver": _CACHED,
    "cache_prefix": ("finetune",),
    "finetune_epochs": ("finetune",),
    "finetune_learning_rate": ("finetune",),
    "views": _CACHED,
    "train_batch_norm": ("scratch", "finetune", "full"),
}


@dataclass(frozen=True)
class Recipe:
    """How to train. None leaves the choice to `complete`, which says what it chose and why.

    Attributes:
        backbone: see `tfpipe.networks.backbones`: a name of its table, or
            "package.module:function".
        weights: "imagenet" (Keras' download), "none", a file, or, for a backbone by import path,
            "own": those that the function gives are pre-trained.
        preprocessing: of a backbone by import path, one of `tfpipe.networks.layers.PREPROCESSINGS`.
        grey: one channel; for `lenet` and networks by import path.
        mode: "scratch" (all weights new), "bottleneck" (features computed once, the head trained on
            them), "frozen" (the same end to end), "finetune" (bottleneck, then the last blocks at a
            lower rate), "full" (everything, lower layers slower), "auto".
        image_size: (height, width), or the side of a square.
        resize: see `tfpipe.dataset`.
        feature_layer: the backbone ends behind this layer or block; None: at its end.
        unfreeze: blocks or layers that fine-tuning trains, with all that is behind them.
        views: augmented versions of each image in the cache; 1 without augmentation.
        deepen: in fine-tuning, once the unfrozen blocks have made it better, go on with the block
            below unfrozen, too.
        cache_prefix: in fine-tuning, compute the frozen part once and train the rest on its
            features.
        augment: an `Augmentation` or the name of a preset; see `tfpipe.dataset`.
        balanced: every class equally often.
        class_weights: weigh the loss by `tfpipe.class_weights`.
        val_fraction: of the training split, held out where there is no val split: at least one of
            each class.
        seed: of everything that is drawn.
        batch_size: of all devices together. "auto": the usual one, accumulated where it does not
            fit into memory.
        accumulate: parts that each batch is computed in on every device, for the memory of one of
            them; 1 where it is None. The gradients are those of the whole batch, but BatchNorm's
            statistics those of a part.
        solver: of the head on cached features: "regression" tries logistic regressions, every
            pooling with several decays, and keeps the one that validates best (see
            `tfpipe.training.regression`); "gradient" trains it step by step.
        pooling: "average", "max" or "flatten"; None: by regression the best, else "average".
        hidden: units of the head's hidden layers.
        dropout: rate in the head.
        l2: penalty on the head's kernels.
        label_smoothing: share of each target that is spread over all classes.
        optimizer: "adamw", or "sgd" with Nesterov momentum.
        weight_decay: of kernels, per step and unit of learning rate.
        momentum: of "sgd".
        learning_rate: at its peak; "find" measures it.
        epochs: at most.
        schedule: "cosine", "constant", or "plateau" (lower when validation no longer improves).
        warmup_epochs: in which the rate rises to its peak; at most half of a phase's epochs.
        finetune_learning_rate: of the uppermost block in fine-tuning.
        finetune_epochs: at most, of fine-tuning.
        layer_decay: each block below has this times the rate of the one above, where several are
            trained.
        train_batch_norm: BatchNorm of a pre-trained backbone uses and updates the batch's
            statistics where it is trained.
        patience: epochs without a better validation accuracy after which training ends.
        ema: decay of the moving average of the weights; 0 for none.
        precision: of training: "auto", "float32", "mixed_bfloat16", or "tf32" (weights of float32,
            products of 10 bits, on GPUs that can). Features are extracted in bfloat16 or float32.
        deterministic: use TensorFlow's deterministic kernels: equal runs give equal bits. They stay
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
    batch_size: int | Literal["auto"] = _BATCH_SIZE
    accumulate: int | None = None  # not 1: what a run that was begun before there was a choice has is None
    solver: Literal["regression", "gradient"] | None = None
    pooling: Pooling | None = None
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    l2: float = 0.0
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
                object.__setattr__(self, field.name, self._checked(field.name, value))
        if self.accumulate == 1:  # as it is by default: the same run
            object.__setattr__(self, "accumulate", None)

    def _checked(self, name: str, value: Any) -> Any:
        """Returns the value of a field as plain Python has it."""
        if name in _CHOICES:
            return arguments.choice(name, value, _CHOICES[name])
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
            nothing = isinstance(words, tuple | list) and not words
            return () if nothing else arguments.texts(name, words, "different names of blocks or layers")
        if name in _WORDS and isinstance(value, str):
            return arguments.choice(name, value, [_WORDS[name]], or_else="a number or ")
        return arguments.check(**{name: value})[0]

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


def complete(recipe: Recipe, num_images: int, num_classes: int) -> tuple[Recipe, list[str]]:
    """Returns the recipe with every choice made, and a line for each that says why.

    Raises:
        ValueError: two options do not go together.
    """
    choices: dict[str, Any] = {}
    reasons: list[str] = []

    def choose(name: str, value: Any, why: str) -> None:
        if getattr(recipe, name) is None or (name in ("mode", "batch_size") and getattr(recipe, name) == "auto"):
            choices[name] = value
            reasons.append(f"{name}={value}: {why}")

    if recipe.weights == "own" and ":" not in recipe.backbone:
        raise ValueError(
            f"weights=own is of a backbone by import path, which brings its own (the backbone is {recipe.backbone})"
        )
    if recipe.weights == "none" and recipe.mode == "auto":
        choose("mode", "scratch", "there are no weights to transfer")
    elif num_images < _FEW and not any(_is_given(recipe, name) for name, modes in _MODES_OF.items() if modes != _CACHED):
        choose("mode", "bottleneck", f"{exactly(num_images, 'training image')}: too few to say whether fine-tuning helps")
    else:
        choose("mode", "finetune", f"{num_images:,} training images: the head first, then the last block at a lower rate")
    mode = choices.get("mode", recipe.mode)
    _check_effect(recipe, mode)
    choose("image_size", architectures.native_size(recipe.backbone), f"what {recipe.backbone} was made for")
    if mode in ("scratch", "full") and recipe.augment is None:
        choices["augment"] = dataclasses.replace(Augmentation.named("light"), horizontal_flip=0.0)
        reasons.append(f"augment=light,horizontal_flip=0: {mode} overfits else; flip where a mirror does not change the class")
    else:
        choose("augment", "none", "what is computed once does not change; --augment with --views=K keeps K versions")
    augmented = dataclasses.replace(recipe, **choices).augmentation != Augmentation()
    if mode in _CACHED:
        views = next(views for most, views in _VIEWS if num_images < most) if augmented else 1
        choose("views", views, "augmentation survives caching in as many versions" if augmented else "without augmentation")
        choose("solver", *_choose_solver(recipe, mode))
    solver = choices.get("solver", recipe.solver)
    if solver == "regression":
        _check_regression(recipe, mode)
    else:
        choose("pooling", "average", "usual behind convolutions")
        choose("epochs", _EPOCHS[mode], f"usual for {mode}, at most")
        choose("learning_rate", *_choose_rate(recipe.optimizer, mode))
    choose("batch_size", _BATCH_SIZE, "the usual one; computed in parts where it does not fit into memory")
    if mode == "finetune":
        deepens = recipe.mode == "auto" and not recipe.unfreeze
        choose("deepen", deepens, "as long as validation gains" if deepens else "unfreeze, or the uppermost block, alone")
        choose("finetune_epochs", 10, "pre-trained weights need few")
        rate = _FINETUNE_RATES[recipe.optimizer]
        choose("finetune_learning_rate", rate, f"of {recipe.optimizer}: pre-trained weights are to be kept, and only bent")
    epochs = choices.get("epochs", recipe.epochs)
    if epochs:
        choose("patience", max(5, epochs // 4), "a quarter of the epochs, 5 or more")
    elif mode == "finetune":
        choose("patience", _DEEPEN_PATIENCE, "fine-tuning that helps helps at once")
    if mode in _MODES_OF["train_batch_norm"]:
        choose("train_batch_norm", mode == "scratch", "new weights" if mode == "scratch" else "pre-trained statistics are kept")
    completed = dataclasses.replace(recipe, **choices)
    _check_together(completed, num_classes)
    return completed, reasons


def _choose_solver(recipe: Recipe, mode: str) -> tuple[str, str]:
    """Returns the solver of the head, and why: regression unless an option asks for what it does not know."""
    asked = _of_gradient(recipe, mode)
    if asked:
        return "gradient", f"for the sake of {', '.join(asked)}"
    return "regression", "takes seconds and needs no learning rate; every pooling and several decays are tried"


def _of_gradient(recipe: Recipe, mode: str) -> list[str]:
    names = _OF_GRADIENT if mode == "finetune" else (*_OF_GRADIENT, *_OF_STEPS)
    return [name for name in names if _is_given(recipe, name) and getattr(recipe, name) != "auto"]


def _check_regression(recipe: Recipe, mode: str) -> None:
    asked = _of_gradient(recipe, mode)
    if asked:
        raise ValueError(f"{asked[0]} is of no effect with solver=regression; take solver=gradient, or leave it out")


def _choose_rate(optimizer: str, mode: str) -> tuple[float | str, str]:
    """Returns the learning rate of the first phase, and why."""
    if optimizer == "adamw":
        return _RATES.get(mode, 1e-3), f"usual for AdamW in mode {mode}"
    if mode in _SGD_RATES:
        return _SGD_RATES[mode], f"usual for SGD in mode {mode}"
    return "find", "what SGD bears depends on the size of the features, so that it is measured"


def _check_together(recipe: Recipe, num_classes: int) -> None:
    augmented = recipe.augmentation != Augmentation()
    if num_classes < 2:
        raise ValueError(f"a classifier needs two classes or more (the data set has {num_classes})")
    if recipe.mode in _CACHED and recipe.augmentation.mixes:
        raise ValueError(
            f"mixup and cutmix mix images, and mode {recipe.mode} trains its head on features: take frozen, full or scratch"
        )
    if recipe.views and recipe.views > 1 and not augmented:
        raise ValueError(f"views={recipe.views} without augmentation would be {recipe.views} times the same: set augment")
    if recipe.augmentation.mixes and recipe.class_weights:
        raise ValueError(
            "class_weights do not go together with mixup and cutmix, whose targets are of two classes; take balanced"
        )
    shortest = min(recipe.epochs or math.inf, recipe.finetune_epochs or math.inf)
    if _is_given(recipe, "warmup_epochs") and recipe.warmup_epochs > shortest / 2:
        raise ValueError(
            f"warmup_epochs={recipe.warmup_epochs:g} is more than half of {exactly(int(shortest), 'epoch')}: lower it, or"
            " train longer"
        )
    if recipe.deepen and recipe.unfreeze:
        raise ValueError("deepen begins at the uppermost block and finds the depth itself: leave unfreeze out")
    if recipe.balanced and recipe.class_weights:
        raise ValueError("balanced and class_weights would both make up for rare classes: take one")
    if recipe.mode == "scratch" and recipe.weights not in ("none", "imagenet"):
        raise ValueError(f"mode scratch makes all weights new: weights={recipe.weights} would be of no effect")


def _check_effect(recipe: Recipe, mode: str) -> None:
    """An option of no effect is not passed over: who gives it expects one."""
    for name, modes in _MODES_OF.items():
        if _is_given(recipe, name) and mode not in modes:
            raise ValueError(f"{name} is of no effect in mode {mode}; it is of {' and '.join(modes)}")


def _is_given(recipe: Recipe, name: str) -> bool:
    return bool(getattr(recipe, name) != getattr(Recipe(), name))
