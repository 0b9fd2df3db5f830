"""predict: as many rows as images, in the order people count in, from the pixels that evaluation sees; or nothing at all."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import CHECKOUT, make_image, write
from evaluation_fixtures import make_classifier
from hypothesis import given
from hypothesis import strategies as st
from prediction_fixtures import AWKWARD, NAMES, Averages, bad_files, kinds, left_behind, read, undecodable

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.common.text import display_width
from tfpipe.listing import image_files, selection
from tfpipe.models import classifiers, predictions
from tfpipe.prediction.prediction import predict

pytestmark = pytest.mark.tf


class Untouched(Averages):
    """A predictor that nothing may be asked."""

    def predict(self, images):
        raise AssertionError("the model was asked before the inputs were checked")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    make_classifier().model.save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "input" / "小 images"
    for name, data in kinds().items():
        write(root / name, data)
    return root


def ids(inputs, split=None):
    return [found.id for found in selection.list_images(inputs, split).images]


# Ids and their order


@given(st.lists(st.integers(0, 10**6), unique=True))
def test_numbers_are_ordered_as_people_count(numbers):
    assert sorted((f"img{number}.x" for number in numbers), key=selection.natural_key) == [f"img{n}.x" for n in sorted(numbers)]


@given(st.lists(st.text("0123aB./٣ 猫", max_size=6), unique=True), st.randoms())
def test_any_names_have_one_order(names, drawn):
    shuffled = drawn.sample(names, len(names))
    assert sorted(names, key=selection.natural_key) == sorted(shuffled, key=selection.natural_key)


def test_a_name_is_before_those_that_begin_with_it():
    names = ["1", "1.5", "a", "a0", "a00", "a0b", "a1", "a10", "ab"]
    assert sorted(names, key=selection.natural_key) == names


def test_numbers_beyond_pythons_limit_have_an_order():
    assert selection.natural_key("9" * 5000) < selection.natural_key("1" + "0" * 5000)


def test_ids_are_paths_below_what_was_given(tmp_path):
    for name in ("a/1.jpg", "a/10.png", "a/2.JPG", "b/1.jpg", "b.x/c.d.jpg", "[1].jpg"):
        write(tmp_path / "in" / name, make_image(1))
    root = tmp_path / "in"
    assert ids(root) == ["[1]", "a/1", "a/2", "a/10", "b.x/c.d", "b/1"]
    assert ids(root / "a") == ["1", "2", "10"]
    assert ids(f"{root}/*/1.jpg") == ["a/1", "b/1"]
    assert ids(f"{root}/a/*.jpg") == ["1"]
    assert ids(f"{root}/**/*.jpg") == ["[1]", "a/1", "b.x/c.d", "b/1"]
    assert ids(root / "[1].jpg") == ["[1]"]  # a name before it is a glob
    assert ids([root / "a" / "1.jpg", root / "b.x"]) == ["1", "c.d"]


def test_ids_of_records_are_those_of_their_folder(folder, tmp_path):
    tfpipe.build_tfrecords({"test1": folder}, tmp_path / "a", layout="flat", progress=False)
    assert ids(tmp_path / "a") == ids(tmp_path / "a", "test1") == ids(folder)
    table = "path,label,id\n" + "".join(f"{name},,{number}\n" for number, name in enumerate(["2.jpg", "10.jpg"]))
    write(folder / "table.csv", table.encode())
    tfpipe.build_tfrecords({"test": folder / "table.csv"}, tmp_path / "b", layout="csv", progress=False)
    assert ids(tmp_path / "b") == ["0", "1"]


def test_records_that_would_have_one_id_keep_their_extensions(tmp_path):
    for name in ("a/1.jpg", "a/1.png", "a/2.png"):
        write(tmp_path / "in" / name, make_image(len(name) + ord(name[2])))
    tfpipe.build_tfrecords({"test1": tmp_path / "in"}, tmp_path / "out", layout="flat", progress=False)
    expected = [found.id for found in selection.list_images(tmp_path / "in", tell_apart=True).images]
    assert expected == ["a/1.jpg", "a/1.png", "a/2"]
    assert [found.id for found in selection.list_images(tmp_path / "out", tell_apart=True).images] == expected


def test_an_id_that_was_given_is_never_another(tmp_path):
    for name in ("1.jpg", "1.png"):
        write(tmp_path / name, make_image(ord(name[-1])))
    table = write(tmp_path / "list.csv", b"path,id\n1.jpg,a.jpg\n1.png,a.jpg\n")
    with pytest.raises(ValueError, match=r"have the same id, 'a\.jpg'"):
        selection.list_images(table, tell_apart=True)


def test_only_the_suffix_of_an_image_is_not_a_part_of_the_id(tmp_path):
    names = ["plain", "scan.1", "scan.2", "v1.5", "x.JPG", "y.1.Tiff"]
    for index, name in enumerate(names):
        write(tmp_path / "in" / name, make_image(index))
    assert ids(tmp_path / "in") == [*names[:4], "x", "y.1"]
    (tmp_path / "in" / "y.1.Tiff").rename(tmp_path / "in" / "y.1.png")
    tfpipe.build_tfrecords({"test": tmp_path / "in"}, tmp_path / "out", layout="flat", progress=False)
    assert ids(tmp_path / "out") == [*names[:4], "x", "y.1"]


def test_ids_of_arrays_are_their_keys(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "signs.h5", "w") as file:
        file["test_set_x"] = np.arange(11 * 8 * 8 * 3, dtype=np.uint8).reshape(11, 8, 8, 3)
        file["test_set_y"] = np.arange(11) % 2
    tfpipe.build_tfrecords({"test": tmp_path / "signs.h5"}, tmp_path / "out", layout="hdf5", on_conflict="keep", progress=False)
    assert ids(tmp_path / "out") == [f"signs.h5#{number:06d}" for number in range(11)]


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("x/1.jpeg", "x/1.JPG")])
def test_two_images_with_one_id_are_named(tmp_path, names):
    paths = [write(tmp_path / "in" / name, make_image(index)) for index, name in enumerate(names)]
    with pytest.raises(ValueError, match="have the same id") as caught:
        predict(Untouched(), tmp_path / "in", tmp_path / "out.csv", columns="label")
    assert all(str(path) in str(caught.value) for path in paths)
    assert left_behind(tmp_path) == []
    write(tmp_path / "in" / "b.jpg", make_image(2))
    predict(Averages(), tmp_path / "in", tmp_path / "out.jsonl", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted((row["id"], row["filename"]) for row in rows) == sorted([("b", "b.jpg"), *((name, name) for name in names)])
    with pytest.raises(ValueError, match=r"a\.jpg is given twice" if names[0] == "a.jpg" else "is given twice"):
        selection.list_images([paths[0], paths[0]])


# What is an image


def test_what_is_not_an_image_by_its_name_is_passed_over_and_reported(folder, tmp_path, caplog):
    for name in ("README.txt", "Thumbs.db", ".DS_Store", ".git/1.jpg", "table.csv", "old.rejected.jsonl"):
        write(folder / name, b"x")
    with caplog.at_level("INFO", "tfpipe"):
        summary = predict(Averages(), folder, tmp_path / "out.csv", progress=False)
    expected = [".DS_Store", ".git/", "README.txt", "Thumbs.db", "old.rejected.jsonl", "table.csv"]
    assert sorted(summary.passed_over) == expected
    assert summary.num_rows == len(kinds())
    assert all(name in caplog.text for name in expected)


def test_links_are_followed_once_and_the_real_path_wins(tmp_path):
    root = tmp_path / "in"
    write(root / "real" / "1.jpg", make_image(1))
    write(tmp_path / "elsewhere" / "2.jpg", make_image(2))
    os.symlink("real", root / "a link")
    os.symlink(tmp_path / "elsewhere", root / "b link")
    os.symlink("..", root / "real" / "loop")
    os.symlink("real/1.jpg", root / "file.jpg")
    (root / "x.jpg").mkdir()
    listing = selection.list_images(root)
    assert [found.id for found in listing.images] == ["b link/2", "file", "real/1"]
    assert sorted(listing.passed_over) == ["a link/", "real/loop/"]


def test_a_glob_does_not_multiply_images_through_links(tmp_path):
    root = tmp_path / "in"
    write(root / "b" / "1.jpg", make_image(1))
    os.symlink("..", root / "b" / "loop")
    os.symlink("b", root / "a")
    os.symlink("b/1.jpg", root / "file.jpg")
    assert ids(f"{root}/**/*.jpg") == ["b/1", "file"]
    assert ids(f"{root}/*/*.jpg") == ["b/1"]
    assert ids(f"{root}/a/*.jpg") == ["1"]


@pytest.mark.parametrize("other", ["test/no/*.jpg", "test/no", "link/no"])
def test_an_image_that_has_two_ids_is_an_error(tmp_path, other):
    write(tmp_path / "test" / "no" / "1.jpg", make_image(1))
    os.symlink("test", tmp_path / "link")
    for inputs in ([tmp_path / "test", tmp_path / other], [tmp_path / other, tmp_path / "test"]):
        with pytest.raises(ValueError, match=r"no/1\.jpg is given twice, with the ids '1' and 'no/1'"):
            ids(inputs)


def test_bad_images_are_named_all_at_once_before_the_model_is_asked(folder, tmp_path):
    bad = bad_files(folder)
    write(tmp_path / "out.csv", b"before")
    with pytest.raises(DataError, match=r"^7 inputs cannot be predicted; .*on_error=report") as caught:
        predict(Untouched(), folder, tmp_path / "out.csv", columns="label", progress=False)
    assert all(f"{folder}/{name}" in str(caught.value) for name in bad)
    assert left_behind(tmp_path) == ["out.csv"]
    assert (tmp_path / "out.csv").read_bytes() == b"before"


@pytest.mark.parametrize("columns", ["label", "table"])
def test_bad_images_are_rows_without_a_value(folder, tmp_path, columns):
    good = {row[0]: row for row in written(Averages(), folder, tmp_path, columns=columns)}
    bad = bad_files(folder)
    write(folder / "scan.png", undecodable())
    rows = written(Averages(), folder, tmp_path, columns=columns, on_error="report", batch_size=3)
    assert len(rows) == len(kinds()) + 8 + 1
    names = 2 if columns == "table" else 1
    empty = {os.path.splitext(row[0])[0] if columns == "table" else row[0] for row in rows if not any(row[names:])}
    assert empty == {*bad, "scan"}
    assert {name: row for name, row in good.items() if row in rows} == good
    assert len({len(row) for row in rows}) == 1
    lines = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text("utf-8").splitlines()]
    reasons = {line["id"]: line["reason"] for line in lines}
    expected = ["not_an_image", "unreadable", "unreadable", "truncated", "empty", "other_format", "unreadable", "undecodable"]
    assert reasons == dict(zip([*bad, "scan"], expected, strict=True))
    written(Averages(), folder / "10.jpg", tmp_path)
    assert not (tmp_path / "out.rejected.jsonl").exists()


def written(model, inputs, folder, **options):
    predict(model, inputs, folder / "out.csv", progress=False, **{"columns": "label", **options})
    return read(folder / "out.csv")


@pytest.mark.parametrize("target", ["/proc/kmsg", "/proc/self/mem", "/dev/zero", "/dev/null"])
def test_what_the_kernel_makes_up_is_not_read(folder, target):
    if not os.path.exists(target):
        pytest.skip(f"no {target} here")
    os.symlink(target, folder / "link.jpg")
    found = image_files.read(str(folder / "link.jpg"))
    assert (found.reason, found.message) == ("unreadable", "cannot be read: not a regular file")


# Lists of paths


def test_a_csv_names_images_below_its_own_folder(tmp_path):
    write(tmp_path / "in" / "a" / "2.jpg", make_image(2))
    write(tmp_path / "in" / "a" / "10.jpg", make_image(10))
    elsewhere = write(tmp_path / "elsewhere" / "1.png", make_image(1, format="PNG"))
    lines = ["path", "a/10.jpg", "./a/2.jpg", "gone.jpg", str(elsewhere)]
    table = write(tmp_path / "in" / "list.CSV", "\r\n".join(lines).encode("utf-8-sig"))
    assert ids(table) == [str(elsewhere)[:-4], "a/2", "a/10", "gone"]
    rows = written(Averages(), table, tmp_path, columns="full")
    assert [row[0] for row in rows[1:] if row[2]] == ["gone"]
    assert rows[-1][1:3] == ["gone.jpg", "unreadable: cannot be read: No such file or directory"]
    write(table, "ID,Path\n第二,a/2.jpg\nfirst,a/10.jpg\n".encode())
    assert ids(table) == ["first", "第二"]
    assert [row[0] for row in written(Averages(), [table, elsewhere], tmp_path)[1:]] == ["1", "first", "第二"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"photo\na.jpg\n", "line 1 .*a column called path is needed.*there are: photo"),
        (b"", "list.csv: the file is empty: a list of paths has a column called path"),
        ("path\na.jpg\n".encode("utf-16"), "list.csv: a list of paths in UTF-16: save it as UTF-8"),
        ("\ufeffpath\na.jpg\n".encode("utf-16-be"), "save it as UTF-8"),
        (b"path;id\na.jpg;1;2\n", "line 2 .*3 fields, expected 2"),
        (b"path\tid\na.jpg\n", "line 2 .*1 field, expected 2"),
        (b"path,path\na,b\n", "a column called path is needed"),
        (b"path,id\na.jpg,1\nb.jpg\n", "line 3 .*1 field, expected 2"),
        (b"path,id\na.jpg,\n", "line 2 .*an empty path or id"),
        (b"path,id\n,1\n", "line 2 .*an empty path or id"),
        (b'path\n"a.jpg\n', "line 2 of a list of paths: unexpected end of data"),
        (b'path\n"a\0.jpg"\n', "NUL"),
    ],
)
def test_a_csv_that_is_not_a_list_is_an_error_with_the_line(tmp_path, content, message):
    table = write(tmp_path / "list.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        ids(table)
    assert caught.value.path == str(table)


@pytest.mark.parametrize("content", [b"ID;Filename\nb;2.jpg\na;1.jpg\n", b"image\tid\n2.jpg\tb\n1.jpg\ta\n"])
def test_the_separator_and_the_column_of_paths_are_found_and_reported(tmp_path, content, caplog):
    table = write(tmp_path / "list.tsv", content)
    with caplog.at_level("INFO", "tfpipe"):
        assert [(found.id, found.path) for found in selection.list_images(table).images] == [
            ("a", str(tmp_path / "1.jpg")),
            ("b", str(tmp_path / "2.jpg")),
        ]
    assert re.search(r"list\.tsv: paths are taken from column '(filename|image)', separated by (semicolons|tabs)", caplog.text)


@pytest.mark.parametrize("column", ["image_id", "img_id", "ID"])
def test_a_column_of_ids_is_taken_where_these_are_files(tmp_path, column):
    table = write(tmp_path / "list.csv", f"{column},label\n a/2.jpg ,x\ngone.jpg,x\n".encode())
    with pytest.raises(DataError, match=r"none of the names in column .* is that of a file: a column called path is needed"):
        ids(table)
    (tmp_path / "gone.jpg").mkdir()
    with pytest.raises(DataError, match="none of the names"):
        ids(table)
    write(tmp_path / "a" / "2.jpg", make_image(2))
    assert ids(table) == ["a/2", "gone"]
    assert selection.list_images(table).images[0].path == str(tmp_path / "a/2.jpg")


def test_names_that_predictions_hold_with_an_apostrophe_are_read_back(tmp_path):
    for name in ("=1.jpg", "'-2.jpg", "'b.jpg"):
        write(tmp_path / name, make_image(1))
    table = write(tmp_path / "list.csv", b"id,filename\n'=x,'=1.jpg\n'-y,'-2.jpg\n'z,'b.jpg\n'-gone,'-gone.jpg\n")
    found = {image.id: image.path for image in selection.list_images(table).images}
    expected = {"=x": "=1.jpg", "'-y": "'-2.jpg", "'z": "'b.jpg", "-gone": "-gone.jpg"}
    assert found == {name: str(tmp_path / path) for name, path in expected.items()}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_standard_input_names_images(tmp_path, monkeypatch, end):
    for name in ("a/1.jpg", "a/2.jpg", "a/10.jpg"):
        write(tmp_path / name, make_image(1))
    names = [b"a/10.jpg", b"./a/2.jpg", b"", b"a/1.jpg", b"caf\xe9.jpg"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(end.join(names) + end)))
    monkeypatch.chdir(tmp_path)
    listed = selection.list_images("-").images
    assert [found.id for found in listed] == ["a/1", "a/2", "a/10", "caf\\udce9"]
    assert [bool(found.problem) for found in listed] == [False, False, False, True]
    assert listed[0].path == str(tmp_path / "a" / "1.jpg")


def test_a_byte_order_mark_is_not_a_part_of_a_path(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffa/1.jpg\n2.jpg\n".encode())))
    assert ids("-") == ["2", "a/1"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a/1.jpg\n".encode("utf-16"))))
    with pytest.raises(DataError, match="-: a list of paths in UTF-16: save it as UTF-8"):
        ids("-")


def test_the_same_image_twice_in_a_list_is_an_error(tmp_path):
    write(tmp_path / "1.jpg", make_image(1))
    with pytest.raises(ValueError, match="is given twice, with the ids 'x' and 'y'"):
        ids(write(tmp_path / "list.csv", b"path,id\n1.jpg,x\n1.jpg,y\n"))


# Rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The row of each of seven images that was predicted alone."""
    root = tmp_path_factory.mktemp("alone")
    paths = [write(root / f"{index}.jpg", make_image(index)) for index in range(7)]
    return [written(Averages(), path, root, columns="probability")[1] for path in paths]


@pytest.mark.parametrize("failing", [{0, 1, 2}, {2, 3}, {6}, set(range(7)), set()])
def test_rows_stay_with_their_images_whatever_the_decoder_refuses(tmp_path, alone, failing):
    for index in range(7):
        write(tmp_path / "in" / f"{index}.jpg", undecodable() if index in failing else make_image(index))
    rows = written(Averages(), tmp_path / "in", tmp_path, on_error="report", columns="probability", batch_size=3)
    assert [row[0] for row in rows] == ["id", *map(str, range(7))]
    assert {int(row[0]) for row in rows[1:] if not row[1]} == failing
    assert [row for row in rows[1:] if row[1]] == [alone[index] for index in range(7) if index not in failing]


def test_an_image_that_the_decoder_refuses_is_an_error_that_names_it(folder, tmp_path):
    path = write(folder / "scan.png", undecodable())
    write(tmp_path / "out.csv", b"before")
    with pytest.raises(DataError, match=r"scan\.png: cannot be decoded: .*PNG") as caught:
        predict(Averages(), folder, tmp_path / "out.csv", columns="table", progress=False)
    assert caught.value.path == str(path)
    assert "{{" not in str(caught.value)
    assert left_behind(tmp_path) == ["out.csv"]
    assert (tmp_path / "out.csv").read_bytes() == b"before"


def test_columns(folder, tmp_path):
    names = ids(folder)
    three, two = Averages(), Averages(NAMES)
    labels = written(three, folder, tmp_path)
    assert labels[0] == ["id", "label"]
    assert [row[0] for row in labels[1:]] == names
    indices = written(three, folder, tmp_path, columns="index", id_column="Id", value_column="Category")
    assert indices[0] == ["Id", "Category"]
    assert [AWKWARD[int(row[1])] for row in indices[1:]] == [row[1] for row in labels[1:]]
    each = written(three, folder, tmp_path, columns="probability")
    assert each[0] == ["id", *AWKWARD]
    values = np.array([row[1:] for row in each[1:]], np.float32)
    sums = three.images[-len(names) :].sum(axis=(1, 2), dtype=np.int64) + 1
    np.testing.assert_array_equal(values, (sums / sums.sum(axis=1, keepdims=True)).astype(np.float32))  # 9 digits say all
    assert [AWKWARD[best] for best in values.argmax(axis=1)] == [row[1] for row in labels[1:]]
    one = written(three, folder, tmp_path, columns="probability", positive_class="小 猫")
    assert one == [["id", "label"], *([row[0], row[3]] for row in each[1:])]
    assert written(two, folder, tmp_path, columns="probability") == written(
        two, folder, tmp_path, columns="probability", positive_class="dog"
    )
    assert (
        written(two, folder, tmp_path, columns="probability")[1:]
        != written(two, folder, tmp_path, columns="probability", positive_class="cat")[1:]
    )


def test_full_rows(folder, tmp_path):
    bad = bad_files(folder)
    write(folder / "scan.png", undecodable())
    summary = predict(Averages(), folder, tmp_path / "out.csv", progress=False)  # which is the default
    header, *rows = read(tmp_path / "out.csv")
    best = ["class_1", "score_1", "class_2", "score_2", "class_3", "score_3"]
    assert header == ["id", "filename", "reason", *best, *(f"probability_{name}" for name in AWKWARD)]
    listed = selection.list_images(folder).images
    assert [row[:2] for row in rows] == [[found.id, found.filename] for found in listed]
    reasons = {row[0]: row[2] for row in rows if row[2]}
    assert set(reasons) == {*bad, "scan"} == {name.removesuffix(".jpg").removesuffix(".png") for name in summary.rejected}
    assert reasons["empty"] == "empty: no bytes"
    assert reasons["scan"].startswith("undecodable: cannot be decoded: ")
    assert all(set(row[3:]) == {""} for row in rows if row[2])
    good = [row for row in rows if not row[2]]
    table = written(Averages(), folder, tmp_path, columns="table", on_error="report")
    assert [row[9:] for row in good] == [row[4:] for row in table[1:] if row[3]]
    for row in good:
        values = dict(zip(AWKWARD, row[9:], strict=True))
        top = sorted(AWKWARD, key=lambda name: -float(values[name]))
        assert row[3:9] == [cell for name in top for cell in (name, values[name])]
    two = written(Averages(), folder, tmp_path, columns="full", top_k=2)
    assert two[0] == [*header[:7], *header[9:]]


def test_lines_of_json_say_what_full_rows_say(folder, tmp_path):
    bad_files(folder)
    write(folder / "scan.png", undecodable())
    _, *rows = written(Averages(), folder, tmp_path, columns="full", top_k=2)
    predict(Averages(), folder, tmp_path / "out.jsonl", top_k=2, progress=False)
    content = (tmp_path / "out.jsonl").read_bytes()
    predict(Averages(), folder, tmp_path / "out", format="jsonl", top_k=2, progress=False)
    assert (tmp_path / "out").read_bytes() == content
    for row, line in zip(rows, content.decode().split("\n")[:-1], strict=True):
        found = json.loads(line)
        assert list(found) == ["id", "filename", "class", "score", "top", "probabilities", "reason"]
        assert [found["id"], found["filename"]] == row[:2]
        if row[2]:
            assert "{code}: {message}".format(**found["reason"]) == row[2]
            assert (found["class"], found["score"], found["top"], found["probabilities"]) == (None, None, [], None)
        else:
            assert found["reason"] is None
            assert list(found["probabilities"]) == list(AWKWARD)
            assert [float(text) for text in row[7:]] == list(found["probabilities"].values())
            assert row[3:7] == [cell for best in found["top"] for cell in (best["class"], f"{best['score']:.9g}")]
            assert [found["class"], found["score"]] == list(found["top"][0].values())


def test_of_equal_probabilities_the_first_is_the_best(folder, tmp_path):
    class Equal(Averages):
        def predict(self, images):
            return np.full((len(images), 3), 1 / 3, np.float32)

    rows = written(Equal(), folder, tmp_path, columns="full")
    assert {(row[3], row[5], row[7]) for row in rows[1:]} == {AWKWARD}


def test_the_table_is_evaluations(folder, tmp_path):
    predictor = Averages()
    written(predictor, folder, tmp_path, columns="table")
    table = predictions.read(tmp_path / "out.csv")
    listed = selection.list_images(folder).images
    assert list(table.keys) == list(table.filenames) == [found.key for found in listed]
    assert table.labels.tolist() == [-1] * len(listed)
    assert list(table.class_names) == list(AWKWARD)
    sums = predictor.images.sum(axis=(1, 2), dtype=np.int64) + 1
    np.testing.assert_array_equal(
        table.probabilities.astype(np.float32), (sums / sums.sum(1, keepdims=True)).astype(np.float32)
    )


# Pixels


def check_equal_to_evaluation(folder, tmp_path, image_size, resize):
    tfpipe.build_tfrecords({"test1": folder}, tmp_path / "shards", layout="flat", progress=False, num_shards=2)
    data = tfpipe.dataset(
        tmp_path / "shards", "test1", image_size=image_size, resize=resize, as_dict=True, scaled_decode=False
    ).unbatch()
    seen = {row["key"].decode().removeprefix("test1/"): row["image"] for row in data.as_numpy_iterator()}
    for inputs in (folder, tmp_path / "shards"):
        predictor = Averages(image_size=image_size, resize=resize)
        predict(predictor, inputs, tmp_path / "out.csv", batch_size=5, progress=False)
        keys = [found.key.removeprefix("test1/") for found in selection.list_images(inputs).images]
        assert set(keys) == set(seen)
        for key, image in zip(keys, predictor.images, strict=True):
            np.testing.assert_array_equal(image, seen[key], err_msg=key)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_pixels_are_those_of_evaluation(folder, tmp_path, resize):
    check_equal_to_evaluation(folder, tmp_path, (16, 24), resize)


def test_pixels_of_real_images_are_those_of_evaluation(test_data, tmp_path):
    real = sorted((test_data / "jpeg" / "exif_orientation_recurser").glob("*.jpg"))
    real += sorted((test_data / "jpeg").glob("libjpeg_turbo_testimages/testimages/*.jpg"))
    real += sorted((test_data / "cats_dogs" / "test1").glob("1?.jpg"))
    for index, path in enumerate(real):
        write(tmp_path / "real" / f"{index}.jpg", path.read_bytes())
    predictor = Averages()
    bad = predict(predictor, tmp_path / "real", tmp_path / "out.csv", on_error="report", progress=False).rejected
    for name in bad:
        (tmp_path / "real" / name).unlink()
    assert len(real) - len(bad) > 15
    check_equal_to_evaluation(tmp_path / "real", tmp_path, (48, 48), "crop")


def test_probabilities_are_those_of_evaluation(folder, tmp_path, model_path):
    tfpipe.build_tfrecords({"test1": folder}, tmp_path / "shards", layout="flat", progress=False)
    classifier = classifiers.load(model_path)
    evaluated = {1: {}, 64: {}}
    for batch_size, found in evaluated.items():
        data = tfpipe.dataset(tmp_path / "shards", "test1", batch_size=batch_size, image_size=(8, 8), as_dict=True)
        for batch in data:
            found |= dict(zip(batch["key"].numpy().tolist(), classifier.predict(batch["image"]), strict=True))
    for inputs in (folder, tmp_path / "shards"):
        for batch_size, found in evaluated.items():
            summary = predict(model_path, inputs, tmp_path / "out.csv", columns="table", batch_size=batch_size, progress=False)
            table = predictions.read(tmp_path / "out.csv")
            expected = np.array([found[f"test1/{key.removeprefix('test1/')}".encode()] for key in table.keys])
            tolerance = 0 if batch_size == 1 else 1e-5
            np.testing.assert_allclose(table.probabilities.astype(np.float32), expected, rtol=0, atol=tolerance)
            assert sum(summary.counts.values()) == summary.num_rows == len(expected)
            assert np.ptp(expected[:, 0]) > 0.01  # else any row would do for any image


# Data sets


def test_a_split_must_be_clear(photos, tmp_path):
    tfpipe.build_tfrecords(
        photos, tmp_path / "shards", layout="folders", splits={"train": 0.6, "test": 0.4}, progress=False, on_conflict="keep"
    )
    with pytest.raises(ValueError, match="which split\\? It has train, test"):
        predict(Untouched(), tmp_path / "shards", tmp_path / "out.csv")
    with pytest.raises(ValueError, match="'val'"):
        predict(Untouched(), tmp_path / "shards", tmp_path / "out.csv", split="val")
    with pytest.raises(ValueError, match="split='test' needs a data set"):
        predict(Untouched(), photos, tmp_path / "out.csv", split="test")
    with pytest.raises(ValueError, match="is predicted alone"):
        predict(Untouched(), [tmp_path / "shards", photos], tmp_path / "out.csv", split="test")
    rows = written(Averages(), tmp_path / "shards", tmp_path, split="test")
    assert len(rows) == 1 + tfpipe.load_manifest(tmp_path / "shards").split("test").num_records


def test_a_damaged_record_is_an_error_that_names_its_shard(folder, tmp_path):
    tfpipe.build_tfrecords({"test1": folder}, tmp_path / "shards", layout="flat", num_shards=1, progress=False)
    (shard,) = (tmp_path / "shards").glob("*.tfrecord*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"tfrecord-00000-of-00001: at byte .*does not match its CRC"):
        predict(Averages(), tmp_path / "shards", tmp_path / "out.csv", columns="label", progress=False)
    rows = written(Averages(), tmp_path / "shards", tmp_path, on_error="report")
    assert len(rows) == len(kinds()) + 1
    assert sum(not row[1] for row in rows) == 1


# Output


def test_mistakes_are_found_before_the_model_is_asked(folder, tmp_path):
    out = tmp_path / "out.csv"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "texts" / "README.txt", b"x")
    cases = [
        (FileNotFoundError, "no folder .*nowhere", folder, tmp_path / "nowhere" / "out.csv", {}),
        (ValueError, "output must be a file", folder, tmp_path, {}),
        (ValueError, "-: output must be the name of a file: rows are not written to standard output", folder, "-", {}),
        (ValueError, r"out\.json: JSON lines have the extension \.jsonl: rename", folder, tmp_path / "out.json", {}),
        (ValueError, r"input must be paths \(got bytes\); bytes and arrays are for tfpipe\.load", make_image(1), out, {}),
        (ValueError, r"input must be paths \(got bytes\)", [folder, make_image(1)], out, {}),
        (ValueError, r"input must be paths \(got ndarray\)", np.zeros((2, 4, 4, 3), np.uint8), out, {}),
        (ValueError, r"input must be paths \(got StringIO\)", io.StringIO("a.jpg\n"), out, {}),
        (ValueError, r"input must be paths \(got NoneType\)", None, out, {}),
        (FileNotFoundError, "missing: no such file or folder", tmp_path / "missing", out, {}),
        (FileNotFoundError, "matches no file", f"{folder}/*.gif", out, {}),
        (ValueError, "there is no image$", tmp_path / "empty", out, {}),
        (ValueError, "there is no image; passed over: README.txt", tmp_path / "texts", out, {}),
        (ValueError, "there is no image", [], out, {}),
        (ValueError, "columns must be one of full, label, ", folder, out, {"columns": "labels"}),
        (ValueError, "on_error must be", folder, out, {"on_error": "skip"}),
        (ValueError, "batch_size must be", folder, out, {"batch_size": 0}),
        (ValueError, "positive_class must be one of cat, ", folder, out, {"columns": "probability", "positive_class": "owl"}),
        (ValueError, "with columns=label", folder, out, {"columns": "label", "positive_class": "cat"}),
        (ValueError, "two columns have the same name: label, label", folder, out, {"columns": "label", "id_column": "label"}),
        (ValueError, "two columns have the same name: reason, filename", folder, out, {"id_column": "reason"}),
        (ValueError, "value_column='Category' is for columns=label", folder, out, {"value_column": "Category"}),
        (ValueError, "top_k must be .* with columns=full", folder, out, {"columns": "label", "top_k": 2}),
        (ValueError, "top_k must be an integer, 1 or more", folder, out, {"top_k": 0}),
        (ValueError, "format must be one of csv, jsonl", folder, out, {"format": "xml"}),
        (ValueError, "columns=label is for CSV", folder, tmp_path / "out.jsonl", {"columns": "label"}),
        (ValueError, "id_column='Id' is for CSV", folder, tmp_path / "out.jsonl", {"id_column": "Id"}),
    ]
    for kind, message, inputs, output, options in cases:
        with pytest.raises(kind, match=message):
            predict(Untouched(), inputs, output, progress=False, **options)
    with pytest.raises(FileNotFoundError, match="model"):
        predict(tmp_path / "model", folder, out)
    for model in (keras.Sequential(), None):
        with pytest.raises(ValueError, match=r"model must be the path of a model \(got .*tfpipe\.export\(model, output, "):
            predict(model, folder, out)
    assert left_behind(tmp_path) == []


def test_a_list_of_paths_is_not_overwritten_even_if_it_comes_out_of_an_iterator(folder, tmp_path):
    table = write(tmp_path / "list.csv", f"path\n{folder / next(iter(kinds()))}\n".encode())
    before = table.read_bytes()
    for inputs in (table, [table], iter([table])):
        with pytest.raises(ValueError, match="output must be another file than the inputs, of which this is one"):
            predict(Untouched(), inputs, table)
    assert table.read_bytes() == before


def test_a_format_that_is_given_decides_whatever_the_output_is_called(folder, tmp_path):
    predict(Averages(), folder / "2.jpg", tmp_path / "out.json", format="jsonl", progress=False)
    assert json.loads((tmp_path / "out.json").read_bytes())["id"] == "2"


@pytest.mark.parametrize("several", [False, True])
def test_an_output_never_replaces_a_list_of_paths(folder, tmp_path, several):
    table = write(tmp_path / "list.csv", f"path\n{folder}/2.jpg\n".encode())
    os.symlink("list.csv", tmp_path / "link.csv")
    for output in (table, tmp_path / "link.csv"):
        with pytest.raises(ValueError, match="another file than the inputs"):
            predict(Untouched(), [folder / "10.jpg", table] if several else str(table), output, progress=False)
    assert table.read_bytes() == f"path\n{folder}/2.jpg\n".encode()


def test_two_outputs_have_their_own_lists_of_bad_images(folder, tmp_path):
    write(folder / "bad.jpg", b"")
    paths = {predict(Averages(), folder, tmp_path / f"o.{end}", progress=False).rejected_path for end in ("csv", "jsonl")}
    assert paths == {tmp_path / "o.rejected.jsonl", tmp_path / "o.jsonl.rejected.jsonl"}
    assert predict(Averages(), folder, tmp_path / "p.jsonl", progress=False).rejected_path == tmp_path / "p.rejected.jsonl"


@pytest.mark.parametrize("name", ["2.jpg", "link.csv", "sub/../2.jpg"])
def test_an_output_never_replaces_an_image(folder, tmp_path, name):
    (folder / "sub").mkdir()
    os.symlink("2.jpg", folder / "link.csv")
    with pytest.raises(ValueError, match="another file than the inputs"):
        predict(Untouched(), [folder / "2.jpg", folder / "10.jpg"], folder / name, progress=False)
    assert (folder / "2.jpg").read_bytes() == make_image(2)
    assert (folder / "link.csv").is_symlink()


def test_a_folder_that_cannot_be_written_to_is_reported_with_the_outputs_name(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"cannot be written to: .*/out.csv'$"):
        predict(Untouched(), folder, tmp_path / "out.csv", progress=False)


def test_an_output_never_replaces_the_model(folder, tmp_path, model_path):
    run = tmp_path / "run"
    write(run / "model.keras", model_path.read_bytes())
    os.symlink("run/model.keras", tmp_path / "link.keras")
    cases = [(run / "model.keras", run / "model.keras"), (tmp_path / "link.keras", run / "model.keras")]
    cases += [(run, run / "model.keras"), (run, run / "predictions.csv")]
    write(tmp_path / "export" / "preprocessing.json", b"{}")
    cases += [(tmp_path / "export" / "model.tflite", tmp_path / "export" / "labels.txt")]
    for model, output in cases:
        with pytest.raises(ValueError, match=r"output must be (another file than the model|outside of the export's folder)"):
            predict(model, folder, output, progress=False)
    assert (run / "model.keras").read_bytes() == model_path.read_bytes()
    assert left_behind(run) == ["model.keras"]


def test_an_output_is_not_written_among_shards(folder, tmp_path):
    tfpipe.build_tfrecords({"test1": folder}, tmp_path / "shards", layout="flat", progress=False)
    before = left_behind(tmp_path / "shards")
    for name in ("manifest.json", "new.csv"):
        with pytest.raises(ValueError, match="outside of the data set's folder"):
            predict(Untouched(), folder, tmp_path / "shards" / name, progress=False)
    assert left_behind(tmp_path / "shards") == before


def test_probabilities_that_are_not_numbers_are_an_error(folder, tmp_path):
    class Broken(Averages):
        def predict(self, images):
            return super().predict(images) * np.nan

    with pytest.raises(DataError, match="not numbers"):
        predict(Broken(), folder, tmp_path / "out.csv", progress=False)


def test_a_limit_of_pixels(folder, tmp_path):
    with pytest.raises(DataError, match="the limit is 800"):
        predict(Untouched(), folder, tmp_path / "out.csv", max_pixels=800, on_error="fail", progress=False)


# The command


def test_the_command(run_tool, folder, tmp_path, model_path):
    out, other, bad = tmp_path / "table.csv", write(tmp_path / "100.jpg", make_image(100)), write(tmp_path / "bad.jpg", b"")
    flags = [f"--model={model_path}", f"--input={folder}", f"--output={out}", "--columns=table", "--on_error=report"]
    done = run_tool("predict", *flags, other, bad)
    assert {row[0] for row in read(out)[1:]} == {*kinds(), "100.jpg", "bad.jpg"}
    counted, listed = done.stdout.splitlines()
    assert counted.startswith(f"{out}: {len(kinds()) + 2} rows, predicted: ")
    assert listed == f"{tmp_path / 'table.rejected.jsonl'}: 1 bad image, 1 row without a value"
    assert sorted(left_behind(tmp_path)) == ["100.jpg", "bad.jpg", "table.csv", "table.rejected.jsonl"]


def test_rows_on_standard_output_are_those_of_a_file(run_tool, folder, tmp_path, model_path):
    bad, out = write(tmp_path / "bad.jpg", b""), tmp_path / "out.csv"
    predict(str(model_path), [folder, bad], out, progress=False)
    done = run_tool("predict", f"--model={model_path}", f"--input={folder}", bad, "--output=-")
    assert done.stdout == out.read_text("utf-8")
    assert f"-: {len(kinds()) + 1} rows, predicted: " in done.stderr
    assert "mean score 0." in done.stderr
    assert "1 bad image:\n  " in done.stderr


def test_on_a_terminal_there_is_a_table(folder, tmp_path, model_path):
    given = [
        write(tmp_path / "10.jpg", make_image(1)),
        write(tmp_path / "小猫.jpg", make_image(2)),
        write(tmp_path / "bad.jpg", b""),
    ]
    parent, child = pty.openpty()
    command = [sys.executable, str(CHECKOUT / "tools/predict.py"), f"--model={model_path}", "--output=-", *map(str, given)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=child, stderr=subprocess.PIPE, text=True)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # as Linux reports the end of a terminal
        while chunk := os.read(parent, 4096):
            shown += chunk
    os.close(parent)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    header, *rows = shown.decode().splitlines()
    assert header.split()[:3] == ["id", "class_1", "score_1"]
    assert header.split()[-1] == "reason"
    assert [row.split()[0] for row in rows] == ["10", "bad", "小猫"]
    assert "no bytes" in rows[1]
    before = [re.match(r".*?(?= 0\.\d{4} )", row) for row in (rows[0], rows[2])]
    assert len({display_width(found[0]) for found in before}) == 1  # scores below one another


@pytest.mark.parametrize(("count", "status"), [(0, 1), (1, 0)])
def test_the_command_fails_where_every_image_is_bad(tmp_path, count, status):
    model, inputs = write(tmp_path / "model.tflite", b"not asked"), write(tmp_path / "in/a.jpg", b"").parent
    code = f"""
import sys, types
counts, scores = {{"cat": 0, "dog": {count}}}, {{"dog": 0.75}}
found = dict(counts=counts, mean_scores=scores, rejected={{"a.jpg": ""}}, rejected_path="bad")
summary = types.SimpleNamespace(num_rows=2, has_numbers=False, **found)
sys.modules["tfpipe.prediction.prediction"] = types.SimpleNamespace(predict=lambda *_, **__: summary)  # without TensorFlow
from tools.predict import command
command()"""
    command = [sys.executable, "-c", code, f"--model={model}", f"--input={inputs}", "--output=out.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == status, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["out.csv", "bad"]
    assert ("dog 1 (mean score 0.750)" in done.stdout) == bool(count)


def test_the_commands_help_needs_no_model(run_tool):
    done = run_tool("predict", "--help")
    assert "--positive_class" in done.stdout
    done = run_tool("predict", "--model=a", check=False)
    assert done.returncode == 2
    assert "--model, --input and --output are needed" in done.stderr
