"""Data sets prepared by tensorflow-datasets as TFRecords, read without TensorFlow.

The encoded bytes of the one Image feature are taken over; the labels keep their numbers. Formats:
dataset_info.json and features.json as tensorflow-datasets 4.9 writes them.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tfpipe.building.inputs.items import Notes, Source, SourceList, one_split
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, read_bytes
from tfpipe.common.text import exactly
from tfpipe.records import example, tfrecord
from tfpipe.records.manifest import FEATURES_NAME, INFO_NAME


class _Layout(NamedTuple):
    image: str
    label: str
    class_names: list[str]


def is_prepared(folder: Path) -> bool:
    """True for a folder with the two files of a prepared data set."""
    return (folder / INFO_NAME).is_file() and (folder / FEATURES_NAME).is_file()


def list_records(folder: Path, only: str | None, split_names: Mapping[str, str], notes: Notes) -> SourceList:
    """Returns the records of a prepared data set (of one split, or all); keys are "SHARD#000042".

    `folder` is of one version of the data set, with dataset_info.json; `notes` gets renamed splits.

    Raises:
        ValueError: the folder is not a prepared data set.
        DataError: it does not have one Image and one ClassLabel, two splits would be one, or a
            shard is missing or not complete.
    """
    if not is_prepared(folder):
        raise ValueError(f"{folder}: layout 'tfds' takes the folder that holds {INFO_NAME} and {FEATURES_NAME}")
    try:
        return _list_records(folder, only, split_names, notes)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        message = f"{INFO_NAME} or {FEATURES_NAME} is not as tensorflow-datasets writes it ({type(error).__name__}: {error})"
        raise DataError(message, path=folder) from None


def _list_records(folder: Path, only: str | None, split_names: Mapping[str, str], notes: Notes) -> SourceList:
    info = _json(folder / INFO_NAME)
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(f"file format {info['fileFormat']!r}, only 'tfrecord' can be read", path=folder / INFO_NAME)
    layout = _layout(folder)
    splits = {split["name"]: split for split in info.get("splits", ())}
    here = {name: split_names.get(name.lower(), name) for name in splits}
    names = [name for name in splits if only in (None, name, here[name])]
    if only is not None and not names:
        raise DataError(f"there is no split {only!r}: it has {', '.join(splits)}", path=folder / INFO_NAME)
    if double := one_split({name: here[name] for name in names}):
        raise DataError(double, path=folder / INFO_NAME)
    shards = [(here[name], *shard) for name in names for shard in _shards(folder, info["name"], splits[name])]
    notes.renamed |= {name: here[name] for name in names if here[name] != name}
    return SourceList((item for shard in shards for item in _shard_items(*shard, layout)), layout.class_names)


def read_image(path: str, offset: int) -> bytes:
    """Returns the encoded image of the record at `offset`; raises DataError if damaged."""
    with open_regular(path) as file:
        data = tfrecord.read_frame(file, offset, os.path.getsize(path), path)
    return _parse(data, _cached_layout(Path(path).parent), Path(path), offset)[0]


def _shards(folder: Path, name: str, split: Mapping[str, Any]) -> list[tuple[Path, int]]:
    """Returns (file, number of records) of a split's shards."""
    lengths = [int(length) for length in split["shardLengths"]]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    values = {"DATASET": name, "SPLIT": split["name"], "FILEFORMAT": "tfrecord", "NUM_SHARDS": len(lengths)}
    files = [
        template.format(**values, SHARD_X_OF_Y=f"{shard:05d}-of-{len(lengths):05d}", SHARD_INDEX=f"{shard:05d}")
        for shard in range(len(lengths))
    ]
    return [(folder / file, length) for file, length in zip(files, lengths, strict=True)]


def _shard_items(split: str, path: Path, expected: int, layout: _Layout) -> Iterator[Source]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"missing: a shard of {exactly(expected, 'record')}", path=path) from None
    count = 0
    for frame in tfrecord.read_frames(path):
        _, label = _parse(frame.data, layout, path, frame.offset)
        key = f"{path.name}#{count:06d}"
        class_name = layout.class_names[label] if label >= 0 else None
        yield Source(key, "", split, class_name, "tfrecord", str(path), frame.offset, status.st_size, status.st_mtime_ns)
        count += 1
    if count != expected:
        raise DataError(f"{exactly(count, 'record')}, {INFO_NAME} lists {expected} (truncated file)", path=path)


def _parse(data: bytes, layout: _Layout, path: Path, offset: int) -> tuple[bytes, int]:
    try:
        features = example.decode(data)
    except DataError as error:
        raise DataError(f"not a tf.train.Example ({error.message})", path=path, offset=offset) from None
    image, label = features.get(layout.image), features.get(layout.label)
    if not image or not isinstance(image[0], bytes) or not label or not isinstance(label[0], int):
        raise DataError(f"the record lacks {layout.image!r} or {layout.label!r}", path=path, offset=offset)
    if not -1 <= label[0] < len(layout.class_names):  # -1: no label
        raise DataError(
            f"label {label[0]}, there are {exactly(len(layout.class_names), 'class', 'classes')}", path=path, offset=offset
        )
    return image[0], label[0]


def _layout(folder: Path) -> _Layout:
    features = _json(folder / FEATURES_NAME).get("featuresDict", {}).get("features", {})
    kinds = {name: str(feature.get("pythonClassName", "")).rsplit(".", 1)[-1] for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) != 1 or len(labels) != 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in kinds.items()) or "none"
        raise DataError(f"must have exactly one Image and one ClassLabel; its features: {listed}", path=folder / FEATURES_NAME)
    names_file = folder / f"{labels[0].replace('/', '.')}.labels.txt"
    if names_file.is_file():
        class_names = read_bytes(names_file).decode().splitlines()
    else:
        count = int(features[labels[0]].get("classLabel", {}).get("numClasses", 0))
        class_names = [str(label) for label in range(count)]
    return _Layout(images[0], labels[0], class_names)


_cached_layout = functools.lru_cache(maxsize=16)(_layout)  # for workers; the parent lists a folder once


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise DataError(f"not JSON ({error})", path=path) from None
    if not isinstance(content, dict):
        raise DataError("not a JSON object", path=path)
    return content
