"""The catalogue, one row per record, and the indexes, one line per record.

`catalog.csv` is for people and for tools: it opens in a spreadsheet, and answers to grep. It is ordered by split, shard
and position, as the records are read. An index holds "offset length" per record of one shard (DALI's tfrecord2idx form),
the only home of the offsets.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tfpipe.records.errors import DataError
from tfpipe.records.manifest import CATALOG_NAME, Manifest, index_file
from tfpipe.records.words import exactly


class Row(NamedTuple):
    """One record of the catalogue.

    `shard` and `position` are 0-based, `position` within the shard; `crc32c` is the masked CRC-32C of the record's data,
    as the shard stores it: what a reader expects to find there, so that a swapped record is noticed like a damaged one.
    """

    key: str
    filename: str
    split: str
    shard: int
    position: int
    label: int
    class_name: str
    format: str
    height: int
    width: int
    orientation: int
    crc32c: int
    sha256: str


_INTEGERS = frozenset(("shard", "position", "label", "height", "width", "orientation", "crc32c"))
_CONVERTERS: list[Callable[[str], Any]] = [int if field in _INTEGERS else str for field in Row._fields]


def read_catalog(directory: str | os.PathLike[str], *, split: str | None = None) -> Iterator[Row]:
    """Yields the rows of a data set, or of one of its splits, in reading order.

    Raises:
        FileNotFoundError: there is no catalogue.
        DataError: a line is not a row of one.
    """
    path = Path(directory) / CATALOG_NAME
    split_field = Row._fields.index("split")
    with open(path, encoding="utf-8", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            if next(lines, None) != list(Row._fields):
                raise DataError(f"the first line must be {','.join(Row._fields)}", path=path)
            for line in lines:
                if split is None or line[split_field] == split:
                    yield Row(*[convert(text) for convert, text in zip(_CONVERTERS, line, strict=True)])
        except (ValueError, IndexError, csv.Error) as error:
            raise DataError(f"line {lines.line_num} is not a row of a catalogue ({error})", path=path) from None


def read_split(directory: str | os.PathLike[str], manifest: Manifest, split: str) -> Iterator[tuple[Row, int, int]]:
    """Yields (row, offset, length) of a split's records in reading order; the frame stands at [offset, offset + length).

    Raises:
        DataError: catalogue, indexes and manifest do not agree.
    """
    rows = read_catalog(directory, split=split)
    for shard_index, shard in enumerate(manifest.split(split).shards):
        count = 0
        path = Path(directory) / index_file(shard.file)
        for position, (offset, length) in enumerate(read_index(path)):
            row = next(rows, None)
            if row is None or (row.shard, row.position) != (shard_index, position):
                raise DataError(f"record {position} of {shard.file} does not stand in the catalogue at its place", path=path)
            yield row, offset, length
            count += 1
        if count != shard.num_records:
            raise DataError(f"{exactly(count, 'record')}, the manifest says {shard.num_records}", path=path)
    if next(rows, None) is not None:
        raise DataError(f"more rows of split {split!r} than its shards hold", path=Path(directory) / CATALOG_NAME)


def read_index(path: Path) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of every record of one shard, frame included.

    Raises:
        DataError: missing, or a line is not two numbers that follow on the line before.
    """
    try:
        file = open(path, encoding="ascii", errors="replace")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataError("the index of a shard is missing", path=path) from None
    with file:
        expected = 0
        for number, line in zip(itertools.count(1), file, strict=False):
            fields = line.split()
            if len(fields) != 2 or not all(field.isascii() and field.isdigit() for field in fields):
                raise DataError(f"line {number} is not 'offset length' (got {line[:80]!r})", path=path)
            offset, length = int(fields[0]), int(fields[1])
            if offset != expected:
                raise DataError(f"line {number}: offset {offset}, the records before it end at {expected}", path=path)
            yield offset, length
            expected = offset + length
