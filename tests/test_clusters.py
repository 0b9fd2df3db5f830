"""Intervals and tests by group: they hold where those by image do not, and are those by image where groups are images."""

import dataclasses
import math

import numpy as np
import pytest
from evaluation_fixtures import make_table, random_table
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from tfpipe.common.errors import DataError
from tfpipe.evaluation import label_metrics
from tfpipe.evaluation.clusters import Groups, agresti_min, wilson
from tfpipe.evaluation.mcnemar import compare
from tfpipe.evaluation.metrics import measure
from tfpipe.models import predictions

pytestmark = pytest.mark.tf


def patients(random, num_groups, spread, size=20):
    """Right answers of patients who are easy or hard; True is as likely as `mean` on average."""
    rates = random.beta(0.8 / spread, 0.2 / spread, num_groups)
    sizes = random.integers(1, size, num_groups)
    names = np.repeat([f"p{index:03d}" for index in range(num_groups)], sizes)
    return names, random.random(len(names)) < np.repeat(rates, sizes)


def test_intervals_by_group_hold_the_true_accuracy_where_those_by_image_do_not():
    random, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(200):
        names, right = patients(random, 30, spread=0.5)
        for place, (low, high) in enumerate((Groups(names).interval(right), wilson(right.sum(), len(right)))):
            held[place] += low <= 0.8 <= high
    assert held[0] >= 0.9 * 200
    assert held[1] < 0.8 * 200


def test_the_interval_of_images_that_are_their_own_groups_is_nearly_wilsons():
    right = np.arange(400) % 10 > 1
    found = Groups([str(index) for index in range(400)]).interval(right)
    assert found == pytest.approx(wilson(320, 400), abs=0.006)


def test_an_interval_is_never_narrower_than_its_groups_allow():
    names = ["a"] * 50 + ["b"] * 50
    assert Groups(names).interval(np.ones(100, bool)) == wilson(2, 2)  # two patients, both right, are two answers
    assert Groups(names).interval(np.zeros(100, bool)) == wilson(0, 2)
    assert Groups(["a"] * 100).interval(np.ones(100, bool)) == [0, 1]
    assert Groups(names).interval(np.ones(100, bool), np.zeros(100, bool)) is None
    one = np.arange(100) < 50
    assert Groups(names).interval(one, one) == [0, 1]


@given(seed=st.integers(0, 1000), size=st.integers(1, 40))
def test_the_test_by_group_is_mcnemars_where_each_image_is_a_group(seed, size):
    kinds = np.random.default_rng(seed).integers(4, size=size)
    only_a, only_b = kinds == 1, kinds == 2
    num_a, num_b = int(only_a.sum()), int(only_b.sum())
    expected = binomtest(num_a, num_a + num_b).pvalue if num_a + num_b else 1.0
    assert Groups([str(index) for index in range(size)]).p_value(only_a, only_b) == pytest.approx(expected, rel=1e-9)


@given(seed=st.integers(0, 1000), num_groups=st.integers(1, 9))
def test_the_test_by_group_counts_all_signs(seed, num_groups):
    random = np.random.default_rng(seed)
    names, kinds = random.integers(num_groups, size=30).astype(str), random.integers(3, size=30)
    groups = Groups(names)
    differences = groups.sums(kinds == 1) - groups.sums(kinds == 2)
    signs = 1 - 2 * (np.arange(2**groups.count)[:, np.newaxis] >> np.arange(groups.count) & 1)
    as_far = (np.abs(signs @ differences) >= abs(differences.sum())).mean()
    assert groups.p_value(kinds == 1, kinds == 2) == pytest.approx(as_far)
    assert groups.p_value(kinds == 2, kinds == 1) == pytest.approx(as_far)


def test_equal_classifiers_are_told_apart_as_rarely_as_promised_and_by_image_too_often():
    random, rejected = np.random.default_rng(2), np.zeros(2)
    for _ in range(300):
        names, only_a = patients(random, 12, spread=2.0)
        only_a = np.repeat(random.random(12) < 0.5, np.unique(names, return_counts=True)[1])  # who is better: by patient
        rejected += [Groups(names).p_value(only_a, ~only_a) < 0.05, binomtest(only_a.sum(), len(names)).pvalue < 0.05]
    assert rejected[0] <= 0.05 * 300 + 2 * math.sqrt(300 * 0.05 * 0.95)
    assert rejected[1] > 0.4 * 300


def test_the_limit_for_many_groups_is_near_the_exact_value(monkeypatch):
    names, right = patients(np.random.default_rng(3), 200, spread=0.5)
    only_a, only_b = right & (np.arange(len(right)) % 3 > 0), ~right
    exact = Groups(names).p_value(only_a, only_b & (np.arange(len(right)) % 2 > 0))
    monkeypatch.setattr("tfpipe.evaluation.clusters._MOST", 0)
    assert Groups(names).p_value(only_a, only_b & (np.arange(len(right)) % 2 > 0)) == pytest.approx(exact, abs=0.02)


def test_a_difference_of_nothing_is_not_certain():
    nothing = np.zeros(100, bool)
    names = [str(index // 10) for index in range(100)]
    assert Groups(names).difference_interval(nothing, nothing) == agresti_min(0, 0, 10)
    assert Groups(["a"] * 100).difference_interval(nothing, ~nothing) == (-1, 1)


def test_tables_keep_groups_and_metrics_say_how_intervals_were_found(tmp_path):
    plain = random_table(0, 60, 2)
    table = dataclasses.replace(plain, groups=[f"=g{index % 7}" for index in range(60)])
    (tmp_path / "a.csv").write_bytes(b"".join(predictions.chunks(table)))
    assert (tmp_path / "a.csv").read_text("utf-8").splitlines()[0].endswith(",group")
    again = predictions.read(tmp_path / "a.csv")
    assert again.groups == table.groups
    found, without = measure(again), measure(plain)
    assert found["groups"]["num_groups"] == 7
    assert "cluster bootstrap" in found["groups"]["interval"]
    assert "groups" not in without
    assert found["accuracy"] == without["accuracy"]
    assert found["accuracy_interval"] != without["accuracy_interval"]
    for name in ("sensitivity_interval", "specificity_interval"):
        binary = [one["binary"]["sensitivity_at_specificity"] for one in (found, without)]
        assert binary[0][name] != binary[1][name]
    order = np.random.default_rng(0).permutation(60)
    texts = {name: [getattr(table, name)[i] for i in order] for name in ("keys", "filenames", "groups")}
    shuffled = dataclasses.replace(table, **texts, labels=table.labels[order], probabilities=table.probabilities[order])
    assert measure(shuffled) == found


def test_compare_is_by_group_and_refuses_other_groups(tmp_path):
    rights = [1] * 30 + [0] * 10
    table = make_table([0] * 40, [[0.9, 0.1] if right else [0.2, 0.8] for right in rights], ["a", "b"])
    other = make_table([0] * 40, [[0.9, 0.1]] * 25 + [[0.2, 0.8]] * 15, ["a", "b"])
    names = [f"p{index // 5}" for index in range(40)]
    save = {}
    for name, one, groups in (("a", table, names), ("b", other, names), ("c", other, None), ("d", other, ["q"] * 40)):
        save[name] = tmp_path / f"{name}.csv"
        save[name].write_bytes(b"".join(predictions.chunks(dataclasses.replace(one, groups=groups))))
    found = compare(save["a"], save["b"])
    assert (found.num_groups, found.only_a, found.p_value) == (8, 5, 1.0)  # one patient is all that differs
    assert found.difference_interval[0] <= 0 < found.difference_interval[1]
    assert compare(save["a"], save["c"]).p_value == 1.0
    with pytest.raises(DataError, match="40 images are of other groups in one table"):
        compare(save["a"], save["d"])
    plain = compare(save["c"], save["c"])
    assert plain.num_groups is None
    assert "num_groups=8" in repr(found)


def test_intervals_of_several_labels_are_by_group_too():
    random = np.random.default_rng(5)
    targets, scores = random.integers(0, 2, (60, 2), np.int8), random.random((60, 2), np.float32)
    # Twelve copies of five images are no more than the five.
    table = predictions.of_several_labels(
        [str(index) for index in range(60)], [""] * 60, np.tile(targets[:5], (12, 1)), np.tile(scores[:5], (12, 1)), ["a", "b"]
    )
    by_image = label_metrics.measure(table, num_resamples=200)
    by_group = label_metrics.measure(
        dataclasses.replace(table, groups=[f"g{index % 5}" for index in range(60)]), num_resamples=200
    )
    assert by_group["groups"]["num_groups"] == 5
    assert "groups" not in by_image
    assert by_group["macro_f1"] == by_image["macro_f1"]
    widths = [np.diff(found["macro_f1_interval"])[0] for found in (by_image, by_group)]
    assert widths[1] > 2 * widths[0]


def labels_of(random, num_groups, size=8):
    """A table of one label an image, whose groups are easy or hard."""
    truth = np.tile([0, 1], num_groups * size // 2)
    effects = np.repeat(random.normal(size=num_groups), size)
    logits = (2 * truth - 1) * (0.5 + 0.8 * effects) + random.normal(size=len(truth))
    names, scores = [f"{index:05d}" for index in range(len(truth))], np.float32(1 / (1 + np.exp(-logits)))
    table = predictions.of_several_labels(names, names, np.int8(truth[:, None]), scores[:, None], ["a"])
    return dataclasses.replace(table, groups=[f"g{index // size}" for index in range(len(truth))])


def test_intervals_of_several_labels_hold_with_few_groups():
    random = np.random.default_rng(0)
    truth = label_metrics.measure(labels_of(random, 10_000), num_resamples=1)["macro_auc"]
    held = 0
    for _ in range(300):
        low, high = label_metrics.measure(labels_of(random, 5), num_resamples=300)["macro_auc_interval"]
        held += low <= truth <= high
    assert held >= 0.9 * 300  # of percentiles as they are 0.81


def test_intervals_of_several_labels_are_not_certain_where_draws_do_not_vary():
    targets, names = np.tile(np.int8([[1, 1], [0, 0]]), (5, 1)), [f"{index}" for index in range(10)]
    groups = [f"g{index // 2}" for index in range(10)]
    for scores, value in ((targets, 1.0), (1 - targets, 0.0)):
        table = predictions.of_several_labels(names, names, targets, np.float32(scores), ["a", "b"])
        found = label_metrics.measure(dataclasses.replace(table, groups=groups), num_resamples=50)
        for row in (found, *found["per_class"]):
            for metric in ("auc", "f1"):
                name = metric if row is not found else f"macro_{metric}"
                assert row[name] == value
                assert row[f"{name}_interval"] == wilson(round(5 * value), 5)
        alone = label_metrics.measure(dataclasses.replace(table, groups=["g"] * 10), num_resamples=50)
        assert alone["macro_auc_interval"] == [0.0, 1.0]
