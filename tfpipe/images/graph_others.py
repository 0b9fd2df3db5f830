"""WebP and BMP files in a TensorFlow graph: headers, and the decoders that TensorFlow has for them.

TensorFlow 2.21 decodes an animated WebP into memory that it does not own, by whatever operation:
such bytes never reach it from here. Of a BMP it does not look at the palette, the masks or the
compression, and refuses bytes after the pixels: here the first are checked, the last cut off.
"""

from __future__ import annotations

import tensorflow as tf

from tfpipe.images import bmp, webp
from tfpipe.images.graph_bytes import MAX_STEPS, Facts, byte_length, byte_window, integer, slice_bytes, to_number

_FLAGS = webp.FIRST_CHUNK + webp.CHUNK_HEADER


def walk_webp(encoded: tf.Tensor) -> Facts:
    """Reads the header of a RIFF file, string []; not readable unless it is a still WebP."""
    kind = slice_bytes(encoded, webp.FIRST_CHUNK, 4)
    is_extended, is_lossy = kind == webp.EXTENDED, kind == webp.LOSSY
    flags = tf.where(is_extended, to_number(byte_window(encoded, _FLAGS, 1)), 0)
    canvas = [1 + to_number(byte_window(encoded, _FLAGS + start, 3), little=True) for start in (7, 4)]
    frame = [to_number(byte_window(encoded, _FLAGS + start, 2), little=True) % 2**14 for start in (8, 6)]
    bits = to_number(byte_window(encoded, _FLAGS + 1, 4), little=True)
    lossless = [1 + bits // 2**14 % 2**14, 1 + bits % 2**14]
    height, width = (
        tf.where(is_extended, of_canvas, tf.where(is_lossy, of_frame, of_lossless))
        for of_canvas, of_frame, of_lossless in zip(canvas, frame, lossless, strict=True)
    )
    end = webp.CHUNK_HEADER + _size(encoded, 0)
    is_whole = end <= byte_length(encoded)

    def unfinished(steps: tf.Tensor, position: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return (steps < MAX_STEPS) & (position < end)

    def step(steps: tf.Tensor, position: tf.Tensor, _: tf.Tensor, exif: tf.Tensor, xmp: tf.Tensor) -> tuple[tf.Tensor, ...]:
        kind = slice_bytes(encoded, position, 4)
        exif, xmp = (
            tf.where((place < 0) & (kind == wanted), position, place) for place, wanted in ((exif, b"EXIF"), (xmp, b"XMP "))
        )
        after = position + webp.CHUNK_HEADER + _size(encoded, position)
        return steps + 1, after + after % 2, after, exif, xmp

    def walk() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        start = integer(0), integer(webp.FIRST_CHUNK), integer(0), integer(-1), integer(-1)
        steps, _, after, *places = tf.while_loop(unfinished, step, start)
        exif, xmp = (
            tf.where(_has(flags, flag) & (place >= 0), _payload(encoded, place), b"")
            for flag, place in zip((webp.EXIF, webp.XMP), places, strict=True)
        )
        return (steps < MAX_STEPS) & (after <= end), exif, xmp

    def first() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return _FLAGS + _size(encoded, webp.FIRST_CHUNK) <= end, tf.constant(b""), tf.constant(b"")

    in_order, exif, xmp = tf.cond(is_extended & is_whole, walk, first)
    return Facts(in_order & is_whole & is_still_webp(encoded), height, width, exif, xmp)


def _size(encoded: tf.Tensor, place: tf.Tensor | int) -> tf.Tensor:
    """Returns the size of a chunk's payload, int64 []."""
    return to_number(byte_window(encoded, place + 4, 4), little=True)


def _has(flags: tf.Tensor, wanted: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(flags, tf.constant(wanted, tf.int64)) != 0


def _payload(encoded: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    return slice_bytes(encoded, place + webp.CHUNK_HEADER, _size(encoded, place))


def is_still_webp(encoded: tf.Tensor) -> tf.Tensor:
    """Returns whether a file, string [], is WebP and not animated, bool []."""
    kind = slice_bytes(encoded, webp.FIRST_CHUNK, 4)
    is_webp = (slice_bytes(encoded, 0, 4) == webp.RIFF) & (slice_bytes(encoded, 8, 4) == webp.WEBP)
    is_extended = kind == webp.EXTENDED
    is_animated = _has(to_number(byte_window(encoded, _FLAGS, 1)), webp.ANIMATION)
    return is_webp & ((kind == webp.LOSSY) | (kind == webp.LOSSLESS) | (is_extended & ~is_animated))


def decode_webp(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a still WebP file, string [], to uint8 [H, W, 3 or 4].

    Raises:
        tf.errors.InvalidArgumentError: it is animated or another file, or cannot be decoded.
    """
    still = tf.cond(is_still_webp(encoded), lambda: encoded, lambda: tf.constant(b""))
    frames = tf.raw_ops.DecodeWebP(contents=still)  # as many channels as the file has: it takes no others
    return tf.ensure_shape(frames, [1, None, None, None])[0]


def walk_bmp(encoded: tf.Tensor) -> Facts:
    """Reads the header of a BMP file, string []."""
    width, height = (_signed(encoded, place) for place in (18, 22))
    return Facts(_pixels_end(encoded) > 0, tf.abs(height), width, tf.constant(b""), tf.constant(b""))


def decode_bmp(encoded: tf.Tensor, *, alpha: bool) -> tf.Tensor:
    """Decodes a BMP file, string [], to uint8 [H, W, 3], or with `alpha` to [H, W, 4].

    Raises:
        tf.errors.InvalidArgumentError: it is another file, or not one that `bmp.read` accepts.
    """
    pixels = slice_bytes(encoded, 0, _pixels_end(encoded))
    if not alpha:
        return tf.io.decode_bmp(pixels, channels=3)
    # Four bytes a pixel need not be alpha.
    return tf.cond(
        _has_alpha(encoded),
        lambda: tf.io.decode_bmp(pixels, channels=4),
        lambda: tf.pad(tf.io.decode_bmp(pixels, channels=3), [[0, 0], [0, 0], [0, 1]], constant_values=255),
    )


def _has_alpha(encoded: tf.Tensor) -> tf.Tensor:
    has_masks = (_unsigned(encoded, 30) == bmp.BITFIELDS) & (_unsigned(encoded, bmp.INFO_START) >= 56)
    return has_masks & (slice_bytes(encoded, bmp.MASKS + 12, 4) == bmp.ALPHA_MASK)


def _pixels_end(encoded: tf.Tensor) -> tf.Tensor:
    """Returns where the pixels end, int64 []; 0 for what `bmp.read` rejects."""
    start, info, compression = (_unsigned(encoded, place) for place in (10, bmp.INFO_START, 30))
    width, height = _signed(encoded, 18), tf.abs(_signed(encoded, 22))
    bits = to_number(byte_window(encoded, 28, 2), little=True)
    has_masks = (compression == bmp.BITFIELDS) & (bits == 32)
    is_alpha_known = (info < 56) | tf.reduce_any(
        slice_bytes(encoded, bmp.MASKS + 12, 4) == tf.constant([bytes(4), bmp.ALPHA_MASK])
    )
    are_masks_known = (slice_bytes(encoded, bmp.MASKS, 12) == bmp.COLOUR_MASKS) & is_alpha_known
    before = bmp.INFO_START + info
    num_colours = _unsigned(encoded, 46)
    num_colours = tf.where(num_colours == 0, integer(256), num_colours)
    palette = tf.cast(byte_window(encoded, before, len(bmp.GREY)), tf.int32)
    unequal = palette != tf.cast(tf.io.decode_raw(tf.constant(bmp.GREY), tf.uint8), tf.int32)
    place = tf.range(len(bmp.GREY), dtype=tf.int64)
    is_grey = (num_colours <= 256) & ~tf.reduce_any(unequal & (place < 4 * num_colours) & (place % 4 < 3))
    before += tf.where(bits == 8, 4 * num_colours, 0) + tf.where(has_masks & (info == 40), integer(12), 0)
    end = start + (width * bits // 8 + 3) // 4 * 4 * height
    is_right = (
        (slice_bytes(encoded, 0, 2) == bmp.SIGNATURE)
        & tf.reduce_any(info == tf.constant(bmp.HEADER_SIZES, tf.int64))
        & ((width > 0) & (height > 0) & (width * height <= bmp.MOST_PIXELS))
        & tf.reduce_any(bits == tf.constant([8, 24, 32], tf.int64))
        & ((compression == bmp.RGB) | (has_masks & are_masks_known))
        & ((bits != 8) | is_grey)
        & (start >= before)
        & (end <= byte_length(encoded))
    )
    return tf.where(is_right, end, 0)


def _unsigned(encoded: tf.Tensor, place: int) -> tf.Tensor:
    return to_number(byte_window(encoded, place, 4), little=True)


def _signed(encoded: tf.Tensor, place: int) -> tf.Tensor:
    number = _unsigned(encoded, place)
    return tf.where(number < 2**31, number, number - 2**32)
