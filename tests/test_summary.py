import dataclasses

import pytest
from inspection_fixtures import build_tiny

import tfpipe
from tfpipe.common.text import display_width, format_bytes, plural
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest, Shard, Split
from tfpipe.records.summary import describe_manifest


def made(class_names, *counts, **changes):
    splits = {
        name: Split(True, 10, dict(zip(class_names, count, strict=True)), (Shard(f"{name}.x", sum(count), 20, "0", "1"),))
        for name, count in zip(("train", "test"), counts, strict=False)
    }
    fields = {"properties": {}, "rejected": {}, "conflicts": [], "leaks": [], **changes}
    return Manifest("x", 0, class_names, splits, {}, "", "", tfpipe_version="0", **fields)


def test_a_built_data_set(photos, tmp_path):
    (photos / "cat" / "bad.jpg").write_bytes(b"")
    manifest = tfpipe.build_tfrecords(
        photos, tmp_path / "out", layout="folders", splits={"train": 0.6, "test": 0.4}, on_error="skip", progress=False
    )
    text = describe_manifest(manifest)
    assert text.startswith("images: 25 records in 2 splits, 3 classes\n")
    assert manifest.root_hash in text
    assert "empty 1; see rejected.jsonl" in text
    for name, split in manifest.splits.items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert f" {split.num_records} " in line
    for label, name in enumerate(manifest.class_names):
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{label}  {name}"))
        counts = [split.class_counts[name] for split in manifest.splits.values()]
        assert list(map(int, line.split()[-3:])) == [*counts, sum(counts)]


def test_columns_are_aligned_also_with_wide_characters():
    table = describe_manifest(made(["cat", "小 猫", "e\u0301"], (1, 1000, 3))).split("\n\n")[2].splitlines()
    assert len({display_width(line) for line in table}) == 1


def test_a_thousand_classes_are_shortened():
    names = [f"class {index}" for index in range(1000)]
    text = describe_manifest(made(names, range(1, 1001)))
    assert len(text.splitlines()) < 30
    assert "and 990 more classes; all have between 1 (class 0) and 1,000 (class 999) records" in text


def test_a_long_or_unprintable_class_name_keeps_the_table_narrow():
    text = describe_manifest(made(["x" * 500, "a\tb"], (1, 2)))
    assert max(map(len, text.splitlines())) < 100
    assert "a?b" in text


def test_names_that_only_another_program_writes_do_not_move_the_terminal():
    name = "\x1b[2J\x9b1m\u202e\n" + "x" * 500
    text = describe_manifest(made(["a", "b"], (1, 2), properties={name: 1}, rejected={name: 2}))
    assert all(character.isprintable() for character in text.replace("\n", ""))
    assert max(map(len, text.splitlines())) < 100
    assert text.count("?[2J?1m??xxx") == 2


def test_leaks_and_unlabelled_splits(tmp_path):
    manifest = manifests.load(build_tiny(tmp_path, layout="flat"))
    text = describe_manifest(dataclasses.replace(manifest, leaks=[["a", "b"], ["c", "d", "e"]]))
    assert "leaks across splits  2 groups of equal bytes, 5 records" in text
    assert "label  class" not in text
    assert text.startswith("tiny: 3 records in 1 split, 0 classes")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (4e12, "4.0 TB")],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_plural():
    assert [plural(1, "record"), plural(1200, "record"), plural(2, "class", "classes")] == [
        "1 record",
        "1,200 records",
        "2 classes",
    ]


def test_a_data_set_whose_images_were_decoded_reports_it(photos, tmp_path):
    for check in ("header", "decode"):
        built = tfpipe.build_tfrecords(photos, tmp_path / check, layout="folders", check=check, progress=False)
        assert ("every image decoded" in describe_manifest(built)) == (check == "decode")
