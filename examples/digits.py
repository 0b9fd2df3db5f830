"""A data set for the examples: scikit-learn's handwritten digits, 1,797 small images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import tfpipe

_SIDE = 32  # pixels; the digits themselves are 8 x 8


def build_digits(folder: Path) -> Path:
    """Writes folder/photos, a folder per class, and builds folder/shards from it; returns that one."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / "photos" / f"digit {label}" / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((_SIDE, _SIDE)).convert("RGB").save(path)
    splits = {"train": 0.7, "val": 0.15, "test": 0.15}
    tfpipe.build_tfrecords(folder / "photos", folder / "shards", name="digits", layout="folders", splits=splits)
    return folder / "shards"
