"""Comparison of two data sets, or of a data set with the folders that it was made from.

for difference in diff("shards/", {"train": "photos/train", "test": "photos/test"}): ...
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tfpipe.common import stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import sha256_of
from tfpipe.common.workers import count_cores
from tfpipe.listing.folders import walk
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_catalog
from tfpipe.records.manifest import CATALOG_NAME

_BATCH_FILES = 1024

PathLike = str | os.PathLike[str]
Side = PathLike | Mapping[str, PathLike]

_Has = Callable[[str], bool]  # whether the folder on the other side has a file of that name
_Entry = tuple[str, str, str | None, str | None]  # key, SHA-256, class name, split


class Difference(NamedTuple):
    """One way in which two sides differ.

    Attributes:
        kind: "added", "removed", "changed" (content), "relabelled" (class name) or "moved" (split).
        key: of the record; its file name where a side is a plain folder.
        before: what side a has: the hash, class name or split; "" where it has no such key.
        after: what side b has.
    """

    kind: str
    key: str
    before: str
    after: str


# Where one side is a plain folder, its class name and split are NULL: unknown, which differs from
# nothing.
_QUERIES = {
    "removed": "SELECT key, a.sha256, '' FROM a LEFT JOIN b USING (key) WHERE b.sha256 IS NULL",
    "added": "SELECT key, '', b.sha256 FROM b LEFT JOIN a USING (key) WHERE a.sha256 IS NULL",
    "changed": "SELECT key, a.sha256, b.sha256 FROM a JOIN b USING (key) WHERE a.sha256 != b.sha256",
    "relabelled": "SELECT key, a.class_name, b.class_name FROM a JOIN b USING (key) WHERE a.class_name != b.class_name",
    "moved": "SELECT key, a.split, b.split FROM a JOIN b USING (key) WHERE a.split != b.split",
}


def diff(a: Side, b: Side, *, workers: int | None = None) -> Iterator[Difference]:
    """Yields what differs from `a` to `b`; nothing where they hold the same.

    Two data sets are compared by key. Against a folder, a record is identified by its file name,
    under which `extract` writes it: keys may be a table's ids or rows of an HDF5 file. A converted
    image is identified by the file that it was made of, too. A data set's catalog is trusted (its
    hash is checked; `verify` checks the shards against it); of a folder, every file is read. Memory
    is flat: the keys are in a temporary table on disk.

    Args:
        a: a data set, or a folder of images: keys are relative paths, hidden files are passed over,
            labels and splits are not compared; or several by prefix: {"train": "photos/a"} gives
            keys like "train/1.jpg", "" gives bare paths.
        b: the same.
        workers: threads that hash files; None: one per core.

    Raises:
        FileNotFoundError: a side is not a folder, or has no catalog.
        DataError: a side's manifest or catalog is damaged, two files or records of a side have
            one key, or two records with different bytes have one file name and the other side is a
            folder.
    """
    with contextlib.closing(sqlite3.connect("")) as table:  # "": in a temporary file, gone when closed
        for name, side, other in sorted((("a", a, b), ("b", b, a)), key=lambda each: is_data_set(each[1])):
            _fill(table, name, side, workers, by_filename=not is_data_set(other))
        for kind, query in _QUERIES.items():
            for key, before, after in table.execute(f"{query} ORDER BY key"):
                yield Difference(kind, key, before, after)


def is_data_set(side: Side) -> bool:
    """True for a data set, which has labels and splits to compare, and not a plain folder."""
    return not isinstance(side, Mapping) and (stores.is_remote(side) or (Path(side) / manifests.FILE_NAME).exists())


def _fill(table: sqlite3.Connection, name: str, side: Side, workers: int | None, *, by_filename: bool) -> None:
    """Fills a table with a side; by file names, those that the other table has, which is full."""

    def has(filename: str) -> bool:
        return bool(table.execute(f"SELECT 1 FROM {'ab'.replace(name, '')} WHERE key = ?", (filename,)).fetchone())  # noqa: S608

    table.execute(f"CREATE TABLE {name} (key TEXT PRIMARY KEY, sha256 TEXT, class_name TEXT, split TEXT) WITHOUT ROWID")
    for entry in _entries(side, workers, has if by_filename else None):
        try:
            table.execute(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", entry)  # noqa: S608 (a or b)
        except sqlite3.IntegrityError:
            ((sha256,),) = table.execute(f"SELECT sha256 FROM {name} WHERE key = ?", entry[:1])  # noqa: S608
            what = "file name" if by_filename and is_data_set(side) else "key"
            if what == "key" or sha256 != entry[1]:  # records of one file name and equal bytes are extracted to one file
                raise DataError(f"two files or records of {side} have the same {what}, {entry[0]!r}") from None


def _entries(side: Side, workers: int | None, has: _Has | None) -> Iterator[_Entry]:
    if isinstance(side, Mapping):
        for prefix, folder in side.items():
            yield from _files(Path(folder), f"{prefix}/" if prefix else "", workers)
    elif is_data_set(side):
        yield from _records(Path(side), has)
    else:
        yield from _files(Path(side), "", workers)


def _records(directory: Path, has: _Has | None) -> Iterator[_Entry]:
    manifest = manifests.load(directory)
    if problem := manifests.hash_problem(directory / CATALOG_NAME, manifest.companions[CATALOG_NAME]):
        raise problem
    for row in read_catalog(directory):
        name, sha256 = row.key if has is None else row.filename, row.sha256
        # Of a converted image a folder has the file that it was made of, or the PNG by `extract`.
        source = row.filename.removesuffix(".png")
        if has is not None and row.source_sha256 and (has(source) or not has(name)):
            name, sha256 = source, row.source_sha256
        yield name, sha256, row.class_name, row.split


def _files(root: Path, prefix: str, workers: int | None) -> Iterator[_Entry]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: neither a data set nor a folder")
    if (root / manifests.BUILD_FOLDER).exists():
        manifests.load(root)  # raises: an unfinished build is not a folder of images
    listed = (item for item in walk(root) if item.reason in ("", "unreadable"))
    with ThreadPoolExecutor(workers or count_cores()) as pool:
        while batch := list(itertools.islice(listed, _BATCH_FILES)):
            for item in batch:
                if item.reason:
                    raise DataError(item.message, path=item.path)
            digests = pool.map(sha256_of, [Path(item.path) for item in batch])
            for item, digest in zip(batch, digests, strict=True):
                yield prefix + item.name, digest, None, None
