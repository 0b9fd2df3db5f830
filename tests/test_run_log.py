"""The log of a run: one that was killed anywhere and goes on leaves the files of one that was not."""

import csv
import json
import math
import os
import subprocess
import sys
import time

import pytest
from conftest import CHECKOUT

from tfpipe.common.errors import DataError
from tfpipe.training.logs.profiling import Watch
from tfpipe.training.logs.run_log import COLUMNS, RunLog, read_history

NAN = math.nan


def happen(run_log, index):
    """Event number `index` of a made-up run: two steps and an epoch, over and over, in two phases."""
    phase, epoch = ("head", "fine, tuning")[index // 9], index % 9 // 3 + 1
    if index % 3 < 2:
        run_log.scalars(index, epoch, phase, loss=1.0 / (index + 1), accuracy=0.1 * index, bad=NAN)
    else:
        row = {"phase": phase, "epoch": epoch, "train_loss": NAN if index == 5 else 0.5, "val_accuracy": index / 18}
        run_log.epoch({**row, "train_seconds": time.perf_counter()})


def contents(folder):
    """Everything but durations."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    with open(folder / "history.csv", encoding="utf-8", newline="") as file:
        history = list(csv.reader(file))
    timed = [column for column, name in enumerate(history[0]) if name.endswith("_seconds")]
    return (
        [{name: value for name, value in event.items() if not name.endswith("_seconds")} for event in log],
        [[cell for column, cell in enumerate(row) if column not in timed] for row in history],
    )


@pytest.fixture
def whole(tmp_path):
    """A run of 18 events that nothing disturbed."""
    with RunLog(tmp_path / "whole", tensorboard=False) as run_log:
        for index in range(18):
            happen(run_log, index)
    return tmp_path / "whole"


@pytest.fixture
def no_sync(monkeypatch):
    """Power cuts are not what a test of many openings is about."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_every_line_is_json_and_every_row_is_an_epoch(whole):
    log, history = contents(whole)
    assert [event["event"] for event in log] == ["step", "step", "epoch"] * 6
    assert log[3] == {
        "event": "step",
        "phase": "head",
        "epoch": 2,
        "step": 3,
        "loss": 0.25,
        "accuracy": 0.30000000000000004,
    } | {"bad": None}
    assert tuple((whole / "history.csv").read_text("utf-8").splitlines()[0].split(",")) == COLUMNS
    assert history[6][:2] == ["fine, tuning", "3"]
    assert len(history) == 7


def test_the_history_comes_back_as_numbers(whole):
    rows = read_history(whole)
    assert [row["phase"] for row in rows] == ["head"] * 3 + ["fine, tuning"] * 3
    assert [row["epoch"] for row in rows] == [1, 2, 3] * 2
    assert [row["val_accuracy"] for row in rows] == [index / 18 for index in range(2, 18, 3)]
    assert math.isnan(rows[1]["train_loss"])
    assert math.isnan(rows[0]["val_loss"])


def test_a_line_is_on_the_disk_when_it_was_written(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as run_log:
        for index in range(6):
            happen(run_log, index)
            assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == index + 1
        assert len(read_history(tmp_path)) == 2
        assert run_log.position() == 6


@pytest.mark.parametrize("position", range(19))
@pytest.mark.parametrize("more", [0, 4])
def test_a_run_goes_on_from_every_checkpoint(tmp_path, whole, no_sync, position, more):
    with RunLog(tmp_path / "run", tensorboard=False) as run_log:
        for index in range(position):
            happen(run_log, index)
        saved = run_log.position()
        for index in range(position, min(position + more, 18)):  # happened after the checkpoint, and was lost
            happen(run_log, index)
    with RunLog(tmp_path / "run", tensorboard=False, position=saved) as run_log:
        assert run_log.position() == saved
        for index in range(position, 18):
            happen(run_log, index)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_run_that_goes_on_from_elsewhere_leaves_other_files(tmp_path, whole):
    with RunLog(tmp_path / "run", tensorboard=False) as run_log:
        for index in range(9):
            happen(run_log, index)
    with RunLog(tmp_path / "run", tensorboard=False, position=8) as run_log:
        for index in range(9, 18):
            happen(run_log, index)
    assert contents(tmp_path / "run") != contents(whole)


def test_files_cut_at_any_byte_are_mended(whole, no_sync):
    log, history = (whole / "log.jsonl").read_bytes(), (whole / "history.csv").read_bytes()
    expected = contents(whole)
    for cut in range(0, len(log) + 1, 23):
        num_whole = log[:cut].count(b"\n")
        (whole / "log.jsonl").write_bytes(log[:cut])
        (whole / "history.csv").write_bytes(history[: cut % len(history)])
        with RunLog(whole, tensorboard=False, position=num_whole) as run_log:
            assert (whole / "log.jsonl").read_bytes() == log[: log[:cut].rfind(b"\n") + 1]
            assert run_log.position() == num_whole
            for index in range(num_whole, 18):
                happen(run_log, index)
        assert contents(whole) == expected


def test_a_torn_last_line_goes_wherever_it_was_torn(whole, no_sync):
    log = (whole / "log.jsonl").read_bytes()
    for end in range(log[:-1].rfind(b"\n") + 1, len(log)):
        (whole / "log.jsonl").write_bytes(log[:end])
        RunLog(whole, tensorboard=False, position=17).close()
        assert [event["event"] for event in contents(whole)[0]] == (["step", "step", "epoch"] * 6)[:17]
        assert len(read_history(whole)) == 5


def test_a_new_run_begins_with_empty_files(whole):
    RunLog(whole, tensorboard=False).close()
    assert contents(whole) == ([], [[name for name in COLUMNS if not name.endswith("_seconds")]])


def test_lines_lost_before_the_checkpoint_are_named_and_the_run_goes_on(whole, caplog):
    with RunLog(whole, tensorboard=False, position=20) as run_log:
        assert run_log.position() == 18
    assert "20 lines before the checkpoint, left: 18" in caplog.text


@pytest.mark.parametrize("damage", [b"\0", b"[", b"{}\n"])
def test_a_damaged_line_is_named(whole, damage):
    data = (whole / "log.jsonl").read_bytes()
    start = data.index(b"\n") + 1
    (whole / "log.jsonl").write_bytes(data[:start] + damage + data[start:])
    with pytest.raises(DataError, match=r"line 2 is damaged") as error:
        RunLog(whole, tensorboard=False, position=18)
    assert error.value.offset == start
    assert (whole / "log.jsonl").read_bytes() == data[:start] + damage + data[start:]


def test_closing_twice_is_closing_once(tmp_path):
    run_log = RunLog(tmp_path, tensorboard=False)
    run_log.close()
    run_log.close()


def test_kill_9_leaves_whole_lines(tmp_path):
    code = (
        "import pathlib, sys\nfrom tfpipe.training.logs.run_log import RunLog\n"
        "run_log = RunLog(pathlib.Path(sys.argv[1]), tensorboard=False)\n"
        "for step in range(10**9):\n    run_log.scalars(step, 1, 'head', loss=1 / (step + 1))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=CHECKOUT)
    log = tmp_path / "log.jsonl"
    limit = time.monotonic() + 30
    while not (log.exists() and log.stat().st_size > 50_000) and time.monotonic() < limit:
        time.sleep(0.01)
    process.kill()
    process.wait()
    num_whole = log.read_bytes().count(b"\n")
    assert num_whole > 100
    with RunLog(tmp_path, tensorboard=False, position=num_whole) as run_log:
        assert run_log.position() == num_whole


# TensorBoard


def tags(folder):
    """{tag: [(step, value)]} of all event files in a folder, and whether there is a graph."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    import tensorflow as tf

    scalars = {
        tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }
    return scalars, found.Tags()["graph"]


@pytest.mark.tf
def test_tensorboard_reads_scalars_and_the_graph(tmp_path):
    import tensorflow as tf

    double = tf.function(lambda x: x * 2, autograph=False)
    with RunLog(tmp_path) as run_log:
        run_log.graph(double, tf.zeros([3]))
        for index in range(3):
            happen(run_log, index)
        assert tags(tmp_path / "tensorboard")[0]["epoch/val_accuracy"]  # can be looked at while it runs
        for index in range(3, 12):
            happen(run_log, index)
    scalars, graph = tags(tmp_path / "tensorboard")
    assert graph
    assert scalars["head/loss"] == [(step, pytest.approx(1 / (step + 1))) for step in (0, 1, 3, 4, 6, 7)]
    assert [step for step, _ in scalars["fine, tuning/accuracy"]] == [9, 10]
    assert scalars["epoch/val_accuracy"] == [(n, pytest.approx((3 * n - 1) / 18)) for n in (1, 2, 3, 4)]
    assert "epoch/phase" not in scalars


@pytest.mark.tf
def test_a_few_steps_are_traced_and_measured(tmp_path):
    import tensorflow as tf

    taken, watches = [], []
    with RunLog(tmp_path, tensorboard=False, profile_steps=2) as run_log:
        for _ in range(7):
            start = time.perf_counter()
            with run_log.step() as watch:
                time.sleep(0.005)
                watch("input")
                tf.linalg.matmul(tf.ones([50, 50]), tf.ones([50, 50]))
                time.sleep(0.02)
                watch("device")
                time.sleep(0.001)
            watches.append(watch)
            taken.append(1000 * (time.perf_counter() - start))
    text = (tmp_path / "profile.txt").read_text("utf-8")
    assert "measured steps: 2, after 3" in text
    # Milliseconds, rounded; on a busy machine a step may take any time, but not more than from
    # before it to behind it.
    assert 26 <= float(text.split("median ")[1].split(",")[0]) <= max(taken[3:5]) + 1
    shares = [float(line.split(": ")[1].split(" %")[0]) for line in text.splitlines() if "% of the time" in line]
    assert sum(shares) == pytest.approx(100, abs=0.16)
    seconds = [watch.seconds for watch in watches[3:5]]
    assert all(found["input"] >= 0.005 and found["device"] >= 0.02 and found["python"] >= 0.001 for found in seconds)
    for share, part in zip(shares, ("input", "device", "python"), strict=True):
        total = sum(sum(found.values()) for found in seconds)
        assert share == pytest.approx(100 * sum(found[part] for found in seconds) / total, abs=0.06)
    assert "peak memory of the process" in text
    assert list(tmp_path.glob("tensorboard/plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("is_computing", [True, False])
def test_reading_ahead_is_waiting_only_where_no_device_is_at_work(is_computing):
    watch = Watch()
    watch("device")
    time.sleep(0.01)
    watch("ahead")
    if is_computing:
        time.sleep(0.005)
    watch("device")
    hidden, waiting = (watch.seconds[part] >= 0.01 for part in ("device", "input"))
    assert (hidden, waiting) == ((True, False) if is_computing else (False, True))


@pytest.mark.tf
def test_a_trace_ends_with_the_run(tmp_path):
    for name in ("first", "second"):  # a second trace cannot begin while the first is under way
        with RunLog(tmp_path / name, tensorboard=False, profile_steps=9) as run_log:
            for _ in range(5):
                with run_log.step():
                    pass
            with pytest.raises(KeyboardInterrupt), run_log.step():
                raise KeyboardInterrupt
        assert "measured steps: 2" in (tmp_path / name / "profile.txt").read_text("utf-8")


@pytest.mark.tf
def test_steps_are_passed_over_and_counted_where_a_call_has_many(tmp_path):
    with RunLog(tmp_path, tensorboard=False, profile_steps=4) as run_log:
        for num_steps in (1, 26, 27, 27):
            with run_log.step() as watch:
                watch("device", num_steps)
    assert "measured steps: 27 in 1 call, after 27 that were" in (tmp_path / "profile.txt").read_text("utf-8")


def test_without_profile_steps_nothing_is_measured(tmp_path):
    with RunLog(tmp_path, tensorboard=False) as run_log:
        for _ in range(9):
            with run_log.step():
                pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "log.jsonl"]


def test_peak_memory_is_this_process_alone_in_bytes():
    code = (
        "from tfpipe.training.logs.profiling import peak_memory_bytes as peak\n"
        "before = peak()\nblock = bytearray(b'x') * 80_000_000\ndel block\nprint(before, peak())"
    )
    block = bytearray(b"x") * 200_000_000  # the parent's, whom a new process shares its memory with for a moment
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert len(block) > before > 4_000_000
    assert 75_000_000 < after - before < 90_000_000
