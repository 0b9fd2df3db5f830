import dataclasses
import json
import os
import re

import pytest
from conftest import write

from tfpipe.common.errors import DataError
from tfpipe.common.files import sha256_of
from tfpipe.records import manifest
from tfpipe.records.manifest import Manifest, Shard, Split


@pytest.fixture
def saved(tmp_path):
    """A folder with a manifest of two splits, and the files that it lists."""
    splits = {}
    for name, sizes in (("train", [3, 2]), ("test", [1])):
        shards = []
        for index, size in enumerate(sizes):
            file = manifest.shard_file("pets", name, index, len(sizes))
            path = write(tmp_path / file, b"x" * size)
            listing = write(tmp_path / manifest.index_file(file), f"0 {size}\n".encode())
            shards.append(Shard(file, 1, size, sha256_of(path), sha256_of(listing)))
        splits[name] = Split(True, 5, {"a": len(sizes)}, tuple(shards))
    companions = {name: sha256_of(write(tmp_path / name, b"key\n")) for name in manifest.COMPANION_NAMES}
    content = Manifest("pets", 0, ["a"], splits, {"seed": 0}, companions, "0" * 64, {}, {}, [], [], "1")
    manifest.save(content, tmp_path)
    return tmp_path, content


def test_load_gives_back_what_save_wrote(saved):
    directory, content = saved
    assert manifest.load(directory) == content
    assert manifest.load(str(directory)).root_hash == content.root_hash


def test_golden_names():
    assert manifest.shard_file("pets", "train", 3, 16) == "pets-train.tfrecord-00003-of-00016"
    assert manifest.index_file("pets-train.tfrecord-00003-of-00016") == "index/pets-train-00003-of-00016.idx"


def test_the_root_hash_tells_every_field_of_a_shard(saved):
    _, content = saved
    for field, value in [("file", "other"), ("num_records", 9), ("num_bytes", 9), ("sha256", "1" * 64)]:
        shard = dataclasses.replace(content.splits["test"].shards[0], **{field: value})
        changed = {**content.splits, "test": dataclasses.replace(content.splits["test"], shards=(shard,))}
        assert dataclasses.replace(content, splits=changed).root_hash != content.root_hash


@pytest.mark.exhaustive
def test_every_flipped_byte_of_a_manifest_is_noticed(saved, thinned):
    directory, _ = saved
    path = directory / manifest.FILE_NAME
    original = path.read_bytes()
    assert len(original) > 500
    for place in thinned(range(len(original)), 200):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        with pytest.raises(DataError, match=re.escape(str(path))):
            manifest.load(directory)


def test_a_changed_number_is_noticed_though_the_file_is_sound(saved):
    directory, _ = saved
    path = directory / manifest.FILE_NAME
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "seed": 7}))
    with pytest.raises(DataError, match="its hash does not match its content"):
        manifest.load(directory)
    path.write_text(json.dumps({**text, "format_version": 4}))
    with pytest.raises(DataError, match="format version 4, this tfpipe reads versions 1 to 3"):
        manifest.load(directory)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_field_of_another_type_is_named_with_its_split(saved, name):
    directory, _ = saved
    path = directory / manifest.FILE_NAME
    content = json.loads(path.read_text())
    content["splits"][name]["shards"][0]["num_records"] = "1"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"Expected int, got str - at splits\.{name}\.shards\[0\]\.num_records$"):
        manifest.load(directory)
    content["splits"][name]["shards"][0]["num_records"] = 1
    content["splits"][name]["class_counts"] |= {"b": 2, "c": None, "d": None, "e": 3}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"at splits\.{name}\.class_counts\.c$"):
        manifest.load(directory)


def test_a_missing_manifest_is_distinguished_from_an_unfinished_build(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a tfpipe data set"):
        manifest.load(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(FileNotFoundError, match="run the same build again"):
        manifest.load(tmp_path)


def test_what_a_look_at_the_folder_shows(saved):
    directory, content = saved
    manifest.check_files(directory, content)
    (directory / "pets-train.tfrecord-00000-of-00002").write_bytes(b"xx")
    (directory / "pets-train.tfrecord-00001-of-00002").unlink()
    (directory / "pets-test.tfrecord-00000-of-00001").write_bytes(b"xx")
    (directory / "pets-test.tfrecord-00001-of-00002").write_bytes(b"")
    problems = [str(problem) for problem in manifest.file_problems(directory, content)]
    assert [text.split("tfrecord-")[1] for text in problems] == [
        "00000-of-00002: truncated: 2 bytes, the manifest lists 3 (1 record)",
        "00001-of-00002: missing: a shard of 1 record",
        "00000-of-00001: longer than written: 2 bytes, the manifest lists 1 (1 record)",
        "00001-of-00002: a shard that the manifest does not list: move it away",
    ]
    assert len(manifest.file_problems(directory, content, ["test"])) == 2
    with pytest.raises(DataError, match="4 shards are not as listed in the manifest"):
        manifest.check_files(directory, content)


@pytest.mark.parametrize("name", ["catalog.csv", "index/pets-train-00001-of-00002.idx"])
def test_hashes_of_catalog_and_indexes(saved, name):
    directory, content = saved
    manifest.check_hashes(directory, content)
    (directory / name).write_bytes(b"other")
    with pytest.raises(DataError, match=rf"{name}: not as listed in the manifest"):
        manifest.check_hashes(directory, content)
    (directory / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing"):
        manifest.check_hashes(directory, content)
    os.mkfifo(directory / name)
    with pytest.raises(DataError, match=rf"{name}: cannot be read: not a regular file"):
        manifest.check_hashes(directory, content)


def test_splits_have_one_order():
    names = ["b", "test", "a", "val", "train"]
    assert sorted(names, key=manifest.split_order) == ["train", "val", "test", "a", "b"]


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä", "../x", "a" * 65, None, 5])
def test_names_that_cannot_stand_in_a_file_name(name):
    with pytest.raises(ValueError, match="a split's name must be a letter"):
        manifest.check_name("a split's name", name)
