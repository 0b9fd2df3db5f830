"""The files beside the shards: catalog, rejected inputs, those for tensorflow-datasets."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tfpipe.building.options import Options
from tfpipe.common.files import sha256_of, written_atomically
from tfpipe.records import schema
from tfpipe.records.catalog import COLUMNS
from tfpipe.records.manifest import (
    CATALOG_NAME,
    COMPANION_NAMES,
    FEATURES_NAME,
    INFO_NAME,
    LABELS_NAME,
    MULTILABEL,
    REGRESSION,
    REJECTED_NAME,
    Split,
)


def write_catalog(directory: Path, parts: Iterable[Path], optional: Iterable[str] = ()) -> None:
    """Joins the shards' rows, in reading order, into `catalog.csv`; with some of the `OPTIONAL` columns."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow([*COLUMNS, *optional])
    with written_atomically(directory / CATALOG_NAME) as file:
        file.write(header.getvalue().encode())
        _join(parts, file)


def write_frames(path: Path, parts: Iterable[Path]) -> str:
    """Joins the shards' frames, in reading order; returns the SHA-256."""
    with written_atomically(path) as file:
        _join(parts, file)
    return sha256_of(path)


def _join(parts: Iterable[Path], file: BinaryIO) -> None:
    for part in parts:
        with open(part, "rb") as content:
            shutil.copyfileobj(content, file)


def write_rejected(directory: Path, rejected: Iterable[tuple[str, str, str]]) -> None:
    """Writes key, reason and message of rejected inputs; paths differ between machines."""
    with written_atomically(directory / REJECTED_NAME) as file:
        for key, reason, message in rejected:
            file.write(_line({"key": key, "reason": reason, "message": message}))


def write_tfds_files(
    directory: Path, options: Options, class_names: Sequence[str], splits: Mapping[str, Split], optional: Iterable[str] = ()
) -> None:
    """Writes dataset_info.json, features.json and class names for tensorflow-datasets 4.9."""
    features = _features(len(class_names), options.task, optional)
    for file_name, content in ((INFO_NAME, _dataset_info(options, splits)), (FEATURES_NAME, features)):
        with written_atomically(directory / file_name) as file:
            file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    with written_atomically(directory / LABELS_NAME) as file:
        file.write("".join(f"{class_name}\n" for class_name in class_names).encode())


def _dataset_info(options: Options, splits: Mapping[str, Split]) -> dict[str, Any]:
    label = schema.TARGET if options.task == REGRESSION else schema.LABEL
    return {
        "name": options.name,
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "supervisedKeys": {"tuple": {"items": [{"featureKey": schema.ENCODED}, {"featureKey": label}]}},
        "splits": [
            {
                "name": split_name,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(shard.num_records) for shard in split.shards],
                "numBytes": str(split.num_bytes),
            }
            for split_name, split in splits.items()
        ],
    }


def _features(num_classes: int, task: str, optional: Iterable[str]) -> dict[str, Any]:
    def feature(kind: str, key: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", key: facts}

    scalar = {"shape": {}, "dtype": "int64", "encoding": "none"}
    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"}
    texts = (schema.CLASS_NAME, schema.FILENAME, schema.FORMAT, schema.KEY, schema.SHA256, *optional)
    integers = (schema.CHANNELS, schema.HEIGHT, schema.ORIENTATION, schema.WIDTH)
    features = {
        schema.ENCODED: feature("image_feature.Image", "image", image),
        schema.LABEL: feature("class_label_feature.ClassLabel", "classLabel", {"numClasses": str(num_classes)}),
        **{name: feature("text_feature.Text", "text", {}) for name in texts},
        **{name: feature("scalar.Scalar", "tensor", scalar) for name in integers},
    }
    if task == MULTILABEL:
        label = features[schema.LABEL]
        for name in (schema.LABEL, schema.UNKNOWN):
            features[name] = feature("sequence_feature.Sequence", "sequence", {"feature": label, "length": "-1"})
        features[schema.COMBINATION] = feature("scalar.Scalar", "tensor", scalar)
    if task == REGRESSION:
        numbers = {"shape": {"dimensions": [str(num_classes)]}, "dtype": "float32", "encoding": "none"}
        del features[schema.LABEL]
        features[schema.TARGET] = feature("tensor_feature.Tensor", "tensor", numbers)
        features[schema.TARGET_ROW] = feature("scalar.Scalar", "tensor", scalar)
    return feature("features_dict.FeaturesDict", "featuresDict", {"features": features})


def hash_companions(directory: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that is written here, by name."""
    return {name: sha256_of(directory / name) for name in sorted(COMPANION_NAMES)}


def inputs_digest(rows: Iterable[tuple[Any, ...]]) -> str:
    """Returns one SHA-256 over every input's key, split, class and content or reason."""
    state = hashlib.sha256()
    for row in rows:
        state.update(_line(row))
    return state.hexdigest()


def _line(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()
