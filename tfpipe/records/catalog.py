"""The catalog, one row per record; the indexes, one line per record; and the frames, 20 bytes.

`catalog.csv` is for people and for tools, for spreadsheets and grep. It is ordered by split, shard
and position, as the records are read. An index holds "offset length" per record of one shard
(DALI's tfrecord2idx form). The frames of a split are what readers take from both, `FRAME` by
`FRAME`: opening a split of 10 million records reads 200 MB and no text.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.common.text import exactly
from tfpipe.records import combinations
from tfpipe.records.manifest import (
    CATALOG_NAME,
    CONTROL,
    JOINED,
    MAX_TEXT,
    Frames,
    Manifest,
    Traits,
    frames_file,
    hash_problem,
    index_file,
    load,
)
from tfpipe.records.schema import UNLABELLED
from tfpipe.records.tfrecord import FRAME_BYTES

_INT31 = (1 << 31) - 1
_Label = Annotated[int, msgspec.Meta(ge=-1, le=_INT31)]
_Place = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=_INT31)]


class CatalogRow(NamedTuple):
    """One record of the catalog."""

    key: str
    filename: str
    split: str
    shard: Annotated[int, msgspec.Meta(ge=0, le=_INT31)]  # 0-based, as the position within it
    position: _Place
    label: _Label
    class_name: str
    format: str
    height: _Side
    width: _Side
    orientation: Annotated[int, msgspec.Meta(ge=1, le=8)]
    # The masked CRC-32C of the record's data, as in the shard: a swapped record is noticed like a
    # damaged one.
    crc32c: Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
    sha256: str
    group: str = ""  # in a column of its own where a data set has groups
    source_sha256: str = ""  # where a data set has converted images: of the file that one was made of


OPTIONAL = ("group", "source_sha256")
"""Columns at the end of the catalog, in this order, each only in data sets that have it."""
COLUMNS = CatalogRow._fields[: -len(OPTIONAL)]
"""Columns of every catalog."""

# Offset and length in the shard, CRC as above, label. No record reaches 4 GiB, protobuf ends at 2.
FRAME = struct.Struct("<qIIi")
MAX_LINE = 1 << 20  # of a catalog: names end at a few thousand characters
_INDEX_LINE = re.compile(rb"([0-9]{1,19}) ([0-9]{1,10})\n")
_INDEX_LINE_BYTES = 40


def check_columns(first: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the columns that a catalog's first line names; raises ValueError if it is not one."""
    optional = tuple(name for name in OPTIONAL if name in (first or ()))
    if list(first or ()) != [*COLUMNS, *optional]:
        raise ValueError(f"the first line must be {','.join(COLUMNS)}, and perhaps {','.join(OPTIONAL)}")
    return (*COLUMNS, *optional)


def parse_row(fields: list[str], columns: Sequence[str] = COLUMNS) -> CatalogRow:
    """Returns the row of a line; raises ValueError for a number or name that is not tfpipe's."""
    if len(fields) != len(columns):
        raise ValueError(f"{exactly(len(fields), 'field')}, not {len(columns)}")
    optional: dict[str, Any] = dict(zip(columns[len(COLUMNS) :], fields[len(COLUMNS) :], strict=True))
    try:
        row = msgspec.convert(fields[: len(COLUMNS)], CatalogRow, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    row = row._replace(**optional) if optional else row
    names = row.key + row.filename + row.class_name + "".join(optional.values())
    if len(names) > (3 + len(optional)) * MAX_TEXT or (
        not names.isprintable() and CONTROL.search(names)
    ):  # the second is the fast one
        raise ValueError("a name is too long, or holds a control character")
    return row


def read_catalog(directory: str | os.PathLike[str], *, split: str | None = None) -> Iterator[CatalogRow]:
    """Yields the rows of a data set, or of a split, one or several joined, in reading order.

    Raises:
        FileNotFoundError: there is no catalog.
        DataError: a line is not a row of one.
    """
    path, splits = Path(directory) / CATALOG_NAME, None if split is None else split.split(JOINED)
    split_field = CatalogRow._fields.index("split")
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as file:
        lines = csv.reader(iter(functools.partial(file.readline, MAX_LINE), ""), strict=True)
        try:
            try:
                columns = check_columns(next(lines, None))
            except ValueError as error:
                raise DataError(str(error), path=path) from None
            for line in lines:
                if splits is None or line[split_field] in splits:
                    yield parse_row(line, columns)
        except (ValueError, IndexError, csv.Error):  # without their message, which may quote another file
            raise DataError(f"line {lines.line_num} is not a row of a catalog", path=path) from None


def read_checked(directory: str | os.PathLike[str], *, split: str) -> Iterator[CatalogRow]:
    """Yields the rows of a split, as many as its records, from a catalog with the manifest's hash.

    The catalog of a data set in a store is then on the local disk, and read from there.

    Raises:
        FileNotFoundError, DataError: there is no data set, or its catalog is not as it was written.
    """
    manifest, path = load(directory), Path(directory) / CATALOG_NAME
    if problem := hash_problem(path, manifest.companions[CATALOG_NAME], fresh=False):
        raise problem
    count = 0
    for row in read_catalog(directory, split=split):
        yield row
        count += 1
    if count != manifest.split(split).num_records:
        raise DataError(f"{exactly(count, 'row')} of split {split!r}, which has another number of records", path=path)


def read_split(directory: str | os.PathLike[str], manifest: Manifest, split: str) -> Iterator[tuple[CatalogRow, int, int]]:
    """Yields (row, offset, length) of a split's records in reading order, or raises DataError."""
    rows, catalog = read_catalog(directory, split=split), Path(directory) / CATALOG_NAME
    texts = combinations.texts(directory, manifest)
    class_names = dict(enumerate(texts)) if manifest.split(split).labelled else {UNLABELLED: ""}
    for shard_index, shard in enumerate(manifest.split(split).shards):
        count = end = 0
        path = Path(directory) / index_file(shard.file)
        for position, (offset, length) in enumerate(read_index(path)):
            row = next(rows, None)
            if row is None or (row.shard, row.position) != (shard_index, position):
                raise DataError(f"record {position} of {shard.file} is not in the catalog at its place", path=path)
            if class_names.get(row.label) != row.class_name:
                message = f"record {position} of {shard.file} has label {row.label}, {row.class_name!r}, which is not a class"
                raise DataError(message, path=catalog)
            if length < FRAME_BYTES:
                raise DataError(f"record {position} has {exactly(length, 'byte')}, less than its frame", path=path)
            yield row, offset, length
            count, end = count + 1, offset + length
        if count != shard.num_records:
            raise DataError(f"{exactly(count, 'record')}, the manifest lists {shard.num_records}", path=path)
        if end != shard.num_bytes:
            raise DataError(f"the records end at {end}, the manifest lists {exactly(shard.num_bytes, 'byte')}", path=path)
    if next(rows, None) is not None:
        raise DataError(f"more rows of split {split!r} than its shards hold", path=catalog)


def check_frames(directory: str | os.PathLike[str], manifest: Manifest, split: str) -> None:
    """Raises DataError unless a split's frames are those of its catalog and indexes, which are read."""
    traits, digest = Traits(), hashlib.sha256()
    for row, offset, length in read_split(directory, manifest, split):
        include(traits, row)
        digest.update(FRAME.pack(offset, length, row.crc32c, row.label))
    frames = manifest.split(split).frames
    if frames is not None and frames != Frames(digest.hexdigest(), traits):
        message = f"not the records that catalog and indexes list for split {split!r}"
        raise DataError(message, path=Path(directory) / frames_file(manifest.name, split))


def include(traits: Traits, row: CatalogRow) -> None:
    """Takes an image into account."""
    traits.png |= row.format == "PNG"
    if row.format not in ("JPEG", "PNG"):
        traits.others = True
    traits.turned |= row.orientation != 1
    traits.longer = max(traits.longer, row.height, row.width)


def merged(traits: Iterable[Traits]) -> Traits:
    """Returns the traits of several splits together."""
    each = list(traits)
    found = Traits(any(one.png for one in each), any(one.turned for one in each), max(one.longer for one in each))
    found.others = any(one.others for one in each) or None
    return found


def read_index(path: Path) -> Iterator[tuple[int, int]]:
    """Yields (offset, length) of every frame of one shard; raises DataError for anything else."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise DataError("the index of a shard is missing", path=path) from None
    with file:
        expected = 0
        for number, line in enumerate(iter(functools.partial(file.readline, _INDEX_LINE_BYTES), b""), 1):
            fields = _INDEX_LINE.fullmatch(line)
            offset, length = (int(fields[1]), int(fields[2])) if fields else (0, 1 << 32)
            if length >= 1 << 32:
                raise DataError(f"line {number} is not 'offset length', with less than 4 GiB", path=path)
            if offset != expected:
                raise DataError(f"line {number}: offset {offset}, the records before it end at {expected}", path=path)
            yield offset, length
            expected = offset + length
