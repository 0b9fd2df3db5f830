"""Suspects of an evaluation: the surest first, each image once, and what is odd among the rest."""

import csv
import json

import numpy as np
import pytest
from conftest import make_image, write
from evaluation_fixtures import build_images, make_classifier, make_table, random_table
from report_fixtures import write_splits

from tfpipe.common.errors import DataError
from tfpipe.evaluation import suspects
from tfpipe.evaluation.evaluator import evaluate
from tfpipe.evaluation.outliers import Outliers
from tfpipe.evaluation.suspects import Suspect

pytestmark = pytest.mark.tf

NAMES = ("cat", "dog", "=1+1")


def test_flipped_labels_are_first_and_suggest_the_true_class(tmp_path):
    """Of a model that is right about most images, those with a wrong label are what it contradicts."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300)
    logits = random.normal(size=(300, 3))
    logits[np.arange(300), truth] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = random.choice(300, 15, replace=False)
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + 1) % 3
    rows, claimed, margins = suspects.label_errors(make_table(labels.tolist(), probabilities, NAMES))
    found = set(rows[:15].tolist()) & set(flipped.tolist())
    assert len(found) >= 12
    assert (np.diff(margins) <= 0).all()
    order = dict(zip(rows.tolist(), claimed.tolist(), strict=True))
    assert sum(order[row] == truth[row] for row in found) >= 12


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_those_of_all_pairs(seed):
    features = np.random.default_rng(seed).normal(size=(57, 8)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[:40].T
    cosines[np.arange(40), np.arange(40)] = -np.inf
    expected = 1 - np.sort(cosines, axis=1)[:, -5:].mean(axis=1)
    for batch_size in (1, 7, 57):
        outliers = Outliers(max_compared=40)
        for start in range(0, 57, batch_size):
            outliers.add(features[start : start + batch_size])
        np.testing.assert_allclose(outliers.distances(), expected, atol=1e-5)


def test_an_image_unlike_all_others_is_odd_and_the_rest_is_not():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 16)).astype(np.float32) * 0.1 + 1
    features[137] = -features[137]
    outliers = Outliers()
    outliers.add(features)
    rows, distances = outliers.odd()
    assert rows.tolist() == [137]
    assert distances[0] > 1.5
    few = Outliers()
    few.add(features[130:140])
    assert few.odd()[0].tolist() == []  # too few for quartiles
    assert Outliers().odd()[0].tolist() == []
    broken = Outliers()
    broken.add(np.full((30, 4), np.nan, np.float32))
    assert len(broken.distances()) == 30


def test_what_is_written_is_read_back(tmp_path):
    made = [
        Suspect(1, "=1+1.jpg", "-3.jpg", "train", '"a", b', "@x", 0.123457, "label_error"),
        Suspect(2, "小 猫\n.jpg", "'=x", "test", "cat", "", 1.0, "odd", "=other"),
    ]
    suspects.write(tmp_path, made)
    assert suspects.read(tmp_path) == made
    cells = [cell for line in csv.reader((tmp_path / "suspects.csv").read_text("utf-8").splitlines()) for cell in line]
    assert not any(cell.startswith(("=", "@", "-")) for cell in cells)
    for content in (b"a,b\n", b",".join(name.encode() for name in Suspect._fields) + b"\nx,y\n"):
        write(tmp_path / "suspects.csv", content)
        with pytest.raises(DataError, match=r"suspects\.csv"):
            suspects.read(tmp_path)


def shifted(seed):
    """An image and the same one a little brighter: other bytes, nearly the same pixels."""
    return make_image(seed, (96, 96), quality=95), make_image(seed, (96, 96), quality=85)


def test_an_evaluation_lists_duplicates_with_other_labels_first(tmp_path):
    """Images of a class take turns: i of a split has class i modulo 2."""
    near, nearer = shifted(70)
    same = make_image(71)
    test = [make_image(i) for i in range(20)] + [near, same]  # near: cat, same: dog
    train = [make_image(100), nearer, same, make_image(103)]  # nearer: dog, same: cat
    data = write_splits(tmp_path, {"train": train, "test": test})
    classifier = make_classifier(("cat", "dog"), size=(16, 16))
    evaluate(classifier, data, "test", tmp_path / "eval", progress=False)
    found = suspects.read(tmp_path / "eval")
    assert [suspect.rank for suspect in found] == list(range(1, len(found) + 1))
    duplicates = [(one.key, one.split, one.label, one.suggested, one.reason, one.other) for one in found[:4]]
    assert duplicates[:2] == [
        ("test/21.jpg", "test", "dog", "cat", "same_bytes", "train/2.jpg"),
        ("train/2.jpg", "train", "cat", "dog", "same_bytes", "test/21.jpg"),
    ]
    assert duplicates[2:] == [
        ("test/20.jpg", "test", "cat", "dog", "near_duplicate", "train/1.jpg"),
        ("train/1.jpg", "train", "dog", "cat", "near_duplicate", "test/20.jpg"),
    ]
    assert 0.99 < found[2].score <= 1
    assert {one.reason for one in found[4:]} <= {"label_error", "mistake", "odd"}
    assert len({one.key for one in found}) == len(found)
    page = (tmp_path / "eval" / "report.html").read_text("utf-8")
    assert f"{len(found)} images" in page
    assert "Odd images" in page

    evaluate(classifier, data, "test", tmp_path / "plain", report=False, progress=False)
    without = [suspect._replace(rank=0) for suspect in found if suspect.reason != "near_duplicate"]
    plain = [suspect._replace(rank=0) for suspect in suspects.read(tmp_path / "plain")]
    assert [suspect for suspect in plain if suspect in without] == without
    assert (tmp_path / "plain" / "predictions.csv").read_bytes() == (tmp_path / "eval" / "predictions.csv").read_bytes()


class Exported:
    """A predictor as an export is one: nothing beside probabilities."""

    def __init__(self, classifier):
        self.class_names, self.image_size = classifier.class_names, classifier.image_size
        self.resize, self.sha256, self.predict = classifier.resize, classifier.sha256, classifier.predict


def test_without_features_nothing_is_odd_and_the_table_is_the_same(tmp_path):
    build_images(tmp_path, {"train": {"cat": 2, "小 猫": 2}, "test": {"cat": 20, "小 猫": 20}})
    classifier = make_classifier()
    for name, model in (("whole", classifier), ("exported", Exported(classifier))):
        evaluate(model, tmp_path / "shards", "test", tmp_path / name, report=False, calibrate="train", progress=False)
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("whole", "exported")]
    assert tables[0] == tables[1]  # the pass that also gives features gives the same probabilities
    assert "odd" not in {one.reason for one in suspects.read(tmp_path / "exported")}
    stale = write(tmp_path / "whole" / "suspects.csv", b"stale")
    receipt = json.loads((tmp_path / "whole" / "receipt.json").read_bytes())
    write(tmp_path / "whole" / "receipt.json", json.dumps({**receipt, "model_sha256": "0" * 64}).encode())
    evaluate(classifier, tmp_path / "shards", "test", tmp_path / "whole", report=False, progress=False)
    assert stale.read_bytes() != b"stale"


def test_odd_images_are_those_of_the_evaluated_split_not_of_the_one_for_calibration(tmp_path):
    build_images(tmp_path, {"train": {"cat": 2, "小 猫": 2}, "test": {"cat": 12, "小 猫": 12}})
    seen = []
    classifier = make_classifier()

    class Counting(Outliers):
        def add(self, features):
            seen.append(len(features))
            super().add(features)

    from tfpipe.evaluation import evaluator

    original, evaluator.Outliers = evaluator.Outliers, Counting
    try:
        evaluate(classifier, tmp_path / "shards", "test", tmp_path / "e", report=False, calibrate="train", progress=False)
    finally:
        evaluator.Outliers = original
    assert sum(seen) == 24


def test_suspects_of_a_table_are_in_the_order_of_their_margins(tmp_path):
    build_images(tmp_path, {"test": {"cat": 3}})
    data = tmp_path / "shards"
    table = random_table(3, 200, 4)
    found = suspects.find(table, data, "test", odd=(np.array([5, 7]), np.array([0.9, 0.8])))
    rows, claimed, margins = suspects.label_errors(table)
    errors = [one for one in found if one.reason == "label_error"]
    assert [one.key for one in errors] == [table.keys[row] for row in rows]
    assert [one.suggested for one in errors] == [table.class_names[index] for index in claimed]
    assert [one.score for one in errors] == margins.tolist()
    mistakes = [one for one in found if one.reason == "mistake"]
    wrong = {table.keys[row] for row in np.flatnonzero(table.predicted != table.labels)}
    assert {one.key for one in mistakes} == wrong - {one.key for one in errors}
    assert [one.score for one in mistakes] == sorted((one.score for one in mistakes), reverse=True)
    others = [one.key for one in found if one.reason == "odd"]
    assert others == [key for key in ("5", "7") if key not in {one.key for one in (*errors, *mistakes)}]
