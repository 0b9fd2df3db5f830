"""Pictures that a list names: a CSV file with a column `path`, or the lines of standard input.

    path,id
    photos/1.jpg,first         relative to the folder of the CSV file

    find photos -name '*.jpg' -print0 | tools/predict.py --input=- ...

What a list names and what is not there is a picture that cannot be read, and not an error: each has its row.
"""

from __future__ import annotations

import codecs
import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tfpipe.records.errors import DataError
from tfpipe.records.words import exactly
from tfpipe.serving.folders import Found

STANDARD_INPUT = "-"


def is_list(given: str) -> bool:
    """True for "-" and for the names of CSV files."""
    return given == STANDARD_INPUT or (given.lower().endswith(".csv") and os.path.isfile(given))


def read_list(given: str) -> Iterator[Found]:
    """Yields what a list names.

    Raises:
        DataError: the CSV file is damaged or has no column `path`; names the line. Or the list is UTF-16.
    """
    return _read_standard_input() if given == STANDARD_INPUT else _read_csv(Path(given))


def _read_standard_input() -> Iterator[Found]:
    """Yields a file for each line, or for each piece between NULs if there is one."""
    data = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
    _check_encoding(data, STANDARD_INPUT)
    pieces = data.split(b"\0") if b"\0" in data else (line.removesuffix(b"\r") for line in data.split(b"\n"))
    for piece in filter(None, pieces):
        path = os.fsdecode(piece)
        yield Found(os.path.normpath(path), path)


def _check_encoding(start: bytes, path: str | Path) -> None:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("a list of paths in UTF-16: save it as UTF-8", path=path)


def _read_csv(file: Path) -> Iterator[Found]:
    with open(file, "rb") as data:
        start = data.read(2)
    _check_encoding(start, file)
    if not start:
        raise DataError("the file is empty: a list of paths has a column called path, and perhaps one called id", path=file)
    # A path is any bytes: those that are no UTF-8 become a name that is refused with its own row, not here.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            names = [name.strip().lower() for name in next(lines, [])]
            if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
                raise ValueError(f"columns must be separated by commas (the first line is {names[0]!r})")
            if names.count("path") != 1 or names.count("id") > 1:
                raise ValueError(f"a column called path is needed, and perhaps one called id (there are: {', '.join(names)})")
            for line in filter(None, lines):
                if len(line) != len(names):
                    raise ValueError(f"{exactly(len(line), 'field')}, expected {len(names)}")
                row = dict(zip(names, line, strict=True))
                path, name = row["path"], row.get("id", "")
                if not path or "\0" in path or ("id" in names and not name):
                    raise ValueError("an empty path or id, or one with a NUL")
                yield Found(os.path.normpath(path), os.path.join(file.parent, path), id=name)
        except (ValueError, csv.Error) as error:
            raise DataError(f"line {lines.line_num} of a list of paths: {error}", path=file) from None
