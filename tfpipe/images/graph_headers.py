r"""Size and orientation of an image file, read by a TensorFlow graph, without decoding.

    header = read_header(encoded)     # string [] -> readable bool [], height int64 [], width int64 [], orientation int32 []

Agrees with `tfpipe.images.headers.read_header` wherever that accepts a file (EXIF in JPEG segments,
in PNG's eXIf and in ImageMagick's text chunks, all TIFF field types, XMP where EXIF has no
orientation), but for:

- compressed text chunks of a PNG (zTXt, iTXt with its flag set) are not inflated: an orientation in
  there is not seen;
- of several "Raw profile type exif" chunks the first counts, also if its digits are not
  hexadecimal, and an empty eXIf chunk does not overrule it;
- of an EXIF block (its segments joined) or an XMP packet, the first MiB is read;
- a file with more than 16,384 segments and fill bytes, or chunks, is not readable, nor one with
  16 MB of junk between segments.

The last two bound the cost of hostile bytes here to about a second; the audit's limits, which hold
here too, bound that of the decoder: `jpeg.MAX_SCANS` and `png.MAX_COMPRESSED_CHUNKS`. A readable
file may still be damaged: the decoder reports that. Reading takes some 40 us a segment: 0.6 ms for
a photo of ten, 0.8 ms with an EXIF block (two cores, busy), and 0.5 ms for each MB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfpipe.images import bmp, graph_others, headers, jpeg, png, webp
from tfpipe.images.exif import ORIENTATION_TAG, TYPES
from tfpipe.images.graph_bytes import (
    MAX_STEPS,
    Facts,
    byte_length,
    byte_window,
    integer,
    slice_bytes,
    starts_with,
    to_number,
)

_Step = Callable[..., Any]

_MAX_METADATA_BYTES = 2**20
_WINDOW_BYTES = 1024

# By the byte after ff. Stuffed zeros, TEM (01) and restart markers (d0 to d7) carry no segment; of
# fill bytes (ff), each may be the one before the marker.
_APP1, _SOS = 0xE1, 0xDA
_FRAMES = [0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) for code in range(256)]
_HAS_LENGTH = [code not in (0x00, 0x01, 0xFF) and not 0xD0 <= code <= 0xD7 for code in range(256)]
_BARE_BYTES = [1 if code == 0xFF else 2 for code in range(256)]

_METADATA_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP")

_EXIF_PREFIX = b"Exif\0\0"
_TIFF_SIGNATURES = (b"II*\0", b"II\0*", b"MM*\0", b"MM\0*")  # Pillow takes the mixed ones, too

_TYPE_BYTES = [TYPES[kind][0] if kind in TYPES else 0 for kind in range(18)]


class Header(NamedTuple):
    """Size before orientation, int64 [], 0 where not readable; orientation 1..8, int32 []."""

    readable: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor
    orientation: tf.Tensor


def read_header(encoded: tf.Tensor) -> Header:
    """Reads the header of an image file, string []; never raises, whatever the bytes."""
    walkers = {
        headers.JPEG_SIGNATURE: _walk_jpeg,
        png.SIGNATURE: _walk_png,
        webp.RIFF: graph_others.walk_webp,
        bmp.SIGNATURE: graph_others.walk_bmp,
    }
    found = _first(encoded, list(walkers.items()))
    readable, height, width, exif, xmp = found
    readable &= (height > 0) & (width > 0)
    orientation = tf.where(readable, _orientation(exif, xmp), 1)
    return Header(readable, tf.where(readable, height, 0), tf.where(readable, width, 0), orientation)


def _first(encoded: tf.Tensor, walkers: list[tuple[bytes, _Step]]) -> Facts:
    """Returns what the walker of the file's signature finds."""
    if not walkers:
        return Facts(tf.constant(False), integer(0), integer(0), tf.constant(b""), tf.constant(b""))
    (signature, walk), *others = walkers
    is_first = starts_with(encoded, signature)
    return Facts(*tf.cond(is_first, lambda: walk(encoded), lambda: _first(encoded, others)))


# JPEG: from marker to marker up to the first scan, as `tfpipe.images.jpeg` and libjpeg do. The loop
# has few operations, for each costs a microsecond per segment.


def _walk_jpeg(encoded: tf.Tensor) -> Facts:
    end = byte_length(encoded)
    frames, bare, lengths = tf.constant(_FRAMES), tf.constant(_BARE_BYTES, tf.int64), tf.constant(_HAS_LENGTH, tf.int64)

    def unfinished(steps: tf.Tensor, position: tf.Tensor, marker: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (steps < MAX_STEPS) & (position < end) & (marker != _SOS)

    def step(
        steps: tf.Tensor, position: tf.Tensor, _: tf.Tensor, frame: tf.Tensor, segments: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        window = tf.strings.substr(encoded, position, _WINDOW_BYTES)
        window = tf.io.decode_raw(window, tf.uint8, fixed_length=_WINDOW_BYTES)
        place = tf.argmax(window[tf.newaxis, :-3] == 0xFF, axis=1)  # [1]
        first, marker, high, low = tf.unstack(tf.cast(tf.slice(window, place, [4]), tf.int64), num=4)
        place += position
        size = high * 256 + low  # its own two bytes included; if it is less, they are passed over as stray bytes
        after = place[0] + tf.gather(bare, marker) + tf.gather(lengths, marker) * size
        frame = tf.where(tf.gather(frames, marker), place[0], frame)
        segments = tf.concat([segments, place[: tf.cast(marker == _APP1, tf.int32)]], 0)
        return steps + 1, tf.where(first == 0xFF, after, position + _WINDOW_BYTES - 3), marker, frame, segments

    *_, marker, frame, segments = _collect(unfinished, step, (integer(0), integer(2), integer(0), integer(-1)))
    exif, xmp = _fold(segments, lambda place, exif, xmp: _application(encoded, place, exif, xmp), b"", b"")
    sizes = byte_window(encoded, frame + 5, 4)
    # Counted to one more than is allowed; that takes 2 ms where decoding takes 80.
    num_scans = tf.size(tf.strings.split(encoded, jpeg.SCAN_START, maxsplit=jpeg.MAX_SCANS + 1)) - 1
    readable = (marker == _SOS) & (frame >= 0) & (num_scans <= jpeg.MAX_SCANS)
    return Facts(readable, to_number(sizes[:2]), to_number(sizes[2:]), exif, xmp)


def _application(encoded: tf.Tensor, place: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the EXIF block and XMP packet with what the APP1 segment at a place adds to them."""
    size = to_number(byte_window(encoded, place + 2, 2))
    payload = slice_bytes(encoded, place + 4, tf.maximum(size - 2, 0))
    is_exif, is_xmp = (starts_with(payload, prefix) for prefix in (_EXIF_PREFIX, jpeg.XMP_PREFIX))
    following = tf.where(exif == b"", integer(0), len(_EXIF_PREFIX))
    added = slice_bytes(payload, following, tf.where(is_exif, size, 0))
    exif = tf.strings.substr(tf.strings.join([exif, added]), 0, _MAX_METADATA_BYTES)
    return exif, tf.where(is_xmp, payload, xmp)


# PNG: from chunk to chunk up to IEND, for eXIf may come after the pixels.


def _walk_png(encoded: tf.Tensor) -> Facts:
    end = byte_length(encoded)

    def unfinished(steps: tf.Tensor, position: tf.Tensor, kind: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (steps < MAX_STEPS) & (position < end) & (kind != b"IEND")

    def step(steps: tf.Tensor, position: tf.Tensor, kind: tf.Tensor, chunks: tf.Tensor) -> tuple[tf.Tensor, ...]:
        kind = slice_bytes(encoded, position + 4, 4)
        wanted = tf.reduce_any(kind == tf.constant(_METADATA_CHUNKS))
        chunks = tf.concat([chunks, position[tf.newaxis][: tf.cast(wanted, tf.int32)]], 0)
        return steps + 1, position + 12 + to_number(byte_window(encoded, position, 4)), kind, chunks

    steps, *_, chunks = _collect(unfinished, step, (integer(0), integer(8), tf.constant(b"")))
    found = _fold(chunks, lambda place, *found: _metadata(encoded, place, *found), 0, b"", b"", b"")
    num_compressed, exif, profile, xmp = found
    exif = tf.cond((exif == b"") & (profile != b""), lambda: _from_hexadecimal(profile), lambda: exif)
    readable = (slice_bytes(encoded, 8, 8) == b"\0\0\0\x0dIHDR") & (steps < MAX_STEPS)
    readable &= num_compressed <= png.MAX_COMPRESSED_CHUNKS
    sizes = byte_window(encoded, 16, 8)
    return Facts(readable, to_number(sizes[4:]), to_number(sizes[:4]), exif, xmp)


def _metadata(
    encoded: tf.Tensor, place: tf.Tensor, num_compressed: tf.Tensor, exif: tf.Tensor, profile: tf.Tensor, xmp: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """Returns the number of compressed chunks and the metadata, with the chunk at a place added.

    ImageMagick's EXIF profile and the XMP packet are as in the chunk, keyword included.
    """
    kind, payload = (
        slice_bytes(encoded, place + 4, 4),
        slice_bytes(encoded, place + 8, to_number(byte_window(encoded, place, 4))),
    )
    text = tf.strings.join([payload, b"\0"])  # keyword, 0; iTXt: compression flag, method, language, 0, keyword, 0; text
    flagged = (kind == b"iTXt") & starts_with(tf.strings.split(text, b"\0", maxsplit=1)[1], b"\1")
    is_text = (kind == b"tEXt") | (kind == b"iTXt")

    def named(keyword: bytes) -> tf.Tensor:
        return is_text & starts_with(text, keyword), tf.where(flagged, b"", payload)

    is_profile, profile_text = named(b"Raw profile type exif\0")
    is_xmp, xmp_text = named(b"XML:com.adobe.xmp\0")
    profile = tf.where(is_profile & (profile == b""), profile_text, profile)
    num_compressed += tf.cast(flagged | (kind == b"zTXt") | (kind == b"iCCP"), tf.int32)
    return num_compressed, tf.where(kind == b"eXIf", payload, exif), profile, tf.where(is_xmp, xmp_text, xmp)


def _from_hexadecimal(profile: tf.Tensor) -> tf.Tensor:
    """Returns a profile's bytes: after three lines (blank, name, length), hexadecimal digits."""
    text = tf.strings.substr(profile, 0, 4 * _MAX_METADATA_BYTES)
    digits = tf.strings.regex_replace(text, r"^\C*?\n\C*?\n\C*?\n", "", replace_global=False)
    digits = tf.strings.lower(tf.strings.regex_replace(digits, r"\s", ""))
    valid = tf.strings.regex_full_match(digits, "(?:[0-9a-f]{2})+")
    codes = tf.io.decode_raw(tf.where(valid, digits, b"00"), tf.uint8)
    nibbles = tf.cast(codes, tf.int32) - tf.where(codes >= ord("a"), ord("a") - 10, ord("0"))
    values = nibbles[::2] * 16 + nibbles[1::2]
    every_byte = tf.constant([bytes([value]) for value in range(256)])
    return tf.where(valid, tf.strings.reduce_join(tf.gather(every_byte, values)), b"")


# The orientation, as `tfpipe.images.exif` finds it.


def _orientation(exif: tf.Tensor, xmp: tf.Tensor) -> tf.Tensor:
    exif, xmp = (tf.strings.substr(text, 0, _MAX_METADATA_BYTES) for text in (exif, xmp))
    found = tf.cond(exif != b"", lambda: _exif_orientation(exif), lambda: tf.constant(0))
    return tf.cond((found == 0) & (xmp != b""), lambda: _xmp_orientation(xmp), lambda: tf.maximum(found, 1))


def _exif_orientation(exif: tf.Tensor) -> tf.Tensor:
    """Returns 1..8, or 0 where there is none and XMP decides."""
    tiff = tf.strings.regex_replace(exif, r"^(?:Exif\x00\x00){1,2}", "", replace_global=False)
    little = slice_bytes(tiff, 0, 1) == b"I"
    valid = tf.reduce_any(slice_bytes(tiff, 0, 4) == tf.constant(_TIFF_SIGNATURES)) & (byte_length(tiff) >= 8)
    position = to_number(byte_window(tiff, 4, 4), little)
    damaged = tf.where(tiff == b"", 0, 1)
    return tf.cond(valid, lambda: _directory_orientation(tiff, position, little), lambda: damaged)


def _directory_orientation(tiff: tf.Tensor, position: tf.Tensor, little: tf.Tensor) -> tf.Tensor:
    """Looks for the tag among all entries at once, with the result of reading them one by one."""
    end = byte_length(tiff)
    count = tf.clip_by_value(to_number(byte_window(tiff, position, 2), little), 0, tf.maximum((end - position - 2) // 12, 0))
    entries = tf.reshape(tf.io.decode_raw(slice_bytes(tiff, position + 2, 12 * count), tf.uint8), [count, 12])
    tag, num_bytes = to_number(entries[:, :2], little), _num_bytes(entries, little)
    index = tf.range(count)
    # What lies outside of the entries adds up, but for repeated tags. An entry with which it is
    # more than there is is passed over; after one that is cut, nothing counts.
    _, group = tf.unique(tag)
    first = tf.math.unsorted_segment_min(tf.where(num_bytes > 0, index, count), group, count)
    outside = num_bytes > 4
    counted = outside & (tf.gather(first, group) >= index)
    excessive = outside & (tf.cumsum(tf.where(counted, num_bytes, 0)) > end)
    cut = counted & ~excessive & (to_number(entries[:, 8:], little) + num_bytes > end)
    wanted = (tag == ORIENTATION_TAG) & (num_bytes > 0) & ~excessive
    place, cut_place = (tf.reduce_min(tf.where(condition, index, count)) for condition in (wanted, cut))
    found = place < tf.minimum(cut_place, count)
    return tf.cond(found, lambda: _entry_orientation(tiff, position + 2 + 12 * place, little), lambda: tf.constant(0))


def _num_bytes(entries: tf.Tensor, little: tf.Tensor) -> tf.Tensor:
    kind = tf.minimum(to_number(entries[..., 2:4], little), len(_TYPE_BYTES) - 1)
    return to_number(entries[..., 4:8], little) * tf.gather(tf.constant(_TYPE_BYTES, tf.int64), kind)


def _entry_orientation(tiff: tf.Tensor, start: tf.Tensor, little: tf.Tensor) -> tf.Tensor:
    entry = byte_window(tiff, start, 12)
    outside = _num_bytes(entry, little) > 4
    value = byte_window(tiff, tf.where(outside, to_number(entry[8:], little), start + 8), 8)
    number = tf.gather(_numbers(value, little), to_number(entry[2:4], little))
    valid = (number >= 1) & (number <= 8) & (number == tf.floor(number))
    return tf.cast(tf.where(valid, number, 1), tf.int32)


def _numbers(value: tf.Tensor, little: tf.Tensor) -> tf.Tensor:
    """Returns 8 bytes read as each of TIFF's types 0..16, float64 [17]; NaN where not a number.

    Whether a number is signed matters to fractions only: no other negative one is an orientation.
    """
    byte, short, long, following = (to_number(value[i:j], little) for i, j in ((0, 1), (0, 2), (0, 4), (4, 8)))
    quad = to_number(value, little)
    single = tf.cast(tf.bitcast(tf.cast(long, tf.uint32), tf.float32), tf.float64)
    double = tf.bitcast(quad, tf.float64)
    byte, short, unsigned, divisor, quad = (tf.cast(number, tf.float64) for number in (byte, short, long, following, quad))
    turn = tf.constant(2.0**32, tf.float64)
    signed, signed_divisor = (tf.where(number < turn / 2, number, number - turn) for number in (unsigned, divisor))
    none = tf.constant(float("nan"), tf.float64)
    numbers = [none, none, none, short, unsigned, unsigned / divisor, byte, none, short, unsigned, signed / signed_divisor]
    return tf.stack([*numbers, single, double, unsigned, none, none, quad])


def _xmp_orientation(xmp: tf.Tensor) -> tf.Tensor:
    pattern = r'^\C*?tiff:Orientation(?:="|>)([0-9])\C*$'
    digit = tf.strings.regex_replace(xmp, pattern, r"\1", replace_global=False)
    valid = tf.strings.regex_full_match(digit, "[1-8]")  # else it is the whole, which begins with a name
    return tf.strings.to_number(tf.where(valid, digit, b"1"), tf.int32)


def _collect(unfinished: _Step, step: _Step, scalars: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    """Returns scalars and a list of places, int64 [N], after the steps of a loop."""
    shapes = (*[tf.TensorShape([])] * len(scalars), tf.TensorShape([None]))
    return tuple(tf.while_loop(unfinished, step, (*scalars, tf.zeros([0], tf.int64)), shapes))


def _fold(places: tf.Tensor, add: _Step, *initial: int | bytes) -> tuple[tf.Tensor, ...]:
    """Returns numbers and strings after `found = add(place, *found)` for each place."""

    def step(index: tf.Tensor, *found: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return index + 1, *add(places[index], *found)

    _, *found = tf.while_loop(lambda index, *_: index < tf.size(places), step, tuple(map(tf.constant, (0, *initial))))
    return tuple(found)
