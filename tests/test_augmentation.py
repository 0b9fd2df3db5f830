"""Augmentation: each operation against a slow and obvious one, the strengths that are drawn, and on what they depend."""

from __future__ import annotations

import colorsys
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pipeline_fixtures import CLASS_NAMES

import tfpipe
from tfpipe.images.decoding import decode_image, resize_image
from tfpipe.pipeline import augmentation as module
from tfpipe.pipeline.augmentation import PRESETS, Augmentation, augment_image, draw_changes, finish, rotate
from tfpipe.pipeline.counter_rng import hash_keys
from tfpipe.pipeline.loader import dataset
from tfpipe.records.catalog import read_catalog

pytestmark = pytest.mark.tf

SIZE = (40, 56)
MANY = 20_000
LARGEST = 1 - 2**-24  # of the numbers that are drawn


def made(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photograph's stand-in: smooth colours with noise on a part, black and white reached."""
    random = np.random.default_rng([seed, height, width])
    smooth = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = random.integers(-80, 80, (height, width, 3)) * (np.arange(width) % 20 < 10)[None, :, None]
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def photographs(height: int, width: int) -> list[np.ndarray]:
    """Two that are made, and real ones where they are at hand."""
    images = [made(height, width), made(height, width, 1)]
    if folder := os.environ.get("TFPIPE_TEST_DATA"):
        for name in ("cat.1.jpg", "dog.1.jpg", "dog.10.jpg"):
            with Image.open(Path(folder) / "cats_dogs" / "train" / name) as image:
                images.append(np.asarray(ImageOps.fit(image.convert("RGB"), (width, height))))
    return images


def draws(
    augmentation: Augmentation, keys: object = 1, *, seed: int = 0, epoch: int = 0, size=SIZE, source=SIZE, resize="stretch"
) -> dict[str, np.ndarray]:
    """What is drawn for the keys 0 to `keys`, or for those that are given as strings."""
    keys = tf.range(keys, dtype=tf.int64) if isinstance(keys, int) else hash_keys(tf.constant(keys))
    count = len(keys)
    sources, epochs = tf.tile([source], [count, 1]), tf.fill([count], tf.constant(epoch, tf.int64))
    changes = draw_changes(augmentation, size, resize, keys=keys, seed=seed, epochs=epochs, sources=sources)
    return {name: value.numpy() for name, value in changes.items()}


def finished(image: np.ndarray, augmentation: Augmentation, changes: dict[str, np.ndarray], index: int = 0) -> np.ndarray:
    """An image that already has its size, with the changes that were drawn for one key."""
    one = {name: tf.constant(value[index : index + 1]) for name, value in changes.items()}
    rotated = rotate(tf.constant(image, tf.float32), {name: value[0] for name, value in one.items()})
    return finish(rotated[tf.newaxis], one)[0].numpy()


def still(changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in changes.items() if name not in ("mirrored", "upside_down")}


def matrix_of(changes: dict[str, np.ndarray]) -> np.ndarray:
    """What saturation, hue and greyscale do, whatever the contrast."""
    return (changes["colour"] + changes["mean"]) / 4096


def contrast_of(changes: dict[str, np.ndarray]) -> np.ndarray:
    whole = (changes["colour"] + changes["mean"]).astype(float)
    return np.trace(changes["colour"], axis1=-2, axis2=-1) / np.trace(whole, axis1=-2, axis2=-1)


def brightness_of(changes: dict[str, np.ndarray]) -> np.ndarray:
    return changes["brightness"] / 4096


def rounded(levels: np.ndarray) -> np.ndarray:
    return np.round(np.clip(levels, 0, 255)).astype(np.uint8)


def difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs).max())


def mean_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(float) - theirs).mean())


def uniform_distance(values: np.ndarray, low: float = 0.0, high: float = 1.0) -> float:
    """Kolmogorov's: how far the distribution is from the uniform one, in units of 1 / sqrt(n); 1.95 is rarer than 1 in 1000."""
    steps = (np.sort(values.astype(np.float64)) - low) / (high - low)
    places = np.arange(len(steps) + 1) / len(steps)
    return float(max(np.abs(steps - places[1:]).max(), np.abs(steps - places[:-1]).max()) * np.sqrt(len(steps)))


def two_sample_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Smirnov's, in the same units."""
    everything = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(np.sort(values), everything, "right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max() * np.sqrt(len(first) * len(second) / (len(first) + len(second))))


def test_the_distances_tell_uniform_from_not():
    uniform = np.random.default_rng(0).random(5000)
    assert uniform_distance(uniform) < 1.95 < uniform_distance(uniform**1.1)
    assert two_sample_distance(uniform, uniform[::2]) < 1.95 < two_sample_distance(uniform, uniform**1.1)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch):
    """forced(value): every number that is drawn is that one."""

    def force(value: float) -> None:
        monkeypatch.setattr(module, "draw", lambda keys, seed, epochs, count: tf.fill([len(keys), count], np.float32(value)))

    return force


# Crops


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Two pixels by two about each place of the result."""
    levels = image.astype(float)
    for axis, count in enumerate(size):
        length = levels.shape[axis]
        places = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
        before = np.floor(places).astype(int)
        share = (places - before).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        after = np.minimum(before + 1, length - 1)
        levels = np.take(levels, before, axis) * (1 - share) + np.take(levels, after, axis) * share
    return levels


@pytest.mark.parametrize("source", [(75, 100), (160, 120), (41, 333)])
def test_a_crop_is_cut_out_and_resized(source: tuple[int, int]):
    augmentation = Augmentation(crop=0.08)
    changes = draws(augmentation, [str(i) for i in range(12)], source=source)
    for image in photographs(*source):
        for index in range(12):
            top, left, height, width = map(int, changes["window"][index])
            if height > 3 * SIZE[0] or width > 3 * SIZE[1]:
                continue  # averaged, see test_sampling.py
            expected = rounded(bilinear(image[top : top + height, left : left + width], SIZE))
            ours = augment_image(image, SIZE, augmentation, key=str(index), seed=0, epoch=0)
            assert difference(ours.numpy(), expected) <= 1
    assert len({tuple(window) for window in changes["window"].tolist()}) >= 3  # twin: different windows


def largest_within(height: int, width: int, aspect: float) -> tuple[int, int, int, int]:
    """The fallback: the largest window in the middle whose aspect is allowed."""
    window = min(height, max(1, round(width * aspect))), min(width, max(1, round(height * aspect)))
    return (height - window[0]) // 2, (width - window[1]) // 2, *window


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1e-4, 0.08, 0.5, 1.0]), st.sampled_from([1.0, 4 / 3, 3.0]))
@settings(max_examples=100)
def test_windows_are_inside_and_as_large_and_as_wide_as_allowed(height: int, width: int, crop: float, aspect: float):
    windows = draws(Augmentation(crop=crop, crop_aspect=aspect), 64, source=(height, width))["window"]
    fallback = largest_within(height, width, aspect)
    for top, left, high, wide in windows.tolist():
        assert top >= 0 <= left
        assert high >= 1 <= wide
        assert top + high <= height
        assert left + wide <= width
        # What was rounded to whole pixels may have been half a pixel more or less.
        assert (wide - 0.5) / (high + 0.5) <= aspect * 1.00001
        assert (high - 0.5) / (wide + 0.5) <= aspect * 1.00001
        if (top, left, high, wide) != fallback:
            assert (high + 0.5) * (wide + 0.5) >= crop * height * width * 0.99999


@pytest.mark.parametrize("value", [0.0, LARGEST])
@pytest.mark.parametrize("source", [(1, 1), (7, 5), (4096, 4096), (65535, 65533)])
def test_windows_are_inside_for_the_smallest_and_the_largest_number(forced, value: float, source: tuple[int, int]):
    forced(value)
    ((top, left, height, width),) = draws(Augmentation(crop=0.08), 1, source=source)["window"].tolist()
    assert top >= 0
    assert left >= 0
    assert top + height <= source[0]
    assert left + width <= source[1]


def test_a_place_reaches_every_edge():
    windows = draws(Augmentation(crop=0.25), MANY, source=(30, 40))["window"]
    for axis, side in ((0, 30), (1, 40)):
        room = side - windows[:, 2 + axis]
        place, room = windows[room > 3, axis], room[room > 3]
        # Each of the room + 1 places equally often: a place with a random part is uniform.
        jitter = np.random.default_rng(axis).random(len(place))
        assert uniform_distance((place + jitter) / (room + 1)) < 1.95
        assert (place == 0).any()
        assert (place == room).any()


def test_the_share_of_the_area_is_uniform():
    # Nothing is tried twice where every try fits: a square of a square.
    windows = draws(Augmentation(crop=0.08, crop_aspect=1), MANY, source=(4000, 4000))["window"].astype(float)
    assert (windows[:, 2] == windows[:, 3]).all()
    assert uniform_distance(windows[:, 2] * windows[:, 3] / 4000**2, 0.08, 1) < 1.95


def reference_windows(count: int, source: tuple[int, int], crop: float, aspect: float) -> np.ndarray:
    """RandomResizedCrop as it is written everywhere: ten tries, else the middle."""
    random = np.random.default_rng(0)
    sizes = []
    for _ in range(count):
        for _ in range(10):
            area, ratio = source[0] * source[1] * random.uniform(crop, 1), np.exp(random.uniform(-1, 1) * np.log(aspect))
            width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < height <= source[0] and 0 < width <= source[1]:
                sizes.append((height, width))
                break
        else:
            sizes.append(largest_within(*source, aspect)[2:])
    return np.array(sizes, float)


@pytest.mark.parametrize("source", [(375, 500), (700, 300)])
def test_shares_and_aspects_are_distributed_as_those_of_the_loop_with_ten_tries(source: tuple[int, int]):
    ours = draws(Augmentation(crop=0.08), MANY, source=source)["window"][:, 2:].astype(float)
    theirs = reference_windows(MANY // 2, source, 0.08, 4 / 3)
    random = np.random.default_rng(1)  # sides are whole numbers: equal ones are put in a random order
    for measure in (lambda sides: sides[:, 0] * sides[:, 1], lambda sides: np.log(sides[:, 1] / sides[:, 0])):
        assert two_sample_distance(*(measure(sides) + random.random(len(sides)) * 1e-6 for sides in (ours, theirs))) < 1.95


@pytest.mark.parametrize(
    ("source", "window"),
    [
        ((1, 500), (0, 249, 1, 1)),
        ((500, 1), (249, 0, 1, 1)),
        ((3, 400), (0, 198, 3, 4)),
        ((400, 3), (198, 0, 4, 3)),
        ((30, 400), (0, 180, 30, 40)),
    ],
)
def test_the_middle_of_an_extreme_strip_is_taken(source: tuple[int, int], window: tuple[int, ...]):
    # A quarter of such a strip would be too wide: the tries fail, and there is a window all the
    # same.
    windows = draws(Augmentation(crop=0.5), 200, source=source)["window"].tolist()
    assert {tuple(found) for found in windows} == {window}
    image = augment_image(made(*source), SIZE, Augmentation(crop=0.5), key="a", seed=0, epoch=0)
    top, left, height, width = window
    assert difference(image.numpy(), rounded(bilinear(made(*source)[top : top + height, left : left + width], SIZE))) <= 1


# Nothing


@pytest.mark.parametrize("mode", ["stretch", "pad", "crop"])
def test_no_augmentation_is_resize_image(mode: str):
    for source in [(75, 100), (64, 48), SIZE, (333, 47), (17, 201), (1, 9), (9, 1)]:
        for image in photographs(*source):
            ours = augment_image(image, SIZE, Augmentation.named("none"), key="a", seed=0, epoch=0, resize=mode)
            # Of a "crop" only a part is looked at: its place, in float32, is another number than
            # that of the whole.
            assert difference(ours.numpy(), resize_image(image, SIZE, mode).numpy()) <= (mode == "crop")
        other = augment_image(image, SIZE, Augmentation(crop=0.3, vertical_flip=1), key="a", seed=0, epoch=0, resize=mode)
        assert (ours.numpy() != other.numpy()).any()  # twin


def test_no_augmentation_draws_nothing():
    changes = draws(Augmentation(), 100)
    assert set(changes) == {"window", "scale", "translation"}
    assert (changes["window"] == [0, 0, *SIZE]).all()


STRONG = dataclasses.replace(PRESETS["strong"], vertical_flip=0.5)
PARTS = {  # by operation, what it changes of what is drawn
    "crop": {"window", "scale", "translation"},
    "horizontal_flip": {"mirrored"},
    "vertical_flip": {"upside_down"},
    "brightness": {"brightness"},
    "contrast": {"colour", "mean"},
    "saturation": {"colour", "mean"},
    "hue": {"colour", "mean"},
    "greyscale": {"colour", "mean"},
    "rotation": {"angle"},
    "erasing": {"erased"},
}


@pytest.mark.parametrize("operation", PARTS)
def test_an_operation_that_is_off_changes_nothing_else(operation: str):
    every, without = draws(STRONG, 500), draws(dataclasses.replace(STRONG, **{operation: 0}), 500)
    for name in every.keys() - PARTS[operation]:
        assert (every[name] == without[name]).all()
    for name in PARTS[operation] & every.keys():  # twin
        assert name not in without or (every[name] != without[name]).any()
    if operation in ("saturation", "hue", "greyscale"):
        grey = np.abs(matrix_of(every) - NTSC[0]).max(axis=(1, 2)) < 1e-3
        assert np.allclose(contrast_of(every)[~grey], contrast_of(without)[~grey], atol=0.01)
    if operation == "contrast":
        assert np.allclose(matrix_of(every), matrix_of(without), atol=0.001)


# Flips


@pytest.mark.parametrize(("field", "axis", "drawn"), [("vertical_flip", 0, "upside_down"), ("horizontal_flip", 1, "mirrored")])
def test_a_flip_is_the_exact_mirror(field: str, axis: int, drawn: str):
    always = Augmentation(**{field: 1})
    changes = draws(always, 1000)
    assert changes.keys() & {"upside_down", "mirrored"} == {drawn}
    assert changes[drawn].all()
    for image in photographs(*SIZE):
        assert (finished(image, always, changes) == np.flip(image, axis)).all()
        assert (finished(image, always, still(changes)) == image).all()  # twin


def test_a_flip_comes_as_often_as_it_shall():
    changes = draws(Augmentation(vertical_flip=0.1, horizontal_flip=0.5), MANY)
    flips = np.stack([changes["upside_down"], changes["mirrored"]], axis=1)
    assert abs(flips[:, 0].mean() - 0.1) < 4 * np.sqrt(0.09 / MANY)
    assert abs(flips[:, 1].mean() - 0.5) < 4 * np.sqrt(0.25 / MANY)
    assert abs(np.corrcoef(flips.T)[0, 1]) < 4 / np.sqrt(MANY)


# Colours


def luma(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])


NTSC = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    grey = luma(image)[..., None]
    return grey + factor * (image - grey)


def hue(image: np.ndarray, angle: float) -> np.ndarray:
    y, i, q = np.moveaxis(image @ NTSC.T, -1, 0)
    turned = np.stack([y, i * np.cos(angle) - q * np.sin(angle), i * np.sin(angle) + q * np.cos(angle)], axis=-1)
    return turned @ np.linalg.inv(NTSC).T


def greyscale(image: np.ndarray) -> np.ndarray:
    return np.repeat(luma(image)[..., None], 3, axis=-1)


def factor_of(colour: np.ndarray) -> np.ndarray:
    """The factor of a matrix that changes saturation alone: its trace is 1 + 2 f."""
    return (np.trace(colour, axis1=-2, axis2=-1) - 1) / 2


def angle_of(colour: np.ndarray) -> np.ndarray:
    """The angle in the plane of I and Q by which a matrix turns."""
    turn = NTSC @ colour.astype(float) @ np.linalg.inv(NTSC)
    return np.arctan2(turn[..., 2, 1], turn[..., 1, 1])


def test_luma_is_that_of_pillow():
    image = made(*SIZE)
    assert np.abs(luma(image) - np.asarray(Image.fromarray(image).convert("L"))).max() < 1


def test_brightness_is_added():
    augmentation = Augmentation(brightness=0.4)
    changes = draws(augmentation, 8)
    for image in photographs(*SIZE):
        for index in range(8):
            ours = finished(image, augmentation, changes, index)
            assert difference(ours, rounded(image + float(brightness_of(changes)[index]))) <= 1
    assert np.ptp(brightness_of(changes)) > 50


def test_contrast_keeps_the_mean_of_each_channel():
    augmentation = Augmentation(contrast=0.9)
    changes = draws(augmentation, 8)
    for image in photographs(*SIZE):
        for index in range(8):
            ours = finished(image, augmentation, changes, index)
            assert difference(ours, rounded(contrast(image.astype(float), float(contrast_of(changes)[index])))) <= 1
    assert np.ptp(contrast_of(changes)) > 0.5
    flat = np.broadcast_to(np.uint8([10, 100, 200]), [*SIZE, 3])  # one mean for all channels would pull them together
    assert (finished(flat, augmentation, changes, 0) == flat).all()


def test_saturation_moves_colours_from_and_to_their_grey():
    augmentation = Augmentation(saturation=0.9)
    changes = draws(augmentation, 8)
    factors = factor_of(matrix_of(changes))
    for image in photographs(*SIZE):
        for index in range(8):
            ours = finished(image, augmentation, changes, index)
            assert difference(ours, rounded(saturation(image.astype(float), factors[index]))) <= 1
    assert np.ptp(factors) > 0.5


@pytest.mark.parametrize("strength", [0.2, 0.5])
def test_hue_turns_i_and_q(strength: float):
    augmentation = Augmentation(hue=strength)
    changes = draws(augmentation, 8)
    angles = angle_of(matrix_of(changes))
    for image in photographs(*SIZE):
        for index in range(8):
            ours = finished(image, augmentation, changes, index)
            assert difference(ours, rounded(hue(image.astype(float), angles[index]))) <= 1
    assert np.ptp(angles) > strength * np.pi


@pytest.mark.parametrize("strength", [0.2, 0.5])
@pytest.mark.parametrize(("value", "end"), [(0.0, -1), (0.5, 0), (LARGEST, 1)])
def test_the_ends_of_hue(forced, strength: float, value: float, end: int):
    forced(value)
    augmentation = Augmentation(hue=strength)
    changes = still(draws(augmentation, 1))
    for image in photographs(*SIZE):
        # The hue of HSV grows from red to yellow to green; I and Q turn the other way.
        expected = rounded(hue(image.astype(float), -end * strength * 2 * np.pi))
        assert difference(finished(image, augmentation, changes), expected) <= 1
        if strength == 0.5 and end:  # the complement
            assert difference(finished(image, augmentation, changes), rounded(saturation(image.astype(float), -1.0))) <= 1


@pytest.mark.parametrize("value", [0.0, LARGEST])
def test_hue_turns_as_tf_image_turns_it(forced, value: float):
    # Another rotation than that of HSV, so no more than alike: 0.4 to 0.7 of the difference to the
    # opposite one.
    forced(value)
    changes = still(draws(Augmentation(hue=0.1), 1))
    delta = np.float32(0.1 * (2 * value - 1))
    for image in photographs(*SIZE):
        ours = finished(image, Augmentation(hue=0.1), changes)
        same, opposite = (tf.image.adjust_hue(image, sign * delta).numpy() for sign in (1, -1))
        assert mean_difference(ours, same) < 0.8 * mean_difference(ours, opposite)


@pytest.mark.parametrize("value", [0.0, LARGEST])
@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_no_colour_turns_the_wrong_way(forced, value: float, degrees: int):
    forced(value)
    strength = 0.03
    colour = np.multiply(colorsys.hsv_to_rgb(degrees / 360, 0.5, 0.7), 255).round().astype(np.uint8)
    image = np.broadcast_to(colour, [*SIZE, 3])
    ours = finished(image, Augmentation(hue=strength), still(draws(Augmentation(hue=strength), 1)))
    before, after = (colorsys.rgb_to_hsv(*(pixels[0, 0] / 255.0))[0] for pixels in (image, ours))
    moved = ((after - before + 0.5) % 1 - 0.5) * np.sign(value - 0.5)
    assert 0.3 * strength < moved < 2.5 * strength


def test_grey_is_the_luma():
    augmentation = Augmentation(greyscale=1)
    changes = draws(augmentation, 1000)
    assert np.allclose(matrix_of(changes), [0.299, 0.587, 0.114], atol=2e-4)
    for image in photographs(*SIZE):
        ours = finished(image, augmentation, changes)
        assert (ours == ours[..., :1]).all()
        assert difference(ours, rounded(greyscale(image.astype(float)))) <= 1
        assert difference(ours[..., 0], np.asarray(Image.fromarray(image).convert("L"))) <= 1


def test_grey_comes_as_often_as_it_shall():
    colours = matrix_of(draws(Augmentation(greyscale=0.1), MANY))
    grey = np.abs(colours - NTSC[0]).max(axis=(1, 2)) < 1e-3
    assert abs(grey.mean() - 0.1) < 4 * np.sqrt(0.09 / MANY)
    assert np.abs(colours[~grey] - np.eye(3)).max() < 1e-6


def test_a_grey_image_stays_grey_and_keeps_its_levels():
    levels = np.repeat(made(*SIZE)[..., :1], 3, axis=-1)
    augmentation = Augmentation(saturation=1, hue=0.5)
    changes = draws(augmentation, 10)
    assert max(difference(finished(levels, augmentation, changes, index), levels) for index in range(10)) <= 1


def test_all_together_are_one_after_another():
    strengths = {"brightness": 0.25, "contrast": 0.5, "saturation": 0.5, "hue": 0.2, "greyscale": 0.3}
    augmentation = Augmentation(**strengths)
    changes = draws(augmentation, 12)
    alone = {name: draws(Augmentation(**{name: strength}), 12) for name, strength in strengths.items()}
    factors, angles = factor_of(matrix_of(alone["saturation"])), angle_of(matrix_of(alone["hue"]))
    grey = np.isclose(matrix_of(alone["greyscale"])[:, 0, 0], 0.299, atol=1e-3)
    assert 0 < grey.sum() < 12
    for image in photographs(*SIZE):
        for index in range(12):
            # One rounding at the end, and one clip: what is too bright in between is not lost.
            levels = contrast(image.astype(float), float(contrast_of(alone["contrast"])[index]))
            levels = hue(saturation(levels, factors[index]), angles[index])
            levels = greyscale(levels) if grey[index] else levels
            levels = rounded(levels + float(brightness_of(alone["brightness"])[index]))
            assert difference(finished(image, augmentation, changes, index), levels) <= 1


def test_strengths_are_uniform_between_their_bounds():
    changes = draws(Augmentation(brightness=0.125, contrast=0.5, rotation=15), MANY)
    alone = {name: matrix_of(draws(Augmentation(**{name: 0.3}), MANY)) for name in ("saturation", "hue")}
    drawn = {
        "brightness": (brightness_of(changes), 0.125 * 255, 0),
        "contrast": (contrast_of(changes), 0.5, 1),
        "rotation": (np.degrees(changes["angle"]), 15, 0),
        "saturation": (factor_of(alone["saturation"]), 0.3, 1),
        "hue": (angle_of(alone["hue"]), 0.3 * 2 * np.pi, 0),
    }
    for name, (values, most, middle) in drawn.items():
        assert uniform_distance(values, middle - most, middle + most) < 1.95, name
        assert np.abs(values - middle).max() <= most * 1.001, name
        assert np.abs(values - middle).max() > most * 0.999, name
        assert abs(values.mean() - middle) < 4 * most / np.sqrt(3 * MANY), name
    columns = np.stack([values for values, *_ in drawn.values()])
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 4.5 / np.sqrt(MANY)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0), (LARGEST, 255)])
def test_levels_are_clipped_and_do_not_wrap_around(forced, value: float, expected: int):
    forced(value)
    for level in (0, 3, 128, 252, 255):
        flat = np.full([*SIZE, 3], level, np.uint8)
        assert (finished(flat, Augmentation(brightness=1), still(draws(Augmentation(brightness=1), 1))) == expected).all()


# Rotation


def reflected(place: np.ndarray, length: int) -> np.ndarray:
    place = place % (2 * length)
    return np.where(place < length, place, 2 * length - 1 - place)


def rotated(image: np.ndarray, angle: float) -> np.ndarray:
    """Counter-clockwise about the middle, bilinear, reflected beyond the edges, pixel by pixel of the result."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    from_y = np.sin(angle) * x + np.cos(angle) * y + (height - 1) / 2
    from_x = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2
    top, left = np.floor(from_y).astype(int), np.floor(from_x).astype(int)
    result = np.zeros(image.shape)
    for below in (0, 1):
        for right in (0, 1):
            weight = np.abs(1 - below - (from_y - top)) * np.abs(1 - right - (from_x - left))
            pixels = image[reflected(top + below, height), reflected(left + right, width)]
            result += weight[..., None] * pixels
    return result


def inner(image: np.ndarray) -> np.ndarray:
    """What no rotation by 15 degrees brings in from beyond the edges."""
    return image[12:-12, 12:-12]


def test_rotation_is_bilinear_about_the_middle():
    augmentation = Augmentation(rotation=15)
    changes = draws(augmentation, 8)
    for image in photographs(*SIZE):
        for index in range(8):
            ours, angle = finished(image, augmentation, changes, index), float(changes["angle"][index])
            expected = rounded(rotated(image.astype(float), angle))
            assert difference(inner(ours), inner(expected)) <= 1
            assert mean_difference(ours, expected) < 0.5  # the corners, too: reflected
            turned = Image.fromarray(image).rotate(np.degrees(angle), Image.Resampling.BILINEAR)
            assert difference(inner(ours), inner(np.asarray(turned))) <= 2
            other_way = Image.fromarray(image).rotate(-np.degrees(angle), Image.Resampling.BILINEAR)
            assert difference(inner(ours), inner(np.asarray(other_way))) > 8  # twin


def test_no_corner_is_black():
    white = np.full([*SIZE, 3], 255, np.uint8)
    for strength in (15, 45):
        changes = draws(Augmentation(rotation=strength), 20)
        for index in range(20):
            assert finished(white, Augmentation(rotation=strength), changes, index).min() == 255


# Erasing


@pytest.mark.parametrize("size", [(224, 224), (180, 240)])
def test_what_is_erased_is_as_large_and_as_wide_as_documented(size: tuple[int, int]):
    top, left, bottom, right = draws(Augmentation(erasing=1), MANY, size=size)["erased"].T
    height, width = (bottom - top).astype(float), (right - left).astype(float)
    assert min(top.min(), left.min()) == 0
    assert (bottom.max(), right.max()) == size
    assert min(height.min(), width.min()) >= 1
    area = size[0] * size[1]
    whole = (height < size[0]) & (width < size[1])  # others were cut to the image
    assert ((height + 0.5) * (width + 0.5) >= 0.02 * area)[whole].all()
    assert ((height - 0.5) * (width - 0.5) <= area / 3).all()
    assert (np.maximum((height - 0.5) / (width + 0.5), (width - 0.5) / (height + 0.5)) <= 3.3)[whole].all()
    assert whole.mean() > 0.96
    shares = height * width / area
    assert abs(shares[whole].mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert shares.min() < 0.025
    assert shares.max() > 0.32
    assert abs(np.median(np.log(height / width))) < 0.05
    assert (height / width).max() > 3.1
    assert (width / height).max() > 3.1


def test_an_erased_place_is_uniform():
    top, left, bottom, right = draws(Augmentation(erasing=1), MANY, size=(224, 224))["erased"].T
    random = np.random.default_rng(0)
    for start, length in ((top, bottom - top), (left, right - left)):
        assert uniform_distance((start + random.random(MANY)) / (224 - length + 1)) < 1.95


def test_only_the_rectangle_is_erased():
    augmentation = Augmentation(erasing=1)
    changes = draws(augmentation, 8)
    for image in photographs(*SIZE):
        for index in range(8):
            top, left, bottom, right = changes["erased"][index]
            expected = image.copy()
            expected[top:bottom, left:right] = (124, 116, 104)
            assert (finished(image, augmentation, changes, index) == expected).all()


def test_the_rectangle_is_where_it_was_drawn_whatever_else_is_done():
    augmentation = Augmentation(erasing=1, brightness=1, vertical_flip=1, horizontal_flip=1, rotation=45)
    changes = draws(augmentation, 8)
    for index in range(8):
        top, left, bottom, right = changes["erased"][index]
        ours = finished(made(*SIZE), augmentation, changes, index)
        assert (ours[top:bottom, left:right] == (124, 116, 104)).all()


def test_erasing_comes_as_often_as_it_shall():
    erased = draws(Augmentation(erasing=0.25), MANY)["erased"]
    some = (erased[:, 2:] > erased[:, :2]).all(axis=1)
    assert abs(some.mean() - 0.25) < 4 * np.sqrt(0.1875 / MANY)
    assert not erased[~some].any()
    image, index = made(*SIZE), int(np.flatnonzero(~some)[0])
    assert (finished(image, Augmentation(erasing=0.25), draws(Augmentation(erasing=0.25), 100), index) == image).all()


@pytest.mark.parametrize("value", [0.0, LARGEST])
@pytest.mark.parametrize("size", [(1, 1), (5, 60), (224, 3)])
def test_what_is_erased_is_inside_for_the_smallest_and_the_largest_number(forced, value: float, size: tuple[int, int]):
    forced(value)
    augmentation = Augmentation(erasing=1)
    ((top, left, bottom, right),) = draws(augmentation, 1, size=size)["erased"].tolist()
    assert 0 <= top < bottom <= size[0]
    assert 0 <= left < right <= size[1]


# The class


def test_the_presets_are_what_was_documented():
    standard = {"crop": 0.08, "horizontal_flip": 0.5, "brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    expected = {
        "none": {},
        "light": {"crop": 0.5, "horizontal_flip": 0.5, "brightness": 0.05, "contrast": 0.1, "saturation": 0.1},
        "standard": standard,
        "strong": {**standard, "brightness": 0.25, "greyscale": 0.1, "rotation": 15, "erasing": 0.25},
    }
    every = {field.name: 0 for field in dataclasses.fields(Augmentation)} | {"crop_aspect": 4 / 3}
    assert set(PRESETS) == set(expected)
    for name, strengths in expected.items():
        assert dataclasses.asdict(Augmentation.named(name)) == {**every, **strengths}
        assert not Augmentation.named(name).mixes
        assert Augmentation.named(name).colour == (name != "none")


@pytest.mark.parametrize("preset", ["", "Standard", "randaugment"])
def test_an_unknown_preset_is_named(preset: str):
    with pytest.raises(ValueError, match=rf"one of none, light, standard, strong \(got '{preset}'\)"):
        Augmentation.named(preset)


LIMITS = {field.name: (0, 1) for field in dataclasses.fields(Augmentation)}
LIMITS |= {"crop_aspect": (1, 100), "hue": (0, 0.5), "rotation": (0, 45), "mixup": (0, 100), "cutmix": (0, 100)}


@pytest.mark.parametrize("field", LIMITS)
def test_a_wrong_strength_is_named_with_its_value(field: str):
    least, most = LIMITS[field]
    for value in (least, most, np.float32(most), np.int64(most) if most >= 1 else most):
        assert getattr(Augmentation(**{field: value}), field) == value
    for value in (least - 0.01, most + 0.01, -1, float("nan"), float("inf"), "0.5", None, True, [0.5], 1j):
        with pytest.raises(ValueError, match=f"^{field} must be a number between {least} and {most} ") as error:
            Augmentation(**{field: value})
        assert f"(got {value!r})" in str(error.value)


# G7: what happens to an image is a function of (seed, epoch, key)


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all((first[name] == second[name]).all() for name in first)


def test_g7_an_image_alone_is_that_image_in_a_batch():
    # To the last bit: vectors of numbers may be computed otherwise than the rest that fills no
    # vector.
    keys = [f"cat/{i}.jpg" for i in range(203)]
    batch, backwards = draws(STRONG, keys), draws(STRONG, keys[::-1])
    for index in range(203):
        alone = draws(STRONG, [keys[index]])
        assert same({name: value[0] for name, value in alone.items()}, {n: v[index] for n, v in batch.items()})
    assert same(batch, {name: value[::-1] for name, value in backwards.items()})
    assert not same(batch, backwards)  # twin


def test_g7_golden():
    # Changing these numbers changes what every seed stands for, and what a replay gives.
    changes = draws(STRONG, ["cat/1.jpg", "小 猫/2.jpg"], seed=7, epoch=3, source=(375, 500), size=(224, 224))
    assert changes["window"].tolist() == [[42, 135, 327, 361], [19, 241, 303, 229]]
    assert (changes["mirrored"].tolist(), changes["upside_down"].tolist()) == ([True, False], [False, True])
    assert changes["brightness"].tolist() == [-135197, 179865]
    assert matrix_of(changes)[:, 0].round(2).tolist() == [[0.59, 0.21, 0.21], [0.61, -0.13, 0.52]]
    assert contrast_of(changes).round(2).tolist() == [0.63, 1.01]
    assert changes["angle"].round(4).tolist() == pytest.approx([0.2389, -0.0545])
    assert changes["erased"].tolist() == [[0, 0, 0, 0], [57, 11, 144, 184]]


def test_g7_neither_sizes_nor_neighbours_of_other_epochs_matter():
    keys, epochs = hash_keys(tf.constant(["a", "b", "a"])), tf.constant([3, 3, 4], tf.int64)
    sources = tf.constant([[30, 40], [500, 600], [30, 40]])
    mixed = draw_changes(STRONG, SIZE, "stretch", keys=keys, seed=1, epochs=epochs, sources=sources)
    for index, (key, epoch, source) in enumerate([("a", 3, (30, 40)), ("b", 3, (500, 600)), ("a", 4, (30, 40))]):
        alone = draws(STRONG, [key], seed=1, epoch=epoch, source=source)
        assert same({name: value[0] for name, value in alone.items()}, {n: v[index].numpy() for n, v in mixed.items()})


def test_g7_seeds_epochs_and_keys_are_unrelated():
    def strengths(seed: int, epoch: int, first: int = 0) -> np.ndarray:
        keys = [str(first + i) for i in range(4000)]
        changes = draws(STRONG, keys, seed=seed, epoch=epoch)
        columns = [changes["colour"][:, 0, 0], *(changes[name] for name in ("brightness", "angle", "mirrored", "upside_down"))]
        return np.stack([*columns, *changes["window"].T], axis=1).astype(float)

    first = strengths(0, 0)
    assert (first == strengths(0, 0)).all()
    for other in (strengths(0, 1), strengths(1, 0), strengths(1, 1), strengths(0, 0, first=1)):
        assert (first != other).any(axis=1).all()  # no image is treated as before
        correlations = np.corrcoef(first.T, other.T)[: first.shape[1], first.shape[1] :]
        assert np.abs(correlations).max() < 5 / np.sqrt(4000)
    assert (strengths(0, 1) != strengths(1, 0)).any(axis=1).all()


def test_g7_augment_image_depends_on_seed_epoch_and_key():
    image = made(75, 100)
    options = {"key": "cat/1.jpg", "seed": 3, "epoch": 5}

    def augmented(**changed: object) -> bytes:
        return augment_image(image, SIZE, STRONG, **{**options, **changed}).numpy().tobytes()

    assert augmented() == augmented() == augmented(key=tf.constant("cat/1.jpg"), epoch=tf.constant(5))
    different = [augmented(), augmented(key="cat/2.jpg"), augmented(seed=4), augmented(epoch=6), augmented(seed=5, epoch=3)]
    assert len(set(different)) == 5


def test_g7_a_graph_draws_what_eager_execution_draws():
    keys, epochs, sources = tf.range(2000, dtype=tf.int64), tf.zeros(2000, tf.int64), tf.tile([[75, 100]], [2000, 1])

    def drawn(keys: tf.Tensor, epochs: tf.Tensor, sources: tf.Tensor) -> dict[str, tf.Tensor]:
        return draw_changes(STRONG, SIZE, "stretch", keys=keys, seed=0, epochs=epochs, sources=sources)

    eager, graph = drawn(keys, epochs, sources), tf.function(drawn)(keys, epochs, sources)
    assert same(*({name: value.numpy() for name, value in changes.items()} for changes in (eager, graph)))


def test_g7_the_graph_does_what_eager_execution_does():
    decoded, keys = made(75, 100), ["a", "b", "c", "d"]
    data = tf.data.Dataset.from_tensor_slices((keys, tf.range(4))).map(
        lambda key, epoch: augment_image(tf.constant(decoded), SIZE, STRONG, key=key, seed=3, epoch=epoch),
        num_parallel_calls=2,
    )
    assert data.element_spec == tf.TensorSpec([*SIZE, 3], tf.uint8)
    for epoch, (key, image) in enumerate(zip(keys, data.as_numpy_iterator(), strict=True)):
        assert (image == augment_image(decoded, SIZE, STRONG, key=key, seed=3, epoch=epoch).numpy()).all()


# The function and the pipeline


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of each chroma sampling in all orientations, and PNG files; real ones where they are at hand."""
    root = tmp_path_factory.mktemp("built")
    for number in range(32):
        exif, (kind, orientation) = Image.Exif(), (number // 8, number % 8 + 1)
        path = root / "photos" / CLASS_NAMES[number % 3] / f"{number}.{'png' if kind == 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(made(60 + number, 90, number))
        if kind == 3:
            image.save(path)
        else:
            exif[0x0112] = orientation
            image.save(path, quality=90, subsampling=kind, exif=exif)
    if folder := os.environ.get("TFPIPE_TEST_DATA"):
        for number in range(1, 25):
            real = (Path(folder) / "cats_dogs" / "train" / f"cat.{number}.jpg").read_bytes()
            (root / "photos" / "cat" / f"real{number}.jpg").write_bytes(real)
    options = {"name": "pets", "layout": "folders", "splits": {"train": 1.0}, "workers": 1, "num_shards": 3}
    tfpipe.build_tfrecords(root / "photos", root / "shards", **options, progress=False)
    return root


def compared(
    built: Path, augmentation: Augmentation, size: tuple[int, int], **options: object
) -> list[tuple[str, int, int, float]]:
    """Key, orientation, largest and mean difference of what the pipeline gives from what `augment_image` gives."""
    orientations = {row.key: row.orientation for row in read_catalog(built / "shards", split="train")}
    options = {"image_size": size, "augment": augmentation, "seed": 7, "first_epoch": 3, "batch_size": None, **options}
    found = []
    for row in dataset(built / "shards", "train", training=True, scaled_decode=False, as_dict=True, **options):
        key, image = row["key"].numpy().decode(), row["image"].numpy()
        decoded = decode_image((built / "photos" / key).read_bytes(), orientations[key])
        resize = options.get("resize", "stretch")
        expected = augment_image(decoded, size, augmentation, key=key, seed=7, epoch=3, resize=resize).numpy()
        assert int(row["epoch"]) == 3
        found.append((key, orientations[key], difference(image, expected), mean_difference(image, expected)))
    assert len(found) == len(orientations)
    return found


@pytest.mark.parametrize(
    ("preset", "size", "resize"),
    [
        ("strong", (48, 48), "stretch"),
        ("standard", (48, 48), "stretch"),
        ("none", (48, 48), "crop"),
        ("none", (48, 48), "pad"),
        ("strong", SIZE, "stretch"),
        ("none", SIZE[::-1], "crop"),
    ],
)
def test_g7_the_function_gives_what_the_pipeline_gives(built: Path, preset: str, size: tuple[int, int], resize: str):
    for key, orientation, most, mean in compared(built, PRESETS[preset], size, resize=resize):
        if preset == "none":
            assert most <= (orientation > 1), (key, orientation)  # turned after it was sampled: sums in another order
        # The first and last column of a crop have the chroma of an image that ends there.
        assert mean < (0.01 if preset == "none" else 0.5), (key, orientation)


def test_g7_the_pipeline_with_another_seed_gives_something_else(built: Path):
    differences = compared(built, PRESETS["standard"], (48, 48), seed=8)
    assert min(mean for *_, mean in differences) > 1


def test_g7_neither_batches_nor_threads_nor_readers_nor_the_order_matter(built: Path):
    def images(**options: object) -> dict[bytes, np.ndarray]:
        options = {"batch_size": 16, "image_size": (48, 48), "augment": "strong", "seed": 7, **options}
        data = dataset(built / "shards", "train", training=True, as_dict=True, **options)
        return dict(row for batch in data.as_numpy_iterator() for row in zip(batch["key"], batch["image"], strict=True))

    expected = images()
    others = {"batch_size": 7, "num_parallel_calls": 1, "read_block": 3}
    found = images(**others, shard=(0, 2)) | images(**others, shard=(1, 2))
    assert expected.keys() == found.keys()
    assert all((expected[key] == found[key]).all() for key in expected)


def test_contrast_of_a_large_image_keeps_nearly_its_mean():
    # The mean is that of some of the pixels.
    augmentation = Augmentation(contrast=0.9)
    changes = draws(augmentation, 8)
    for image in photographs(224, 280):
        for index in range(8):
            expected = rounded(contrast(image.astype(float), float(contrast_of(changes)[index])))
            assert mean_difference(finished(image, augmentation, changes, index), expected) < 3
