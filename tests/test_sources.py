import os
import re
from pathlib import Path

import pytest
from conftest import make_image, write

from tfpipe.building.inputs.sources import DEFAULT_LABEL_PATTERN, guess_layout, list_sources
from tfpipe.common.errors import DataError

DATA = make_image(1)


def listed(inputs, layout, unlabelled=None, pattern=DEFAULT_LABEL_PATTERN):
    """{key: (split, class name)} of what is taken, {key: reason} of what is not."""
    items = list(list_sources(inputs, unlabelled or {}, layout, pattern).items)
    taken = {item.key: (item.split, item.class_name) for item in items if not item.reason}
    return taken, {item.key: item.reason for item in items if item.reason}


def test_folders(photos):
    taken, rejected = listed({None: photos}, "folders")
    assert len(taken) == 25
    assert taken["cat/3.jpg"] == (None, "cat")
    assert taken["小 猫/深/猫 0.jpg"] == (None, "小 猫")
    assert rejected == {}


def test_a_file_outside_the_class_folders_is_named(photos):
    write(photos / "stray.jpg", DATA)
    assert listed({None: photos}, "folders")[1] == {"stray.jpg": "no_class"}


def test_top_level_folders_named_like_splits_are_splits(tmp_path):
    for path in ("train/cat/1.jpg", "validation/cat/2.jpg", "test/dog/3.jpg"):
        write(tmp_path / path, DATA)
    assert listed({None: tmp_path}, "folders")[0] == {
        "train/cat/1.jpg": ("train", "cat"),
        "validation/cat/2.jpg": ("val", "cat"),
        "test/dog/3.jpg": ("test", "dog"),
    }
    assert listed({None: tmp_path}, "flat")[0]["test/dog/3.jpg"] == ("test", None)


def test_a_folder_beside_split_folders_is_not_passed_over(tmp_path):
    for path in ("train/cat.1.jpg", "test1/2.jpg"):
        write(tmp_path / path, DATA)
    with pytest.raises(ValueError, match=r"beside the split folders train stand test1: .*--unlabelled=test1=DIR3"):
        listed({None: tmp_path}, "filename")


def test_val_and_validation_at_once_are_refused(tmp_path):
    for path in ("val/a.1.jpg", "validation/a.2.jpg"):
        write(tmp_path / path, DATA)
    with pytest.raises(ValueError, match="val and validation would be one split"):
        listed({None: tmp_path}, "filename")


def test_a_file_beside_split_folders_is_named(tmp_path):
    write(tmp_path / "train/a.1.jpg", DATA)
    write(tmp_path / "a.2.jpg", DATA)
    assert listed({None: tmp_path}, "filename")[1] == {"a.2.jpg": "no_class"}


def test_named_inputs_prefix_keys_with_the_split(tmp_path):
    write(tmp_path / "a/cat.1.jpg", DATA)
    write(tmp_path / "b/cat.1.jpg", DATA)
    write(tmp_path / "c/7.jpg", DATA)
    taken, _ = listed({"train": tmp_path / "a", "test": tmp_path / "b"}, "filename", {"test1": tmp_path / "c"})
    assert taken == {
        "train/cat.1.jpg": ("train", "cat"),
        "test/cat.1.jpg": ("test", "cat"),
        "test1/7.jpg": ("test1", None),
    }


@pytest.mark.parametrize(
    ("name", "class_name"), [("cat.123.jpg", "cat"), ("3_IMG_0042.jpg", "3"), ("小 猫_1.jpg", "小 猫"), ("x.jpg", "x")]
)
def test_the_class_in_a_file_name(tmp_path, name, class_name):
    write(tmp_path / name, DATA)
    assert listed({None: tmp_path}, "filename")[0] == {name: (None, class_name)}


def test_another_label_pattern_and_a_name_that_does_not_match(tmp_path):
    write(tmp_path / "0001-cat.jpg", DATA)
    write(tmp_path / "cat.jpg", DATA)
    taken, rejected = listed({None: tmp_path}, "filename", pattern=r"\d+-(?P<animal>\w+)")
    assert taken == {"0001-cat.jpg": (None, "cat")}
    assert rejected == {"cat.jpg": "no_class"}


@pytest.mark.parametrize("pattern", ["(", r"\d+", r"(?P<a>.)(?P<b>.)"])
def test_a_label_pattern_that_cannot_work(tmp_path, pattern):
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        listed({None: tmp_path}, "filename", pattern=pattern)


def test_hidden_files_are_passed_over(photos):
    for name in (".DS_Store", "Thumbs.db", "._1.jpg", ".cache/x.jpg", "__MACOSX/1.jpg", "cat/desktop.ini"):
        write(photos / name, DATA)
    taken, rejected = listed({None: photos}, "folders")
    assert (len(taken), rejected) == (25, {})


def test_links_are_followed_once_and_loops_reported(photos, tmp_path):
    pool = write(tmp_path / "pool" / "9.jpg", DATA).parent
    (photos / "bird").symlink_to(pool)  # a folder elsewhere
    (photos / "cat" / "again").symlink_to(photos / "dog")  # a folder that is walked anyway
    (photos / "cat" / "loop").symlink_to(photos)
    (pool / "up").symlink_to(pool)
    (photos / "cat" / "linked.jpg").symlink_to(pool / "9.jpg")
    (photos / "cat" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    taken, rejected = listed({None: photos}, "folders")
    assert taken["bird/9.jpg"] == (None, "bird")
    assert taken["cat/linked.jpg"] == (None, "cat")
    assert taken["dog/0.jpg"] == (None, "dog")
    assert len(taken) == 27
    assert rejected == {
        "cat/again": "link_loop",
        "cat/loop": "link_loop",
        "bird/up": "link_loop",
        "cat/broken.jpg": "unreadable",
    }


def test_no_folder_is_walked_twice_by_links_that_lead_up_or_into_one_another(tmp_path):
    write(tmp_path / "data/photos/cat/1.jpg", DATA)
    (tmp_path / "data/photos/up").symlink_to(tmp_path / "data")
    taken, rejected = listed({None: tmp_path / "data/photos"}, "flat")
    assert (set(taken), rejected) == ({"cat/1.jpg"}, {"up/photos": "link_loop"})
    write(tmp_path / "pool/sub/1.jpg", DATA)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a").symlink_to(tmp_path / "pool/sub")
    (tmp_path / "links/b").symlink_to(tmp_path / "pool")
    taken, rejected = listed({None: tmp_path / "links"}, "flat")
    assert (set(taken), rejected) == ({"a/1.jpg"}, {"b/sub": "link_loop"})


def test_split_folders_in_any_case(tmp_path):
    for name in ("Train", "TEST"):
        write(tmp_path / name / "a/1.jpg", DATA)
    assert {split for split, _ in listed({None: tmp_path}, "folders")[0].values()} == {"train", "test"}


def test_what_is_not_a_regular_file_or_has_no_utf8_name_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(DATA)
    for name in ("two\nlines.jpg", "Icon\r", "return\r/1.jpg"):  # Icon\r is what macOS leaves in folders
        write(tmp_path / name, DATA)
    assert listed({None: tmp_path}, "flat") == (
        {},
        {
            "pipe.jpg": "unreadable",
            "caf\\udce9.jpg": "bad_name",
            "two\\nlines.jpg": "bad_name",
            "return\\r/1.jpg": "bad_name",
        },
    )


def csv_input(tmp_path, text):
    write(tmp_path / "a/1.jpg", DATA)
    write(tmp_path / "b 2.jpg", DATA)
    return {None: write(tmp_path / "labels.csv", text.encode("utf-8-sig"))}


def test_csv(tmp_path):
    inputs = csv_input(tmp_path, 'Path,label,split,id\na/1.jpg,cat,train,one\n"b 2.jpg",dog,validation,\n./a/1.jpg,cat,test,\n')
    assert listed(inputs, "csv") == (
        {"one": ("train", "cat"), "b 2.jpg": ("val", "dog"), "a/1.jpg": ("test", "cat")},
        {},
    )


def test_csv_rows_that_cannot_be_taken(tmp_path):
    rows = "path,label\na/1.jpg,cat\nmissing.jpg,cat\n,dog\n../x.jpg,dog\nb 2.jpg,dog,more\n"
    taken, rejected = listed(csv_input(tmp_path, rows), "csv")
    assert set(taken) == {"a/1.jpg"}
    assert rejected == {
        "missing.jpg": "unreadable",
        "labels.csv#line4": "bad_row",
        "../x.jpg": "bad_row",
        "labels.csv#line6": "bad_row",
    }


def test_csv_without_its_columns_or_not_utf8(tmp_path):
    with pytest.raises(ValueError, match=r"the first line must name the columns path, label.*\['photo', 'label'\]"):
        listed(csv_input(tmp_path, "photo,label\n"), "csv")
    path = write(tmp_path / "latin.csv", b"path,label\ncaf\xe9.jpg,x\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8 CSV"):
        listed({None: path}, "csv")


@pytest.mark.parametrize("header", ["path,breed", "path", "path,label,label", "label"])
def test_csv_needs_its_columns_once(tmp_path, header):
    with pytest.raises(ValueError, match="the first line must name the columns"):
        listed(csv_input(tmp_path, f"{header}\n"), "csv")


def test_csv_rows_of_what_is_not_a_file_or_would_lead_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    rows = "path,label,id\npipe.jpg,cat,\na,cat,\na\0b,cat,\n../x.jpg,cat,../../evil\n"
    taken, rejected = listed(csv_input(tmp_path, rows), "csv")
    assert taken == {}
    assert rejected == {"pipe.jpg": "unreadable", "a": "unreadable", "labels.csv#line4": "bad_row", "../../evil": "bad_row"}


def test_csv_under_another_split_than_its_rows_say(tmp_path):
    inputs = csv_input(tmp_path, "path,label,split\na/1.jpg,cat,test\n")
    assert listed({"train": inputs[None]}, "csv")[1] == {"a/1.jpg": "bad_row"}


def test_layouts_are_guessed_only_where_certain(photos, tmp_path):
    assert guess_layout(photos) == "folders"
    write(tmp_path / "s/train/cat/1.jpg", DATA)
    write(tmp_path / "s/test/cat/2.jpg", DATA)
    assert guess_layout(tmp_path / "s") == "folders"
    assert guess_layout(write(tmp_path / "x.CSV", b"path,label\n")) == "csv"
    assert guess_layout(write(tmp_path / "x.h5", b"")) == "hdf5"
    with pytest.raises(ValueError, match="layout is not certain"):
        guess_layout(photos / "cat")
    with pytest.raises(ValueError, match=r"must be a folder, a \.csv or an \.h5"):
        guess_layout(write(tmp_path / "x.zip", b""))


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such input"):
        listed({None: tmp_path / "nowhere"}, "folders")


def test_an_input_of_the_wrong_kind_is_named(tmp_path):
    file = write(tmp_path / "x.jpg", DATA)
    with pytest.raises(ValueError, match=r"x.jpg: not a folder"):
        listed({None: file}, "folders")
    with pytest.raises(ValueError, match="layout 'csv' needs a file"):
        listed({None: tmp_path}, "csv")


@pytest.mark.parametrize("name", ["x.csv", "x.h5", "prepared"])
def test_what_the_kernel_makes_up_is_not_an_input(tmp_path, name):
    """/proc/kmsg says that it is a regular file of no bytes, and reading it waits."""
    folder = tmp_path / "prepared"
    write(folder / "dataset_info.json", b"{}")
    os.symlink("/proc/kmsg", folder / "features.json")
    os.symlink("/proc/kmsg", tmp_path / "x.csv")
    os.symlink("/proc/kmsg", tmp_path / "x.h5")
    with pytest.raises(DataError, match="not a regular file"):
        listed({None: tmp_path / name}, guess_layout(tmp_path / name))
