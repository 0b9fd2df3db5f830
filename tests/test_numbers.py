"""Numbers of images (regression): tables, rows of targets, records, splits, checks, and what is read of them."""

import contextlib
import csv
import dataclasses
import json
import random
import struct
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import write
from label_fixtures import squares

import tfpipe
from tfpipe.building.state import State
from tfpipe.building.steps import Build
from tfpipe.building.targets import classes_of, label, names_of_classes
from tfpipe.common.errors import DataError
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import example, manifest, schema, targets, tfrecord
from tfpipe.records.catalog import read_catalog
from tfpipe.records.class_weights import class_weights
from tfpipe.records.summary import describe_manifest
from tfpipe.records.targets import TargetColumns
from tfpipe.report import contact_sheet
from tfpipe.verification.comparison import diff
from tfpipe.verification.salvage import salvage
from tfpipe.verification.verification import verify

NAMES, UNITS = ["Age", "shift"], ["years", "mm"]
SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


def draw_numbers(count):
    """Ages, many of which are equal, and shifts, which are negative, too, and all different."""
    drawn = np.random.default_rng(0)
    return np.stack([drawn.integers(20, 60, count) / 2, drawn.normal(0, 3, count)], axis=1)


def write_table(root, numbers, **extra):
    with open(root / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *NAMES, *extra])
        for index, row in enumerate(numbers.tolist()):
            if not (root / f"images/{index:03d}.png").exists():
                write(root / f"images/{index:03d}.png", squares(index, [True, False, True]))
            rows.writerow([f"images/{index:03d}.png", *row, *(values[index] for values in extra.values())])
    return root / "table.csv"


def build(root, numbers, output="shards", **options):
    usual = {"target_columns": NAMES, "units": UNITS, "splits": SPLITS, "name": "faces", "workers": 1, "progress": False}
    table = write_table(root, numbers, **options.pop("extra", {}))
    return tfpipe.build_tfrecords(table, root / output, layout="csv", **{**usual, **options})


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records_of(folder, split):
    for shard in manifest.load(folder).split(split).shards:
        for raw in tfrecord.salvage_frames(folder / shard.file):
            yield schema.decode(raw.data)


NUMBERS = draw_numbers(120)
AS_STORED = NUMBERS.astype(np.float32)


def stored(key):
    return AS_STORED[int(key[-7:-4])]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("numbers")
    build(root, NUMBERS, num_shards=2)
    return root / "shards"


# ---- texts


@pytest.mark.parametrize(
    ("cell", "text"),
    [("34", "34"), ("34.50", "34.5"), ("-0", "0"), ("1e6", "1000000"), ("0.1", "0.1"), ("16777216", "16777216"), (".5", "0.5")],
)
def test_a_cell_becomes_the_shortest_text_of_its_number(cell, text):
    assert TargetColumns(("Age",)).text({"age": cell}, None) == text


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("", "column 'Age' is empty"),
        ("old", "column 'Age' holds 'old': a finite number is needed"),
        ("34,5", "a finite number is needed"),
        ("1_000", "a finite number is needed"),
        ("nan", "a finite number is needed"),
        ("-inf", "a finite number is needed"),
        ("1e39", "which float32 cannot hold"),
        ("1e-60", "which float32 cannot hold"),
    ],
)
def test_a_cell_without_a_finite_number_is_refused(cell, why):
    with pytest.raises(LookupError, match=why):
        TargetColumns(("Age",)).text({"age": cell}, None)


def test_every_float32_has_one_text_and_rows_keep_their_order():
    drawn = random.Random(0)
    floats = [struct.unpack("<f", struct.pack("<I", drawn.getrandbits(32)))[0] for _ in range(3000)]
    floats = [0.0, 2.0**-149, 3.4028234663852886e38, *(value for value in floats if np.isfinite(value))]
    for value in (*floats, *(-value for value in floats)):
        assert targets.values_of(targets.text_of([value])) == (value,)
    rows = sorted(zip(floats, reversed(floats), strict=True))
    assert [targets.ordinal(row) for row in rows] == sorted(targets.ordinal(row) for row in rows)
    assert list(targets.decode(b"".join(map(targets.encode, rows)), 2)) == rows


# ---- records and manifest


def test_records_hold_the_numbers_of_their_rows_of_the_table(shards):
    keys = []
    for split in manifest.load(shards).splits:
        for record in records_of(shards, split):
            assert record.targets == tuple(stored(record.key).tolist())
            assert record.class_name == targets.text_of(record.targets)
            features = example.decode(schema.encode(record))
            assert features["image/target"] == list(record.targets)
            assert "image/class/label" not in features
            keys.append(record.key)
    assert sorted(keys) == [f"images/{index:03d}.png" for index in range(120)]


def test_a_record_whose_targets_are_not_floats_is_damaged(shards):
    features = example.decode(schema.encode(next(records_of(shards, "test"))))
    with pytest.raises(DataError, match="'image/target' must be a list of float"):
        schema.decode(example.encode({**features, schema.TARGET: [1, 2]}))


def test_the_manifest_has_names_units_and_statistics_and_a_version_that_older_readers_refuse(shards):
    found = manifest.load(shards)
    assert (found.task, found.class_names, found.targets.units) == ("regression", NAMES, dict(zip(NAMES, UNITS, strict=True)))
    assert json.loads((shards / "manifest.json").read_text())["format_version"] == 3
    for name, split in found.splits.items():
        values = np.array([stored(record.key) for record in records_of(shards, name)], np.float64)
        for place, target in enumerate(NAMES):
            facts = split.statistics[target]
            assert facts.mean == pytest.approx(values[:, place].mean(), rel=1e-12)
            assert facts.deviation == pytest.approx(values[:, place].std(), rel=1e-12)
            assert (facts.least, facts.most) == (values[:, place].min(), values[:, place].max())
    train = found.splits["train"]
    line = next(line for line in describe_manifest(found).splitlines() if line.startswith("shift") and " train " in line)
    assert line.split()[1:4] == ["mm", "train", str(train.num_records)]
    assert float(line.split()[4]) == pytest.approx(train.statistics["shift"].mean, rel=1e-5)


def test_labels_are_in_the_order_of_the_numbers(shards):
    reader = RecordReader(shards, "train")
    assert reader.targets.dtype == np.float32
    assert sorted(map(tuple, reader.targets.tolist())) == list(map(tuple, reader.targets.tolist()))
    assert len(reader.targets) == manifest.load(shards).targets.count == 120
    found = SplitImages(shards, "train", (32, 32)).targets
    assert (found == [stored(row.key) for row in read_catalog(shards, split="train")]).all()


def test_joined_folds_have_numbers_but_no_statistics(tmp_path):
    found = build(tmp_path, NUMBERS[:30], splits={"folds": 3})
    assert [split.num_records for split in found.splits.values()] == [10, 10, 10]
    assert found.split("fold0+fold1").statistics is None
    assert RecordReader(tmp_path / "shards", "fold0+fold1").num_records == 20


# ---- splits


def test_each_stratum_is_cut_near_the_fractions_and_all_strata_together(shards):
    found = manifest.load(shards)
    split_of = {row.key: row.split for row in read_catalog(shards)}
    order = sorted(split_of, key=lambda key: tuple(stored(key)))
    for start, end in pairwise(range(0, 121, 12)):  # ten strata, as no two rows are equal
        part = [split_of[key] for key in order[start:end]]
        for split, fraction in SPLITS.items():
            assert abs(part.count(split) - fraction * 12) < 2, (start, split)
            assert abs(sum(split_of[key] == split for key in order[:end]) - fraction * end) < 1, (end, split)
    means = [split.statistics["Age"].mean for split in found.splits.values()]
    assert max(means) - min(means) < 1  # the deviation is 5.7: of splits drawn at random, that of the mean of 24 is 1.2


@pytest.mark.parametrize(
    ("numbers", "sizes"),
    [
        (list(range(100)), [10] * 10),
        (list(range(25)), [13, 12]),
        ([*range(50), *[60] * 50], [10] * 5 + [50]),
        ([*[5] * 50, *range(6, 56)], [50] + [10] * 5),
        ([1, 2], [2]),
    ],
)
def test_strata_have_about_as_many_images_and_equal_numbers_are_in_one(tmp_path, numbers, sizes):
    with contextlib.closing(State(tmp_path / "state.sqlite")) as state:
        rows = ((str(place), str(number)) for place, number in enumerate(numbers))
        state.executemany("INSERT INTO inputs (key, class_name) VALUES (?, ?)", rows)
        options = SimpleNamespace(target_columns=("age",))
        assert label(state, options) == ["age"]
        strata = classes_of(state, options)
        found = [next(iter(strata(index))) for (index,) in state.execute("SELECT label FROM inputs ORDER BY label")]
        assert np.bincount(found).tolist() == sizes
        assert len(names_of_classes(state, ["age"])) == len(sizes)


def test_equal_numbers_are_in_one_stratum_however_many_there_are(tmp_path):
    numbers = NUMBERS[:40].copy()
    numbers[:30] = 7, 7
    found = build(tmp_path, numbers, splits={"train": 0.5, "test": 0.5})
    of_test = [stored for stored in RecordReader(tmp_path / "shards", "test").labels.tolist() if stored == 0]
    assert found.targets.count == 11
    assert len(of_test) == 15


def test_groups_stay_whole_and_the_farthest_stratum_is_named(tmp_path):
    patients = [f"p{index // 3}" for index in range(60)]
    options = {"group": "patient", "extra": {"patient": patients}, "splits": {"train": 0.5, "test": 0.5}}
    found = build(tmp_path, NUMBERS[:60], **options)
    split_of = {}
    for row in read_catalog(tmp_path / "shards"):
        assert split_of.setdefault(row.group, row.split) == row.split
    assert abs(found.splits["train"].statistics["Age"].mean - found.splits["test"].statistics["Age"].mean) < 2
    assert found.groups.splits["train"].farthest.class_name.startswith("Age ")
    assert not verify(tmp_path / "shards", workers=1, progress=False).findings


def test_a_part_for_validation_is_held_out_of_each_stratum(shards):
    train = SplitImages(shards, "train", (32, 32))
    rest, held = hold_out(train, 0.25)
    assert len(rest.positions) + len(held.positions) == 72
    ranks = np.argsort(np.argsort(RecordReader(shards, "train").labels))[held.positions]
    assert (np.bincount(ranks * 7 // 72) >= 2).all()  # 7 strata, of 10 or 11


# ---- equal bytes


def test_equal_bytes_with_other_numbers_are_a_conflict_and_numbers_written_otherwise_are_none(tmp_path):
    write_table(tmp_path, NUMBERS[:20])
    for name in ("a", "b"):
        write(tmp_path / f"{name}.png", squares(99, [True] * 3))

    def made(second, **options):
        rows = f"a.png,34.5,1\nb.png,{second}\n"
        (tmp_path / "again.csv").write_text((tmp_path / "table.csv").read_text() + rows)
        given = {"layout": "csv", "target_columns": NAMES, "workers": 1, "progress": False, **options}
        return tfpipe.build_tfrecords(tmp_path / "again.csv", tmp_path / "out", **given)

    with pytest.raises(DataError, match=r"different labels.*\n.*a\.png \(34\.5\|1\) = b\.png \(34\.5\|2\)"):
        made("34.5,2")
    assert made("34.5,2", on_conflict="keep").conflicts == [["a.png", "b.png"]]
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert made("34.50,1e0").conflicts == []


# ---- the same bytes


def test_g2_numbers_are_the_same_bytes_for_any_workers_and_stops(shards, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "images").symlink_to(shards.parent / "images")
    for step in ("decide", "write", "finish"):
        with monkeypatch.context() as patched:
            patched.setattr(Build, step, stop)
            with pytest.raises(KeyboardInterrupt):
                build(tmp_path, NUMBERS, num_shards=2)
    build(tmp_path, NUMBERS, num_shards=2, workers=2)
    assert files_of(tmp_path / "shards") == files_of(shards)
    build(tmp_path, NUMBERS, "together", num_shards=2, workers_folder=tmp_path / "tasks")
    assert files_of(tmp_path / "together") == files_of(shards)
    assert build(tmp_path, NUMBERS, num_shards=2).root_hash == manifest.load(shards).root_hash  # complete: nothing to do
    with pytest.raises(ValueError, match="units was"):
        build(tmp_path, NUMBERS, num_shards=2, units=["years", "cm"])
    changed = NUMBERS.copy()
    changed[7, 1] += 1
    with pytest.raises(ValueError, match=r"relabelled: images/007\.png"):
        build(tmp_path, changed, num_shards=2)


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"task": "regression", "target_columns": None, "units": None}, "needs target_columns"),
        ({"target_columns": None}, "units must come with the target_columns"),
        ({"units": ["years"]}, "a text for each of target_columns"),
        ({"label_column": "age"}, "give one of them"),
        ({"label_columns": ["age"]}, "give one of them"),
        ({"task": "multilabel"}, "give one of them"),
        ({"target_columns": ["age", "weight"]}, "weight"),
        ({"class_names": ["age"]}, "targets have the names of their columns"),
        ({"label_separator": ";"}, "is for task=multilabel"),
        ({"decisions": ["table.csv"]}, "task=regression takes none"),
        ({"layout": "folders"}, "is for layout=csv"),
    ],
)
def test_options_that_do_not_go_with_numbers_are_refused(tmp_path, monkeypatch, options, why):
    table = write_table(tmp_path, NUMBERS[:3])
    monkeypatch.chdir(tmp_path)
    given = {"layout": "csv", "target_columns": NAMES, "units": UNITS, "workers": 1, "progress": False, **options}
    with pytest.raises(ValueError, match=why):
        tfpipe.build_tfrecords(table if given["layout"] == "csv" else tmp_path / "images", tmp_path / "out", **given)


def test_a_bad_cell_is_named_with_its_row_and_column_and_left_out_on_request(tmp_path):
    lines = write_table(tmp_path, NUMBERS[:12]).read_text().splitlines()
    lines[3] = "images/002.png,,1.5"
    (tmp_path / "holes.csv").write_text("\n".join(lines) + "\n")
    options = {"layout": "csv", "target_columns": NAMES, "workers": 1, "progress": False}
    with pytest.raises(DataError, match=r"holes\.csv: line 4: images/002\.png: column 'Age' is empty.*remove it"):
        tfpipe.build_tfrecords(tmp_path / "holes.csv", tmp_path / "out", **options)
    found = tfpipe.build_tfrecords(tmp_path / "holes.csv", tmp_path / "out", on_error="skip", **options)
    assert found.rejected == {"bad_row": 1}
    assert found.splits["train"].num_records == 11


def test_measurements_that_are_given_as_classes_are_led_to_targets(tmp_path):
    table = write_table(tmp_path, NUMBERS[:12])
    with pytest.raises(ValueError, match="measurements are targets, see target_columns"):
        tfpipe.build_tfrecords(table, tmp_path / "out", layout="csv", label_column="Age", workers=1, progress=False)


def test_a_target_of_one_value_is_warned_of(tmp_path, caplog):
    numbers = NUMBERS[:12].copy()
    numbers[:, 0] = 3
    build(tmp_path, numbers, splits=None)
    assert "1 target has one value in split 'train', of which nothing can be learned: Age" in caplog.text


# ---- checks


def rewritten(folder, split, change):
    """Writes the records of a split anew, all of the same length, and returns their shard."""
    shard = folder / manifest.load(folder).split(split).shards[0].file
    data = [schema.decode(raw.data) for raw in tfrecord.salvage_frames(shard)]
    shard.write_bytes(b"".join(b"".join(tfrecord.frame(schema.encode(one))) for one in change(data)))


def test_verify_finds_numbers_that_are_not_those_of_their_row(shards, tmp_path):
    assert not verify(shards, workers=1, progress=False).findings
    (tmp_path / "images").symlink_to(shards.parent / "images")
    build(tmp_path, NUMBERS[:20])
    folder, found = tmp_path / "shards", manifest.load(tmp_path / "shards")

    def messages():
        return "\n".join(str(one) for one in verify(folder, workers=1, progress=False).findings)

    train = found.splits["train"]
    wrong = {**train.statistics, "Age": dataclasses.replace(train.statistics["Age"], mean=1.0)}
    other = dataclasses.replace(train, statistics=wrong)
    manifest.save(dataclasses.replace(found, splits={**found.splits, "train": other}), folder)
    assert "of 'Age', not as listed" in messages()
    manifest.save(found, folder)
    assert messages() == ""
    rewritten(folder, "test", lambda data: [dataclasses.replace(data[0], targets=(1.0, 2.0)), *data[1:]])
    assert "targets (1.0, 2.0) are not those of" in messages()
    rewritten(folder, "test", lambda data: [dataclasses.replace(data[0], targets=(1.0, float("nan"))), *data[1:]])
    assert "targets (1.0, nan) are not those of" in messages()
    rows = folder / manifest.targets_file("faces")
    rows.write_bytes(rows.read_bytes()[:-1] + b"\x7f")
    assert "faces.targets: not as listed in the manifest" in messages()
    with pytest.raises(DataError, match="SHA-256"):
        RecordReader(folder, "train")


def test_a_manifest_that_cannot_be_is_refused_on_opening(shards, tmp_path):
    found = manifest.load(shards)
    val = found.splits["val"]
    for why, change in {
        "statistics for each target": {"splits": {**found.splits, "val": dataclasses.replace(val, statistics=None)}},
        "must be the records that have labels": {
            "splits": {**found.splits, "val": dataclasses.replace(val, class_counts={"Age": 1, "shift": 1})}
        },
        "units: must be one for each": {"targets": dataclasses.replace(found.targets, units={"Age": "years"})},
        "'regression' is not a task of these labels": {"targets": None},
    }.items():
        manifest.save(dataclasses.replace(found, **change), tmp_path)
        with pytest.raises(DataError, match=why):
            manifest.load(tmp_path)


def test_two_data_sets_are_compared_by_their_numbers_and_salvaged_with_them(shards, tmp_path):
    (tmp_path / "images").symlink_to(shards.parent / "images")
    changed = NUMBERS.copy()
    changed[5] = 12, -1
    build(tmp_path, changed, num_shards=2)
    before = targets.text_of(AS_STORED[5].tolist())
    found = [one for one in diff(shards, tmp_path / "shards") if one.kind == "relabelled"]
    assert [one[1:] for one in found] == [("images/005.png", before, "12|-1")]
    shard = shards / manifest.load(shards).split("train").shards[0].file
    salvage(shard, tmp_path / "rescued")
    assert all(schema.decode(data).targets for _, data in tfrecord.read_frames(tmp_path / "rescued"))


def test_a_contact_sheet_has_a_row_for_each_range(shards, tmp_path):
    names, ranges_of = contact_sheet.classes(shards, manifest.load(shards))
    assert len(names) == 10
    ages = np.sort(AS_STORED[:, 0])
    assert names[0] == f"Age {ages[0]:g} to {ages[11]:g} years"
    assert sorted(ranges_of(row)[0] for row in read_catalog(shards)) == sorted(list(range(10)) * 12)
    contact_sheet.show(shards, tmp_path / "sheet.png", per_class=2, tile=32)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


# ---- reading


def test_a_dataset_gives_each_image_its_numbers_and_training_shuffles_them_together(shards):
    plain = tfpipe.dataset(shards, "test", batch_size=7, image_size=32, as_dict=True)
    rows = list(plain.unbatch().as_numpy_iterator())
    assert all((row["label"] == stored(row["key"].decode())).all() and row["label"].dtype == np.float32 for row in rows)
    assert len(rows) == 24
    assert plain.class_names == NAMES
    training = tfpipe.dataset(shards, "train", image_size=32, training=True, augment="light", seed=3, as_dict=True)
    seen = [(row["key"].decode(), row["label"]) for row in training.unbatch().as_numpy_iterator()]
    assert all((label == stored(key)).all() for key, label in seen)
    assert sorted(key for key, _ in seen) == sorted(row.key for row in read_catalog(shards, split="train"))
    one = tfpipe.dataset(shards, "test", batch_size=24, image_size=32, class_names=["shift"])
    assert (next(iter(one))[1].numpy() == [row["label"][1:] for row in rows]).all()


def test_blank_rows_are_zero_in_a_tuple_and_not_a_number_in_a_dictionary(shards):
    how = {"batch_size": 10, "image_size": 32, "equal_steps": True}
    _, labels, weights = (np.concatenate(part) for part in zip(*tfpipe.dataset(shards, "test", **how), strict=True))
    assert (weights == (np.arange(30) < 24)).all()
    assert (labels[24:] == 0).all()
    assert (labels[:24] != 0).all()
    last = list(tfpipe.dataset(shards, "test", as_dict=True, **how))[-1]
    assert np.isnan(last["label"][4:]).all()
    assert not np.isnan(last["label"][:4]).any()


def test_negative_numbers_are_mixed_like_others(shards):
    images = SplitImages(shards, "test", (32, 32), augmentation=tfpipe.Augmentation(mixup=1.0))
    mixed = np.concatenate([labels for _, labels in images.training(24).dataset()])
    assert (mixed[:, 0] != -1).all()
    assert mixed[:, 1].min() < -1.5
    assert np.allclose(mixed.mean(axis=0), images.targets.mean(axis=0), atol=4)


def test_what_needs_classes_is_refused(shards):
    with pytest.raises(ValueError, match="and here each has numbers"):
        tfpipe.dataset(shards, "train", training=True, balanced=True)
    with pytest.raises(ValueError, match="numbers and no classes"):
        class_weights(shards, "train")


def test_an_unlabelled_split_has_no_numbers(shards, tmp_path):
    (tmp_path / "images").symlink_to(shards.parent / "images")
    write(tmp_path / "bare" / "x.png", squares(500, [True] * 3))
    table = write_table(tmp_path, NUMBERS[:10])
    options = {"layout": "csv", "target_columns": NAMES, "workers": 1, "progress": False}
    found = tfpipe.build_tfrecords(table, tmp_path / "shards", unlabelled={"new": tmp_path / "bare"}, **options)
    assert found.splits["new"].statistics is None
    assert not verify(tmp_path / "shards", workers=1, progress=False).findings
    _, labels = next(iter(tfpipe.dataset(tmp_path / "shards", "new", image_size=32)))
    assert np.isnan(labels).all()
    assert labels.shape == (1, 2)
    assert np.isnan(SplitImages(tmp_path / "shards", "new", (32, 32)).targets).all()
    (record,) = records_of(tmp_path / "shards", "new")
    assert tfpipe.parse_example(schema.encode(record), task="regression")[schema.TARGET].shape == (0,)


def test_tensorflow_datasets_and_parse_example_read_the_numbers(shards):
    builder = tfds.builder_from_directory(shards)
    config = tfds.ReadConfig(interleave_cycle_length=1)
    assert builder.info.features[schema.TARGET].dtype == np.float32
    found = builder.as_dataset(split="test", read_config=config, shuffle_files=False)
    for row in found.as_numpy_iterator():
        assert row[schema.TARGET].tolist() == stored(row[schema.KEY].decode()).tolist()
    pairs = builder.as_dataset(split="test", as_supervised=True, read_config=config, shuffle_files=False)
    assert [target.tolist() for _, target in pairs.as_numpy_iterator()] == [
        tfpipe.parse_example(tf.constant(raw.data), task="regression")[schema.TARGET].numpy().tolist()
        for file in sorted(shards.glob("faces-test.tfrecord-*"))
        for raw in tfrecord.read_frames(file)
    ]
