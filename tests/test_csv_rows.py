"""Tables as competitions give them out: columns and separators found, ids, other folders, and all bad rows at once."""

import json
import os
import re
import tracemalloc
import unicodedata

import pytest
from conftest import make_image, write

import tfpipe
from tfpipe.building.inputs.csv_rows import Choice
from tfpipe.building.inputs.sources import list_sources
from tfpipe.common.errors import DataError

CHOICE = Choice()


def listed(table, **choice):
    """{key: (split, class name, file name)} of what is taken, {key: message} of what is not."""
    items = list(list_sources({None: table}, {}, "csv", choice=CHOICE._replace(**choice)).items)
    taken = {item.key: (item.split, item.class_name, item.filename) for item in items if not item.reason}
    return taken, {item.key: item.message for item in items if item.reason}


def table(folder, text, *files):
    for file in files:
        write(folder / file, b"x")
    return write(folder / "t.csv", text.encode())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("path_column", ["path", "filename", "File", "image", "image_id", "id"])
@pytest.mark.parametrize("label_column", ["label", "Class", "category"])
def test_columns_and_the_separator_are_found_and_reported(tmp_path, caplog, separator, path_column, label_column):
    header = separator.join(["n", label_column, path_column])
    source = table(tmp_path, f"{header}\n0{separator}cat{separator}1.jpg\n", "1.jpg")
    with caplog.at_level("INFO", "tfpipe"):
        assert listed(source)[0] == {"1.jpg": (None, "cat", "1.jpg")}
    found = f"paths are taken from column '{path_column.lower()}', labels from '{label_column.lower()}', separated by "
    assert (found in caplog.text) == ((path_column, label_column, separator) != ("path", "label", ","))


def test_a_quoted_header_between_semicolons(tmp_path):
    assert listed(table(tmp_path, '"path";"label"\n"1,5.jpg";"a"\n', "1,5.jpg"))[0] == {"1,5.jpg": (None, "a", "1,5.jpg")}


def test_columns_that_are_named(tmp_path):
    source = table(tmp_path, "path,photo,label,breed\nx,1.jpg,no,cat\n", "1.jpg")
    assert listed(source, path_column="Photo", label_column="breed")[0] == {"1.jpg": (None, "cat", "1.jpg")}
    with pytest.raises(ValueError, match=r"t\.csv: path_column=foto: needed once; .*did you mean photo\?"):
        listed(source, path_column="foto")
    with pytest.raises(ValueError, match="name them with path_column and label_column"):
        listed(table(tmp_path, "photo,breed\n1.jpg,cat\n"))


def test_ids_without_an_ending_in_another_folder(tmp_path):
    source = table(tmp_path / "tables", "id,label\n0a,cat\n1b,dog\nsub/2c,cat\n3.v2,dog\n")
    (tmp_path / "images/0a").mkdir(parents=True)  # a folder is no image
    for name in ("0a.jpg", "deep/1b.PNG", "sub/2c.jpeg", "3.v2.jpg", "0a.txt", "0a.json"):
        write(tmp_path / "images" / name, b"x")
    taken, rejected = listed(source, images=tmp_path / "images")
    assert taken == {
        "0a.jpg": (None, "cat", "0a.jpg"),
        "deep/1b.PNG": (None, "dog", "deep/1b.PNG"),
        "sub/2c.jpeg": (None, "cat", "sub/2c.jpeg"),
        "3.v2.jpg": (None, "dog", "3.v2.jpg"),
    }
    assert rejected == {}


def test_an_id_of_several_files_is_refused_by_name(tmp_path):
    source = table(tmp_path, "id,label\n1,cat\n2,dog\n", "a/1.jpg", "b/1.png", "a/2.jpg")
    taken, rejected = listed(source)
    assert list(taken) == ["a/2.jpg"]
    assert rejected == {"1": "'1' may be any of a/1.jpg, b/1.png: write the path of the one that is meant"}


def test_ids_that_are_found_in_several_folders_are_counted_and_reported(tmp_path, caplog):
    paths = [f"train/{index}.jpg" for index in range(3)]
    source = table(tmp_path, "id,label\n0,a\n1,b\n2,a\n3,b\n", *paths, "test/3.jpg")
    assert len(listed(source)[0]) == 4
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "ids of t.csv were found in several folders: 3 in train, 1 in test; pass images=DIR to name one"
    caplog.clear()
    table(tmp_path, "id,label\ntrain/0,a\ntrain/1,b\ntest/3,a\n")  # folders that the table names
    assert len(listed(source)[0]) == 3
    table(tmp_path, "id,label\n0,a\n1,b\n")
    assert len(listed(source)[0]) == 2
    assert caplog.records == []


def test_paths_are_found_in_another_unicode_form(tmp_path):
    composed = "caf\u00e9/1.jpg"
    source = table(tmp_path, f"path,label\n{composed}\n2.jpg,tea\n".replace(composed, f"{composed},cafe"), "2.jpg")
    write(tmp_path / unicodedata.normalize("NFD", composed), b"x")
    assert set(listed(source)[0]) == {composed, "2.jpg"}


def test_absolute_paths_into_the_folder_are_paths_below_it(tmp_path):
    os.symlink(tmp_path / "real", tmp_path / "link")
    rows = [f"{tmp_path}/real/1.jpg,a", f"{tmp_path}/real/x/../2.jpg,a", f"{tmp_path}/other.jpg,a", "../other.jpg,a"]
    table(tmp_path / "real", "\n".join(["path,label", *rows]), "1.jpg", "2.jpg")
    write(tmp_path / "other.jpg", b"x")
    for folder in ("real", "link"):
        taken, rejected = listed(tmp_path / folder / "t.csv")
        assert taken == {"1.jpg": (None, "a", "1.jpg"), "2.jpg": (None, "a", "2.jpg")}
        assert set(rejected) == {f"{tmp_path}/other.jpg", "../other.jpg"}
        assert all("pass images=DIR that holds it, or give the row an id" in message for message in rejected.values())
    assert len(listed(tmp_path / "real/t.csv", images=tmp_path)[0]) == 3


@pytest.mark.parametrize("given", ["{}", "{}.jpg", "/kaggle/input/{}.jpg", "../input/{}.jpg"])
def test_where_no_path_is_found_one_message_reports_where_was_looked(tmp_path, given):
    rows = [f"{given.format(index)},a" for index in range(1000)]
    with pytest.raises(DataError) as caught:
        listed(table(tmp_path, "\n".join(["image_id,label", *rows]), "images/5.txt"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/t.csv: none of its 1,000 paths in column 'image_id' leads to a file, as ")
    assert f"looked in {tmp_path} for" in message
    assert "pass images=DIR" in message
    assert "\n" not in message


def test_the_message_names_a_folder_that_has_the_files(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"'1.jpg' is in {tmp_path}/photos;")):
        listed(table(tmp_path, "filename,label\n1.jpg,a\n2.jpg,b\n", "photos/1.jpg"))


def test_splits_of_a_table_have_one_name(tmp_path):
    for name in ("Valid", "validation", "dev", "val"):
        names = ["train", name, name.upper(), "test", "other"]
        rows = [f"{index}.jpg,a,{name}" for index, name in enumerate(names)]
        source = table(tmp_path, "\n".join(["path,label,split", *rows]), *(f"{index}.jpg" for index in range(5)))
        assert [split for split, _, _ in listed(source)[0].values()] == ["train", "val", "val", "test", "other"]


@pytest.mark.parametrize("names", [("valid", "dev"), ("val", "Validation")])
def test_two_splits_of_a_table_are_not_made_one(tmp_path, names):
    source = table(tmp_path, "path,label,split\n1.jpg,a,{}\n2.jpg,a,{}\n".format(*names), "1.jpg", "2.jpg")
    double = " and ".join(names).lower()
    with pytest.raises(DataError, match=rf"t\.csv: {double} would be one split: join them, or name one otherwise"):
        listed(source)


# Builds


def build(source, output, **options):
    return tfpipe.build_tfrecords(source, output, workers=1, progress=False, **options)


@pytest.fixture
def photos_and_table(tmp_path):
    for index in range(8):
        write(tmp_path / f"{index}.jpg", make_image(index))
    rows = ["0.jpg,cat", "1.jpg,", "2.jpg,dog", "3.jpg,", "4.jpg,", "5.jpg,cat", "./5.jpg,cat", "6.jpg,cat", "6.jpg,dog"]
    rows += [",dog", "no.jpg,cat", "7.jpg,a,b"]
    return write(tmp_path / "t.csv", "\n".join(["path,label", *rows]).encode())


def test_all_bad_rows_are_named_at_once_with_line_and_remedy(photos_and_table, tmp_path):
    with pytest.raises(DataError, match=r"^9 inputs cannot be packed; .*on_error=skip") as caught:
        build(photos_and_table, tmp_path / "out")
    message = str(caught.value)
    for line, name in ((3, "1.jpg"), (5, "3.jpg"), (6, "4.jpg")):
        assert f"t.csv: line {line}: {name}: others of the table have a label, this one has none: fill it in" in message
    assert "line 8: 5.jpg: given more than once, rows that are equal: remove all but one: line 7 of t.csv (cat), " in message
    contradiction = "6.jpg: given more than once, rows that contradict each other, cat or dog: keep the right one: "
    assert f"line 9: {contradiction}line 9 of t.csv (cat), line 10 of t.csv (dog)" in message
    assert "line 11: the row has no path" in message
    assert "no.jpg: No such file or directory (line 12 of t.csv)" in message
    assert not (tmp_path / "out").exists()


def test_rows_are_skipped_like_any_input(photos_and_table, tmp_path):
    content = build(photos_and_table, tmp_path / "out", on_error="skip")
    assert content.rejected == {"bad_row": 8, "unreadable": 1}
    assert content.splits["train"].class_counts == {"cat": 2, "dog": 1}
    rejected = [json.loads(line)["key"] for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert {"1.jpg", "t.csv#line8", "t.csv#line9", "t.csv#line10"} <= set(rejected)
    assert str(tmp_path) not in (tmp_path / "out/rejected.jsonl").read_text()
    assert build(photos_and_table, tmp_path / "out", on_error="skip") == content  # complete: nothing to do


def test_rows_without_a_split_or_with_one_that_cannot_be_are_rows(tmp_path):
    for index in range(4):
        write(tmp_path / f"{index}.jpg", make_image(index))
    source = write(tmp_path / "t.csv", b"path,label,split\n0.jpg,a,train\n1.jpg,b,\n2.jpg,b,tr-ain\n3.jpg,b,train\n")
    with pytest.raises(DataError) as caught:
        build(source, tmp_path / "out")
    assert "t.csv: line 3: 1.jpg: the row names no split, and other rows do: name one" in str(caught.value)
    assert "t.csv: line 4: 2.jpg: a split's name must be a letter" in str(caught.value)
    assert build(source, tmp_path / "out", on_error="skip").splits["train"].num_records == 2


def test_a_path_that_is_given_in_every_row_is_reported_in_short_lines(tmp_path):
    write(tmp_path / "1.jpg", make_image(1))
    rows = [f"1.jpg,{index}" for index in range(2000)]
    with pytest.raises(DataError) as caught:
        build(write(tmp_path / "t.csv", "\n".join(["path,label", *rows]).encode()), tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2001
    assert all(line.endswith("line 6 of t.csv (4) and 1995 more") for line in lines[1:])


def test_two_tables_that_name_one_image_say_both_lines(tmp_path):
    write(tmp_path / "1.jpg", make_image(1))
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", b"path,label\n1.jpg,a\n")
    with pytest.raises(DataError, match=r"different splits: keep one: line 2 of train\.csv \(a, train\), line 2 of test"):
        build({"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}, tmp_path / "out", layout="csv")


def test_the_options_of_tables_are_part_of_a_build_and_no_other_layout_s(tmp_path, photos):
    write(tmp_path / "images/1.jpg", make_image(1))
    write(tmp_path / "images/2.jpg", make_image(2))
    source = write(tmp_path / "t.csv", b"id,breed\n1,a\n2,b\n")
    content = build(source, tmp_path / "out", images=tmp_path / "images", label_column="breed")
    assert content.options["label_column"] == "breed"
    assert not {"path_column", "images", "normalize", "guessed"} & set(content.options)
    with pytest.raises(ValueError, match="label_column was 'breed' and is 'id'"):
        build(source, tmp_path / "out", images=tmp_path / "images", label_column="id")
    with pytest.raises(ValueError, match=r"images, path_column and label_column are for layout=csv \(.*folders"):
        build(photos, tmp_path / "other", images=photos)
    with pytest.raises(FileNotFoundError, match=r"images: .*nowhere: no such folder"):
        build(source, tmp_path / "other", images=tmp_path / "nowhere", label_column="breed")


def test_ids_of_many_files_take_no_memory(tmp_path):
    write(tmp_path / "images/0.jpg", b"x")
    for index in range(1, 3000):
        os.link(tmp_path / "images/0.jpg", tmp_path / f"images/{index}.jpg")
    source = table(tmp_path, "id,label\n" + "".join(f"{index},cat\n" for index in range(3000)))
    items = list_sources({None: source}, {}, "csv", choice=CHOICE._replace(images=tmp_path / "images")).items
    tracemalloc.start()
    assert sum(not item.reason for item in items) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000, "an index of names in memory had two million bytes"
