"""Several labels an image, without TensorFlow: tables, combinations, records, splits, checks."""

import csv
import dataclasses
import json
import random
from collections import Counter

import numpy as np
import pytest
from conftest import write
from label_fixtures import NAMES, build, draw_labels, squares, write_table

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import combinations, example, manifest, schema, tfrecord
from tfpipe.records.catalog import read_catalog
from tfpipe.records.class_weights import class_weights
from tfpipe.records.combinations import LabelLists
from tfpipe.verification.verification import verify


def records_of(folder, split):
    for shard in manifest.load(folder).split(split).shards:
        for raw in tfrecord.salvage_frames(folder / shard.file):
            yield schema.decode(raw.data)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return build(tmp_path_factory.mktemp("labels"))


@pytest.mark.parametrize(
    ("cell", "text"),
    [("", ""), ("b;a", "a|b"), (" a ; b ;", "a|b"), ("a;?c", "a|?c"), ("? c", "?c")],
)
def test_a_cell_of_labels_becomes_one_text(cell, text):
    assert LabelLists(separator=";").text({"label": cell}, "label") == text
    assert combinations.text_of(*combinations.names_of(text)) == text


@pytest.mark.parametrize(("cell", "why"), [("a|a", "twice"), ("a|?a", "twice"), ("??", "begins with")])
def test_a_cell_that_contradicts_itself_is_refused(cell, why):
    with pytest.raises(LookupError, match=why):
        LabelLists().text({"label": cell}, "label")


def test_columns_hold_one_zero_or_nothing():
    lists = LabelLists(columns=("a", "b", "c"))
    assert lists.text({"a": "1", "b": "0", "c": ""}, None) == "a|?c"
    assert lists.text({"a": "1.0", "b": "False", "c": "-1"}, None) == "a|?c"  # as pandas and CheXpert write them
    with pytest.raises(LookupError, match="column 'b' holds '2'"):
        lists.text({"a": "1", "b": "2", "c": ""}, None)


def test_names_in_two_unicode_forms_are_one_class_where_they_are_composed():
    decomposed = LabelLists(is_composed=True).text({"label": "e\u0301|a"}, "label")
    assert decomposed == LabelLists(is_composed=True).text({"label": "a|\u00e9"}, "label") == "a|\u00e9"


def test_values_and_texts_are_two_forms_of_one_combination():
    for text in ("", "a", "a|b", "?c", "b|?a|?c"):
        assert combinations.text_of_values(combinations.values_of(text, "abc"), "abc") == text


def test_a_record_holds_its_labels_and_those_that_are_unknown(shards):
    counts = Counter()
    table = {row["path"]: row for row in csv.DictReader(open(shards.parent / "columns.csv"))}  # noqa: SIM115
    for split in manifest.load(shards).splits:
        for record in records_of(shards, split):
            row = table[record.key]
            assert record.labels == tuple(index for index, name in enumerate(NAMES) if row[name] == "1")
            assert record.unknown == tuple(index for index, name in enumerate(NAMES) if row[name] == "")
            present, unknown = combinations.names_of(record.class_name)
            assert [NAMES.index(name) for name in sorted(present, key=NAMES.index)] == list(record.labels)
            counts[len(record.labels), bool(unknown)] += 1
            features = example.decode(schema.encode(record))
            assert features["image/class/label"] == list(record.labels)
            assert features["image/class/unknown"] == list(record.unknown)
    assert {key for key, _ in counts} >= {0, 1, 2}  # none, too
    assert sum(counts.values()) == 240


def test_the_manifest_counts_each_class_and_has_a_version_that_older_readers_refuse(shards):
    found, labels = manifest.load(shards), draw_labels(240)
    assert found.task == "multilabel"
    assert json.loads((shards / "manifest.json").read_text())["format_version"] == 3
    for counts, state in (("class_counts", 1), ("unknown_counts", -1)):
        sums = Counter()
        for split in found.splits.values():
            sums.update(getattr(split, counts))
        assert [sums[name] for name in NAMES] == (labels == state).sum(axis=0).tolist()
    weights = class_weights(shards, "train")
    train = found.splits["train"]
    negatives = train.num_records - train.class_counts["blue"] - train.unknown_counts["blue"]
    assert weights[NAMES.index("blue")] == negatives / train.class_counts["blue"]


def test_a_data_set_of_one_class_an_image_has_nothing_of_this(photos, tmp_path):
    tfpipe.build_tfrecords(photos, tmp_path / "one", layout="folders", workers=1, progress=False)
    content = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert content["format_version"] == 2
    assert not {"combinations", "task"} & {*content, *content["options"]}
    assert "unknown_counts" not in content["splits"]["train"]
    assert not list((tmp_path / "one" / "index").glob("*.combinations"))


def test_each_class_is_cut_near_its_fraction_and_the_same_for_any_workers(shards, tmp_path):
    found = manifest.load(shards)
    for split, fraction in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        counts = found.splits[split].class_counts
        assert abs(found.splits[split].num_records - 240 * fraction) <= 2
        for name in NAMES:
            total = sum(one.class_counts[name] for one in found.splits.values())
            assert abs(counts[name] - total * fraction) <= 2
    again = build(tmp_path, workers=2)
    assert manifest.load(again).root_hash == found.root_hash
    assert (again / "index" / "squares.combinations").read_bytes() == (shards / "index" / "squares.combinations").read_bytes()
    other = build(tmp_path, output="other", seed=1)
    assert manifest.load(other).root_hash != found.root_hash


def test_rare_combinations_are_cut_as_well_as_frequent_ones(tmp_path):
    """Eight classes in nearly as many combinations as images: cut one by one, all would be rounded alike."""
    names, drawn = [f"c{index}" for index in range(8)], random.Random(3)
    with open(tmp_path / "table.csv", "w") as file:
        file.write("path,label\n")
        for index in range(120):
            write(tmp_path / f"{index}.png", squares(index, [False] * 3))
            file.write(f"{index}.png,{';'.join(name for name in names if drawn.random() < 0.4)}\n")
    options = {"layout": "csv", "task": "multilabel", "label_separator": ";", "splits": {"train": 0.75, "val": 0.25}}
    found = tfpipe.build_tfrecords(tmp_path / "table.csv", tmp_path / "shards", workers=1, progress=False, **options)
    assert found.combinations.count > 60
    for name in names:
        counts = {split: found.splits[split].class_counts[name] for split in ("train", "val")}
        assert abs(counts["val"] - sum(counts.values()) / 4) <= 2, (name, counts)


def test_groups_stay_whole_and_their_classes_near_the_fractions(tmp_path):
    labels = draw_labels(120)
    table = write_table(tmp_path, labels, patient=[f"p{index // 3}" for index in range(120)])
    options = {"label_columns": NAMES, "group": "patient", "splits": {"train": 0.5, "test": 0.5}}
    found = tfpipe.build_tfrecords(table, tmp_path / "shards", layout="csv", workers=1, progress=False, **options)
    split_of = {}
    for row in read_catalog(tmp_path / "shards"):
        assert split_of.setdefault(row.group, row.split) == row.split
    for name in NAMES:
        train, test = (found.splits[split].class_counts[name] for split in ("train", "test"))
        assert abs(train - test) <= 6
    assert found.groups.splits["train"].farthest.class_name in NAMES


def test_equal_bytes_with_other_labels_are_a_conflict(tmp_path):
    write_table(tmp_path, draw_labels(8))
    for index, labels in enumerate(("red", "green|red")):
        write(tmp_path / f"same{index}.png", squares(99, [True] * 3))
        (tmp_path / "table.csv").open("a").write(f"{'path,label' + chr(10) if not index else ''}same{index}.png,{labels}\n")
    with pytest.raises(DataError, match="different labels"):
        tfpipe.build_tfrecords(
            tmp_path / "table.csv", tmp_path / "out", layout="csv", task="multilabel", workers=1, progress=False
        )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"layout": "folders", "task": "multilabel"}, "is for layout=csv"),
        ({"label_columns": ["red"], "label_column": "red"}, "exclude each other"),
        ({"label_columns": ["red", "pink"]}, "pink"),
        ({"label_separator": ";"}, "is for task=multilabel"),
        ({"task": "several"}, "task must be one of single, multilabel"),
        ({"label_columns": ["red"], "class_names": ["blue"]}, "class_names does not list"),
        ({"label_columns": ["red", "green|blue"]}, r"a class has a name without '\|'.*got 'green\|blue'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, why):
    table = write_table(tmp_path, draw_labels(4))
    source = table if options.get("layout", "csv") == "csv" else tmp_path / "images"
    with pytest.raises((ValueError, DataError), match=why):
        tfpipe.build_tfrecords(source, tmp_path / "out", **{"layout": "csv", "workers": 1, "progress": False, **options})


def test_a_bad_cell_is_named_with_its_column(tmp_path):
    table = write_table(tmp_path, draw_labels(4))
    table.write_text(table.read_text().replace(",0,", ",maybe,", 1))
    with pytest.raises(DataError, match="holds 'maybe': 1, 0 or nothing"):
        tfpipe.build_tfrecords(table, tmp_path / "out", layout="csv", label_columns=NAMES, workers=1, progress=False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"label_columns": ["labels"]}, "1, 0 or nothing .* read with task=multilabel and label_column=labels"),
        ({"task": "multilabel", "label_column": "labels", "label_separator": ";"}, r"with label_separator=\|\?"),
    ],
)
def test_lists_in_cells_that_hold_one_label_are_one_message_with_the_first_rows(tmp_path, options, why):
    table = write_table(tmp_path, draw_labels(13))
    rows = [f"images/{index:04d}.png,{'red' if index == 9 else 'green|red'}" for index in range(13)]
    table.write_text("\n".join(["path,labels", *rows]))
    with pytest.raises(DataError, match=why) as caught:
        tfpipe.build_tfrecords(table, tmp_path / "out", layout="csv", workers=1, progress=False, **options)
    lines = [line for line in str(caught.value).splitlines() if "label_list" in line]
    assert len(lines) == 4
    assert "line 2: images/0000.png" in lines[0]
    assert lines[-1] == "  label_list: so do 9 more rows"
    assert len([each for each in caught.value.problems if each.reason == "label_list"]) == 12


def test_columns_of_labels_keep_their_capitals_and_are_composed(tmp_path):
    names = ("No Finding", "Re\u0301tine", "x")  # decomposed
    table = write_table(tmp_path, draw_labels(6))
    table.write_text(table.read_text().replace(",".join(NAMES), ",".join(names), 1))
    options = {"layout": "csv", "normalize": "nfc", "workers": 1, "progress": False}
    found = tfpipe.build_tfrecords(table, tmp_path / "out", label_columns=names, **options)
    assert found.class_names == ["No Finding", "R\xe9tine", "x"]
    with pytest.raises(ValueError, match="there twice: x"):
        tfpipe.build_tfrecords(table, tmp_path / "other", label_columns=["x", "X"], **options)


def test_a_class_that_all_images_have_is_warned_of(tmp_path, caplog):
    labels = draw_labels(12)
    labels[:, 0] = 1
    tfpipe.build_tfrecords(
        write_table(tmp_path, labels), tmp_path / "out", layout="csv", label_columns=NAMES, workers=1, progress=False
    )
    assert "no image with it, or none without it, in split 'train'" in caplog.text
    caplog.clear()
    labels[1:, 0] = 0  # one fold alone has it
    options = {"layout": "csv", "label_columns": NAMES, "splits": {"folds": 3}, "workers": 1, "progress": False}
    tfpipe.build_tfrecords(write_table(tmp_path, labels, "rare.csv"), tmp_path / "folds", **options)
    assert "no image with it, or none without it, in what is left to train on where fold" in caplog.text
    assert caplog.text.rstrip().endswith(": 'red'")


def test_verify_finds_labels_that_are_not_those_of_their_combination(shards, tmp_path):
    assert not verify(shards, workers=1, progress=False).findings
    for damage, expected in (("combinations", "its SHA-256 is another"), ("lists", "are not those of")):
        folder = build(tmp_path / damage, count=40)
        if damage == "combinations":
            path = folder / "index" / "squares.combinations"
            path.write_bytes(b"\x01" + path.read_bytes()[1:])
            if path.read_bytes()[:1] == (shards / "index" / "squares.combinations").read_bytes()[:1]:
                path.write_bytes(b"\xff" + path.read_bytes()[1:])
            with pytest.raises(DataError, match="SHA-256"):
                combinations.read(folder, manifest.load(folder))
        else:
            shard = folder / manifest.load(folder).split("test").shards[0].file
            data = [schema.decode(raw.data) for raw in tfrecord.salvage_frames(shard)]
            place = next(index for index, one in enumerate(data) if len(one.labels) == 1)  # of the same length afterwards
            data[place] = dataclasses.replace(data[place], labels=((data[place].labels[0] + 1) % 3,))
            pieces = [b"".join(tfrecord.frame(schema.encode(one))) for one in data]
            shard.write_bytes(b"".join(pieces))
        messages = "\n".join(str(one) for one in verify(folder, workers=1, progress=False).findings)
        assert expected in messages


def test_numbers_that_cannot_be_are_refused_on_opening(shards, tmp_path):
    found = manifest.load(shards)
    train = found.splits["train"]
    wrong = {**train.unknown_counts, "red": train.num_records}
    broken = dataclasses.replace(found, splits={**found.splits, "train": dataclasses.replace(train, unknown_counts=wrong)})
    manifest.save(broken, tmp_path)
    with pytest.raises(DataError, match="more than the records that have labels"):
        manifest.load(tmp_path)


def test_the_build_goes_on_and_confirms(shards):
    folder = shards.parent
    assert manifest.load(build(folder)).root_hash == manifest.load(shards).root_hash  # complete: nothing to do
    with pytest.raises(ValueError, match="label_columns was"):
        build(folder, label_columns=NAMES[::-1])
    assert np.frombuffer((shards / "index" / "squares.combinations").read_bytes(), np.int8).min() == -1
