"""Near-duplicates: what is found, what is not, and by what."""

import io

import numpy as np
import pytest
from PIL import Image
from report_fixtures import jpeg, make_classifier, write_splits

from tfpipe.common.errors import DataError
from tfpipe.evaluation import near_duplicates
from tfpipe.records.catalog import read_catalog
from tfpipe.verification import alignment

pytestmark = pytest.mark.tf


def textured(seed, side=96):
    """An image with detail at several scales, as photographs have."""
    random = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC), float
        )
        for n in (3, 7, 15)
    ]
    return np.uint8(layers[0] * 0.5 + layers[1] * 0.3 + layers[2] * 0.2)


def similarity(one, other):
    grey = near_duplicates.shrink(np.stack([one, other]))
    cells = alignment._standardised(alignment._window(grey[:1], 0, 0))
    _, shifts = alignment._align(cells, alignment._windows(grey[1:]), np.ones((1, 1), bool))
    return float(alignment._refine(cells, grey[1:], np.zeros(1, np.int64), shifts[0])[0])


def reencoded(image, quality):
    return np.asarray(Image.open(io.BytesIO(jpeg(image, quality=quality))))


@pytest.mark.parametrize("seed", range(5))
def test_an_image_is_its_own_near_duplicate_reencoded_brighter_or_shifted(seed):
    image = textured(seed)
    wide = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    changed = {
        "itself": image,
        "quality 40": reencoded(image, 40),
        "half the contrast": np.uint8(image * 0.5 + 60),
        **{f"moved {y} {x}": wide[4 + y : 100 + y, 4 + x : 100 + x] for y, x in ((0, 1), (2, -1), (-3, 3), (4, 0))},
    }
    found = {name: similarity(image, other) for name, other in changed.items()}
    assert found["itself"] == pytest.approx(1, abs=1e-6)
    assert {name: value for name, value in found.items() if value < alignment.SIMILARITY} == {}


def test_different_images_are_not_near_duplicates_and_neither_are_plain_ones():
    values = [similarity(textured(a), textured(a + 100)) for a in range(30)]
    assert max(values) < 0.95
    grey = np.full((32, 32, 3), 128, np.uint8)
    assert similarity(grey, grey) == 0
    assert similarity(textured(0), 255 - textured(0)) < 0
    assert similarity(textured(0), textured(0)[:, ::-1]) < 0.95


def test_pairs_are_refined_together_as_each_alone_by_least_squares():
    ramp = np.tile(np.arange(96, dtype=np.uint8)[:, np.newaxis, np.newaxis], (1, 96, 3))  # one gradient says nothing
    images = [textured(seed) for seed in range(5)] + [np.uint8(textured(0) * 0.05), ramp, ramp * 0 + 7]
    grey = near_duplicates.shrink(np.stack([*images, *(np.roll(image, 1, axis=1) for image in images)])).astype(float)
    cells = alignment._standardised(alignment._window(grey, 0, 0))
    one, other = np.indices((len(grey), len(grey))).reshape(2, -1)
    _, shifts = alignment._align(cells, alignment._windows(grey), np.ones((len(grey), len(grey)), bool))
    found = alignment._refine(cells[one], grey, other, shifts[one, other])
    for a, b, similarity in zip(one, other, found, strict=True):
        design = alignment._design(grey[b : b + 1], *alignment._SHIFTS[shifts[a, b]])[0]
        weights = np.linalg.lstsq(design, cells[a], rcond=None)[0]
        expected = cells[a] @ alignment._standardised(design[:, 0])
        if np.abs(weights[1:]).max() < weights[0] / 2:
            expected = max(expected, cells[a] @ design @ weights / np.linalg.norm(design @ weights))
        assert similarity == pytest.approx(min(1, expected), abs=1e-9)


def test_no_shift_correlates_by_more_than_the_screen_allows():
    noise = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8)
    ramp = np.tile(np.arange(96, dtype=np.uint8)[:, np.newaxis, np.newaxis] * 2, (1, 96, 3))
    bowl = np.uint8(ramp.astype(int) * ramp.transpose(1, 0, 2) // 255)
    images = [
        ramp,
        bowl,
        *(textured(seed) for seed in range(6)),
        *noise,
        np.full((96, 96, 3), 9, np.uint8),
        np.uint8(textured(0) * 0.03),
    ]
    grey = near_duplicates.shrink(np.stack([*images, *(np.roll(image, (2, -3), axis=(0, 1)) for image in images)]))
    windows = alignment._windows(grey)
    # Beside images, what makes the bound tight: the way from a group's centre to each of its
    # windows.
    centres = np.zeros_like(windows)
    for group in alignment._GROUPS:
        centres[:, group] = windows[:, group].mean(axis=1, keepdims=True)
    ways = (windows - centres)[:8].reshape(-1, windows.shape[-1])
    ways /= np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-3)
    cells = np.concatenate([windows[:, alignment._SHIFTS.index((0, 0))], ways])
    exact = np.einsum("qc,bsc->qsb", cells, windows)
    most = alignment._project(cells, np.ones((len(cells), 1), np.float32)) @ alignment._bounds(windows)
    for index, group in enumerate(alignment._GROUPS):
        part = most[:, index * len(grey) : (index + 1) * len(grey)]
        assert (exact[:, group].max(axis=1) <= part + alignment._ROUNDING).all()
    plain = alignment._project(cells, np.zeros((len(cells), 1), np.float32))
    assert (plain @ plain.T >= cells @ cells.T - alignment._ROUNDING).all()
    np.testing.assert_allclose((plain * plain).sum(axis=1), (cells * cells).sum(axis=1), atol=1e-5)
    assert sorted(place for group in alignment._GROUPS for place in group) == list(range(len(alignment._SHIFTS)))


def test_nearly_all_pairs_of_different_images_are_settled_by_the_screen(tmp_path, monkeypatch):
    images = {"train": [jpeg(textured(seed, 48)) for seed in range(40)], "test": [jpeg(textured(39, 48))]}
    images["test"] += [jpeg(textured(seed, 48)) for seed in range(100, 139)]
    data, compared, align = write_splits(tmp_path, images), [], alignment._align

    def counted(cells, windows, near):
        compared.append(int(near.sum()))
        return align(cells, windows, near)

    monkeypatch.setattr(alignment, "_align", counted)
    pairs = near_duplicates.find_near_duplicates(make_classifier(["cat", "dog"], side=48), data, "test", progress=False)
    assert [(pair.key, pair.other) for pair in pairs] == [("test/0.jpg", "train/39.jpg")]
    assert 1 <= sum(compared) <= 40 * 40 / 20


def test_progress_reports_what_is_looked_for_and_where(splits, caplog):
    caplog.set_level("INFO", "tfpipe")
    near_duplicates.find_near_duplicates(make_classifier(["cat", "dog"], side=48), splits, "test")
    assert "near-duplicates of test in train, val: 13 of 13 records" in caplog.text


def test_similar_frames_need_bounded_memory(splits, monkeypatch):
    monkeypatch.setattr(alignment, "_MAX_PAIRS", 3)
    monkeypatch.setattr(alignment, "COARSE", -2.0)
    sizes, refine = [], alignment._refine
    monkeypatch.setattr(alignment, "_refine", lambda cells, *rest: sizes.append(len(cells)) or refine(cells, *rest))
    pairs = near_duplicates.find_near_duplicates(make_classifier(["cat", "dog"], side=48), splits, "test", progress=False)
    assert sorted(pair.key for pair in pairs) == ["test/0.jpg", "test/1.jpg", "test/2.jpg"]
    assert max(sizes) == 3


def similar(image):
    return np.uint8(image * 0.88 + textured(52, len(image)) * 0.12)


def test_similar_images_are_not_near_duplicates():
    assert alignment.COARSE < similarity(textured(3, 48), similar(textured(3, 48))) < alignment.SIMILARITY


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """test: 0 copied byte for byte in val; 1 shifted, 2 encoded anew and 3 with another one shining through in train."""
    images = [textured(seed, 48) for seed in range(6)]
    moved = np.roll(images[1], 1, axis=1)
    images_of = {
        "train": [textured(50, 48), moved, textured(51, 48), reencoded(images[2], 60), similar(images[3])],
        "val": [textured(60, 48), images[0]],
        "test": images,
        "other": images,
    }
    return write_splits(
        tmp_path_factory.mktemp("near_duplicates"), {split: [jpeg(image) for image in of] for split, of in images_of.items()}
    )


def test_find_near_duplicates(splits):
    classifier = make_classifier(["cat", "dog"], side=48)
    pairs = near_duplicates.find_near_duplicates(classifier, splits, "test", batch_size=4, progress=False)
    order = [row.key for row in read_catalog(splits, split="test")]
    assert [order.index(pair.key) for pair in pairs] == sorted(order.index(pair.key) for pair in pairs)
    found = {pair.key: pair for pair in pairs}
    assert sorted((key, pair.other, pair.split, pair.identical) for key, pair in found.items()) == [
        ("test/0.jpg", "val/1.jpg", "val", True),
        ("test/1.jpg", "train/1.jpg", "train", False),
        ("test/2.jpg", "train/3.jpg", "train", False),
    ]
    assert found["test/0.jpg"].similarity == 1
    assert alignment.SIMILARITY <= found["test/1.jpg"].similarity <= 1
    again = near_duplicates.find_near_duplicates(classifier, splits, "test", batch_size=64, progress=False)
    assert [(pair.key, pair.other) for pair in again] == [(pair.key, pair.other) for pair in pairs]


def test_splits_to_compare_with(splits):
    classifier = make_classifier(["cat", "dog"], side=48)
    only = near_duplicates.find_near_duplicates(classifier, splits, "test", against=["val"], progress=False)
    assert [pair.key for pair in only] == ["test/0.jpg"]
    assert len(near_duplicates.find_near_duplicates(classifier, splits, "test", against=["other"], progress=False)) == 6
    assert near_duplicates.find_near_duplicates(classifier, splits, "test", against=[], progress=False) == []
    assert near_duplicates.training_splits(splits, "val") == ("train",)
    with pytest.raises(ValueError, match="cannot be compared with itself"):
        near_duplicates.find_near_duplicates(classifier, splits, "test", against=["test"])


def test_features_that_collapse_find_no_pair_and_features_that_differ_exclude(splits, monkeypatch):
    classifier = make_classifier(["cat", "dog"], side=48)

    def with_features(make):
        def predict(self, images):
            return None, make(len(images)).astype(np.float32)

        monkeypatch.setattr(type(classifier), "predict_with_features", predict)
        return sorted(pair.key for pair in near_duplicates.find_near_duplicates(classifier, splits, "test", progress=False))

    assert with_features(lambda count: np.ones((count, 3))) == ["test/0.jpg", "test/1.jpg", "test/2.jpg"]
    assert with_features(lambda count: np.full((count, 3), np.nan)) == ["test/0.jpg", "test/1.jpg", "test/2.jpg"]
    signs = iter((1, -1, -1))  # the split's, then the others'
    assert with_features(lambda count: np.full((count, 3), next(signs))) == ["test/0.jpg"]  # equal bytes in any case


def test_features_are_computed_only_of_what_looks_alike(splits, monkeypatch):
    classifier, computed = make_classifier(["cat", "dog"], side=48), []
    predict = type(classifier).predict_with_features

    def counted(self, images):
        computed.append(len(images))
        return predict(self, images)

    monkeypatch.setattr(type(classifier), "predict_with_features", counted)
    pairs = near_duplicates.find_near_duplicates(classifier, splits, "test", progress=False, batch_size=2)
    # test/1 and its near-duplicate in a batch, test/2 and its own in the next; test/0 has a copy.
    assert (computed, len(pairs)) == ([1, 1, 1, 1], 3)
    computed.clear()
    assert len(near_duplicates.find_near_duplicates(classifier, splits, "test", against=["other"], progress=False)) == 6
    assert computed == []  # their bytes are equal


def test_dead_features_do_not_divide_by_zero(splits, recwarn):
    classifier = make_classifier(["cat", "dog"], side=48)
    for weight in classifier.trunk.weights:
        weight.assign(weight * 0)
    assert [pair.key for pair in near_duplicates.find_near_duplicates(classifier, splits, "test", progress=False)] == [
        "test/0.jpg"
    ]
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_damaged_record_is_an_error_that_reports_where(tmp_path):
    data = write_splits(tmp_path, {split: [jpeg(textured(seed, 24))] for seed, split in enumerate(("train", "test"))})
    (shard,) = data.glob("*train*.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="train") as caught:
        near_duplicates.find_near_duplicates(make_classifier(["cat", "dog"], side=24), data, "test", progress=False)
    assert "{{" not in str(caught.value)


def test_signs_has_the_near_duplicates_that_its_readme_counts(test_data, tmp_path):
    names = sorted((test_data / "signs").glob("*_signs/*.jpg"))
    # All of class 0, where every near-duplicate is, and a third of the others.
    chosen = [path for index, path in enumerate(names) if path.name.startswith("0") or index % 3 == 0]
    images = {
        split: [path.read_bytes() for path in chosen if path.parent.name == f"{split}_signs"]
        for split in ("train", "val", "test")
    }
    data = write_splits(tmp_path, images)
    found = near_duplicates.find_near_duplicates(make_classifier(["cat", "dog"], side=64), data, "test", progress=False)
    assert (len(found), sum(pair.identical for pair in found)) == (14, 12)
