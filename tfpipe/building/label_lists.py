"""Several labels an image, from the cells of a table's row to the text of their combination.

LabelLists(separator=";").text({"label": "b;a"}, "label")                          # "a|b"
LabelLists(columns=("a", "b", "c")).text({"a": "1", "b": "0", "c": ""}, None)      # "a|?c"
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfpipe.records import combinations
from tfpipe.records.combinations import SEPARATOR, UNKNOWN_SIGN

_STATES = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), combinations.PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no"), combinations.ABSENT),
    **dict.fromkeys(("", "-1", "-1.0", "nan"), combinations.UNKNOWN),
}


class LabelLists(NamedTuple):
    """How the labels of a row are written: in one cell, or in a column for each class."""

    separator: str = SEPARATOR
    columns: tuple[str, ...] | None = None
    is_composed: bool = False  # names in Unicode's form NFC

    def text(self, cells: Mapping[str, str], column: str | None) -> str:
        """Returns the text of a row's combination; raises LookupError with the reason for a bad cell."""
        if self.columns is not None:
            states = {name: _STATES.get(cells.get(name, "").lower()) for name in self.columns}
            for name, state in states.items():
                if state is None:
                    raise LookupError(f"column {name!r} holds {cells[name]!r}: 1, 0 or nothing (unknown) is needed")
            present, unknown = ([name for name, one in states.items() if one == state] for state in (1, -1))
        else:
            parts = [part.strip() for part in cells.get(column or "", "").split(self.separator)]
            present = [part for part in parts if part and not part.startswith(UNKNOWN_SIGN)]
            unknown = [part[1:].strip() for part in parts if part.startswith(UNKNOWN_SIGN)]
        present, unknown = self._composed(present), self._composed(unknown)
        if twice := {name for name in (*present, *unknown) if [*present, *unknown].count(name) > 1}:
            raise LookupError(f"the row names {min(twice)!r} twice")
        try:
            for name in (*present, *unknown):
                combinations.check_class_name(name)
        except ValueError as error:
            raise LookupError(str(error)) from None
        return combinations.text_of(present, unknown)

    def _composed(self, names: Sequence[str]) -> list[str]:
        return [unicodedata.normalize("NFC", name) for name in names] if self.is_composed else list(names)
