"""Classes in an order: cumulative links, their regression, their metrics, and the way from build to prediction."""

import csv
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import write
from PIL import Image
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, mean_squared_error, r2_score

import tfpipe
from tfpipe.evaluation import mcnemar, metrics
from tfpipe.evaluation.numbers import measures
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.models import classifiers, explanation
from tfpipe.models.predictions import Predictions
from tfpipe.networks import ensembles, objectives
from tfpipe.networks.layers import Probabilities
from tfpipe.networks.links import PACE, FittedLinks, free_of, thresholds_of
from tfpipe.page import page_markup
from tfpipe.page.answers import Answers
from tfpipe.records import manifest
from tfpipe.records.summary import describe_manifest
from tfpipe.training import proportional_odds

pytestmark = pytest.mark.tf

GRADES = ("none", "mild", "severe", "worst")  # by brightness; not in the order of their letters
SMALL = {"backbone": "small_backbone:two_convolutions", "weights": "none", "image_size": (16, 16), "precision": "float32"}
QUIET = {"progress": False, "tensorboard": False, "log": None}


def photos(root, splits, names=GRADES):
    for split, count in splits.items():
        for grade, name in enumerate(names):
            for index in range(count):
                random = np.random.default_rng([grade, index, len(split)])
                level = 60 + 40 * grade + random.normal(0, 14)
                pixels = np.clip(random.normal(level, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                write(root / split / name / f"{index}.png", file.getvalue())
    return {split: root / split for split in splits}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("grades")
    given = photos(root, {"train": 16, "val": 8, "test": 12})
    options = {"layout": "folders", "class_names": GRADES, "workers": 1, "progress": False}
    tfpipe.build_tfrecords(given, root / "shards", task="ordinal", **options)
    tfpipe.build_tfrecords(given, root / "plain", **options)
    return root / "shards"


@pytest.fixture(scope="module")
def run(shards):
    found = tfpipe.train(shards, shards.parent / "run", mode="bottleneck", pooling="flatten", **SMALL, **QUIET)
    assert found.val_accuracy > 0.6
    return shards.parent / "run"


@pytest.fixture(scope="module")
def evaluation(run, shards):
    return tfpipe.evaluate(run, shards, "test", shards.parent / "eval", progress=False)


# ---- links


def test_probabilities_are_the_differences_of_sigmoids_and_far_scores_keep_their_digits():
    links, score = FittedLinks(4, name="links"), np.linspace(-120, 120, 49, dtype=np.float32)[:, np.newaxis]
    np.testing.assert_allclose(tf.nn.softmax(links(np.zeros((1, 1), np.float32))), [[0.25] * 4], atol=1e-6)
    links.numbers.assign(free_of([-3.0, -2.9, 4.0]) / PACE)
    logits = links(score).numpy()
    assert np.isfinite(logits).all()
    steps = expit(np.array(links.thresholds) - score.astype(np.float64))
    expected = np.diff(np.hstack([np.zeros_like(score), steps, np.ones_like(score)]), axis=1)
    np.testing.assert_allclose(np.exp(logits), expected, atol=1e-6)
    assert logits[0, 3] == pytest.approx(-124, abs=1e-3)  # where 1 less a sigmoid is 0
    layer = Probabilities(GRADES, task="ordinal", thresholds=links.thresholds)
    np.testing.assert_allclose(layer(score), expected, atol=1e-6)
    again = Probabilities.from_config(json.loads(json.dumps(layer.get_config())))
    assert (again(score).numpy() == layer(score).numpy()).all()
    for wrong in ([1.0, 0.0, 2.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match="thresholds must rise"):
            Probabilities(GRADES, task="ordinal", thresholds=wrong)


def test_the_numbers_of_thresholds_give_them_back():
    thresholds = np.array([-2.0, -1.99999, 0.0, 90.0])
    np.testing.assert_allclose(thresholds_of(free_of(thresholds)), thresholds, atol=1e-5)


def drawn(count, thresholds, seed=0):
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 3))
    score = points @ [1.5, -0.7, 0.0] + random.logistic(size=count)
    return points, np.searchsorted(np.array(thresholds), score)


def test_a_regression_finds_the_odds_that_its_rows_were_drawn_with_and_the_least_loss():
    points, labels = drawn(4000, [-1.0, 0.5, 2.5])
    first = proportional_odds.start(labels, 3)
    kernel, free = proportional_odds.fit(points, labels, 1e6, None, first, 500, 1e-7)
    np.testing.assert_allclose(kernel, [1.5, -0.7, 0.0], atol=0.12)
    np.testing.assert_allclose(thresholds_of(free), [-1.0, 0.5, 2.5], atol=0.12)
    weights = np.random.default_rng(1).random(len(labels)) + 0.5
    kernel, free = proportional_odds.fit(points, labels, 0.01, weights, first, 500, 1e-7)

    def loss(values):
        found = proportional_odds.log_probabilities(points @ values[:3], values[3:])[np.arange(len(labels)), labels]
        return -weights @ found / weights.sum() + values[:3] @ values[:3] / (2 * 0.01 * weights.sum())

    best = np.concatenate([kernel, free])
    for place in range(6):  # a step to either side is worse
        for step in (-1e-3, 1e-3):
            assert loss(best + step * (np.arange(6) == place)) > loss(best)


def test_of_two_classes_it_is_a_logistic_regression():
    points, labels = drawn(300, [0.5])
    kernel, free = proportional_odds.fit(points, labels, 0.1, None, proportional_odds.start(labels, 3), 500, 1e-8)
    expected = LogisticRegression(C=0.1, tol=1e-8).fit(points, labels)
    np.testing.assert_allclose(kernel, expected.coef_[0], atol=1e-4)
    np.testing.assert_allclose(free, -expected.intercept_, atol=1e-4)


# ---- metrics


def pairs(count=200, seed=0):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 5, count).astype(np.float64)
    return truth, np.clip(truth + random.integers(-2, 3, count), 0, 4), [f"{key:04d}" for key in random.permutation(count)]


def test_metrics_are_those_of_scikit_learn_and_scipy_for_any_order_of_rows():
    truth, predicted, keys = pairs()
    found = measures.measure(truth, predicted, keys, None, measures.METRICS, 200)
    expected = {
        "mean_difference": (predicted - truth).mean(),
        "mean_absolute_error": mean_absolute_error(truth, predicted),
        "root_mean_squared_error": np.sqrt(mean_squared_error(truth, predicted)),
        "r2": r2_score(truth, predicted),
        "kappa": cohen_kappa_score(truth, predicted, weights="quadratic"),
        "spearman": spearmanr(truth, predicted).statistic,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert all(found[f"{name}_interval"][0] < value < found[f"{name}_interval"][1] for name, value in expected.items())
    order = np.random.default_rng(5).permutation(len(keys))
    shuffled = truth[order], predicted[order], [keys[place] for place in order]
    assert measures.measure(*shuffled, None, measures.METRICS, 200) == found  # to the last bit
    large = measures.measure(truth + 1e6, predicted + 1e6, keys, None, ["r2", "kappa"], 2)
    assert (large["r2"], large["kappa"]) == pytest.approx((expected["r2"], expected["kappa"]))


def test_weights_count_as_repeated_images_would():
    truth, predicted, _ = pairs(40)
    weights = np.random.default_rng(0).integers(0, 3, (3, 40))
    for function in measures.METRICS.values():
        found = function(truth, predicted)(weights.astype(np.float64))
        for value, counts in zip(found, weights, strict=True):
            often = np.repeat(truth, counts), np.repeat(predicted, counts)
            assert value == pytest.approx(function(*often)(np.ones((1, len(often[0]))))[0])


def test_intervals_are_of_groups_where_there_are_any_and_nothing_is_undefined_silently():
    truth, predicted, keys = pairs()
    alone = measures.measure(truth, predicted, keys, None, ["mean_absolute_error"])
    often = [np.repeat(values, 8) for values in (truth, predicted)]
    names = [f"{key}-{copy}" for key in keys for copy in range(8)]
    grouped = measures.measure(*often, names, [name[:4] for name in names], ["mean_absolute_error"])
    widths = [float(np.diff(found["mean_absolute_error_interval"])[0]) for found in (alone, grouped)]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)  # copies are no evidence
    same = measures.measure(np.full(9, 0.1), np.arange(9.0), [str(key) for key in range(9)], None, ["r2", "spearman"])
    assert same == {"r2": None, "r2_interval": None, "spearman": None, "spearman_interval": None}


def test_distances_follow_the_given_order_and_not_that_of_the_columns():
    names = ("high", "low", "middle")
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.0, 0.4, 0.6]], np.float32)
    table = Predictions(["a", "b", "c"], ["a", "b", "c"], np.array([1, 1, 0]), probabilities, names)
    order = ("low", "middle", "high")
    assert in_order.distances(table, order).tolist() == [2, 0, 1]
    found = metrics.measure(table, order=order)
    assert (found["task"], found["mean_absolute_error"], found["order"]) == ("ordinal", 1.0, list(order))


# ---- the whole way


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        (GRADES, {}, "needs class_names, .*: mild,none,severe,worst"),
        (("no", "yes"), {"class_names": ("no", "yes")}, "three classes or more"),
    ],
)
def test_an_order_that_nobody_gave_is_refused(tmp_path, names, options, why):
    given = photos(tmp_path, {"train": 2}, names)
    with pytest.raises(ValueError, match=why):
        tfpipe.build_tfrecords(given, tmp_path / "out", task="ordinal", workers=1, progress=False, **options)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_numbers_are_in_their_order_and_records_as_without_one(tmp_path, shards):
    given = photos(tmp_path, {"train": 2}, ("0", "2", "10"))
    found = tfpipe.build_tfrecords(given, tmp_path / "out", task="ordinal", workers=1, progress=False)
    assert (found.task, list(found.class_names)) == ("ordinal", ["0", "2", "10"])
    ordered, plain = (manifest.load(shards.parent / name) for name in ("shards", "plain"))
    assert "4 classes in this order" in describe_manifest(ordered)
    assert "4 classes\n" in describe_manifest(plain)
    assert (ordered.task, plain.task, ordered.root_hash) == ("ordinal", "single", plain.root_hash)


def test_a_run_has_a_score_whose_thresholds_rise(run, shards):
    assert json.loads((run / "run.json").read_text())["data"]["task"] == "ordinal"
    model = classifiers.load(run)
    assert (model.task, model.class_names) == ("ordinal", GRADES)
    images, labels = next(iter(tfpipe.dataset(shards, "test", batch_size=48, image_size=16)))
    score, thresholds = model.head(model.trunk(images)).numpy(), model.model.get_layer("probabilities").thresholds
    found = model.predict(images)
    np.testing.assert_allclose(1 - found.cumsum(1)[:, :-1], expit(score - np.array(thresholds)), atol=1e-5)
    assert spearmanr(score[:, 0], labels).statistic > 0.8
    best = json.loads((run / "head.json").read_text())["best"]
    val_images, val_labels = next(iter(tfpipe.dataset(shards, "val", batch_size=48, image_size=16)))
    own = model.predict(val_images)[np.arange(len(val_labels)), val_labels.numpy()]
    assert -np.log(own).mean() == pytest.approx(best["val_loss"], rel=1e-3)
    heat = explanation.explain(model, images[:4], [0, 1, 2, 3])
    assert (heat == explanation.explain(model, images[:4], [3, 2, 1, 0])).all()  # for a higher class, whatever was predicted
    assert heat.max() == 1
    answer = Answers(model).answer(str(shards.parent / "test" / "worst" / "0.png"))
    assert "evidence for <b>a higher class</b>" in page_markup.answer("0", answer, model, "")


def test_steps_lessen_the_same_loss_from_the_weights_of_a_run(run, shards, tmp_path):
    lines = []
    options = {**SMALL, **QUIET, "log": lines.append, "mode": "bottleneck", "solver": "gradient", "pooling": "flatten"}
    del options["weights"]
    tfpipe.train(shards, tmp_path / "on", from_run=run, epochs=1, learning_rate=1e-9, **options)
    before, after = (classifiers.load(folder).model.get_layer("probabilities").thresholds for folder in (run, tmp_path / "on"))
    assert any("begins with its weights" in line for line in lines)
    np.testing.assert_allclose(before, after, atol=1e-4)
    found = tfpipe.train(shards, tmp_path / "new", **{**options, **SMALL}, epochs=60, learning_rate=0.03)
    assert found.phases[0]["val_loss"] < np.log(4) * 0.75
    with open(tmp_path / "new" / "history.csv") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert found.phases[0]["best_epoch"] == 1 + int(np.argmin(losses))  # and not that of the most right answers


def test_an_evaluation_has_the_metrics_of_an_order(evaluation, shards, run):
    found = evaluation.metrics
    with open(evaluation.folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    truth, predicted = ([GRADES.index(row[name]) for row in rows] for name in ("label", "predicted"))
    means = [sum(grade * float(row[f"probability_{name}"]) for grade, name in enumerate(GRADES)) for row in rows]
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert found["mean_absolute_error"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["spearman"] == pytest.approx(spearmanr(truth, means).statistic)
    assert found["kappa"] > 0.7
    assert metrics.load(evaluation.folder) == found
    page = (evaluation.folder / "report.html").read_text()
    assert all(f"{found[name]:.4f}" in page and text in page for name, text in in_order.SHOWN.items())


def test_a_softmax_is_compared_with_the_order_on_the_same_data(evaluation, shards, tmp_path):
    tfpipe.train(shards.parent / "plain", tmp_path / "plain", mode="bottleneck", **SMALL, **QUIET)
    other = tfpipe.evaluate(tmp_path / "plain", shards, "test", tmp_path / "eval", report=False, progress=False)
    found = mcnemar.compare(evaluation.folder, tmp_path / "eval")
    both = evaluation.metrics["mean_absolute_error"], other.metrics["mean_absolute_error"]
    assert found.distances == pytest.approx(both)
    assert found.distance_interval[0] <= both[0] - both[1] <= found.distance_interval[1]
    assert mcnemar.compare(evaluation.folder / "predictions.csv", tmp_path / "eval" / "predictions.csv").distances is None


def test_another_order_is_refused_where_the_model_has_one(run, shards, tmp_path):
    given = {"test": shards.parent / "test"}
    options = {"layout": "folders", "class_names": GRADES[::-1], "task": "ordinal", "workers": 1, "progress": False}
    tfpipe.build_tfrecords(given, tmp_path / "reverse", **options)
    with pytest.raises(ValueError, match="the order of its classes is not the model's, none, mild"):
        tfpipe.evaluate(run, tmp_path / "reverse", "test", tmp_path / "eval", progress=False)


def test_exports_and_the_mean_of_models_keep_the_links(run, shards, evaluation, tmp_path):
    options = {"evaluation": evaluation.folder, "data": shards, "log": lambda line: None}
    export = tfpipe.export(run, tmp_path / "export", formats=("saved_model", "keras"), **options)
    assert max(row.difference for row in export.parity if row.stage == "probabilities") < 1e-5
    assert json.loads((tmp_path / "export" / "preprocessing.json").read_text())["task"] == "ordinal"
    assert "quadratic weighted kappa" in (tmp_path / "export" / "model_card.md").read_text()
    model = classifiers.load(run)
    images = np.concatenate([images for images, _ in tfpipe.dataset(shards, "test", image_size=16)])
    plain = tf.keras.models.load_model(tmp_path / "export" / "model.keras")
    np.testing.assert_allclose(plain(images), model.predict(images), atol=1e-6)
    tfpipe.predict(tmp_path / "export" / "saved_model", shards.parent / "test", tmp_path / "table.csv", progress=False)
    with open(tmp_path / "table.csv") as file:
        row = next(csv.DictReader(file))
    assert row["class_1"] == max(GRADES, key=lambda name: float(row[f"probability_{name}"]))

    other = classifiers.load(run).model
    last = other.get_layer("probabilities")
    last.thresholds = tuple(value + 1 for value in last.thresholds)
    mean = ensembles.average([model.model, other])
    expected = (model.predict(images) + other(images).numpy()) / 2
    np.testing.assert_allclose(mean(images), expected, atol=1e-6)
    assert classifiers.check(other).task == mean.get_layer("probabilities").task == "ordinal"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"augment": tfpipe.Augmentation(mixup=1.0), "mode": "scratch"}, "mixup and cutmix make images of two classes"),
        ({"label_smoothing": 0.1, "mode": "scratch"}, "label_smoothing makes all classes as likely"),
    ],
)
def test_options_that_forget_the_order_are_refused(shards, tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        tfpipe.train(shards, tmp_path / "run", **SMALL, **QUIET, **options)


def test_the_best_epoch_of_an_order_has_the_least_loss():
    assert objectives.of_task("ordinal").by_loss
    assert not objectives.of_task("single").by_loss
