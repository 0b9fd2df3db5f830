"""Reads the header of an image file, and rejects undecodable files, without decoding.

    >>> header = read_header(path.read_bytes())
    >>> header.format, header.height, header.width, header.orientation
    ('JPEG', 375, 499, 1)

An accepted file has its headers, tables, markers and end in order. `decode=True` alone detects
damage inside a JPEG's entropy-coded data, and a PNG with right checksums whose compressed data do
not fill the image. Most single flipped bits in a scan leave a valid one with other colours: only a
hash of the bytes detects these.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly
from tfpipe.images import bmp, jpeg, png, webp
from tfpipe.images.image_header import ImageHeader as ImageHeader

DEFAULT_MAX_PIXELS = 178_956_970
"""Above this, Pillow raises DecompressionBombError: twice `PIL.Image.MAX_IMAGE_PIXELS` (a quarter GiB of RGB)."""

TENSORFLOW_MAX_PIXELS = 2**29 - 1
"""TensorFlow refuses more: tensorflow/core/lib/jpeg/jpeg_mem.cc and kernels/image/decode_image_op.cc."""

JPEG_SIGNATURE = b"\xff\xd8\xff"
ACCEPTED = "JPEG, PNG, WebP or BMP"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "empty": "The file has no bytes.",
        "not_an_image": "The first bytes are those of no known format of images.",
        "other_format": "The file is of another format than JPEG, PNG, WebP and BMP: GIF, TIFF, HEIC, AVIF ...",
        "animated": "The file is an animated WebP, or an animated PNG that is to be packed: one image is expected.",
        "truncated": (
            "The end-of-image marker (JPEG) or IEND chunk (PNG) is missing, or bytes that a header declares (WebP, BMP): "
            "the file is truncated."
        ),
        "unsupported_coding": (
            "TensorFlow cannot decode this kind of JPEG (12-bit, lossless, hierarchical, JPEG-LS ...) or BMP (a palette of "
            "colours, compressed, 16 bits a pixel ...)."
        ),
        "unsupported_channels": "The number of components is not 1, 3 or 4: TensorFlow has no conversion to RGB.",
        "bad_dimensions": "Height or width is zero (or left to a DNL marker), or more than the decoder takes.",
        "too_many_pixels": "Height times width is above the limit, which guards the memory of whoever decodes.",
        "too_costly": (
            "A JPEG of more scans, or a PNG of more compressed texts and colour profiles, than images have: small files of "
            "that kind cost their decoder minutes or gigabytes."
        ),
        "damaged_header": "A segment or chunk breaks the format: wrong length, forbidden value, twice or out of order.",
        "damaged_table": "A Huffman, quantisation or arithmetic table, or a palette, breaks the format.",
        "missing_table": "A quantisation or Huffman table or palette is used and never defined.",
        "damaged_scan": (
            "A JPEG scan has impossible parameters or comes too late, or its data hold a forbidden marker (which "
            "TensorFlow steps over at some places between restart markers, returning a damaged image); when files are "
            "decoded, also: the compressed data of a JPEG, PNG or WebP end too early or too late, or cannot be decoded."
        ),
        "no_image_data": "The file ends in order, but holds no image data.",
        "bad_checksum": "The bytes of a PNG chunk do not match its CRC (TensorFlow lets that pass in optional chunks).",
    }
)
"""The reason codes of `RejectedImage`, each with one explaining sentence."""


def read_header(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, decode: bool = False) -> ImageHeader:
    """Reads the header of an image file's bytes, with all checks possible without decoding.

    Args:
        data: the whole file.
        max_pixels: largest height times width; TensorFlow's own limit is 2**29 - 1.
        decode: check the compressed data, too; takes some milliseconds for a photo.

    Raises:
        RejectedImage: with a reason out of `REASONS`, for whatever bytes; nothing else is raised.
    """
    if data.startswith(JPEG_SIGNATURE):
        header = jpeg.read(data, decode=decode)
    elif data.startswith(png.SIGNATURE):
        header = png.read(data, decode=decode)
    elif webp.is_webp(data):
        header = webp.read(data, decode=decode)
    elif data.startswith(bmp.SIGNATURE):
        header = bmp.read(data)
    else:
        raise _foreign(data)
    limit = min(max_pixels, TENSORFLOW_MAX_PIXELS)
    if header.height * header.width > limit:
        message = f"{header.height} x {header.width} = {exactly(header.height * header.width, 'pixel')}; the limit is {limit}"
        raise RejectedImage("too_many_pixels", message)
    return header


def has_known_format(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes (at least 12) may be accepted."""
    return head.startswith((JPEG_SIGNATURE, png.SIGNATURE, bmp.SIGNATURE)) or webp.is_webp(head)


# First bytes, and the format they belong to.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 codestream"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL codestream"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"PK\3\4", "ZIP"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
_HEIF_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
}


def _foreign(data: bytes) -> RejectedImage:
    """Returns the error for bytes of another format, with its name where known."""
    if not data:
        return RejectedImage("empty", "no bytes")
    if name := other_format(data):
        return RejectedImage("other_format", f"this is {name}; {ACCEPTED} is expected", offset=0)
    head = data[:16]
    printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head)
    message = f"the first bytes are {head.hex(' ')} ({printable}); {ACCEPTED} is expected"
    return RejectedImage("not_an_image", message, offset=0)


def other_format(data: bytes) -> str | None:
    """Returns the name of a format that is not decoded here, from a file's first bytes; else None."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return _HEIF_BRANDS.get(data[8:12], "an ISO media file")
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "PNM"
    text = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml")):
        return "SVG or other XML"
    return "HTML" if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else None
