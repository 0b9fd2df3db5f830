"""Draws: splitmix64, a function of each row's own (seed, epoch, key), and uniform as far as statistics can tell."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpipe.pipeline.counter_rng import draw, draw_words, hash_keys

pytestmark = pytest.mark.tf

HASHES = [4408260386524130074, 1936946117179621456, 2500172986793221006, 8477742113709303668]
WORDS = [
    [2013538229, 260128059, 2739820785],
    [953949252, 3323094660, 1784521744],
    [3844778333, 2112363449, 3832347598],
]

GAMMA = 0x9E3779B97F4A7C15
MODULUS = 1 << 64
MANY = 20_000

integers = st.integers(0, 2**63 - 1)
rows = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), integers), min_size=1, max_size=9)  # (key, epoch)


def mix(state: int) -> int:
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % MODULUS
    state = (state ^ state >> 27) * 0x94D049BB133111EB % MODULUS
    return state ^ state >> 31


def reference(key: int, seed: int, epoch: int, count: int) -> list[int]:
    state = mix((mix((GAMMA + seed) % MODULUS) + epoch) % MODULUS)
    state = mix((state + key) % MODULUS)
    return [mix((state + counter * GAMMA) % MODULUS) for counter in range(1, count + 1)]


def uniforms(keys: object, seed: int = 0, epochs: object = 0, count: int = 4) -> np.ndarray:
    keys = np.asarray(keys, np.int64)
    return draw(tf.constant(keys), seed, tf.constant(np.broadcast_to(np.int64(epochs), keys.shape)), count).numpy()


def test_the_reference_is_splitmix64():
    # The numbers of Vigna's splitmix64.c for the state 1234567, as published in many places.
    numbers = [mix((1234567 + counter * GAMMA) % MODULUS) for counter in range(1, 4)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=50)
@given(rows=rows, seed=integers, count=st.integers(1, 5))
def test_numbers_equal_a_plain_reference(rows: list[tuple[int, int]], seed: int, count: int):
    keys, epochs = (tf.constant(column, tf.int64) for column in zip(*rows, strict=True))
    expected = [reference(key % MODULUS, seed, epoch, count) for key, epoch in rows]
    assert draw_words(keys, seed, epochs, count).numpy().tolist() == [[n >> 32 for n in row] for row in expected]
    assert draw(keys, seed, epochs, count).numpy().tolist() == [[(n >> 40) / 2**24 for n in row] for row in expected]


@settings(max_examples=25)
@given(keys=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=70), data=st.data())
def test_g7_numbers_depend_on_neither_batch_nor_place(keys: list[int], data: st.DataObject):
    whole = dict(zip(keys, uniforms(keys).tolist(), strict=True))
    others = data.draw(st.permutations(keys))[: data.draw(st.integers(1, len(keys)))]
    assert uniforms(others).tolist() == [whole[key] for key in others]
    assert uniforms(others[:1], count=2)[0].tolist() == whole[others[0]][:2]  # nor on how many are drawn


def test_seed_epoch_key_and_column_all_matter():
    drawn = [uniforms(range(5), seed, epoch, 5) for seed, epoch in itertools.product(range(5), repeat=2)]
    assert len(np.unique(drawn)) == 5**4  # (seed 1, epoch 0, key 0), (0, 1, 0) and (0, 0, 1) among them


@pytest.mark.parametrize("one_up", [{"seed": 1}, {"epochs": 1}, {"keys": 1}])
def test_g7_another_seed_epoch_or_key_gives_other_numbers(one_up: dict):
    zero = {"keys": 0, "seed": 0, "epochs": 0}

    def first(arguments: dict) -> list:
        return uniforms([arguments["keys"]], arguments["seed"], arguments["epochs"]).tolist()

    assert first(zero) == first(zero)
    assert first(zero) != first({**zero, **one_up})
    assert all(first({**zero, **one_up}) != first({**zero, other: 1}) for other in zero.keys() - one_up.keys())


def test_numbers_are_in_the_half_open_interval():
    numbers = uniforms(np.arange(MANY), count=50)
    assert numbers.dtype == np.float32
    assert 0 <= numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1
    assert (numbers * 2**24 % 1 == 0).all()


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**62, 89)])
@pytest.mark.parametrize("keys", ["neighbours", "hashes"])
def test_each_column_is_uniform(seed: int, epoch: int, keys: str):
    names = tf.strings.as_string(tf.range(MANY)) + ".jpg"
    numbers = uniforms(np.arange(MANY) if keys == "neighbours" else hash_keys(names).numpy(), seed, epoch, 8).astype(float)
    assert (np.abs(numbers.mean(0) - 1 / 2) < 5 * np.sqrt(1 / 12 / MANY)).all()
    assert (np.abs(numbers.var(0) - 1 / 12) < 5 * np.sqrt(1 / 180 / MANY)).all()
    for column in numbers.T:
        cells = np.histogram(column, 100, (0, 1))[0]
        assert abs(((cells - MANY / 100) ** 2 / (MANY / 100)).sum() - 99) < 5 * np.sqrt(2 * 99)


def test_each_bit_of_the_words_is_fair():
    words = draw_words(tf.range(MANY, dtype=tf.int64), 0, tf.zeros(MANY, tf.int64), 3).numpy()
    assert words.dtype == np.uint32
    shares = [(words >> bit & 1).mean(0) for bit in range(32)]
    assert np.abs(np.array(shares) - 1 / 2).max() < 5 / 2 / np.sqrt(MANY)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return abs(float(np.corrcoef(first.ravel(), second.ravel())[0, 1]))


def test_neighbouring_keys_seeds_epochs_and_columns_are_uncorrelated():
    base = uniforms(np.arange(MANY + 1))
    others = {
        "key": (base[:-1], base[1:]),
        "column": (base[:, :-1], base[:, 1:]),
        "seed": (base, uniforms(np.arange(MANY + 1), seed=1)),
        "epoch": (base, uniforms(np.arange(MANY + 1), epochs=1)),
        "seed for epoch": (uniforms(np.arange(MANY), seed=1), uniforms(np.arange(MANY), epochs=1)),
        "key for epoch": (uniforms(np.arange(MANY)), uniforms(np.zeros(MANY), epochs=np.arange(MANY))),
    }
    found = {name: correlation(*pair) * np.sqrt(pair[0].size) for name, pair in others.items()}
    assert max(found.values()) < 5, found
    assert correlation(base, base) > 0.99  # the measure can fail


def test_hashes_of_keys_are_those_of_every_machine():
    # Changing one changes the augmentation of every record of every run.
    keys = ["cat/1.jpg", "", "小 猫/深/猫 1.jpg", "FILE#000042"]
    assert hash_keys(tf.constant(keys)).numpy().tolist() == HASHES
    assert hash_keys(tf.constant(keys[::-1])).numpy().tolist() == HASHES[::-1]


def test_golden_numbers():
    # Changing them changes order and augmentation of every run: resumed ones would not go on as
    # they began.
    words = draw_words(tf.constant([0, 1, 2**62], tf.int64), 42, tf.constant([0, 7, 2**40], tf.int64), 3)
    assert words.numpy().tolist() == WORDS
