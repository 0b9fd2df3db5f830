"""Regression: losses, linear heads, runs, evaluation, export and prediction of numbers."""

import csv
import io
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import write
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import HuberRegressor, Ridge
from sklearn.metrics import r2_score

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.evaluation import mcnemar, metrics
from tfpipe.evaluation.numbers import report, values
from tfpipe.models import classifiers, predictions
from tfpipe.networks import ensembles, objectives
from tfpipe.networks.layers import Values, last_of
from tfpipe.page import page
from tfpipe.records.targets import text_of
from tfpipe.training import linear_regression, loop, regression

pytestmark = pytest.mark.tf

NAMES, UNITS = ("light", "tilt"), ("%", "")
SMALL = {"backbone": "small_backbone:two_convolutions", "weights": "none", "image_size": (16, 16), "precision": "float32"}
QUIET = {"progress": False, "tensorboard": False, "log": None}


def photos(root, count):
    """Noise of a brightness that rises or falls from left to right, and a table of both."""
    random = np.random.default_rng(0)
    with open(root / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *NAMES, "patient"])
        for index in range(count):
            light, tilt = random.uniform(40, 200), random.uniform(-3, 3)
            levels = light + np.linspace(-10, 10, 16)[None, :, None] * tilt + random.normal(0, 20, (16, 16, 3))
            content = io.BytesIO()
            Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(content, "PNG")
            write(root / f"{index:03d}.png", content.getvalue())
            rows.writerow([f"{index:03d}.png", f"{light / 2.55:.2f}", f"{1000 + tilt:.3f}", f"p{index // 3}"])
    return root / "table.csv"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("light")
    splits = {"train": 0.5, "val": 0.2, "test": 0.3}
    options = {"layout": "csv", "target_columns": NAMES, "units": UNITS, "workers": 1, "progress": False, "group": "patient"}
    tfpipe.build_tfrecords(photos(root, 180), root / "shards", splits=splits, **options)
    return root / "shards"


@pytest.fixture(scope="module")
def run(shards):
    found = tfpipe.train(shards, shards.parent / "run", mode="bottleneck", pooling="flatten", **SMALL, **QUIET)
    assert found.val_accuracy > 0.8  # R2
    return shards.parent / "run"


@pytest.fixture(scope="module")
def evaluation(run, shards):
    return tfpipe.evaluate(run, shards, "test", shards.parent / "eval", progress=False)


def targets_of(shards, split):
    return np.concatenate([numbers for _, numbers in tfpipe.dataset(shards, split, image_size=16)])


# ---- losses and linear heads


@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_losses_are_keras_own_in_deviations_and_blank_rows_have_none(loss):
    random = np.random.default_rng(0)
    targets = random.normal([50, -3], [20, 0.1], (40, 2)).astype(np.float32)
    scale = objectives.Scale.of(targets)
    objective = objectives.of_task("regression", loss, scale)
    logits = tf.Variable(random.normal(0, 2, (40, 2)), dtype=tf.float32)
    wanted = scale.standardised(targets)
    own = {"huber": tf.keras.losses.huber, "squared": lambda truth, found: np.square(truth - found.numpy()).mean(1) / 2}
    blank = np.vstack([targets[:-1], [[np.nan, np.nan]]]).astype(np.float32)
    with tf.GradientTape() as tape:
        losses = objective.losses(logits, blank, 0.0, None)
    np.testing.assert_allclose(losses[:-1], own[loss](wanted, logits)[:-1], rtol=1e-4)
    np.testing.assert_allclose(losses[:-1], linear_regression.losses(logits.numpy(), wanted, loss)[:-1], rtol=1e-4)
    assert losses[-1] == 0
    gradient = tape.gradient(losses, logits).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[-1] == 0).all()
    assert float(tf.reduce_mean(objective.right(logits, targets))) == pytest.approx(r2_score(wanted, logits.numpy()), abs=1e-4)


@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_a_linear_head_is_scikit_learns(loss):
    random = np.random.default_rng(1)
    points = random.normal(size=(200, 4))
    wanted = points @ random.normal(size=(4, 2)) + random.standard_t(2, (200, 2))
    options = {"strength": 0.05, "loss": loss, "first": linear_regression.start(wanted, 4), "iterations": 500, "gtol": 1e-9}
    kernel, bias = linear_regression.fit(points, wanted, **options)
    for place in range(2):
        if loss == "squared":
            model = Ridge(alpha=1 / 0.05).fit(points, wanted[:, place])
            np.testing.assert_allclose(kernel[:, place], model.coef_, atol=1e-4)
            np.testing.assert_allclose(bias[place], model.intercept_, atol=1e-4)
        else:  # whose scale is fitted, too: near, as both ignore the tails
            model = HuberRegressor(epsilon=1.35, alpha=0.0).fit(points, wanted[:, place])
            weak = linear_regression.fit(points, wanted, **{**options, "strength": 1e4})[0]
            np.testing.assert_allclose(weak[:, place], model.coef_, atol=0.15)


def test_a_head_is_chosen_by_its_loss_on_validation():
    random = np.random.default_rng(2)
    maps = random.normal(size=(300, 1, 1, 6)).astype(np.float32) * 30 + 5
    wanted = maps[:, 0, 0, :2] / 30 + random.normal(0, 0.1, (300, 2))
    features = types.SimpleNamespace(rows=lambda positions: maps[positions], shape=(1, 1, 6))
    parts = np.arange(200), np.arange(200, 300)
    train, val = (regression.Rows([features], part, wanted[part], task="regression") for part in parts)
    found = regression.search(train, val, ["average"])
    losses = linear_regression.losses(maps[200:, 0, 0] @ found.kernel + found.bias, wanted[200:], "huber")
    assert found.best.val_loss == pytest.approx(losses.mean(), rel=1e-4)
    assert found.best.val_accuracy > 0.95
    assert str(found).startswith("linear regression on average pooling")


# ---- runs


def test_a_run_gives_values_in_units_far_better_than_the_mean(run, shards):
    model = classifiers.load(run)
    assert (model.task, model.class_names, model.units) == ("regression", NAMES, UNITS)
    images = np.concatenate([images for images, _ in tfpipe.dataset(shards, "test", image_size=16)])
    truth, found = targets_of(shards, "test"), model.predict(images)
    errors = abs(found - truth).mean(0)
    assert (errors < 0.5 * truth.std(0)).all()
    assert errors[0] < 0.15 * truth[:, 0].std()
    train = targets_of(shards, "train").astype(np.float64)
    last = last_of(model.model)
    assert last.means == pytest.approx(train.mean(0))
    assert last.deviations == pytest.approx(train.std(0))
    np.testing.assert_allclose(found, model.head(model.trunk(images)) * last.deviations + last.means, rtol=1e-5)
    with open(run / "run.json") as file:
        facts = json.load(file)
    assert (facts["data"]["task"], facts["chosen"]["loss"]) == ("regression", "huber")


def test_steps_keep_the_epoch_of_the_least_loss_and_a_stopped_run_goes_on_bit_by_bit(shards, tmp_path, monkeypatch):
    options = {**SMALL, **QUIET, "mode": "frozen", "epochs": 4, "learning_rate": 0.03, "batch_size": 16, "loss": "squared"}
    whole = tfpipe.train(shards, tmp_path / "whole", **options)
    with open(tmp_path / "whole" / "history.csv") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert whole.phases[0]["best_epoch"] == 1 + int(np.argmin(losses))
    ends, calls = loop.Loop._end_epoch, []

    def count(self, *args, **kwargs):
        ends(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "_end_epoch", count)
    with pytest.raises(KeyboardInterrupt):
        tfpipe.train(shards, tmp_path / "parts", **options)
    monkeypatch.undo()
    parts = tfpipe.train(shards, tmp_path / "parts", **options)
    assert parts.model_sha256 == whole.model_sha256


def test_weights_of_another_run_are_rescaled_to_the_new_targets(run, shards, tmp_path):
    table = (shards.parent / "table.csv").read_text().splitlines()
    rows = [line.split(",") for line in table[1:]]
    twice = [[path, str(2 * float(light) + 7), tilt, patient] for path, light, tilt, patient in rows]
    (shards.parent / "twice.csv").write_text("\n".join([table[0], *(",".join(row) for row in twice)]) + "\n")
    given = {"layout": "csv", "target_columns": NAMES, "units": UNITS, "splits": {"train": 0.8, "val": 0.2}, "workers": 1}
    tfpipe.build_tfrecords(shards.parent / "twice.csv", tmp_path / "shards", progress=False, **given)
    options = {**SMALL, **QUIET, "mode": "bottleneck", "solver": "gradient", "pooling": "flatten", "epochs": 1}
    del options["weights"]
    tfpipe.train(tmp_path / "shards", tmp_path / "on", from_run=run, learning_rate=1e-9, **options)
    before, after = classifiers.load(run), classifiers.load(tmp_path / "on")
    images = np.concatenate([images for images, _ in tfpipe.dataset(shards, "test", image_size=16)])
    assert last_of(before.model).means != last_of(after.model).means
    np.testing.assert_allclose(before.predict(images), after.predict(images), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"balanced": True}, "balanced is for classes"),
        ({"class_weights": True}, "class_weights is for classes"),
        ({"label_smoothing": 0.1, "mode": "scratch"}, "label_smoothing is for classes"),
        ({"augment": tfpipe.Augmentation(mixup=1.0), "mode": "scratch"}, "the number of a mixed image"),
        ({"loss": "ordinal"}, "loss=ordinal: of task regression it is huber or squared"),
    ],
)
def test_options_of_classes_are_refused(shards, tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        tfpipe.train(shards, tmp_path / "run", **SMALL, **QUIET, **options)


def test_a_target_of_one_value_is_refused(shards, tmp_path):
    lines = (shards.parent / "table.csv").read_text().splitlines()[:30]
    (shards.parent / "same.csv").write_text(
        "\n".join([lines[0], *(f"{line.split(',')[0]},5,1,p" for line in lines[1:])]) + "\n"
    )
    given = {"layout": "csv", "target_columns": NAMES, "workers": 1, "progress": False, "splits": {"train": 0.7, "val": 0.3}}
    tfpipe.build_tfrecords(shards.parent / "same.csv", tmp_path / "shards", **given)
    with pytest.raises(ValueError, match="one value of light, tilt"):
        tfpipe.train(tmp_path / "shards", tmp_path / "run", **SMALL, **QUIET)


# ---- evaluation


def test_an_evaluation_has_metrics_in_units_by_group(evaluation, shards):
    found = evaluation.metrics
    with open(evaluation.folder / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(targets_of(shards, "test"))
    for name, unit, row in zip(NAMES, UNITS, found["per_target"], strict=True):
        truth, given = (np.array([float(line[f"{prefix}_{name}"]) for line in rows]) for prefix in ("target", "value"))
        assert (row["name"], row["unit"], row["count"]) == (name, unit, len(rows))
        assert row["mean_absolute_error"] == pytest.approx(abs(given - truth).mean())
        assert row["root_mean_squared_error"] == pytest.approx(np.sqrt(np.square(given - truth).mean()))
        assert row["r2"] == pytest.approx(r2_score(truth, given))
        assert row["spearman"] == pytest.approx(spearmanr(truth, given).statistic)
        low, high = row["mean_absolute_error_interval"]
        assert low < row["mean_absolute_error"] < high
    assert found["groups"]["num_groups"] == len({line["group"] for line in rows})
    assert metrics.load(evaluation.folder) == found
    text = (evaluation.folder / "report.html").read_text()
    assert "mean absolute error of light" in text
    assert text.count('alt="predictions over targets"') == text.count('alt="errors over targets"') == 2


def test_a_report_shows_targets_with_all_their_digits(evaluation):
    text = (evaluation.folder / "report.html").read_text()
    table = predictions.read(evaluation.folder)
    row = report.worst(table, 0)[0]
    target, value = (text_of([float(found[row, 0])]) for found in (table.targets, table.probabilities))
    assert f'target <b>{target} {UNITS[0]}</b>, predicted <span class="wrong">{value} {UNITS[0]}</span>' in text


def test_a_table_of_numbers_comes_back_bit_by_bit(evaluation, tmp_path):
    table = predictions.read(evaluation.folder)
    assert table.task == "regression"
    table.targets[0, 1] = np.nan
    (tmp_path / "again.csv").write_bytes(b"".join(predictions.chunks(table)))
    again = predictions.read(tmp_path / "again.csv")
    assert (again.probabilities == table.probabilities).all()
    np.testing.assert_array_equal(again.targets, table.targets)
    assert (again.keys, again.groups) == (table.keys, table.groups)
    assert values.measure(again, UNITS, 10)["per_target"][1]["count"] == len(table.keys) - 1
    rows = report.worst(table, 0)
    errors = abs(table.probabilities[:, 0] - table.targets[:, 0])[rows]
    assert (np.diff(errors) <= 0).all()
    (tmp_path / "bad.csv").write_bytes((tmp_path / "again.csv").read_bytes().replace(b"target_tilt", b"target_x"))
    with pytest.raises(DataError, match="the columns must be key,filename, target_<name>"):
        predictions.read(tmp_path / "bad.csv")


def test_what_is_about_classes_refuses_numbers(run, shards, evaluation, tmp_path):
    with pytest.raises(DataError, match="McNemar"):
        mcnemar.compare(evaluation.folder, evaluation.folder)
    for option in ({"positive_class": "light"}, {"calibrate": "val"}):
        with pytest.raises(ValueError, match="a regression gives numbers"):
            tfpipe.evaluate(run, shards, "test", tmp_path, progress=False, **option)
    with pytest.raises(ValueError, match="this is a regression"):
        page.serve(run).__enter__()
    for option in ({"half": True}, {"formats": ("tflite_int8",)}):
        with pytest.raises(ValueError, match="which a regression has not"):
            tfpipe.export(run, tmp_path / "export", data=shards, log=lambda line: None, **option)
    for columns in ("label", "index", "probability"):
        with pytest.raises(ValueError, match=f"columns={columns} is of classes"):
            tfpipe.predict(run, shards.parent / "000.png", tmp_path / "out.csv", columns=columns, progress=False)


# ---- export and prediction


def test_exports_give_the_values_of_the_run_and_predictions_have_a_column_for_each(run, shards, evaluation, tmp_path):
    options = {"evaluation": evaluation.folder, "data": shards, "log": lambda line: None}
    export = tfpipe.export(run, tmp_path / "export", formats=("saved_model", "tflite", "keras"), **options)
    found = {(row.artefact, row.output): row.difference for row in export.parity if row.stage == "values"}
    assert found["saved_model", "serving_default.values"] == 0
    assert found["model.tflite", "image.values"] < 1e-5
    facts = json.loads((tmp_path / "export" / "preprocessing.json").read_text())
    assert (facts["task"], facts["units"]) == ("regression", list(UNITS))
    assert "| light: mean absolute error |" in (tmp_path / "export" / "model_card.md").read_text()
    images = np.concatenate([images for images, _ in tfpipe.dataset(shards, "test", image_size=16)])
    plain = tf.keras.models.load_model(tmp_path / "export" / "model.keras")
    expected = classifiers.load(run).predict(images)
    np.testing.assert_allclose(plain(images), expected, rtol=1e-6)

    model = tfpipe.load(tmp_path / "export" / "saved_model")
    again = tfpipe.evaluate(model, shards, "test", tmp_path / "again", report=False, progress=False)
    for ours, theirs in zip(again.metrics["per_target"], evaluation.metrics["per_target"], strict=True):
        assert ours["mean_absolute_error"] == pytest.approx(theirs["mean_absolute_error"], rel=1e-4)
    one, bad = model.predict([shards.parent / "000.png", b"no image"])
    assert (one.class_name, list(one.values), bad.values) == (None, list(NAMES), None)
    assert bad.reason
    served = tf.saved_model.load(tmp_path / "export" / "saved_model").signatures["serving_default"]
    outputs = served(tf.constant([(shards.parent / "000.png").read_bytes(), b"no image"]))
    assert sorted(outputs) == ["valid", "values"]
    np.testing.assert_allclose(outputs["values"], [list(one.values.values()), [0, 0]], rtol=1e-6)

    summary = tfpipe.predict(model, shards.parent / "000.png", tmp_path / "full.csv", progress=False)
    assert summary.mean_scores["light"] == pytest.approx(one.values["light"], rel=1e-6)
    header, row = csv.reader((tmp_path / "full.csv").read_text().splitlines())
    assert header == ["id", "filename", "reason", "light [%]", "tilt"]
    assert [np.float32(value) for value in row[3:]] == [np.float32(value) for value in one.values.values()]
    tfpipe.predict(model, shards.parent / "000.png", tmp_path / "lines.jsonl", progress=False)
    assert json.loads((tmp_path / "lines.jsonl").read_text())["values"] == pytest.approx(dict(one.values), rel=1e-6)


def test_the_mean_of_models_is_of_their_values(run, shards):
    model, other = classifiers.load(run).model, classifiers.load(run).model
    last_of(other).means = tuple(value + 10 for value in last_of(other).means)
    images = np.concatenate([images for images, _ in tfpipe.dataset(shards, "test", image_size=16)])
    mean = ensembles.average([model, other])
    assert isinstance(last_of(mean), Values)
    np.testing.assert_allclose(mean(images), model(images) + 5, rtol=1e-5)
