"""Images on which every export is compared with the model it came from: real ones, in every form that a file can have.

    for specimen in make(): specimen.name, specimen.data     # "orientation_6.jpg", b"..."

The photographs are the two that scikit-learn brings along.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_ORIENTATION = 0x0112
_SMALL, _LARGE = (320, 213), (4000, 2667)  # (width, height)


class Specimen(NamedTuple):
    """A file's name and bytes."""

    name: str
    data: bytes


def make() -> list[Specimen]:
    """Returns the files, the same ones every time with the same versions of Pillow and scikit-learn."""
    return [*_photographs(), *_pngs(), *_no_images()]


def _photographs() -> Iterator[Specimen]:
    china, flower = _load()
    yield Specimen("colour.jpg", _encoded(flower, "JPEG", quality=90))
    yield Specimen("progressive_444.jpg", _encoded(china.resize(_SMALL), "JPEG", progressive=True, subsampling=0))
    yield Specimen("grey.jpg", _encoded(china.convert("L"), "JPEG"))
    yield Specimen("cmyk.jpg", _encoded(flower.resize(_SMALL).convert("CMYK"), "JPEG"))
    yield Specimen("large.jpg", _encoded(china.resize(_LARGE, Image.Resampling.BICUBIC), "JPEG"))
    yield Specimen("strip.jpg", _encoded(china.crop((0, 200, 640, 203)), "JPEG"))
    for orientation in range(9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        yield Specimen(f"orientation_{orientation}.jpg", _encoded(china.resize(_SMALL), "JPEG", exif=exif))


def _pngs() -> Iterator[Specimen]:
    china, flower = (image.resize(_SMALL) for image in _load())
    turned = Image.Exif()
    turned[_ORIENTATION] = 8
    alpha = flower.copy()
    alpha.putalpha(flower.convert("L"))
    yield Specimen("colour.png", _encoded(china, "PNG"))
    yield Specimen("orientation_8.png", _encoded(china, "PNG", exif=turned))
    yield Specimen("alpha.png", _encoded(alpha, "PNG"))
    yield Specimen("palette.png", _encoded(flower.quantize(64), "PNG"))
    yield Specimen("grey.png", _encoded(china.convert("L"), "PNG"))
    yield Specimen("grey_alpha.png", _encoded(alpha.convert("LA"), "PNG"))
    yield Specimen("grey_16_bit.png", _encoded(china.convert("L").convert("I;16"), "PNG"))
    yield Specimen("one_bit.png", _encoded(flower.convert("1"), "PNG"))
    yield Specimen("pixel.png", _encoded(flower.resize((1, 1)), "PNG"))
    yield Specimen("png_called.jpg", _encoded(flower.resize((50, 70)), "PNG"))


def _no_images() -> Iterator[Specimen]:
    whole = _encoded(_load()[0], "JPEG")
    yield Specimen("cut.jpg", whole[: len(whole) // 2])
    yield Specimen("empty.jpg", b"")
    yield Specimen("page.html", b"<!doctype html><title>404</title>")
    yield Specimen("animation.gif", _encoded(_load()[1].resize((20, 20)), "GIF"))


@functools.cache
def _load() -> tuple[Image.Image, Image.Image]:
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return Image.fromarray(china), Image.fromarray(flower)


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
