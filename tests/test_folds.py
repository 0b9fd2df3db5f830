"""Folds: equal parts of a data set, and which of them train, validate and are held out."""

from fractions import Fraction

import pytest
from fold_fixtures import *  # noqa: F403 (fixtures)
from fold_fixtures import COUNTS, FOLDS, NUM_FOLDS, OPTIONS
from transfer_fixtures import CLASS_NAMES

import tfpipe
from tfpipe.records import catalog, folds, manifest

# ---- the splits


def test_folds_are_equal_parts_of_every_class(shards):
    account = manifest.load(shards)
    assert list(account.splits) == ["test", *FOLDS]
    assert account.options["splits"] == {"test": 0.2, **dict.fromkeys(FOLDS, "1/5")}
    for name, count in COUNTS.items():
        of_folds = [account.splits[fold].class_counts[name] for fold in FOLDS]
        assert max(of_folds) - min(of_folds) <= 1
        assert abs(account.splits["test"].class_counts[name] - count / 5) < 1
        assert sum(of_folds) == count - account.splits["test"].class_counts[name]


def test_folds_are_the_same_for_the_same_seed(shards, photos, tmp_path):
    def fold_of(folder):
        return {row.key: row.split for row in catalog.read_catalog(folder)}

    given = {"splits": {"folds": NUM_FOLDS, "test": 0.2}, **OPTIONS}
    again = tfpipe.build_tfrecords(photos, tmp_path / "again", **given)
    assert again.root_hash == manifest.load(shards).root_hash
    tfpipe.build_tfrecords(photos, tmp_path / "other", **given, seed=1)
    assert fold_of(tmp_path / "other") != fold_of(shards)


def test_the_fractions_of_folds_are_exact():
    for number in range(2, 101):
        fractions = folds.expand(number, {"test": 0.1})
        assert sum(Fraction(str(value)) for value in fractions.values()) == 1
        assert len({value for name, value in fractions.items() if name != "test"}) == 1
    assert folds.split_off({"folds": 1}) == (0, {"folds": 1})  # a split of that name
    assert folds.split_off({"folds": 0.5, "train": 0.5})[0] == 0


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"folds": 2.5}, "folds must be a whole number"),
        ({"folds": 101}, "from 2 to 100"),
        ({"folds": 5, "train": 0.1}, "take the place of train"),
        ({"folds": 5, "fold0": 0.1}, "take the place of fold0"),
        ({"folds": 5, "test": 1}, "nothing is left for the folds"),
    ],
)
def test_wrong_folds_are_refused(photos, tmp_path, splits, message):
    with pytest.raises(ValueError, match=message):
        tfpipe.build_tfrecords(photos, tmp_path / "out", splits=splits, **OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "splits", [["fold0", "fold1", "fold2"], FOLDS, [f"fold{i}" for i in range(11)], ["val", "fold0", "fold1"]]
)
def test_the_fold_that_is_held_out_neither_trains_nor_validates(splits):
    planned = folds.plan(splits, "x")
    assert [fold.held_out for fold in planned] == [name for name in splits if name != "val"]  # fold10 is the last
    for fold in planned:
        used = [*fold.train.split("+"), fold.val, fold.held_out]
        assert sorted(used) == sorted(splits)  # each has one use


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "test"], "has no folds.*splits=folds=5"),
        (["fold0"], "has no folds"),
        (["fold0", "fold1"], "none is left to validate with"),
        (["fold0", "fold1", "fold2", "fold4"], "the fold before fold4 is missing"),
    ],
)
def test_data_sets_without_folds_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        folds.plan(splits, "x")


def test_splits_are_joined_in_the_order_of_the_catalog(shards):
    account = manifest.load(shards)
    joined, apart = account.split("fold2+fold0"), [account.splits[name] for name in ("fold0", "fold2")]
    assert joined.shards == apart[0].shards + apart[1].shards
    assert joined.num_records == sum(split.num_records for split in apart)
    assert joined.class_counts == {name: sum(split.class_counts[name] for split in apart) for name in CLASS_NAMES}
    rows = [list(catalog.read_checked(shards, split=name)) for name in ("fold2+fold0", "fold0", "fold2")]
    assert rows[0] == rows[1] + rows[2]
    for name, message in [("fold0+fold0", "twice"), ("fold0+", "one of"), ("fold0+nothing", "one of")]:
        with pytest.raises(ValueError, match=message):
            account.split(name)
