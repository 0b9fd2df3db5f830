"""One row per input: an image to pack, or an input that is rejected before anyone opens it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
}
"""Usual split names, in lower case, to the name used in a data set."""

LABEL_LIST = "label_list"  # the reason of rows that hold several labels where one is needed


def one_split(by_name: Mapping[Any, Any]) -> str:
    """Returns an error message if several names stand for one split, else ""."""
    splits = list(by_name.values())
    double = " and ".join(str(name) for name, split in by_name.items() if splits.count(split) > 1)
    return double and f"{double} would be one split: join them, or name one otherwise"


class Source(NamedTuple):
    """One input: an image to pack, or a rejected input, which has a reason."""

    key: str  # unique in the data set, independent of the input's location
    filename: str  # relative; "" where the image is not a file: then it follows from key and format
    split: str | None
    class_name: str | None  # None: meant to have no label
    kind: str  # how a worker reads it: "file", "hdf5" or "tfrecord"; "" for a rejected input
    path: str  # of the file that holds it
    place: int = 0  # in that file: the row of an array, the offset of a record
    num_bytes: int = 0  # of the file
    mtime_ns: int = 0  # of the file
    row: str = ""  # "labels.csv: line 7" where a table names it
    reason: str | None = None  # "unreadable", "bad_name", "no_class", "no_group", "bad_row", LABEL_LIST or "link_loop"
    message: str | None = None  # the reason in words
    fatal: bool = True  # False where nothing is lost (a link that leads back): it does not fail a build
    group: str | None = None  # what it belongs to: a patient, a place, a burst; None: unknown, or without groups


def rejected(key: str, path: str, reason: str, message: str, *, fatal: bool = True) -> Source:
    """Returns a rejected input."""
    return Source(key, "", None, None, "", path, reason=reason, message=message, fatal=fatal)


@dataclass
class Notes:
    """Findings of a listing besides inputs."""

    hidden: Counter[str] = dataclasses.field(default_factory=Counter)  # .DS_Store, __MACOSX, ...
    empty_folders: list[str] = dataclasses.field(default_factory=list)  # their keys
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)  # splits, by the input's names


@dataclass(frozen=True)
class SourceList:
    """A stream of inputs, in no particular order."""

    items: Iterator[Source]
    class_names: Sequence[str] | None = None  # in label order, where the input defines it
    notes: Notes = dataclasses.field(default_factory=Notes)  # complete once all items were taken
