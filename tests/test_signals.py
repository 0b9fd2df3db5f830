"""SIGTERM, as systemd, Docker, SLURM and Kubernetes send it: every command ends as after Ctrl-C, with what was done kept."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, signalled, write
from evaluation_fixtures import build_images, make_classifier
from transfer_fixtures import colours

import tfpipe
from tfpipe.models import classifiers
from tfpipe.training import checkpoints
from tfpipe.training.logs.run_log import read_history

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here to look at processes in"),
]

__all__ = ["colours"]  # a fixture

NUM_IMAGES = {"cat": 12, "dog": 12}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_images(root, {"test": NUM_IMAGES}, class_names=list(NUM_IMAGES))
    return root / "shards"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    make_classifier(list(NUM_IMAGES)).model.save(path)
    return path


def command(tool, *flags):
    return [sys.executable, str(CHECKOUT / "tools" / f"{tool}.py"), *map(str, flags)]


def run(words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def stop(words, is_at_work, *numbers, whole_group=False, environment=()):
    """Sends signals to a command once it is at work; returns its exit status and what it said on stderr."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen(words, env={**os.environ, **dict(environment)}, **pipes)
    try:
        deadline = time.monotonic() + 200
        while not is_at_work(process):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for number in numbers:
            (os.killpg if whole_group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in said
    return process.returncode, said


def has_loaded(name):
    """Whether a process has begun to import a library."""
    return lambda process: name in Path(f"/proc/{process.pid}/maps").read_text()


def children_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


# ---- train


def training_of(data, output, *flags):
    small = ["--backbone=lenet", "--mode=scratch", "--image_size=16", "--epochs=3", "--batch_size=4", "--patience=3"]
    return command("train", f"--data={data}", f"--output={output}", *small, "--precision=float32", "--notensorboard", *flags)


@pytest.fixture(scope="module")
def whole(colours, tmp_path_factory):
    """The folder of a training that nothing stopped, of the same options in this process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    options = {"backbone": "lenet", "mode": "scratch", "image_size": 16, "epochs": 3, "batch_size": 4, "patience": 3}
    tfpipe.train(colours, folder, **options, precision="float32", tensorboard=False, log=None)
    return folder


TWICE = [signal.SIGTERM, signal.SIGTERM]  # as `timeout` sends it


@pytest.mark.parametrize(
    ("numbers", "flags", "status"),
    [
        pytest.param(TWICE, [], 143, id="TERM"),
        pytest.param([signal.SIGKILL], ["--checkpoint_seconds=0"], -9, id="KILL", marks=pytest.mark.exhaustive(only=True)),
    ],
)
def test_training_goes_on_to_the_same_bits(colours, whole, tmp_path, numbers, flags, status):
    folder = tmp_path / "run"
    words = training_of(colours, folder)  # which saves at the end of an epoch, and when it is stopped
    found, said = signalled([*words, *flags], "tfpipe.training.loop", "Loop.train_step", 15, *numbers)
    assert found == status
    if status == 143:
        assert said.rstrip().endswith("stopped. What was done is saved: run the same command again to go on from there.")
    assert not (folder / "summary.json").exists()
    run(words)
    assert classifiers.load(folder).sha256 == classifiers.load(whole).sha256
    losses = [[(row["train_loss"], row["val_loss"]) for row in read_history(path)] for path in (folder, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("library", ["libtensorflow_framework", "_multiarray_umath"])
def test_a_signal_during_an_import_ends_the_command(colours, tmp_path, library):
    status, said = stop(training_of(colours, tmp_path / "run"), has_loaded(library), signal.SIGTERM)
    assert status == 143, said
    assert "stopped. What was done is saved" in said
    assert not (tmp_path / "run").exists()


SCRIPT = """
import os, signal
from tfpipe import train
from tfpipe.training import loop
real = loop.Loop.train_step
def step(self, *rest):
    if (self.position.epoch, self.position.step) == (0, 5):
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, *rest)
loop.Loop.train_step = step
train({data!r}, {output!r}, backbone="lenet", weights="none", image_size=(16, 16), epochs=2, batch_size=4, tensorboard=False)
"""


def test_a_script_that_trains_ends_when_the_step_is_saved(colours, tmp_path):
    code = SCRIPT.format(data=str(colours), output=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=300)
    assert done.returncode == -signal.SIGTERM  # as without tfpipe, and later by a step
    assert "Traceback" not in done.stderr
    _, facts = checkpoints.load(tmp_path / "run" / "state" / "scratch.npz")
    assert facts["progress"]["step"] == 6


# ---- evaluate, predict, export


def test_evaluation_leaves_earlier_results_as_they_were(shards, model, tmp_path):
    out = tmp_path / "eval"
    earlier = write(out / "predictions.csv", b"earlier")
    words = command("evaluate", f"--model={model}", f"--data={shards}", f"--output={out}", "--noreport", "--batch_size=1")
    status, said = signalled(words, "tfpipe.models.predictions", "rows", 5, signal.SIGTERM)
    assert status == 143
    assert said.rstrip().endswith("stopped. Nothing is kept of a pass that was stopped: run the same command again.")
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("predictions.csv", b"earlier")]
    tfpipe.evaluate(tfpipe.load(model), shards, "test", out, report=False)
    assert len(earlier.read_text("utf-8").splitlines()) == 25


def test_an_evaluation_that_is_stopped_in_its_report_is_complete_but_for_that(shards, model, tmp_path):
    out = tmp_path / "eval"
    words = command("evaluate", f"--model={model}", f"--data={shards}", f"--output={out}")
    status, said = signalled(words, "tfpipe.evaluation.html_report", "write_report", 1, signal.SIGTERM)
    assert status == 143
    assert said.rstrip().endswith("stopped. There is no report; table, metrics and receipt are complete.")
    assert {path.name for path in out.iterdir()} == {"predictions.csv", "metrics.json", "receipt.json", "suspects.csv"}


def test_prediction_goes_on_to_the_same_bytes(shards, model, tmp_path):
    outputs = tmp_path / "stopped.csv", tmp_path / "whole.csv"
    stopped = command("predict", f"--model={model}", f"--input={shards}", f"--output={outputs[0]}", "--batch_size=1")
    partial = tmp_path / ".stopped.csv.partial"
    status, said = signalled(stopped, "tfpipe.prediction.resumption", "Unfinished._write", 10, signal.SIGTERM)
    assert status == 143
    assert said.rstrip().endswith("stopped. The output is as it was before; give the same command again to resume.")
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    assert "resumes after" in run(stopped).stderr
    tfpipe.predict(model, shards, outputs[1], batch_size=1)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize("whole_group", [False, True])
def test_an_export_ends_with_the_process_that_compares(model, tmp_path, whole_group):
    found = []

    def is_comparing(process):
        found[:] = children_of(process)
        return bool(found)

    words = command("export_model", f"--model={model}", f"--output={tmp_path / 'export'}")
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    status, said = stop(words, is_comparing, signal.SIGTERM, whole_group=whole_group, environment=environment.items())
    assert status == 143
    assert said.rstrip().endswith("stopped. Nothing was written.")
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "tmp"] == []
    deadline = time.monotonic() + 20
    while Path(f"/proc/{found[0]}").exists():  # killed, and nobody waits for it
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- what they share


def test_a_signal_that_is_ignored_stays_ignored(shards, model, tmp_path):
    out = tmp_path / "eval"
    words = command("evaluate", f"--model={model}", f"--data={shards}", f"--output={out}", "--noreport", "--batch_size=1")
    numbers = signal.SIGTERM, signal.SIGHUP
    status, said = signalled(words, "tfpipe.models.predictions", "rows", 5, *numbers, ignoring=True)
    assert status == 0, said
    assert (out / "receipt.json").exists()


LOSING = """
import os, signal, time
from tfpipe import commands
commands._AGAIN_SECONDS = 0.5
class Loses:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
def main(arguments):
    Loses()  # what is raised in there is lost
    try:
        time.sleep(60)
    finally:
        {finally_}
commands.run(main, __name__, when_stopped="All is well.")
"""


@pytest.mark.parametrize("finally_", ["pass", "os.kill(os.getpid(), signal.SIGTERM)", "raise ImportError('of a half module')"])
def test_a_signal_is_not_lost_in_a_callback_of_the_interpreter(finally_):
    begun = time.monotonic()
    code = LOSING.format(finally_=finally_)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=60)
    assert (done.returncode, done.stderr) == (143, "\nstopped. All is well.\n")
    assert time.monotonic() - begun < 30


def test_a_signal_after_the_work_changes_nothing():
    code = (
        "import atexit, os, signal; from tfpipe import commands\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "commands.run(lambda arguments: 3, __name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")
