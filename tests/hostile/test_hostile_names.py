"""Names that a spreadsheet would compute: a CSV has them escaped, its readers as they were, and others do not change."""

import csv
import json
import logging

import pytest
from conftest import make_image, write
from evaluation_fixtures import make_table
from prediction_fixtures import Averages

from tfpipe.common.tables import unescape_formula
from tfpipe.models import predictions
from tfpipe.prediction.prediction import predict

pytestmark = pytest.mark.tf

FORMULAS = ["=cmd|' calc'!A0", "-1", "+1", "@sum", "\tx", "'=y", "\x01"]
PLAIN = ["1-2", "a=b", "'z'", "小 猫"]
CLASS_NAMES = ("=1+1", "dog")


class Model(Averages):
    def __init__(self):
        super().__init__(CLASS_NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("names") / "photos"
    for index, name in enumerate(FORMULAS + PLAIN):
        write(root / f"{name}.jpg", make_image(index))
    return root


def cells(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_no_cell_of_a_table_is_a_formula_and_each_reads_back(photos, tmp_path):
    predict(Model(), photos, tmp_path / "safe.csv", progress=False)
    predict(Model(), photos, tmp_path / "raw.csv", csv_safe=False, progress=False)
    safe, raw = cells(tmp_path / "safe.csv"), cells(tmp_path / "raw.csv")
    assert not [cell for row in safe for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\x01")]
    assert [[unescape_formula(cell) for cell in row] for row in safe] == raw
    assert sorted(row[1] for row in raw[1:]) == sorted(f"{name}.jpg" for name in FORMULAS + PLAIN)
    plain = [(one, other) for one, other in zip(safe, raw, strict=True) if other[0] in PLAIN and other[3] == "dog"]
    assert all(one[:2] == other[:2] for one, other in plain)


def test_lines_of_json_have_the_names_as_they_are(photos, tmp_path):
    predict(Model(), photos, tmp_path / "out.jsonl", progress=False)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(FORMULAS + PLAIN)


def test_a_competition_is_warned_of_what_is_written_otherwise(photos, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tfpipe"):
        predict(Model(), photos, tmp_path / "raw.csv", columns="label", csv_safe=False, progress=False)
        assert not caplog.records
        predict(Model(), photos, tmp_path / "safe.csv", columns="label", progress=False)
    assert "--nocsv_safe" in caplog.text
    assert [[unescape_formula(cell) for cell in row] for row in cells(tmp_path / "safe.csv")] == cells(tmp_path / "raw.csv")


def test_what_was_stopped_goes_on(photos, tmp_path):
    class Stopping(Model):
        num_calls = 0

        def predict(self, images):
            self.num_calls += 1
            if self.num_calls == 3:
                raise KeyboardInterrupt
            return super().predict(images)

    predict(Model(), photos, tmp_path / "whole.csv", batch_size=2, progress=False)
    model = Stopping()
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, tmp_path / "out.csv", batch_size=2, progress=False)
    predict(model, photos, tmp_path / "out.csv", batch_size=2, progress=False)
    assert model.num_calls == 3 + -(-len(FORMULAS + PLAIN) // 2) - 2
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_the_table_of_an_evaluation_reads_back_and_others_keep_their_bytes(tmp_path):
    names = FORMULAS + PLAIN
    table = make_table([0, 1] * 5 + [0], [[0.25, 0.75]] * len(names), CLASS_NAMES)
    for keys in (names, [f"k{index}" for index in range(len(names))]):
        named = predictions.Predictions(keys, [f"{key}.jpg" for key in keys], table.labels, table.probabilities, CLASS_NAMES)
        path = write(tmp_path / "predictions.csv", b"".join(predictions.chunks(named)))
        again = predictions.read(path)
        assert (list(again.keys), list(again.filenames)) == (list(named.keys), list(named.filenames))
        assert again.labels.tolist() == named.labels.tolist()
        assert not [cell for row in cells(path) for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\x01")]
    assert path.read_bytes().splitlines()[2] == b"k1,k1.jpg,dog,dog,0.25,0.75"
    old = path.read_bytes().replace(b"k0,k0.jpg,'=1+1", b"=k0,=k0.jpg,=1+1")  # as tables were before
    assert predictions.read(write(path, old)).keys[0] == "=k0"
