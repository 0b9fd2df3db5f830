"""Random numbers as a function of (seed, epoch, key) alone, for a batch of keys at once.

    uniforms = draw(hash_keys(keys), seed, epochs, 8)      # float32 [N, 8] in [0, 1)

`tf.random.stateless_uniform` takes one seed per call: a call per batch would make a row's numbers
depend on its place in the batch, a call per row is four times as slow. This is splitmix64 (Steele,
Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) as a keyed counter: each
argument is mixed in before the next, nothing is ever added to a seed by its user, so (seed 1, epoch
0) and (seed 0, epoch 1) are unrelated.
"""

from __future__ import annotations

import tensorflow as tf

from tfpipe.images.placement import on_cpu

_GAMMA = 0x9E3779B97F4A7C15
_BUCKETS = (1 << 63) - 1


@on_cpu
def hash_keys(keys: tf.Tensor) -> tf.Tensor:
    """Returns int64 [N] for string [N]: FarmHash64, the same on every machine."""
    return tf.strings.to_hash_bucket_fast(keys, _BUCKETS)


def draw(keys: tf.Tensor, seed: int, epochs: tf.Tensor, count: int) -> tf.Tensor:
    """Returns uniform numbers that depend on each row's own (seed, epoch, key).

    Args:
        keys: int64 [N].
        seed: in [0, 2**63), as `tfpipe.common.seeds.derive` gives it.
        epochs: int64 [N].
        count: numbers per row.

    Returns:
        float32 [N, count], multiples of 2**-24 in [0, 1).
    """
    bits = tf.bitwise.right_shift(_numbers(keys, seed, epochs, count), _word(40))
    return tf.cast(tf.bitcast(bits, tf.int64), tf.float32) * 2.0**-24


def draw_words(keys: tf.Tensor, seed: int, epochs: tf.Tensor, count: int) -> tf.Tensor:
    """Returns uint32 words, uint32 [N, count], otherwise as `draw`."""
    return tf.cast(tf.bitwise.right_shift(_numbers(keys, seed, epochs, count), _word(32)), tf.uint32)


def _numbers(keys: tf.Tensor, seed: int, epochs: tf.Tensor, count: int) -> tf.Tensor:
    state = _mix(_mix(_word(_GAMMA) + _word(seed)) + _bits(epochs))
    state = _mix(state + _bits(keys))
    counters = tf.bitcast(tf.range(1, count + 1, dtype=tf.int64), tf.uint64)
    return _mix(state[:, tf.newaxis] + counters * _word(_GAMMA))


def _mix(state: tf.Tensor) -> tf.Tensor:
    state = _xor_shift(state, 30) * _word(0xBF58476D1CE4E5B9)
    state = _xor_shift(state, 27) * _word(0x94D049BB133111EB)
    return _xor_shift(state, 31)


def _xor_shift(state: tf.Tensor, distance: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, _word(distance)))


def _bits(values: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.cast(values, tf.int64), tf.uint64)


def _word(value: int) -> tf.Tensor:
    # By way of int64: TensorFlow makes no constants of uint64 above 2**63.
    return tf.bitcast(tf.constant(value - (1 << 64) if value >> 63 else value, tf.int64), tf.uint64)
