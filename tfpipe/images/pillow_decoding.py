"""Decodes a stored image by Pillow, as `tfpipe.images.stored` does by TensorFlow.

    image = as_read(encoded, Samples(png16="percentile"), 320)     # RGB, with the pixels that training sees

It is for sheets: JPEG files may come in a smaller size, and CMYK as Pillow converts it.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from tfpipe.images import headers
from tfpipe.images.headers import ImageHeader
from tfpipe.records.samples import HIGH_PERCENT, LOW_PERCENT, MAX_BITS, USUAL, Samples

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

_LEVELS = 1 << MAX_BITS
# Of samples that Pillow's decoder makes 8 bits, the raw modes that take their high bytes, and their
# low ones.
_HALVES = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L"), "LA;16B": ("RGBA",)}


def as_read(encoded: bytes, samples: Samples, side: int) -> Image.Image:
    """Returns an image in RGB, as stored and not turned; a large JPEG no smaller than `side` along its longer side."""
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    with Image.open(io.BytesIO(encoded)) as opened:
        opened.draft("RGB", (side, side))  # a JPEG of 16 megapixels is decoded at an eighth of its size
        whole: Image.Image = _in_8_bits(opened, encoded, samples) if isinstance(opened, PngImageFile) else opened
        if samples.background != USUAL.background and opened.format == "PNG":
            whole = whole.convert("RGBA")
            whole = Image.alpha_composite(Image.new("RGBA", whole.size, samples.background), whole)
        whole.load()
        whole.info.pop("transparency", None)  # Pillow would warn that it is lost
        return whole if whole.mode == "RGB" else whole.convert("RGB")  # may be large: no copy without need


def _in_8_bits(opened: PngImageFile, encoded: bytes, samples: Samples) -> Image.Image:
    """Returns a PNG in 8 bits; its alpha may be in `info`, as Pillow leaves it."""
    from PIL import Image, ImageChops

    raw = str(opened.tile[0].args)
    if raw in ("L;2", "L;4") and "transparency" in opened.info:  # which Pillow leaves as it is while it scales the samples
        highest = (1 << int(raw[-1])) - 1
        opened.info["transparency"] = (opened.info["transparency"] & highest) * (255 // highest)
    if str(MAX_BITS) not in raw:
        return opened
    header = headers.read_header(encoded, max_pixels=opened.width * opened.height)
    bits, transparent = header.significant_bits % MAX_BITS, opened.info.get("transparency")
    if not bits and samples.png16 == USUAL.png16 and header.channels > 1 and transparent is None:
        return opened  # Pillow takes the high bytes
    colours, alpha = _samples(opened, encoded, header)
    counts = Counter(level for colour in colours for level in memoryview(colour.tobytes()).cast("H"))
    levels = _table(counts, bits, samples.png16)
    wide = [colour.convert("I") for colour in colours]
    found = [colour.point(levels, "L") for colour in wide]
    if transparent is not None:
        keys = [transparent] if len(colours) == 1 else transparent
        masks = [[255 * (level != key) for level in range(_LEVELS)] for key in keys]
        alpha = functools.reduce(ImageChops.lighter, [one.point(mask, "L") for one, mask in zip(wide, masks, strict=True)])
    return Image.merge("RGBA", [*(found * 3)[:3], alpha]) if alpha else Image.merge("RGB", (found * 3)[:3])


def _samples(opened: PngImageFile, encoded: bytes, header: ImageHeader) -> tuple[list[Image.Image], Image.Image | None]:
    """Returns the colours, of mode I;16, and the high bytes of alpha, of mode L; None without."""
    from PIL import Image

    alpha: Image.Image | None
    if header.channels == 1:
        opened.load()
        return [opened], None
    halves = [_reopened(encoded, raw) for raw in _HALVES[str(opened.tile[0].args)]]
    if header.color == "grey+alpha":  # its four bytes, one after the other
        high, low, alpha, _ = halves[0].split()
        pairs = [(low, high)]
    else:
        high_bands, low_bands = (half.split() for half in halves)
        pairs, alpha = [*zip(low_bands[:3], high_bands[:3], strict=True)], next(iter(high_bands[3:]), None)
    return [Image.frombytes("I;16", opened.size, Image.merge("LA", pair).tobytes()) for pair in pairs], alpha


def _reopened(encoded: bytes, raw: str) -> Image.Image:
    from PIL.PngImagePlugin import PngImageFile

    image = PngImageFile(io.BytesIO(encoded))
    image._mode = raw.partition(";")[0]
    image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image


def _table(counts: Counter[int], bits: int, png16: str) -> list[int]:
    """Returns the 8 bits of each level of 16, see `stored._table`, for an image of so many samples of each."""
    if bits:
        num_declared = 1 << bits
        step = _LEVELS // num_declared
        is_low = max(counts) < num_declared and any(level % step > (step > 2) for level in counts)
        return [(level % num_declared * step if is_low else level) // 256 for level in range(_LEVELS)]
    if png16 == USUAL.png16:
        return [level // 256 for level in range(_LEVELS)]
    low, high = (LOW_PERCENT, HIGH_PERCENT) if png16 == "percentile" else (0, 100)
    below = dict(zip(sorted(counts), itertools.accumulate(counts[level] for level in sorted(counts)), strict=True))
    total = sum(counts.values())
    black = next(level for level, count in below.items() if count * 100 > low * total)
    white = next(level for level, count in below.items() if count * 100 >= high * total)
    width = max(white - black, 1)
    return [min(max(((level - black) * 510 + width) // (2 * width), 0), 255) for level in range(_LEVELS)]
