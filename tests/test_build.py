"""Building: G1 verbatim, G2 reproducible, G4 audited, G9 no leak, and what happens when things go wrong."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import CHECKOUT, cut_in_scan, make_image, write
from PIL import Image

import tfpipe
from tfpipe.building.steps import Build
from tfpipe.records import catalog, manifest, schema, tfrecord
from tfpipe.records.summary import describe_manifest

HALVES = {"train": 0.5, "test": 0.5}


def build(source, output, **options):
    defaults = {"layout": "folders", "workers": 1, "progress": False}
    return tfpipe.build_tfrecords(source, output, **{**defaults, **options})


def records(directory, split=None):
    content = manifest.load(directory)
    return [
        schema.decode(frame.data)
        for name, part in content.splits.items()
        if split in (None, name)
        for shard in part.shards
        for frame in tfrecord.read_frames(Path(directory) / shard.file)
    ]


def files_of(directory):
    """{relative name: bytes} of every file."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


# G1


def test_g1_records_hold_the_input_files_bit_for_bit(photos, tmp_path):
    build(photos, tmp_path / "out", splits=HALVES, num_shards=3)
    stored = {record.filename: record.encoded for record in records(tmp_path / "out")}
    assert stored == files_of(photos)


def test_records_say_what_the_files_say(tmp_path):
    write(tmp_path / "in/a/1.jpg", make_image(1, (30, 20)))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    write(tmp_path / "in/a/2.jpg", make_image(2, (30, 20), exif=exif))
    write(tmp_path / "in/b/3.png", make_image(3, (5, 7), format="PNG"))
    build(tmp_path / "in", tmp_path / "out")
    found = {record.key: record for record in records(tmp_path / "out", "train")}
    one, two, three = (found[key] for key in ("a/1.jpg", "a/2.jpg", "b/3.png"))
    assert (one.format, one.height, one.width, one.channels, one.orientation) == ("JPEG", 20, 30, 3, 1)
    assert (two.height, two.width, two.orientation) == (20, 30, 6)  # of the header, before orientation
    assert (three.format, three.height, three.width, three.label, three.class_name) == ("PNG", 7, 5, 1, "b")
    assert one.sha256 == hashlib.sha256(one.encoded).hexdigest()
    assert manifest.load(tmp_path / "out").properties["turned"] == 1


def test_index_and_catalog_say_where_each_record_stands(photos, tmp_path):
    content = build(photos, tmp_path / "out", splits=HALVES, num_shards=2)
    for split in content.splits:
        for row, offset, length in catalog.read_split(tmp_path / "out", content, split):
            path = tmp_path / "out" / content.splits[split].shards[row.shard].file
            data = path.read_bytes()[offset : offset + length]
            record = schema.decode(data[12:-4])
            assert (record.key, record.label, record.sha256) == (row.key, row.label, row.sha256)
            assert int.from_bytes(data[-4:], "little") == row.crc32c == tfrecord.masked_crc32c(data[12:-4])


# G2


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    for index in range(300):
        write(root / f"class {index % 3}" / f"{index}.jpg", make_image(index))
    write(root / "class 0" / "copy.jpg", make_image(0))
    return root


@pytest.fixture(scope="module")
def reference(many, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "out"
    build(many, output, splits=HALVES, num_shards=4, seed=3)
    return files_of(output)


@pytest.mark.parametrize("workers", [2, 8])
def test_g2_the_number_of_workers_changes_no_byte(many, reference, tmp_path, workers):
    build(many, tmp_path / "out", splits=HALVES, num_shards=4, seed=3, workers=workers)
    assert files_of(tmp_path / "out") == reference


def test_g2_the_order_of_a_listing_and_the_place_of_the_input_change_no_byte(many, reference, tmp_path, monkeypatch):
    files = sorted(files_of(many).items())
    random.Random(1).shuffle(files)
    for name, data in files:  # other directory order, other place, other times
        write(tmp_path / "elsewhere" / name, data)
    real = os.scandir

    class Reversed:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Reversed)
    build(tmp_path / "elsewhere", tmp_path / "out", splits=HALVES, num_shards=4, seed=3)
    monkeypatch.undo()
    assert files_of(tmp_path / "out") == reference


def test_g2_the_order_in_which_splits_are_named_changes_no_byte(photos, tmp_path):
    build(photos, tmp_path / "one", splits={"train": 0.5, "test": 0.5})
    build(photos, tmp_path / "two", splits={"test": 0.5, "train": 0.5})
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    inputs = {"train": photos / "cat", "test": photos / "dog"}
    build(inputs, tmp_path / "three", layout="flat")
    build(dict(reversed(inputs.items())), tmp_path / "three", layout="flat")  # an equal build: nothing to do


def test_g2_the_seed_orders_the_records_of_a_split(many, tmp_path):
    keys = []
    for seed in (0, 1):
        build(many, tmp_path / str(seed), seed=seed)
        keys.append([row.key for row in catalog.read_catalog(tmp_path / str(seed))])
    assert keys[0] != keys[1]
    assert sorted(keys[0]) == sorted(keys[1])


def test_hashes_in_the_manifest_are_those_of_the_files(photos, tmp_path):
    content = build(photos, tmp_path / "out", num_shards=2)
    for shard in content.splits["train"].shards:
        for name, digest in ((shard.file, shard.sha256), (manifest.index_file(shard.file), shard.index_sha256)):
            assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    for name, digest in content.companions.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    named = {*content.companions, "manifest.json", "index", *(shard.file for shard in content.splits["train"].shards)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == named


def test_shards_are_as_many_as_their_size_asks_for(many, tmp_path):
    content = build(many, tmp_path / "out", shard_bytes=20_000)
    sizes = [shard.num_bytes for shard in content.splits["train"].shards]
    assert len(sizes) > 5
    assert 0.7 * 20_000 < sum(sizes) / len(sizes) < 1.1 * 20_000
    assert (
        max(shard.num_records for shard in content.splits["train"].shards)
        - min(shard.num_records for shard in content.splits["train"].shards)
        <= 1
    )


def test_g2_another_seed_gives_other_bytes(many, reference, tmp_path):
    build(many, tmp_path / "out", splits=HALVES, num_shards=4, seed=4)
    assert files_of(tmp_path / "out").keys() == reference.keys()
    assert files_of(tmp_path / "out") != reference


def start_build(many, output):
    options = f"layout='folders', splits={HALVES!r}, num_shards=4, seed=3, workers=2, progress=False"
    code = f"import tfpipe; tfpipe.build_tfrecords({str(many)!r}, {str(output)!r}, {options})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)


def seconds_of_build(many, output):
    start = time.monotonic()
    with start_build(many, output) as process:
        assert process.wait() == 0
    return time.monotonic() - start


@pytest.mark.exhaustive
def test_g2_killed_at_random_moments_a_build_goes_on_to_the_same_bytes(many, reference, tmp_path, thinned):
    drawn = random.Random(5)
    whole = min(seconds_of_build(many, tmp_path / f"whole {index}") for index in range(2))
    output = tmp_path / "out"
    kills, unfinished, wanted = 0, 0, len(thinned(range(20), 6))
    while kills < wanted:
        process = start_build(many, output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(drawn.uniform(0.0, whole))
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        process.stderr.close()
        kills += killed
        if (output / "manifest.json").exists():
            assert {name: data for name, data in files_of(output).items() if not name.startswith(".build")} == reference
            for path in sorted(output.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            output.rmdir()
        unfinished += killed and (output / ".build").exists()
    assert unfinished >= wanted // 4, "the kills came too early or too late to show anything"
    build(many, output, splits=HALVES, num_shards=4, seed=3)
    assert files_of(output) == reference


def stop_before(monkeypatch, step):
    """Makes a build stop where the step begins, as a kill would."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Build, step, stop)


@pytest.mark.parametrize("step", ["audit", "decide", "write", "finish"])
def test_g2_stopped_between_any_two_steps_a_build_goes_on(many, reference, tmp_path, monkeypatch, step):
    stop_before(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        build(many, tmp_path / "out", splits=HALVES, num_shards=4, seed=3)
    monkeypatch.undo()
    assert not (tmp_path / "out/manifest.json").exists()
    build(many, tmp_path / "out", splits=HALVES, num_shards=4, seed=3)
    assert files_of(tmp_path / "out") == reference


def test_finished_shards_are_not_written_again(many, tmp_path, monkeypatch):
    stop_before(monkeypatch, "finish")
    with pytest.raises(KeyboardInterrupt):
        build(many, tmp_path / "out", num_shards=3)
    monkeypatch.undo()
    shards = sorted((tmp_path / "out").glob("images-*"))
    assert len(shards) == 3
    before = [path.stat().st_ino for path in shards]
    shards[1].unlink()
    build(many, tmp_path / "out", num_shards=3)
    after = [path.stat().st_ino for path in shards]
    assert (after[0], after[2]) == (before[0], before[2])


@pytest.mark.parametrize("step", ["decide", "write"])
@pytest.mark.parametrize("change", ["option", "added", "removed", "content", "size", "label"])
def test_a_resumed_build_refuses_other_options_and_inputs(photos, tmp_path, monkeypatch, change, step):
    stop_before(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out")
    monkeypatch.undo()
    expected = {
        "option": r"seed was 0 and is 1",
        "added": r"added: dog/new\.jpg",
        "removed": r"removed: dog/3\.jpg",
        "content": r"changed: dog/3\.jpg",
        "size": r"changed: dog/3\.jpg",
        "label": r"(added|removed): cat/moved\.jpg",
    }[change]
    if change == "added":
        write(photos / "dog/new.jpg", make_image(999))
    elif change == "removed":
        (photos / "dog/3.jpg").unlink()
    elif change == "content":
        data = bytearray((photos / "dog/3.jpg").read_bytes())
        data[-10] ^= 1
        (photos / "dog/3.jpg").write_bytes(data)  # the same size: only the content tells
    elif change == "size":
        write(photos / "dog/3.jpg", make_image(12345, (50, 50)))
    elif change == "label":
        (photos / "dog/3.jpg").rename(photos / "cat/moved.jpg")
    for _ in range(2):  # refused once, refused for ever
        with pytest.raises(ValueError, match=expected):
            build(photos, tmp_path / "out", seed=1 if change == "option" else 0)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_resumed_build_takes_inputs_that_were_only_touched(photos, tmp_path, monkeypatch):
    stop_before(monkeypatch, "write")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out")
    monkeypatch.undo()
    os.utime(photos / "dog/3.jpg", (1, 1))
    assert build(photos, tmp_path / "out").splits["train"].num_records == 25


def test_a_resumed_build_takes_inputs_that_were_moved(photos, tmp_path, monkeypatch):
    stop_before(monkeypatch, "write")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out")
    monkeypatch.undo()
    photos.rename(tmp_path / "elsewhere")
    build(tmp_path / "elsewhere", tmp_path / "out")
    build(tmp_path / "elsewhere", tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.fixture(scope="module")
def unfinished(many, tmp_path_factory):
    """A build of `many` in two shards that was stopped before the last step, and the files of a complete one."""
    root = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_before(monkeypatch, "finish")
        with pytest.raises(KeyboardInterrupt):
            build(many, root / "stopped", num_shards=2)
    build(many, root / "whole", num_shards=2)
    return root / "stopped", files_of(root / "whole")


@pytest.mark.parametrize("lost", ["index/*.idx", ".build/*.csv", ".build/*.json", "images-*"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_resumed_build_writes_again_what_was_lost_of_a_finished_shard(many, unfinished, tmp_path, lost, cut):
    stopped, expected = unfinished
    shutil.copytree(stopped, tmp_path / "out")
    found = list((tmp_path / "out").glob(lost))
    assert len(found) == 2
    found[0].write_bytes(b"") if cut else found[0].unlink()
    build(many, tmp_path / "out", num_shards=2)
    assert files_of(tmp_path / "out") == expected


def test_a_table_with_ids_whose_paths_change_is_another_input(tmp_path, monkeypatch):
    for index in (1, 2):
        write(tmp_path / f"{index}.jpg", make_image(index))
    table = write(tmp_path / "t.csv", b"path,label,id\n1.jpg,a,x\n2.jpg,a,y\n")
    stop_before(monkeypatch, "write")
    with pytest.raises(KeyboardInterrupt):
        build(table, tmp_path / "out", layout="csv")
    monkeypatch.undo()
    (tmp_path / "1.jpg").rename(tmp_path / "new.jpg")
    write(tmp_path / "t.csv", b"path,label,id\nnew.jpg,a,x\n2.jpg,a,y\n")
    with pytest.raises(ValueError, match="changed: x"):
        build(table, tmp_path / "out", layout="csv")
    build(table, tmp_path / "fresh", layout="csv")
    write(tmp_path / "t.csv", b"path,label,id\n2.jpg,a,y\nnew.jpg,a,x\n")
    build(table, tmp_path / "fresh", layout="csv")  # the order of rows is no difference
    (tmp_path / "new.jpg").rename(tmp_path / "newer.jpg")
    write(tmp_path / "t.csv", b"path,label,id\n2.jpg,a,y\nnewer.jpg,a,x\n")
    with pytest.raises(ValueError, match="have changed since"):
        build(table, tmp_path / "fresh", layout="csv")


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_what_could_not_be_read_is_looked_at_again(photos, tmp_path, monkeypatch, on_error):
    target = photos / "cat/3.jpg"
    real = Build.audit

    def audit_without(self, state, workers):
        target.rename(tmp_path / "away")
        real(self, state, workers)
        (tmp_path / "away").rename(target)  # with its time of modification

    monkeypatch.setattr(Build, "audit", audit_without)
    stop_before(monkeypatch, "decide")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out", on_error=on_error)
    monkeypatch.undo()
    assert build(photos, tmp_path / "out", on_error=on_error).splits["train"].num_records == 25
    build(photos, tmp_path / "fresh", on_error=on_error)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_an_output_with_two_slashes(photos, tmp_path):
    assert build(photos, f"/{tmp_path}/out").splits["train"].num_records == 25


def test_an_unlabelled_split_is_not_filled_by_another_input(photos, tmp_path):
    write(tmp_path / "bare/x.jpg", make_image(5000))
    with pytest.raises(ValueError, match="split 'test' is the unlabelled input's"):
        build(photos, tmp_path / "out", layout="flat", unlabelled={"test": tmp_path / "bare"})


def test_two_tables_of_one_name_with_bad_rows(tmp_path):
    for folder in ("p", "q"):
        write(tmp_path / folder / f"{folder}.jpg", make_image(ord(folder)))
        write(tmp_path / folder / "t.csv", f"path,label\n,a\n{folder}.jpg,a\n".encode())
    inputs = {"train": tmp_path / "p/t.csv", "test": tmp_path / "q/t.csv"}
    assert build(inputs, tmp_path / "out", layout="csv", on_error="skip").rejected == {"bad_row": 2}


def test_a_damaged_state_is_named(photos, tmp_path, monkeypatch):
    stop_before(monkeypatch, "write")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out")
    monkeypatch.undo()
    write(tmp_path / "out/.build/state.sqlite", b"garbage" * 1000)
    with pytest.raises(tfpipe.DataError, match=r"out: the state of the unfinished build is damaged.*delete"):
        build(photos, tmp_path / "out")


def test_an_image_that_changes_between_audit_and_writing_is_named(photos, tmp_path, monkeypatch):
    real = Build.write

    def change_first(self, state, workers):
        write(photos / "dog/3.jpg", make_image(12345))
        return real(self, state, workers)

    monkeypatch.setattr(Build, "write", change_first)
    with pytest.raises(tfpipe.DataError, match=r"dog/3\.jpg: changed since the audit"):
        build(photos, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_over_a_complete_data_set_nothing_is_done(photos, tmp_path, caplog):
    caplog.set_level("INFO", "tfpipe")
    first = build(photos, tmp_path / "out", splits=HALVES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert build(photos, tmp_path / "out", splits=HALVES) == manifest.load(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert "nothing to do" in caplog.text
    assert first.root_hash == manifest.load(tmp_path / "out").root_hash


@pytest.mark.parametrize("change", ["option", "added", "content", "shard", "index", "catalog", "label", "split"])
def test_over_a_complete_data_set_anything_else_is_refused(photos, tmp_path, change):
    build(photos, tmp_path / "out")
    options, expected = {}, "changed: dog/3.jpg"
    if change == "option":
        options, expected = {"num_shards": 2}, "num_shards was None and is 2"
    elif change == "added":
        write(photos / "dog/new.jpg", make_image(999))
        expected = "added: dog/new.jpg"
    elif change == "content":
        write(photos / "dog/3.jpg", make_image(999))
    elif change == "shard":
        os.truncate(next((tmp_path / "out").glob("images-*")), 100)
        expected = "truncated: 100 bytes"
    elif change == "index":
        next((tmp_path / "out/index").glob("*.idx")).unlink()
        expected = "idx: missing"
    elif change == "catalog":
        (tmp_path / "out/catalog.csv").unlink()
        expected = "catalog.csv: missing"
    elif change == "label":
        (photos / "dog").rename(photos / "wolf")
        expected = "removed: dog/0.jpg"
    elif change == "split":
        photos.rename(tmp_path / "test")
        photos.mkdir()
        (tmp_path / "test").rename(photos / "test")
        expected = "removed: cat/0.jpg"
    for _ in range(2):
        with pytest.raises((ValueError, tfpipe.DataError), match=re.escape(expected)):
            build(photos, tmp_path / "out", **options)


# G4


def test_g4_every_bad_input_is_named_and_nothing_written(photos, tmp_path):
    good = make_image(5)
    bad = {
        "cat/cut.jpg": (good[:-20], "truncated"),
        "cat/empty.jpg": (b"", "empty"),
        "dog/gif.jpg": (b"GIF89a" + bytes(20), "other_format"),
        "dog/notes.txt": (b"hello, world, this is text", "not_an_image"),
    }
    for name, (data, _) in bad.items():
        write(photos / name, data)
    with pytest.raises(tfpipe.DataError) as caught:
        build(photos, tmp_path / "out")
    for name, (_, reason) in bad.items():
        assert re.search(rf"{reason}: .*{re.escape(name)}: ", str(caught.value))
    assert "4 inputs" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_on_error_skip_lists_what_was_left_out(photos, tmp_path):
    write(photos / "cat/cut.jpg", make_image(5)[:-20])
    content = build(photos, tmp_path / "out", on_error="skip")
    assert content.rejected == {"truncated": 1}
    assert content.splits["train"].num_records == 25
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text("utf-8").splitlines()]
    assert [(line["key"], line["reason"]) for line in lines] == [("cat/cut.jpg", "truncated")]
    assert str(tmp_path) not in str(lines)  # the file is the same wherever the input lies


def test_images_above_the_pixel_limit_are_rejected(photos, tmp_path):
    with pytest.raises(tfpipe.DataError, match=r"too_many_pixels: .*dog/0\.jpg"):
        build(photos, tmp_path / "out", max_pixels=32 * 20 - 1)
    assert build(photos, tmp_path / "out", max_pixels=32 * 20).splits["train"].num_records == 25


def test_a_loop_of_links_does_not_fail_a_build_but_is_listed(photos, tmp_path):
    (photos / "cat/loop").symlink_to(photos)
    assert build(photos, tmp_path / "out").rejected == {"link_loop": 1}


def test_an_empty_folder_or_only_bad_images_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(tfpipe.DataError, match="there is no image to pack"):
        build(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "in/a/1.jpg", b"")
    with pytest.raises(tfpipe.DataError, match="there is no image to pack"):
        build(tmp_path / "in", tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out").exists()


# Splits, G9


def by_split(directory):
    return {
        split: Counter(row.class_name for row in catalog.read_catalog(directory, split=split))
        for split in manifest.load(directory).splits
    }


def test_fractions_cut_every_class(many, tmp_path):
    build(many, tmp_path / "out", splits={"train": 0.8, "val": 0.1, "test": 0.1})
    counts = by_split(tmp_path / "out")
    assert list(counts) == ["train", "val", "test"]
    for name in ("class 1", "class 2"):
        assert [counts[split][name] for split in counts] == [80, 10, 10]
    assert sum(counts[split]["class 0"] for split in counts) == 101
    assert all(abs(counts[split]["class 0"] - part) <= 2 for split, part in zip(counts, (80.8, 10.1, 10.1), strict=True))


def test_many_small_classes_give_every_split_its_share(tmp_path):
    for index in range(200):
        write(tmp_path / f"in/{index % 50:02d}/{index}.jpg", make_image(index, (8, 8), quality=30 + index % 60))
    build(tmp_path / "in", tmp_path / "out", splits={"train": 0.8, "val": 0.1, "test": 0.1})
    sizes = [sum(counts.values()) for counts in by_split(tmp_path / "out").values()]
    assert sum(sizes) == 200
    assert 10 <= sizes[1] <= 30
    assert 10 <= sizes[2] <= 30


def test_thirds_add_up(many, tmp_path):
    for index, third in enumerate((1 / 3, 0.333333)):
        build(many, tmp_path / str(index), splits={"train": third, "val": third, "test": third})
        assert [counts["class 1"] for counts in by_split(tmp_path / str(index)).values()] in [
            [33, 33, 34],
            [33, 34, 33],
            [34, 33, 33],
        ]


def cut_two(photos):
    for name in ("cat/3.jpg", "dog/5.jpg"):
        (photos / name).write_bytes(cut_in_scan((photos / name).read_bytes()))


def test_g4_decoded_images_that_are_cut_in_their_scan_are_named_all_at_once(photos, tmp_path):
    cut_two(photos)
    build(photos, tmp_path / "headers", splits=HALVES)  # headers and ends are in order
    expected = (
        r"2 inputs .*\n  damaged_scan: .*cat/3\.jpg: Corrupt JPEG data: premature end of .*\n  damaged_scan: .*dog/5\.jpg: "
    )
    with pytest.raises(tfpipe.DataError, match=expected):
        build(photos, tmp_path / "out", splits=HALVES, check="decode")
    assert not (tmp_path / "out").exists()
    content = build(photos, tmp_path / "out", splits=HALVES, check="decode", on_error="skip")
    assert content.rejected == {"damaged_scan": 2}
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [(row["key"], row["reason"]) for row in rejected] == [("cat/3.jpg", "damaged_scan"), ("dog/5.jpg", "damaged_scan")]
    assert all(row["message"].startswith("Corrupt JPEG data: premature end of data segment") for row in rejected)


@pytest.mark.parametrize("step", [None, "decide", "write", "finish"])
def test_g2_with_decoding_workers_and_kills_change_no_byte(photos, tmp_path, monkeypatch, step):
    cut_two(photos)
    options = {"splits": HALVES, "num_shards": 2, "check": "decode", "on_error": "skip"}
    build(photos, tmp_path / "one", **options)
    if step:
        stop_before(monkeypatch, step)
        with pytest.raises(KeyboardInterrupt):
            build(photos, tmp_path / "two", **options)
        monkeypatch.undo()
    build(photos, tmp_path / "two", workers=2, **options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    build(photos, tmp_path / "two", **options)  # complete: nothing to do


def test_decoding_changes_nothing_but_what_the_manifest_reports_of_it(photos, tmp_path):
    headers, decoded = (build(photos, tmp_path / check, splits=HALVES, check=check) for check in ("header", "decode"))
    assert decoded.options == {**headers.options, "check": "decode"}
    assert "check" not in headers.options  # data sets that were built before this option are as they would be now
    files = [files_of(tmp_path / check) for check in ("header", "decode")]
    assert {name for name in files[0] if files[0][name] != files[1].get(name)} == {"manifest.json"}


def test_a_data_set_is_not_decoded_afterwards_by_building_again(photos, tmp_path):
    build(photos, tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(ValueError, match=r"other options is here:\n  check was 'header' and is 'decode'"):
        build(photos, tmp_path / "out", check="decode")
    assert files_of(tmp_path / "out") == before
    with pytest.raises(ValueError, match="check must be one of header, decode"):
        build(photos, tmp_path / "out", check="pixels")


def test_g9_byte_identical_images_stay_in_one_split(tmp_path):
    for group in range(20):
        for copy in range(3):
            write(tmp_path / f"in/{group % 2}/{group}-{copy}.jpg", make_image(group))
    content = build(tmp_path / "in", tmp_path / "out", splits=HALVES)
    rows = list(catalog.read_catalog(tmp_path / "out"))
    splits_of = {row.sha256: {other.split for other in rows if other.sha256 == row.sha256} for row in rows}
    assert len(rows) == 60
    assert len(splits_of) == 20
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert content.properties["duplicates"] == 40


def test_g9_leaks_between_given_splits_are_listed_or_noted(tmp_path):
    write(tmp_path / "in/train/a/1.jpg", make_image(1))
    write(tmp_path / "in/test/a/2.jpg", make_image(1))
    write(tmp_path / "in/test/a/3.jpg", make_image(3))
    with pytest.raises(tfpipe.DataError, match=r"test/a/2\.jpg \(test, a\) = train/a/1\.jpg \(train, a\)"):
        build(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    content = build(tmp_path / "in", tmp_path / "out", allow_leaks=True)
    assert [list(group) for group in content.leaks] == [["test/a/2.jpg", "train/a/1.jpg"]]
    assert {split: part.num_records for split, part in content.splits.items()} == {"train": 1, "test": 2}


def test_g9_a_leak_into_an_unlabelled_split_is_one_too(photos, tmp_path):
    write(tmp_path / "bare/x.jpg", (photos / "cat/1.jpg").read_bytes())
    with pytest.raises(tfpipe.DataError, match="in more than one split"):
        build(photos, tmp_path / "out", splits=HALVES, unlabelled={"test1": tmp_path / "bare"})


def test_g9_conflicting_labels_are_listed_or_kept_together(photos, tmp_path):
    write(photos / "dog/same.jpg", (photos / "cat/1.jpg").read_bytes())
    with pytest.raises(tfpipe.DataError, match=r"cat/1\.jpg \(cat\) = dog/same\.jpg \(dog\)"):
        build(photos, tmp_path / "out", splits=HALVES)
    content = build(photos, tmp_path / "out", splits=HALVES, on_conflict="keep")
    assert [list(group) for group in content.conflicts] == [["cat/1.jpg", "dog/same.jpg"]]
    split_of = {row.key: row.split for row in catalog.read_catalog(tmp_path / "out")}
    assert split_of["cat/1.jpg"] == split_of["dog/same.jpg"]


def test_splits_are_drawn_anew_by_another_seed_and_keep_their_sizes(many, tmp_path):
    for seed in (0, 1):
        build(many, tmp_path / str(seed), splits=HALVES, seed=seed)
    splits = [{row.key: row.split for row in catalog.read_catalog(tmp_path / str(seed))} for seed in (0, 1)]
    assert splits[0] != splits[1]
    assert by_split(tmp_path / "0")["train"]["class 1"] == by_split(tmp_path / "1")["train"]["class 1"] == 50


def test_every_shard_is_a_sample_of_its_split(many, tmp_path):
    build(many, tmp_path / "out", num_shards=4)
    shards = Counter((row.shard, row.class_name) for row in catalog.read_catalog(tmp_path / "out"))
    assert len(shards) == 12
    assert min(shards.values()) >= 12  # 25 expected; in the order of names a shard would hold one or two classes


def test_unlabelled_images_have_label_minus_one(photos, tmp_path):
    write(tmp_path / "bare/7.jpg", make_image(777))
    content = build(photos, tmp_path / "out", unlabelled={"test1": tmp_path / "bare"})
    assert [(record.key, record.label, record.class_name) for record in records(tmp_path / "out", "test1")] == [
        ("test1/7.jpg", -1, "")
    ]
    assert (content.splits["test1"].labelled, content.splits["train"].labelled) == (False, True)


def test_classes_are_sorted_or_counted_or_as_given(tmp_path):
    for name in ("10", "9", "2"):
        write(tmp_path / f"in/{name}/1.jpg", make_image(int(name)))
    assert list(build(tmp_path / "in", tmp_path / "a").class_names) == ["2", "9", "10"]
    assert list(build(tmp_path / "in", tmp_path / "b", class_names=["9", "10", "2", "0"]).class_names) == ["9", "10", "2", "0"]
    assert {record.class_name: record.label for record in records(tmp_path / "b")} == {"9": 0, "10": 1, "2": 2}
    with pytest.raises(tfpipe.DataError, match=r"class_names does not list: 10, 9"):
        build(tmp_path / "in", tmp_path / "c", class_names=["2"])


def test_a_class_name_that_would_not_survive_is_named(tmp_path):
    write(tmp_path / "in/cat /1.jpg", make_image(1))
    with pytest.raises(tfpipe.DataError, match="begins or ends with a space: 'cat '"):
        build(tmp_path / "in", tmp_path / "out")


# Wrong use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"train": 0.8, "test": 0.1}}, "must add up to 1"),
        ({"splits": {"train": 1.2, "test": -0.2}}, "splits must be a number, more than 0 and at most 1"),
        ({"name": "my-pets"}, "name must be a letter"),
        ({"layout": "tree"}, "layout must be one of folders, filename"),
        ({"num_shards": 26}, "26 shards for the 25 records of split 'train'"),
        ({"num_shards": 0}, "num_shards must be an integer, 1 or more"),
        ({"workers": 0}, "workers must be an integer, 1 or more"),
        ({"on_error": "ignore"}, "on_error must be one of fail, skip"),
        ({"splits": {"train": 0.9999, "test": 0.0001}}, "split 'test' would get no image"),
        ({"class_names": ["a", "a"]}, "class_names must be different names"),
        ({"class_names": "ab"}, "class_names must be different names of classes"),
        ({"num_shards": {"tset": 3}}, "num_shards names the split 'tset'; there are train"),
        ({"num_shards": "4"}, "num_shards must be an integer"),
        ({"seed": "0"}, "seed must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"seed": -1}, "seed must be an integer, 0 or more"),
        ({"workers": "2"}, "workers must be an integer"),
        ({"unlabelled": "dir"}, "unlabelled must be a path by split name"),
        ({"splits": "train=0.8"}, "splits must be a number by split name"),
        ({"name": 5}, "name must be a letter"),
        ({"name": "a" * 240}, "name must be a letter"),
        ({"allow_leaks": "no"}, "allow_leaks must be True or False"),
    ],
)
def test_wrong_options_are_named_and_leave_nothing(photos, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_splits_of_inputs_that_have_splits_are_refused(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"in/{split}/a/1.jpg", make_image(len(split)))
    with pytest.raises(ValueError, match="already has splits"):
        build(tmp_path / "in", tmp_path / "out", splits=HALVES)
    with pytest.raises(ValueError, match="are not cut again"):
        build({"train": tmp_path / "in/train"}, tmp_path / "out", splits=HALVES)


def test_layout_filename_where_every_image_is_a_class_of_its_own(tmp_path):
    for index in range(12):
        write(tmp_path / f"in/{index}.jpg", make_image(index))
    with pytest.raises(ValueError, match="is this layout=flat"):
        build(tmp_path / "in", tmp_path / "out", layout="filename")


def test_an_output_that_holds_something_else_or_lies_in_the_input(photos, tmp_path):
    write(tmp_path / "full/notes.txt", b"mine")
    with pytest.raises(ValueError, match="is not empty"):
        build(photos, tmp_path / "full")
    assert files_of(tmp_path / "full") == {"notes.txt": b"mine"}
    with pytest.raises(ValueError, match="lies inside the input"):
        build(photos, photos / "shards")


@pytest.mark.parametrize("path", ["", None, 5])
def test_a_path_that_is_none(photos, tmp_path, path):
    with pytest.raises(ValueError, match=r"output must be a path|there is no input"):
        build(photos, path)
    with pytest.raises(ValueError, match=r"input must be a path|there is no input"):
        build(path, tmp_path / "out")
    with pytest.raises(ValueError, match="the output must be a folder"):
        build(photos, write(tmp_path / "file", b""))


def test_a_missing_input_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such input"):
        build(tmp_path / "nowhere", tmp_path / "x/y/z")
    assert not (tmp_path / "x").exists()


def test_numbers_of_numpy_are_numbers(photos, tmp_path):
    import numpy as np

    build(
        photos,
        tmp_path / "a",
        seed=np.int64(3),
        splits={"train": np.float64(0.5), "test": 0.5},
        num_shards={"train": np.int64(2)},
    )
    build(photos, tmp_path / "b", seed=3, splits=HALVES, num_shards={"train": 2})
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_class_called_train_among_others(photos, tmp_path):
    (photos / "dog").rename(photos / "train")
    with pytest.raises(ValueError, match="if they are classes, cut them with --splits"):
        build(photos, tmp_path / "out")
    assert list(build(photos, tmp_path / "out", splits=HALVES).class_names) == ["cat", "train", "小 猫"]


def test_a_split_of_a_table_that_cannot_stand_in_a_file_name(tmp_path):
    write(tmp_path / "1.jpg", make_image(1))
    for split in ("../../evil", "训练", "a-b"):
        table = write(tmp_path / "t.csv", f"path,label,split\n1.jpg,a,{split}\n".encode())
        with pytest.raises(tfpipe.DataError, match=r"1\.jpg: a split's name must be a letter"):
            build(table, tmp_path / "out", layout="csv")
        assert not (tmp_path / "out").exists()


def test_a_split_partly_labelled_or_partly_given(tmp_path):
    for index in (1, 2):
        write(tmp_path / f"{index}.jpg", make_image(index))
    table = write(tmp_path / "t.csv", b"path,label\n1.jpg,a\n2.jpg,\n")
    with pytest.raises(tfpipe.DataError, match=r"line 3: 2\.jpg: others of the table have a label, this one has none"):
        build(table, tmp_path / "out", layout="csv")
    for rows in (b"1.jpg,,train\n2.jpg,,\n", b"1.jpg,a,train\n2.jpg,a,\n"):
        write(table, b"path,label,split\n" + rows)
        with pytest.raises(tfpipe.DataError, match=r"line 3: 2\.jpg: the row names no split, and other rows do"):
            build(table, tmp_path / "out", layout="csv")
    write(table, b"path,label,split\n1.jpg,a,train\n2.jpg,a,\n")
    with pytest.raises(tfpipe.DataError, match=r"line 3: 2\.jpg: the row names no split, and other rows do"):
        build(table, tmp_path / "out", layout="csv")


def test_a_film_among_the_images_is_not_read(photos, tmp_path):
    with open(photos / "cat/film.mp4", "wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(60 << 30)  # sparse
    with pytest.raises(tfpipe.DataError, match=r"(other_format|not_an_image|too_large): .*film\.mp4"):
        build(photos, tmp_path / "out")
    os.truncate(photos / "cat/film.mp4", 0)
    with open(photos / "cat/film.mp4", "wb") as file:
        file.write(make_image(1)[:100])
        file.truncate(3 << 30)
    with pytest.raises(tfpipe.DataError, match=r"too_large: .*film\.mp4: 3221225472 bytes"):
        build(photos, tmp_path / "out")


def test_what_is_warned_of(tmp_path, caplog):
    write(tmp_path / "in/cafe\u0301/1.jpg", make_image(1))
    write(tmp_path / "in/caf\u00e9/2.jpg", make_image(2))
    write(tmp_path / "in/png/3.jpg", make_image(3, format="PNG"))
    write(tmp_path / "in/lost/4.jpg", b"")
    classes = ["caf\u00e9", "cafe\u0301", "png"]
    content = build(tmp_path / "in", tmp_path / "out", on_error="skip", class_names=classes)
    assert "look the same" in caplog.text
    assert "1 file named .jpg is a PNG file and packed as such: " in caplog.text
    assert "class 'lost' has no image left" in caplog.text
    assert (content.properties["png"], content.properties["png_named_jpeg"]) == (1, 1)


def test_grey_and_cmyk_images_are_counted(tmp_path):
    for mode in ("L", "CMYK"):
        path = tmp_path / f"in/a/{mode}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (8, 8)).save(path)
    content = build(tmp_path / "in", tmp_path / "out")
    assert (content.properties["grey"], content.properties["cmyk"]) == (1, 1)


def test_the_default_split_is_train_or_for_unlabelled_images_test(photos, tmp_path):
    assert list(build(photos, tmp_path / "a").splits) == ["train"]
    assert list(build(photos, tmp_path / "b", layout="flat").splits) == ["test"]


def test_three_builds_at_once_end_with_one_data_set_or_an_error_each(photos, tmp_path):
    write(photos / "cat/bad.jpg", b"")
    command = [sys.executable, CHECKOUT / "tools/build_tfrecords.py", f"--input={photos}", f"--output={tmp_path}/out"]
    command.append("--workers=1")  # each waits three seconds at most for the others
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:  # the first removes the folder that the others wait for
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "empty: " in said
        assert "bad.jpg" in said
    assert not (tmp_path / "out").exists()


def test_from_another_current_folder_than_tfpipe_was_imported_from(photos, tmp_path):
    code = (
        f"import tfpipe, os; os.chdir({str(tmp_path)!r});"
        "tfpipe.build_tfrecords('photos', 'out', layout='folders', workers=2, progress=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert manifest.load(tmp_path / "out").splits["train"].num_records == 25


def test_without_a_stderr(photos, tmp_path):
    command = f"{sys.executable} {CHECKOUT}/tools/build_tfrecords.py --input={photos} --output={tmp_path}/out 2>&-"
    assert subprocess.run(["sh", "-c", command], stdout=subprocess.DEVNULL).returncode == 0
    assert manifest.load(tmp_path / "out")


def test_two_builds_into_one_folder_the_second_refuses(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tfpipe.common.locking._PATIENCE_SECONDS", 0.1)
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match="another build is writing here"):
        build(photos, tmp_path / "out")
    os.close(descriptor)
    assert build(photos, tmp_path / "out").splits["train"].num_records == 25


def test_a_double_key_is_an_error(tmp_path):
    write(tmp_path / "1.jpg", make_image(1))
    table = write(tmp_path / "t.csv", b"path,label,id\n1.jpg,a,x\n1.jpg,a,x\n")
    with pytest.raises(tfpipe.DataError, match=r"line 3: x: given more than once, rows that are equal: .* line 2 of "):
        build(table, tmp_path / "out", layout="csv")


# When the machine gives out


def limited_build(photos, output, limit):
    """Builds in a process whose files may not grow beyond a limit; returns it ended."""
    code = (
        "import tfpipe, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        f"tfpipe.build_tfrecords({str(photos)!r}, {str(output)!r}, layout='folders', workers=1, progress=False)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)


def test_where_no_more_can_be_written_the_error_reports_it_and_the_build_resumes(tmp_path):
    for index in range(60):
        write(tmp_path / f"in/a/{index}.jpg", make_image(index, (200, 200), quality=95))
    limit = 200_000
    assert limit < sum(map(len, files_of(tmp_path / "in").values()))
    done = limited_build(tmp_path / "in", tmp_path / "out", limit)
    assert done.returncode == 1
    assert os.strerror(errno.EFBIG) in done.stderr
    left = files_of(tmp_path / "out")
    assert left, "the state is kept"
    assert all(name.startswith((".build", "index")) for name in left), left.keys()
    build(tmp_path / "in", tmp_path / "out")
    build(tmp_path / "in", tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_full_disk_ends_with_an_error_and_resumes(tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        for index in range(60):
            write(tmp_path / f"in/a/{index}.jpg", make_image(index, (200, 200), quality=95))
        with pytest.raises(OSError, match=r"No space left|disk is full"):
            build(tmp_path / "in", mounted / "out")
        assert not list(mounted.glob("out/images-*"))
        assert not (mounted / "out/manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", mounted], check=True)
        build(tmp_path / "in", mounted / "out")
        build(tmp_path / "in", tmp_path / "whole")
        assert files_of(mounted / "out") == files_of(tmp_path / "whole")
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_an_unreadable_image_is_named(photos, tmp_path):
    target = photos / "cat/3.jpg"
    target.unlink()
    target.symlink_to("/proc/self/mem")  # a regular file that nobody can read, root or not
    with pytest.raises(tfpipe.DataError, match=r"unreadable: .*cat/3\.jpg"):
        build(photos, tmp_path / "out")


def test_what_the_kernel_makes_up_is_not_an_image_and_is_not_waited_for(photos, tmp_path):
    """/proc/kmsg says that it is a regular file of no bytes, and reading it waits for the kernel's next message."""
    for name, target in (("1.jpg", "/proc/kmsg"), ("2.jpg", "/proc/self/mem"), ("3.jpg", "/dev/zero")):
        (photos / "dog" / f"link {name}").symlink_to(target)
    code = f"import tfpipe; tfpipe.build_tfrecords({str(photos)!r}, 'out', layout='folders', workers=1, progress=False)"
    command, options = [sys.executable, "-c", code], {"capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, **options)
    assert done.returncode == 1
    found = re.findall(r"unreadable: .*/dog/link (\d)\.jpg: not a regular file", done.stderr)
    assert found == ["1", "2", "3"]


def test_what_becomes_a_pipe_after_it_was_listed_is_not_waited_for(photos, tmp_path, monkeypatch):
    real, target = Build.audit, photos / "cat/3.jpg"

    def replaced(self, state, workers):
        target.unlink()
        os.mkfifo(target)
        real(self, state, workers)

    monkeypatch.setattr(Build, "audit", replaced)
    with pytest.raises(tfpipe.DataError, match=r"unreadable: .*cat/3\.jpg: not a regular file"):
        build(photos, tmp_path / "out")


@pytest.mark.parametrize("name", ["dev", "Valid"])
def test_splits_have_one_name_at_every_entrance(photos, tmp_path, caplog, name):
    caplog.set_level("INFO", "tfpipe")
    inputs = {"train": photos / "cat", name: photos / "dog"}
    assert list(build(inputs, tmp_path / "a", layout="flat").splits) == ["train", "val"]
    assert f"input: split {name!r} is taken as 'val'" in caplog.text
    content = build(photos, tmp_path / "b", splits={"train": 0.5, name: 0.5}, num_shards={name: 2})
    assert [(split, len(part.shards)) for split, part in content.splits.items()] == [("train", 1), ("val", 2)]
    write(tmp_path / "bare/x.jpg", make_image(5000))
    assert list(build(photos, tmp_path / "c", unlabelled={name: tmp_path / "bare"}).splits) == ["train", "val"]
    for split, animal in inputs.items():
        (tmp_path / "in" / split).mkdir(parents=True)
        animal.rename(tmp_path / "in" / split / animal.name)
    assert list(build(tmp_path / "in", tmp_path / "d").splits) == ["train", "val"]
    assert f"split {name!r} is taken as 'val'" in caplog.text.split("input: ")[-1]
    with pytest.raises(ValueError, match=f"input: val and {name} would be one split"):
        build({"val": photos, name: photos}, tmp_path / "e")


def test_a_data_set_that_was_built_with_other_names_of_splits_is_complete_as_it_is(photos, tmp_path, monkeypatch):
    inputs = {"train": photos / "cat", "valid": photos / "dog"}
    monkeypatch.setattr("tfpipe.building.build._split_names", lambda directory: {"validation": "val"})
    assert list(build(inputs, tmp_path / "out", layout="flat").splits) == ["train", "valid"]
    monkeypatch.undo()
    assert list(build(inputs, tmp_path / "out", layout="flat").splits) == ["train", "valid"]


def test_an_unfinished_build_of_an_earlier_version_goes_on(photos, tmp_path, monkeypatch):
    stop_before(monkeypatch, "write")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "out")
    monkeypatch.undo()
    with contextlib.closing(sqlite3.connect(tmp_path / "out/.build/state.sqlite")) as state:
        state.execute("ALTER TABLE inputs DROP COLUMN row")
        state.execute("DELETE FROM facts WHERE name IN ('hidden', 'empty_folders')")
        state.commit()
    assert build(photos, tmp_path / "out").splits["train"].num_records == 25


def test_what_is_passed_over_is_counted_by_its_kind(photos, tmp_path):
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/._1.jpg", ".git/x.jpg", "__MACOSX/cat/1.jpg"):
        write(photos / name, b"x")
    content = build(photos, tmp_path / "out")
    assert {name: count for name, count in content.properties.items() if name.startswith("passed over")} == {
        "passed over: .DS_Store": 2,
        "passed over: ._*": 1,
        "passed over: Thumbs.db": 1,
        "passed over: __MACOSX": 1,
        "passed over: other hidden names": 1,
    }
    assert re.search(r"\npassed over: \.DS_Store +2\n", describe_manifest(content))


def test_workers_never_import_tensorflow_or_numpy():
    code = (
        "import sys; from tfpipe.building import tasks;"
        "bad = {'tensorflow', 'numpy', 'PIL', 'h5py', 'absl'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dead_worker_is_an_error_and_not_a_hang(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tfpipe.common.workers._BOOTSTRAP", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)  # {path} {descriptor}"
    )
    with pytest.raises(RuntimeError, match="a worker process was killed by signal 9"):
        build(photos, tmp_path / "out")


def test_signs_and_large_images(test_data, tmp_path):
    signs = {split: test_data / f"signs/{split}_signs" for split in ("train", "val", "test")}
    with pytest.raises(tfpipe.DataError, match="27 groups of byte-identical images in more than one split"):
        build(signs, tmp_path / "out", layout="filename")
    content = build(signs, tmp_path / "out", layout="filename", allow_leaks=True, workers=2)
    assert len(content.leaks) == 27
    assert {split: part.num_records for split, part in content.splits.items()} == {"train": 864, "val": 216, "test": 120}
    stored = {record.filename: record.encoded for record in records(tmp_path / "out")}
    assert stored == {f"{split}/{name}": data for split, path in signs.items() for name, data in files_of(path).items()}
    large = build(test_data / "large", tmp_path / "large", layout="flat")
    assert large.splits["test"].num_records == 14
    assert {record.filename: record.encoded for record in records(tmp_path / "large")} == files_of(test_data / "large")


def test_shards_are_hardly_larger_than_the_images(test_data, tmp_path):
    content = build(test_data / "cats_dogs/train", tmp_path / "out", layout="filename", splits=HALVES, workers=2)
    for part in content.splits.values():
        assert 1 < part.num_bytes / part.image_bytes < 1.02
