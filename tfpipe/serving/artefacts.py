"""Models in whatever form they left: a run, a .keras file, a SavedModel, a frozen graph, TFLite, ONNX.

    predictor = load("export/frozen_image.pb")
    predictor.predict(images)      # uint8 [B, H, W, 3] -> float32 [B, C], in the order of predictor.class_names

Callers need not know which it is: all answer alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfpipe.pipeline.decoding import Resize
from tfpipe.serving.specifications import Specification
from tfpipe.transfer import classifiers
from tfpipe.transfer.classifiers import Predictor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Artefact:
    """A model that was exported; a `Predictor`.

    Attributes:
        specification: what travelled with it.
        run: uint8 [B, H, W, 3] -> float32 [B, C].
    """

    specification: Specification
    run: Callable[[Any], Array]

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the columns."""
        return self.specification.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of its input."""
        return self.specification.image_size

    @property
    def resize(self) -> Resize:
        """How pictures are brought to that size, see `tfpipe.dataset`."""
        return self.specification.resize

    @property
    def sha256(self) -> str:
        """Hash of the model that was exported."""
        return self.specification.sha256

    def predict(self, images: Any) -> Array:
        """Returns probabilities, float32 [B, C], of uint8 pictures [B, H, W, 3]."""
        return self.run(images)


def load(path: str | os.PathLike[str]) -> Predictor:
    """Returns the model of a run's folder, a .keras file, or a file or folder of an export.

    Raises:
        FileNotFoundError: there is none.
        DataError: it cannot be read, or is no model of tfpipe.
        ImportError: its format needs an extra that is not installed.
    """
    return classifiers.load(path)
