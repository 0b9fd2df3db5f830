"""Metrics and calibration: hand-made numbers, those of scikit-learn, and nothing that depends on the order of rows."""

import dataclasses
import json
import logging
import math
import tracemalloc
import warnings

import numpy as np
import pytest
from evaluation_fixtures import make_table, random_table
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from tfpipe.common.files import write_json
from tfpipe.evaluation.calibration import fit_temperature, scale
from tfpipe.evaluation.metrics import confusion_matrix, load, measure, wilson
from tfpipe.models.predictions import Predictions
from tfpipe.report.figures import matrix_image

pytestmark = pytest.mark.tf

TABLES = st.builds(
    random_table, st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 7), decimals=st.sampled_from([None, 0])
)


def shuffled(table, seed):
    order = np.random.default_rng(seed).permutation(len(table.keys))
    columns = {name: [getattr(table, name)[i] for i in order] for name in ("keys", "filenames")}
    return dataclasses.replace(table, **columns, labels=table.labels[order], probabilities=table.probabilities[order])


def test_hand_made_numbers():
    table = make_table(
        [0, 0, 0, 1, 1, 2],
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1]],
        ["cat", "dog", "owl"],
    )
    found = measure(table)
    assert (found["count"], found["accuracy"]) == (6, 0.5)
    assert found["accuracy_interval"] == pytest.approx([0.18762, 0.81238], abs=1e-5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["top_k"] == {"1": 0.5, "2": 5 / 6}
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, [0.8, 0.6, 0.2, 0.8, 0.4, 0.1])) / 6)
    assert found["confusion"] == {
        "class_names": ["cat", "dog", "owl"],
        "cells": [[0, 0, 2], [0, 1, 1], [1, 0, 1], [1, 1, 1], [2, 1, 1]],
    }
    cat, dog, owl = found["per_class"]
    assert (cat["class_name"], cat["precision"], cat["recall"], cat["support"], cat["predicted"]) == ("cat", 2 / 3, 2 / 3, 3, 3)
    assert (dog["precision"], dog["recall"], dog["f1"]) == (1 / 3, 1 / 2, 0.4)
    assert (owl["precision"], owl["recall"], owl["f1"], owl["auc"]) == (None, 0.0, 0.0, 0.5)
    assert found["binary"] is None


def test_expected_calibration_error_by_hand():
    # Confidences 0.9, 0.92 (bin 14 of 15), 0.6 (bin 9: (0.5333, 0.6]) and 1.0 (bin 15)
    table = make_table([0, 1, 0, 0], [[0.9, 0.1], [0.92, 0.08], [0.6, 0.4], [1.0, 0.0]])
    found = measure(table)
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.91) + abs(1 - 0.6) + 0) / 4)
    counts = {number: row["count"] for number, row in enumerate(found["reliability"], 1) if row["count"]}
    assert counts in ({9: 1, 14: 2, 15: 1}, {10: 1, 14: 2, 15: 1})  # float32's 0.6 is a little more
    assert found["reliability"][0] == {"low": 0.0, "high": 1 / 15, "count": 0, "confidence": None, "accuracy": None}
    assert found["reliability"][13]["accuracy"] == 0.5


def test_sensitivity_at_a_fixed_specificity_by_hand():
    ill = [0.9, 0.8, 0.7, 0.4, 0.2]
    healthy = [0.85, 0.6, 0.5, 0.3, 0.3, 0.25, 0.1, 0.1, 0.05, 0.01]
    table = make_table([1] * 5 + [0] * 10, [[1 - score, score] for score in ill + healthy], ["healthy", "ill"])
    at = measure(table, specificity=0.9)["binary"]["sensitivity_at_specificity"]
    assert (at["asked"], at["specificity"], at["sensitivity"]) == (0.9, 0.9, 0.6)
    assert at["threshold"] == pytest.approx(0.7)
    assert at["sensitivity_interval"] == wilson(3, 5)
    assert at["specificity_interval"] == wilson(9, 10)
    assert measure(table, specificity=0.1)["binary"]["sensitivity_at_specificity"]["sensitivity"] == 1.0
    at = measure(table, specificity=1.0)["binary"]["sensitivity_at_specificity"]
    assert (at["specificity"], at["sensitivity"]) == (1.0, 0.2)
    assert measure(table, positive_class="healthy")["binary"]["positive_class"] == "healthy"
    hundred = make_table([0] * 100 + [1], [[1 - i / 200, i / 200] for i in range(100)] + [[0.5, 0.5]])
    assert measure(hundred, specificity=0.55)["binary"]["sensitivity_at_specificity"]["specificity"] == 0.55
    highest = make_table([1, 0], [[0.5, 0.5], [0.1, 0.9]])
    at = measure(highest)["binary"]["sensitivity_at_specificity"]
    assert (at["threshold"], at["specificity"], at["sensitivity"]) == (None, 1.0, 0.0)


@given(table=TABLES, specificity=st.floats(0.01, 1))
def test_the_threshold_does_what_it_promises_and_a_lower_one_does_not(table, specificity):
    found = measure(table, positive_class=table.class_names[0], specificity=specificity)["binary"]["sensitivity_at_specificity"]
    scores, truth = table.probabilities[:, 0], table.labels == 0
    threshold = math.inf if found["threshold"] is None else found["threshold"]
    if truth.all():
        assert {value for name, value in found.items() if name != "asked"} == {None}
    elif truth.any():
        assert found["sensitivity"] == (scores[truth] >= threshold).mean()
    else:
        assert found["sensitivity"] is found["sensitivity_interval"] is None
    if not truth.all():
        assert found["specificity"] == (scores[~truth] < threshold).mean() >= specificity - 1e-9
        lower = scores[scores < threshold]
        assert not len(lower) or (scores[~truth] < lower.max()).mean() < specificity


@given(table=TABLES)
def test_metrics_equal_those_of_scikit_learn(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(table, positive_class=table.class_names[-1])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    labels, predicted, classes = table.labels, table.predicted, range(len(table.class_names))
    assert found["accuracy"] == sklearn_metrics.accuracy_score(labels, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of one class
        matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=list(classes))
    assert confusion_matrix(found).toarray().tolist() == matrix.tolist()
    assert all(count for *_, count in found["confusion"]["cells"])
    columns = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=list(classes), zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        ours = [row[name] for row in found["per_class"]]
        assert [math.nan if value is None else value for value in ours] == pytest.approx(column, nan_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    truth, scores = labels == classes[-1], table.probabilities[:, -1]
    if truth.any() and not truth.all():
        assert found["binary"]["roc_auc"] == sklearn_metrics.roc_auc_score(truth, scores)
        assert found["per_class"][-1]["auc"] == found["binary"]["roc_auc"]
        assert found["binary"]["average_precision"] == sklearn_metrics.average_precision_score(truth, scores)
    if len(set(labels.tolist())) == len(classes) > 2:
        rows = table.probabilities / table.probabilities.sum(axis=1, keepdims=True)
        assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, rows, multi_class="ovr"), abs=0.02)
    if len(classes) > 1:
        loss = sklearn_metrics.log_loss(labels, table.probabilities.astype(np.float32), labels=list(classes))
        assert found["log_loss"] == pytest.approx(loss, rel=1e-4)


@given(table=TABLES)
def test_top_k_counts_ranks(table):
    found = measure(table)["top_k"]
    assert list(found) == [str(k) for k in range(1, 6) if k < len(table.class_names)]
    order = np.argsort(-table.probabilities, axis=1, kind="stable")
    for k, value in found.items():
        assert value == np.mean([label in row[: int(k)] for label, row in zip(table.labels, order, strict=True)])
    if found:
        assert found["1"] == measure(table)["accuracy"]


@given(table=TABLES, seed=st.integers(0, 1000))
def test_no_metric_depends_on_the_order_of_rows(table, seed):
    assert measure(shuffled(table, seed)) == measure(table)


@pytest.mark.parametrize("seed", range(5))
def test_no_sum_of_many_rows_depends_on_their_order(seed):
    table = random_table(seed, 500, 2)
    table = dataclasses.replace(table, probabilities=table.probabilities.round(9))  # decimals, as read; float32 adds exactly
    assert measure(shuffled(table, seed)) == measure(table)


@given(table=TABLES)
def test_calibration_error_is_the_weighted_gap(table):
    found = measure(table)
    rows = [row for row in found["reliability"] if row["count"]]
    assert sum(row["count"] for row in rows) == found["count"]
    gaps = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
    assert found["ece"] == pytest.approx(gaps / found["count"])
    assert all(row["low"] < row["confidence"] + 1e-9 <= row["high"] + 2e-9 for row in rows)


def test_a_class_without_images_is_null_and_not_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(make_table([0, 0], [[0.9, 0.1], [0.8, 0.2]]))
    assert (found["auc"], found["per_class"][1]["recall"], found["per_class"][1]["f1"]) == (None, None, None)
    assert (found["binary"]["roc_auc"], found["binary"]["average_precision"]) == (None, None)
    assert found["balanced_accuracy"] == 1.0
    assert measure(make_table([0], [[1.0]]))["top_k"] == {}


def test_a_wrong_answer_given_for_certain_costs_much_but_not_everything():
    assert measure(make_table([0], [[0.0, 1.0]]))["log_loss"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_wilson_against_the_textbook():
    assert wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert wilson(0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert wilson(0, 0) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive_class": "owl"}, r"positive_class must be one of class 0, class 1 \(got 'owl'\)"),
        ({"specificity": 0}, "specificity must be a number, more than 0 and at most 1"),
        ({"specificity": 1.5}, "specificity must be a number, more than 0"),
    ],
)
def test_wrong_options_are_reported(options, message):
    with pytest.raises(ValueError, match=message):
        measure(random_table(0, 5, 2), **options)


@pytest.mark.parametrize("labels", [[], [0, -1]])
def test_tables_without_labels_are_refused(labels):
    table = make_table(labels, [[0.5, 0.5]] * len(labels) or np.zeros((0, 2)))
    with pytest.raises(ValueError, match="metrics need labelled images"):
        measure(table)
    with pytest.raises(ValueError, match="calibration needs labelled images"):
        fit_temperature(table)


def drawn(seed, num_rows, temperature):
    """A table whose labels are drawn from softmax(logits / temperature) while it says softmax(logits)."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_rows, 4)) * 3
    right, said = (np.exp(values) / np.exp(values).sum(axis=1, keepdims=True) for values in (logits / temperature, logits))
    labels = (random.random((num_rows, 1)) > right.cumsum(axis=1)).sum(axis=1).clip(max=3)
    return make_table(labels.tolist(), said)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_used_is_found(temperature):
    table = drawn(0, 6000, temperature)
    found = fit_temperature(table)
    assert found == pytest.approx(temperature, rel=0.1)
    assert measure(scale(table, found))["ece"] < 0.03
    losses = [measure(scale(table, found * factor))["log_loss"] for factor in (0.9, 1, 1.1)]
    assert min(losses) == losses[1]


@given(table=TABLES, temperature=st.floats(0.05, 2000))
def test_scaling_never_changes_what_is_predicted(table, temperature):
    scaled = scale(table, temperature)
    assert np.array_equal(scaled.predicted, table.predicted)
    assert scaled.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(np.float32(scaled.probabilities), scaled.probabilities)


def test_nearly_equal_probabilities_stay_in_their_order_when_scaled():
    table = make_table([0], [[0.49999997, 0.50000003]])
    assert table.predicted[0] == 1
    assert scale(table, 1000.0).predicted[0] == 1


def test_a_specificity_of_numpy_is_a_number():
    table = random_table(0, 20, 2)
    assert json.dumps(measure(table, specificity=np.float32(0.5))) == json.dumps(measure(table, specificity=0.5))


def test_the_temperature_one_changes_nothing():
    table = random_table(0, 20, 3)
    assert scale(table, 1.0).probabilities == pytest.approx(table.probabilities, abs=1e-7)


def test_no_temperature_is_fitted_where_every_image_is_taken_rightly(caplog):
    with caplog.at_level(logging.WARNING, "tfpipe"):
        assert fit_temperature(make_table([0, 1], [[0.6, 0.4], [0.4, 0.6]])) == 1.0
    assert "2 images, all classified correctly" in caplog.text


@pytest.mark.parametrize(
    ("labels", "rows", "reason"),
    [
        ([0] * 9 + [1], [[0.52, 0.48]] * 10, "0.05, beyond 0.1 to 10: too few"),  # at its end: 1 / 27 would be best
        ([0, 1, 1], [[0.9, 0.1]] * 3, "hardly better than chance"),
        ([0, 1, 0], [[0.9, 0.1]] * 3, ""),
    ],
)
def test_an_unusual_temperature_is_reported(caplog, labels, rows, reason):
    with caplog.at_level(logging.WARNING, "tfpipe"):
        fit_temperature(make_table(labels, rows))
    assert reason in caplog.text if reason else not caplog.text


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_wrong_temperature_is_reported(temperature):
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        scale(random_table(0, 3, 2), temperature)


def test_ten_thousand_classes_take_no_square_of_their_number(tmp_path):
    num_classes, labels = 10_000, np.arange(0, 10_000, 100)
    probabilities = np.full((len(labels), num_classes), 1 / num_classes, np.float32)
    probabilities[:, 7] += np.float32(1e-3)
    names = [str(index) for index in range(num_classes)]
    table = Predictions([str(label) for label in labels], [""] * len(labels), labels, probabilities, names)
    measure(make_table([0, 1], [[1, 0], [0, 1]]))  # imports scikit-learn
    tracemalloc.start()
    try:
        found = measure(table)
        write_json(tmp_path / "metrics.json", found)
        assert matrix_image(confusion_matrix(found)).startswith("data:image/png")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150e6  # a byte a cell would be 100e6 for each array, and int64 is 800e6
    assert (tmp_path / "metrics.json").stat().st_size < 4e6
    assert found["confusion"]["cells"] == [[label, 7, 1] for label in labels.tolist()]


def test_the_matrix_of_an_older_evaluation_is_read(tmp_path):
    found = measure(make_table([0, 0, 1], [[1, 0], [0, 1], [0, 1]]))
    older = {**found, "confusion": {"class_names": found["confusion"]["class_names"], "matrix": [[1, 1], [0, 1]]}}
    write_json(tmp_path / "metrics.json", older)
    assert load(tmp_path) == found
