"""Reads the chunks of a PNG file, checking each one's CRC, without inflating the pixels.

    >>> header = read(data)
    >>> header.height, header.width, header.color

By the W3C's Portable Network Graphics specification (third edition, 2025), sections 5 and 11.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly
from tfpipe.images import exif
from tfpipe.images.image_header import ImageHeader

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Bit depths that each colour type may have (section 11.2.1, table 11.1).
_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PALETTE, _ALPHA = 3, 4

_COLORS = {0: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 3), 4: ("grey+alpha", 2), 6: ("rgb+alpha", 4)}
_LAST_FILTER = 4  # section 9.2
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Left, top and distances across and down of the pixels of each pass (section 8.2)."""

_SLICE_BYTES = 1 << 14  # inflated at a time

_MAX_DIMENSION = 1_000_000  # libpng's PNG_USER_WIDTH_MAX and PNG_USER_HEIGHT_MAX
_MAX_CHUNK_BYTES = 2**31 - 1
_MAX_TEXT_BYTES = 2**20  # inflated; the same limit as Pillow's PngImagePlugin.MAX_TEXT_CHUNK

MAX_COMPRESSED_CHUNKS = 8
"""At most so many chunks of zTXt, iCCP and compressed iTXt together.

The decoder inflates each, to 8 MB at most, and keeps a thousand of them: 300 in a file of 2.3 MB
take 2.3 GB. Of 4,981 files (a test suite's, and those that come with software) nine have one and
one has two; eight allow a profile of each kind.
"""


def read(data: bytes, *, decode: bool = False) -> ImageHeader:
    """Reads the header of a file, and checks all its chunks up to IEND, in linear time.

    Args:
        data: the whole file, with PNG's signature.
        decode: inflate the pixels, too, a row at a time: they must fill the image, and each row
            name a filter that exists.

    Raises:
        RejectedImage: the file is truncated, a checksum is wrong, or decoding would fail, or cost out of
            proportion.
    """
    return _Walker(data, decode).walk()


@dataclass(slots=True)
class _Walker:
    data: bytes
    decode: bool = False
    position: int = len(SIGNATURE)
    height: int = 0
    width: int = 0
    bit_depth: int = 0
    color_type: int = 0
    interlaced: bool = False
    significant_bits: int = 0
    transparent: bool = False
    has_profile: bool = False
    exif: bytes = b""
    xmp: bytes = b""
    seen: set[bytes] = field(default_factory=set)
    previous: bytes = b""
    num_compressed: int = 0
    pixels: list[bytes] = field(default_factory=list)  # compressed, if decoding

    def walk(self) -> ImageHeader:
        while self.previous != b"IEND":
            kind, payload = self._chunk()
            self._count_compressed(kind, payload)
            self._read(kind, payload)
            self.seen.add(kind)
            self.previous = kind
        if b"IDAT" not in self.seen:
            self._reject("no_image_data", "no IDAT chunk before IEND")
        if self.decode:
            self._decode()
        color, channels = _COLORS[self.color_type]
        return ImageHeader(
            format="PNG",
            height=self.height,
            width=self.width,
            channels=channels,
            orientation=exif.orientation(self.exif, self.xmp),
            precision=self.bit_depth,
            coding="interlaced" if self.interlaced else "plain",
            subsampling="",
            color=color,
            restart_interval=0,
            trailing_bytes=len(self.data) - self.position,
            significant_bits=self.significant_bits,
            transparent=self.transparent,
            has_profile=self.has_profile,
            animated=b"acTL" in self.seen,
        )

    def _decode(self) -> None:
        num_samples = 1 if self.color_type == _PALETTE else _COLORS[self.color_type][1]
        pixels, bits = _Inflated(self.pixels), self.bit_depth * num_samples
        passes = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        try:
            for number, (left, top, across, down) in enumerate(passes, start=1):
                width, height = -(-(self.width - left) // across), -(-(self.height - top) // down)
                for row in range(height if width > 0 else 0):
                    size = 1 + -(-width * bits // 8)
                    line, where = pixels.read(size), f"row {row} of {height}, pass {number} of {len(passes)}"
                    if len(line) < size:
                        self._reject("damaged_scan", f"the compressed data end in {where}")
                    if line[0] > _LAST_FILTER:
                        self._reject("damaged_scan", f"filter {line[0]} in {where}; 0 to {_LAST_FILTER} exist")
            pixels.read(1)  # what follows the last row is the checksum
        except zlib.error as error:
            self._reject("damaged_scan", f"the compressed data are damaged ({error})")

    def _chunk(self) -> tuple[bytes, bytes]:
        """Returns the next chunk's type and payload, and steps over it."""
        start, left = self.position + 8, len(self.data) - self.position
        if left < 12:
            self._reject("truncated", f"{exactly(left, 'byte')} left where a chunk is expected, no IEND: the file is truncated")
        length = int.from_bytes(self.data[self.position : self.position + 4], "big")
        kind = self.data[self.position + 4 : start]
        if not kind.isalpha() or length > _MAX_CHUNK_BYTES:
            self._reject("damaged_header", f"chunk type {kind!r}, length {length}: not a chunk")
        if length > left - 12:
            self._reject("truncated", f"chunk {kind!r} of {exactly(length, 'byte')}, {left - 12} are left (truncated file)")
        payload = self.data[start : start + length]
        stored = int.from_bytes(self.data[start + length : start + length + 4], "big")
        if zlib.crc32(payload, zlib.crc32(kind)) != stored:
            self._reject("bad_checksum", f"the CRC of chunk {kind!r} ({exactly(length, 'byte')}) does not match its bytes")
        self.position = start + length + 4
        return kind, payload

    def _read(self, kind: bytes, payload: bytes) -> None:
        if not self.seen:
            if kind != b"IHDR":
                self._reject("damaged_header", f"the first chunk is {kind!r}; IHDR is expected")
            self._read_header(payload)
        elif kind == b"PLTE":
            self._check_palette(payload)
        elif kind == b"IDAT":
            if self.decode:
                self.pixels.append(payload)
            if self.color_type == _PALETTE and b"PLTE" not in self.seen:
                self._reject("missing_table", "IDAT comes before PLTE, and the colours are a palette's")
        elif kind in (b"sBIT", b"tRNS", b"iCCP"):
            self._read_samples(kind, payload)
        elif kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            self._read_metadata(kind, payload)
        elif kind == b"IHDR" or (kind[0:1].isupper() and kind != b"IEND"):
            self._reject("damaged_header", f"chunk {kind!r}: a critical chunk that is unknown or repeated")

    def _read_samples(self, kind: bytes, payload: bytes) -> None:
        if kind in self.seen or b"IDAT" in self.seen:
            return  # libpng ignores it
        if kind == b"sBIT":
            num_colours = 3 if self.color_type & 2 else 1
            depth, expected = 8 if self.color_type == _PALETTE else self.bit_depth, num_colours + self.color_type // 4
            bits = max(payload[:num_colours], default=0)
            self.significant_bits = bits if len(payload) == expected and bits <= depth else 0
        self.transparent |= kind == b"tRNS"
        self.has_profile |= kind == b"iCCP"

    def _count_compressed(self, kind: bytes, payload: bytes) -> None:
        flag = payload.partition(b"\0")[2][:1]
        self.num_compressed += kind in (b"zTXt", b"iCCP") or (kind == b"iTXt" and flag == b"\1")
        if self.num_compressed > MAX_COMPRESSED_CHUNKS:
            self._reject("too_costly", f"more than {MAX_COMPRESSED_CHUNKS} chunks of compressed text or colour profiles")

    def _read_header(self, payload: bytes) -> None:
        if len(payload) != 13:
            self._reject("damaged_header", f"IHDR of {exactly(len(payload), 'byte')}; 13 are expected")
        width, height = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
        bit_depth, color_type, compression, filtering, interlace = payload[8:]
        if not (0 < height <= _MAX_DIMENSION and 0 < width <= _MAX_DIMENSION):
            self._reject("bad_dimensions", f"height {height}, width {width}; the decoder takes 1 to {_MAX_DIMENSION}")
        if bit_depth not in _BIT_DEPTHS.get(color_type, ()):
            self._reject("damaged_header", f"colour type {color_type} of {exactly(bit_depth, 'bit')} does not exist")
        if compression or filtering or interlace > 1:
            message = f"compression {compression}, filter {filtering}, interlace {interlace}; 0, 0 and 0 or 1 are expected"
            self._reject("damaged_header", message)
        self.height, self.width, self.bit_depth, self.color_type = height, width, bit_depth, color_type
        self.interlaced, self.transparent = bool(interlace), color_type >= _ALPHA

    def _check_palette(self, payload: bytes) -> None:
        if b"PLTE" in self.seen:
            self._reject("damaged_table", "a second PLTE chunk")
        if b"IDAT" in self.seen:
            return  # too late to matter, and the decoder ignores it
        if self.color_type & 2 and not payload:
            self._reject("damaged_table", "an empty PLTE chunk")
        if self.color_type == _PALETTE and (len(payload) % 3 or not 3 <= len(payload) <= 768):
            self._reject(
                "damaged_table", f"PLTE of {exactly(len(payload), 'byte')}; 3 for each of 1 to 256 colours are expected"
            )

    def _read_metadata(self, kind: bytes, payload: bytes) -> None:
        """Keeps the EXIF block or XMP packet of an eXIf or text chunk."""
        if kind == b"eXIf":
            self.exif = payload
            return
        keyword, _, text = payload.partition(b"\0")
        if kind == b"zTXt":
            text = _inflate(text[1:])
        elif kind == b"iTXt":
            compressed = text[:1] == b"\1"
            text = text[2:].split(b"\0", 2)[-1]  # after the language and the translated keyword
            text = _inflate(text) if compressed else text
        if keyword == b"XML:com.adobe.xmp":
            self.xmp = text
        elif keyword == b"Raw profile type exif" and not self.exif:
            # A blank line, the profile's name, its length, and lines of hexadecimal digits.
            with contextlib.suppress(ValueError):
                self.exif = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))

    def _reject(self, reason: str, message: str) -> NoReturn:
        raise RejectedImage(reason, message, offset=self.position)


class _Inflated:
    """A zlib stream in pieces, as a file to read, which is never held whole."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._slices = (piece[i : i + _SLICE_BYTES] for piece in pieces for i in range(0, len(piece), _SLICE_BYTES))
        self._inflater = zlib.decompressobj()
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Returns so many bytes, less at the end."""
        while len(self._ready) < size and not self._inflater.eof:
            compressed = self._inflater.unconsumed_tail or next(self._slices, b"")
            more = self._inflater.decompress(compressed, max(size, _SLICE_BYTES))
            if not more and not compressed:
                break
            self._ready += more
        found, self._ready = self._ready[:size], self._ready[size:]
        return found


def _inflate(compressed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(compressed, _MAX_TEXT_BYTES)
    except zlib.error:
        return b""
