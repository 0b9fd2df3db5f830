"""The table of predictions: what is written is what is read, and a damaged file is refused with its line."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipe.common.errors import DataError
from tfpipe.common.files import sha256_of
from tfpipe.common.text import hash_names
from tfpipe.models import predictions
from tfpipe.models.predictions import Predictions

pytestmark = pytest.mark.tf

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a\nb", "a\rb", "a\r\nb", '"', ",", "小 猫"]
)


def save(path, table):
    path.write_bytes(b"".join(predictions.chunks(table)))
    return path


def table_of(keys, filenames, class_names, seed):
    random = np.random.default_rng(seed)
    values = np.float32(random.dirichlet(np.full(len(class_names), 0.05), len(keys)))
    labels = random.integers(-1, len(class_names), len(keys))
    return Predictions(keys, filenames, labels, values, class_names)


def assert_equal(a, b):
    for field in dataclasses.fields(Predictions):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if field.name == "probabilities":  # decimals, and binary fractions: the same float32
            one, other = np.float32(one), np.float32(other)
        assert np.array_equal(one, other), field.name
        assert type(one) is type(other)


@given(
    keys=st.lists(TEXT, unique=True, max_size=6),
    class_names=st.lists(TEXT.filter(bool), unique=True, min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, keys, class_names, seed, data):
    filenames = data.draw(st.lists(TEXT, min_size=len(keys), max_size=len(keys)))
    table = table_of(keys, filenames, class_names, seed)
    path = save(tmp_path_factory.mktemp("round_trip") / "predictions.csv", table)
    assert_equal(predictions.read(path), table)


def test_nine_digits_name_every_float32():
    values = np.random.default_rng(0).integers(0, 0x3F800000, 100_000, dtype=np.uint32).view(np.float32)
    assert np.array_equal(np.float32([float(f"{value:.9g}") for value in values.tolist()]), values)
    assert not np.array_equal(np.float32([float(f"{value:.7g}") for value in values.tolist()]), values)


def test_the_file_is_what_people_expect(tmp_path):
    table = Predictions(
        ["a/1", "a,2"], ["1.jpg", "2.jpg"], np.array([1, -1]), np.array([[0.25, 0.75], [1, 0]]), ["小 猫", 'x"y']
    )
    path = save(tmp_path / "predictions.csv", table)
    assert path.read_text("utf-8").splitlines() == [
        'key,filename,label,predicted,probability_小 猫,"probability_x""y"',
        'a/1,1.jpg,"x""y","x""y",0.25,0.75',
        '"a,2",2.jpg,,小 猫,1,0',
    ]


def test_long_tables_are_written_in_pieces(tmp_path):
    table = table_of([str(i) for i in range(3000)], [""] * 3000, ["a", "b"], 0)
    assert len(list(predictions.chunks(table))) > 3
    assert_equal(predictions.read(save(tmp_path / "predictions.csv", table)), table)


HEADER = "key,filename,label,predicted,probability_a,probability_b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 0 is not one of a table of predictions: the columns must be key,filename,label,predicted"),
        ("key,filename,label,predicted\n", "line 1 .* the columns must be"),
        ("id,filename,label,predicted,probability_a\n", "line 1 .* the columns must be"),
        ("key,filename,label,predicted,probability_a,probability_a\n", "two columns are of the same class"),
        (HEADER + "1,1,a,a,1\n", "line 2 .* 5 fields, expected 6"),
        (HEADER + "1,1,a,a,1,0\n1,1,a,a,1,0\n", "line 3 .* '1' is there twice"),
        (HEADER + "1,1,c,a,1,0\n", "line 2 .* no class is called 'c'"),
        (HEADER + "1,1,a,b,1,0\n", "line 2 .* 'b' is predicted, the largest probability is that of 'a'"),
        (HEADER + "1,1,a,b,0.5,0.5\n", "line 2 .* 'b' is predicted"),
        (HEADER + "1,1,a,a,1,x\n", "line 2 .* could not convert"),
        (HEADER + "1,1,a,a,nan,0\n", "line 2 .* not in 0..1"),
        (HEADER + "1,1,a,a,0.9,0\n", "line 2 .* with the sum 1"),
        (HEADER + "1,1,a,a,1.5,-0.5\n", "line 2 .* not in 0..1"),
        (HEADER + "1,1,a,a,1,0\n2,1,a,a,1,0", "its last line has no end: the file is truncated"),
        (HEADER + '1,1,a,a,1,"0\n', "line 2 .* unexpected end of data"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        predictions.read(path)
    assert caught.value.path == str(path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(HEADER.encode() + b"\xff,1,a,a,1,0\n")
    with pytest.raises(DataError, match="utf-8"):
        predictions.read(path)


def test_a_missing_table_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        predictions.read(tmp_path / "predictions.csv")
    with pytest.raises(FileNotFoundError, match="not an evaluation, or one that did not finish"):
        predictions.read(tmp_path)


def test_a_folders_table_must_be_that_of_its_receipt(tmp_path):
    table = table_of(["1", "2", "3"], ["", "", ""], ["a", "b"], 0)
    path = save(tmp_path / "predictions.csv", table)
    receipt = {"records_seen": 3, "ids_sha256": hash_names(table.keys)}
    receipt["class_names_sha256"] = hash_names(table.class_names)
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    assert_equal(predictions.read(tmp_path), table)
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[:-1], [lines[0], *lines[:0:-1]]):
        path.write_text("".join(changed))
        predictions.read(path)  # nothing tells that rows are gone, but for the receipt
        with pytest.raises(DataError, match=r"rows with other ids than the 3 of receipt\.json"):
            predictions.read(tmp_path)
    (tmp_path / "receipt.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a receipt\.json"):
        predictions.read(tmp_path)


def test_a_folders_table_must_be_that_of_its_metrics_and_classes(tmp_path):
    table = table_of(["1", "2", "3"], ["", "", ""], ["小 猫", "b"], 0)
    path = save(tmp_path / "predictions.csv", table)
    receipt = {"records_seen": 3, "ids_sha256": hash_names(table.keys)}
    (tmp_path / "receipt.json").write_text(json.dumps({**receipt, "class_names_sha256": hash_names(table.class_names)}))
    (tmp_path / "metrics.json").write_text(json.dumps({"predictions_sha256": sha256_of(path)}))
    assert_equal(predictions.read(tmp_path), table)
    save(path, table_of(["1", "2", "3"], ["", "", ""], ["小 猫", "b"], 1))
    with pytest.raises(DataError, match=r"not the table that metrics\.json was made from"):
        predictions.read(tmp_path)
    save(path, dataclasses.replace(table, class_names=["c", "b"]))
    with pytest.raises(DataError, match=r"other classes, .* than those of receipt\.json"):
        predictions.read(tmp_path)
    save(path, table)
    (tmp_path / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"not a metrics\.json"):
        predictions.read(tmp_path)


def test_probabilities_that_are_not_numbers_are_never_written():
    table = Predictions(["1", "two"], ["", ""], np.array([0, 0]), np.array([[0.5, 0.5], [np.nan, np.nan]]), ["a", "b"])
    with pytest.raises(DataError, match="probabilities of 'two' are not numbers"):
        predictions.rows(table)


def test_the_digest_of_ids_tells_apart_order_and_borders():
    digests = {hash_names(keys) for keys in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [], ["1:a", "b"])}
    assert len(digests) == 6
    assert hash_names(["ab", "小"]) == hash_names(iter(["ab", "小"]))
