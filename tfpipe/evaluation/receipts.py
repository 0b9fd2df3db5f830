"""Ids in, ids out: the claim of an evaluation before its pass, and the receipt after it.

A claim states what will be evaluated: model, data, options, versions, and the catalog's ids. A
receipt is the claim with the ids seen, and the devices. Neither holds anything that depends on
batch sizes, readers or the time.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfpipe.common import stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import read_json
from tfpipe.common.text import hash_names
from tfpipe.models.predictions import RECEIPT_NAME, Predictions
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_checked
from tfpipe.records.run_folders import Seen

if TYPE_CHECKING:
    from tfpipe.models.classifiers import Predictor

_log = logging.getLogger("tfpipe")

Claim = dict[str, Any]


def open_labelled(directory: str | os.PathLike[str], split: str) -> manifests.Manifest:
    """Returns the manifest of a data set with a split that a model can be evaluated on.

    Raises:
        ValueError: there is no such split, or it is unlabelled or empty.
        FileNotFoundError, DataError: as `manifest.load`.
    """
    manifest = manifests.load(directory)
    content = manifest.split(split)
    if not content.num_records:
        raise ValueError(f"{directory}: split {split!r} is empty: there is nothing to evaluate")
    if not content.labelled:
        raise ValueError(f"{directory}: split {split!r} has no labels: tools/predict writes predictions for such images")
    return manifest


def open_split(predictor: Predictor, directory: str | os.PathLike[str], split: str) -> manifests.Manifest:
    """Does as `open_labelled`; raises ValueError where the model does not know a class, too."""
    manifest = open_labelled(directory, split)
    task = getattr(predictor, "task", manifests.SINGLE)
    if task != manifest.task and {task, manifest.task} != {manifests.SINGLE, manifests.ORDINAL}:
        raise ValueError(f"{directory}: is of task {manifest.task}, and the model of task {task}: they cannot be compared")
    known = set(predictor.class_names)
    unknown = [name for name in manifest.class_names if name not in known]
    if unknown:
        raise ValueError(
            f"{directory}: the model does not know the classes {', '.join(map(repr, unknown))};"
            f" it knows {', '.join(map(repr, predictor.class_names))}"
        )
    if task == manifest.task == manifests.ORDINAL and list(predictor.class_names) != list(manifest.class_names):
        raise ValueError(f"{directory}: the order of its classes is not the model's, {', '.join(predictor.class_names)}")
    return manifest


def check_unseen(seen: Sequence[Seen], directory: str | os.PathLike[str], split: str, calibrate: str | None = None) -> None:
    """Warns of a model on splits that made it; raises ValueError for the mean of several models.

    Calibration on what chose a single model is usual.

    Args:
        seen: see `folds.seen_by`.
        directory: the data set.
        split: that the model is evaluated on.
        calibrate: another one.
    """
    account = manifests.load(directory)
    own = [one for one in seen if one.root_hash == account.root_hash]
    wanted = {*account.parts(split), *(account.parts(calibrate) if calibrate is not None and len(own) > 1 else ())}
    for how, names in (("trained on", [one.train for one in own]), ("chosen by its results on", [one.val for one in own])):
        both = sorted(wanted.intersection(part for name in names for part in name.split(manifests.JOINED)))
        if both and len(own) > 1:
            raise ValueError(
                f"{stores.url(directory)}: models that this one averages were {how} {both[0]!r}; give a split that none has"
                " seen, or the folder of train_folds without a split (evaluate_folds): each image by the model that has not"
                " seen it"
            )
        if both:
            _log.warning("the model was %s %s: these are not metrics of images that it had not seen", how, both[0])


def claim(
    predictor: Predictor,
    directory: str | os.PathLike[str],
    manifest: manifests.Manifest,
    split: str,
    options: Mapping[str, Any],
) -> Claim:
    """Returns an evaluation's inputs by hash; equal claims give equal tables, but for rounding."""
    import keras
    import tensorflow as tf

    import tfpipe

    return {
        "split": split,
        "records_expected": manifest.split(split).num_records,
        "expected_ids_sha256": hash_names(row.key for row in read_checked(directory, split=split)),
        "data_root_hash": manifest.root_hash,
        "model_sha256": predictor.sha256,
        "class_names_sha256": hash_names(predictor.class_names),
        "options": dict(options),
        "versions": {"tfpipe": tfpipe.__version__, "tensorflow": tf.__version__, "keras": keras.__version__},
    }


def receipt(promised: Claim, table: Predictions, computed: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Returns a claim with the ids (and number of groups) seen, and the devices and arithmetics used, each once."""
    kinds = sorted({tuple(one.items()) for one in computed})
    seen = {"records_seen": len(table.keys), "ids_sha256": hash_names(table.keys)}
    groups = {} if table.groups is None else {"num_groups": len(set(table.groups))}
    return {**promised, **seen, **groups, "computed": [dict(one) for one in kinds]}


def check_ids(keys: Sequence[str], directory: str | os.PathLike[str], split: str, path: Path) -> None:
    """Raises DataError unless the keys of the table at `path` are the catalog's, in its order."""
    pairs = itertools.zip_longest(keys, (row.key for row in read_checked(directory, split=split)))
    if all(seen == expected for seen, expected in pairs):
        return
    seen, expected = Counter(keys), Counter(row.key for row in read_checked(directory, split=split))
    found = {
        "missing": list((expected - seen).keys()),
        "twice or more": [key for key, count in seen.items() if key in expected and count > expected[key]],
        "not in the catalog": [key for key in seen if key not in expected],
    }
    parts = [f"{len(keys)} {what}: {some(keys)}" for what, keys in found.items() if keys]
    raise DataError(f"not the images of {split!r}: {'; '.join(parts) or 'in another order than the catalog'}", path=path)


def check_unchanged(promised: Claim, directory: str | os.PathLike[str]) -> None:
    """Raises DataError if a data set was replaced since the claim was made."""
    ids = hash_names(row.key for row in read_checked(directory, split=promised["split"]))
    found = {"data_root_hash": manifests.load(directory).root_hash, "expected_ids_sha256": ids}
    if other := differences({name: promised[name] for name in found}, found):
        raise DataError(f"the data set was replaced during the evaluation: {'; '.join(other)}", path=directory)


def some(keys: Sequence[str]) -> str:
    """Returns the first three ids, for a message."""
    return ", ".join(map(repr, keys[:3])) + (", ..." if len(keys) > 3 else "")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Describes each difference of another claim."""
    return [f"{name} {other.get(name)!r}, not {one[name]!r}" for name in one if other.get(name) != one[name]]


def retract(folder: Path, promised: Claim, names: Sequence[str]) -> None:
    """Removes the receipt of another evaluation from a folder, and then its files `names`."""
    try:
        old = read_json(folder / RECEIPT_NAME)
    except FileNotFoundError:
        return
    except DataError:
        old = None
    if isinstance(old, dict) and not differences(promised, old):
        return
    for name in (RECEIPT_NAME, *names):
        (folder / name).unlink(missing_ok=True)
