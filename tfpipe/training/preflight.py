"""What can be seen to be wrong before TensorFlow is loaded, which takes seconds: files, folders, names and options.

    check_training("shards/", "runs/a", "features/", recipe)     # raises, or returns

The library calls the same functions at their places; commands call them first.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from tfpipe.common.files import check_folder
from tfpipe.networks import architectures
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest
from tfpipe.records.run_folders import MODEL_NAME, SUMMARY_NAME, check_vacant, check_weights_file
from tfpipe.training.recipes import Recipe, complete


def check_training(
    directory: str | os.PathLike[str], output: str | os.PathLike[str], cache: str | os.PathLike[str], recipe: Recipe
) -> None:
    """Checks the arguments of a training.

    Raises:
        ValueError, FileNotFoundError, DataError, OSError: as `tfpipe.train`.
    """
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
    """Returns the recipe with the weights of a run, a folder or a .keras file, in place of its own; None: as it is.

    Raises:
        ValueError: the recipe says other weights.
    """
    if run is None:
        return recipe
    if recipe.weights != Recipe.weights or recipe.mode == "scratch":
        given = "mode=scratch makes all weights new" if recipe.mode == "scratch" else f"weights={recipe.weights} are others"
        raise ValueError(f"from_run={os.fspath(run)} gives the weights to begin with, and {given}: take one of the two")
    return dataclasses.replace(recipe, weights=str(Path(run) / MODEL_NAME if Path(run).is_dir() else Path(run)))


def open_training(directory: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest of a data set that can be trained on.

    Raises:
        ValueError: there is no split train, or none of its records are of some class.
        FileNotFoundError, DataError: as `manifest.load`.
    """
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
