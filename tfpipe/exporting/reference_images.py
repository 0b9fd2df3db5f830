"""Reference images for comparisons: two photographs in every form of an image file.

for image in make():
image.name, image.data     # "orientation_6.jpg", b"..."
"""

from __future__ import annotations

import io
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
    china, flower = _load()
    china_small, flower_small = china.resize(_SMALL), flower.resize(_SMALL)
    alpha = flower_small.copy()
    alpha.putalpha(flower_small.convert("L"))
    whole = _encoded(china, "JPEG")
    files = {
        "colour.jpg": _encoded(flower, "JPEG", quality=90),
        "progressive_444.jpg": _encoded(china_small, "JPEG", progressive=True, subsampling=0),
        "grey.jpg": _encoded(china.convert("L"), "JPEG"),
        "cmyk.jpg": _encoded(flower_small.convert("CMYK"), "JPEG"),
        "large.jpg": _encoded(china.resize(_LARGE, Image.Resampling.BICUBIC), "JPEG"),
        "strip.jpg": _encoded(china.crop((0, 200, 640, 203)), "JPEG"),
        **{f"orientation_{number}.jpg": _encoded(china_small, "JPEG", exif=_exif(number)) for number in range(9)},
        "colour.png": _encoded(china_small, "PNG"),
        "orientation_8.png": _encoded(china_small, "PNG", exif=_exif(8)),
        "alpha.png": _encoded(alpha, "PNG"),
        "palette.png": _encoded(flower_small.quantize(64), "PNG"),
        "grey.png": _encoded(china_small.convert("L"), "PNG"),
        "grey_alpha.png": _encoded(alpha.convert("LA"), "PNG"),
        "grey_16_bit.png": _encoded(china_small.convert("L").convert("I;16"), "PNG"),
        "one_bit.png": _encoded(flower_small.convert("1"), "PNG"),
        "pixel.png": _encoded(flower_small.resize((1, 1)), "PNG"),
        "png_called.jpg": _encoded(flower_small.resize((50, 70)), "PNG"),
        "lossy.webp": _encoded(flower_small, "WEBP"),
        "lossless.webp": _encoded(china_small, "WEBP", lossless=True),
        "alpha.webp": _encoded(alpha, "WEBP"),
        "orientation_6.webp": _encoded(china_small, "WEBP", exif=_exif(6)),
        "colour.bmp": _encoded(flower_small, "BMP"),
        "grey.bmp": _encoded(china_small.convert("L"), "BMP"),
        "palette.bmp": _encoded(flower_small.quantize(64), "BMP"),
        "animation.webp": _encoded(flower_small, "WEBP", save_all=True, append_images=[china_small]),
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "page.html": b"<!doctype html><title>404</title>",
        "animation.gif": _encoded(flower.resize((20, 20)), "GIF"),
    }
    return [ReferenceImage(*file) for file in files.items()]


def _load() -> tuple[Image.Image, Image.Image]:
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    return Image.fromarray(china), Image.fromarray(flower)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return exif


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
