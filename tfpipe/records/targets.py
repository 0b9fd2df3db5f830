"""Numbers that an image has (regression): the distinct rows of targets in a data set, and their texts.

    text_of([34.5, 180.0])                               # "34.5|180"
    values_of("34.5|180")                                # (34.5, 180.0)
    TargetColumns(("age",)).text({"age": "34.50"}, None)   # "34.5"

In such a data set the label of a record is the index of its row of targets, in ascending order, as
it is the index of a combination where an image has several labels (`tfpipe.records.combinations`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tfpipe.common.tables import column_of
from tfpipe.records.manifest import Statistics

SEPARATOR = "|"
_MOST_STRATA, _LEAST_IMAGES = 10, 10
_FLOAT = struct.Struct("<f")


def rounded(value: float) -> float:
    """Returns the nearest float32; raises OverflowError where it is infinite, or 0 though `value` is not."""
    (found,) = _FLOAT.unpack(_FLOAT.pack(value))
    if value and not found:
        raise OverflowError(f"{value!r} is too near to 0 for float32")
    return float(found) + 0.0  # no -0.0: it equals 0.0, and would be another row


def _text(value: float) -> str:
    """Returns the decimal number with the fewest digits, 6 to 9, that is this float32."""
    texts = (f"{value:.{digits}g}" for digits in range(6, 10))
    return repr(float(next((text for text in texts if rounded(float(text)) == value), value))).removesuffix(".0")


def text_of(values: Iterable[float]) -> str:
    """Returns the text of a row of float32 numbers, equal for equal ones."""
    return SEPARATOR.join(map(_text, values))


def values_of(text: str) -> tuple[float, ...]:
    """Returns the float32 numbers of a text."""
    return tuple(rounded(float(part)) for part in text.split(SEPARATOR))


def encode(values: Sequence[float]) -> bytes:
    """Returns a row in the file of targets."""
    return struct.pack(f"<{len(values)}f", *values)


def decode(content: bytes, width: int) -> Iterator[tuple[float, ...]]:
    """Yields the rows of the file of targets."""
    return struct.Struct(f"<{width}f").iter_unpack(content)


def ordinal(values: Sequence[float]) -> bytes:
    """Returns bytes that are in the order of the rows."""
    found = (int.from_bytes(struct.pack(">f", value)) for value in values)
    return b"".join((number ^ (0xFFFFFFFF if number >> 31 else 1 << 31)).to_bytes(4) for number in found)


def statistics(names: Sequence[str], rows: Callable[[], Iterable[tuple[Sequence[float], int]]]) -> dict[str, Statistics]:
    """Returns the facts of each target, from its rows and their numbers of records, read several times.

    Sums are exact, so that no order of the rows changes a bit.
    """
    found = {}
    for place, name in enumerate(names):

        def column(place: int = place) -> Iterator[tuple[float, int]]:
            return ((row[place], count) for row, count in rows())

        total = sum(count for _, count in column())
        mean = math.fsum(value * count for value, count in column()) / total
        variance = math.fsum((value - mean) ** 2 * count for value, count in column()) / total
        least, most = min(value for value, _ in column()), max(value for value, _ in column())
        found[name] = Statistics(mean, math.sqrt(variance), least, most)
    return found


def num_strata(num_images: int) -> int:
    """Returns into how many parts images are divided by the first target, of 10 images or more each if possible."""
    return max(1, min(_MOST_STRATA, num_images // _LEAST_IMAGES))


class TargetColumns(NamedTuple):
    """Columns of a table that hold a number each."""

    columns: tuple[str, ...]

    def text(self, cells: Mapping[str, str], _: str | None) -> str:
        """Returns the text of a row's targets; raises LookupError with the reason for a bad cell."""
        return text_of(_number(name, cells.get(column_of(name), "")) for name in self.columns)


def _number(name: str, cell: str) -> float:
    try:
        number = math.nan if "_" in cell else float(cell)  # 1_000 is a number for Python only
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = (
            f"holds {cell!r}: a finite number is needed, as 34.5"
            if cell
            else "is empty: an image without a number has no place here"
        )
        raise LookupError(f"column {name!r} {what}; correct the row, or remove it")
    try:
        return rounded(number)
    except OverflowError:
        raise LookupError(f"column {name!r} holds {cell!r}, which float32 cannot hold: give it in another unit") from None
