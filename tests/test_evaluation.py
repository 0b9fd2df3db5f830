"""Evaluation: ids in are ids out, for any batch size and any number of readers, or an error that names what is not."""

import csv
import json
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pipeline_fixtures
import pytest
import tensorflow as tf
from conftest import has_gpu, make_image, write
from evaluation_fixtures import *  # noqa: F403 (fixtures)
from evaluation_fixtures import CLASS_NAMES, build_images, make_classifier

import tfpipe
from tfpipe.common import files, locking
from tfpipe.common.errors import DataError
from tfpipe.common.files import sha256_of
from tfpipe.common.text import hash_names
from tfpipe.evaluation import evaluator, metrics, partial_tables, receipts
from tfpipe.evaluation.evaluator import evaluate
from tfpipe.models import predictions
from tfpipe.prediction.models import Model
from tfpipe.records import catalog

pytestmark = pytest.mark.tf

CAT, QUOTED, CHINESE = CLASS_NAMES
COUNTS = {"val": {CAT: 8, QUOTED: 7, CHINESE: 8}, "test": {CAT: 13, QUOTED: 9, CHINESE: 11}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write(root / "unlabelled" / "1.jpg", make_image(1))
    build_images(root, COUNTS, num_shards={"val": 1, "test": 3, "test1": 1}, unlabelled={"test1": root / "unlabelled"})
    return root / "shards"


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


def run(model, directory, output, split="test", **options):
    return evaluate(model, directory, split, output, **{"report": False, "progress": False, **options})


@pytest.fixture(scope="module")
def plain(classifier, shards, tmp_path_factory):
    """The evaluation that others are compared with."""
    return run(classifier, shards, tmp_path_factory.mktemp("plain") / "eval")


@pytest.fixture(scope="module")
def stored(shards):
    options = {"image_size": (8, 8), "scaled_decode": False, "as_dict": True, "batch_size": 33}
    return {split: next(iter(tfpipe.dataset(shards, split, **options))) for split in COUNTS}


@pytest.fixture
def quick(stored, monkeypatch):
    """The same batches without a graph for each, which takes longer than all else."""

    def batches(self, split, shard):
        start, end = (len(stored[split]["key"]) * (shard[0] + i) // shard[1] for i in (0, 1))
        for first in range(start, end, self.batch_size):
            yield {name: value[first : min(first + self.batch_size, end)] for name, value in stored[split].items()}

    monkeypatch.setattr(evaluator.Pass, "_batches", batches)


def rows_of(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def in_parts(model, directory, output, count, **options):
    return [run(model, directory, output, shard=(index, count), **options) for index in range(count)]


def test_g11_ids_in_are_ids_out(plain, shards):
    expected = [(row.key, row.filename, row.class_name) for row in catalog.read_catalog(shards, split="test")]
    assert len(expected) == 33
    assert [(row["key"], row["filename"], row["label"]) for row in rows_of(plain.folder)] == expected
    assert plain.receipt["records_seen"] == plain.receipt["records_expected"] == plain.metrics["count"] == 33
    assert plain.receipt["ids_sha256"] == plain.receipt["expected_ids_sha256"]
    assert plain.receipt["ids_sha256"] == hash_names(key for key, _, _ in expected)


@pytest.mark.parametrize(("readers", "batch_size"), [(1, 7), (3, 1), (3, 64), ("parts", 7)])
def test_g11_readers_and_batch_sizes_change_nothing(plain, classifier, shards, tmp_path, readers, batch_size):
    if readers == "parts":
        in_parts(classifier, shards, tmp_path, 3, batch_size=batch_size)
    else:
        run(classifier, shards, tmp_path, batch_size=batch_size, num_readers=readers)
    assert (tmp_path / "receipt.json").read_bytes() == (plain.folder / "receipt.json").read_bytes()
    ours, theirs = rows_of(tmp_path), rows_of(plain.folder)
    for name in ("key", "filename", "label", "predicted"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    one, other = predictions.read(tmp_path), predictions.read(plain.folder)
    assert np.abs(one.probabilities - other.probabilities).max() <= 1e-5
    assert len({row["predicted"] for row in ours}) > 1  # or nothing would be compared


def test_more_readers_than_records(tmp_path):
    images = [pipeline_fixtures.make_image(number) for number in range(2)]
    pipeline_fixtures.write_data_set(tmp_path / "shards", images, 1)
    found = run(make_classifier(pipeline_fixtures.CLASS_NAMES), tmp_path / "shards", tmp_path / "eval", num_readers=3)
    assert found.metrics["count"] == 2


@pytest.mark.parametrize("fault", ["missing", "double", "swapped", "stranger"])
@pytest.mark.usefixtures("quick")
def test_g11_a_record_lost_on_the_way_is_an_error(classifier, shards, tmp_path, monkeypatch, fault):
    keys = [row.key for row in catalog.read_catalog(shards, split="test")]
    changed = {
        "missing": keys[:4] + keys[5:],
        "double": [*keys, keys[2]],
        "swapped": [keys[1], keys[0], *keys[2:]],
        "stranger": [*keys[:-1], "stranger"],
    }[fault]
    message = {
        "missing": f"1 missing: {re.escape(repr(keys[4]))}",
        "double": "predictions.*twice",
        "swapped": "in another order than the catalog",
        "stranger": f"1 missing: {re.escape(repr(keys[-1]))}; 1 not in the catalog: 'stranger'",
    }[fault]

    def batches(self, split, shard):
        for key in changed:
            name = tf.constant([key])
            yield {"image": tf.zeros([1, 8, 8, 3], tf.uint8), "label": tf.constant([0]), "key": name, "filename": name}

    run(classifier, shards, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(evaluator.Pass, "_batches", batches)
    with pytest.raises(DataError, match=message):
        run(classifier, shards, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("shard", [None, (0, 2)])
@pytest.mark.usefixtures("quick")
def test_a_data_set_that_is_replaced_during_the_pass_is_an_error(classifier, shards, tmp_path, monkeypatch, shard):
    build_images(tmp_path, COUNTS, class_names=[CHINESE, CAT, QUOTED], num_shards=1)  # the same ids, other labels
    data, batches = shutil.copytree(shards, tmp_path / "data"), evaluator.Pass._batches

    def replace(self, *arguments):
        yield from batches(self, *arguments)
        data.rename(tmp_path / "old")
        (tmp_path / "shards").rename(data)

    monkeypatch.setattr(evaluator.Pass, "_batches", replace)
    with pytest.raises(DataError, match="data: the data set was replaced during the evaluation: data_root_hash"):
        run(classifier, data, tmp_path / "eval", shard=shard)
    assert not list((tmp_path / "eval").glob("*.*")) + list((tmp_path / "eval").rglob("*.json"))


def test_a_catalog_that_changes_during_the_pass_is_an_error(classifier, shards):
    manifest = tfpipe.load_manifest(shards)
    claim = receipts.claim(classifier, shards, manifest, "test", {})
    receipts.check_unchanged(claim, shards)
    with pytest.raises(DataError, match="expected_ids_sha256"):
        receipts.check_unchanged({**claim, "expected_ids_sha256": "0"}, shards)


def test_ids_are_compared_as_often_as_they_come(shards):
    keys = [row.key for row in catalog.read_catalog(shards, split="test")]
    receipts.check_ids(keys, shards, "test", Path("t.csv"))
    with pytest.raises(DataError, match=r"t\.csv: not the images of 'test': 1 twice or more: ") as caught:
        receipts.check_ids([*keys, keys[2]], shards, "test", Path("t.csv"))
    assert repr(keys[2]) in str(caught.value)
    with pytest.raises(DataError, match=r"33 missing: .*, \.\.\.$"):
        receipts.check_ids([], shards, "test", Path("t.csv"))


def test_all_metrics_come_from_the_table(plain):
    stored = json.loads((plain.folder / "metrics.json").read_text("utf-8"))
    digest = sha256_of(plain.folder / "predictions.csv")
    measured = metrics.measure(predictions.read(plain.folder))
    assert stored == plain.metrics == {**measured, "calibration": None, "predictions_sha256": digest}
    assert {"accuracy", "accuracy_interval", "count", "auc", "ece"} <= stored.keys()
    assert json.loads((plain.folder / "receipt.json").read_text("utf-8")) == plain.receipt


def test_probabilities_are_the_models(plain, classifier, shards):
    data = tfpipe.dataset(shards, "test", image_size=(8, 8), resize="stretch", scaled_decode=False, batch_size=33)
    expected = classifier.predict(next(iter(data))[0])
    assert np.abs(predictions.read(plain.folder).probabilities - expected).max() <= 1e-5


@pytest.mark.usefixtures("quick")
def test_the_receipt_names_what_was_evaluated(plain, classifier, shards, tmp_path):
    assert plain.receipt["data_root_hash"] == tfpipe.load_manifest(shards).root_hash
    assert plain.receipt["model_sha256"] == classifier.sha256
    assert plain.receipt["versions"]["tensorflow"] == tf.__version__
    other = run(make_classifier(seed=1), shards, tmp_path, "val").receipt
    differing = {name for name in other if other[name] != plain.receipt[name]}
    assert differing >= {"split", "model_sha256", "ids_sha256", "records_seen"}
    assert differing.isdisjoint({"data_root_hash", "class_names_sha256"})


def test_classes_are_matched_by_name(classifier, plain, tmp_path):
    # The same images; the data set counts its classes otherwise.
    build_images(tmp_path, {"test": COUNTS["test"]}, class_names=[CHINESE, CAT, QUOTED], num_shards=1)
    run(classifier, tmp_path / "shards", tmp_path / "eval")
    ours, theirs = ({row["key"].removeprefix("test/"): row for row in rows_of(at)} for at in (tmp_path / "eval", plain.folder))
    assert ours.keys() == theirs.keys()
    assert all(ours[key][name] == theirs[key][name] for key in ours for name in ("label", "predicted"))


@pytest.mark.usefixtures("quick")
def test_a_model_may_know_more_classes_and_must_not_know_fewer(shards, tmp_path):
    wide = make_classifier(["owl", *reversed(CLASS_NAMES)])
    found = run(wide, shards, tmp_path / "wide").metrics
    assert found["per_class"][0] == {**found["per_class"][0], "class_name": "owl", "support": 0, "recall": None}
    with pytest.raises(ValueError, match="the model does not know the classes '小 猫'; it knows 'cat', 'a, "):
        run(make_classifier([CAT, QUOTED]), shards, tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test1"}, "split 'test1' has no labels: tools/predict"),
        ({"split": "tset"}, r"split must be one of val, test, test1 \(got 'tset'\)"),
        ({"calibrate": "test"}, "calibrate must be another split"),
        ({"calibrate": "test1"}, "split 'test1' has no labels"),
        ({"positive_class": "owl"}, "positive_class must be one of"),
        ({"specificity": 2.0}, "specificity must be"),
        ({"batch_size": 0}, "batch_size must be an integer, 1 or more"),
        ({"num_readers": 0}, "num_readers must be an integer, 1 or more"),
        ({"shard": (3, 3)}, r"shard must be \(index, count\)"),
        ({"shard": (0, 3), "num_readers": 2}, "shard and num_readers exclude each other"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(classifier, shards, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(classifier, shards, tmp_path / "eval", **options)
    assert not (tmp_path / "eval").exists()


def test_an_empty_split_is_reported(classifier, tmp_path):
    empty = pipeline_fixtures.write_data_set(tmp_path / "shards", [], 1)
    with pytest.raises(ValueError, match="split 'test' is empty"):
        run(make_classifier(pipeline_fixtures.CLASS_NAMES), empty, tmp_path / "eval")


def test_an_output_that_cannot_be_written_to_fails_before_the_pass(classifier, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator.Pass, "chunks", lambda *_: pytest.fail("the pass has begun"))
    write(tmp_path / "file", b"")
    (tmp_path / "eval" / "metrics.json").mkdir(parents=True)
    for output in (tmp_path / "file", tmp_path / "file" / "eval", Path("/proc/eval"), tmp_path / "eval"):
        with pytest.raises(OSError, match=re.escape(str(output))):
            run(classifier, shards, output)


@pytest.mark.usefixtures("quick")
def test_other_files_of_the_folder_are_left_alone(classifier, shards, tmp_path):
    write(tmp_path / "notes.txt", b"mine")
    write(tmp_path / "parts" / "mine.txt", b"mine")
    run(classifier, shards, tmp_path, calibrate="val")
    run(classifier, shards, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "parts", "predictions.csv", "metrics.json", "receipt.json", "suspects.csv"}
    assert (tmp_path / "parts" / "mine.txt").read_bytes() == b"mine"


def test_a_damaged_record_is_named_and_leaves_no_table(tmp_path):
    images = [pipeline_fixtures.make_image(number) for number in range(9)]
    images[4] = pipeline_fixtures.damaged(pipeline_fixtures.make_image(4, 64, 64))
    pipeline_fixtures.write_data_set(tmp_path / "shards", images, 2)
    with pytest.raises(DataError, match=r"^\S*pets-test.tfrecord-00001-of-00002: at byte 0: record 0 \(source dog/4.jpg\): \w"):
        run(make_classifier(pipeline_fixtures.CLASS_NAMES), tmp_path / "shards", tmp_path / "eval")
    assert list((tmp_path / "eval").iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_model_that_answers_with_no_numbers_is_an_error(shards, tmp_path):
    broken = make_classifier(seed=2)
    broken.model.get_layer("logits").bias.assign([np.nan] * 3)
    with pytest.raises(DataError, match="are not numbers"):
        run(broken, shards, tmp_path)


@pytest.mark.usefixtures("quick")
def test_models_come_from_files_too(plain, classifier, shards, tmp_path):
    classifier.model.save(tmp_path / "model.keras")
    for model in (tmp_path, str(tmp_path / "model.keras")):
        assert run(model, shards, tmp_path / "eval").receipt == plain.receipt


def test_calibration_is_fitted_on_another_split_and_changes_no_answer(plain, classifier, shards, tmp_path):
    found = run(classifier, shards, tmp_path, calibrate="val")
    raw, before = found.receipt["calibration"], found.metrics["calibration"]["before"]
    assert raw == {**raw, "split": "val", "records_seen": 23}
    assert raw["temperature"] == found.metrics["calibration"]["temperature"] != 1
    assert [row["predicted"] for row in rows_of(tmp_path)] == [row["predicted"] for row in rows_of(plain.folder)]
    assert before == {name: plain.metrics[name] for name in before}
    assert found.metrics["log_loss"] < before["log_loss"]
    assert (tmp_path / "uncalibrated.csv").read_bytes() == (plain.folder / "predictions.csv").read_bytes()
    assert len(predictions.read(tmp_path / "calibration.csv").keys) == 23
    split = in_parts(classifier, shards, tmp_path / "parts", 2, calibrate="val", batch_size=7)[-1]
    assert split.receipt == found.receipt


@pytest.mark.usefixtures("quick")
def test_missing_parts_are_named_and_the_last_reader_merges(plain, classifier, shards, tmp_path):
    first = run(classifier, shards, tmp_path, shard=(2, 3))
    assert [path.name for path in first.missing_parts] == [f"predictions-0000{i}-of-00003.csv" for i in (0, 1)]
    assert not (tmp_path / "predictions.csv").exists()
    assert first.metrics == first.receipt == {}
    second = run(classifier, shards, tmp_path, shard=(0, 3))
    assert [path.name for path in second.missing_parts] == ["predictions-00001-of-00003.csv"]
    last = run(classifier, shards, tmp_path, shard=(1, 3))
    assert not last.missing_parts
    keys = [row["key"] for row in rows_of(tmp_path)]
    half, most = len(keys) // 3, len(keys) * 2 // 3
    assert (first.missing_ids, second.missing_ids, last.missing_ids) == (keys[:most], keys[half:most], ())
    assert last.metrics["accuracy"] == plain.metrics["accuracy"]


@pytest.mark.usefixtures("quick")
def test_parts_of_another_evaluation_are_as_good_as_missing(classifier, shards, tmp_path, caplog):
    other = make_classifier(seed=1)
    for options, name in [({}, "model_sha256"), ({"positive_class": CAT}, "options"), ({"split": "val"}, "split 'val'")]:
        output = tmp_path / name
        run(classifier if options else other, shards, output, shard=(0, 2), **options)
        assert run(classifier, shards, output, shard=(1, 2)).missing_parts == [partial_tables.part_path(output, 0, 2)]
        said = rf"predictions-00000-of-00002.csv: missing; the file is a part of another evaluation: .*{name}"
        assert re.search(said, caplog.text)
        assert not (output / "predictions.csv").exists()
        found = run(classifier, shards, output, shard=(0, 2))
        assert found.receipt["model_sha256"] == classifier.sha256


@pytest.mark.usefixtures("quick")
def test_a_part_that_is_replaced_during_the_merge_is_an_error(classifier, shards, tmp_path, monkeypatch):
    run(classifier, shards, tmp_path, shard=(0, 2))
    header = predictions.header

    def late(*given):  # called when all parts have been seen
        if (tmp_path / "parts" / "predictions-00001-of-00002.json").exists():
            monkeypatch.setattr(predictions, "header", header)
            run(make_classifier(seed=1), shards, tmp_path, shard=(0, 2))
        return header(*given)

    monkeypatch.setattr(predictions, "header", late)
    with pytest.raises(DataError, match=r"00000-of-00002\.csv: replaced while the parts were put together"):
        run(classifier, shards, tmp_path, shard=(1, 2))
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.usefixtures("quick")
def test_a_damaged_part_is_refused(classifier, shards, tmp_path):
    run(classifier, shards, tmp_path, shard=(0, 2))
    path = partial_tables.part_path(tmp_path, 0, 2)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"00000-of-00002.csv: not as it was written"):
        run(classifier, shards, tmp_path, shard=(1, 2))
    path.with_suffix(".json").write_text("[]")
    with pytest.raises(DataError, match=r"00000-of-00002.json: not the json of a part"):
        run(classifier, shards, tmp_path, shard=(1, 2))


@pytest.mark.usefixtures("quick")
def test_a_claim_does_not_vouch_for_the_rows_of_another_evaluation(classifier, shards, tmp_path, monkeypatch):
    run(classifier, shards, tmp_path, shard=(1, 2))
    check = receipts.check_unchanged

    def check_late(claim, directory):  # the part has its name; another evaluation writes the same one before it is declared
        monkeypatch.setattr(receipts, "check_unchanged", check)
        run(make_classifier(seed=1), shards, tmp_path, shard=(0, 2))
        check(claim, directory)

    monkeypatch.setattr(receipts, "check_unchanged", check_late)
    with pytest.raises(DataError, match=r"00000-of-00002\.csv: not as it was written: evaluate this part anew"):
        run(classifier, shards, tmp_path, shard=(0, 2))
    assert not (tmp_path / "predictions.csv").exists()
    assert run(classifier, shards, tmp_path, shard=(0, 2)).receipt["model_sha256"] == classifier.sha256


@pytest.mark.usefixtures("quick")
def test_a_part_that_is_written_anew_is_missing_until_it_is_complete(classifier, shards, tmp_path, monkeypatch):
    in_parts(classifier, shards, tmp_path, 2)
    bind = partial_tables.bind
    monkeypatch.setattr(partial_tables, "bind", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(classifier, shards, tmp_path, shard=(0, 2))
    monkeypatch.setattr(partial_tables, "bind", bind)
    found = run(classifier, shards, tmp_path, shard=(1, 2))
    assert [path.name for path in found.missing_parts] == ["predictions-00000-of-00002.csv"]


@pytest.mark.parametrize("stage", ["merge", "metrics.json", "receipt.json"])
@pytest.mark.usefixtures("quick")
def test_a_merge_that_was_killed_is_done_again(plain, classifier, shards, tmp_path, monkeypatch, stage):
    other = run(make_classifier(seed=1), shards, tmp_path)  # of another model, and still there
    run(classifier, shards, tmp_path, shard=(0, 2))
    killed = "the process is gone"
    merge, write_json = partial_tables.merge, files.write_json

    def cut_merge(*arguments):
        yield next(merge(*arguments))
        raise RuntimeError(killed)

    def stop_at(path, content):
        if path.name == stage:
            raise RuntimeError(killed)
        write_json(path, content)

    if stage == "merge":
        monkeypatch.setattr(partial_tables, "merge", cut_merge)
    monkeypatch.setattr(files, "write_json", stop_at)
    with pytest.raises(RuntimeError, match=killed):
        run(classifier, shards, tmp_path, shard=(1, 2))
    if stage == "merge":  # what was there is still whole
        assert json.loads((tmp_path / "receipt.json").read_bytes()) == other.receipt
        assert json.loads((tmp_path / "metrics.json").read_bytes()) == other.metrics
    else:
        with pytest.raises(FileNotFoundError, match="did not finish"):
            predictions.read(tmp_path)
    monkeypatch.setattr(partial_tables, "merge", merge)
    monkeypatch.setattr(files, "write_json", write_json)
    run(classifier, shards, tmp_path, shard=(1, 2))
    assert predictions.read(tmp_path).keys == predictions.read(plain.folder).keys
    assert (tmp_path / "receipt.json").read_bytes() == (plain.folder / "receipt.json").read_bytes()
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.usefixtures("quick")
def test_two_readers_that_merge_at_once_do_no_harm(plain, classifier, shards, tmp_path, monkeypatch, caplog):
    # Both have found all parts; the second would merge while the first is about to write its
    # receipt.
    monkeypatch.setattr(locking, "_PATIENCE_SECONDS", 0)
    in_parts(classifier, shards, tmp_path, 2)
    write_json, begun, inner = files.write_json, [], []

    def write_late(path, content):
        if path.name == "receipt.json" and not begun:
            begun.append(True)
            inner.append(run(classifier, shards, tmp_path, shard=(0, 2)))
        write_json(path, content)

    monkeypatch.setattr(files, "write_json", write_late)
    outer = run(classifier, shards, tmp_path, shard=(1, 2))
    assert inner == [evaluator.Evaluation(tmp_path)]
    assert "part 0 of 2 is complete, and not merged here" in caplog.text
    assert outer.receipt == plain.receipt == json.loads((tmp_path / "receipt.json").read_text("utf-8"))
    assert outer.metrics == json.loads((tmp_path / "metrics.json").read_text("utf-8"))


@pytest.mark.parametrize("stage", ["pass", "report"])
@pytest.mark.usefixtures("quick")
def test_two_evaluations_in_one_folder_do_not_mix(classifier, shards, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(locking, "_PATIENCE_SECONDS", 0)
    calls, other, chunks = [], make_classifier(seed=1), evaluator.Pass.chunks

    def intrude(*_, **__):
        calls.append(stage)
        with pytest.raises(BlockingIOError, match="another evaluation is writing here"):
            run(other, shards, tmp_path)

    def slow_chunks(self, *arguments):
        intrude()
        yield from chunks(self, *arguments)

    if stage == "pass":
        monkeypatch.setattr(evaluator.Pass, "chunks", slow_chunks)
    monkeypatch.setattr("tfpipe.evaluation.html_report.write_report", intrude)
    found = run(classifier, shards, tmp_path, report=stage == "report")
    assert calls == [stage]
    assert json.loads((tmp_path / "receipt.json").read_bytes()) == found.receipt
    assert predictions.read(tmp_path).keys


@pytest.mark.usefixtures("quick")
def test_what_killed_processes_left_is_removed_and_nothing_else(classifier, shards, tmp_path):
    for name in (".predictions.csv.123.tmp", ".metrics.json.4.tmp", ".mine.csv.5.tmp", ".predictions.csv.mine.tmp", "x.tmp"):
        write(tmp_path / name, b"")
    run(classifier, shards, tmp_path)
    assert {path.name for path in tmp_path.glob("*.tmp")} == {".mine.csv.5.tmp", ".predictions.csv.mine.tmp", "x.tmp"}


@pytest.mark.usefixtures("quick")
def test_a_specificity_of_numpy_is_a_number(classifier, shards, tmp_path):
    found = run(classifier, shards, tmp_path, specificity=np.float32(0.5))
    assert (
        found.receipt["options"]["specificity"]
        == json.loads((tmp_path / "receipt.json").read_bytes())["options"]["specificity"]
    )


class Exported:
    """A model that shows what a `Predictor` must, and in what it computes."""

    def __init__(self, classifier):
        self.class_names, self.image_size = classifier.class_names, classifier.image_size
        self.resize, self.sha256, self.predict = classifier.resize, classifier.sha256, classifier.predict
        self.computation = classifier.computation


@pytest.mark.usefixtures("quick")
def test_any_predictor_gives_the_table_and_the_receipt_of_the_classifier(plain, classifier, shards, tmp_path):
    run(classifier, shards, tmp_path / "classifier", calibrate="val")
    run(Model(Exported(classifier)), shards, tmp_path / "exported", calibrate="val")
    names = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert "calibration.csv" in names
    for name in names:
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "classifier" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["frozen_image.pb", "model.tflite", "model.onnx", "saved_model", "export"])
def test_the_path_of_an_export_is_an_error_that_names_load(tmp_path, name):
    write(tmp_path / "saved_model" / "saved_model.pb", b"")
    write(tmp_path / "export" / "preprocessing.json", b"{}")
    with pytest.raises(ValueError, match=rf"{name}: an exported model is loaded first: evaluate\(tfpipe.load\('.*{name}'\)"):
        run(tmp_path / name, tmp_path / "shards", tmp_path / "eval")


def test_what_is_not_a_model_is_reported(tmp_path):
    model = types.SimpleNamespace(predict=None, image_size=(8, 8), resize="stretch")
    with pytest.raises(ValueError, match="a SimpleNamespace, which has no class_names and no sha256"):
        run(model, tmp_path / "shards", tmp_path / "eval")


def test_the_command_shows_thresholds_with_all_digits(plain, tool):
    binary = metrics.measure(predictions.read(plain.folder), positive_class=CAT)["binary"]
    binary["sensitivity_at_specificity"]["threshold"] = 0.123456789
    assert tool._binary_lines(binary)[1].endswith("threshold 0.123456789")


@pytest.mark.usefixtures("quick")
def test_the_report_is_written_last(classifier, shards, tmp_path, monkeypatch):
    calls = []

    def write_report(folder, model, directory, split, *, near_duplicates, progress):
        calls.append((folder, model, directory, split, (folder / "receipt.json").exists()))

    monkeypatch.setattr("tfpipe.evaluation.html_report.write_report", write_report)
    run(classifier, shards, tmp_path, report=True)
    assert calls == [(tmp_path, classifier, shards, "test", True)]


@pytest.fixture(scope="module")
def saved(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    classifier.model.save(folder / "model.keras")
    return folder


def test_the_command_evaluates_and_compares(run_tool, plain, saved, shards, tmp_path):
    done = run_tool("evaluate", f"--model={saved}", f"--data={shards}", f"--output={tmp_path}/eval", "--noreport")
    assert f"{plain.metrics['accuracy']:.2%} (95 %: " in done.stdout
    assert "on 33 images of 'test', each exactly once" in done.stdout
    assert re.search(r"^小 猫 +(0\.\d{4}|-) +0\.\d{4} .* 11$", done.stdout, re.MULTILINE)
    assert f"{tmp_path}/eval/receipt.json" in done.stdout
    assert re.search(r"evaluate test: 33 of 33 records, \d+ s", done.stderr)
    assert (tmp_path / "eval/receipt.json").read_bytes() == (plain.folder / "receipt.json").read_bytes()
    if not has_gpu():  # where each process chooses among kernels that round differently
        assert (tmp_path / "eval/predictions.csv").read_bytes() == (plain.folder / "predictions.csv").read_bytes()
    done = run_tool("evaluate", "compare", tmp_path / "eval", plain.folder)
    assert "difference +0.00%" in done.stdout
    assert "McNemar's exact test: p = 1" in done.stdout
    assert "same data set and split: yes" in done.stdout


@pytest.mark.parametrize("error", [DataError("a damaged image"), KeyboardInterrupt()])
@pytest.mark.usefixtures("quick")
def test_the_command_shows_what_it_found_whatever_becomes_of_the_report(
    saved, shards, tmp_path, monkeypatch, capsys, tool, error
):
    shown = []

    def fail(*_, **__):
        shown.append(capsys.readouterr().out)
        raise error

    monkeypatch.setattr("tfpipe.evaluation.html_report.write_report", fail)
    given = {"_MODEL": saved, "_DATA": shards, "_OUTPUT": tmp_path / "eval", "_SPLIT": "test", "_BATCH_SIZE": 64}
    given |= {"_NUM_READERS": 1, "_SPECIFICITY": 0.95, "_REPORT": True, "_NEAR_DUPLICATES": False}
    for name in ("_SHARD", "_POSITIVE_CLASS", "_CALIBRATE", "_TTA"):
        given[name] = None
    for name, value in given.items():
        monkeypatch.setattr(tool, name, types.SimpleNamespace(value=value))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt) as stopped:  # which the commands' own words end with
            tool.main([])
        assert stopped.value.__notes__ == ["There is no report; table, metrics and receipt are complete."]
    else:
        with pytest.raises(DataError, match="a damaged image"):
            tool.main([])
    assert "on 33 images of 'test', each exactly once" in shown[0]
    assert predictions.read(tmp_path / "eval").keys


@pytest.mark.usefixtures("quick")
def test_the_command_loads_a_model_of_any_form(plain, classifier, saved, shards, tmp_path, monkeypatch, tool):
    known = {(saved, True): Exported(classifier)}
    monkeypatch.setattr("tfpipe.formats.opening.load", lambda path, *, trust: known[path, trust])
    given = {"_TRUST": True, "_MODEL": saved, "_DATA": shards, "_OUTPUT": tmp_path, "_REPORT": False}
    for name, value in given.items():
        monkeypatch.setattr(tool, name, types.SimpleNamespace(value=value))
    assert tool.main([]) is None
    assert (tmp_path / "predictions.csv").read_bytes() == (plain.folder / "predictions.csv").read_bytes()
    assert (tmp_path / "receipt.json").read_bytes() == (plain.folder / "receipt.json").read_bytes()


@pytest.mark.usefixtures("quick")
def test_the_command_reports_which_parts_are_missing(classifier, shards, tmp_path, tool):
    found = run(classifier, shards, tmp_path, shard=(1, 2))
    ids = found.missing_ids
    rows = f"{len(ids)} images, {ids[0]!r} to {ids[-1]!r}"
    expected = f"part 1/2 is complete; missing 1 part ({rows}):\n  {tmp_path}/parts/predictions-00000-of-00002.csv"
    assert tool._missing("1/2", found) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model, --data and --output are needed"),
        (["compare", "a"], "usage: compare A B (got 1 argument)"),
        (["shards/"], "arguments without a flag: shards/"),
        (["--model=m", "--data=d", "--output=o", "--shard=3/3"], "--shard must be INDEX/COUNT"),
    ],
)
def test_wrong_words_are_reported(run_tool, arguments, message):
    done = run_tool("evaluate", *arguments, check=False)
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr


def test_g11_groups_of_the_data_set_reach_table_metrics_receipt_and_report(classifier, tmp_path):
    build_images(tmp_path, COUNTS, num_shards={"val": 1, "test": 3}, group_pattern=r"(\w+/[^/]+/\d)")
    groups = {row.key: row.group for row in catalog.read_catalog(tmp_path / "shards", split="test")}
    assert len(set(groups.values())) == 29  # images 1 and 10 to 12 of a class
    whole = run(classifier, tmp_path / "shards", tmp_path / "whole", report=True, near_duplicates=False, calibrate="val")
    parts = in_parts(classifier, tmp_path / "shards", tmp_path / "parts", 3, calibrate="val")[-1]
    assert (tmp_path / "parts/receipt.json").read_bytes() == (tmp_path / "whole/receipt.json").read_bytes()
    for found in (whole, parts):
        assert found.receipt["num_groups"] == found.metrics["groups"]["num_groups"] == len(set(groups.values()))
        assert {row["key"]: row["group"] for row in rows_of(found.folder)} == groups
    assert "Intervals are by group" in (tmp_path / "whole/report.html").read_text("utf-8")
    low, high = whole.metrics["accuracy_interval"]
    assert (low, high) != tuple(metrics.wilson(round(33 * whole.metrics["accuracy"]), 33))
