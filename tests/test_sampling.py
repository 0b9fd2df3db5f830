"""Sampling: the same pixels whichever way an image is stored, cropped by the decoder, or made smaller by it."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tfpipe.images import sampling
from tfpipe.images.decoding import RESIZES, Resize, decode_image, resize_image, turn_image

pytestmark = pytest.mark.tf

Changes = dict[str, tf.Tensor]

KINDS = {  # how a file is made
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "4:2:0 progressive": ("RGB", {"subsampling": 2, "progressive": True}),
    "grey": ("L", {}),
    "CMYK": ("CMYK", {}),
    "PNG": ("RGB", {}),
}


def made(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours and noise."""
    random = np.random.default_rng([seed, height, width])
    smooth = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.clip(np.asarray(smooth) + random.integers(-60, 60, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray, kind: str) -> bytes:
    mode, options = KINDS[kind]
    file = io.BytesIO()
    image_format = "PNG" if kind == "PNG" else "JPEG"
    Image.fromarray(image).convert(mode).save(file, image_format, **({} if kind == "PNG" else {"quality": 85}), **options)
    return file.getvalue()


def one(changes: Changes, index: int = 0) -> Changes:
    return {name: value[index] for name, value in changes.items()}


def cropped(corner: tuple[int, int], window: tuple[int, int]) -> Changes:
    return {"window": tf.constant([[*corner, *window]])}


def staged(changes: Changes, size: tuple[int, int], *, scaled: bool = True, png: bool = False, orientation: int = 1) -> Changes:
    return sampling.as_decoded(changes, tf.constant([orientation]), tf.constant([png]), size, scaled=scaled)


def decoded(file: bytes, changes: Changes, size: tuple[int, int], *, orientation: int = 1, **options: bool) -> tf.Tensor:
    """What is sampled from the part of the file that the decoder is asked for, turned upright."""
    stage = one(staged(changes, size, orientation=orientation, **options))
    part = sampling.decode_window(file, stage["window"], stage["decoder"], scaled=options["scaled"])
    return turn_image(sampling.sample(part, size[::-1] if orientation >= 5 else size, stage), tf.constant(orientation))


def sampled(image: np.ndarray, changes: Changes, size: tuple[int, int]) -> np.ndarray:
    """The same of an image that is decoded as a whole."""
    stage = one(staged(changes, size, scaled=False))
    top, left, height, width = stage["window"].numpy()
    return sampling.sample(tf.constant(image[top : top + height, left : left + width]), size, stage).numpy()


def ratio_of(changes: Changes, size: tuple[int, int], *, png: bool = False, scaled: bool = True) -> int:
    return [*sampling.RATIOS, 1][int(staged(changes, size, png=png, scaled=scaled)["decoder"][0])]


sides = st.integers(1, 60)
fractions = st.floats(0, 1)


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """An image's size, and the corner and size of a window on it."""
    image = draw(sides), draw(sides)
    window = tuple(draw(st.integers(1, side)) for side in image)
    corner = tuple(draw(st.integers(0, side - part)) for side, part in zip(image, window, strict=True))
    return image, corner, window


# Windows and whole images


@given(windows(), st.tuples(sides, sides))
@settings(max_examples=60)
def test_a_crop_is_the_window_resized(shape: tuple, size: tuple[int, int]):
    source, (top, left), (height, width) = shape
    assume(height <= 3 * size[0] and width <= 3 * size[1])  # larger ones are averaged
    image = made(*source)
    ours = sampled(image, cropped((top, left), (height, width)), size)
    places = [np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip(size, (height, width), strict=True)]
    weights = [np.maximum(0, 1 - np.abs(p[:, None] - np.arange(m))) for p, m in zip(places, (height, width), strict=True)]
    expected = np.einsum("yh,hwc,xw->yxc", weights[0], image[top : top + height, left : left + width], weights[1])
    assert np.abs(ours - expected).max() < 0.05  # two pixels by two


@pytest.mark.parametrize(("window", "size"), [((200, 50), (60, 40)), ((50, 200), (40, 60)), ((181, 20), (60, 20))])
def test_a_crop_of_which_most_would_be_passed_over_is_averaged(window: tuple[int, int], size: tuple[int, int]):
    image = made(220, 220)
    ours = sampled(image, cropped((7, 9), window), size)
    expected = Image.fromarray(image[7 : 7 + window[0], 9 : 9 + window[1]]).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(ours - np.asarray(expected)).max() <= 1


def fitted(image: np.ndarray, size: tuple[int, int], mode: Resize) -> np.ndarray:
    changes = sampling.fit(tf.constant([image.shape[:2]]), size, mode)
    return np.round(sampled(image, changes, size)).astype(np.uint8)


LINES = [((1, 500), (50, 81)), ((500, 1), (50, 81)), ((1, 60_000), (64, 64)), ((60_000, 1), (64, 64)), ((1, 1), (60, 1))]


@pytest.mark.parametrize("mode", RESIZES)
@given(st.tuples(sides, st.integers(1, 300)), st.tuples(sides, sides))
@settings(max_examples=40)
def test_fit_is_resize_image_within_a_level(mode: Resize, source: tuple[int, int], size: tuple[int, int]):
    image = made(*source)
    difference = np.abs(fitted(image, size, mode).astype(int) - resize_image(image, size, mode).numpy())
    assert difference.max() <= 1


@pytest.mark.parametrize("mode", RESIZES)
def test_fit_is_resize_image(mode: Resize):
    random = np.random.default_rng(0)
    shapes = [(tuple(random.integers(1, 200, 2).tolist()), tuple(random.integers(1, 61, 2).tolist())) for _ in range(40)]
    for source, size in LINES + shapes:
        image = made(*source)
        difference = np.abs(fitted(image, size, mode).astype(int) - resize_image(image, size, mode).numpy())
        # Of a "crop" only a part is looked at: its place, in float32, is another number than that
        # of the whole.
        assert difference.max() <= (mode == "crop"), (source, size)
        assert difference.mean() < 0.01, (source, size)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5000)), min_size=1, max_size=20), st.tuples(sides, sides))
@settings(max_examples=50)
def test_a_window_is_never_outside_the_image(sources: list[tuple[int, int]], size: tuple[int, int]):
    for mode in RESIZES:
        changes = sampling.fit(tf.constant(sources), size, mode)
        corners, shapes = np.split(changes["window"].numpy(), 2, axis=1)
        assert (corners >= 0).all()
        assert (shapes >= 1).all()
        assert (corners + shapes <= sources).all()


def test_a_strip_is_not_decoded_as_a_whole_where_little_of_it_is_shown():
    (top, left, height, width) = one(sampling.fit(tf.constant([[1, 60_000]]), (64, 64), "crop"))["window"].numpy()
    assert (top, height) == (0, 1)
    assert width <= 8
    assert left <= 30_000 < left + width
    assert one(sampling.fit(tf.constant([[1, 60_000]]), (64, 64), "pad"))["window"].numpy().tolist() == [0, 0, 1, 60_000]


# As stored

INVERSES = {**{orientation: orientation for orientation in range(1, 9)}, 6: 8, 8: 6}


def stored(image: np.ndarray, orientation: int) -> np.ndarray:
    """What `turn_image` makes the image of."""
    turned = turn_image(tf.constant(image), INVERSES[orientation]).numpy()
    assert (turn_image(tf.constant(turned), orientation).numpy() == image).all()
    return turned


def as_stored(changes: Changes, source: tuple[int, int], orientation: int, size: tuple[int, int]) -> Changes:
    return sampling.as_stored(changes, tf.constant([source]), tf.constant([orientation]), size)


@pytest.mark.parametrize("orientation", range(1, 9))
@given(windows(), st.tuples(sides, sides))
@settings(max_examples=15)
def test_a_turned_image_is_sampled_where_the_upright_one_is(orientation: int, shape: tuple, size: tuple[int, int]):
    source, corner, window = shape
    image, changes = made(*source), cropped(corner, window)
    turned_changes, turned = as_stored(changes, source, orientation, size), stored(image, orientation)
    top, left, height, width = turned_changes["window"][0].numpy()
    part = turn_image(tf.constant(turned[top : top + height, left : left + width]), orientation).numpy()
    assert (part == image[corner[0] : corner[0] + window[0], corner[1] : corner[1] + window[1]]).all()

    ours = decoded(encoded(turned, "PNG"), turned_changes, size, orientation=orientation, scaled=False, png=True).numpy()
    assert np.abs(ours - sampled(image, changes, size)).max() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", RESIZES)
def test_a_turned_image_is_fitted_as_the_upright_one(orientation: int, mode: Resize):
    for source, size in [((37, 60), (24, 31)), ((60, 37), (31, 24)), ((5, 9), (40, 40)), ((3, 333), (20, 31))]:
        image, changes = made(*source), sampling.fit(tf.constant([source]), size, mode)
        file, turned = encoded(stored(image, orientation), "PNG"), as_stored(changes, source, orientation, size)
        ours = decoded(file, turned, size, orientation=orientation, scaled=False, png=True).numpy()
        assert np.abs(ours - sampled(image, changes, size)).max() < 0.02


def test_each_orientation_is_another_window():
    # Twin: with an orientation taken for another, other pixels would be seen.
    changes = {name: tf.repeat(value, 8, axis=0) for name, value in cropped((1, 5), (7, 11)).items()}
    changes = sampling.as_stored(changes, tf.constant([[30, 30]] * 8), tf.range(1, 9), (12, 12))
    assert len({tuple(window) for window in changes["window"].numpy().tolist()}) == 8


@pytest.mark.parametrize("mode", ["", *RESIZES])
def test_many_images_at_once_are_each_alone(mode: str):
    random = np.random.default_rng(0)
    sources = random.integers(20, 900, (64, 2))
    shapes = np.maximum(1, sources // random.integers(1, 9, (64, 1)))
    corners = random.integers(0, sources - shapes + 1)
    orientations, png = random.integers(1, 9, 64), random.random(64) < 0.2

    def staged(part: slice) -> Changes:
        changes = sampling.fit(tf.constant(sources[part], tf.int32), (40, 56), mode) if mode else {}
        changes = changes or {"window": tf.constant(np.concatenate([corners, shapes], axis=1)[part], tf.int32)}
        turns = tf.constant(orientations[part], tf.int32)
        changes = sampling.as_stored(changes, tf.constant(sources[part], tf.int32), turns, (40, 56))
        return sampling.as_decoded(changes, turns, tf.constant(png[part]), (40, 56), scaled=True)

    together = staged(slice(None))
    for index in range(64):
        alone = staged(slice(index, index + 1))
        assert all((alone[name][0].numpy() == together[name][index].numpy()).all() for name in together)


# As decoded


@given(windows(), st.tuples(sides, sides), st.integers(1, 40))
@settings(max_examples=100)
def test_the_smallest_size_is_taken_that_is_not_enlarged(shape: tuple, size: tuple[int, int], times: int):
    _, corner, window = shape
    corner, window = ([side * times for side in pair] for pair in (corner, window))
    changes = cropped(corner, window)
    fits = [ratio for ratio in (1, 2, 4, 8) if all(part >= side * ratio for part, side in zip(window, size, strict=True))]
    assert ratio_of(changes, size) == max(fits, default=1)
    assert ratio_of(changes, size, scaled=False) == 1


@pytest.mark.parametrize(("window", "ratio"), [(447, 1), (448, 2), (895, 2), (896, 4), (1791, 4), (1792, 8), (9000, 8)])
def test_the_ratio_changes_where_the_result_needs_every_pixel(window: int, ratio: int):
    assert ratio_of(cropped((3, 5), (window, window)), (224, 224)) == ratio
    assert ratio_of(cropped((3, 5), (window, 10_000)), (224, 224)) == ratio  # the axis that is shrunk less decides
    assert ratio_of(cropped((3, 5), (10_000, window)), (224, 224)) == ratio


def test_a_png_is_never_scaled_by_its_decoder():
    changes = sampling.fit(tf.constant([[900, 900]] * 2), (100, 100), "stretch")
    stage = sampling.as_decoded(changes, tf.constant([1, 1]), tf.constant([True, False]), (100, 100), scaled=True)
    assert stage["decoder"].numpy().tolist() == [len(sampling.RATIOS), 3]
    assert (stage["scale"][0] == changes["scale"][0]).numpy().all()
    assert np.allclose(stage["scale"][1], changes["scale"][1] * 8)


@given(windows(), st.tuples(sides, sides), st.sampled_from([1, 2, 8, 20]))
@settings(max_examples=60)
def test_the_decoders_window_is_the_nearest_and_inside(shape: tuple, size: tuple[int, int], times: int):
    source, corner, window = ([side * times for side in pair] for pair in shape)
    changes = cropped(corner, window)
    ratio = ratio_of(changes, size)
    top, left, height, width = staged(changes, size)["window"][0].numpy()
    for start, length, first, part, side in zip((top, left), (height, width), corner, window, source, strict=True):
        assert start >= 0
        assert length >= 1
        assert start + length <= -(-side // ratio)  # the decoder's own size
        assert abs(start * ratio - first) <= ratio / 2
        assert abs((start + length) * ratio - first - part) <= ratio / 2


def test_a_windows_ends_are_rounded_to_the_nearest_of_the_decoders_pixels():
    # At 1/8: 803 is 100 of them and 3 eighths, 805 is 101 less 3 eighths.
    for first, start in ((803, 100), (805, 101)):
        changes = cropped((first, first), (900, 900))
        assert ratio_of(changes, (100, 100)) == 8
        end = 213  # 1703 and 1705 are eighths less and more than 213
        assert staged(changes, (100, 100))["window"][0].numpy().tolist() == [start, start, end - start, end - start]


def test_the_ratio_is_that_of_the_result_as_it_is_stored():
    # 400 x 200 of an image that lies on its side become 200 x 100, not 100 x 200.
    changes, size = cropped((0, 0), (200, 400)), (200, 100)
    assert staged(changes, size, orientation=6)["decoder"].numpy().tolist() == [1]
    assert staged(changes, size, orientation=1)["decoder"].numpy().tolist() == [0]


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.tuples(sides, sides), st.sampled_from(RESIZES))
@settings(max_examples=60)
def test_the_decoders_window_of_a_whole_image_leaves_nothing_out(source: tuple[int, int], size: tuple[int, int], mode: Resize):
    changes = sampling.fit(tf.constant([source]), size, mode)
    ratio, (corner, window) = ratio_of(changes, size), np.split(changes["window"][0].numpy(), 2)
    start, length = np.split(staged(changes, size)["window"][0].numpy(), 2)
    assert (start >= 0).all()
    assert (start * ratio <= corner).all()
    assert ((start + length) * ratio >= corner + window).all()
    assert (start + length <= -(-np.array(source) // ratio)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_a_part_is_decoded_as_that_part_of_the_whole_but_for_its_outer_columns(kind: str, ratio: int):
    worst = decoded_differences(kind, ratio)
    assert max(difference[:, 1:-1].max() for difference in worst) == 0


# A window's first and last column have no neighbour whose chroma would be mixed in (up to 60 levels
# on noise).
WITHOUT_NEIGHBOURS = {("4:2:2", 1), ("4:2:2", 2), ("4:2:2", 4), ("4:2:0", 1), ("4:2:0 progressive", 1)}


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_decoded_as_that_part_of_the_whole(kind: str, ratio: int):
    differences = decoded_differences(kind, ratio)
    assert max(difference[:, 1:-1].max() for difference in differences) == 0
    edges = max(difference.max() for difference in differences)
    assert (edges > 0) == ((kind, ratio) in WITHOUT_NEIGHBOURS)


@functools.cache
def decoded_differences(kind: str, ratio: int) -> list[np.ndarray]:
    """Windows that lie on the decoder's pixels, each of which becomes one pixel: nothing is averaged afterwards."""
    random, differences = np.random.default_rng(ratio), []
    png = kind == "PNG"
    for source in [(97, 131), (160, 120)]:
        file = encoded(made(*source), kind)
        factor = 1 if png else ratio
        whole = tf.io.decode_jpeg(file, channels=3, ratio=factor, dct_method="INTEGER_ACCURATE").numpy()
        most = np.array(source) // factor  # of whole pixels
        for index in range(8):
            size = [random.integers(3, side + 1) for side in most] if index else most  # once the whole
            top, left = (random.integers(0, side - part + 1) for side, part in zip(most, size, strict=True))
            size = tuple(map(int, size))
            changes = cropped((top * factor, left * factor), (size[0] * factor, size[1] * factor))
            assert ratio_of(changes, size, png=png) == factor
            ours = decoded(file, changes, size, scaled=ratio > 1 or index % 2 == 0, png=png).numpy()
            differences.append(np.abs(ours - whole[top : top + size[0], left : left + size[1]]).max(axis=-1))
    return differences


def test_another_place_is_another_part():
    # Twin: noise, whose neighbours differ.
    file, changes = encoded(made(97, 131), "4:4:4"), cropped((10, 21), (30, 40))
    ours = decoded(file, changes, (30, 40), scaled=False).numpy()
    whole = decode_image(file).numpy()
    assert (ours == whole[10:40, 21:61]).all()
    assert np.abs(ours - whole[11:41, 21:61]).mean() > 10
    assert np.abs(ours - whole[10:40, 22:62]).mean() > 10


@given(windows(), st.tuples(sides, sides), st.sampled_from(["4:4:4", "grey", "PNG"]), st.integers(1, 8))
@settings(max_examples=60)
def test_without_scaling_only_what_is_decoded_changes(shape: tuple, size: tuple[int, int], kind: str, orientation: int):
    source, corner, window = shape
    file = encoded(stored(made(*source), orientation), kind)
    changes, options = cropped(corner, window), {"scaled": False, "png": kind == "PNG", "orientation": orientation}
    ours = decoded(file, as_stored(changes, source, orientation, size), size, **options).numpy()
    assert np.abs(ours - sampled(decode_image(file, orientation).numpy(), changes, size)).max() < 0.02


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "PNG"])
def test_a_window_beyond_the_image_and_damaged_bytes_raise(kind: str):
    file, decoder = encoded(made(40, 30), kind), tf.constant(len(sampling.RATIOS) if kind == "PNG" else 0)
    inside = staged(cropped((0, 0), (40, 30)), (40, 30), png=kind == "PNG", scaled=False)
    assert sampling.decode_window(file, inside["window"][0], decoder, scaled=False).shape == (40, 30, 3)
    for window in ([0, 0, 41, 30], [1, 0, 40, 30], [0, 0, 40, 31], [0, 30, 40, 1]):
        outside = inside["window"].numpy()[0]
        outside[:4] = window
        with pytest.raises(tf.errors.InvalidArgumentError):
            sampling.decode_window(file, outside, decoder, scaled=False)
    for damaged in (b"", file[:-60], b"<html>"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            sampling.decode_window(damaged, inside["window"][0], decoder, scaled=False)


# Made smaller by the decoder


def scaled_differences(file: bytes, size: tuple[int, int], ratio: int, *, shift: int = 0) -> list[float]:
    """Mean differences of what the decoder made smaller from the same part of the image, averaged, for three windows."""
    image, means = decode_image(file).numpy(), []
    height, width = image.shape[:2]
    window = [min(int(side * 1.3) * ratio, have // ratio * ratio) for side, have in zip(size, (height, width), strict=True)]
    for places in [(0.5, 0.5), (0.1, 0.8), (0.83, 0.21)]:
        rooms = [have - part for have, part in zip((height, width), window, strict=True)]
        top, left = (int(room * place) // ratio * ratio for room, place in zip(rooms, places, strict=True))
        changes = cropped((top, left), window)
        assert ratio_of(changes, size) == ratio
        part = image[top + shift : top + shift + window[0], left : left + window[1]]
        expected = tf.image.resize(part, size, antialias=True).numpy()
        means.append(float(np.abs(decoded(file, changes, size, scaled=True).numpy() - expected).mean()))
    return means


@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("kind", ["4:4:4", "4:2:2", "4:2:0", "grey", "CMYK"])
def test_scaled_decoding_is_in_place(kind: str, ratio: int):
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((643, 421), 3)
    file = encoded(np.asarray(smooth), kind)
    size = (421 // ratio // 2, 643 // ratio // 2)
    right = max(scaled_differences(file, size, ratio))
    # Chroma of 4:2:2 is not smoothed by the decoder at 1/8.
    assert right < {2: 0.5, 4: 0.8, 8: 3.2 if kind == "4:2:2" else 1.1}[ratio]
    assert min(scaled_differences(file, size, ratio, shift=ratio)) > 2 * right  # twin: a pixel off


@pytest.mark.parametrize(("ratio", "most"), [(2, 1.1), (4, 1.7), (8, 2.2)])
def test_scaled_decoding_of_camera_photos_differs_by_a_level_or_two(test_data: Path, ratio: int, most: float):
    # Measured on all 14, three windows each: 0.76, 1.17 and 1.56 levels on average, 2.0, 3.1 and
    # 3.9 for the worst window. Of windows that do not lie on the decoder's pixels, which are moved
    # by up to half of one: 3 to 5, at worst 12.
    files = sorted((test_data / "large").iterdir())[::3]
    assert len(files) >= 4
    means = [mean for file in files for mean in scaled_differences(file.read_bytes(), (224, 224), ratio)]
    assert np.mean(means) < most
    assert max(means) < 4.2


def test_real_photos_are_decoded_in_part_as_in_whole(test_data: Path):
    # 4:2:0 as most photos: but for the outer columns; and what these do to a result is little.
    for number in range(1, 9):
        file = (test_data / "cats_dogs" / "train" / f"cat.{number}.jpg").read_bytes()
        whole = decode_image(file).numpy()
        height, width = (side // 2 - number for side in whole.shape[:2])
        changes = cropped((number, 3 * number), (height, width))
        ours = decoded(file, changes, (height, width), scaled=False).numpy()
        part = whole[number : number + height, 3 * number : 3 * number + width]
        assert (ours[:, 1:-1] == part[:, 1:-1]).all()
        assert np.abs(ours - part).mean() < 0.05


def test_real_exif_files_are_sampled_upright(test_data: Path):
    files = sorted((test_data / "jpeg" / "exif_orientation_recurser").glob("*.jpg"))
    turned = 0
    for path in files:
        file = path.read_bytes()
        with Image.open(path) as image:
            orientation = image.getexif().get(0x0112, 1) or 1  # two say 0; records say 1 of them
        upright = decode_image(file, orientation).numpy()
        source, size = upright.shape[:2], (60, 90)
        changes = cropped((source[0] // 3, source[1] // 5), (source[0] // 2, source[1] // 2))
        ours = decoded(file, as_stored(changes, source, orientation, size), size, orientation=orientation, scaled=False)
        difference = np.abs(ours.numpy() - sampled(upright, changes, size))
        assert difference[2:-2, 2:-2].max() < 0.02
        assert difference.mean() < 0.1
        turned += orientation > 1
    assert turned >= 14
