"""A training for each fold, predictions of images that a model has not seen, and the mean of all models."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys

import keras
import label_fixtures
import numpy as np
import pytest
from conftest import CHECKOUT
from evaluation_fixtures import *  # noqa: F403 (fixtures)
from evaluation_fixtures import make_classifier
from fold_fixtures import *  # noqa: F403 (fixtures)
from fold_fixtures import FOLDS, NUM_FOLDS, OPTIONS
from transfer_fixtures import CLASS_NAMES

import tfpipe
from tfpipe.evaluation import label_metrics, metrics
from tfpipe.evaluation.folds import bootstrap
from tfpipe.exporting import parity, parity_process
from tfpipe.formats import opening
from tfpipe.models import classifiers, predictions
from tfpipe.models.classifiers import NamedModel
from tfpipe.networks import ensembles, keras_files
from tfpipe.records import catalog, folds, manifest

pytestmark = pytest.mark.tf

# ---- reading several splits as one


def rows_of(shards, split, **options):
    batches = tfpipe.dataset(shards, split, batch_size=5, image_size=(8, 8), as_dict=True, **options).as_numpy_iterator()
    return [row for batch in batches for row in zip(batch["key"], batch["label"], map(bytes, batch["image"]), strict=True)]


def test_g5_joined_splits_are_their_parts_one_after_another(shards):
    whole = rows_of(shards, "fold3+fold0")
    assert whole == rows_of(shards, "fold0") + rows_of(shards, "fold3")
    parts = [rows_of(shards, "fold3+fold0", shard=(index, 3)) for index in range(3)]
    assert [row for part in parts for row in part] == whole


def test_g6_g7_g8_an_epoch_is_one_permutation_of_the_joined_splits(shards):
    options = {"training": True, "augment": "light", "seed": 3}
    epochs = [rows_of(shards, "fold0+fold1+fold3", first_epoch=epoch, **options) for epoch in (0, 1)]
    apart = [
        [row for name in ("fold0", "fold1", "fold3") for row in rows_of(shards, name, **options, first_epoch=e)] for e in (0, 1)
    ]
    for joined, single in zip(epochs, apart, strict=True):
        assert sorted(joined) == sorted(single)  # each image once, augmented as in its own split
        assert joined != single
        fold_of = {row.key.encode(): row.split for row in catalog.read_catalog(shards)}
        first = [fold_of[key] for key, *_ in joined[: len(joined) // 3]]
        assert set(first) == {"fold0", "fold1", "fold3"}  # mixed, not split by split
    assert [key for key, *_ in epochs[0]] != [key for key, *_ in epochs[1]]
    assert rows_of(shards, "fold0+fold1+fold3", first_epoch=1, first_step=2, **options) == epochs[1][10:]
    assert rows_of(shards, "fold3+fold1+fold0", first_epoch=1, **options) == epochs[1]


# ---- training

RECIPE = {"backbone": "lenet", "mode": "scratch", "image_size": (16, 16), "epochs": 2, "batch_size": 8, "precision": "float32"}
TRAIN = {"progress": False, "tensorboard": False, "log": None}
KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from tfpipe import train_folds
from tfpipe.training import loop
real, num_steps = loop.Loop.train_step, 0
def step(self, *rest):
    global num_steps
    num_steps += 1
    if "fold1" in str(self.state_file) and self.position.epoch == 1 and self.position.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *rest)
loop.Loop.train_step = step
train_folds({data!r}, {output!r}, checkpoint_seconds=0.0, **{options!r})
"""


@pytest.fixture(scope="module")
def runs(shards):
    """The runs of all folds, made without a stop."""
    return tfpipe.train_folds(shards, shards.parent / "cv", **RECIPE, **TRAIN)


def hashes(folder):
    return [json.loads((folder / name / "summary.json").read_text())["model_sha256"] for name in FOLDS]


def test_folds_killed_in_a_step_end_with_the_same_bits(shards, runs, tmp_path):
    folder = tmp_path / "cv"
    code = KILLED.format(data=str(shards), output=str(folder), options={**RECIPE, **TRAIN})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["fold0", "fold1", "folds.json"]
    assert not (folder / "fold1" / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (folder / "fold0").rglob("*")}
    lines = []
    again = tfpipe.train_folds(shards, folder, **RECIPE, **{**TRAIN, "log": lines.append})
    assert {path: path.stat().st_mtime_ns for path in (folder / "fold0").rglob("*")} == before  # finished: left alone
    assert hashes(folder) == hashes(runs.folder) == [run.model_sha256 for run in again.runs]
    assert len(set(hashes(folder))) == NUM_FOLDS
    assert any("fold1: run 2 of 4, trained on fold0+fold3, validated on fold2" in line for line in lines)


def test_each_run_names_its_splits(shards, runs):
    assert [run.folder.name for run in runs.runs] == FOLDS
    for fold in folds.plan(manifest.load(shards).splits, "x"):
        data = json.loads((runs.folder / fold.held_out / "run.json").read_text())["data"]
        assert (data["train_split"], data["val_split"]) == (fold.train, fold.val)
        assert data["num_train"] == manifest.load(shards).split(fold.train).num_records
    assert "4 runs" in repr(runs)


def test_wrong_trainings_of_folds_are_refused(shards, runs, photos, tmp_path):
    other = tfpipe.build_tfrecords(photos, tmp_path / "other", splits={"train": 0.5, "val": 0.5}, **OPTIONS)
    assert folds.names(other.splits) == []
    cases = [
        (lambda: tfpipe.train_folds(tmp_path / "other", tmp_path / "cv", **RECIPE), ValueError, "has no folds"),
        (lambda: tfpipe.train(shards, tmp_path / "run", **RECIPE), ValueError, "train_folds"),
        (lambda: tfpipe.train_folds(shards, runs.folder / "fold0", **RECIPE), ValueError, "holds a run"),
        (lambda: tfpipe.train_folds(shards, tmp_path, **RECIPE), ValueError, "other files"),
        (lambda: tfpipe.train_folds(shards, tmp_path / "cv", train_split="fold0"), TypeError, "train_split"),
        (
            lambda: tfpipe.train_folds(shards, tmp_path / "cv", from_run=runs.folder / "fold0"),
            ValueError,
            "seen images",
        ),
        (
            lambda: tfpipe.train_folds(shards, runs.folder, **{**RECIPE, "seed": 5}, **TRAIN),
            ValueError,
            "a run with seed",
        ),
        (
            lambda: tfpipe.train(shards, runs.folder / "fold0", **RECIPE, **TRAIN, train_split="fold2+fold3"),
            ValueError,
            "val_split",
        ),
        (
            lambda: tfpipe.train(shards, tmp_path / "run", **RECIPE, train_split="fold0+fold1", val_split="fold1"),
            ValueError,
            "'fold1' cannot both",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message):
            call()
    shutil.copy(runs.folder / "folds.json", tmp_path / "folds.json")
    content = json.loads((tmp_path / "folds.json").read_text())
    (tmp_path / "folds.json").write_text(json.dumps({**content, "root_hash": "0" * 64}))
    with pytest.raises(ValueError, match="folds of another data set"):
        tfpipe.train_folds(shards, tmp_path, **RECIPE)


def test_g12_features_are_of_single_splits_and_shared(shards, tmp_path):
    recipe = {**RECIPE, "backbone": "small_backbone:two_convolutions", "weights": "none", "mode": "bottleneck", "epochs": 1}
    for number, (train_split, val_split, num_caches) in enumerate([("fold0+fold1", "fold2", 3), ("fold3+fold1", "fold0", 4)]):
        lines = []
        options = {**TRAIN, "log": lines.append, "train_split": train_split, "val_split": val_split}
        tfpipe.train(shards, tmp_path / str(number), **recipe, **options)
        assert len(list((tmp_path / "features").iterdir())) == num_caches
        assert any("frozen layers in training equal the cache" in line for line in lines)


# ---- evaluation


@pytest.fixture(scope="module")
def evaluation(shards, runs):
    return tfpipe.evaluate_folds(runs.folder, shards, shards.parent / "eval", progress=False)


def test_g11_each_image_once_by_the_model_that_has_not_seen_it(shards, runs, evaluation):

    table = predictions.read(evaluation.folder)
    rows = [row for row in catalog.read_catalog(shards) if row.split in FOLDS]
    assert table.keys == [row.key for row in rows]
    assert table.folds == [row.split for row in rows]
    for name, part in table.by_fold().items():
        images = next(tfpipe.dataset(shards, name, batch_size=64, image_size=(16, 16)).as_numpy_iterator())[0]
        expected = classifiers.load(runs.folder / name).predict(images)
        np.testing.assert_array_equal(part.probabilities, expected)
        other = classifiers.load(runs.folder / FOLDS[FOLDS.index(name) - 1]).predict(images)
        assert not np.array_equal(part.probabilities, other)
    receipt = evaluation.receipt
    assert receipt["records_seen"] == receipt["records_expected"] == len(rows)
    assert [fold["model_sha256"] for fold in receipt["folds"]] == hashes(runs.folder)
    for fold in receipt["folds"]:
        assert fold["held_out"] not in (fold["val"], *fold["train"].split("+"))
    assert sum(fold["records"] for fold in receipt["folds"]) == len(rows)
    assert (evaluation.folder / "report.html").exists()


def test_the_metrics_of_folds_are_those_of_their_parts(evaluation):

    table, found = predictions.read(evaluation.folder), evaluation.metrics["folds"]
    assert found["names"] == FOLDS
    for name in ("accuracy", "auc", "log_loss"):
        values = [metrics.measure(part)[name] for part in table.by_fold().values()]
        assert found[name]["values"] == values
        assert found[name]["mean"] == pytest.approx(np.mean(values))
        assert found[name]["deviation"] == pytest.approx(np.std(values, ddof=1))
    low, high = found["accuracy"]["interval"]
    assert low <= found["accuracy"]["mean"] <= high
    assert evaluation.metrics["accuracy"] == metrics.measure(table)["accuracy"]


def test_report_and_summary_have_a_table_of_the_folds(evaluation, tool):
    folds, page = evaluation.metrics["folds"], (evaluation.folder / "report.html").read_text()
    summary = tool._summary(evaluation)
    for index, name in enumerate(FOLDS):
        of_fold = [f"{folds['counts'][index]}", *(f"{folds[one]['values'][index]:.4f}" for one in ("accuracy", "log_loss"))]
        (row,) = re.findall(f"<tr><th>{name}</th>(.*?)</tr>", page)
        assert set(of_fold) <= set(re.findall("<td>(.*?)</td>", row))
        (line,) = re.findall(f"^{name} (.*)$", summary, re.MULTILINE)
        assert set(of_fold) <= set(line.split())
    assert sum(folds["counts"]) == evaluation.metrics["count"]
    low, high = folds["log_loss"]["interval"]
    for shown in (f"{folds['accuracy']['mean']:.4f}", f"{folds['accuracy']['deviation']:.4f}", f"{low:.4f} to {high:.4f}"):
        assert shown in summary
        assert f"<td>{shown}</td>" in page


def table_of(order, groups=None):
    keys, of_fold = [f"{row}" for row in order], [FOLDS[row % 4] for row in order]
    empty = np.zeros(len(order), np.int64)
    return predictions.Predictions(keys, keys, empty, empty[:, None], ["x"], groups=groups, folds=of_fold)


def test_the_bootstrap_of_a_mean_is_that_of_theory():
    random, size = np.random.default_rng(0), 4000
    values, rows = random.normal(3, 2, size), np.arange(size)
    error = 2 / np.sqrt(size)
    low, high = bootstrap(values, table_of(rows))
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.02)
    order = random.permutation(size)
    assert bootstrap(values[order], table_of(order)) == pytest.approx([low, high])
    apart = values + 10 * (rows % 4)  # what differs between folds is not the chance of the images
    assert np.diff(bootstrap(apart, table_of(rows))) == pytest.approx(high - low)
    # Groups of 10 images with one value each: a tenth of the evidence.
    same, groups = np.repeat(values[:100], 40), [f"{row // 40} {row % 4}" for row in rows]
    assert np.diff(bootstrap(same, table_of(rows, groups))) > 2.5 * np.diff(bootstrap(same, table_of(rows)))


def test_the_interval_of_a_mean_holds_with_few_groups_and_is_none_where_draws_tell_nothing():
    random, rows = np.random.default_rng(0), np.arange(160)
    groups, held = [f"{row % 20}" for row in rows], 0
    for _ in range(200):
        right = random.random(160) < np.tile(random.beta(1.6, 0.4, 20), 8)
        low, high = bootstrap(right, table_of(rows, groups))
        held += low <= 0.8 <= high
    assert held >= 0.9 * 200
    assert bootstrap(np.ones(160, bool), table_of(rows, groups)) is None  # not 1 to 1
    assert bootstrap(rows < 80, table_of(rows, [f"{row % 4}" for row in rows])) is None  # one patient in each fold


def test_a_run_that_has_seen_its_fold_is_refused(shards, runs, tmp_path, caplog):
    folder = shutil.copytree(runs.folder, tmp_path / "cv")
    for name, value, message in [
        ("train_split", "fold0+fold3", "was made of fold0, fold1 and fold3|was made of fold0 and fold1 and fold3"),
        ("val_split", "fold0", "was made of"),
        ("root_hash", "0" * 64, "not a run on this data set"),
    ]:
        path = folder / "fold0" / "run.json"
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, "data": {**whole["data"], name: value}}))
        with pytest.raises(ValueError, match=message):
            tfpipe.evaluate_folds(folder, shards, tmp_path / "eval", progress=False)
        path.write_text(json.dumps(whole))
    shutil.copy(folder / "fold2" / "model.keras", folder / "fold1" / "model.keras")
    with pytest.raises(tfpipe.DataError, match="was replaced"):
        tfpipe.evaluate_folds(folder, shards, tmp_path / "eval", progress=False)
    assert not (tmp_path / "eval" / "receipt.json").exists()
    with pytest.raises(FileNotFoundError, match=r"no folds\.json"):
        tfpipe.evaluate_folds(folder / "fold0", shards, tmp_path / "eval")
    shutil.rmtree(folder / "fold3")
    with pytest.raises(FileNotFoundError, match="fold3"):
        tfpipe.evaluate_folds(folder, shards, tmp_path / "eval")
    with caplog.at_level(logging.WARNING, "tfpipe"):
        tfpipe.evaluate(runs.folder / "fold0", shards, "fold2", tmp_path / "seen", report=False, progress=False)
        assert "was trained on fold2" in caplog.text
        tfpipe.evaluate(runs.folder / "fold0", shards, "fold1", tmp_path / "seen", report=False, progress=False)
        assert "was chosen by its results on fold1" in caplog.text
        caplog.clear()
        tfpipe.evaluate(runs.folder / "fold0", shards, "fold0", tmp_path / "seen", report=False, progress=False)
        assert "was trained on" not in caplog.text


def test_options_of_one_model_are_refused_out_of_fold_by_name(runs, tool):
    tool._MODEL.value, tool._CALIBRATE.value, tool._TTA.value = str(runs.folder), "test", "flip"
    with pytest.raises(tool.commands.UsageError, match=r"^--calibrate and --tta cannot be used .* as in --split=test$"):
        tool._evaluate(None)


def test_folds_of_groups_with_several_labels_an_image(tmp_path, tool, monkeypatch):
    table = label_fixtures.write_table(
        tmp_path, label_fixtures.draw_labels(60), who=[f"患者 {row // 3}|+," for row in range(60)]
    )
    data, options = tmp_path / "shards", {"layout": "csv", "label_columns": label_fixtures.NAMES, "group": "who", "workers": 1}
    tfpipe.build_tfrecords(table, data, splits={"folds": 3}, progress=False, **options)
    assert len({(row.group, row.split) for row in catalog.read_catalog(data)}) == 20
    tfpipe.train_folds(data, tmp_path / "cv", **{**RECIPE, "epochs": 1}, **TRAIN)
    found = tfpipe.evaluate_folds(tmp_path / "cv", data, tmp_path / "eval", progress=False)
    table = predictions.read(found.folder)
    assert found.receipt["num_groups"] == 20
    assert set(table.folds) == {"fold0", "fold1", "fold2"}
    of_folds = [label_metrics.measure(part)["macro_auc"] for part in table.by_fold().values()]
    assert found.metrics["folds"]["macro_auc"]["values"] == of_folds
    assert not (found.folder / "suspects.csv").exists()  # which are of one class an image
    page = (found.folder / "report.html").read_text()
    assert f"<td>{of_folds[2]:.4f}</td>" in page[page.index("<h2>Folds</h2>") : page.index("<h2>Class balance</h2>")]
    assert "--calibrate" not in page  # which is refused of folds
    summary = tool._summary(found)
    assert "intervals by group, of 20 groups" in summary
    assert "3 folds, each predicted by the model that has not seen it\nfold" in summary

    monkeypatch.setattr(parity, "_run_process", parity_process.run_all)  # here, which is faster
    done = tfpipe.export(
        tmp_path / "cv", tmp_path / "export", ensemble=True, tta="flip", formats=("saved_model", "pb", "tflite_int8")
    )
    assert done.int8["split"] == "fold1"  # of the first model: trained on fold2, chosen by fold1
    assert {row.difference for row in done.parity if row.artefact != "model_int8.tflite"} == {0}
    assert "measured cost, on images of fold1" in (tmp_path / "export" / "model_card.md").read_text()
    image = next(iter((tmp_path / "images").iterdir()))
    files = [tfpipe.load(tmp_path / "export" / name) for name in ("saved_model", "frozen_image_tta.pb")]
    first, second = (model.predict(image, **given)[0] for model, given in zip(files, ({"tta": "flip"}, {}), strict=True))
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-6)
    assert first.labels == second.labels


# ---- the mean of all models


def test_an_ensemble_is_the_mean_of_its_models(shards, runs, evaluation, tmp_path):

    loaded = opening.load(runs.folder)
    images = next(tfpipe.dataset(shards, "test", batch_size=64, image_size=(16, 16)).as_numpy_iterator())[0]
    mean = np.mean([classifiers.load(runs.folder / name).predict(images) for name in FOLDS], axis=0)
    np.testing.assert_allclose(loaded.predict(images), mean, atol=1e-6)
    given = {"formats": ("saved_model", "keras", "tflite"), "evaluation": evaluation.folder}
    done = tfpipe.export(runs.folder, tmp_path / "export", ensemble=True, **given)
    exact = [row for row in done.parity if row.artefact in ("saved_model", "model.keras")]
    assert exact
    assert {row.difference for row in exact} == {0}
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert "the mean of the probabilities of 4 models, each trained without one fold" in card
    assert "fold0+fold1+fold2+fold3, out of fold" in card
    assert "their mean cannot be measured on these images" in card
    of_folds = evaluation.metrics["folds"]
    assert f"| fold3 | {of_folds['counts'][3]} | {of_folds['accuracy']['values'][3]:.4f} |" in card
    results = [
        tfpipe.evaluate(given, shards, "test", tmp_path / "eval", report=False, progress=False)
        for given in (runs.folder, tfpipe.load(tmp_path / "export"), tfpipe.load(tmp_path / "export" / "model.keras"))
    ]
    assert len({(one.receipt["model_sha256"], one.metrics["accuracy"]) for one in results}) == 1
    assert results[0].receipt["model_sha256"] == loaded.sha256
    predicted = tfpipe.load(tmp_path / "export").predict([shards.parent / "photos" / CLASS_NAMES[1] / "0.jpg"])
    assert predicted[0].reason == ""
    tfpipe.export(classifiers.load_named(tmp_path / "export" / "model.keras"), tmp_path / "again", formats="tflite")
    for file in ("export", "export/model.keras", "export/model_dynamic_range.tflite", "again/model.tflite"):
        for splits in ({"split": "fold1"}, {"split": "test", "calibrate": "fold0"}):
            with pytest.raises(ValueError, match="models that this one averages were trained on 'fold"):
                tfpipe.evaluate(tfpipe.load(tmp_path / file), shards, output=tmp_path / "x", **splits)


def test_an_export_of_one_fold_is_evaluated_with_a_warning_on_what_made_it(shards, runs, tmp_path, caplog):
    tfpipe.export(runs.folder / "fold0", tmp_path / "export", formats="pb")
    facts = json.loads((tmp_path / "export" / "preprocessing.json").read_text())
    root_hash = manifest.load(shards).root_hash
    assert facts["seen"] == [{"root_hash": root_hash, "train": "fold2+fold3", "val": "fold1"}]
    model = tfpipe.load(tmp_path / "export" / "frozen_image.pb")
    for split, warning in [("fold2", "was trained on fold2"), ("fold1", "was chosen by its results on fold1"), ("fold0", "")]:
        caplog.clear()
        tfpipe.evaluate(model, shards, split, tmp_path / "eval", tta="flip", report=False, progress=False)
        assert warning in caplog.text
        assert bool(warning) == ("that it had not seen" in caplog.text)


def test_wrong_uses_of_an_ensemble_are_refused(shards, runs, evaluation, tmp_path):
    other = shutil.copytree(evaluation.folder, tmp_path / "other")
    (other / "receipt.json").write_text((other / "receipt.json").read_text().replace(hashes(runs.folder)[2], "0" * 64))
    cases = [
        (lambda: tfpipe.export(runs.folder, tmp_path / "x", ensemble=True, evaluation=other), "4 models, not those of this"),
        (
            lambda: tfpipe.export(runs.folder / "fold0", tmp_path / "x", evaluation=evaluation.folder),
            "the export of their mean",
        ),
        (lambda: tfpipe.export(runs.folder, tmp_path / "x"), "export their mean with ensemble"),
        (lambda: tfpipe.export(runs.folder / "fold0", tmp_path / "x", ensemble=True), "which this is not"),
        (lambda: tfpipe.export(runs.folder, tmp_path / "x", ensemble=True, checkpoint="last"), "the best models are averaged"),
        (lambda: tfpipe.evaluate(runs.folder, shards, "fold1", tmp_path / "x"), "averages were trained on 'fold1'"),
        (lambda: tfpipe.evaluate(runs.folder, shards, "test+fold1", tmp_path / "x"), "averages were trained on 'fold1'"),
        (
            lambda: tfpipe.evaluate(tfpipe.load(runs.folder), shards, "fold1", tmp_path / "x"),
            "averages were trained on 'fold1'",
        ),
        (
            lambda: tfpipe.evaluate(runs.folder, shards, "test", tmp_path / "x", calibrate="fold1"),
            "averages were trained on 'fold1'",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "x").exists()


def test_an_ensemble_of_one_backbone_holds_it_once(tmp_path):

    first, second = make_classifier().model, make_classifier().model
    second.get_layer("logits").set_weights([weights * 2 for weights in first.get_layer("logits").get_weights()])
    mean, images = ensembles.average([first, second]), np.random.default_rng(0).integers(0, 256, (4, *first.input_shape[1:]))
    assert len(mean.get_layer("ensemble").networks) == 1
    expected = (first(images, training=False) + second(images, training=False)) / 2
    np.testing.assert_allclose(mean(images, training=False), expected, atol=1e-6)
    trunk = first.get_layer("frozen").network
    trunk.set_weights([weights * 1.5 for weights in trunk.get_weights()])
    apart = ensembles.average([first, second])
    assert len(apart.get_layer("ensemble").networks) == 2
    assert NamedModel(apart).sha256 != NamedModel(mean).sha256
    keras_files.save(apart, tmp_path / "apart.keras")
    assert NamedModel(keras_files.load(tmp_path / "apart.keras")).sha256 == NamedModel(apart).sha256
    plain = keras.saving.load_model(tmp_path / "apart.keras")  # of Keras' layers alone
    np.testing.assert_array_equal(plain(images, training=False), apart(images, training=False))
    with pytest.raises(ValueError, match="same classes"):
        ensembles.average([first, make_classifier(class_names=("a", "b", "c")).model])
