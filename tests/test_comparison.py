import os
import shutil

import h5py
import numpy as np
import pytest
from conftest import make_image, write
from inspection_fixtures import build_tiny, forge, records_of, replaced

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.verification.comparison import diff, is_data_set
from tfpipe.verification.extraction import extract


def build(source, out, **options):
    tfpipe.build_tfrecords(source, out, progress=False, **{"layout": "folders", **options})
    return out


def kinds(a, b):
    return sorted((difference.kind, difference.key) for difference in diff(a, b))


def test_equal_data_sets_differ_in_nothing_however_they_are_sharded(photos, tmp_path):
    a = build(photos, tmp_path / "a", num_shards=1)
    b = build(photos, tmp_path / "b", num_shards=4)
    assert list(diff(a, b)) == []


def test_every_kind(photos, tmp_path):
    a = build({"train": photos}, tmp_path / "a")
    (photos / "cat" / "0.jpg").unlink()
    write(photos / "cat" / "new.jpg", make_image(77))
    write(photos / "dog" / "3.jpg", make_image(78))
    b = build({"train": photos}, tmp_path / "b")
    assert kinds(a, b) == [("added", "train/cat/new.jpg"), ("changed", "train/dog/3.jpg"), ("removed", "train/cat/0.jpg")]
    assert [kind for kind, _ in kinds(b, a)] == ["added", "changed", "removed"]


def test_relabelled_and_moved(tmp_path):
    for index in range(4):
        write(tmp_path / f"{index}.jpg", make_image(index))
    table = tmp_path / "t.csv"
    table.write_text("path,label,split\n0.jpg,x,train\n1.jpg,y,train\n2.jpg,x,test\n3.jpg,x,test\n", "utf-8")
    a = build(table, tmp_path / "a", layout="csv")
    table.write_text("path,label,split\n0.jpg,y,train\n1.jpg,y,test\n2.jpg,x,test\n3.jpg,x,test\n", "utf-8")
    b = build(table, tmp_path / "b", layout="csv")
    assert list(diff(a, b)) == [("relabelled", "0.jpg", "x", "y"), ("moved", "1.jpg", "train", "test")]


def test_a_data_set_against_its_folder(photos, tmp_path):
    out = build(photos, tmp_path / "out")
    write(photos / ".DS_Store", b"x")
    write(photos / "cat" / "Thumbs.db", b"x")
    (photos / "cat" / "loop").symlink_to(photos)
    assert list(diff(out, photos)) == []
    write(photos / "cat" / "1.jpg", b"other")
    write(photos / "note.txt", b"other")
    assert kinds(out, photos) == [("added", "note.txt"), ("changed", "cat/1.jpg")]
    assert is_data_set(out)
    assert not is_data_set(photos)


def test_a_linked_folder_counts_once_by_its_real_path(photos, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(photos / "dog", elsewhere)
    (photos / "dog").symlink_to(elsewhere)
    (photos / "again").symlink_to(photos / "cat")
    out = build(photos, tmp_path / "out")
    assert list(diff(out, photos)) == []


def test_folders_by_split(photos, tmp_path):
    parts = {"train": photos / "cat", "test": photos / "dog"}
    out = build(parts, tmp_path / "out", layout="flat")
    assert list(diff(out, parts)) == []
    assert {kind for kind, _ in kinds(out, photos)} == {"added", "removed"}
    tfpipe.build_tfrecords(photos / "cat", tmp_path / "two", layout="flat", unlabelled={"bare": photos / "dog"}, progress=False)
    assert list(diff(tmp_path / "two", {"": photos / "cat", "bare": photos / "dog"})) == []


def test_a_table_with_ids_against_what_was_extracted(tmp_path):
    for index in range(3):
        write(tmp_path / "in" / f"{index}.jpg", make_image(index))
    (tmp_path / "in" / "t.csv").write_text("path,label,id\n0.jpg,x,one\n1.jpg,y,two\n2.jpg,y,\n", "utf-8")
    out = build(tmp_path / "in" / "t.csv", tmp_path / "out", layout="csv")
    extract(out, tmp_path / "back", progress=False)
    assert kinds(out, tmp_path / "back") == kinds(tmp_path / "back", out) == []
    (tmp_path / "in" / "t.csv").write_text("path,label,id\n0.jpg,x,one\n1.jpg,y,other\n2.jpg,y,\n", "utf-8")
    other = build(tmp_path / "in" / "t.csv", tmp_path / "other", layout="csv")
    assert kinds(out, other) == [("added", "other"), ("removed", "two")]  # two data sets by key


def test_hdf5_against_what_was_extracted(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
        file["y"] = np.arange(4) % 2
    out = build(tmp_path / "x.h5", tmp_path / "out", layout="hdf5")
    extract(out, tmp_path / "back", progress=False)
    assert kinds(out, tmp_path / "back") == kinds({"": tmp_path / "back"}, out) == []
    assert kinds(out, out) == []


def test_two_records_of_one_file_name(tmp_path):
    out = build_tiny(tmp_path)
    first, *_ = records_of(out, manifests.load(out).splits["train"].shards[0])
    forge(out, replaced(1, filename=first.filename, encoded=first.encoded, sha256=first.sha256))
    extract(out, tmp_path / "back", progress=False)
    assert kinds(out, tmp_path / "back") == []
    forge(out, replaced(1, sha256="0" * 64))
    with pytest.raises(DataError, match=f"have the same file name, {first.filename!r}"):
        list(diff(out, tmp_path / "back"))
    assert kinds(out, out) == []


def test_what_cannot_be_compared(photos, tmp_path):
    out = build(photos, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="neither a data set nor a folder"):
        list(diff(out, tmp_path / "nix"))
    with pytest.raises(DataError, match=r"have the same key, 'cat/0\.jpg'"):
        list(diff(out, {"": photos, "cat": photos / "cat"}))
    (out / ".build").mkdir()
    (out / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="its build did not finish"):
        list(diff(out, photos))


def test_a_changed_catalog_is_not_believed(photos, tmp_path):
    out = build(photos, tmp_path / "out")
    path = out / "catalog.csv"
    path.write_text(path.read_text("utf-8").replace("cat/1.jpg", "cat/9.jpg"), "utf-8")
    with pytest.raises(DataError, match="not as listed in the manifest"):
        list(diff(out, photos))


def test_more_files_than_one_batch(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("tfpipe.verification.comparison._BATCH_FILES", 4)
    out = build(photos, tmp_path / "out")
    assert list(diff(out, photos)) == []


def test_real_images(test_data, tmp_path):
    parts = {name: test_data / "signs" / f"{name}_signs" for name in ("train", "val", "test")}
    out = build(parts, tmp_path / "out", layout="filename", allow_leaks=True)
    assert list(diff(out, parts)) == []


def test_what_cannot_be_read_in_a_folder_is_an_error_with_its_path(photos, tmp_path):
    build(photos, tmp_path / "out")
    os.symlink("nowhere", photos / "cat" / "broken.jpg")
    with pytest.raises(DataError, match=r"cat/broken\.jpg: the link leads nowhere: No such file"):
        list(diff(tmp_path / "out", photos))
    (photos / "cat" / "broken.jpg").unlink()
    os.symlink("/proc/kmsg", photos / "cat" / "kernel.jpg")  # a file that waits for more
    with pytest.raises(DataError, match=r"cat/kernel\.jpg: not a regular file"):
        list(diff(tmp_path / "out", photos))
