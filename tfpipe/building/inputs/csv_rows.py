"""The rows of a table as sources: which columns count, and which file a path or an id means."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tfpipe.building.inputs.items import LABEL_LIST, SPLIT_NAMES, Notes, Source, one_split, rejected
from tfpipe.common import tables
from tfpipe.common.errors import DataError
from tfpipe.common.files import IMAGE_SUFFIXES
from tfpipe.common.text import plural
from tfpipe.listing.folders import walk
from tfpipe.records.combinations import LabelLists, ListInCell
from tfpipe.records.manifest import CONTROL, check_name
from tfpipe.records.targets import TargetColumns

_log = logging.getLogger("tfpipe")

_PATH_COLUMNS = (*tables.FILE_COLUMNS, *tables.ID_COLUMNS)
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "category_name", "label_name", "target")
_NOT_FOUND = os.strerror(errno.ENOENT)
_SHOWN = 5  # folders in a warning, and files in a message


class Choice(NamedTuple):
    """How tables are read; None: found."""

    images: Path | None = None  # the folder that paths are relative to; None: the table's own
    path_column: str | None = None  # of paths or ids
    label_column: str | None = None
    split_names: Mapping[str, str] = SPLIT_NAMES  # a table's names to those used here
    group: str | None = None  # column of groups; None: there are none
    label_lists: LabelLists | TargetColumns | None = None  # of several labels an image, or of numbers


def list_rows(path: Path, split: str | None, choice: Choice, notes: Notes) -> Iterator[Source]:
    """Yields the input that each row of a table names; all rows are of `split`, unless it is None.

    Raises:
        ValueError: a column is missing, or there twice.
        DataError: the table is damaged, two of its splits would be one, or none of its paths
            exists.
    """
    with tables.opened(path) as table:
        path_column, label_column = _columns(table, choice)
        group_column = table.column((), "group", choice.group)
        finder = _Finder(os.path.abspath(choice.images or path.parent))
        rows = _Rows(table, split, choice, path_column, label_column, group_column, finder, notes, {})
        missing: list[Source] = []
        found = False
        for line, fields in table.rows:
            item = rows.item(line, fields)
            if item.message and item.message.startswith(_NOT_FOUND):
                missing.append(item)
            else:
                found = found or not item.reason
                yield item
    if double := one_split(rows.splits):
        raise DataError(double, path=path)
    if missing and not found:
        raise finder.none_found(path, path_column, missing)
    if len(finder.folders) > 1:
        counts = ", ".join(f"{count} in {folder or '.'}" for folder, count in finder.folders.most_common(_SHOWN))
        more = ", ..." if len(finder.folders) > _SHOWN else ""
        _log.warning("ids of %s were found in several folders: %s%s; pass images=DIR to name one", path.name, counts, more)
    yield from missing


def _columns(table: tables.Table, choice: Choice) -> tuple[str, str | None]:
    path = table.column(_PATH_COLUMNS, "path_column", choice.path_column)
    if choice.label_lists is not None and choice.label_lists.columns is not None:
        wanted = [path, *map(tables.column_of, choice.label_lists.columns)]
        lacking = [name for name in wanted if table.columns.count(name or "") != 1 or wanted.count(name) > 1]
        if path is None or lacking:
            missing = ", ".join(str(name or "a column of paths") for name in lacking)
            raise ValueError(f"{table.path}: missing, or there twice: {missing}; there are {table.columns}")
        return path, None
    label = table.column([name for name in _LABEL_COLUMNS if name != path], "label_column", choice.label_column)
    used = [path, label, "split", "id"]
    if path is None or label is None or any(table.columns.count(name) > 1 for name in used if name):
        raise ValueError(
            f"{table.path}: the first line must name the columns path, label (empty for unlabelled images) and, optionally,"
            f" split and id, each once (got {table.columns}); name them with path_column and label_column"
        )
    if (path, label, table.separator) != ("path", "label", "comma"):
        found = table.path, path, label, table.separator
        _log.info("%s: paths are taken from column %r, labels from %r, separated by %ss", *found)
    return path, label


class _Rows(NamedTuple):
    table: tables.Table
    split: str | None
    choice: Choice
    path_column: str
    label_column: str | None
    group_column: str | None
    finder: _Finder
    notes: Notes
    splits: dict[str, str]  # by the names in the rows, in lower case

    def item(self, line: int, fields: list[str]) -> Source:
        """Returns the input that one row names."""
        cells = {name: cell.strip() for name, cell in zip(self.table.columns, fields, strict=False)}
        given = cells.get(self.path_column, "").replace("\\", "/")
        place, numbered = f"{self.table.path}: line {line}", f"{self.table.path.name}#line{line}"
        at = f"line {line} of {self.table.path.name}"
        if not given:
            return rejected(numbered, place, "bad_row", "the row has no path")
        if len(fields) > len(self.table.columns):
            problem = f"the row has more fields than the header (quote paths that hold a {self.table.separator})"
            return rejected(numbered, place, "bad_row", problem)
        if CONTROL.search(given):
            return rejected(numbered, place, "bad_row", "the path holds a control character")
        given_split = cells.get("split", "")
        split = self.choice.split_names.get(given_split.lower(), given_split) or self.split
        if self.split is not None and split != self.split:
            return rejected(given, place, "bad_row", f"the row has split {given_split!r}, the input is named {self.split!r}")
        try:
            check_name("a split's name", split or "none")
        except ValueError as error:
            return rejected(given, place, "bad_row", f"{given}: {error}")
        if split and given_split:
            self.splits[given_split.lower()] = split
            if split != given_split:
                self.notes.renamed[given_split] = split
        given_id = cells.get("id", "") if self.path_column != "id" else ""
        try:
            key, filename, path, status = self._named(given, given_id)
        except LookupError as error:
            return rejected(given_id or given, place, "bad_row", str(error.args[0]))
        except OSError as error:
            key, path = given_id or os.path.normpath(given).replace(os.sep, "/"), os.path.join(self.finder.base, given)
            return rejected(key, path, "unreadable", f"{error.strerror or _NOT_FOUND} ({at})")
        if not stat.S_ISREG(status.st_mode):
            return rejected(key, path, "unreadable", f"not a regular file ({at})")
        try:
            label = self._label(cells)
        except LookupError as error:
            reason = LABEL_LIST if isinstance(error, ListInCell) else "bad_row"
            return rejected(key, place, reason, f"{key}: {error.args[0]}")
        group = None if self.group_column is None else cells.get(self.group_column, "")
        if group == "":
            message = f"{key}: the row names no group in column {self.group_column!r}: an image that is alone needs a name, too"
            return rejected(numbered, place, "bad_row", message)
        facts = status.st_size, status.st_mtime_ns
        return Source(key, filename, split, label, "file", path, 0, *facts, place, group=group)

    def _label(self, cells: Mapping[str, str]) -> str | None:
        if self.choice.label_lists is not None:
            return self.choice.label_lists.text(cells, self.label_column)
        return cells.get(self.label_column or "") or None

    def _named(self, given: str, given_id: str) -> tuple[str, str, str, os.stat_result]:
        """Returns (key, file name in the data set, path, status) of a row, or raises as `find`."""
        relative = given if given_id else self.finder.below(given)
        relative = os.path.normpath(relative).replace(os.sep, "/")
        inside = not os.path.isabs(relative) and not relative.startswith("../")
        if not inside and not given_id:
            there = "" if os.path.lexists(os.path.join(self.finder.base, given)) else f"{_NOT_FOUND}, and "
            raise LookupError(f"{there}the path leads out of the folder: pass images=DIR that holds it, or give the row an id")
        filename = relative if inside else f"{given_id}{PurePosixPath(given).suffix}"
        if filename.startswith("/") or ".." in filename.split("/"):
            raise LookupError("the id becomes the file's name, and would lead out of its folder")
        path, found, status = self.finder.find(given, relative if inside else "")
        return given_id or found or relative, found or filename, path, status


class _Finder:
    """Finds files below a folder by path, in any Unicode form, or by id (name without ending)."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.folders: Counter[str] = Counter()  # in which ids without one were found
        self._index: _Index | None = None

    def below(self, given: str) -> str:
        """Returns an absolute path into the folder as a relative one, and others unchanged."""
        if os.path.isabs(given):
            for base in (self.base, os.path.realpath(self.base)):
                if (path := os.path.normpath(given)).startswith(f"{base}{os.sep}"):
                    return os.path.relpath(path, base)
        return given

    def find(self, given: str, relative: str) -> tuple[str, str, os.stat_result]:
        """Returns (path, path below the folder if found by an id, status) of a given path or id.

        `relative` is the same relative to the folder, or "" where it leads out. Raises LookupError
        for an id of several files, OSError if there is none.
        """
        path = os.path.join(self.base, given)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                return path, "", status
        if self._index is None:
            self._index = _Index(self.base)
        name = unicodedata.normalize("NFC", relative)
        found = self._index.find(name)
        if len(found) > 1:
            raise LookupError(f"{given!r} may be any of {', '.join(found[:_SHOWN])}: write the path of the one that is meant")
        if found:
            path = os.path.join(self.base, found[0])
        is_by_id = bool(found) and unicodedata.normalize("NFC", found[0]) != name
        if is_by_id and "/" not in name:
            self.folders[os.path.dirname(found[0])] += 1
        return path, found[0] if is_by_id else "", os.stat(path)

    def none_found(self, table: Path, column: str, missing: list[Source]) -> DataError:
        """Returns the error for a table without a path that leads to a file."""
        first = missing[0]
        name = os.path.basename(first.path)
        known = self._index.all_paths() if self._index else ()
        elsewhere = next((os.path.dirname(path) for path in known if os.path.basename(path) == name), "")
        hint = f"; {name!r} is in {os.path.join(self.base, elsewhere)}" if elsewhere else ""
        return DataError(
            f"none of its {plural(len(missing), 'path')} in column {column!r} leads to a file, as {first.key!r}"
            f"{(first.message or '').removeprefix(_NOT_FOUND)}; looked in {self.base} for the path itself, for it in another"
            " Unicode form, and in all folders for one image of that name with an ending as .jpg or .png"
            f"{hint}; pass images=DIR, the folder that the paths are relative to, or path_column",
            path=table,
        )


class _Index:
    """Files below a folder by path, and images by name without an ending; on disk, however many."""

    def __init__(self, base: str) -> None:
        self._files = sqlite3.connect("")  # a temporary file of SQLite's, which has no name
        self._files.execute("CREATE TABLE files (name BLOB, path BLOB)")
        self._files.executemany("INSERT INTO files VALUES (?, ?)", _names_of_files(base))
        self._files.execute("CREATE INDEX by_name ON files (name)")

    def find(self, name: str) -> list[str]:
        """Returns the paths below the folder of the files that a name stands for, sorted."""
        query = "SELECT DISTINCT path FROM files WHERE name = ? ORDER BY path"
        return [os.fsdecode(path) for (path,) in self._files.execute(query, (os.fsencode(name),))]

    def all_paths(self) -> Iterator[str]:
        """Yields all paths below the folder, as they were found."""
        return (os.fsdecode(path) for (path,) in self._files.execute("SELECT path FROM files ORDER BY rowid"))


def _names_of_files(base: str) -> Iterator[tuple[bytes, bytes]]:
    for item in walk(base):
        if not item.reason:
            name = unicodedata.normalize("NFC", item.name)
            path = os.fsencode(item.name)
            yield os.fsencode(name), path
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                yield from ((os.fsencode(short), path) for short in {stem, os.path.basename(stem)})
