"""Folds: splits fold0, fold1, ... of equal size, each held out once, and what is trained for each.

    expand(5, {"test": 0.2})                # {"test": 0.2, "fold0": "4/25", ..., "fold4": "4/25"}
    plan(load("shards/").splits, "pets")    # [Fold("fold0", "fold2+fold3+fold4", "fold1"), ...]

The fold that is held out chooses nothing: neither weights, nor the epoch, nor the head. So another
one validates: the split "val" where there is one, else the next fold.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from tfpipe.common.errors import DataError
from tfpipe.common.files import load_json
from tfpipe.records import run_folders
from tfpipe.records.checksums import SPECIFICATION_NAME
from tfpipe.records.manifest import JOINED, Manifest
from tfpipe.records.run_folders import Seen, find_model_file

FILE_NAME = "folds.json"
_OPTION = "folds"
_MAX_FOLDS = 100
_NAME = re.compile(r"fold(0|[1-9]\d*)")


class Fold(NamedTuple):
    """One training of several: its splits; `train` may join several, as in "fold2+fold3"."""

    held_out: str
    train: str
    val: str


class _Content(TypedDict):
    format_version: int
    root_hash: str
    folds: list[Fold]


class _Exported(TypedDict):
    seen: NotRequired[tuple[Seen, ...]]


def split_off(splits: Any) -> tuple[int, Any]:
    """Returns the number of folds in the fractions of `build_tfrecords`, 0 for none, and the others.

    A fraction of 1 or less is that of a split which is called "folds".

    Raises:
        ValueError: it is not a number of folds.
    """
    number = splits.get(_OPTION, 0) if isinstance(splits, Mapping) else 0
    if not isinstance(number, int | float) or number <= 1:
        return 0, splits
    if number != int(number) or number > _MAX_FOLDS:
        raise ValueError(f"splits: folds must be a whole number from 2 to {_MAX_FOLDS} (got {number})")
    return int(number), {name: value for name, value in splits.items() if name != _OPTION}


def expand(number: int, others: Mapping[str, float]) -> dict[str, Any]:
    """Returns the fractions of splits and of folds, which are equal, exact, and share the rest.

    Raises:
        ValueError: there is a split "train" or a fold beside them, or no rest.
    """
    if not number:
        return dict(others)
    if beside := [name for name in others if name == "train" or _NAME.fullmatch(name)]:
        raise ValueError(f"splits: folds take the place of {', '.join(beside)}: leave that out")
    rest = 1 - sum((Fraction(str(value)) for value in others.values()), Fraction(0))
    if rest <= 0:
        raise ValueError(f"splits: nothing is left for the folds (got {dict(others)})")
    return {**others, **{f"fold{index}": str(rest / number) for index in range(number)}}


def names(splits: Collection[str]) -> list[str]:
    """Returns the folds among splits in their order; none without fold0 and fold1."""
    found = [f"fold{index}" for index in range(len(splits))]
    count = next((index for index, name in enumerate(found) if name not in splits), len(found))
    return found[:count] if count > 1 else []


def plan(splits: Collection[str], where: str) -> list[Fold]:
    """Returns what is trained for each fold among the splits of a data set; `where` begins the message of an error.

    Raises:
        ValueError: there are no folds, or two and no split "val".
    """
    folds = names(splits)
    if not folds:
        raise ValueError(f"{where}: has no folds (its splits are {', '.join(splits)}): build it with splits=folds=5")
    if stray := [name for name in splits if _NAME.fullmatch(name) and name not in folds]:
        raise ValueError(f"{where}: the fold before {stray[0]} is missing")
    has_val = "val" in splits
    if len(folds) < 3 and not has_val:
        raise ValueError(
            f"{where}: of two folds one is held out, and none is left to validate with: build three folds or more,"
            " or a split val beside them"
        )
    found = []
    for index, held_out in enumerate(folds):
        val = "val" if has_val else folds[(index + 1) % len(folds)]
        found.append(Fold(held_out, JOINED.join(name for name in folds if name not in (held_out, val)), val))
    return found


def describe(manifest: Manifest) -> dict[str, Any]:
    """Returns the content of folds.json for a data set; raises as `plan`."""
    planned = plan(manifest.splits, manifest.name)
    return {"format_version": 1, "root_hash": manifest.root_hash, "folds": [list(fold) for fold in planned]}


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether a folder is one of `train_folds`."""
    return (Path(path) / FILE_NAME).is_file()


def load(folder: str | os.PathLike[str]) -> tuple[str, list[Fold]]:
    """Returns the root hash of the data set of `train_folds`, and its folds.

    Raises:
        FileNotFoundError: it is not the folder of one.
        DataError: the file is damaged.
    """
    path = Path(folder) / FILE_NAME
    content = load_json(path, _Content)
    if content["format_version"] != 1 or not all(_NAME.fullmatch(fold.held_out) for fold in content["folds"]):
        raise DataError("not as tfpipe writes it", path=path)
    return content["root_hash"], content["folds"]


def find_models(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the classifier of each fold, in order.

    Raises:
        FileNotFoundError, DataError: there are no folds, or one is not finished or damaged.
    """
    return [find_model_file(Path(folder) / fold.held_out) for fold in load(folder)[1]]


def seen_by(model: str | os.PathLike[str]) -> tuple[Seen, ...]:
    """Returns what a model was made from: one entry, or one for each model that it averages.

    Nothing of a model that says nothing, or of one of the usual splits: train and val.

    Args:
        model: a run's folder, that of `train_folds`, or a .keras file in a run's or an export's folder.

    Raises:
        DataError: a file beside it is damaged.
    """
    if is_folder(model):
        root_hash, planned = load(model)
        return tuple(Seen(root_hash, fold.train, fold.val) for fold in planned)
    if (found := run_folders.seen_by(model)) is not None:
        return () if found.train == "train" else (found,)
    path = Path(model).parent / SPECIFICATION_NAME
    return load_json(path, _Exported).get("seen", ()) if path.exists() else ()
