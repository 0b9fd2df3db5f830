"""What `predict` writes: the lines of its CSV, and the list of pictures that have no value in it.

    table = Table("probability", ["cat", "dog"], positive_class="dog")
    table.header()                      # id,label
    table.row(picture, probabilities)   # 17,0.998712003

Lines are bytes, UTF-8, and end with a line feed; cells are quoted where they must be.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tfpipe.records.errors import DataError, RejectedImage
from tfpipe.records.files import written_atomically
from tfpipe.serving.sources import Picture
from tfpipe.transfer import predictions

Columns = Literal["label", "index", "probability", "table"]
COLUMNS: tuple[str, ...] = get_args(Columns)


class Table:
    """The form of the rows; arguments as in `tfpipe.serving.prediction.predict`."""

    def __init__(
        self,
        columns: Columns,
        class_names: Sequence[str],
        positive_class: str | None = None,
        id_column: str = "id",
        value_column: str = "label",
    ) -> None:
        if positive_class is not None and (columns != "probability" or positive_class not in class_names):
            known = f"one of {', '.join(class_names)}, with columns=probability"
            raise ValueError(f"positive_class must be {known} (got {positive_class!r} with columns={columns})")
        self.columns, self.class_names = columns, list(class_names)
        if positive_class is None and columns == "probability" and len(class_names) == 2:
            positive_class = class_names[1]
        self.positive = None if positive_class is None else self.class_names.index(positive_class)
        several = columns == "probability" and self.positive is None
        self._header = [id_column, *(self.class_names if several else [value_column])]
        if columns != "table" and len(set(self._header)) < len(self._header):
            names = ", ".join(self._header)
            raise ValueError(f"two columns have the same name: {names}; id_column and value_column rename them")

    def header(self) -> bytes:
        """Returns the first line."""
        return predictions.header(self.class_names) if self.columns == "table" else _line(self._header)

    def row(self, picture: Picture, probabilities: np.ndarray[Any, Any] | None) -> bytes:
        """Returns the line of a picture; without probabilities, all cells but its names are empty."""
        if self.columns == "table":
            return self._table_row(picture, probabilities)
        if probabilities is None:
            return _line([picture.id] + [""] * (len(self._header) - 1))
        return _line([picture.id, *self._values(probabilities)])

    def _values(self, probabilities: np.ndarray[Any, Any]) -> list[str]:
        if self.columns == "probability":
            shown = probabilities if self.positive is None else probabilities[self.positive : self.positive + 1]
            return [f"{value:.9g}" for value in shown.tolist()]  # read back as float32, they are the same numbers
        best = int(probabilities.argmax())
        return [str(best) if self.columns == "index" else self.class_names[best]]

    def _table_row(self, picture: Picture, probabilities: np.ndarray[Any, Any] | None) -> bytes:
        if probabilities is None:
            return _line([picture.key, picture.filename, "", ""] + [""] * len(self.class_names))
        names = [picture.key], [picture.filename]
        return predictions.rows(
            predictions.Predictions(*names, np.array([-1]), probabilities[np.newaxis], class_names=self.class_names)
        )


def _line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)  # a writer quotes the characters of its line's end only
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"


def write_rejected(output: Path, pictures: Sequence[Picture], errors: Mapping[int, DataError]) -> Path | None:
    """Writes the list of bad pictures beside the output and returns its path; without any, removes that of an output before.

    Args:
        output: "submission.csv" for a list "submission.rejected.jsonl".
        pictures: of all rows.
        errors: by place in `pictures`.
    """
    path = output.with_name(f"{output.name.removesuffix('.csv')}.rejected.jsonl")
    if not errors:
        path.unlink(missing_ok=True)
        return None
    with written_atomically(path) as file:
        for index, error in sorted(errors.items()):
            reason = error.reason if isinstance(error, RejectedImage) else "unreadable"
            line = {"id": pictures[index].id, "key": pictures[index].key, "reason": reason, "message": error.message}
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    return path
