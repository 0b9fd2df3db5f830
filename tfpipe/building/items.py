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


def one_split(by_name: Mapping[Any, Any]) -> str:
    """Returns an error message if several names stand for one split, else ""."""
    splits = list(by_name.values())
    double = " and ".join(str(name) for name, split in by_name.items() if splits.count(split) > 1)
    return double and f"{double} would be one split: join them, or name one otherwise"


class Source(NamedTuple):
    """One input.

    Attributes:
        key: unique in the data set, independent of the input's location.
        filename: relative; "" where the image is not a file of its own: then it follows from key
            and format.
        split: as the input gives it, or None.
        class_name: None where the image is meant to have no label.
        kind: how a worker reads it: "file", "hdf5" or "tfrecord"; "" for a rejected input.
        path: of the file that holds it.
        place: in that file: the row of an array, the offset of a record; 0 for a file of its own.
        num_bytes: size of the file at `path`.
        mtime_ns: of the file at `path`.
        row: "labels.csv: line 7" where a table names it.
        reason: of a rejected input, for counting: "unreadable", "bad_name" (not one line of UTF-8),
            "no_class" (the path does not name the class), "bad_row" (of a table) or "link_loop".
        message: the reason in words.
        fatal: False where rejecting it loses nothing (a link that leads back), so that it does not
            fail a build.
    """

    key: str
    filename: str
    split: str | None
    class_name: str | None
    kind: str
    path: str
    place: int = 0
    num_bytes: int = 0
    mtime_ns: int = 0
    row: str = ""
    reason: str | None = None
    message: str | None = None
    fatal: bool = True


def rejected(key: str, path: str, reason: str, message: str, *, fatal: bool = True) -> Source:
    """Returns a rejected input."""
    return Source(key, "", None, None, "", path, reason=reason, message=message, fatal=fatal)


@dataclass
class Notes:
    """Findings of a listing besides inputs.

    Attributes:
        hidden: number of files and folders passed over, by kind: .DS_Store, __MACOSX, ...
        empty_folders: keys of folders that hold nothing.
        renamed: the input's name of a split to the name used here, where they differ.
    """

    hidden: Counter[str] = dataclasses.field(default_factory=Counter)
    empty_folders: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class SourceList:
    """A stream of inputs, in no particular order.

    Attributes:
        items: the inputs.
        class_names: in label order, where the input defines it; None where names must be sorted.
        notes: complete once all items were taken.
    """

    items: Iterator[Source]
    class_names: Sequence[str] | None = None
    notes: Notes = dataclasses.field(default_factory=Notes)
