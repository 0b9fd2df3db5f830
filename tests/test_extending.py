"""A run that is trained longer is one that was asked for more at first, bit for bit; and what cannot be so is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import CHECKOUT
from test_runs import SMALL, TUNED, Killed, kill, run, run_killed_after, stopping_after, weights_equal, weights_of
from transfer_fixtures import *  # noqa: F403 (fixtures)
from transfer_fixtures import build_colours, summary_of

import tfpipe
from tfpipe.models import classifiers
from tfpipe.networks import backbones
from tfpipe.training.logs.run_log import read_history
from tfpipe.training.recipes import Recipe

pytestmark = pytest.mark.tf

CONSTANT = dataclasses.replace(SMALL, schedule="constant", epochs=2)
SCRATCH = dataclasses.replace(CONSTANT, mode="scratch", ema=0.9)
TWO_PHASES = dataclasses.replace(TUNED, schedule="constant", epochs=1, finetune_epochs=1, train_batch_norm=True)


@pytest.fixture(autouse=True)
def _deterministic():
    yield
    tf.config.experimental.enable_op_determinism()


def history_of(folder):
    rows = read_history(folder)
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def assert_equal(extended, whole):
    assert classifiers.load(extended).sha256 == classifiers.load(whole).sha256
    assert weights_equal(extended, whole, "last.keras")
    assert history_of(extended) == history_of(whole)
    one, two = (summary_of(folder) for folder in (extended, whole))
    for summary in (one, two):
        summary.pop("peak_memory_bytes")
        for phase in summary["phases"]:
            phase.pop("seconds_per_epoch")
    assert one == two
    recipes = [json.loads((folder / "run.json").read_text()) for folder in (extended, whole)]
    assert recipes[0]["recipe"] == recipes[1]["recipe"]
    assert recipes[0]["chosen"] == recipes[1]["chosen"]


CASES = {
    "scratch, average": (SCRATCH, {"epochs": 4}),
    "cached features, plateau": (
        dataclasses.replace(CONSTANT, mode="bottleneck", schedule="plateau", patience=2),
        {"epochs": 5},
    ),
    "fine-tuning, whose frozen part is now computed once": (TWO_PHASES, {"finetune_epochs": 3}),
    # As an extension that is stopped anywhere, below.
    "fine-tuning": (dataclasses.replace(TWO_PHASES, finetune_epochs=2), {"finetune_epochs": 3}),
    "the head before fine-tuning": (TWO_PHASES, {"epochs": 2}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.exhaustive(only=True)) if case == "fine-tuning" else case for case in CASES]
)
def test_more_epochs_equal_those_of_a_run_that_had_them_from_the_start(colours, tmp_path, finished, case):
    short, more = CASES[case]
    long = dataclasses.replace(short, **more)
    folder, lines = finished(short, tmp_path / "extended"), []
    assert len(history_of(folder)) < len(history_of(finished(long)))
    run(colours, folder, long, log=lines.append)
    assert_equal(folder, finished(long))
    assert any(f"{name}={value} in place of" in lines[0] for name, value in more.items())
    assert ("finetune: starts over" in lines) == (case not in list(CASES)[:2] and case != "fine-tuning")
    (entry,) = json.loads((folder / "run.json").read_text())["extended"]
    assert {name: entry[name] for name in more} == {name: [getattr(short, name), value] for name, value in more.items()}
    before = (folder / "log.jsonl").read_bytes()
    run(colours, folder, long)  # which is finished
    assert (folder / "log.jsonl").read_bytes() == before


def test_more_patience_goes_on_after_an_early_stop(colours, tmp_path):
    recipe = dataclasses.replace(SCRATCH, schedule="cosine", epochs=12, patience=1, learning_rate=5e-2)
    more = dataclasses.replace(recipe, patience=12)
    assert run(colours, tmp_path / "extended", recipe)["phases"][0]["num_epochs"] < 12
    run(colours, tmp_path / "extended", more)
    assert run(colours, tmp_path / "whole", more)["phases"][0]["num_epochs"] == 12
    assert_equal(tmp_path / "extended", tmp_path / "whole")


@pytest.mark.parametrize("more", [{"finetune_epochs": 3}, {"epochs": 2, "finetune_epochs": 2}], ids=str)
def test_an_extension_stopped_anywhere_ends_with_the_same_bits(colours, tmp_path, monkeypatch, finished, more):
    short = dataclasses.replace(TWO_PHASES, finetune_epochs=2, ema=0.9)
    long = dataclasses.replace(short, **more)
    folder = finished(short, tmp_path / "extended")
    assert run_killed_after((0, 3), monkeypatch, colours, folder, long) == 2
    run(colours, folder, long)
    assert_equal(folder, finished(long))


def test_a_kill_before_the_extension_is_written_down_costs_nothing(colours, tmp_path, monkeypatch, finished):
    long = dataclasses.replace(TWO_PHASES, epochs=2)
    for name, recipe in (("again", long), ("as it was", TWO_PHASES)):
        finished(TWO_PHASES, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr("tfpipe.training.extending.write_json", lambda *_: kill())
            with pytest.raises(Killed):
                run(colours, tmp_path / name, long)
        run(colours, tmp_path / name, recipe)
        assert_equal(tmp_path / name, finished(recipe))


def test_a_run_that_is_not_finished_can_be_extended(colours, tmp_path, monkeypatch, finished):
    long = dataclasses.replace(SCRATCH, epochs=4)
    stop_after(4, monkeypatch, colours, tmp_path / "extended", SCRATCH)
    run(colours, tmp_path / "extended", long)
    assert_equal(tmp_path / "extended", finished(long))


def stop_after(num_steps, monkeypatch, *arguments, **options):
    """Kills a run in its next step but `num_steps`."""
    with monkeypatch.context() as patch:
        stopping_after(num_steps, patch, kill)
        with pytest.raises(Killed):
            run(*arguments, checkpoint_seconds=0.0, **options)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


def test_a_cosine_is_longer_only_if_requested(colours, tmp_path):
    folder, lines = tmp_path / "run", []
    short = dataclasses.replace(SCRATCH, schedule="cosine", warmup_epochs=0.5, ema=0.0)
    long = dataclasses.replace(short, epochs=4)
    run(colours, folder, short)
    before = files_of(folder)
    message = r"epochs=4 in place of 2: the learning rates of phase scratch so far would have differed.*extend.*from_run"
    with pytest.raises(ValueError, match=message):
        run(colours, folder, long)
    assert files_of(folder) == before
    run(colours, folder, long, extend=True, log=lines.append)
    assert any("warms up again, and falls along a new cosine, from step 10 on" in line for line in lines)
    rates = [row["learning_rate"] for row in read_history(folder)]
    assert len(rates) == 4
    assert rates[2] > rates[1]
    assert rates[0] > rates[1] < rates[2] > rates[3]


def test_a_cosine_that_is_extended_and_stopped_is_one_that_is_not(colours, tmp_path, monkeypatch, finished):
    short = dataclasses.replace(TUNED, epochs=1, finetune_epochs=2)
    long = dataclasses.replace(short, finetune_epochs=4)
    for name, steps in (("whole", ()), ("stopped", (5,))):
        finished(short, tmp_path / name)
        for num_steps in steps:
            stop_after(num_steps, monkeypatch, colours, tmp_path / name, long, extend=True)
        run(colours, tmp_path / name, long, extend=not steps)  # once it is under way, the word is not needed
    assert_equal(tmp_path / "stopped", tmp_path / "whole")
    run(colours, tmp_path / "at first", long)
    assert history_of(tmp_path / "at first") != history_of(tmp_path / "whole")


def test_a_plateau_whose_patience_would_have_fallen_elsewhere_is_reported(colours, tmp_path):
    recipe = dataclasses.replace(SCRATCH, schedule="plateau", epochs=6, patience=2, learning_rate=1e-9)  # never better
    run(colours, tmp_path / "run", recipe)
    more = dataclasses.replace(recipe, epochs=8, patience=8)
    with pytest.raises(ValueError, match=r"the learning rates of phase scratch so far .*keep patience=2, go on"):
        run(colours, tmp_path / "run", more)
    lines = []
    run(colours, tmp_path / "run", more, extend=True, log=lines.append)
    assert "scratch: will not be what it had been with these numbers from the start" in lines


@pytest.mark.parametrize("name", ["epochs", "patience"])
def test_fewer_are_refused(colours, finished, name):
    folder = finished(dataclasses.replace(SCRATCH, patience=2))
    before = files_of(folder)
    with pytest.raises(ValueError, match=f"holds a run with {name}=2, which can be raised, not lowered to 1"):
        run(colours, folder, dataclasses.replace(SCRATCH, **{"patience": 2, name: 1}))
    assert files_of(folder) == before


def test_what_cannot_begin_leaves_the_run_finished(colours, tmp_path):
    backbone = backbones.build("lenet", image_size=(16, 16), weights="none")
    file = tmp_path / "lenet.weights.h5"
    backbone.network.save_weights(file)
    recipe = dataclasses.replace(CONSTANT, backbone="lenet", weights=str(file), epochs=1)
    summary = run(colours, tmp_path / "run", recipe)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lenet\.weights\.h5"):
        run(colours, tmp_path / "run", dataclasses.replace(recipe, epochs=2))
    assert run(colours, tmp_path / "run", recipe) == summary


def test_epochs_of_a_head_that_has_none_leave_the_run_as_it_is(colours, tmp_path):
    of_gradient = ("epochs", "learning_rate", "hidden", "dropout")
    plain = {name: getattr(Recipe(), name) for name in of_gradient}
    recipe = dataclasses.replace(SMALL, **plain, mode="finetune", finetune_epochs=1)
    folder = tmp_path / "run"
    run(colours, folder, recipe)
    before = files_of(folder)
    with pytest.raises(ValueError, match="holds a run with solver=regression, and these options need gradient"):
        run(colours, folder, dataclasses.replace(recipe, epochs=3))
    assert files_of(folder) == before


def test_without_its_state_a_run_is_finished_but_cannot_go_on(colours, tmp_path, finished):
    folder = finished(SCRATCH, tmp_path / "run")
    summary = summary_of(folder)
    shutil.rmtree(folder / "state")
    assert run(colours, folder, SCRATCH) == summary
    with pytest.raises(ValueError, match=r"epochs=3 in place of 2: its folder state/ was deleted.*from_run"):
        run(colours, folder, dataclasses.replace(SCRATCH, epochs=3))


# ---- from another run's weights


@pytest.fixture(scope="module")
def first(finished):
    """A finished run from scratch."""
    return finished(SCRATCH)


FULL = dataclasses.replace(CONSTANT, mode="full", epochs=1, learning_rate=1e-9, warmup_epochs=0, weights="imagenet")


def test_a_run_begins_with_the_weights_of_another(colours, tmp_path, first):
    lines = []
    run(colours, tmp_path / "run", FULL, from_run=first, log=lines.append)
    assert f"from {first}: the head begins with its weights, too" in lines
    pairs = zip(weights_of(first), weights_of(tmp_path / "run"), strict=True)
    assert all(np.allclose(one, two, atol=1e-6) for one, two in pairs)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["weights"] == "model.keras"


def test_what_began_with_trained_weights_never_ends_with_less(colours, tmp_path, first):
    summary = run(colours, tmp_path / "run", dataclasses.replace(FULL, learning_rate=0.5), from_run=first)
    assert summary["val_accuracy"] >= summary_of(first)["val_accuracy"]


@pytest.mark.parametrize(
    "changes", [{"hidden": (9,)}, pytest.param({"pooling": "max"}, marks=pytest.mark.exhaustive(only=True))], ids=str
)
def test_another_head_starts_over(colours, tmp_path, first, changes):
    lines = []
    run(colours, tmp_path / "run", dataclasses.replace(FULL, **changes), from_run=first, log=lines.append)
    assert f"from {first}: the head starts over: its layers differ" in lines
    trunks = [classifiers.load(folder).model.get_layer("trunk").get_weights() for folder in (first, tmp_path / "run")]
    assert all(np.allclose(one, two, atol=1e-6) for one, two in zip(*trunks, strict=True))


def test_other_classes_have_another_head(tmp_path, first):
    lines = []
    shards = build_colours(tmp_path, {"train": (4, 4, 4), "val": (2, 2, 2)})
    content = (shards / "manifest.json").read_text("utf-8")
    assert "green" in content
    photos = tmp_path / "photos"
    for split in ("train", "val"):
        (photos / split / "green").rename(photos / split / "grün")
    inputs = {split: photos / split for split in ("train", "val")}
    tfpipe.build_tfrecords(inputs, tmp_path / "others", layout="folders", workers=1, progress=False)
    run(tmp_path / "others", tmp_path / "run", FULL, from_run=first / "model.keras", log=lines.append)
    assert f"from {first / 'model.keras'}: the head starts over: the classes differ" in lines


def test_a_run_from_another_goes_on_with_the_same_bits(colours, tmp_path, first, monkeypatch):
    recipe = dataclasses.replace(FULL, learning_rate=1e-2, epochs=2)
    run(colours, tmp_path / "whole", recipe, from_run=first)
    stop_after(4, monkeypatch, colours, tmp_path / "stopped", recipe, from_run=first)
    with pytest.raises(ValueError, match=r"stopped: holds a run with weights='model.keras', not 'none'"):
        run(colours, tmp_path / "stopped", dataclasses.replace(recipe, weights="none"))
    run(colours, tmp_path / "stopped", recipe, from_run=first)
    assert_equal(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "scratch"}, r"from_run=.*run gives the weights to begin with, and mode=scratch makes all weights new"),
        ({"weights": "none"}, r"from_run=.*run gives the weights to begin with, and weights=none differ"),
    ],
    ids=str,
)
def test_weights_from_two_places_are_refused(colours, tmp_path, first, changes, message):
    with pytest.raises(ValueError, match=message):
        run(colours, tmp_path / "run", dataclasses.replace(FULL, **changes), from_run=first)


def test_another_backbone_is_refused(colours, tmp_path, first):
    with pytest.raises((ValueError, tfpipe.DataError), match=r"model\.keras"):
        run(colours, tmp_path / "run", dataclasses.replace(FULL, backbone="lenet"), from_run=first)


# ---- lines


CODE = """
import sys, tfpipe
recipe = tfpipe.Recipe(backbone="lenet", weights="none", image_size=(16, 16), epochs=1, precision="float32", batch_size=8)
tfpipe.train({data!r}, sys.argv[1], recipe, tensorboard=False)
for stream in (sys.stdout, sys.stderr):
    print("{silent}", file=stream, flush=True)
tfpipe.train({data!r}, sys.argv[1] + "/silent", recipe, tensorboard=False, log=None)
"""
SILENT = "---- silent"

TENSORFLOWS = r"WARNING: All log messages|[IWE]\d{4} "  # what it says when it starts


def test_from_python_a_run_reports_what_the_command_reports(colours, tmp_path):
    flags = ["--backbone=lenet", "--weights=none", "--image_size=16", "--epochs=1", "--precision=float32", "--batch_size=8"]
    words = {
        "command": ["tools/train.py", f"--data={colours}", "--notensorboard", *flags, "--output"],
        "python": ["-c", CODE.format(data=str(colours), silent=SILENT)],
    }
    found = {}
    for name, arguments in words.items():
        command = [sys.executable, *arguments, str(tmp_path / name)]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        loud, silent = zip(*(said.partition(f"{SILENT}\n")[::2] for said in (done.stdout, done.stderr)), strict=True)
        assert not any(silent)
        lines = [line for line in "".join(loud).splitlines() if not re.match(TENSORFLOWS, line)]
        found[name] = {timeless(line.replace(str(tmp_path / name), "RUN")) for line in lines if "peak memory" not in line}
    assert found["python"] == found["command"]
    (last,) = [line for line in found["python"] if line.startswith("scratch 1/1: ")]
    assert "val_loss" in last
    assert "val_accuracy" in last
    assert "best " in last
    assert any(line.startswith("mode=scratch: there are no weights to transfer") for line in found["python"])


def timeless(line):
    return re.sub(r"\b[0-9.]+ s\b", "0 s", line)


def test_the_state_is_about_four_times_what_is_trained(colours, tmp_path):
    run(colours, tmp_path / "run", dataclasses.replace(SCRATCH, ema=0.0, epochs=1, hidden=(512,)))
    trained = summary_of(tmp_path / "run")["phases"][0]["num_trained"]
    size = (tmp_path / "run" / "state" / "scratch.npz").stat().st_size
    assert 4 * 4 * trained <= size < 4 * 4 * trained + 30_000
