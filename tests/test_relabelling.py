"""Decisions of people in a build: applied to the bytes and classes that they are about, refused for any others."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import CHECKOUT, make_image, write

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.common.files import sha256_of
from tfpipe.records import decisions, example, manifest, schema, tfrecord
from tfpipe.records.catalog import read_catalog
from tfpipe.records.decisions import Decision
from tfpipe.verification.extraction import extract
from tfpipe.verification.verification import verify

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}


def build(photos, output, *files, **options):
    given = {"layout": "folders", "splits": SPLITS, "num_shards": 1, "workers": 1, "progress": False, "decisions": files}
    return tfpipe.build_tfrecords(photos, output, **{**given, **options})


def rows_of(directory):
    return {row.key: row for row in read_catalog(directory)}


def decide(photos, path, *choices):
    """Writes decisions: (key, decision, new class) about the files of a folder as they are now."""
    made = [
        Decision(key, hashlib.sha256((photos / key).read_bytes()).hexdigest(), key.partition("/")[0], kind, *new)
        for key, kind, *new in choices
    ]
    decisions.write(path, made)
    return path


def records_of(directory):
    shards = sorted(directory.glob("*.tfrecord-*"))
    return [schema.decode(data) for shard in shards for _, data in tfrecord.read_frames(shard)]


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def decided(photos, tmp_path):
    """Two relabelled images, one dropped, one kept."""
    choices = ("cat/1.jpg", "label", "dog"), ("dog/3.jpg", "label", "小 猫"), ("cat/2.jpg", "drop"), ("dog/1.jpg", "keep")
    return decide(photos, tmp_path / "decisions.csv", *choices)


def test_new_labels_are_used_and_the_old_ones_kept(photos, tmp_path, decided):
    before, after = build(photos, tmp_path / "a"), build(photos, tmp_path / "b", decided)
    assert before.decisions is None
    relabelled = {"cat/1.jpg": ["cat"], "dog/3.jpg": ["dog"]}
    counts = {"label": 2, "drop": 1, "keep": 1}
    assert after.decisions == manifest.Decided(counts, relabelled, {"cat/2.jpg": "cat"})
    assert after.options["decisions"] == [sha256_of(decided)]
    assert manifest.load(tmp_path / "b") == after
    old, new = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert old.keys() - new.keys() == {"cat/2.jpg"}
    changed = {key: (new[key].class_name, new[key].label) for key in new if new[key].class_name != old[key].class_name}
    assert changed == {"cat/1.jpg": ("dog", 1), "dog/3.jpg": ("小 猫", 2)}
    assert {record.key: list(record.history) for record in records_of(tmp_path / "b") if record.history} == relabelled
    (shard,) = (tmp_path / "b").glob("*-train.tfrecord-*")
    raw = [example.decode(data) for _, data in tfrecord.read_frames(shard)]
    assert all(("image/class/history" in features) == (features["image/key"][0].decode() in relabelled) for features in raw)
    (rejected,) = map(json.loads, (tmp_path / "b" / "rejected.jsonl").read_text("utf-8").splitlines())
    message = "cat/2.jpg: dropped by a decision; it had the class 'cat'"
    assert rejected == {"key": "cat/2.jpg", "reason": "dropped", "message": message}
    assert after.rejected == {"dropped": 1}
    assert sum(split.num_records for split in after.splits.values()) == len(old) - 1


@pytest.mark.parametrize("options", [{}, {"group_pattern": r"(\d+)\.jpg"}])
def test_decisions_move_no_image_to_another_split(photos, tmp_path, options):
    build(photos, tmp_path / "a", **options)
    old = rows_of(tmp_path / "a")
    many = [(f"cat/{number}.jpg", "label", "dog") for number in range(5)] + [("cat/7.jpg", "drop"), ("dog/2.jpg", "drop")]
    build(photos, tmp_path / "b", decide(photos, tmp_path / "d.csv", *many), **options)
    new = rows_of(tmp_path / "b")
    assert verify(tmp_path / "b", progress=False).findings == []
    assert {key: row.split for key, row in new.items()} == {key: old[key].split for key in new}
    if options:
        return
    for number in range(5):  # the test can fail: files that are moved are drawn anew, with all others of their class
        (photos / "cat" / f"{number}.jpg").rename(photos / "dog" / f"cat{number}.jpg")
    moved = {row.sha256: row.split for row in rows_of_build(photos, tmp_path / "c").values()}
    assert {row.sha256: row.split for row in new.values()}.items() - moved.items()


def test_data_sets_without_decisions_are_byte_for_byte_what_they_were(photos, tmp_path, decided):
    """Keeps change nothing but the list of decisions: records have no new feature."""
    build(photos, tmp_path / "a")
    build(photos, tmp_path / "b", decide(photos, tmp_path / "keep.csv", ("cat/1.jpg", "keep")))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert [str(name) for name in a if a[name] != b[name]] == ["manifest.json"]
    assert "decisions" not in json.loads((tmp_path / "a" / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sha256": "0" * 64},
            r"cat/1\.jpg: its bytes are others now \(SHA-256 [0-9a-f]{12}, the decision is about 0{12}\)",
        ),
        ({"key": "cat/gone.jpg"}, r"cat/gone\.jpg: there is no such image"),
        ({"old_class": "dog", "new_class": "cat"}, r"cat/1\.jpg: its class is 'cat', the decision is about 'dog'"),
        ({"new_class": "dgo"}, r"cat/1\.jpg: there is no class 'dgo' \(did you mean dog\?\)"),
    ],
)
def test_decisions_about_other_images_are_refused_by_name(photos, tmp_path, decided, change, message):
    first, *others = decisions.read(decided)
    second = others[-1]._replace(key="dog/gone.jpg")
    decisions.write(tmp_path / "wrong.csv", [first._replace(**change), *others, second])
    with pytest.raises(DataError, match="2 decisions do not fit the inputs") as refused:
        build(photos, tmp_path / "b", tmp_path / "wrong.csv")
    assert re.search(message, str(refused.value))
    assert "dog/gone.jpg: there is no such image" in str(refused.value)
    assert not (tmp_path / "b").exists()  # nothing is kept, another build may follow
    build(photos, tmp_path / "b", decided)


def test_changed_bytes_are_refused(photos, tmp_path, decided):
    write(photos / "cat" / "1.jpg", make_image(999))
    with pytest.raises(DataError, match=r"1 decision does not fit the inputs.*\n  cat/1\.jpg: its bytes are others now"):
        build(photos, tmp_path / "b", decided)


def test_decisions_that_empty_a_split_are_refused(photos, tmp_path):
    build(photos, tmp_path / "before")
    keys = (row.key for row in read_catalog(tmp_path / "before") if row.split == "test")
    path = decide(photos, tmp_path / "decisions.csv", *((key, "drop") for key in keys))
    with pytest.raises(DataError, match="drop all images of split 'test'"):
        build(photos, tmp_path / "shards", path)
    assert not contents(tmp_path / "shards")


def test_a_second_round_follows_the_first(photos, tmp_path, decided):
    before = rows_of_build(photos, tmp_path / "a", decided)
    again = [
        Decision("cat/1.jpg", before["cat/1.jpg"].sha256, "dog", "label", "小 猫"),
        Decision("dog/3.jpg", before["dog/3.jpg"].sha256, "小 猫", "drop"),
    ]
    decisions.write(tmp_path / "second.csv", again)
    found = build(photos, tmp_path / "b", decided, tmp_path / "second.csv")
    assert found.decisions.relabelled == {"cat/1.jpg": ["cat", "dog"]}
    assert found.decisions.dropped == {"cat/2.jpg": "cat", "dog/3.jpg": "dog"}
    assert {record.key: record.history for record in records_of(tmp_path / "b") if record.history} == {
        "cat/1.jpg": ("cat", "dog")
    }
    assert verify(tmp_path / "b", progress=False).findings == []
    with pytest.raises(DataError, match=r"cat/1\.jpg: its class is 'cat', the decision is about 'dog'"):
        build(photos, tmp_path / "c", tmp_path / "second.csv", decided)
    with pytest.raises(DataError, match=r"cat/2\.jpg: an earlier decision has dropped it"):
        build(photos, tmp_path / "c", decided, decide(photos, tmp_path / "twice.csv", ("cat/2.jpg", "keep")))


def rows_of_build(photos, output, *files):
    build(photos, output, *files)
    return rows_of(output)


def test_a_decision_resolves_a_conflict(photos, tmp_path):
    write(photos / "dog" / "copy.jpg", (photos / "cat" / "1.jpg").read_bytes())
    with pytest.raises(DataError, match="1 group of byte-identical images with different labels"):
        build(photos, tmp_path / "a")
    for number, choice in enumerate([("dog/copy.jpg", "label", "cat"), ("dog/copy.jpg", "drop")]):
        found = build(photos, tmp_path / f"b{number}", decide(photos, tmp_path / "d.csv", choice))
        assert found.conflicts == []
    with pytest.raises(DataError, match="1 group of byte-identical images with different labels"):
        build(photos, tmp_path / "c", decide(photos, tmp_path / "d.csv", ("dog/copy.jpg", "keep")))


def test_the_same_build_again_is_confirmed_and_other_decisions_are_refused(photos, tmp_path, decided):
    found = build(photos, tmp_path / "a", decided)
    assert build(photos, tmp_path / "a", decided) == found
    with pytest.raises(ValueError, match=r"decisions was \['[0-9a-f]{64}'\] and is \(\)"):
        build(photos, tmp_path / "a")
    write(photos / "dog" / "7.jpg", make_image(999))
    (photos / "cat" / "2.jpg").unlink()  # which was dropped
    with pytest.raises(ValueError, match="inputs that have changed since") as refused:
        build(photos, tmp_path / "a", decided)
    assert str(refused.value).splitlines()[1:3] == ["  removed: cat/2.jpg", "  changed: dog/7.jpg"]


KILLED = """
import os, signal, sys
import tfpipe
from tfpipe.building import steps
write, decide = steps.Build.write, steps.Build.decide
def stop(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
def after(*arguments):
    decide(*arguments)
    stop()
def within(state, *arguments):
    steps.plan.apply_decisions = applied
    applied(state, *arguments)
    stop()
applied = steps.plan.apply_decisions
if sys.argv[4] == "after":
    steps.Build.decide = after
else:
    steps.plan.apply_decisions = within
tfpipe.build_tfrecords(
    sys.argv[1], sys.argv[2], layout="folders", splits={"train": 0.6, "val": 0.2, "test": 0.2}, num_shards=1, workers=1,
    progress=False, decisions=[sys.argv[3]],
)
"""


@pytest.mark.parametrize("moment", ["within", "after"])
def test_g2_a_killed_build_with_decisions_goes_on_to_the_same_bytes(photos, tmp_path, decided, moment):
    build(photos, tmp_path / "a", decided)
    command = [sys.executable, "-c", KILLED, str(photos), str(tmp_path / "b"), str(decided), moment]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "b" / manifest.BUILD_FOLDER).is_dir()
    build(photos, tmp_path / "b", decided, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_verify_understands_histories(photos, tmp_path, decided):
    build(photos, tmp_path / "a", decided)
    assert verify(tmp_path / "a", progress=False).findings == []
    found = manifest.load(tmp_path / "a")
    for relabelled in ({"cat/1.jpg": ["小 猫"], "dog/3.jpg": ["dog"]}, {"dog/3.jpg": ["dog"]}):
        wrong = dataclasses.replace(found.decisions, relabelled=relabelled)
        manifest.save(dataclasses.replace(found, decisions=wrong), tmp_path / "a")
        (finding,) = verify(tmp_path / "a", progress=False).findings
        assert "(cat/1.jpg): classes before decisions ('cat',), the manifest lists" in str(finding)


def test_extraction_gives_all_files_back_that_were_not_dropped(photos, tmp_path, decided):
    build(photos, tmp_path / "a", decided)
    extract(tmp_path / "a", tmp_path / "out", progress=False)
    files = {path.relative_to(photos): path.read_bytes() for path in photos.rglob("*.jpg")}
    got = {path.relative_to(tmp_path / "out"): path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    assert {str(path) for path in files.keys() - got.keys()} == {os.path.join("cat", "2.jpg")}
    assert all(files[path] == got[path] for path in got)


def test_the_command_takes_several_files(photos, tmp_path, decided, run_tool):
    second = decide(photos, tmp_path / "second.csv", ("cat/5.jpg", "drop"))
    arguments = [f"--input={photos}", f"--output={tmp_path / 'a'}", "--layout=folders", f"--decisions={decided},{second}"]
    run_tool("build_tfrecords", *arguments)
    assert manifest.load(tmp_path / "a").decisions.counts == {"label": 2, "drop": 2, "keep": 1}


# The file


def test_what_is_written_is_read_back(tmp_path):
    made = [
        Decision("=1+1.jpg", "0" * 64, "-3", "label", "@x"),
        Decision('a, "b"\n.jpg', "a" * 64, "小 猫", "drop"),
        Decision("'=x", "b" * 64, "cat", "keep"),
    ]
    decisions.write(tmp_path / "d.csv", made)
    assert decisions.read(tmp_path / "d.csv") == made
    assert not any(line.startswith(("=", "-", "@")) for line in (tmp_path / "d.csv").read_text("utf-8").splitlines())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,{hash},cat,label,dog,x", "6 cells; expected 5"),
        ("k,{hash},cat,keep,", "a second decision about 'k'"),
        ("a,12,cat,keep,", "sha256 must be 64 hexadecimal digits"),
        ("a,{hash},cat,rename,dog", "decision must be one of label, drop, keep"),
        ("a,{hash},,drop,", "old_class is empty"),
        ("a,{hash},cat,label,", "new_class must be another class with 'label', else empty"),
        ("a,{hash},cat,label,cat", "new_class must be another class"),
        ("a,{hash},cat,drop,dog", "new_class must be another class"),
    ],
)
def test_lines_that_are_no_decision_are_refused(tmp_path, row, message):
    rows = ["key,sha256,old_class,decision,new_class", f"k,{'0' * 64},cat,keep,", row.format(hash="0" * 64)]
    path = write(tmp_path / "d.csv", "\n".join(rows).encode())
    with pytest.raises(DataError, match=f"line 3: {message}"):
        decisions.read(path)
    write(path, b"key,label\na,b\n")
    with pytest.raises(DataError, match="the first line must be key,sha256,old_class,decision,new_class"):
        decisions.read(path)
