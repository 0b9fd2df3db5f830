"""Files that TensorFlow cannot decode, made into PNG by Pillow without loss.

    made = to_png(path.read_bytes())
    made.data, made.format             # bytes, "HEIC"

The pixels are turned upright, and the colour profile is kept; other metadata are not. Of several
images in a file the first is taken. What PNG cannot hold without loss (more than 8 bits of colour,
CMYK, floating point) is rejected. Equal files give equal bytes with equal versions of Pillow and
pillow-heif, see `versions`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
import warnings
from typing import Any, NamedTuple

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly
from tfpipe.images import headers, png, webp

CONVERSIONS = ("png",)

HEIF = ("HEIC", "HEIF")
_DECODERS = {
    **{name: [name] for name in ("GIF", "TIFF", "AVIF", "BMP", "WEBP", "PNG")},
    "BigTIFF": ["TIFF"],
    "HEIC": ["HEIF"],
    "HEIF": ["HEIF", "AVIF"],  # a file of the general kind may be either
}
_MODES = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"))
_MODES |= {"PA": "RGBA", "YCbCr": "RGB"}  # None: as it is
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339  # TIFF 6.0
_WHITE_IS_ZERO, _SIGNED = 0, 2
_AV1_CONFIGURATION = re.compile(rb"av1C\x81.(.)", re.DOTALL)


class Converted(NamedTuple):
    """A PNG file, the format and hash of the file that it was made of, and whether that has more images."""

    data: bytes
    format: str
    sha256: str
    is_first: bool


def versions() -> str:
    """Returns the versions that the bytes depend on, as "Pillow 12.0.0, pillow-heif 1.1.0"."""
    found = []
    for name in ("Pillow", "pillow-heif"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def format_of(data: bytes) -> str | None:
    """Returns the format of a file that may need `to_png`, from its first bytes; None for others."""
    name = headers.other_format(data)
    if name is None and not data.startswith(headers.JPEG_SIGNATURE) and headers.has_known_format(data):
        name = "PNG" if data.startswith(png.SIGNATURE) else "WEBP" if webp.is_webp(data) else "BMP"
    return name if name in _DECODERS else None


def to_png(data: bytes, max_pixels: int = headers.DEFAULT_MAX_PIXELS) -> Converted:
    """Makes a PNG of the first image of a file.

    Args:
        data: the whole file, of a format that `format_of` knows.
        max_pixels: largest height times width.

    Raises:
        RejectedImage: the file cannot be decoded, or not without loss, or is too large.
    """
    from PIL import Image, ImageOps

    name = format_of(data) or "unknown"
    if name in HEIF:
        _open_heif()
    if _is_deep(data):
        raise _unconvertible(name, "it has more than 8 bits a sample, which Pillow does not keep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, and of sizes that the caller's limit allows
            with Image.open(io.BytesIO(data), formats=_DECODERS.get(name)) as image:
                _check(image, name, max_pixels)
                is_first = getattr(image, "n_frames", 1) > 1
                upright: Any = ImageOps.exif_transpose(image)
            mode = _MODES[upright.mode]
            out = io.BytesIO()
            whole = upright if mode is None else upright.convert(mode)
            whole.save(out, "PNG", compress_level=6, icc_profile=image.info.get("icc_profile"))
    except RejectedImage:
        raise
    except Image.DecompressionBombError as error:
        raise RejectedImage("too_many_pixels", str(error)) from None
    except Exception as error:  # whatever a decoder raises
        raise _unconvertible(name, f"Pillow cannot decode it ({error or type(error).__name__})") from None
    return Converted(out.getvalue(), name, hashlib.sha256(data).hexdigest(), is_first)


def _check(image: Any, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        pixels = exactly(height * width, "pixel")
        raise RejectedImage("too_many_pixels", f"{height} x {width} = {pixels}; the limit is {max_pixels}")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_TAG, image.info.get("bit_depth", 8))  # the second is pillow-heif's
    most, is_grey = max(bits) if isinstance(bits, tuple) else bits, image.mode.startswith("I;16")
    if image.mode not in _MODES or (most > 8 and not is_grey):
        raise _unconvertible(name, f"PNG cannot hold mode {image.mode} of {exactly(most, 'bit')} without loss")
    if (is_grey and tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO) or _SIGNED in tags.get(_SAMPLE_FORMAT_TAG, ()):
        raise _unconvertible(name, f"its grey levels are inverted or signed, which Pillow ignores at {exactly(most, 'bit')}")


def _is_deep(data: bytes) -> bool:
    """Returns whether an AVIF file, or a PNG in colour, has more than 8 bits a sample."""
    if data.startswith(png.SIGNATURE):
        return data[24] == 16 and data[25] not in (0, 4)
    return any(flags[0] & 0x40 for flags in _AV1_CONFIGURATION.findall(data))


def _open_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise RejectedImage("unconvertible", "HEIC needs pillow-heif: pip install 'tfpipe[heif]'") from None
    pillow_heif.register_heif_opener()


def _unconvertible(name: str, why: str) -> RejectedImage:
    return RejectedImage("unconvertible", f"this is {name}, and convert=png cannot store it without loss: {why}")
