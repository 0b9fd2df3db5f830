"""What a source yields: a picture to take, or an input that was not taken."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfpipe.common.errors import DataError

REASONS: Mapping[str, str] = {
    "unreadable": "The file or folder cannot be read, or is no regular file.",
    "too_large": "The file has more bytes than a record can hold.",
    "bad_name": "A name is not UTF-8, or holds a line break or another control character.",
    "no_class": "The path does not say which class the picture has.",
    "bad_row": "The row of a table lacks its path, label or split, contradicts another, or leads out of the table's folder.",
    "link_loop": "A link leads to a folder that is walked already; nothing is lost by not following it.",
}
"""Reason codes of `Rejection`, each with an explaining sentence; those of the pictures' own bytes are `images.REASONS`."""

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("val", "validation", "valid", "dev"), "val"),
}
"""What a split of a usual name, in lower case, is called here, wherever it is named."""


def one_split(by_name: Mapping[Any, Any]) -> str:
    """Returns what is wrong where several names stand for one split, or ""."""
    splits = list(by_name.values())
    double = " and ".join(str(name) for name, split in by_name.items() if splits.count(split) > 1)
    return double and f"{double} would be one split: join them, or name one otherwise"


@dataclass(frozen=True, slots=True)
class Source:
    """One picture to take.

    Attributes:
        key: unique in the data set, independent of where the input lies.
        filename: relative; "" where the picture is no file of its own, so that its name follows from key and format.
        split: as the input gives it, or None.
        class_name: None where the picture has no label by intent.
        kind: how a worker reads it: "file", "hdf5" or "tfrecord".
        path: of the file that holds it.
        place: in that file: the row of an array, the offset of a record; 0 for a file of its own.
        num_bytes: size of the file at `path`.
        mtime_ns: of the file at `path`.
        row: "labels.csv: line 7" where a table names it.
    """

    key: str
    filename: str
    split: str | None
    class_name: str | None
    kind: str
    path: str
    place: int
    num_bytes: int
    mtime_ns: int
    row: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One input that was not taken.

    Attributes:
        key: what it would have been called.
        path: where it lies.
        reason: a code of `REASONS`, for counting.
        message: the reason in words.
        fatal: False where nothing is lost by not taking it (a link that leads back), so that it does not fail a build.
    """

    key: str
    path: str
    reason: str
    message: str
    fatal: bool = True


Item = Source | Rejection


@dataclass
class Notes:
    """What a listing finds beside items.

    Attributes:
        hidden: how many files and folders were passed over, by kind: .DS_Store, __MACOSX, ...
        empty_folders: keys of folders that hold nothing.
        renamed: splits that are called otherwise here, by the name that the input gives them.
    """

    hidden: Counter[str] = dataclasses.field(default_factory=Counter)
    empty_folders: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """A stream of items, and the order of the classes where the input defines one.

    Attributes:
        items: one per picture or rejected input, in no particular order.
        class_names: label i is the name at i; None where names are to be sorted.
        notes: complete when all items were taken.
    """

    items: Iterator[Item]
    class_names: Sequence[str] | None = None
    notes: Notes = dataclasses.field(default_factory=Notes)

    @staticmethod
    def joined(listings: Sequence[Listing]) -> Listing:
        """Returns one listing of all.

        Raises:
            DataError: two of them order their classes differently; one may lack the last ones.
        """
        orders = [listing.class_names for listing in listings if listing.class_names is not None]
        orders.sort(key=len, reverse=True)
        for other in orders[1:]:
            if list(other) != list(orders[0][: len(other)]):
                raise DataError(f"the inputs name their classes differently: {list(orders[0])} and {list(other)}")
        return Listing(itertools.chain.from_iterable(x.items for x in listings), orders[0] if orders else None)
