"""Slices of the plan: the rows of one shard, in a file that its task carries.

Whoever writes the shard reads this file and the images, and never opens the planner's database.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, written_atomically


class Row(NamedTuple):
    """One record to write; `kind`, `path` and `place` as in `items.Source`."""

    kind: str
    path: str
    place: int
    crc32c: int  # of the image, when it was audited
    format: str
    height: int
    width: int
    channels: int
    orientation: int
    filename: str
    key: str
    sha256: str
    label: int
    class_name: str
    group: str | None = None
    source_format: str | None = None
    source_sha256: str | None = None
    history: tuple[str, ...] = ()
    labels: tuple[int, ...] | None = None
    unknown: tuple[int, ...] | None = None
    targets: tuple[float, ...] | None = None


SEPARATOR = "\n"  # in the column `history` of the state; no name of a class has a line break


def classes_before(history: str) -> tuple[str, ...]:
    """Returns the classes that an image had before decisions of people, the first first."""
    return tuple(history.split(SEPARATOR)) if history else ()


def write_slice(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows, one a line, whole or not at all."""
    encode = msgspec.json.Encoder().encode
    with written_atomically(path) as file:
        file.writelines(encode(row) + b"\n" for row in rows)


def read_slice(path: Path) -> Iterator[Row]:
    """Yields the rows of a slice.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is not what `write_slice` wrote.
    """
    decode = msgspec.json.Decoder(Row).decode
    with open_regular(path) as file:
        for line in file:
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                raise DataError(f"a damaged part of the plan: {error}", path=path) from None
