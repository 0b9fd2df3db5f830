#!/usr/bin/env python3
"""Trains a classifier on a data set of build_tfrecords, from pre-trained weights or from scratch.

  train --data=shards/ --output=runs/a --backbone=vgg16 --weights=imagenet --mode=auto --seed=0
  train --data=shards/ --output=runs/b --weights=vgg16_notop.h5 --mode=bottleneck --hidden=1024,128 --dropout=0.5
  train --data=shards/ --output=runs/c --mode=frozen --augment=light,horizontal_flip=0
  train --data=shards/ --output=runs/d --backbone=lenet --mode=scratch --image_size=32 --learning_rate=find
  train --data=shards/ --output=runs/cv --folds        a run for each fold: runs/cv/fold0, ...
  train --data=shards/ --output=runs/e --workers=node1:2222,node2:2222 --worker=0     on node2 with --worker=1

What is not given is chosen, and the reason reported. A run that was stopped goes on, at the very
step, when it is started again with the same flags; and one that is finished, with more --epochs,
--finetune_epochs or --patience, until its folder state/ is deleted. With --schedule=constant and
plateau it then ends as if these numbers had been given from the start.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.pipeline.presets import Augmentation
from tfpipe.training import preflight
from tfpipe.training.recipes import Recipe, help_of_options

_DATA = flags.DEFINE_string("data", None, "Needed. Folder of the data set, also in a store; splits train and, perhaps, val.")
_OUTPUT = flags.DEFINE_string("output", None, "Needed. Folder of the run; made if need be.")
_CACHE = flags.DEFINE_string("cache", None, "Folder for features, shared by runs. Default: features/ beside --output.")
_DEVICES = flags.DEFINE_string(
    "devices",
    "auto",
    "auto: all GPUs, or the CPU; all: all GPUs; one: the first GPU, or the CPU; names: GPU:0,GPU:2 or CPU. Several"
    " trainings can share a GPU: each takes the memory that it needs.",
)
_WORKERS = flags.DEFINE_string(
    "workers",
    None,
    "Addresses HOST:PORT of the processes that train together, one each; all get the same flags, and --worker."
    " Default: as TF_CONFIG says, or this one alone.",
)
_WORKER = flags.DEFINE_integer(
    "worker", None, "Needed with --workers: number of this process in it; 0 writes the run's folder.", 0
)
_CLUSTER = flags.DEFINE_enum(
    "cluster",
    None,
    ["slurm"],
    "slurm: the tasks of the step that srun started train together. Default: this process trains alone.",
)
_CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60.0, "What a kill can cost at most.", 0)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "Write event files into the run's folder.")
_EXTEND = flags.DEFINE_bool(
    "extend", False, "Train longer also where the learning rates would have differed from the start: cosine warms up again."
)
_FROM_RUN = flags.DEFINE_string(
    "from_run", None, "Run whose weights to begin with: the backbone's and, where it fits, the head's. Default: none."
)
_TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "Split to train on; or several as one: fold0+fold1.")
_VAL_SPLIT = flags.DEFINE_string(
    "val_split", None, "Split that chooses the best epoch. Default: val, or a part of --train_split that is held out."
)
_FOLDS = flags.DEFINE_bool(
    "folds",
    False,
    "Train a run for each fold of a data set that was built with --splits=folds=5; --output is the folder of all.",
)
_PROFILE_STEPS = flags.DEFINE_integer(
    "profile_steps",
    0,
    "Trace as many steps for TensorBoard; profile.txt has the shares of input, Python and device in their time.",
    0,
)


def _define(field: dataclasses.Field[Any], text: str) -> flags.FlagHolder[Any]:
    """Defines the flag of a field of the recipe, which checks its range and its words."""
    kind, default = str(field.type).removesuffix(" | None"), field.default
    if kind.startswith("tuple") and field.name != "image_size":
        return flags.DEFINE_list(field.name, default or None, text)
    define = {"bool": flags.DEFINE_bool, "int": flags.DEFINE_integer, "float": flags.DEFINE_float}.get(kind)
    if define is None:
        return flags.DEFINE_string(field.name, None if default is None else str(default), text)
    return define(field.name, default, text)


_HELP = help_of_options()
_RECIPE = [_define(field, _HELP.get(field.name, "")) for field in dataclasses.fields(Recipe)]


def main(arguments: list[str]) -> None:
    """Trains, and prints each step."""
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    if not _DATA.value or not _OUTPUT.value:
        raise commands.UsageError("--data and --output are needed")
    try:
        recipe = Recipe(**{flag.name: _parsed(flag.name, flag.value) for flag in _RECIPE if flag.value is not None})
        devices = preflight.parse_devices(_DEVICES.value)
        together = preflight.find_cluster(_WORKERS.value, _WORKER.value, _CLUSTER.value, os.environ)
    except (ValueError, TypeError) as error:
        raise commands.UsageError(error) from error
    output = Path(_OUTPUT.value)
    cache = Path(_CACHE.value or output.absolute().parent / "features")
    recipe_of_run = preflight.with_weights_of(_FROM_RUN.value, recipe)
    splits = {"train_split": _TRAIN_SPLIT.value, "val_split": _VAL_SPLIT.value}
    if _FOLDS.value:
        if together is not None or splits != {"train_split": "train", "val_split": None}:
            raise commands.UsageError("--folds excludes --train_split, --val_split and several workers")
        preflight.check_folds(_DATA.value, output, cache, recipe_of_run, _FROM_RUN.value)
    elif together is None:  # else all workers must know of an error
        preflight.check_training(_DATA.value, output, cache, recipe_of_run, **splits)
    report = functools.partial(print, flush=True)  # in the order of the progress bars, also where output is piped
    strategy = preflight.use_devices(devices, together, report)
    # Takes seconds.
    from tfpipe.training.folds import train_folds
    from tfpipe.training.runs import train

    options = {} if _FOLDS.value else splits
    (train_folds if _FOLDS.value else train)(
        _DATA.value,
        output,
        recipe,
        **options,
        cache=cache,
        strategy=strategy,
        checkpoint_seconds=_CHECKPOINT_SECONDS.value,
        tensorboard=_TENSORBOARD.value,
        profile_steps=_PROFILE_STEPS.value,
        log=report,
        extend=_EXTEND.value,
        from_run=_FROM_RUN.value,
    )


def _parsed(name: str, value: Any) -> Any:
    """Returns the value of a flag as the recipe takes it."""
    if name == "image_size":
        return commands.parse_size(name, value)
    if name == "augment":
        return _augmentation(value)
    if name == "hidden":
        return tuple(commands.parse_number(name, text, int) for text in value)
    if name in ("batch_size", "learning_rate") and value not in ("auto", "find"):
        return commands.parse_number(name, value, int if name == "batch_size" else float)
    return value


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
