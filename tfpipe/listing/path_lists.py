"""Images named by a list: a CSV file with a column of paths, or the lines of standard input.

    path,id
    photos/1.jpg,first         relative to the folder of the CSV file

    find photos -name '*.jpg' -print0 | tfpipe predict --input=- ...

The columns are found as a build finds them, but an id must be the whole name of a file. Names that
predictions hold with an apostrophe before them are read back. A missing file is an unreadable image
and not an error: it has its row.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tfpipe.common import tables
from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly
from tfpipe.listing.folders import FoundFile

_log = logging.getLogger("tfpipe")

STANDARD_INPUT = "-"


def is_list(given: str) -> bool:
    """True for "-" and for the names of CSV files."""
    return given == STANDARD_INPUT or (given.lower().endswith(tables.SUFFIXES) and os.path.isfile(given))


def read_list(given: str) -> Iterator[FoundFile]:
    """Yields the files that a list names.

    Raises DataError for a damaged CSV file (names the line), one without paths, or UTF-16.
    """
    return _read_standard_input() if given == STANDARD_INPUT else _read_csv(Path(given))


def _read_standard_input() -> Iterator[FoundFile]:
    """Yields a file for each line, or for each piece between NULs if there is one."""
    data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    tables.check_encoding(data, STANDARD_INPUT)
    pieces = data.split(b"\0") if b"\0" in data else (line.removesuffix(b"\r") for line in data.split(b"\n"))
    for path in map(os.fsdecode, filter(None, pieces)):
        yield FoundFile(os.path.normpath(path), path)


def _read_csv(file: Path) -> Iterator[FoundFile]:
    # A path may hold any bytes: those that are not UTF-8 become a name that is rejected with its
    # own row, not here.
    with tables.opened(file, errors="surrogateescape") as table:
        names, path_column = table.columns, table.column((*tables.FILE_COLUMNS, *tables.ID_COLUMNS))
        columns = f"a column called path is needed, and perhaps one called id (there are: {', '.join(names)})"
        if path_column is None or names.count(path_column) != 1 or names.count("id") > 1:
            raise DataError(f"line 1 of a list of paths: {columns}", path=file)
        has_ids = "id" in names and path_column != "id"
        found = path_column not in tables.ID_COLUMNS  # which may hold other names than those of files
        if (path_column, table.separator) != ("path", "comma"):
            _log.info("%s: paths are taken from column %r, separated by %ss", file, path_column, table.separator)
        for line, fields in table.rows:
            row = {column: cell.strip() for column, cell in zip(names, fields, strict=False)}
            path, name = row.get(path_column, ""), row.get("id", "") if has_ids else ""
            problem = ""
            if len(fields) != len(names):
                problem = f"{exactly(len(fields), 'field')}, expected {len(names)}"
            elif not path or "\0" in path or (has_ids and not name):
                problem = "an empty path or id, or one with a NUL"
            if problem:
                raise DataError(f"line {line} of a list of paths: {problem}", path=file)
            if (plain := tables.unescape_formula(path)) != path and not os.path.lexists(file.parent / path):
                path, name = plain, tables.unescape_formula(name)
            found = found or os.path.isfile(file.parent / path)
            yield FoundFile(os.path.normpath(path), os.path.join(file.parent, path), id=name)
    if not found:
        raise DataError(f"none of the names in column {path_column!r} is that of a file: {columns}", path=file)
