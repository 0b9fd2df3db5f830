"""The inputs of a build: every layout becomes a stream of `Source`, one per input.

    listing = list_sources({None: Path("photos")}, layout="folders")
    for item in listing.items: ...            # Source(key="cat/1.jpg", class_name="cat", ...)

Only folders and tables are read here; the images themselves are read by the workers (`tasks.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tfpipe.building import groups
from tfpipe.building.inputs import csv_rows, hdf5, prepared
from tfpipe.building.inputs.csv_rows import Choice
from tfpipe.building.inputs.items import SPLIT_NAMES, Notes, Source, SourceList, one_split, rejected
from tfpipe.common import tables
from tfpipe.common.errors import DataError
from tfpipe.common.files import is_hidden
from tfpipe.listing.folders import walk
from tfpipe.records.manifest import CONTROL

LAYOUTS = ("folders", "filename", "csv", "flat", "hdf5", "tfds")
DEFAULT_LABEL_PATTERN = r"(?P<label>[^._]+)[._]"

_CLASSES_TOO = {"valid", "dev"}  # names of splits beside others, and alone of classes: valid and broken
_KINDS = {name.lower(): name for name in (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX")}  # of hidden names
_HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")

_FOUND = Choice()

Inputs = Mapping[str | None, Path]  # by split; None: one input that defines its splits itself, if any


def list_sources(
    inputs: Inputs,
    unlabelled: Mapping[str, Path],
    layout: str,
    label_pattern: str = DEFAULT_LABEL_PATTERN,
    *,
    will_be_cut: bool = False,
    normalize: str = "none",
    choice: Choice = _FOUND,
    group_pattern: str | None = None,
) -> SourceList:
    """Returns every input: of `inputs` by split (or None) in a layout, and of `unlabelled` folders.

    With `will_be_cut`, the caller cuts one input into splits, and a folder called "train" beside
    others is a class. Other arguments as in `build_tfrecords`.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: an input is not of the layout, or the pattern is wrong.
        DataError: an input's own files contradict each other.
    """
    for path in (*inputs.values(), *unlabelled.values()):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such input")
    label_in_name = _in_name(label_pattern)
    listings: list[SourceList] = []
    notes = Notes()
    for split, path in inputs.items():
        if layout in ("csv", "hdf5") and not path.is_file():
            raise ValueError(f"{path}: layout {layout!r} needs a file")
        if layout == "csv":
            listings.append(SourceList(csv_rows.list_rows(path, split, choice, notes)))
        elif layout == "hdf5":
            listings.append(hdf5.list_arrays(path, split))
        elif layout == "tfds":
            listings.append(prepared.list_records(path, split, choice.split_names, notes))
        else:
            label_of = {"folders": _first_folder, "filename": label_in_name, "flat": _no_label}[layout]
            split_of = _split_by_folder(path, will_be_cut, notes) if split is None else _named(split)
            prefix = "" if split is None else f"{split}/"
            listings.append(SourceList(_image_items(path, prefix, split_of, label_of, notes)))
    if group_pattern is not None:
        by_pattern = groups.by_pattern(group_pattern)
        listings = [dataclasses.replace(listing, items=map(by_pattern, listing.items)) for listing in listings]
    for split, path in unlabelled.items():
        listings.append(SourceList(_image_items(path, f"{split}/", _named(split), _no_label, notes)))
    names = _joined_order(listings)
    items = map(_with_good_names, itertools.chain.from_iterable(listing.items for listing in listings))
    if normalize == "nfc":
        items, names = map(_composed, items), names and [unicodedata.normalize("NFC", name) for name in names]
    return SourceList(items, names, notes)


def _joined_order(listings: Sequence[SourceList]) -> Sequence[str] | None:
    """Returns the longest order of classes; raises DataError if another is not its beginning."""
    orders = [listing.class_names for listing in listings if listing.class_names is not None]
    longest = max(orders, key=len, default=None)
    for other in orders:
        if longest is not None and list(other) != list(longest[: len(other)]):
            raise DataError(f"the inputs name their classes differently: {list(longest)} and {list(other)}")
    return longest


def _composed(item: Source) -> Source:
    class_name, group = (name and unicodedata.normalize("NFC", name) for name in (item.class_name, item.group))
    return item._replace(class_name=class_name, group=group)


def _with_good_names(item: Source) -> Source:
    """Returns the input, rejected if one of its names could not be stored as one line of UTF-8."""
    # Bytes of a file's name that are not UTF-8 reach Python as lone surrogates, which are not
    # printable either.
    if not any(map(CONTROL.search, (item.key, item.filename, item.class_name or "", item.group or ""))):
        return item
    key = CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), item.key)
    path = item.path.encode("utf-8", "backslashreplace").decode()
    message = "a name is not UTF-8, or holds a line break or another control character: rename it"
    return rejected(key, path, "bad_name", message)


def guess_layout(path: Path) -> str:
    """Returns an input's layout; raises ValueError with the candidates if it is not certain."""
    if path.is_file():
        if path.suffix.lower() in tables.SUFFIXES:
            return "csv"
        if path.suffix.lower() in _HDF5_SUFFIXES:
            return "hdf5"
        raise ValueError(f"{path}: input must be a folder, a .csv or an .h5 file")
    if prepared.is_prepared(path):
        return "tfds"
    top = [entry for entry in os.scandir(path) if not is_hidden(entry.name)]
    folders = [entry for entry in top if entry.is_dir()]
    if folders and len(_split_folders(entry.name for entry in folders)) == len(folders):
        top = [entry for folder in folders for entry in os.scandir(folder.path) if not is_hidden(entry.name)]
    if top and all(entry.is_dir() for entry in top):
        return "folders"
    raise ValueError(
        f"{path}: the layout is not certain here: pass layout=folders (one folder per class), filename (the class is in"
        " the file's name), or flat (no labels)"
    )


# A label function returns the class name of an image by its path relative to its split, None where
# it is meant to have none, and raises a LookupError with the reason where there is none.
LabelOf = Callable[[PurePosixPath], str | None]


def _first_folder(relative: PurePosixPath) -> str:
    if len(relative.parts) < 2:
        raise LookupError("stands outside the class folders")
    return relative.parts[0]


def _in_name(label_pattern: str) -> LabelOf:
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise ValueError(f"label_pattern {label_pattern!r} is not a regular expression: {error}") from None
    if len(pattern.groupindex) != 1:
        raise ValueError(f"label_pattern must have one named group, as in {DEFAULT_LABEL_PATTERN!r} (got {label_pattern!r})")
    (group,) = pattern.groupindex

    def label_of(relative: PurePosixPath) -> str:
        match = pattern.match(relative.name)
        if not match or not match.group(group):
            raise LookupError(f"its name does not match the label pattern {pattern.pattern!r}")
        return match.group(group)

    return label_of


def _no_label(_: PurePosixPath) -> None:
    return None


# A split function returns the split of a path relative to its input, and the path relative to the
# split's folder; it raises a LookupError for a path outside of these.
SplitOf = Callable[[PurePosixPath], tuple[str | None, PurePosixPath]]


def _named(split: str | None) -> SplitOf:
    return lambda relative: (split, relative)


def _split_folders(names: Iterable[str]) -> dict[str, str]:
    """Returns the splits of the folders that are named after one, by the folder's name."""
    found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    return {} if {name.lower() for name in found} <= _CLASSES_TOO else found


def _split_by_folder(root: Path, will_be_cut: bool, notes: Notes) -> SplitOf:
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    by_folder = _split_folders(names)
    others = [name for name in names if name not in by_folder]
    if not by_folder or (others and will_be_cut):
        return _named(None)
    if others:
        raise ValueError(
            f"{root}: beside the split folders {', '.join(by_folder)} stand {', '.join(others[:5])}: name each split's folder,"
            " as in --input=train=DIR,test=DIR2 and --unlabelled=test1=DIR3; or, if they are classes, cut them with --splits"
        )
    if double := one_split(by_folder):
        raise ValueError(f"{root}: {double}")
    notes.renamed |= {name: split for name, split in by_folder.items() if name != split}

    def split_of(relative: PurePosixPath) -> tuple[str, PurePosixPath]:
        if len(relative.parts) < 2:
            raise LookupError(f"stands outside the split folders {', '.join(by_folder)}")
        return by_folder[relative.parts[0]], PurePosixPath(*relative.parts[1:])

    return split_of


def _image_items(root: Path, prefix: str, split_of: SplitOf, label_of: LabelOf, notes: Notes) -> Iterator[Source]:
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder")
    for item in walk(root):
        key = prefix + item.name
        if item.reason == "hidden":
            name = os.path.basename(item.path)
            notes.hidden[_KINDS.get(name.lower(), "._*" if name.startswith("._") else "other hidden names")] += 1
        elif item.reason == "empty":
            notes.empty_folders.append(key)
        elif item.reason:
            yield rejected(key, item.path, item.reason, item.message, fatal=item.reason != "link_loop")
        else:
            try:
                split, below = split_of(PurePosixPath(item.name))
                yield Source(key, key, split, label_of(below), "file", item.path, 0, item.num_bytes, item.mtime_ns)
            except LookupError as error:
                yield rejected(key, item.path, "no_class", str(error.args[0]))
