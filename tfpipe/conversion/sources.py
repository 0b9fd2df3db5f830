"""Where pictures come from: every layout becomes a stream of `Source`, one per picture, and `Rejection`.

    listing = list_sources({None: Path("photos")}, layout="folders")
    for item in listing.items: ...            # Source(key="cat/1.jpg", class_name="cat", ...)

Nothing is read here but directories and tables; the pictures themselves are read by the workers (`tasks.py`).
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tfpipe.conversion import hdf5, prepared, walking
from tfpipe.conversion.items import Item, Listing, Rejection, Source
from tfpipe.records.errors import DataError
from tfpipe.records.files import is_hidden

LAYOUTS = ("folders", "filename", "csv", "flat", "hdf5", "tfds")
DEFAULT_LABEL_PATTERN = r"(?P<label>[^._]+)[._]"

_SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")

Inputs = Mapping[str | None, Path]  # by split; None: one input that says itself which splits it has, if any


def list_sources(
    inputs: Inputs,
    unlabelled: Mapping[str, Path],
    layout: str,
    label_pattern: str = DEFAULT_LABEL_PATTERN,
    *,
    to_be_cut: bool = False,
) -> Listing:
    """Returns every picture of the inputs.

    Args:
        inputs: folder or file by split name, or one under None.
        unlabelled: folders of pictures without labels, by split name.
        layout: one of `LAYOUTS`.
        label_pattern: for layout "filename": a regular expression with one named group, matched from the name's start.
        to_be_cut: the caller cuts one input into splits, so that a folder called "train" beside others is a class.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: an input is not of the layout, or the pattern is wrong.
        DataError: an input's own files contradict each other.
    """
    for path in (*inputs.values(), *unlabelled.values()):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such input")
    pattern = _compile(label_pattern)
    listings = []
    for split, path in inputs.items():
        if layout == "csv":
            listings.append(Listing(_csv_items(_file(path, layout), split)))
        elif layout == "hdf5":
            listings.append(hdf5.list_arrays(_file(path, layout), split))
        elif layout == "tfds":
            listings.append(prepared.list_records(path, split))
        else:
            label_of = {"folders": _first_folder, "filename": _in_name(pattern), "flat": _no_label}[layout]
            split_of = _split_by_folder(path, to_be_cut) if split is None else _named(split)
            listings.append(Listing(_picture_items(path, "" if split is None else f"{split}/", split_of, label_of)))
    listings += [Listing(_picture_items(path, f"{split}/", _named(split), _no_label)) for split, path in unlabelled.items()]
    joined = Listing.joined(listings)
    return Listing(map(_with_good_names, joined.items), joined.class_names)


def _with_good_names(item: Item) -> Item:
    """Returns the item, or a rejection where one of its names could not be stored as one line of UTF-8."""
    names = (item.key, item.filename, item.class_name or "") if isinstance(item, Source) else (item.key,)
    # Bytes of a file's name that are not UTF-8 reach Python as lone surrogates, which are not printable either.
    if not any(map(_CONTROL.search, names)):
        return item
    key = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), item.key)
    path = item.path.encode("utf-8", "backslashreplace").decode()
    return Rejection(
        key, path, "bad_name", "a name is not UTF-8, or holds a line break or another control character: rename it"
    )


def guess_layout(path: Path) -> str:
    """Returns the layout of an input where that is certain.

    Raises:
        ValueError: it is not; the message says between which.
    """
    if path.suffix.lower() == ".csv" and path.is_file():
        return "csv"
    if path.suffix.lower() in _HDF5_SUFFIXES and path.is_file():
        return "hdf5"
    if path.is_file():
        raise ValueError(f"{path}: input must be a folder, a .csv or an .h5 file")
    if prepared.is_prepared(path):
        return "tfds"
    top = [entry for entry in os.scandir(path) if not is_hidden(entry.name)]
    folders = [entry for entry in top if entry.is_dir()]
    if folders and {entry.name.lower() for entry in folders} <= set(_SPLIT_FOLDERS):
        top = [entry for folder in folders for entry in os.scandir(folder.path) if not is_hidden(entry.name)]
    if top and all(entry.is_dir() for entry in top):
        return "folders"
    raise ValueError(
        f"{path}: the layout is not certain here: pass layout=folders (one folder per class), filename (the class is in"
        " the file's name), or flat (no labels)"
    )


def _file(path: Path, layout: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: layout {layout!r} takes a file")
    return path


def _compile(label_pattern: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise ValueError(f"label_pattern {label_pattern!r} is not a regular expression: {error}") from None
    if len(pattern.groupindex) != 1:
        raise ValueError(f"label_pattern must have one named group, as in {DEFAULT_LABEL_PATTERN!r} (got {label_pattern!r})")
    return pattern


# A label function returns the class name of a picture at a path relative to its split, None where it has none by intent,
# and raises a LookupError that says what is missing.
LabelOf = Callable[[PurePosixPath], str | None]


def _first_folder(relative: PurePosixPath) -> str:
    if len(relative.parts) < 2:
        raise LookupError("stands outside the class folders")
    return relative.parts[0]


def _in_name(pattern: re.Pattern[str]) -> LabelOf:
    (group,) = pattern.groupindex

    def label_of(relative: PurePosixPath) -> str:
        match = pattern.match(relative.name)
        if not match or not match.group(group):
            raise LookupError(f"its name does not match the label pattern {pattern.pattern!r}")
        return match.group(group)

    return label_of


def _no_label(_: PurePosixPath) -> None:
    return None


# A split function returns the split of a path relative to its input, the path below the split's folder, and raises a
# LookupError where it stands beside them.
SplitOf = Callable[[PurePosixPath], tuple[str | None, PurePosixPath]]


def _named(split: str) -> SplitOf:
    return lambda relative: (split, relative)


def _no_split(relative: PurePosixPath) -> tuple[None, PurePosixPath]:
    return None, relative


def _split_by_folder(root: Path, to_be_cut: bool) -> SplitOf:
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    by_folder = {name: _SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in _SPLIT_FOLDERS}
    others = [name for name in names if name not in by_folder]
    if not by_folder or (others and to_be_cut):
        return _no_split
    if others:
        raise ValueError(
            f"{root}: beside the split folders {', '.join(by_folder)} stand {', '.join(others[:5])}: name each split's folder,"
            " as in --input=train=DIR,test=DIR2 and --unlabelled=test1=DIR3; or, if they are classes, cut them with --splits"
        )
    if len(set(by_folder.values())) < len(by_folder):
        raise ValueError(f"{root}: {' and '.join(by_folder)} would be one split: name the folders with --input")

    def split_of(relative: PurePosixPath) -> tuple[str, PurePosixPath]:
        if len(relative.parts) < 2:
            raise LookupError(f"stands outside the split folders {', '.join(by_folder)}")
        return by_folder[relative.parts[0]], PurePosixPath(*relative.parts[1:])

    return split_of


def _picture_items(root: Path, prefix: str, split_of: SplitOf, label_of: LabelOf) -> Iterator[Item]:
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder")
    for item in walking.walk(root):
        if isinstance(item, Rejection):
            yield Rejection(prefix + item.key, item.path, item.reason, item.message, item.fatal)
            continue
        key = prefix + item.relative
        try:
            split, below = split_of(PurePosixPath(item.relative))
            class_name = label_of(below)
        except LookupError as error:
            yield Rejection(key, item.path, "no_class", str(error.args[0]))
            continue
        yield Source(key, key, split, class_name, "file", item.path, 0, item.num_bytes, item.mtime_ns)


def _csv_items(path: Path, split: str | None) -> Iterator[Item]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            columns = [name.strip().lower() for name in table.fieldnames or ()]
            if not {"path", "label"} <= set(columns) or len(set(columns)) != len(columns):
                raise _wrong_columns(path, columns)
            table.fieldnames = columns
            for row in table:
                yield _csv_item(path, table.line_num, row, split)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"line {table.line_num + 1} cannot be read as UTF-8 CSV ({error})", path=path) from None


def _wrong_columns(path: Path, columns: list[str]) -> ValueError:
    wanted = "path, label (empty for unlabelled pictures) and, optionally, split and id, each once"
    return ValueError(f"{path}: the first line must name the columns {wanted} (got {columns})")


def _csv_item(table: Path, line: int, row: Mapping[str | None, object], split: str | None) -> Item:
    def cell(column: str) -> str:
        value = row.get(column)
        return value.strip() if isinstance(value, str) else ""

    given = cell("path").replace("\\", "/")
    place = f"{table}: line {line}"
    if not given or None in row:
        problem = "has no path" if not given else "has more fields than the header (quote paths that hold a comma)"
        return Rejection(f"{table.name}#line{line}", place, "bad_row", f"the row {problem}")
    if split is not None and cell("split") not in ("", split):
        return Rejection(given, place, "bad_row", f"the row says split {cell('split')!r}, the input is named {split!r}")
    if _CONTROL.search(given):
        return Rejection(f"{table.name}#line{line}", place, "bad_row", "the path holds a control character")
    relative = os.path.normpath(given).replace(os.sep, "/")
    inside = not os.path.isabs(given) and not relative.startswith("../")
    key = cell("id") or relative
    if not inside and not cell("id"):
        return Rejection(given, place, "bad_row", "the path leads out of the table's folder: give the row an id")
    source = table.parent / given
    filename = relative if inside else f"{key}{source.suffix}"
    if PurePosixPath(filename).is_absolute() or ".." in PurePosixPath(filename).parts:
        return Rejection(key, place, "bad_row", "the id names the file to be, and would lead out of its folder")
    try:
        status = source.stat()
    except OSError as error:
        return Rejection(key, str(source), "unreadable", f"{error.strerror} (line {line} of {table.name})")
    if not stat.S_ISREG(status.st_mode):
        return Rejection(key, str(source), "unreadable", f"not a regular file (line {line} of {table.name})")
    return Source(
        key,
        filename,
        split or _SPLIT_FOLDERS.get(cell("split").lower(), cell("split")) or None,
        cell("label") or None,
        "file",
        str(source),
        0,
        status.st_size,
        status.st_mtime_ns,
    )
