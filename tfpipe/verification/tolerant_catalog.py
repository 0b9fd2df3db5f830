"""The catalog's rows, shard by shard, as far as they are readable in a damaged file.

    rows = CatalogRows(directory)
    for row in rows.of_shard("train", 3): ...

`catalog.read_catalog` is the strict reader. This one is for `verify` and `salvage`, which must name
the source file of a damaged record even where the catalog is damaged itself.
"""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.records.catalog import COLUMNS, MAX_LINE, CatalogRow, check_columns, parse_row
from tfpipe.records.manifest import CATALOG_NAME

_SHOWN_PROBLEMS = 20


class CatalogRows:
    """The places of each shard's rows in `catalog.csv`, found in one pass.

    Memory grows with the shards, not the records; `problems` are the first bad lines. Raises
    OSError or DataError if the file cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / CATALOG_NAME
        self._runs: dict[tuple[str, int], list[tuple[int, int]]] = {}  # bytes [start, end) of a shard's rows
        self._columns: Sequence[str] = COLUMNS
        self.problems: list[DataError] = []
        with open_regular(self._path) as file:
            start = 0
            for number, line in enumerate(iter(functools.partial(file.readline, MAX_LINE), b""), 1):
                end = start + len(line)
                if number == 1:
                    self._read_header(line)
                elif (row := _parsed(line, self._columns)) is None:
                    self._report(f"line {number} is not a row of a catalog")
                else:
                    runs = self._runs.setdefault((row.split, row.shard), [])
                    first = runs.pop()[0] if runs and runs[-1][1] == start else start  # continues the run before
                    runs.append((first, end))
                start = end

    def _read_header(self, line: bytes) -> None:
        names = line.decode("utf-8", "replace").removesuffix("\n").split(",")
        try:
            self._columns = check_columns(names)
        except ValueError as error:
            self._report(f"line 1: {error}")

    def _report(self, message: str) -> None:
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(DataError(message, path=self._path))

    def of_shard(self, split: str, shard_index: int) -> Iterator[CatalogRow]:
        """Yields the readable rows of one shard in their order."""
        for start, end in self._runs.get((split, shard_index), ()):
            with open_regular(self._path) as file:
                file.seek(start)
                while file.tell() < end and (line := file.readline(MAX_LINE)):
                    if (row := _parsed(line, self._columns)) is not None:
                        yield row

    def shards(self) -> list[tuple[str, int]]:
        """Returns (split, shard index) of every shard that a row names."""
        return list(self._runs)


def _parsed(line: bytes, columns: Sequence[str]) -> CatalogRow | None:
    """Returns the row of a line; names have no line breaks, control characters are refused."""
    try:
        # A replaced character equals none that was written.
        return parse_row(next(csv.reader([line.decode("utf-8", "replace")], strict=True)), columns)
    except (ValueError, csv.Error):
        return None


class Cursor:
    """Rows in the order of their positions, taken one by one; none without a catalog."""

    def __init__(self, rows: Iterator[CatalogRow] | None) -> None:
        self._rows = rows or iter(())
        self._next = next(self._rows, None)

    def peek(self) -> CatalogRow | None:
        """Returns the next row, and leaves it there."""
        return self._next

    def take(self, position: int | None) -> CatalogRow | None:
        """Returns the row at a position (None: the next row), or None where it is missing."""
        while self._next is not None and position is not None and self._next.position < position:
            self._next = next(self._rows, None)  # out of order or twice: the row that is missing instead is noticed
        row = self._next
        if row is None or (position is not None and row.position != position):
            return None
        self._next = next(self._rows, None)
        return row

    def rest(self) -> Iterator[CatalogRow]:
        """Yields the rows that were not taken."""
        while (row := self.take(None)) is not None:
            yield row
