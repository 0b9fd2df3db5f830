"""Tables of paths: CSV files in UTF-8; the first line shows the separator.

with tables.opened(Path("labels.csv")) as table:
table.columns                      # ["image_id", "label"]
for line, fields in table.rows: ...     # 2, ["0a1b", "cat"]
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfpipe.common.arguments import nearest
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular

SUFFIXES = (".csv", ".tsv")
FILE_COLUMNS = ("path", "file_path", "filepath", "file_name", "filename", "file", "image_path", "image", "image_name", "img")
"""Usual names of columns of paths, the likeliest first."""
ID_COLUMNS = ("image_id", "img_id", "id")
"""Names of columns that hold paths if no other does, or names of files without their endings."""

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


class Table(NamedTuple):
    """An open table: columns in lower case, separator in words, rows as (line number, fields).

    Blank lines are left out. Iterating raises `DataError` where a line is not CSV in UTF-8.
    """

    path: Path
    columns: list[str]
    separator: str
    rows: Iterator[tuple[int, list[str]]]

    def column(self, known: Sequence[str], name: str = "", given: str | None = None) -> str | None:
        """Returns the given column, or the first known one that exists, or None.

        Raises ValueError if no column, or more than one, is called `given`, the value of
        argument `name`.
        """
        if given is None:
            return next((column for column in known if column in self.columns), None)
        if self.columns.count(given.strip().lower()) != 1:
            there = ", ".join(self.columns)
            raise ValueError(f"{self.path}: {name}={given}: needed once; there are: {there}{nearest(given, self.columns)}")
        return given.strip().lower()


def column_of(name: str) -> str:
    """Returns the column of a class or target, which keeps its capitals; columns have none, see `Table`."""
    return name.strip().lower()


@contextlib.contextmanager
def opened(path: Path, *, errors: str = "strict") -> Iterator[Table]:
    """Opens a table; `errors` handles bytes that are not UTF-8, as for `open`.

    Raises:
        DataError: the file is empty, in UTF-16, or its first line is not CSV in UTF-8.
    """
    with open_regular(path) as data:
        start = data.read(2)
        if not start:
            raise DataError("the file is empty: a list of paths has a column called path, and perhaps one called id", path=path)
        check_encoding(start, path)
        text = io.TextIOWrapper(data, "utf-8-sig", errors, newline="")
        separator, columns = _header(path, text)
        text.seek(0)
        rows = _lines(path, text, separator)
        next(rows, None)
        yield Table(path, columns, _SEPARATORS[separator], rows)


def _header(path: Path, text: io.TextIOWrapper) -> tuple[str, list[str]]:
    """Returns the separator that gives a column of paths, or else the most columns, and those."""
    found: list[tuple[bool, int, str, list[str]]] = []
    error: DataError | None = None
    for separator in _SEPARATORS:
        text.seek(0)
        try:
            _, fields = next(_lines(path, text, separator), (1, []))
        except DataError as caught:  # a quoted name before another separator is not CSV
            error = error or caught
            continue
        columns = [name.strip().lower() for name in fields]
        found.append((bool({*FILE_COLUMNS} & {*columns}), len(columns), separator, columns))
    if error and not found:
        raise error
    best = max(found, key=lambda one: one[:2])
    return best[2], best[3]


def _lines(path: Path, text: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text, delimiter=separator, strict=True)
    try:
        for fields in reader:
            if fields or reader.line_num == 1:
                yield reader.line_num, fields
    except (csv.Error, UnicodeDecodeError) as error:
        line = reader.line_num + isinstance(error, UnicodeDecodeError)
        raise DataError(f"line {line} of a list of paths: {error}: it cannot be read as UTF-8 CSV", path=path) from None


def check_encoding(start: bytes, path: str | Path) -> None:
    """Raises DataError for the first two bytes of a list in UTF-16."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("a list of paths in UTF-16: save it as UTF-8", path=path)


# Text that begins with a formula's sign or a control character; and, to be unambiguous, text that
# looks escaped.
_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\x00-\x1f\x7f])")  # noqa: RUF001


def escape_formula(text: str) -> str:
    """Returns a CSV cell that no spreadsheet computes: "=1+1.jpg" becomes "'=1+1.jpg"."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape_formula(text: str) -> str:
    """Returns the text that `escape_formula` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
