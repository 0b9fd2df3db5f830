import errno
import filecmp
import os
import resource
import signal

import pytest
from conftest import make_image, write
from inspection_fixtures import build_tiny, forge, records_of, replaced

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_split
from tfpipe.verification.extraction import extract


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_g1_bit_for_bit(photos, tmp_path):
    write(photos / "dog" / "a.png", make_image(1, format="PNG"))
    tfpipe.build_tfrecords(photos, tmp_path / "out", layout="folders", num_shards=3, progress=False)
    assert extract(tmp_path / "out", tmp_path / "back", progress=False) == 26
    assert tree(tmp_path / "back") == tree(photos)
    assert "小 猫/深/猫 0.jpg" in tree(tmp_path / "back")


def test_again_changes_nothing(photos, tmp_path):
    tfpipe.build_tfrecords(photos, tmp_path / "out", layout="folders", progress=False)
    extract(tmp_path / "out", tmp_path / "back", progress=False)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "back").rglob("*.jpg")}
    (tmp_path / "back" / "cat" / "3.jpg").unlink()
    extract(tmp_path / "out", tmp_path / "back", progress=False)
    assert tree(tmp_path / "back") == tree(photos)
    assert sum(path.stat().st_mtime_ns == time for path, time in times.items()) == len(times) - 1


def test_one_split(photos, tmp_path):
    parts = {"train": photos / "cat", "test": photos / "dog"}
    tfpipe.build_tfrecords(parts, tmp_path / "out", layout="flat", progress=False)
    assert extract(tmp_path / "out", tmp_path / "back", split="test", progress=False) == 8
    assert set(tree(tmp_path / "back")) == {f"test/{index}.jpg" for index in range(8)}
    with pytest.raises(ValueError, match="split must be one of train, test"):
        extract(tmp_path / "out", tmp_path / "back", split="nix", progress=False)


def test_a_table_with_ids_and_an_image_outside_its_folder(tmp_path):
    near = write(tmp_path / "in" / "sub" / "a.jpg", make_image(1))
    far = write(tmp_path / "far" / "b.JPG", make_image(2))
    (tmp_path / "in" / "t.csv").write_text("path,label,id\nsub/a.jpg,x,\n../far/b.JPG,y,the b\n", "utf-8")
    tfpipe.build_tfrecords(tmp_path / "in" / "t.csv", tmp_path / "out", progress=False)
    extract(tmp_path / "out", tmp_path / "back", progress=False)
    assert tree(tmp_path / "back") == {"sub/a.jpg": near.read_bytes(), "the b.JPG": far.read_bytes()}


def test_another_file_is_never_overwritten(tmp_path):
    out = build_tiny(tmp_path)
    other = write(tmp_path / "back" / "小 猫" / "猫 1.jpg", b"mine")
    with pytest.raises(FileExistsError, match=r"猫 1\.jpg: there is another file of this name"):
        extract(out, tmp_path / "back", progress=False)
    assert other.read_bytes() == b"mine"
    assert not list((tmp_path / "back").rglob(".*"))


HOSTILE = ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..", "", ".", "a/..", "a\0b.jpg"]


@pytest.mark.parametrize("filename", HOSTILE)
def test_a_hostile_name_is_refused(tmp_path, filename):
    out = build_tiny(tmp_path)
    forge(out, replaced(0, filename=filename))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="would lead out of the output folder") as caught:
        extract(out, tmp_path / "back" / "deep", progress=False)
    assert caught.value.offset == 0
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "back", tmp_path / "back" / "deep"]


def test_a_link_in_the_output_that_leads_out_is_refused(tmp_path):
    out = build_tiny(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "小 猫").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="a link that leads out"):
        extract(out, tmp_path / "back", progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_output_itself_may_be_a_link(tmp_path):
    out = build_tiny(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "back").symlink_to(tmp_path / "real")
    extract(out, tmp_path / "back", progress=False)
    assert len(tree(tmp_path / "real")) == 3


def test_a_file_in_the_way_of_a_folder(tmp_path):
    out = build_tiny(tmp_path)
    write(tmp_path / "back" / "小 猫", b"")
    with pytest.raises(FileExistsError, match="a file is in the way of the folder of '小 猫/猫"):
        extract(out, tmp_path / "back", progress=False)


def test_the_same_name_twice(tmp_path):
    out = build_tiny(tmp_path)
    first, second, _ = records_of(out, manifests.load(out).splits["train"].shards[0])
    forge(out, replaced(1, filename=first.filename))
    with pytest.raises(FileExistsError, match=f"two records with different bytes.*{second.key}.*{first.key}.*--split"):
        extract(out, tmp_path / "back", progress=False)
    forge(out, replaced(1, encoded=first.encoded, sha256=first.sha256))
    assert extract(out, tmp_path / "again", progress=False) == 3
    assert len(tree(tmp_path / "again")) == 2


def test_damage_is_never_extracted(tmp_path):
    out = build_tiny(tmp_path)
    forge(out, replaced(0, encoded=b"another"))
    with pytest.raises(DataError, match="has SHA-256"):
        extract(out, tmp_path / "back", progress=False)
    assert tree(tmp_path / "back") == {}


def test_a_shard_of_another_data_set_is_noticed(tmp_path):
    one, other = build_tiny(tmp_path / "a"), build_tiny(tmp_path / "b", seed=1)
    shard = manifests.load(one).splits["train"].shards[0].file
    (one / shard).write_bytes((other / shard).read_bytes())
    with pytest.raises(DataError, match="the shard's SHA-256"):
        extract(one, tmp_path / "back", progress=False)
    os.truncate(one / shard, 100)
    with pytest.raises(DataError, match="truncated: 100 bytes"):
        extract(one, tmp_path / "back", progress=False)


def test_damage_names_the_place_and_the_source_file_and_what_to_do(tmp_path):
    out = build_tiny(tmp_path)
    manifest = manifests.load(out)
    shard = out / manifest.splits["train"].shards[0].file
    row, offset, _ = list(read_split(out, manifest, "train"))[1]
    content = bytearray(shard.read_bytes())
    content[offset + 40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="`tfpipe verify` lists all damage, `tfpipe salvage` rescues") as caught:
        extract(out, tmp_path / "back", progress=False)
    assert (caught.value.path, caught.value.offset) == (str(shard), offset)
    assert str(caught.value).startswith(f"{shard}: at byte {offset}: the record's data does not match its CRC")
    assert f"[source file {row.filename!r}]" in str(caught.value)
    (out / "catalog.csv").unlink()
    with pytest.raises(DataError, match="does not match its CRC") as caught:
        extract(out, tmp_path / "back", progress=False)
    assert "source file" not in str(caught.value)


def test_a_full_disk_is_reported_with_the_file(tmp_path):
    out = build_tiny(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match=r"what was extracted is kept.*the same command continues") as caught:
            extract(out, tmp_path / "back", progress=False)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename.startswith(str(tmp_path / "back" / "小 猫" / "猫 "))
    assert tree(tmp_path / "back") == {}
    assert extract(out, tmp_path / "back", progress=False) == 3


def test_what_a_killed_process_left_is_removed(tmp_path):
    out = build_tiny(tmp_path)
    write(tmp_path / "back" / "小 猫" / ".tfpipe.4711.tmp", b"half")
    assert extract(out, tmp_path / "back", progress=False) == 3
    assert tree(tmp_path / "back") == tree(tmp_path / "in")


def test_a_folder_that_cannot_be_made_is_reported_with_the_file(tmp_path, monkeypatch):
    out = build_tiny(tmp_path)
    (tmp_path / "back").mkdir()

    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", lambda path, *rest: None if str(path) == str(tmp_path / "back") else refuse(path))
        with pytest.raises(PermissionError, match=r"Permission denied .*the same command continues") as caught:
            extract(out, tmp_path / "back", progress=False)
    assert caught.value.filename.startswith(str(tmp_path / "back" / "小 猫" / "猫 "))


@pytest.mark.parametrize("inside", ["", "back", "link"])
def test_the_data_set_itself_is_not_an_output(tmp_path, inside):
    out = build_tiny(tmp_path)
    (tmp_path / "link").symlink_to(out)
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="the output must be outside the data set's folder"):
        extract(out, tmp_path / "link" / "x" if inside == "link" else out / inside, progress=False)
    assert sorted(out.rglob("*")) == before


def test_neither_index_nor_catalog_is_needed(tmp_path):
    out = build_tiny(tmp_path)
    (out / "catalog.csv").unlink()
    for path in (out / "index").iterdir():
        path.unlink()
    assert extract(out, tmp_path / "back", progress=False) == 3


def test_g1_cats_and_dogs(test_data, tmp_path):
    source = test_data / "cats_dogs" / "test1"
    tfpipe.build_tfrecords(None, tmp_path / "out", unlabelled={"test1": source}, progress=False)
    extract(tmp_path / "out", tmp_path / "back", progress=False)
    names = os.listdir(source)
    same, different, errors = filecmp.cmpfiles(source, tmp_path / "back" / "test1", names, shallow=False)
    assert len(same) == len(names) > 1000
    assert not different + errors
