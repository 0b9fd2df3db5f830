"""Checks before a training, without TensorFlow, which takes seconds to load; and devices.

check_training("shards/", "runs/a", "features/", recipe)
strategy = use_devices(parse_devices("GPU:0,GPU:2"))
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfpipe.common import arguments
from tfpipe.common.files import check_folder
from tfpipe.networks import architectures
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest
from tfpipe.records.run_folders import MODEL_NAME, SUMMARY_NAME, check_vacant, check_weights_file
from tfpipe.training.cluster import Cluster, connect
from tfpipe.training.recipes import Recipe, complete

_DEVICES = ("auto", "one", "all", "CPU")


def check_training(
    directory: str | os.PathLike[str], output: str | os.PathLike[str], cache: str | os.PathLike[str], recipe: Recipe
) -> None:
    """Checks the arguments of a training; raises as `tfpipe.train`."""
    for folder in (output, cache):
        check_folder(folder)
    size = recipe.image_size or architectures.native_size(recipe.backbone)
    weights = "none" if recipe.mode == "scratch" or recipe.weights == "own" else recipe.weights
    architectures.choose_input(recipe.backbone, size, weights, recipe.preprocessing, grey=recipe.grey)
    if weights not in ("imagenet", "none") and not (Path(output) / SUMMARY_NAME).exists():  # a finished run needs none
        check_weights_file(weights)
    manifest = open_training(directory)
    complete(recipe, manifest.split("train").num_records, len(manifest.class_names))
    check_vacant(Path(output))


def with_weights_of(run: str | os.PathLike[str] | None, recipe: Recipe) -> Recipe:
    """Returns the recipe with the weights of a run; raises ValueError if it names others."""
    if run is None:
        return recipe
    if recipe.weights != Recipe.weights or recipe.mode == "scratch":
        given = "mode=scratch makes all weights new" if recipe.mode == "scratch" else f"weights={recipe.weights} differ"
        raise ValueError(f"from_run={os.fspath(run)} gives the weights to begin with, and {given}: take one of the two")
    return dataclasses.replace(recipe, weights=str(Path(run) / MODEL_NAME if Path(run).is_dir() else Path(run)))


def open_training(directory: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest; raises ValueError if images of a class, or labels, are missing."""
    manifest = manifests.load(directory)
    split = manifest.split("train")
    missing = [name for name in manifest.class_names if not split.class_counts[name]]
    if not split.labelled or missing:
        lacks = f"there are none of {', '.join(missing)}" if split.labelled else "it has no labels"
        raise ValueError(f"{directory}: split 'train' must have images of every class; {lacks}")
    if "val" in manifest.splits:
        held = manifest.split("val")
        if not held.labelled or not held.num_records:
            raise ValueError(f"{directory}: split 'val' has no labelled images to validate with")
    return manifest


def parse_devices(text: str) -> tuple[str, ...]:
    """Returns a word of _DEVICES, or different names of GPUs; raises ValueError for others."""
    words = tuple(word.strip() for word in text.split(","))
    are_gpus = all(re.fullmatch(r"GPU:\d{1,4}", word) for word in words) and len(set(words)) == len(words)
    if not are_gpus and words not in [(word,) for word in _DEVICES]:
        raise arguments.wrong("devices", f"one of {', '.join(_DEVICES)}, or names of GPUs as in GPU:0,GPU:2", text)
    return words


def choose_gpus(words: tuple[str, ...], gpus: list[str]) -> list[str]:
    """Returns the requested GPUs, none for the CPU; raises ValueError for a missing one."""
    if words in (("CPU",), ("one",)):
        return gpus[:1] if words == ("one",) else []
    wanted = gpus if words in (("auto",), ("all",)) else list(words)
    missing = [word for word in wanted if word not in gpus] or ["all"] * (words == ("all",) and not gpus)
    if missing:
        there = f"there are {', '.join(['CPU', *gpus])}" if gpus else "TensorFlow finds no GPU here: there is the CPU alone"
        raise ValueError(f"devices={missing[0]}: there is no such device; {there}")
    return wanted


def use_devices(words: tuple[str, ...], cluster: Cluster | None = None, report: Callable[[str], None] = print) -> Any:
    """Hides all other GPUs from TensorFlow; returns the strategy for several, or None.

    Of a cluster, waits for its workers.
    """
    import tensorflow as tf

    devices = {device.name.removeprefix("/physical_device:"): device for device in tf.config.list_physical_devices("GPU")}
    chosen = choose_gpus(words, list(devices))
    tf.config.set_visible_devices([devices[name] for name in chosen], "GPU")
    if cluster is not None:
        return connect(cluster, report)
    return tf.distribute.MirroredStrategy() if len(chosen) > 1 else None
