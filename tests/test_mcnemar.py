"""McNemar's test: equal images, equal labels, and a verdict that does not depend on who is called A."""

import dataclasses
import json

import numpy as np
import pytest
from evaluation_fixtures import make_table, random_table
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tfpipe.common.errors import DataError
from tfpipe.common.text import hash_names
from tfpipe.evaluation.mcnemar import Comparison, compare
from tfpipe.models import predictions

pytestmark = pytest.mark.tf


def save(path, table):
    path.write_bytes(b"".join(predictions.chunks(table)))
    return path


def two_columns(rights):
    """A table of label 0 with predictions that are right or wrong."""
    return make_table([0] * len(rights), [[0.9, 0.1] if right else [0.2, 0.8] for right in rights], ["a", "b"])


def test_hand_made_counts(tmp_path):
    a = save(tmp_path / "a.csv", two_columns([1, 1, 1, 1, 1, 1, 0, 0, 0, 1]))
    b = save(tmp_path / "b.csv", two_columns([1, 1, 0, 0, 0, 0, 1, 0, 0, 0]))
    found = compare(a, b)
    assert (found.both_right, found.only_a, found.only_b, found.both_wrong) == (2, 5, 1, 2)
    assert (found.count, found.accuracy_a, found.accuracy_b) == (10, 0.7, 0.3)
    assert found.difference == pytest.approx(0.4)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # 0 or 1 of 6 fair coins, either way
    low, high = found.difference_interval
    # 2.5, 5.5, 1.5, 2.5 of 12: 4/12 -+ 1.96 * sqrt(7 - 16/12) / 12
    assert (low, high) == pytest.approx((1 / 3 - 0.38880, 1 / 3 + 0.38880), abs=1e-4)


@given(seed=st.integers(0, 10_000), num_rows=st.integers(1, 30))
def test_compare_is_symmetric_and_ignores_the_order(tmp_path_factory, seed, num_rows):
    folder = tmp_path_factory.mktemp("compare")
    a, b = random_table(seed, num_rows, 3), random_table(seed + 1, num_rows, 3)
    b = dataclasses.replace(b, labels=a.labels)
    both_right = ((a.predicted == a.labels) & (b.predicted == b.labels)).sum()
    order = np.random.default_rng(seed).permutation(num_rows)
    shuffled = {name: [getattr(b, name)[i] for i in order] for name in ("keys", "filenames")}
    b = dataclasses.replace(b, **shuffled, labels=b.labels[order], probabilities=b.probabilities[order])
    one = compare(save(folder / "a.csv", a), save(folder / "b.csv", b))
    other = compare(folder / "b.csv", folder / "a.csv")
    assert (one.only_a, one.only_b, one.both_right, one.both_wrong) == (
        other.only_b,
        other.only_a,
        other.both_right,
        other.both_wrong,
    )
    assert one.both_right == both_right
    assert one.p_value == other.p_value
    assert one.difference == -other.difference
    assert one.difference_interval == pytest.approx([-end for end in reversed(other.difference_interval)])
    assert one.accuracy_a == np.mean(a.predicted == a.labels) == other.accuracy_b
    assert one.difference_interval[0] <= one.difference <= one.difference_interval[1]


@given(only_a=st.integers(0, 40), only_b=st.integers(0, 40))
def test_p_value_is_the_two_sided_binomial_tail(tmp_path_factory, only_a, only_b):
    folder = tmp_path_factory.mktemp("tail")
    rights_a, rights_b = [1] * only_a + [0] * only_b + [1], [0] * only_a + [1] * only_b + [1]
    found = compare(save(folder / "a.csv", two_columns(rights_a)), save(folder / "b.csv", two_columns(rights_b)))
    expected = min(1.0, 2 * binom.cdf(min(only_a, only_b), only_a + only_b, 0.5))
    assert found.p_value == pytest.approx(expected)


def test_a_classifier_against_itself(tmp_path):
    path = save(tmp_path / "a.csv", two_columns([1, 1, 0]))
    found = compare(path, path)
    assert (found.p_value, found.difference) == (1.0, 0.0)
    low, high = found.difference_interval
    assert low < 0 < high  # three images prove nothing


def test_classes_may_stand_in_another_order(tmp_path):
    a = save(tmp_path / "a.csv", make_table([0, 1], [[0.9, 0.1], [0.9, 0.1]], ["cat", "dog"]))
    b = save(tmp_path / "b.csv", make_table([2, 0], [[0.1, 0, 0.9], [0.9, 0, 0.1]], ["dog", "owl", "cat"]))
    assert compare(a, b) == Comparison(both_right=1, only_a=0, only_b=1, both_wrong=0, p_value=1.0)


def test_other_images_are_refused_by_name(tmp_path):
    table = two_columns([1] * 6)
    a = save(tmp_path / "a.csv", table)
    for keys, message in [
        (["0", "1", "2", "3", "4", "x"], r"\S*a\.csv: 1 id only here: '5'; \S*b\.csv: 1 id only here: 'x'$"),
        (["u", "v", "w", "x", "4", "5"], r"\S*a\.csv: 4 ids only here: '0', '1', '2', \.\.\.; \S*b\.csv: 4 ids"),
    ]:
        b = save(tmp_path / "b.csv", dataclasses.replace(table, keys=keys))
        with pytest.raises(DataError, match=message):
            compare(a, b)
    b = save(tmp_path / "b.csv", two_columns([1] * 5))
    with pytest.raises(DataError, match=r"not the same images: \S*a\.csv: 1 id only here: '5'$") as caught:
        compare(a, b)
    assert [problem.path for problem in caught.value.problems] == [str(a)]


def test_other_data_cause_a_warning(tmp_path, caplog):
    table = two_columns([1, 1, 0])
    seen = {"records_seen": 3, "ids_sha256": hash_names(table.keys)}
    for name, root, split in [
        ("a", "1" * 64, "test"),
        ("b", "1" * 64, "test"),
        ("c", "2" * 64, "test"),
        ("d", "1" * 64, "val"),
    ]:
        receipt = {**seen, "class_names_sha256": hash_names(["a", "b"]), "data_root_hash": root, "split": split}
        (tmp_path / name).mkdir()
        save(tmp_path / name / "predictions.csv", table)
        (tmp_path / name / "receipt.json").write_text(json.dumps(receipt))
    a = tmp_path / "a"
    assert compare(a, tmp_path / "b").same_data is True
    assert compare(a, tmp_path / "b" / "predictions.csv").same_data is None
    assert not caplog.text
    assert compare(a, tmp_path / "c").same_data is False
    assert f"{a}: data set 111111111111, split 'test'; {tmp_path}/c: data set 222222222222, split 'test'" in caplog.text
    assert compare(tmp_path / "d", a).same_data is False
    assert f"{tmp_path}/d: data set 111111111111, split 'val'; {a}: " in caplog.text


def test_other_labels_are_refused_by_name(tmp_path):
    table = two_columns([1, 1, 1])
    a = save(tmp_path / "a.csv", table)
    b = save(tmp_path / "b.csv", dataclasses.replace(table, labels=np.array([0, 1, 0])))
    with pytest.raises(DataError, match=r"^1 image has another label .*a\.csv: '1' is 'a'; .*b\.csv: '1' is 'b'$") as caught:
        compare(a, b)
    assert [problem.path for problem in caught.value.problems] == [str(a), str(b)]


@pytest.mark.parametrize("labels", [[], [0, -1]])
def test_tables_without_labels_are_refused(tmp_path, labels):
    a = save(tmp_path / "a.csv", make_table(labels, [[0.9, 0.1]] * len(labels) or np.zeros((0, 2)), ["a", "b"]))
    with pytest.raises(DataError, match="without images, or with unlabelled ones"):
        compare(a, a)
