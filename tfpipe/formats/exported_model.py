"""An opened file of an export, a `tfpipe.models.classifiers.Predictor` as a run's classifier is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfpipe.formats.preflight import SAVED_MODEL_NAME
from tfpipe.formats.specifications import Specification
from tfpipe.images.decoding import Resize
from tfpipe.models.tta import Tta
from tfpipe.networks import arithmetic
from tfpipe.records.run_folders import Seen
from tfpipe.records.samples import Samples

Array = np.ndarray[Any, Any]

_OF_FILE = {"device": "CPU", "arithmetic": "that of the file"}  # of TFLite's and ONNX's programs


@dataclass(frozen=True)
class ExportedModel:
    """A model from a file of an export.

    Attributes:
        specification: from the file.
        run: uint8 [B, H, W, 3] -> float32 [B, C].
        form: kind of the file; files of one model have one hash (except lossy ones), and differ in
            the last digit.
        products: dtypes of the graph's products, see `arithmetic.products_of`; None without
            TensorFlow.
    """

    specification: Specification
    run: Callable[[Any], Array]
    form: str = ""
    products: Collection[str] | None = None

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
        """How images are resized, see `tfpipe.dataset`."""
        return self.specification.resize

    @property
    def samples(self) -> Samples:
        """How 16-bit and transparent PNG are converted."""
        return self.specification.samples

    @property
    def task(self) -> str:
        """See `Specification`."""
        return self.specification.task

    @property
    def thresholds(self) -> Sequence[float] | None:
        """See `Specification`."""
        return self.specification.thresholds

    @property
    def units(self) -> Sequence[str] | None:
        """See `Specification`."""
        return self.specification.units

    @property
    def seen(self) -> tuple[Seen, ...]:
        """See `Specification`."""
        return self.specification.seen

    @property
    def sha256(self) -> str:
        """Hash of the exported model, see `Specification`."""
        return self.specification.sha256

    @property
    def tta(self) -> Tta | None:
        """Views that it averages itself."""
        return None if self.form == SAVED_MODEL_NAME else self.specification.tta

    @property
    def computation(self) -> dict[str, str]:
        """Device and arithmetic of `predict`."""
        return _OF_FILE if self.products is None else arithmetic.describe(self.products)

    @arithmetic.exact()
    def predict(self, images: Any) -> Array:
        """Returns probabilities, float32 [B, C], of uint8 images [B, H, W, 3].

        Raises:
            ValueError: another dtype or size.
            MemoryError: too many images at once.
        """
        array = np.asarray(images)
        if array.dtype != np.uint8 or array.shape[1:] != (*self.image_size, 3):
            wanted = ", ".join(map(str, ("B", *self.image_size, 3)))
            raise ValueError(f"images must be uint8 [{wanted}] (got {array.dtype} {list(array.shape)})")
        with arithmetic.within_memory(len(array)):
            return self.run(array)
