"""Several labels an image, with TensorFlow: reading, training, evaluation, export, prediction."""

import csv
import itertools
import json
import types
from array import array

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from browser_fixtures import PATIENCE, browser
from conftest import write
from label_fixtures import NAMES, build, draw_labels, squares
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from transfer_fixtures import SMALL

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.evaluation import label_metrics, label_report, mcnemar, metrics, thresholding
from tfpipe.exporting import calibration, exporter
from tfpipe.models import classifiers, predictions
from tfpipe.networks import objectives
from tfpipe.networks.layers import Probabilities
from tfpipe.page import page_markup
from tfpipe.page.answers import Answers, Upload
from tfpipe.pipeline.loader import targets_of
from tfpipe.records import example, manifest, schema, tfrecord
from tfpipe.records.catalog import read_catalog
from tfpipe.training import regression

__all__ = ["browser"]  # a fixture

LABELS = {f"images/{index:04d}.png": row for index, row in enumerate(draw_labels(240))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    for index in range(5):
        write(root / "bare" / f"{index}.png", squares(1000 + index, [True, False, False]))
    return build(root, unlabelled={"bare": root / "bare"})


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A network that separates the colours; the epochs are chosen by the loss."""
    folder = tmp_path_factory.mktemp("run") / "run"
    given = {"backbone": "lenet", "mode": "scratch", "image_size": (32, 32), "augment": "none", "class_weights": True}
    found = tfpipe.train(
        shards, folder, **given, epochs=20, batch_size=16, learning_rate=3e-3, progress=False, tensorboard=False, log=None
    )
    assert found.val_accuracy > 0.8  # of labels; two of three are absent
    return folder


@pytest.fixture(scope="module")
def evaluation(run, shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "eval"
    return tfpipe.evaluate(run, shards, "test", folder, calibrate="val", progress=False)


# ---- reading


def test_an_empty_list_of_labels_has_tensorflows_bytes():
    empty = tf.train.Example()
    empty.features.feature["image/class/label"].int64_list.SetInParent()
    empty.features.feature["image/key"].bytes_list.value.append(b"1")
    encoded = example.encode({"image/class/label": array("q"), "image/key": b"1"})
    assert encoded == empty.SerializeToString(deterministic=True)
    assert example.decode(encoded)["image/class/label"] == []


def test_labels_come_as_a_row_of_numbers_for_each_image(shards):
    seen = {}
    for split in ("train", "val", "test"):
        data = tfpipe.dataset(shards, split, batch_size=16, image_size=32, as_dict=True)
        assert data.class_names == list(NAMES)
        for row in data.unbatch().as_numpy_iterator():
            seen[row["key"].decode()] = row["label"]
    assert all((seen[key] == LABELS[key]).all() and seen[key].dtype == np.float32 for key in LABELS)
    assert len(seen) == len(LABELS)
    labels = np.concatenate([label for _, label in tfpipe.dataset(shards, "bare", image_size=32)])
    assert (labels == -1).all()
    assert labels.shape == (5, 3)


def test_class_names_choose_columns_and_blank_rows_are_unknown(shards):
    data = tfpipe.dataset(shards, "val", batch_size=13, image_size=32, class_names=["blue", "red"], equal_steps=True)
    count = manifest.load(shards).split("val").num_records
    keys = [row.key for row in read_catalog(shards, split="val")]
    labels, weights = (np.concatenate(part) for part in zip(*[(label, weight) for _, label, weight in data], strict=True))
    assert (labels[:count] == [LABELS[key][[2, 0]] for key in keys]).all()
    assert len(labels) > count
    assert (labels[count:] == -1).all()
    assert (weights == (np.arange(len(labels)) < count)).all()


def test_training_shuffles_the_labels_with_their_images_and_mixes_what_is_known(shards):
    plain = tfpipe.dataset(shards, "train", image_size=32, training=True, augment="none", seed=3, as_dict=True)
    assert all((row["label"] == LABELS[row["key"].decode()]).all() for row in plain.unbatch().as_numpy_iterator())
    mixing = tfpipe.Augmentation(mixup=1.0)
    mixed = np.concatenate(
        [label for _, label in tfpipe.dataset(shards, "train", image_size=32, training=True, augment=mixing, seed=3)]
    )
    before = np.stack(
        [
            row["label"]
            for row in tfpipe.dataset(shards, "train", image_size=32, training=True, augment="none", seed=3, as_dict=True)
            .unbatch()
            .as_numpy_iterator()
        ]
    )
    assert ((mixed == -1) | ((mixed >= 0) & (mixed <= 1))).all()
    assert (mixed[before == -1] == -1).all()  # unknown stays unknown, and so is what is mixed with it
    assert ((mixed > 0.01) & (mixed < 0.99)).any()


def test_records_that_contradict_the_catalog_are_noticed_while_reading(shards, tmp_path):
    folder = build(tmp_path, count=40)
    for row in tfpipe.dataset(folder, "test", image_size=32, as_dict=True).unbatch().as_numpy_iterator():
        assert (row["label"] == draw_labels(40)[int(row["key"][7:11])]).all()
    shard = folder / manifest.load(folder).split("test").shards[0].file
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(tf.errors.InvalidArgumentError, match="CRC"):
        list(tfpipe.dataset(folder, "test", image_size=32))


def test_tensorflow_datasets_reads_a_list_of_class_labels(shards):
    builder = tfds.builder_from_directory(shards)
    config = tfds.ReadConfig(interleave_cycle_length=1)
    rows = list(builder.as_dataset(split="test", read_config=config, shuffle_files=False).as_numpy_iterator())
    assert isinstance(builder.info.features[schema.LABEL], tfds.features.Sequence)
    assert builder.info.features[schema.LABEL].feature.names == list(NAMES)
    for row in rows:
        expected = LABELS[row[schema.KEY].decode()]
        assert row[schema.LABEL].tolist() == np.flatnonzero(expected == 1).tolist()
        assert row[schema.UNKNOWN].tolist() == np.flatnonzero(expected == -1).tolist()
    assert len(rows) == manifest.load(shards).split("test").num_records
    parsed = [
        tfpipe.parse_example(raw.data, task="multilabel")[schema.LABEL].numpy().tolist()
        for file in sorted(shards.glob("squares-test.tfrecord-*"))
        for raw in tfrecord.read_frames(file)
    ]
    assert parsed == [row[schema.LABEL].tolist() for row in rows]


# ---- training


def test_the_loss_is_that_of_known_labels_alone():
    random = np.random.default_rng(0)
    logits = tf.Variable(random.normal(size=(50, 4)).astype(np.float32))
    targets = random.integers(-1, 2, (50, 4)).astype(np.float32)
    weights = np.array([1.0, 2.0, 5.0, 0.5])
    objective = objectives.of_task("multilabel")
    with tf.GradientTape() as tape:
        losses = objective.losses(logits, targets, 0.1, weights)
    p, soft = 1 / (1 + np.exp(-logits.numpy().astype(np.float64))), targets * 0.9 + 0.05
    expected = np.where(targets >= 0, -weights * soft * np.log(p) - (1 - soft) * np.log(1 - p), 0).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    gradient = tape.gradient(losses, logits).numpy()
    assert (gradient[targets < 0] == 0).all()
    assert (gradient[targets >= 0] != 0).all()
    right = objective.right(logits, targets).numpy()
    known = targets >= 0
    shares = ((logits.numpy() > 0) == (targets > 0))[known.any(axis=1)]
    assert right[known.any(axis=1)] == pytest.approx(
        [row[mask].mean() for row, mask in zip(shares, known[known.any(axis=1)], strict=True)]
    )
    assert (objective.losses(logits, np.full((50, 4), -1.0, np.float32), 0.1, None).numpy() == 0).all()  # blank rows


def test_regressions_of_a_head_are_those_of_scikit_learn_on_known_rows():
    random = np.random.default_rng(1)
    maps, truth = random.normal(size=(300, 1, 1, 5)).astype(np.float32), random.normal(size=(5, 3))
    targets = (maps[:, 0, 0] @ truth + random.normal(size=(300, 3)) > 0).astype(np.float32)
    targets[random.random(targets.shape) < 0.3] = -1
    targets[:, 2] = np.where(targets[:, 2] < 0, -1, 1)  # nothing to fit
    features = types.SimpleNamespace(rows=lambda positions: maps[positions], shape=(1, 1, 5))
    parts = np.arange(200), np.arange(200, 300)
    train, val = (regression.Rows([features], part, targets[part], task="multilabel") for part in parts)
    found = regression.search(train, val, ["average"])
    rows = maps[:200, 0, 0].astype(np.float64)
    centred = rows - rows.mean(0)
    scale = np.sqrt(np.square(centred).mean())
    for index in (0, 1):
        known = targets[:200, index] >= 0
        model = LogisticRegression(C=found.best.strength, max_iter=1000, tol=1e-6).fit(
            centred[known] / scale, targets[:200, index][known]
        )
        np.testing.assert_allclose(found.kernel[:, index], model.coef_[0] / scale, rtol=1e-2, atol=1e-3)
    assert (found.kernel[:, 2] == 0).all()
    assert found.bias[2] > 2
    logits = maps[200:, 0, 0] @ found.kernel + found.bias
    loss = objectives.of_task("multilabel").validation_losses(logits, targets[200:], None).numpy().mean()
    assert found.best.val_loss == pytest.approx(float(loss), rel=1e-4)


def test_a_run_knows_its_task_and_the_model_gives_probabilities_of_each_label(run, shards):
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["task"] == "multilabel"
    model = classifiers.load(run)
    assert (model.task, model.class_names) == ("multilabel", NAMES)
    images, labels = next(iter(tfpipe.dataset(shards, "test", batch_size=48, image_size=32)))
    found = model.predict(images)
    logits = model.head(model.trunk(images)).numpy()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert (abs(found.sum(axis=1) - 1) > 0.1).any()
    right = ((found > 0.5) == (labels.numpy() > 0))[labels.numpy() >= 0]
    assert right.mean() > 0.8
    with open(run / "history.csv") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    summary = json.loads((run / "summary.json").read_text())["phases"][0]
    assert summary["best_epoch"] == 1 + int(np.argmin(losses))  # and not that of the most right labels


def test_a_head_on_cached_features_is_trained_and_held_out_by_class(tmp_path):
    folder = build(tmp_path, count=120, splits={"train": 0.8, "test": 0.2})
    options = {
        "image_size": (32, 32),
        "mode": "bottleneck",
        "progress": False,
        "tensorboard": False,
        "cache": tmp_path / "cache",
    }
    lines = []
    recipe = {"backbone": SMALL.backbone, "weights": "none", "val_fraction": 0.25}
    found = tfpipe.train(folder, tmp_path / "run", **recipe, **options, log=lines.append)
    assert found.head is not None
    assert any("held out" in line for line in lines)
    by_steps = tfpipe.train(folder, tmp_path / "steps", **recipe, **options, solver="gradient", epochs=3, ema=0.9, log=None)
    assert by_steps.head is None
    assert classifiers.load(tmp_path / "steps").task == "multilabel"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"balanced": True}, "balanced is for one class an image"),
        ({"class_weights": True, "augment": tfpipe.Augmentation(mixup=1.0)}, "do not go together"),
    ],
)
def test_options_of_one_class_an_image_are_refused(shards, tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        tfpipe.train(shards, tmp_path / "run", backbone="lenet", mode="scratch", log=None, **options)
    if "balanced" in options:
        with pytest.raises(ValueError, match=why):
            tfpipe.dataset(shards, "train", training=True, balanced=True)


def test_the_layer_of_one_class_keeps_its_configuration():
    assert "task" not in Probabilities(["a", "b"]).get_config()
    layer = Probabilities(["a", "b"], task="multilabel")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.task == "multilabel"
    assert again(np.zeros((1, 2), np.float32)).numpy().tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match="task must be one of"):
        Probabilities(["a", "b"], task="both")


# ---- metrics


def table_of(count=400, seed=0, thresholds=None):
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, (count, 3)).astype(np.int8)
    targets[random.random(targets.shape) < 0.2] = -1
    scores = np.clip(targets * 0.2 + random.random(targets.shape) * 0.8, 0, 1).round(2).astype(np.float32)  # with ties
    keys = [f"{index:05d}" for index in random.permutation(count)]
    return predictions.of_several_labels(keys, keys, targets, scores, list("abc"), thresholds)


def test_metrics_are_those_of_scikit_learn_on_known_labels():
    table = table_of(thresholds=np.array([0.4, 0.5, 0.6]))
    found = label_metrics.measure(table, num_resamples=50)
    for index, row in enumerate(found["per_class"]):
        known = table.targets[:, index] >= 0
        truth, scores = table.targets[known, index], table.probabilities[known, index]
        assert row["auc"] == pytest.approx(roc_auc_score(truth, scores))
        assert row["average_precision"] == pytest.approx(average_precision_score(truth, scores))
        assert row["f1"] == pytest.approx(f1_score(truth, scores >= np.float32(row["threshold"])))
        assert row["auc_interval"][0] < row["auc"] < row["auc_interval"][1]
        assert (row["support"] + row["without"], row["unknown"]) == (known.sum(), (~known).sum())
    assert found["macro_auc"] == pytest.approx(np.mean([row["auc"] for row in found["per_class"]]))
    order = np.random.default_rng(9).permutation(len(table.keys))
    parts = [[table.keys[place] for place in order], table.targets[order], table.probabilities[order]]
    shuffled = predictions.of_several_labels(parts[0], parts[0], *parts[1:], list("abc"), table.thresholds)
    assert label_metrics.measure(shuffled, num_resamples=50) == found  # to the last bit
    json.dumps(found, allow_nan=False)


def test_resamples_weigh_as_repeated_images_would():
    table = table_of(count=60)
    known = table.targets[:, 0] >= 0
    order = np.argsort(table.keys)
    scores = table.probabilities[:, 0]
    one = label_metrics._sorted(table.targets[:, 0] > 0, known, scores, scores >= 0.5, order)
    weights = np.random.default_rng(0).integers(0, 3, (4, 60))
    found = label_metrics._values([one], weights)
    for row, weight in enumerate(weights):
        truth, scores = (part[order][known[order]] for part in (table.targets[:, 0], table.probabilities[:, 0]))
        own = weight[known[order]]
        assert found["auc"][row, 0] == pytest.approx(roc_auc_score(truth, scores, sample_weight=own))
        assert found["average_precision"][row, 0] == pytest.approx(average_precision_score(truth, scores, sample_weight=own))
        assert found["f1"][row, 0] == pytest.approx(f1_score(truth, scores >= 0.5, sample_weight=own))


def test_a_class_that_no_image_has_is_undefined_and_not_wrong():
    table = table_of(count=30)
    table.targets[:, 1] = np.minimum(table.targets[:, 1], 0)
    found = label_metrics.measure(table, num_resamples=10)
    assert found["per_class"][1]["auc"] is None
    assert found["macro_auc"] == pytest.approx((found["per_class"][0]["auc"] + found["per_class"][2]["auc"]) / 2)
    with pytest.raises(ValueError, match="labelled images"):
        label_metrics.measure(predictions.of_several_labels(["1"], ["1"], np.array([[-1]], np.int8), np.ones((1, 1)), ["a"]))


def test_thresholds_have_the_best_f1_and_few_digits(caplog):
    table = table_of(seed=4)
    chosen = thresholding.choose_thresholds(table)
    for index, threshold in enumerate(chosen):
        known = table.targets[:, index] >= 0
        truth, scores = table.targets[known, index], table.probabilities[known, index]
        best = max(f1_score(truth, scores >= value) for value in np.unique(scores))
        assert f1_score(truth, scores >= threshold) == pytest.approx(best)
        assert len(f"{threshold:g}") <= 6
    moved = predictions.of_several_labels(
        table.keys, table.keys, table.targets, table.probabilities + np.float32(1e-7), list("abc")
    )
    assert thresholding.choose_thresholds(moved) == chosen
    table.targets[:, 2] = 0
    assert thresholding.choose_thresholds(table)[2] == 0.5
    assert "no image has 1 class" in caplog.text


# ---- evaluation


def test_an_evaluation_chooses_thresholds_on_val_and_measures_at_them(evaluation, shards):
    found, folder = evaluation.metrics, evaluation.folder
    assert found["macro_auc"] > 0.9
    table = predictions.read(folder)
    assert table.task == "multilabel"
    assert (table.targets == [LABELS[key] for key in table.keys]).all()
    chosen = found["calibration"]["thresholds"]
    assert [row["threshold"] for row in found["per_class"]] == [chosen[name] for name in NAMES]
    val = predictions.read(folder / "calibration.csv")
    assert dict(zip(NAMES, thresholding.choose_thresholds(val), strict=True)) == chosen
    with open(folder / "predictions.csv") as file:
        for row in csv.DictReader(file):
            above = [name for name in NAMES if np.float32(row[f"probability_{name}"]) >= np.float32(chosen[name])]
            assert row["predicted"] == "|".join(sorted(above))
    assert metrics.load(folder) == found
    assert evaluation.receipt["records_seen"] == manifest.load(shards).split("test").num_records
    page = (folder / "report.html").read_text()
    assert "Labels that the model contradicts" in page
    assert all(f"<th>{name}</th>" in page for name in NAMES)


def test_the_report_shows_all_metrics_of_a_class_in_a_window_of_1100_pixels(evaluation, browser):
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto((evaluation.folder / "report.html").as_uri(), timeout=PATIENCE)
    widths = page.evaluate("[...document.querySelectorAll('.scroll')].map(one => [one.scrollWidth, one.clientWidth])")
    assert all(needed <= there for needed, there in widths)
    row = page.inner_text("tr:has(small) >> nth=0")
    first = evaluation.metrics["per_class"][0]
    low, high = first["auc_interval"]
    assert f"{first['auc']:.4f}" in row
    assert f"{low:.4f} to {high:.4f}" in row
    page.close()


def test_an_evaluation_shows_the_means_of_its_classes(evaluation):
    shown, table = repr(evaluation), evaluation._repr_html_()
    for name in ("macro_auc", "macro_average_precision", "macro_f1"):
        value, (low, high) = evaluation.metrics[name], evaluation.metrics[f"{name}_interval"]
        assert f"{name}={value!r}" in shown
        assert f"<td>{name}</td><td>{value:.4f}</td><td>{low:.4f}</td><td>{high:.4f}</td>" in table


def test_parts_of_an_evaluation_merge_into_the_same_table(run, shards, evaluation, tmp_path):
    for index in range(2):
        merged = tfpipe.evaluate(run, shards, "test", tmp_path, shard=(index, 2), calibrate="val", report=False, progress=False)
    whole, parts = (predictions.read(folder) for folder in (evaluation.folder, tmp_path))
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, atol=1e-5)
    assert (whole.targets == parts.targets).all()
    assert merged.metrics["macro_f1"] == evaluation.metrics["macro_f1"]


def test_what_compares_one_class_an_image_refuses_a_list(run, shards, evaluation, tmp_path):
    with pytest.raises(DataError, match="McNemar"):
        mcnemar.compare(evaluation.folder, evaluation.folder)
    with pytest.raises(ValueError, match="positive_class is of one class"):
        tfpipe.evaluate(run, shards, "test", tmp_path, positive_class="red", progress=False)
    with pytest.raises(ValueError, match="label_metrics"):
        metrics.measure(predictions.read(evaluation.folder))
    one = tmp_path / "photos"
    for index, name in itertools.product(range(4), NAMES):
        write(one / name / f"{index}.png", squares(index, [name == other for other in NAMES]))
    tfpipe.build_tfrecords(one, tmp_path / "one", layout="folders", workers=1, progress=False)
    with pytest.raises(ValueError, match="is of task single, and the model of task multilabel"):
        tfpipe.evaluate(run, tmp_path / "one", "train", tmp_path / "eval", progress=False)


def test_the_worst_labels_come_first():
    table = table_of(count=50)
    places = label_report.worst_labels(table, [0.5] * 3)
    far = [abs(float(table.probabilities[row, column]) - table.targets[row, column]) for row, column in places]
    assert far == pytest.approx(sorted(far, reverse=True))
    assert len(far) == (((table.probabilities >= 0.5) != (table.targets > 0)) & (table.targets >= 0)).sum()


# ---- export and prediction


def test_an_export_in_whole_numbers_is_calibrated_on_images_of_several_labels(run, shards):
    classifier = classifiers.load(run)
    specification = exporter._specify(classifier, 1, 10**6)
    assert calibration.draw_images(shards, specification).shape[1:] == (*classifier.image_size, 3)


def test_an_export_names_the_labels_at_the_thresholds_of_the_evaluation(run, shards, evaluation, tmp_path):
    export = tfpipe.export(
        run,
        tmp_path / "export",
        formats=("saved_model", "pb"),
        evaluation=evaluation.folder,
        data=shards,
        log=lambda line: None,
    )
    stages = {row.stage: row.difference for row in export.parity}
    assert stages["labels"] == 0
    facts = json.loads((tmp_path / "export" / "preprocessing.json").read_text())
    thresholds = [evaluation.metrics["calibration"]["thresholds"][name] for name in NAMES]
    assert (facts["task"], facts["thresholds"]) == ("multilabel", thresholds)
    card = (tmp_path / "export" / "model_card.md").read_text()
    assert "Thresholds were chosen on val" in card
    model = tfpipe.load(tmp_path / "export" / "saved_model")
    files = [shards.parent / key for key in list(LABELS)[:20]]
    found = model.predict([*files, b"no image"])
    outputs = tf.saved_model.load(tmp_path / "export" / "saved_model").signatures["serving_default"](
        tf.constant([*(file.read_bytes() for file in files), b"no image"])
    )
    for row, one in enumerate(found[:-1]):
        expected = tuple(name for name, p, t in zip(NAMES, one.probabilities, thresholds, strict=True) if p >= np.float32(t))
        assert tuple(one.labels) == expected
        assert [name.decode() for name in outputs["labels"][row].numpy() if name] == list(expected)
    assert (found[-1].labels, found[-1].reason != "") == ((), True)
    assert set(outputs["labels"][-1].numpy()) == {b""}

    table = tmp_path / "table.csv"
    tfpipe.predict(model, shards, table, split="test", columns="table", progress=False)
    with open(table) as ours, open(evaluation.folder / "predictions.csv") as theirs:
        named = [{row["key"]: row["predicted"] for row in csv.DictReader(file)} for file in (ours, theirs)]
    assert named[0] == named[1]
    summary = tfpipe.predict(model, shards.parent / "images", tmp_path / "full.csv", progress=False)
    with open(tmp_path / "full.csv") as file:
        rows = list(csv.DictReader(file))
    counts = [sum(name in row["labels"].split("|") for row in rows) for name in NAMES]
    assert (list(summary.counts.values()), summary.num_rows) == (counts, 240)
    tfpipe.predict(model, shards.parent / "bare", tmp_path / "lines.jsonl", progress=False)
    line = json.loads((tmp_path / "lines.jsonl").read_text().splitlines()[0])
    assert line["labels"] == [name for name, t in zip(NAMES, thresholds, strict=True) if line["probabilities"][name] >= t]
    with pytest.raises(ValueError, match="columns=index is of one class"):
        tfpipe.predict(model, shards.parent / "bare", tmp_path / "index.csv", columns="index", progress=False)

    again = tfpipe.evaluate(model, shards, "test", tmp_path / "again", report=False, progress=False)
    assert [row["threshold"] for row in again.metrics["per_class"]] == thresholds  # the export's own
    assert again.metrics["macro_f1"] == evaluation.metrics["macro_f1"]

    answers = Answers(model.predictor)
    answer = answers.answer(str(files[0]))
    page = page_markup.answer("a", answer, model.predictor, "")
    assert f'<p class="label">{", ".join(found[0].labels) or "no label"}</p>' in page
    listed = page_markup.to_csv(list(answers.rows([Upload("a", str(files[0]))])), NAMES, page_markup.labels_of(model.predictor))
    assert b'"labels"' in listed.splitlines()[0]


def test_targets_of_a_label_are_its_combination_and_unknown_without_one():
    combined = np.array([[0, 1, -1], [1, 1, 0]], np.int8)
    assert targets_of(combined).tolist() == [[0, 1, -1], [1, 1, 0], [-1, -1, -1]]
    assert targets_of(combined, np.array([1, -1, 0])).tolist() == [[-1, 0], [0, 1], [-1, -1]]
