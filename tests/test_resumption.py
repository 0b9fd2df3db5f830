"""A prediction that was stopped goes on where it was: the output is the same, byte by byte, and nothing is asked twice."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_image, write
from prediction_fixtures import Mixing, bad_files, left_behind, undecodable

from tfpipe.common.errors import DataError
from tfpipe.prediction import prediction, resumption
from tfpipe.prediction.prediction import predict
from tfpipe.prediction.tables import rejected_path

pytestmark = pytest.mark.tf

# 3 + 7 images, those that the header gives away and those that only the decoder refuses: batches
# end anywhere among them.
OPTIONS = {"batch_size": 3, "on_error": "report", "progress": False}


class Stopping(Mixing):
    """Is stopped when it is asked for batch `last`, 0-based."""

    def __init__(self, last, error=KeyboardInterrupt):
        super().__init__()
        self.last, self.error = last, error

    def predict(self, images):
        if len(self.batches) == self.last:
            raise self.error
        return super().predict(images)


Stopping.__qualname__ = Mixing.__qualname__  # one model for what is done and what is not


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("resumption") / "input"
    for number in range(10):
        write(root / f"{number}.jpg", undecodable() if number in {0, 4, 9} else make_image(number))
    bad_files(root / "b")
    return root


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """The files of predictions that nobody stopped, by the output's name."""
    root = tmp_path_factory.mktemp("expected")
    return {name: run(Mixing(), folder, root / name) for name in ("out.csv", "out.jsonl")}


def run(model, inputs, output, **options):
    predict(model, inputs, output, **{**OPTIONS, **options})
    assert not [name for name in left_behind(output.parent) if name.startswith(".")]
    return output.read_bytes(), rejected_path(output).read_bytes()


def stop(folder, output, last=2, **options):
    """Does `last` batches of an output, and returns what lies there."""
    with pytest.raises(KeyboardInterrupt):
        predict(Stopping(last), folder, output, **{**OPTIONS, **options})
    return output.with_name(f".{output.name}.partial")


def test_these_images_are_of_all_kinds(expected):
    rows, rejected = (content.splitlines() for content in expected["out.csv"])
    assert len(rows) == 1 + 10 + 7
    assert len(rejected) == 3 + 7


@pytest.mark.parametrize(("name", "last"), [("out.csv", 0), ("out.csv", 1), ("out.csv", 2), ("out.jsonl", 2)])
def test_stopped_at_any_batch_it_goes_on(folder, tmp_path, expected, name, last):
    write(tmp_path / name, b"before")
    partial = stop(folder, tmp_path / name, last)
    assert (tmp_path / name).read_bytes() == b"before"
    assert left_behind(tmp_path) == ([partial.name] if last else []) + [name]  # a start alone is not worth a file
    model = Mixing()
    assert run(model, folder, tmp_path / name) == expected[name]
    assert len(model.batches) == 3 - last
    assert sorted(left_behind(tmp_path)) == sorted([name, rejected_path(tmp_path / name).name])


def test_what_a_kill_cut_is_done_again(folder, tmp_path, expected):
    whole = stop(folder, tmp_path / "out.csv", 2).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    spoilt = [whole[: ends[1]] + bytes(len(whole) - ends[1]), whole + b"\0" * 100]
    cuts = [whole[:length] for length in (0, ends[0] - 1, ends[0], ends[1] + 7, ends[2] - 1)]
    batches = []
    for content in cuts + spoilt:
        write(tmp_path / ".out.csv.partial", content)
        model = Mixing()
        assert run(model, folder, tmp_path / "out.csv") == expected["out.csv"]
        batches.append(len(model.batches))
    assert batches == [3, 3, 3, 2, 2, 2, 1]


def test_what_is_damaged_is_done_again(folder, tmp_path, expected):
    lines = stop(folder, tmp_path / "out.csv", 2).read_bytes().splitlines(keepends=True)
    digit = lines[1].index(b"0.") + 3
    flipped = lines[1][:digit] + bytes([lines[1][digit] ^ 1]) + lines[1][digit + 1 :]
    spoilt = [lines[:number] + lines[number + 1 :] for number in range(len(lines))]
    spoilt += [[lines[0], flipped, lines[2]], [lines[0], lines[2], lines[1]], [lines[0], lines[1], *lines[1:]]]
    spoilt += [[b'{"a": 1}\n'], [*lines[:2], b'{"a": 1}\n'], [*lines[:2], b'{"a": 1}\n', lines[2]]]
    batches = []
    for content in spoilt:
        write(tmp_path / ".out.csv.partial", b"".join(content))
        model = Mixing()
        assert run(model, folder, tmp_path / "out.csv") == expected["out.csv"]
        batches.append(len(model.batches))
    assert batches == [3, 3, 2, 3, 3, 2, 3, 2, 2]


def test_an_output_with_rows_missing_gets_no_name(folder, tmp_path, monkeypatch):
    parts = resumption.Unfinished.parts
    monkeypatch.setattr(resumption.Unfinished, "parts", lambda work: list(parts(work))[1:])
    with pytest.raises(DataError, match=r"rows, expected 17"):
        predict(Mixing(), folder, tmp_path / "out.csv", **OPTIONS)
    assert left_behind(tmp_path) == []


def test_other_work_begins_anew_and_reports_it(tmp_path, caplog):
    inputs, output = tmp_path / "input", tmp_path / "out.csv"
    for number in range(5):
        write(inputs / f"{number}.jpg", make_image(number))
    other = Mixing()
    other.sha256 = "1" * 64

    def begins_anew(word, model, **options):
        stop(inputs, output, 1)
        if word == "inputs":
            os.utime(inputs / "0.jpg", ns=(0, 0))
        caplog.clear()
        with caplog.at_level("INFO", "tfpipe"):
            predict(model, inputs, output, **{**OPTIONS, **options})
        assert len(model.batches) == 2
        assert f"starts from scratch: the unfinished output is of other {word}" in caplog.text

    begins_anew("model", other)
    begins_anew("options", Mixing(), top_k=2)
    begins_anew("inputs", Mixing())
    again = output.read_bytes()
    predict(Mixing(), inputs, output, **OPTIONS)
    assert again == output.read_bytes()


def test_going_on_is_reported(folder, tmp_path, caplog):
    stop(folder, tmp_path / "out.csv", 1)
    with caplog.at_level("INFO", "tfpipe"):
        run(Mixing(), folder, tmp_path / "out.csv")
    assert "resumes after 4 of 17 images" in caplog.text


def test_stopped_while_what_is_done_is_read_nothing_is_lost(folder, tmp_path, expected, monkeypatch):
    done = stop(folder, tmp_path / "out.csv", 2).read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resumption, "_chained", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(Mixing(), folder, tmp_path / "out.csv", **OPTIONS)
    assert (tmp_path / ".out.csv.partial").read_bytes() == done
    assert run(Mixing(), folder, tmp_path / "out.csv") == expected["out.csv"]


def test_bad_data_leaves_nothing_to_go_on_from(tmp_path):
    for number in range(5):
        write(tmp_path / "input" / f"{number}.png", undecodable() if number == 4 else make_image(number))
    with pytest.raises(DataError, match=r"4\.png: cannot be decoded"):
        predict(Mixing(), tmp_path / "input", tmp_path / "out.csv", **{**OPTIONS, "on_error": "fail"})
    assert left_behind(tmp_path) == []


def test_two_processes_do_not_write_one_output(folder, tmp_path):
    output = tmp_path / "out.csv"
    with resumption.unfinished(output, {}):
        with pytest.raises(BlockingIOError, match=r"out\.csv: another process is writing it"):
            predict(Mixing(), folder, output, **OPTIONS)
        predict(Mixing(), folder, tmp_path / "beside.csv", **OPTIONS)  # another output in the same folder
        assert ".out.csv.partial" in left_behind(tmp_path)
    assert left_behind(tmp_path) == ["beside.csv", "beside.rejected.jsonl"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stopped_while_the_output_is_put_in_place_it_is_put_there(folder, tmp_path, expected, monkeypatch, error):
    def failing(*_):
        raise error

    write(tmp_path / ".out.csv.4711.tmp", b"of a process that was killed")
    write(tmp_path / ".out.rejected.jsonl.4711.tmp", b"the same")
    write(tmp_path / ".out.csv.mine.tmp", b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(prediction.tables, "write_rejected", failing)
        with pytest.raises(type(error) if isinstance(error, OSError) else error):
            predict(Mixing(), folder, tmp_path / "out.csv", **OPTIONS)
    assert left_behind(tmp_path) == [".out.csv.mine.tmp", ".out.csv.partial"]
    (tmp_path / ".out.csv.mine.tmp").unlink()
    model = Mixing()
    assert run(model, folder, tmp_path / "out.csv") == expected["out.csv"]
    assert not model.batches


def test_a_full_disk_is_reported_and_a_part_is_not_an_output(folder, tmp_path, expected):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = stop(folder, tmp_path / "out.csv", 1).stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (first + 100, limits[1]))
        with pytest.raises(OSError, match=r"File too large: '.*/out\.csv'$"):
            predict(Mixing(), folder, tmp_path / "out.csv", **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_behind(tmp_path) == [".out.csv.partial"]
    model = Mixing()
    assert run(model, folder, tmp_path / "out.csv") == expected["out.csv"]
    assert len(model.batches) == 2


_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from prediction_fixtures import Mixing
from tfpipe.prediction.prediction import predict
class Killed(Mixing):
    def predict(self, images):
        if len(self.batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(images)
Killed.__qualname__ = "Mixing"
predict(Killed(), sys.argv[2], sys.argv[3], batch_size=3, on_error="report", progress=False)
"""


def test_killed_it_goes_on(folder, tmp_path, expected):
    command = [sys.executable, "-c", _KILLED, str(Path(__file__).parent), str(folder), str(tmp_path / "out.csv")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert left_behind(tmp_path) == [".out.csv.partial"]
    model = Mixing()
    assert run(model, folder, tmp_path / "out.csv") == expected["out.csv"]
    assert len(model.batches) <= 2  # the second batch may not have been written down when the third was asked for
