"""The catalogue's rows, shard by shard, as far as they are readable in a damaged file.

    rows = CatalogRows(directory)
    for row in rows.of_shard("train", 3): ...

`catalog.read_catalog` is the strict reader. This one is for `verify` and `salvage`, which must name
the source file of a damaged record even where the catalogue is damaged itself.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.records.catalog import MAX_LINE, Row, parse_row
from tfpipe.records.manifest import CATALOG_NAME

_SPLIT, _SHARD = Row._fields.index("split"), Row._fields.index("shard")
_SHOWN_PROBLEMS = 20


class CatalogRows:
    """The places of each shard's rows in `catalog.csv`, found in one pass.

    Attributes:
        problems: of lines; the first ones, if many.

    Raises:
        OSError: there is no catalogue, or it cannot be read.
        DataError: it is not a regular file.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = Path(directory) / CATALOG_NAME
        self._runs: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.problems: list[DataError] = []
        with open_regular(self._path) as file:
            self._locate(_Lines(file))

    def of_shard(self, split: str, shard_index: int) -> Iterator[Row]:
        """Yields the readable rows of one shard in their order."""
        for start, end in self._runs.get((split, str(shard_index)), ()):
            with open_regular(self._path) as file:
                file.seek(start)
                for line in _parsed(_Lines(file, end - start)):
                    row = None if isinstance(line, csv.Error) else _row(line)
                    if row is not None:
                        yield row

    def shards(self) -> list[tuple[str, int]]:
        """Returns (split, shard index) of every shard that a row names."""
        return [(split, int(shard)) for split, shard in self._runs if shard.isascii() and shard.isdigit()]

    def _locate(self, lines: _Lines) -> None:
        rows = _parsed(lines)
        if next(rows, None) != list(Row._fields):
            self._complain(f"line 1 must be {','.join(Row._fields)}")
        start = lines.position
        for fields in rows:
            if isinstance(fields, csv.Error) or _row(fields) is None:
                why = f" ({fields})" if isinstance(fields, csv.Error) else ""
                self._complain(f"line {lines.count} is not a row of a catalogue{why}")
            else:
                runs = self._runs.setdefault((fields[_SPLIT], fields[_SHARD]), [])
                first = runs.pop()[0] if runs and runs[-1][1] == start else start  # continues where the row before ended
                runs.append((first, lines.position))
            start = lines.position

    def _complain(self, message: str) -> None:
        if len(self.problems) < _SHOWN_PROBLEMS:
            self.problems.append(DataError(message, path=self._path))


class _Lines:
    """Lines of a file as text, with their number and the next one's position."""

    def __init__(self, file: BinaryIO, num_bytes: int | None = None) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self.position = self.count = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE):
            if self._num_bytes is not None and self.position >= self._num_bytes:
                return
            self.position += len(line)
            self.count += 1
            yield line.decode("utf-8", "replace")  # a replaced character equals none that was written


def _parsed(lines: _Lines) -> Iterator[list[str] | csv.Error]:
    reader = csv.reader(iter(lines), strict=True)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader continues with the next line
            yield error


def _row(fields: list[str]) -> Row | None:
    try:
        return parse_row(fields)
    except ValueError:
        return None


class Cursor:
    """Rows in the order of their positions, taken one by one."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def peek(self) -> Row | None:
        """Returns the next row, and leaves it there."""
        return self._next

    def take(self, position: int | None) -> Row | None:
        """Returns the row at a position (None: the next row), or None where it is missing."""
        while self._next is not None and position is not None and self._next.position < position:
            self._next = next(self._rows, None)  # out of order or twice: the row that is missing instead is noticed
        row = self._next
        if row is None or (position is not None and row.position != position):
            return None
        self._next = next(self._rows, None)
        return row

    def rest(self) -> Iterator[Row]:
        """Yields the rows that were not taken."""
        while (row := self.take(None)) is not None:
            yield row
