"""The table of predictions, from which every metric comes.

    table = read("eval/predictions.csv")
    table.probabilities[table.labels == 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a classifier said of every picture of a split, in the order of the catalogue.

    Attributes:
        keys: of each picture.
        filenames: of each picture.
        labels: int64 [N], index in class_names, -1 for unlabelled pictures.
        probabilities: float64 [N, C], as read back from 9 significant digits.
        class_names: name of each column, in the model's order.
    """

    keys: Sequence[str]
    filenames: Sequence[str]
    labels: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]
    class_names: Sequence[str]

    @property
    def predicted(self) -> np.ndarray[Any, Any]:
        """int64 [N], the index of the largest probability; the first of equal ones."""
        return self.probabilities.argmax(axis=1)
