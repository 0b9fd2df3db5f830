"""Decisions about images: another class, none, or the one that it has. People make them, builds apply them.

    key,sha256,old_class,decision,new_class
    cat/7.jpg,<64 hexadecimal digits>,cat,label,dog
    cat/9.jpg,<64 hexadecimal digits>,cat,drop,
    dog/1.jpg,<64 hexadecimal digits>,dog,keep,

A decision is about bytes and a class, not about a name: it does not apply to an image that has others.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tfpipe.common import tables
from tfpipe.common.errors import DataError
from tfpipe.common.files import written_atomically
from tfpipe.common.tables import escape_formula, unescape_formula
from tfpipe.common.text import exactly

FILE_NAME = "decisions.csv"
LABEL, DROP, KEEP = DECISIONS = ("label", "drop", "keep")


class Decision(NamedTuple):
    """One row: of the image with these bytes and this class."""

    key: str
    sha256: str  # of the image's bytes
    old_class: str
    decision: str  # one of `DECISIONS`
    new_class: str = ""  # with "label", else ""


def write(path: Path, decisions: Iterable[Decision]) -> None:
    """Writes decisions in their order, whole or not at all."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(Decision._fields)
    writer.writerows([escape_formula(cell) for cell in decision] for decision in decisions)
    with written_atomically(path) as file:
        file.write(content.getvalue().encode())


def read(path: Path) -> list[Decision]:
    """Returns the decisions of a file, in its order.

    Raises:
        FileNotFoundError: there is none.
        DataError: a line is not a decision, or is the second one about an image; names the line.
    """
    decisions: dict[str, Decision] = {}
    with tables.opened(path) as table:
        if table.columns != list(Decision._fields):
            raise DataError(f"the first line must be {','.join(Decision._fields)}", path=path)
        for line, fields in table.rows:
            if problem := _problem(fields, decisions):
                raise DataError(f"line {line}: {problem}", path=path)
            decision = Decision(*map(unescape_formula, fields))
            decisions[decision.key] = decision
    return list(decisions.values())


def _problem(fields: list[str], known: Iterable[str]) -> str:
    """Returns why the cells of a line are not a decision, or ""."""
    if len(fields) != len(Decision._fields):
        return f"{exactly(len(fields), 'cell')}; expected {len(Decision._fields)}"
    key, sha256, old, decision, new = map(unescape_formula, fields)
    if key in known:
        return f"a second decision about {key!r}: keep one"
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return f"sha256 must be 64 hexadecimal digits (got {sha256!r:.80})"
    if decision not in DECISIONS:
        return f"decision must be one of {', '.join(DECISIONS)} (got {decision!r:.80})"
    if not old:
        return "old_class is empty: decisions are about images with a label"
    if (decision == LABEL) != bool(new) or new == old:
        return f"new_class must be another class with {LABEL!r}, else empty (got {new!r:.80} with {decision!r})"
    return ""
