"""What `tfpipe.images.headers.read_header` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Facts of an image file, from its header.

    Attributes:
        format: by the bytes, whatever the file's name is.
        height: in pixels, before orientation.
        width: in pixels, before orientation.
        channels: components in the header; a palette counts as 3.
        orientation: EXIF 1..8; 1 where absent or out of range.
        precision: bits per sample (per palette index).
        coding: JPEG "baseline", "extended" or "progressive", with " arithmetic" where so; PNG
            "plain" or "interlaced"; WebP "lossy" or "lossless"; BMP "plain".
        subsampling: JPEG sampling factors, horizontal x vertical, as "2x2,1x1,1x1"; "" for others.
        color: "grey", "ycbcr", "rgb", "cmyk", "ycck", "palette", "grey+alpha" or "rgb+alpha".
        restart_interval: JPEG, in MCUs; 0 for none.
        trailing_bytes: bytes after the end of the image.
        significant_bits: those of `precision` that a PNG's sBIT chunk declares; 0 without one.
        transparent: has alpha, as samples or in a PNG's tRNS chunk.
        has_profile: has an ICC profile.
        animated: a PNG with more images than the one that is decoded (acTL chunk).
    """

    format: Literal["JPEG", "PNG", "WEBP", "BMP"]
    height: int
    width: int
    channels: int
    orientation: int
    precision: int
    coding: str
    subsampling: str
    color: str
    restart_interval: int
    trailing_bytes: int
    significant_bits: int = 0
    transparent: bool = False
    has_profile: bool = False
    animated: bool = False
