"""Ids in, ids out: the claim of an evaluation before its pass, and the receipt after it.

A claim states what will be evaluated: model, data, options, versions, and the ids that the
catalogue lists. A receipt is the claim with what was seen, and where that was computed. Neither
holds anything that depends on batch sizes, readers or the time.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfpipe.common.errors import DataError
from tfpipe.common.files import read_json
from tfpipe.common.text import hash_names
from tfpipe.models.predictions import RECEIPT_NAME, Predictions
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_catalog

if TYPE_CHECKING:
    from tfpipe.models.classifiers import Predictor

Claim = dict[str, Any]

_SHOWN = 3


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
    """Returns the manifest of a data set whose split the model can be evaluated on.

    Raises:
        ValueError: there is no such split, it is unlabelled or empty, or the model does not know
            one of the data set's classes.
        FileNotFoundError, DataError: as `manifest.load`.
    """
    manifest = open_labelled(directory, split)
    known = set(predictor.class_names)
    unknown = [name for name in manifest.class_names if name not in known]
    if unknown:
        raise ValueError(
            f"{directory}: the model does not know the classes {', '.join(map(repr, unknown))};"
            f" it knows {', '.join(map(repr, predictor.class_names))}"
        )
    return manifest


def claim(
    predictor: Predictor,
    directory: str | os.PathLike[str],
    manifest: manifests.Manifest,
    split: str,
    options: Mapping[str, Any],
) -> Claim:
    """Returns what an evaluation is of, hashes included; equal claims give equal tables, but for rounding."""
    import keras
    import tensorflow as tf

    import tfpipe

    return {
        "split": split,
        "records_expected": manifest.split(split).num_records,
        "expected_ids_sha256": hash_names(row.key for row in read_catalog(directory, split=split)),
        "data_root_hash": manifest.root_hash,
        "model_sha256": predictor.sha256,
        "class_names_sha256": hash_names(predictor.class_names),
        "options": dict(options),
        "versions": {"tfpipe": tfpipe.__version__, "tensorflow": tf.__version__, "keras": keras.__version__},
    }


def receipt(promised: Claim, table: Predictions, computed: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Returns a claim with what was seen, and the devices and arithmetics that the table was computed in, each once.

    Those are no part of the claim: readers of one evaluation may differ in them, as in the last
    digits.
    """
    kinds = sorted({tuple(one.items()) for one in computed})
    seen = {"records_seen": len(table.keys), "ids_sha256": hash_names(table.keys)}
    return {**promised, **seen, "computed": [dict(one) for one in kinds]}


def check_ids(keys: Sequence[str], directory: str | os.PathLike[str], split: str, path: Path) -> None:
    """Raises `DataError` unless the keys are those of the catalogue, each once, in its order; names some that are not.

    Args:
        keys: of a table.
        directory: the data set's.
        split: name.
        path: the table's file, for the message.
    """
    pairs = itertools.zip_longest(keys, (row.key for row in read_catalog(directory, split=split)))
    if all(seen == expected for seen, expected in pairs):
        return
    seen, expected = Counter(keys), Counter(row.key for row in read_catalog(directory, split=split))
    found = {
        "missing": list((expected - seen).keys()),
        "twice or more": [key for key, count in seen.items() if key in expected and count > expected[key]],
        "not in the catalogue": [key for key in seen if key not in expected],
    }
    parts = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in found.items() if keys]
    raise DataError(f"not the images of {split!r}: {'; '.join(parts) or 'in another order than the catalogue'}", path=path)


def check_unchanged(promised: Claim, directory: str | os.PathLike[str]) -> None:
    """Raises `DataError` if a data set is not the one that was promised: it was replaced in the meantime."""
    ids = hash_names(row.key for row in read_catalog(directory, split=promised["split"]))
    found = {"data_root_hash": manifests.load(directory).root_hash, "expected_ids_sha256": ids}
    if other := [f"{name} {value!r}, not {promised[name]!r}" for name, value in found.items() if value != promised[name]]:
        raise DataError(f"the data set was replaced during the evaluation: {'; '.join(other)}", path=directory)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")


def differences(one: Claim, other: Mapping[str, Any]) -> list[str]:
    """Describes each difference of another claim."""
    return [f"{name} {other.get(name)!r}, not {one[name]!r}" for name in one if other.get(name) != one[name]]


def retract(folder: Path, promised: Claim, names: Sequence[str]) -> None:
    """Removes the receipt of another evaluation from a folder, and then the files `names` that it vouched for."""
    try:
        old = read_json(folder / RECEIPT_NAME)
        if isinstance(old, dict) and not differences(promised, old):
            return
    except FileNotFoundError:
        return
    except DataError:
        pass
    for name in (RECEIPT_NAME, *names):
        (folder / name).unlink(missing_ok=True)
