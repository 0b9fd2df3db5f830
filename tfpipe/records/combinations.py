"""Several labels an image: the distinct combinations of labels in a data set, and their texts.

    text_of(["b", "a"], ["c"])             # "a|b|?c": a and b are there, c may be
    names_of("a|b|?c")                     # (["a", "b"], ["c"])
    read(directory, manifest)              # C bytes for each combination
    LabelLists(separator=";").text({"label": "b;a"}, "label")                          # "a|b"
    LabelLists(columns=("a", "b", "c")).text({"a": "1", "b": "0", "c": ""}, None)      # "a|?c"

In such a data set the label of a record is the index of its combination, so that all that handles
labels handles combinations: order, conflicts, strata of splits. The file of combinations has a
signed byte for each class of each: 1 (there), 0 (not there) or -1 (unknown).
"""

from __future__ import annotations

import os
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, size_of
from tfpipe.common.tables import column_of
from tfpipe.records import manifest as manifests
from tfpipe.records import targets
from tfpipe.records.manifest import Manifest

SEPARATOR = "|"
UNKNOWN_SIGN = "?"  # before the name of a class that may be there
PRESENT, ABSENT, UNKNOWN = 1, 0, -1
_BYTES = {1, 0, 255}  # the same, unsigned


def check_class_name(name: str) -> str:
    """Returns the name of a class; raises ValueError where it could not stand in a text."""
    if not name or SEPARATOR in name or name.startswith(UNKNOWN_SIGN):
        rule = f"of several labels an image, a class has a name without {SEPARATOR!r}, and none that begins with"
        raise ValueError(f"{rule} {UNKNOWN_SIGN!r} (got {name!r})")
    return name


def text_of(present: Iterable[str], unknown: Iterable[str] = ()) -> str:
    """Returns the text of a combination, equal for equal ones; "" where it is known to have none."""
    return SEPARATOR.join([*sorted(present), *(UNKNOWN_SIGN + name for name in sorted(unknown))])


def names_of(text: str) -> tuple[list[str], list[str]]:
    """Returns the names of the classes that are there, and of the unknown ones."""
    parts = text.split(SEPARATOR) if text else []
    present = [part for part in parts if not part.startswith(UNKNOWN_SIGN)]
    return present, [part.removeprefix(UNKNOWN_SIGN) for part in parts if part.startswith(UNKNOWN_SIGN)]


def values_of(text: str, class_names: Sequence[str]) -> list[int]:
    """Returns 1, 0 or -1 for each class."""
    present, unknown = map(set, names_of(text))
    return [PRESENT if name in present else UNKNOWN if name in unknown else ABSENT for name in class_names]


def text_of_values(values: Sequence[int], class_names: Sequence[str]) -> str:
    """Returns the text of 1, 0 or -1 for each class."""
    named = list(zip(class_names, values, strict=True))
    return text_of([name for name, value in named if value == PRESENT], [name for name, value in named if value == UNKNOWN])


def encode(texts: Iterable[str], class_names: Sequence[str]) -> bytes:
    """Returns the content of the file of combinations."""
    return b"".join(array("b", values_of(text, class_names)).tobytes() for text in texts)


def read(directory: str | os.PathLike[str], manifest: Manifest) -> bytes:
    """Returns the content of the file: for each label C signed bytes, or of numbers D of float32.

    Raises:
        DataError: the file is not as the manifest lists it.
    """
    if manifest.label_rows is None:
        return b""
    name, size, sha256 = manifest.label_rows
    path = Path(directory) / name
    if problem := manifests.hash_problem(path, sha256, fresh=False):
        raise problem
    with open_regular(path) as file:
        data = file.read() if size_of(file) == size else b""
    if len(data) != size or (manifest.combinations is not None and set(data) - _BYTES):
        raise DataError("not the rows of as many labels as the manifest lists", path=path)
    return data


def texts(directory: str | os.PathLike[str], manifest: Manifest) -> list[str]:
    """Returns what the class name of a record with each label is: of a class, a combination, or a row of targets."""
    if manifest.label_rows is None:
        return list(manifest.class_names)
    content, width = read(directory, manifest), len(manifest.class_names)
    if manifest.task == manifests.REGRESSION:
        return [targets.text_of(row) for row in targets.decode(content, width)]
    values = memoryview(content).cast("b")
    return [text_of_values(values[start : start + width], manifest.class_names) for start in range(0, len(values), width)]


class ListInCell(LookupError):
    """A cell holds a list of labels where it must hold one value, or one name."""


_STATES = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no"), ABSENT),
    **dict.fromkeys(("", "-1", "-1.0", "nan"), UNKNOWN),
}


class LabelLists(NamedTuple):
    """How the labels of a row are written: in one cell, or in a column for each class."""

    separator: str = SEPARATOR
    columns: tuple[str, ...] | None = None
    is_composed: bool = False  # names in Unicode's form NFC

    def text(self, cells: Mapping[str, str], column: str | None) -> str:
        """Returns the text of a row's combination; raises LookupError with the reason for a bad cell."""
        if self.columns is not None:
            states = {name: _STATES.get(cells.get(column_of(name), "").lower()) for name in self.columns}
            for name, state in states.items():
                if state is None:
                    problem = f"column {name!r} holds {cells[column_of(name)]!r}: 1, 0 or nothing (unknown) is needed"
                    if SEPARATOR in cells[column_of(name)]:
                        raise ListInCell(f"{problem}; a column of lists is read with task=multilabel and label_column={name}")
                    raise LookupError(problem)
            present, unknown = ([name for name, one in states.items() if one == state] for state in (1, -1))
        else:
            parts = [part.strip() for part in cells.get(column or "", "").split(self.separator)]
            present = [part for part in parts if part and not part.startswith(UNKNOWN_SIGN)]
            unknown = [part[1:].strip() for part in parts if part.startswith(UNKNOWN_SIGN)]
        present, unknown = self._composed(present), self._composed(unknown)
        if twice := {name for name in (*present, *unknown) if [*present, *unknown].count(name) > 1}:
            raise LookupError(f"the row names {min(twice)!r} twice")
        for name in (*present, *unknown):
            if SEPARATOR in name:
                raise ListInCell(f"the row holds {name!r}: a list, with label_separator={SEPARATOR}? No name holds that")
            try:
                check_class_name(name)
            except ValueError as error:
                raise LookupError(str(error)) from None
        return text_of(present, unknown)

    def _composed(self, names: Sequence[str]) -> list[str]:
        return [unicodedata.normalize("NFC", name) for name in names] if self.is_composed else list(names)
