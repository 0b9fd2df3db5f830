#!/usr/bin/env python3
"""Trains a classifier on a data set of build_tfrecords, from pre-trained weights or from scratch.

  train --data=shards/ --output=runs/a --backbone=vgg16 --weights=imagenet --mode=auto --seed=0
  train --data=shards/ --output=runs/b --weights=vgg16_notop.h5 --mode=bottleneck --hidden=1024,128 --dropout=0.5
  train --data=shards/ --output=runs/c --mode=frozen --augment=light,horizontal_flip=0
  train --data=shards/ --output=runs/d --backbone=lenet --mode=scratch --image_size=32 --learning_rate=find

Modes: scratch (all weights new), bottleneck (features of the frozen backbone computed once, the
head trained on them), frozen (the same end to end), finetune (bottleneck, then the last blocks at a
lower rate), full (everything trains), auto (finetune; bottleneck for a small set). What is not
given is chosen, and it is said why. A run that was stopped goes on, at the very step, when it is
started again with the same flags; and one that is finished, with more --epochs, --finetune_epochs
or --patience, until its folder state/ is deleted. --schedule=constant and plateau then end as if
asked for them at first.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.networks.architectures import PREPROCESSINGS, TABLE
from tfpipe.networks.arithmetic import PRECISIONS
from tfpipe.networks.heads import Pooling
from tfpipe.pipeline.presets import Augmentation
from tfpipe.training import devices, preflight
from tfpipe.training.recipes import Mode, Recipe

_DATA = flags.DEFINE_string("data", None, "Needed. Folder of the data set, with splits train and, if there is one, val.")
_OUTPUT = flags.DEFINE_string("output", None, "Needed. Folder of the run; made if need be.")
_CACHE = flags.DEFINE_string("cache", None, "Folder for features, shared by runs. Default: features/ beside --output.")
_DEVICES = flags.DEFINE_string(
    "devices",
    "auto",
    "auto: all GPUs, or the CPU; all: all GPUs; one: the first GPU, or the CPU; names: GPU:0,GPU:2 or CPU. Several"
    " trainings can share a GPU: each takes the memory that it needs.",
)
_CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60.0, "What a kill can cost at most.", 0)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "Write event files into the run's folder.")
_EXTEND = flags.DEFINE_bool(
    "extend", False, "Train longer also where the learning rates would have been others from the start: cosine warms up again."
)
_FROM_RUN = flags.DEFINE_string(
    "from_run", None, "Run whose weights to begin with: the backbone's and, where it fits, the head's. Default: none."
)
_PROFILE_STEPS = flags.DEFINE_integer(
    "profile_steps",
    0,
    "Trace as many steps for TensorBoard; profile.txt says what share of their time input, Python and device take.",
    0,
)

# The recipe: a flag per field of tfpipe.Recipe, with its default; ranges are checked there.
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Recipe)}
_CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "preprocessing": (
        PREPROCESSINGS,
        "Of a backbone by import path. Default: unit there, else what its weights want.",
    ),
    "resize": (("stretch", "crop", "pad"), "How images are brought to --image_size."),
    "solver": (
        ("regression", "gradient"),
        "Of the head on cached features: the best of several logistic regressions, or steps. Default: regression, unless an"
        " option asks for steps.",
    ),
    "pooling": (get_args(Pooling), "Of the feature map, before the head. Default: by regression the best, else average."),
    "optimizer": (("adamw", "sgd"), "sgd with Nesterov momentum."),
    "schedule": (("cosine", "constant", "plateau"), "plateau: lower when validation no longer improves."),
    "mode": (get_args(Mode), "What trains, see above."),
    "precision": (("auto", *PRECISIONS), "Of training; features are extracted in bfloat16 or float32."),
}
_STRINGS = {
    "backbone": f"{', '.join(TABLE)}, or PACKAGE.MODULE:FUNCTION.",
    "weights": "imagenet (a download), none, a file, or, by import path, own: what the function gives is pre-trained.",
    "feature_layer": "The backbone ends behind this block or layer. Default: at its end.",
}
_INTEGERS = {
    "views": "Augmented versions of each image in the cache of features. Default: 1 without --augment, else 8, 4 or 2: the more"
    " images, the fewer.",
    "seed": "Draws weights, order, augmentation and dropout.",
    "accumulate": "Parts that a batch is computed in, one after the other, where it does not fit into memory: the gradients are"
    " added up before the weights change. Statistics of BatchNorm are then those of a part. Default: 1.",
    "epochs": "At most; in bottleneck, finetune and auto, of a head that is trained in steps. Default: there 60, in scratch 30,"
    " frozen 20, full 15.",
    "finetune_epochs": "At most, of fine-tuning. Default: 10.",
    "patience": "Epochs without a better validation accuracy before training ends. Default: a quarter of --epochs, 5 or more; 2"
    " in fine-tuning behind a regression.",
}
_FLOATS = {
    "val_fraction": "Part of train that is held out where there is no split val.",
    "dropout": "Rate in the head.",
    "l2": "Penalty on the head's kernels.",
    "label_smoothing": "Share of each target that is spread over all classes.",
    "weight_decay": "Of kernels.",
    "momentum": "Of sgd.",
    "warmup_epochs": "In which the learning rate rises to its peak.",
    "finetune_learning_rate": "Of the uppermost block in fine-tuning. Default: 2e-5, of sgd 1e-4.",
    "layer_decay": "A block's learning rate, as a part of that of the block above.",
    "ema": "Decay of the moving average of the weights; 0: none.",
}
_BOOLEANS = {
    "grey": "One channel, for lenet and networks by import path.",
    "deepen": "Fine-tuning goes on one block deeper as long as validation gains. Default: in mode auto without --unfreeze.",
    "cache_prefix": "Fine-tuning: compute the frozen part once. Default: when that is fewer passes.",
    "balanced": "Every class equally often.",
    "class_weights": "Weigh rare classes more.",
    "train_batch_norm": "BatchNorm of a pre-trained backbone follows the batches. Default: in scratch.",
    "deterministic": "Equal runs give equal bits.",
}
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size",
    None,
    "SIDE of the square that images are brought to, or HEIGHTxWIDTH. Default: the backbone's own.",
)
_AUGMENT = flags.DEFINE_string(
    "augment",
    None,
    "none, light, standard or strong, and changes: light,horizontal_flip=0,mixup=0.2. Default: light,horizontal_flip=0 in"
    " scratch and full, else none.",
)
_UNFREEZE = flags.DEFINE_list(
    "unfreeze", None, "Blocks or layers that fine-tuning trains, with all that is behind them. Default: the last block."
)
_HIDDEN = flags.DEFINE_list("hidden", None, "Units of the head's hidden layers: 1024,128. Default: none.")
_LEARNING_RATE = flags.DEFINE_string(
    "learning_rate",
    None,
    "At its peak; find: measured by a range test. Default: 1e-3, in full 5e-5; of sgd 1e-2 in scratch,"
    " 1e-4 in full, else find.",
)
_BATCH_SIZE = flags.DEFINE_string(
    "batch_size",
    str(_DEFAULTS["batch_size"]),
    "Images of a step, on all devices together. auto: 32, computed in parts (--accumulate) where they do not fit into memory.",
)
_PLAIN = [
    # Not DEFINE_enum: the recipe knows the words, and suggests the nearest.
    *[flags.DEFINE_string(name, _DEFAULTS[name], f"{', '.join(words)}. {text}") for name, (words, text) in _CHOICES.items()],
    *[flags.DEFINE_string(name, _DEFAULTS[name], text) for name, text in _STRINGS.items()],
    *[flags.DEFINE_integer(name, _DEFAULTS[name], text) for name, text in _INTEGERS.items()],
    *[flags.DEFINE_float(name, _DEFAULTS[name], text) for name, text in _FLOATS.items()],
    *[flags.DEFINE_bool(name, _DEFAULTS[name], text) for name, text in _BOOLEANS.items()],
]


def main(arguments: list[str]) -> None:
    """Trains, and prints what is done."""
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    if not _DATA.value or not _OUTPUT.value:
        raise commands.UsageError("--data and --output are needed")
    recipe, output = _recipe(), Path(_OUTPUT.value)
    try:
        chosen = devices.parse(_DEVICES.value)
    except ValueError as error:
        raise commands.UsageError(error) from error
    cache = Path(_CACHE.value or output.absolute().parent / "features")
    preflight.check_training(_DATA.value, output, cache, preflight.with_weights_of(_FROM_RUN.value, recipe))
    from tfpipe.training.runs import train  # takes seconds

    train(
        _DATA.value,
        output,
        recipe,
        cache=cache,
        strategy=devices.use(chosen),
        checkpoint_seconds=_CHECKPOINT_SECONDS.value,
        tensorboard=_TENSORBOARD.value,
        profile_steps=_PROFILE_STEPS.value,
        log=_say,
        extend=_EXTEND.value,
        from_run=_FROM_RUN.value,
    )


def _say(text: str) -> None:
    print(text, flush=True)  # in the order of the progress bars, also where output is piped


def _recipe() -> Recipe:
    """Returns the recipe that the flags give."""
    given: dict[str, Any] = {flag.name: flag.value for flag in _PLAIN if flag.value is not None}
    if _IMAGE_SIZE.value is not None:
        given["image_size"] = commands.parse_size("image_size", _IMAGE_SIZE.value)
    if _AUGMENT.value is not None:
        given["augment"] = _augmentation(_AUGMENT.value)
    if _UNFREEZE.value:
        given["unfreeze"] = tuple(_UNFREEZE.value)
    if _HIDDEN.value:
        given["hidden"] = tuple(commands.parse_number("hidden", text, int) for text in _HIDDEN.value)
    if _BATCH_SIZE.value != "auto":
        given["batch_size"] = commands.parse_number("batch_size", _BATCH_SIZE.value, int)
    else:
        given["batch_size"] = "auto"
    if _LEARNING_RATE.value is not None:
        given["learning_rate"] = (
            "find" if _LEARNING_RATE.value == "find" else commands.parse_number("learning_rate", _LEARNING_RATE.value, float)
        )
    try:
        return Recipe(**given)
    except (ValueError, TypeError) as error:
        raise commands.UsageError(error) from error


def _augmentation(text: str) -> Augmentation | str:
    preset, _, changes = text.partition(",")
    base = Augmentation.named(preset)
    values = commands.parse_numbers("augment", changes, float) if changes else {}
    known = [field.name for field in dataclasses.fields(Augmentation)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise commands.UsageError(f"--augment: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return dataclasses.replace(base, **values) if values else preset


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="What was done is saved: run the same command again to go on from there.")


if __name__ == "__main__":
    command()
