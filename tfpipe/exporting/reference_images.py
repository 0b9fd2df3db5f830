"""Images to compare every export with its model on: two photographs from scikit-learn in every form of an image file.

for image in make(): image.name, image.data     # "orientation_6.jpg", b"..."
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_ORIENTATION = 0x0112
_SMALL, _LARGE = (320, 213), (4000, 2667)  # (width, height)


class ReferenceImage(NamedTuple):
    """A file's name and bytes."""

    name: str
    data: bytes


def make() -> list[ReferenceImage]:
    """Returns the files; equal with equal versions of Pillow and scikit-learn."""
    return [*_photographs(), *_pngs(), *_not_images()]


def _photographs() -> Iterator[ReferenceImage]:
    china, flower = _load()
    yield ReferenceImage("colour.jpg", _encoded(flower, "JPEG", quality=90))
    yield ReferenceImage("progressive_444.jpg", _encoded(china.resize(_SMALL), "JPEG", progressive=True, subsampling=0))
    yield ReferenceImage("grey.jpg", _encoded(china.convert("L"), "JPEG"))
    yield ReferenceImage("cmyk.jpg", _encoded(flower.resize(_SMALL).convert("CMYK"), "JPEG"))
    yield ReferenceImage("large.jpg", _encoded(china.resize(_LARGE, Image.Resampling.BICUBIC), "JPEG"))
    yield ReferenceImage("strip.jpg", _encoded(china.crop((0, 200, 640, 203)), "JPEG"))
    for orientation in range(9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        yield ReferenceImage(f"orientation_{orientation}.jpg", _encoded(china.resize(_SMALL), "JPEG", exif=exif))


def _pngs() -> Iterator[ReferenceImage]:
    china, flower = (image.resize(_SMALL) for image in _load())
    turned = Image.Exif()
    turned[_ORIENTATION] = 8
    alpha = flower.copy()
    alpha.putalpha(flower.convert("L"))
    yield ReferenceImage("colour.png", _encoded(china, "PNG"))
    yield ReferenceImage("orientation_8.png", _encoded(china, "PNG", exif=turned))
    yield ReferenceImage("alpha.png", _encoded(alpha, "PNG"))
    yield ReferenceImage("palette.png", _encoded(flower.quantize(64), "PNG"))
    yield ReferenceImage("grey.png", _encoded(china.convert("L"), "PNG"))
    yield ReferenceImage("grey_alpha.png", _encoded(alpha.convert("LA"), "PNG"))
    yield ReferenceImage("grey_16_bit.png", _encoded(china.convert("L").convert("I;16"), "PNG"))
    yield ReferenceImage("one_bit.png", _encoded(flower.convert("1"), "PNG"))
    yield ReferenceImage("pixel.png", _encoded(flower.resize((1, 1)), "PNG"))
    yield ReferenceImage("png_called.jpg", _encoded(flower.resize((50, 70)), "PNG"))


def _not_images() -> Iterator[ReferenceImage]:
    whole = _encoded(_load()[0], "JPEG")
    yield ReferenceImage("cut.jpg", whole[: len(whole) // 2])
    yield ReferenceImage("empty.jpg", b"")
    yield ReferenceImage("page.html", b"<!doctype html><title>404</title>")
    yield ReferenceImage("animation.gif", _encoded(_load()[1].resize((20, 20)), "GIF"))


@functools.cache
def _load() -> tuple[Image.Image, Image.Image]:
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return Image.fromarray(china), Image.fromarray(flower)


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
