"""The decoder of whole files in training, evaluation and exports: 8-bit RGB, as stored, not turned.

    image = decode_stored(encoded, Samples(png16="percentile", background="white"))    # uint8 [H, W, 3]

Parts of files are decoded by `sampling.decode_window`. The usual file takes one operation, and 3.5
to 9 bytes a pixel of memory; a PNG of 16 bits not read by its high bytes, or an image laid on a
background, up to 16. WebP and BMP, which few data sets have, are decoded in a branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf

from tfpipe.images import bmp, graph_others, jpeg, webp
from tfpipe.images.graph_bytes import byte_length, byte_window, slice_bytes, starts_with, to_number
from tfpipe.records.samples import HIGH_PERCENT, LOW_PERCENT, MAX_BITS, USUAL, Samples

_Function = Callable[[tf.Tensor], tf.Tensor]

_BLOCK = 1 << 18  # pixels
_LEVELS = 1 << MAX_BITS
_COLOR_TYPE = 25  # its place in IHDR, after the depth
_FIRST_CHUNK, _MAX_CHUNKS = 8, 1 << 14
_PNG, _DEEP_PNG = r"\CPNG\r\n\C\n\C*", r"\CPNG\r\n\C\n\C{4}IHDR\C{8}\x10\C*"


def decode_stored(encoded: tf.Tensor, samples: Samples = USUAL, *, rare: bool = True, others: bool = True) -> tf.Tensor:
    """Decodes a JPEG, PNG, WebP or BMP file, string [], to uint8 [H, W, 3], RGB, 0..255.

    Args:
        encoded: the bytes of the file.
        samples: treatment of 16 bits and alpha.
        rare: whether a PNG may need more than the usual decoder: the check costs a tenth of the
            time.
        others: whether the file may be WebP or BMP.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded.
    """
    # The usual decoder is called here, also for the few files that are decoded again: within a branch
    # it takes a third longer.
    if not others:
        usual = _decode_usual(encoded)
        if not rare:
            return usual
        return tf.cond(_is_rare(encoded, samples), lambda: _again(_rare, samples, encoded), lambda: usual)
    is_other = starts_with(encoded, webp.RIFF) | starts_with(encoded, bmp.SIGNATURE)
    usual = _decode_usual(tf.cond(is_other, lambda: tf.constant(jpeg.DARK), lambda: encoded))

    def unusual() -> tf.Tensor:
        return tf.cond(
            is_other, lambda: _again(_other, samples, encoded), lambda: _again(_rare, samples, encoded) if rare else usual
        )

    is_usual = ~is_other & ~_is_rare(encoded, samples) if rare else ~is_other
    return tf.cond(is_usual, lambda: usual, unusual)


def _is_rare(encoded: tf.Tensor, samples: Samples) -> tf.Tensor:
    return tf.strings.regex_full_match(encoded, _DEEP_PNG if samples.background == USUAL.background else _PNG)


def _again(decoder: Callable[[Samples], _Function], samples: Samples, encoded: tf.Tensor) -> tf.Tensor:
    encoded = tf.convert_to_tensor(encoded)  # of Python's bytes, each file would have a graph of its own
    return tf.ensure_shape(decoder(samples)(encoded), [None, None, 3])


@functools.cache
def _other(samples: Samples) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the decoder of WebP and BMP files: string [] -> uint8 [H, W, 3]."""
    has_background = samples.background != USUAL.background
    lay = functools.partial(_lay, level=255 if samples.background == "white" else 0)

    def colours(image: tf.Tensor) -> tf.Tensor:
        opaque = tf.shape(image)[2] < 4
        if has_background:
            return tf.cond(opaque, lambda: image, lambda: _by_blocks(lay, tf.ensure_shape(image, [None, None, 4])))
        return tf.cond(opaque, lambda: image, lambda: image[:, :, :3])

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            starts_with(encoded, webp.RIFF),
            lambda: colours(graph_others.decode_webp(encoded)),
            lambda: colours(graph_others.decode_bmp(encoded, alpha=has_background)),
        )

    return apart(decode)


def apart(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns a function that is one operation in its caller's graph.

    Of a branch that is not taken, each operation costs a microsecond.
    It is traced anew for each graph: functions that several share get other attributes in each, and
    a frozen copy of one graph could not be loaded with the others.
    """
    make = functools.partial(tf.function, function, autograph=False, experimental_attributes={"_noinline": True})
    at_once = make()

    def call(*arguments: tf.Tensor) -> tf.Tensor:
        return (at_once if tf.executing_eagerly() else make())(*arguments)

    return call


def _decode_usual(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")  # takes PNG, too


@functools.cache
def _rare(samples: Samples) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the decoder of unusual PNG files: string [] -> uint8 [H, W, 3]."""
    if samples.background == USUAL.background:
        return apart(lambda encoded: _decode_deep(encoded, samples.png16, 3, lambda: _decode_usual(encoded), tf.identity))
    lay = functools.partial(_lay, level=255 if samples.background == "white" else 0)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        def laid() -> tf.Tensor:
            return _by_blocks(lay, tf.io.decode_png(encoded, channels=4))

        is_deep = tf.strings.regex_full_match(encoded, _DEEP_PNG)
        return tf.cond(is_deep, lambda: _decode_deep(encoded, samples.png16, 4, laid, lay), laid)

    return apart(decode)


def _lay(pixels: tf.Tensor, level: int) -> tf.Tensor:
    """Returns the colours of RGBA, uint8 [N, 4], before a grey level, rounded to the nearest."""
    colours, alpha = (tf.cast(part, tf.uint16) for part in (pixels[:, :3], pixels[:, 3:]))
    total = colours * alpha + ((255 - alpha) * level + 128)
    return tf.cast(_shift(total + _shift(total, 8), 8), tf.uint8)  # divided by 255


def _shift(values: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(values, tf.constant(bits, values.dtype))


def _by_blocks(function: _Function, image: tf.Tensor) -> tf.Tensor:
    """Applies a function of pixels, [N, C] -> uint8 [N, 3], by blocks, which saves memory."""
    pixels, size = tf.reshape(image, [-1, image.shape[-1]]), tf.shape(image)
    blocks = tf.TensorArray(tf.uint8, _num_blocks(pixels), infer_shape=False, element_shape=[None, 3])

    def step(index: tf.Tensor, blocks: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        return index + 1, blocks.write(index, function(_block(pixels, index)))

    _, blocks = tf.while_loop(lambda index, _: index < _num_blocks(pixels), step, (0, blocks), parallel_iterations=1)
    return tf.reshape(blocks.concat(), [size[0], size[1], 3])


def _num_blocks(pixels: tf.Tensor) -> tf.Tensor:
    return -(-tf.shape(pixels)[0] // _BLOCK)


def _block(pixels: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    return pixels[index * _BLOCK : (index + 1) * _BLOCK]


# 16 bits. The levels of an image are counted, and each is looked up in a table that is made from
# the counts.


def _decode_deep(encoded: tf.Tensor, png16: str, channels: int, usual: Callable[[], tf.Tensor], finish: _Function) -> tf.Tensor:
    bits = _significant_bits(encoded)

    def by_table() -> tf.Tensor:
        image = tf.io.decode_png(encoded, channels=channels, dtype=tf.uint16)
        table = _table(_count(tf.reshape(image, [-1, channels])), bits, png16)

        def look_up(pixels: tf.Tensor) -> tf.Tensor:
            colours = tf.gather(table, tf.cast(pixels[:, :3], tf.int32))
            return finish(tf.concat([colours, tf.cast(_shift(pixels[:, 3:], 8), tf.uint8)], 1))

        return _by_blocks(look_up, image)

    return tf.cond(bits == 0, usual, by_table) if png16 == USUAL.png16 else by_table()


def _count(pixels: tf.Tensor) -> tf.Tensor:
    """Returns how many samples of the colours have each level, int32 [65536]."""

    def step(index: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        levels = tf.reshape(tf.cast(_block(pixels, index)[:, :3], tf.int32), [-1])
        return index + 1, counts + tf.raw_ops.DenseBincount(input=levels, size=_LEVELS, weights=tf.zeros([0], tf.int32))

    start = 0, tf.zeros([_LEVELS], tf.int32)
    return tf.while_loop(lambda index, _: index < _num_blocks(pixels), step, start, parallel_iterations=1)[1]


def _table(counts: tf.Tensor, bits: tf.Tensor, png16: str) -> tf.Tensor:
    """Returns 8 bits for each level of 16, uint8 [65536], by its counts, int32 [65536]."""
    levels, present = tf.range(_LEVELS), counts > 0
    # By the specification (11.3.2.3) samples of n significant bits were moved to the high end, and
    # a decoder shifts them back. Programs write them as they are, too. Then none needs more than n
    # bits, and some have low bits that moving leaves empty (or 1, by rounding, where the repeated
    # high bits are 0).
    num_declared = tf.bitwise.left_shift(1, bits)
    step = _LEVELS // num_declared
    fits = ~tf.reduce_any(present & (levels >= num_declared))
    is_low = fits & tf.reduce_any(present & (levels % step > tf.cast(step > 2, tf.int32)))
    declared = tf.where(is_low, levels % num_declared * step, levels) // 256
    found = tf.where(bits == 0, _by_option(levels, counts, png16), declared)
    return tf.cast(found, tf.uint8)


def _by_option(levels: tf.Tensor, counts: tf.Tensor, png16: str) -> tf.Tensor:
    if png16 == "high_byte":
        return levels // 256
    below = tf.cumsum(tf.cast(counts, tf.int64))
    low, high = (LOW_PERCENT, HIGH_PERCENT) if png16 == "percentile" else (0, 100)
    black = tf.argmax(below * 100 > low * below[-1], output_type=tf.int32)  # the first
    white = tf.argmax(below * 100 >= high * below[-1], output_type=tf.int32)
    width = tf.maximum(white - black, 1)
    return tf.clip_by_value(((levels - black) * 510 + width) // (2 * width), 0, 255)


def _significant_bits(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the most bits of a colour by a PNG's sBIT chunk, int32 []; 0 for 16 and none."""

    def is_kind(place: tf.Tensor, *kinds: bytes) -> tf.Tensor:
        return tf.reduce_any(slice_bytes(encoded, place + 4, 4) == tf.constant(kinds))

    def unfinished(place: tf.Tensor) -> tf.Tensor:
        return (place < byte_length(encoded)) & ~is_kind(place, b"sBIT", b"IDAT")

    def step(place: tf.Tensor) -> tuple[tf.Tensor]:
        return (place + 12 + to_number(byte_window(encoded, place, 4)),)

    (place,) = tf.while_loop(unfinished, step, (tf.constant(_FIRST_CHUNK, tf.int64),), maximum_iterations=_MAX_CHUNKS)
    color_type = tf.cast(byte_window(encoded, _COLOR_TYPE, 1)[0], tf.int64)
    num_colours = 1 + (tf.bitwise.bitwise_and(color_type, 2))
    is_colour = tf.range(3, dtype=tf.int64) < num_colours
    bits = tf.reduce_max(tf.cast(byte_window(encoded, place + 8, 3), tf.int32) * tf.cast(is_colour, tf.int32))
    expected = num_colours + color_type // 4
    in_order = is_kind(place, b"sBIT") & (to_number(byte_window(encoded, place, 4)) == expected) & (bits < MAX_BITS)
    return tf.where(in_order, bits, 0)
