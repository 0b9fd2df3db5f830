"""How a split is read: the keyword arguments of `tfpipe.dataset`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.images.decoding import Resize, check_mode
from tfpipe.pipeline.presets import Augmentation
from tfpipe.records.samples import Samples

_REQUIRED = (
    *("training", "balanced", "repeat", "as_dict", "equal_steps"),
    *("image_size", "seed", "first_epoch", "first_step"),
)
_OPTIONAL = ("batch_size", "num_parallel_calls", "read_block", "shard", "scaled_decode")
_TRAINING_ONLY = ("augment", "balanced", "read_block", "repeat", "seed", "first_epoch", "first_step")


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """The keyword arguments of `tfpipe.dataset`, where they are explained, and three more.

    Attributes:
        shuffle: False keeps the stored order in training.
        selection: int64 [N], ascending positions of the records to read; None for all.
        samples: treatment of 16 bits and alpha; None for that of the manifest.

    Raises:
        ValueError: an argument is wrong.
    """

    batch_size: int | None = 32
    image_size: tuple[int, int] = (224, 224)
    resize: Resize = "stretch"
    class_names: Sequence[str] | None = None
    training: bool = False
    augment: Augmentation | str | None = None
    seed: int = 0
    balanced: bool = False
    read_block: int | None = None
    repeat: bool = False
    first_epoch: int = 0
    first_step: int = 0
    scaled_decode: bool | None = None
    as_dict: bool = False
    shard: tuple[int, int] | None = None
    equal_steps: bool = False
    num_parallel_calls: int | None = None

    shuffle: bool = True
    selection: np.ndarray[Any, Any] | None = None
    samples: Samples | None = None

    def __post_init__(self) -> None:
        if self.num_parallel_calls == tf.data.AUTOTUNE:
            object.__setattr__(self, "num_parallel_calls", None)
        for names, check in ((_REQUIRED, arguments.check), (_OPTIONAL, arguments.check_given)):
            for name, value in zip(names, check(**{name: getattr(self, name) for name in names}), strict=True):
                object.__setattr__(self, name, value)
        check_mode(self.resize)
        Augmentation.named("standard" if self.augment is None else self.augment)
        for name in _TRAINING_ONLY:
            if not self.training and (value := getattr(self, name)):
                raise ValueError(f"{name} is of training only: training=True is missing (got {value!r})")
        if self.balanced and self.read_block:
            raise ValueError(f"balanced and read_block={self.read_block} exclude each other: a class has no neighbours")

    @property
    def augmentation(self) -> Augmentation | None:
        """Augmentation to apply, None outside training."""
        return Augmentation.named("standard" if self.augment is None else self.augment) if self.training else None

    @property
    def scaled(self) -> bool:
        """Whether large JPEG files are decoded at a reduced size."""
        return self.training if self.scaled_decode is None else self.scaled_decode
