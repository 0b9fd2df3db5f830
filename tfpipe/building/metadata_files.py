"""The files beside the shards: catalogue, rejected inputs, and what lets tensorflow-datasets open the folder."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfpipe.common.files import sha256_of, written_atomically
from tfpipe.records import schema
from tfpipe.records.catalog import Row
from tfpipe.records.manifest import CATALOG_NAME, COMPANION_NAMES, FEATURES_NAME, INFO_NAME, LABELS_NAME, REJECTED_NAME, Split


def write_catalog(directory: Path, parts: Iterable[Path]) -> None:
    """Joins the shards' rows, in reading order, to `catalog.csv`."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(Row._fields)
    with written_atomically(directory / CATALOG_NAME) as file:
        file.write(header.getvalue().encode())
        for part in parts:
            with open(part, "rb") as rows:
                shutil.copyfileobj(rows, file)


def write_rejected(directory: Path, rejected: Iterable[tuple[str, str, str]]) -> None:
    """Writes `rejected.jsonl`: (key, reason, message) of every input that was not taken; paths differ between machines."""
    with written_atomically(directory / REJECTED_NAME) as file:
        for key, reason, message in rejected:
            line = {"key": key, "reason": reason, "message": message}
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def write_tfds_files(directory: Path, name: str, class_names: Sequence[str], splits: Mapping[str, Split]) -> None:
    """Writes dataset_info.json, features.json and the class names, in the form of tensorflow-datasets 4.9."""
    files = {
        INFO_NAME: _json(_dataset_info(name, splits)),
        FEATURES_NAME: _json(_features(len(class_names))),
        LABELS_NAME: "".join(f"{class_name}\n" for class_name in class_names).encode(),
    }
    for file_name, content in files.items():
        with written_atomically(directory / file_name) as file:
            file.write(content)


def _dataset_info(name: str, splits: Mapping[str, Split]) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "supervisedKeys": {
            "tuple": {"items": [{"featureKey": schema.ENCODED}, {"featureKey": schema.LABEL}]},
        },
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


def _features(num_classes: int) -> dict[str, Any]:
    package = "tensorflow_datasets.core.features"

    def text() -> dict[str, Any]:
        return {"pythonClassName": f"{package}.text_feature.Text", "text": {}}

    def integer() -> dict[str, Any]:
        scalar = {"shape": {}, "dtype": "int64", "encoding": "none"}
        return {"pythonClassName": f"{package}.scalar.Scalar", "tensor": scalar}

    image = {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"}
    features = {
        schema.ENCODED: {"pythonClassName": f"{package}.image_feature.Image", "image": image},
        schema.LABEL: {
            "pythonClassName": f"{package}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(num_classes)},
        },
        **{name: text() for name in (schema.CLASS_NAME, schema.FILENAME, schema.FORMAT, schema.KEY, schema.SHA256)},
        **{name: integer() for name in (schema.CHANNELS, schema.HEIGHT, schema.ORIENTATION, schema.WIDTH)},
    }
    return {
        "pythonClassName": f"{package}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def hash_companions(directory: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that is written here, by name."""
    return {name: sha256_of(directory / name) for name in sorted(COMPANION_NAMES)}


def inputs_digest(rows: Iterable[tuple[Any, ...]]) -> str:
    """Returns one SHA-256 over every input's key, split, class and content or reason, in the order given."""
    state = hashlib.sha256()
    for row in rows:
        state.update((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return state.hexdigest()
