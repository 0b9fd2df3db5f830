"""Reads the markers of a JPEG file, and on request the data between them, without decoding a pixel.

    >>> header = read(data)
    >>> header.height, header.width, header.trailing_bytes == 0

The syntax is that of ITU-T T.81 (09/92), annex B. A file is refused where libjpeg-turbo, the
decoder inside TensorFlow, refuses it: each of its fatal errors concerns a marker, a table or a
parameter, all of which are read here. What it repairs with a warning (stray bytes between segments,
a damaged scan) is accepted, unless `decode` is set. The two agree on a corpus, on thousands of
mutated headers (tests/test_headers.py) and on damaged scans (tests/test_jpeg_scans.py).
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

from tfpipe.common.errors import RejectedImage
from tfpipe.common.text import exactly, plural
from tfpipe.images import exif, jpeg_scans
from tfpipe.images.image_header import ImageHeader

_SOI, _EOI, _SOS, _DQT, _DHT, _DAC, _DRI, _DNL, _COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xCC, 0xDD, 0xDC, 0xFE
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_SKIPPED = {*range(_APP0, 0xF0), _COM, _DNL}

# The start-of-frame markers that TensorFlow decodes.
CODINGS = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC9: "extended arithmetic",
    0xCA: "progressive arithmetic",
}
_OTHER_CODINGS = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical progressive",
    0xC7: "hierarchical lossless",
    0xC8: "reserved extension",
    0xCB: "lossless arithmetic",
    0xCD: "hierarchical arithmetic",
    0xCE: "hierarchical progressive arithmetic",
    0xCF: "hierarchical lossless arithmetic",
    0xDE: "hierarchical",
    0xF7: "JPEG-LS",
}

# The next marker that means something: 0xFF and a code. Stuffed zeros, fill bytes, restart markers
# and TEM (01) carry no segment. One 0xFF only, not 0xFF+: a run of a million fill bytes would be
# scanned from each of its bytes.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")

_MAX_DIMENSION = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MAX_SCAN_COMPONENTS = 4
_MAX_BLOCKS_IN_MCU = 10  # T.81 B.2.3
_MAX_SUCCESSIVE_BIT = 13  # T.81 G.1.1.1.2
_NUM_TABLES = 4

SCAN_START = b"\xff\xda\0"
"""With these bytes each scan begins (its header has 8 to 14 bytes), and entropy-coded data cannot contain them."""

MAX_SCANS = 100
"""At most so many `SCAN_START` in a file, wherever.

A scan of 31 bytes that changes nothing costs the decoder a walk over all blocks, 13 ms for 16
million pixels: a file of 1 MB could take minutes. Encoders write about 10 scans; the most in a
corpus of oddities are 64, one for each coefficient of a grey image.
"""

XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"


DARK = bytes.fromhex(
    f"ffd8 ffdb004300{'ff' * 64} ffc0000b080001000101011100 ffc40014000100000000000000000000000000000003"
    "ffc40014100100000000000000000000000000000000 ffda0008010100003f0037 ffd9"
)
"""A file of one dark pixel: all quantised to nothing, so the tables are as small as they can be."""


@dataclass(frozen=True, slots=True)
class Component:
    """One component of a frame: its id, sampling factors and the quantisation table it names."""

    id: int
    horizontal: int
    vertical: int
    table: int


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A start-of-frame segment (T.81 B.2.2)."""

    marker: int
    precision: int
    height: int
    width: int
    components: tuple[Component, ...]

    @property
    def most_horizontal(self) -> int:
        """Largest horizontal sampling factor."""
        return max(component.horizontal for component in self.components)

    @property
    def most_vertical(self) -> int:
        """Largest vertical sampling factor."""
        return max(component.vertical for component in self.components)

    @property
    def progressive(self) -> bool:
        """Whether the scans refine each other."""
        return bool(self.marker & 2)

    @property
    def arithmetic(self) -> bool:
        """Whether the scans are coded arithmetically, without Huffman tables."""
        return bool(self.marker & 8)


def read(data: bytes, *, decode: bool = False) -> ImageHeader:
    """Reads the header of a file, and checks all its markers, in linear time.

    Args:
        data: the whole file, with a start-of-image marker.
        decode: also check the scans' data, unless coded arithmetically, and reject what the decoder
            warns of.

    Raises:
        RejectedImage: the file is truncated, undecodable by TensorFlow, or out of proportion in cost.
    """
    num_scans = data.count(SCAN_START)
    if num_scans > MAX_SCANS:
        raise RejectedImage("too_costly", f"{num_scans} times the first bytes of a scan; the limit is {MAX_SCANS}")
    return _Walker(data, decode).walk()


@functools.cache
def _usual_tables() -> Mapping[int, bytes]:
    """Returns the Huffman tables of T.81 annex K, which Motion JPEG omits, from an encoder."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG")
    walker = _Walker(file.getvalue())
    walker.walk()
    return MappingProxyType(walker.huffman_tables)


@dataclass(slots=True)
class _Walker:
    """The state of T.81's decoder: the tables and parameters in force at this byte."""

    data: bytes
    decode: bool = False
    position: int = 2
    frame: FrameHeader | None = None
    num_scans: int = 0
    single_scan: bool = False
    restart_interval: int = 0
    first_restart_interval: int = 0
    quantization_tables: set[int] = field(default_factory=set)
    huffman_tables: dict[int, bytes] = field(default_factory=dict)  # class << 4 | index: lengths and symbols
    has_jfif: bool = False
    adobe_transform: int | None = None
    exif: bytes = b""
    xmp: bytes = b""
    has_profile: bool = False
    scan: jpeg_scans.Scan | None = None  # the one to check next, if decoding
    coefficients: jpeg_scans.Coefficients = field(default_factory=dict)

    def walk(self) -> ImageHeader:
        while True:
            found = _MARKER.search(self.data, self.position)
            if found is None:
                message = f"no end-of-image marker in {exactly(len(self.data), 'byte')}: the file is truncated"
                self._reject("truncated", message, len(self.data))
            start, self.position = self.position, found.end()
            marker = self.data[self.position - 1]
            if self.decode:
                self._decode(self.data[start : found.start()], marker)
            if marker == _EOI:
                return self._header()
            self._read_segment(marker)

    def _decode(self, between: bytes, marker: int) -> None:
        """Checks the bytes before a marker: a scan's data, or only fill bytes."""
        scan, self.scan = self.scan, None
        try:
            if scan is not None:
                jpeg_scans.check(scan, between, self.coefficients)
            elif between.strip(b"\xff") and not (self.frame is not None and self.frame.arithmetic):
                raise jpeg_scans.ScanDamage(plural(len(between), "extraneous byte"), f" before marker 0x{marker:02x}")
        except jpeg_scans.ScanDamage as error:
            self._reject("damaged_scan", str(error), self.position - 2)

    def _read_segment(self, marker: int) -> None:
        if marker in _OTHER_CODINGS:
            self._reject("unsupported_coding", f"{_OTHER_CODINGS[marker]} coding (marker 0x{marker:02x})")
        if marker in CODINGS:
            self._read_frame(marker, self._payload(marker))
        elif marker in _SKIPPED:
            self._read_application(marker, self._payload(marker))
        elif marker in _READERS:
            _READERS[marker](self, self._payload(marker))
        elif marker == _SOI:
            self._reject("damaged_header", "a second start-of-image marker")
        else:
            place = "damaged_scan" if self.num_scans else "damaged_header"
            self._reject(place, f"unknown marker 0x{marker:02x}")

    def _payload(self, marker: int) -> bytes:
        """Returns the segment's bytes after its length, and steps over them."""
        start = self.position + 2
        length = int.from_bytes(self.data[self.position : start], "big")
        if length < 2 and marker in _SKIPPED:
            length = 2  # a length counts its own two bytes; the decoder forgives less in what it skips
        end = self.position + length
        if max(start, end) > len(self.data):
            left = len(self.data) - self.position
            self._reject("truncated", f"segment 0x{marker:02x} of {exactly(length, 'byte')}, {left} are left (truncated file)")
        if length < 2:
            self._reject("damaged_header", f"segment 0x{marker:02x} has length {length}; 2 is the least")
        self.position = end
        return self.data[start:end]

    def _read_frame(self, marker: int, payload: bytes) -> None:
        if self.frame is not None:
            self._reject("damaged_header", "a second start-of-frame marker")
        if len(payload) < 6 or len(payload) != 6 + 3 * payload[5]:
            self._reject("damaged_header", f"start of frame has a wrong length, {exactly(len(payload), 'byte')}")
        precision, num_components = payload[0], payload[5]
        height, width = int.from_bytes(payload[1:3], "big"), int.from_bytes(payload[3:5], "big")
        if not (0 < height <= _MAX_DIMENSION and 0 < width <= _MAX_DIMENSION):
            self._reject("bad_dimensions", f"height {height}, width {width}; the decoder takes 1 to {_MAX_DIMENSION}")
        if precision != 8:
            self._reject("unsupported_coding", f"{exactly(precision, 'bit')} per sample; the decoder takes 8")
        if num_components not in (1, 3, 4):
            self._reject("unsupported_channels", f"{exactly(num_components, 'component')}; the decoder takes 1, 3 or 4")
        triples = zip(payload[6::3], payload[7::3], payload[8::3], strict=True)
        components = tuple(Component(id_, factors >> 4, factors & 15, table) for id_, factors, table in triples)
        self.frame = frame = FrameHeader(marker, precision, height, width, components)
        for component in components:
            h, v = component.horizontal, component.vertical
            if not (1 <= h <= 4 and 1 <= v <= 4):
                self._reject("damaged_header", f"component {component.id} has sampling factors {h}x{v}; 1 to 4 are allowed")
            if frame.most_horizontal % h or frame.most_vertical % v:
                message = f"sampling factors {h}x{v} do not divide {frame.most_horizontal}x{frame.most_vertical}"
                self._reject("unsupported_coding", message)

    def _read_scan(self, payload: bytes) -> None:
        if self.frame is None:
            self._reject("damaged_header", "a scan before the start of frame")
        if not payload or not 1 <= payload[0] <= _MAX_SCAN_COMPONENTS or len(payload) != 4 + 2 * payload[0]:
            self._reject("damaged_scan", f"start of scan has a wrong length, {exactly(len(payload), 'byte')}")
        if self.num_scans == 0:
            self.first_restart_interval = self.restart_interval
            # A sequential frame whose first scan has all components is decoded as it is read:
            # nothing may follow.
            self.single_scan = not self.frame.progressive and payload[0] == len(self.frame.components)
        elif self.single_scan:
            self._reject("damaged_scan", "another scan after one that has all components")
        self.num_scans += 1
        places = self._scan_components(self.frame, payload)
        if len(places) > 1:
            blocks = sum(self.frame.components[p].horizontal * self.frame.components[p].vertical for p in places)
            if blocks > _MAX_BLOCKS_IN_MCU:
                self._reject("damaged_scan", f"{blocks} blocks in a unit of the scan; {_MAX_BLOCKS_IN_MCU} are allowed")
        for table in (self.frame.components[place].table for place in places):
            if table not in self.quantization_tables:
                self._reject("missing_table", f"quantisation table {table} is used and not defined")
        selectors = payload[2 : 2 * len(places) + 1 : 2]
        needs_dc, needs_ac = True, True
        if self.frame.progressive:
            needs_dc, needs_ac = self._check_progression(payload[-3:], len(places))
        if not self.frame.arithmetic:
            for selector in selectors:
                if needs_dc:
                    self._check_huffman_table(self.frame, selector >> 4)
                if needs_ac:
                    self._check_huffman_table(self.frame, 0x10 | selector & 15)
            if self.decode:
                self.scan = self._scan(self.frame, places, selectors, payload[-3:])

    def _scan(self, frame: FrameHeader, places: list[int], selectors: bytes, parameters: bytes) -> jpeg_scans.Scan:
        most_h, most_v = frame.most_horizontal, frame.most_vertical
        components = []
        for place, selector in zip(places, selectors, strict=True):
            c = frame.components[place]
            width, height = -(-frame.width * c.horizontal // most_h), -(-frame.height * c.vertical // most_v)
            keys = selector >> 4, 16 | selector & 15
            tables = (self.huffman_tables.get(key) or _usual_tables().get(key, b"") for key in keys)
            blocks = c.horizontal * c.vertical
            components.append(jpeg_scans.ScanComponent(place, blocks, -(-width // 8), -(-height // 8), *tables))
        units = -(-frame.width // (8 * most_h)) * -(-frame.height // (8 * most_v))
        band = _band(parameters) if frame.progressive else (0, 63, 0, 0)
        return jpeg_scans.Scan(components, units, self.restart_interval, frame.progressive, band)

    def _scan_components(self, frame: FrameHeader, payload: bytes) -> list[int]:
        """Returns the places in the frame of the components that the scan names."""
        places: list[int] = []
        ids = [component.id for component in frame.components]
        for i, wanted in enumerate(payload[1:-3:2]):
            # The decoder looks from place i on only, so that frames that give the same id to
            # several components work.
            if wanted not in ids[i:]:
                self._reject("damaged_scan", f"the scan names component {wanted}; the frame has {ids}, in this order")
            place = ids.index(wanted, i)
            if place in places:
                self._reject("damaged_scan", f"the scan names component {wanted} twice")
            places.append(place)
        return places

    def _check_progression(self, parameters: bytes, num_components: int) -> tuple[bool, bool]:
        """Checks band and bit positions (T.81 G.1.1.1); returns the use of DC and AC tables."""
        first, last, high, low = _band(parameters)
        band_is_valid = last == 0 if first == 0 else first <= last <= 63 and num_components == 1
        if not band_is_valid or low > _MAX_SUCCESSIVE_BIT or (high and high - 1 != low):
            message = (
                f"progressive scan of coefficients {first} to {last}, bits {high} to {low},"
                f" {exactly(num_components, 'component')}"
            )
            self._reject("damaged_scan", message)
        return first == 0 and high == 0, first > 0

    def _check_huffman_table(self, frame: FrameHeader, key: int) -> None:
        name = f"{'AC' if key & 0x10 else 'DC'} Huffman table {key & 15}"
        table = self.huffman_tables.get(key)
        if table is None:
            # Motion JPEG leaves out the tables of T.81 annex K: the decoder fills them in, in
            # sequential frames.
            if frame.progressive or key & 15 > 1:
                self._reject("missing_table", f"{name} is used and not defined")
            return
        code = 0
        for length, count in enumerate(table[:16], start=1):
            code = code * 2 + count
            if count and code >= 1 << length:  # the code of ones only is reserved (T.81 C.2)
                self._reject("damaged_table", f"{name} has more codes of {exactly(length, 'bit')} than there can be")
        if not key & 0x10 and any(symbol > 15 for symbol in table[16:]):
            self._reject("damaged_table", f"{name} has a symbol above 15")

    def _read_quantization_tables(self, payload: bytes) -> None:
        i = 0
        while i < len(payload):
            if payload[i] & 15 >= _NUM_TABLES:
                self._reject("damaged_table", f"quantisation table {payload[i] & 15}; 0 to 3 are allowed")
            self.quantization_tables.add(payload[i] & 15)
            i += 129 if payload[i] >> 4 else 65
        if i != len(payload):
            self._reject("damaged_table", f"quantisation tables end {exactly(i - len(payload), 'byte')} beyond their segment")

    def _read_huffman_tables(self, payload: bytes) -> None:
        i = 0
        while len(payload) - i > 16:
            key, lengths = payload[i], payload[i + 1 : i + 17]
            end = i + 17 + sum(lengths)
            if sum(lengths) > 256 or end > len(payload):
                sizes = f"{exactly(sum(lengths), 'symbol')} in {exactly(len(payload) - i, 'byte')}"
                self._reject("damaged_table", f"a Huffman table of {sizes}")
            if key & ~0x10 >= _NUM_TABLES:
                self._reject("damaged_table", f"Huffman table 0x{key:02x}; 0 to 3 of class 0 and 1 are allowed")
            self.huffman_tables[key] = payload[i + 1 : end]
            i = end
        if i != len(payload):
            self._reject("damaged_table", f"{exactly(len(payload) - i, 'byte')} too many after the Huffman tables")

    def _read_arithmetic_conditioning(self, payload: bytes) -> None:
        if len(payload) % 2:
            self._reject("damaged_table", f"arithmetic conditioning of {exactly(len(payload), 'byte')}; pairs are expected")
        for index, value in zip(payload[::2], payload[1::2], strict=True):
            if index > 31 or (index < 16 and value & 15 > value >> 4):
                self._reject("damaged_table", f"arithmetic conditioning 0x{value:02x} of table 0x{index:02x}")

    def _read_restart_interval(self, payload: bytes) -> None:
        if len(payload) != 2:
            self._reject("damaged_header", f"restart interval of {exactly(len(payload), 'byte')}; 2 are expected")
        self.restart_interval = int.from_bytes(payload, "big")

    def _read_application(self, marker: int, payload: bytes) -> None:
        if self.num_scans:
            return  # of a second image, or damage: an image is described before its first scan
        if marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= 14:
            self.has_jfif = True
        elif marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= 12:
            self.adobe_transform = payload[11]
        elif marker == _APP1 and payload.startswith(b"Exif\0\0"):
            self.exif += payload[6:] if self.exif else payload
        elif marker == _APP1 and payload.startswith(XMP_PREFIX):
            self.xmp = payload[len(XMP_PREFIX) :]
        elif marker == _APP2 and payload.startswith(b"ICC_PROFILE\0"):
            self.has_profile = True

    def _header(self) -> ImageHeader:
        if self.frame is None or not self.num_scans:
            what = "start of frame" if self.frame is None else "scan"
            self._reject("no_image_data", f"the end-of-image marker comes before any {what}")
        components = self.frame.components
        return ImageHeader(
            format="JPEG",
            height=self.frame.height,
            width=self.frame.width,
            channels=len(components),
            orientation=exif.orientation(self.exif, self.xmp),
            precision=self.frame.precision,
            coding=CODINGS[self.frame.marker],
            subsampling=",".join(f"{c.horizontal}x{c.vertical}" for c in components),
            color=self._color(components),
            restart_interval=self.first_restart_interval,
            trailing_bytes=len(self.data) - self.position,
            has_profile=self.has_profile,
        )

    def _color(self, components: tuple[Component, ...]) -> str:
        """Returns the colour space as libjpeg guesses it."""
        if len(components) == 1:
            return "grey"
        if len(components) == 4:
            return "cmyk" if self.adobe_transform in (None, 0) else "ycck"
        if self.has_jfif:
            return "ycbcr"
        if self.adobe_transform is not None:
            return "rgb" if self.adobe_transform == 0 else "ycbcr"
        return "rgb" if bytes(c.id for c in components) == b"RGB" else "ycbcr"

    def _reject(self, reason: str, message: str, offset: int | None = None) -> NoReturn:
        raise RejectedImage(reason, message, offset=self.position if offset is None else offset)


def _band(parameters: bytes) -> tuple[int, int, int, int]:
    """Returns the first and last coefficient of a scan, and its bit positions high and low."""
    return parameters[0], parameters[1], parameters[2] >> 4, parameters[2] & 15


_READERS = {
    _SOS: _Walker._read_scan,
    _DQT: _Walker._read_quantization_tables,
    _DHT: _Walker._read_huffman_tables,
    _DAC: _Walker._read_arithmetic_conditioning,
    _DRI: _Walker._read_restart_interval,
}
