"""Several workers train what one trains, from any state on, or are refused; processes on this machine, killed on purpose."""

import json
import os
import signal
import time

import numpy as np
import pytest
from cluster_fixtures import PATIENCE_SECONDS, do_jobs, free_addresses, started, train_command, train_commands, wait_until
from transfer_fixtures import colours

from tfpipe.common.files import read_json
from tfpipe.models import classifiers
from tfpipe.training import checkpoints
from tfpipe.training.logs.run_log import read_history

pytestmark = pytest.mark.tf

__all__ = ["colours"]  # a fixture

# Without dropout and BatchNorm, and without AdamW, which turns rounding of a tiny gradient into a
# step: what is left is the order of sums.
PLAIN = {"weights": "none", "image_size": 16, "batch_size": 12, "precision": "float32", "optimizer": "sgd", "patience": 99}
SCRATCH = {**PLAIN, "backbone": "lenet", "mode": "scratch", "epochs": 4, "learning_rate": 0.05, "augment": "light"}
NORMS = "small_backbone:two_convolutions"  # has BatchNorm and dropout
HEAD = {**PLAIN, "backbone": NORMS, "mode": "bottleneck", "epochs": 3, "learning_rate": 0.05, "augment": "none"}
REGRESSION = {name: HEAD[name] for name in ("weights", "image_size", "precision", "backbone", "mode", "augment")}
STOPPED = 7  # step in which a worker is stopped; an epoch has 4
TOLERANCE = 1e-6
LOST_SECONDS = 60  # measured: 12; a busy machine must not fail the test


def weights_of(folder):
    return classifiers.load(folder).model.get_weights()


def assert_equal_weights(folder, expected):
    pairs = zip(weights_of(folder), weights_of(expected), strict=True)
    assert max(np.abs(one - other).max() for one, other in pairs) < TOLERANCE


def facts_of(folder, phase="scratch"):
    return checkpoints.load(folder / "state" / f"{phase}.npz")[1]


def job(data, folder, recipe, **rest):
    return {"data": str(data), "folder": str(folder), "recipe": recipe, **rest}


@pytest.fixture(scope="module")
def pair(colours, tmp_path_factory):
    """What two workers did, by the name of the job, and the folder of the runs."""
    root = tmp_path_factory.mktemp("pair")
    elsewhere = {"1": {"folder": str(root / "elsewhere")}}  # the second worker does not see the run's folder
    stopping = {"1": {"actions": {str(STOPPED): "terminate"}}}
    jobs = {
        "scratch": job(colours, root / "scratch", SCRATCH, of_worker=elsewhere),
        "stopped": job(colours, root / "stopped", SCRATCH, of_worker=stopping, copy=str(root / "left")),
        "resumed": job(colours, root / "stopped", SCRATCH, of_worker=elsewhere),
        "other recipe": job(colours, root / "other", SCRATCH, of_worker={"1": {"recipe": {**SCRATCH, "batch_size": 24}}}),
        "no data": job(colours, root / "other", SCRATCH, of_worker={"1": {"data": str(root / "nothing")}}),
        "nudged": job(colours, root / "nudged", SCRATCH, of_worker={"1": {"actions": {str(STOPPED): "nudge"}}}),
        "head": job(colours, root / "head", HEAD),
        "own cache": job(colours, root / "own", HEAD, of_worker={"1": {"options": {"cache": str(root / "own cache")}}}),
        "regression": job(colours, root / "regression", REGRESSION),
        "norms": job(colours, root / "norms", {**SCRATCH, "backbone": NORMS}),
        "again": job(colours, root / "scratch", SCRATCH, of_worker=elsewhere),
    }
    return dict(zip(jobs, do_jobs(root / "out", 2, list(jobs.values()), shard_bytes=4096), strict=True)), root


@pytest.fixture(scope="module")
def alone(colours, pair, tmp_path_factory):
    """What one process did, and the folder of the runs; it goes on with a run of two workers, too."""
    root = tmp_path_factory.mktemp("alone")
    folders = {"scratch": root / "scratch", "head": root / "head", "left": pair[1] / "left"}
    jobs = [job(colours, folder, HEAD if name == "head" else SCRATCH) for name, folder in folders.items()]
    return dict(zip(folders, do_jobs(root / "out", 1, jobs, shard_bytes=4096), strict=True)), root


def test_two_workers_train_what_one_trains(alone, pair):
    (done, root), (_, root_alone) = pair, alone
    assert_equal_weights(root / "scratch", root_alone / "scratch")
    assert [of_worker["sha256"] for of_worker in done["scratch"]] == [classifiers.load(root / "scratch").sha256] * 2
    one, two = (read_history(folder / "scratch") for folder in (root_alone, root))
    for name in ("val_accuracy", "val_loss", "train_loss", "learning_rate"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], atol=1e-5)
    assert not (root / "elsewhere").exists()  # one writes
    assert done["scratch"][1]["lines"] == []  # and reports
    assert [of_worker["steps"] for of_worker in done["again"]] == [0, 0]  # it is finished, which both know


def test_a_signal_to_one_worker_stops_all_and_they_go_on_to_the_same_bits(pair):
    done, _ = pair
    assert [of_worker["error"] for of_worker in done["stopped"]] == ["KeyboardInterrupt"] * 2
    assert [of_worker["message"] for of_worker in done["stopped"]] == [str(int(signal.SIGTERM))] * 2
    assert [of_worker["steps"] for of_worker in done["stopped"]] == [STOPPED] * 2
    assert [of_worker["steps"] for of_worker in done["resumed"]] == [16 - STOPPED] * 2
    assert done["resumed"][0]["sha256"] == done["scratch"][0]["sha256"]


def test_different_workers_are_refused_by_name(colours, pair):
    done, root = pair
    names = ("other recipe", "no data", "own cache", "nudged")
    recipe, data, cache, nudged = ([of_worker["message"] for of_worker in done[name]] for name in names)
    assert recipe[0] == recipe[1]
    assert "worker 1 (127.0.0.1:" in recipe[0]
    assert "has batch_size=24, worker 0 (127.0.0.1:" in recipe[0]
    assert str(root / "nothing") in data[1]
    assert data[0].startswith("worker 1 (127.0.0.1:")
    assert str(root / "nothing") in data[0]
    assert not (root / "other").exists()
    assert cache[1].endswith("another worker wrote it, not seen from here; cache must be a folder that all see")
    assert cache[0].startswith("worker 1 (127.0.0.1:")
    assert nudged[0] == nudged[1]
    assert "has weights='" in nudged[0]
    assert [of_worker["steps"] for of_worker in done["nudged"]] == [8, 8]  # the end of the epoch, where it is saved
    progress = facts_of(root / "nudged")["progress"]  # the state before stays
    assert (progress["epoch"], progress["step"]) == (1, 0)


def test_features_are_divided(alone, pair):
    (done, root), (_, root_alone) = pair, alone
    assert_equal_weights(root / "head", root_alone / "head")
    first, second = (of_worker["written"] for of_worker in done["head"])
    assert first
    assert second
    assert len(first) + len(second) == len(list((root_alone / "features").rglob("*.npy")))


def test_all_workers_have_the_regression_of_the_chief(pair):
    done, root = pair
    assert [of_worker["written"] for of_worker in done["regression"]] == [[], []]  # features of the run before
    assert read_json(root / "regression" / "head.json")["best"]["pooling"]
    assert done["regression"][0]["sha256"] == done["regression"][1]["sha256"]


def test_all_workers_have_the_statistics_of_all_images(pair):
    done, _ = pair
    assert done["norms"][0]["sha256"] == done["norms"][1]["sha256"]


def test_one_worker_goes_on_where_two_were_stopped(alone, pair):
    (_, root), (done, root_alone) = pair, alone
    assert done["scratch"][0]["steps"] == 16
    assert done["left"][0]["steps"] == 16 - STOPPED
    assert_equal_weights(root / "left", root_alone / "scratch")


# ---- the command


FLAGS = ["--backbone=lenet", "--weights=none", "--mode=scratch", "--image_size=16", "--batch_size=12", "--epochs=100000"]
FLAGS += ["--patience=100000", "--notensorboard", "--precision=float32", "--learning_rate=1e-6", "--schedule=constant"]


def in_slurm(words):
    """The command as two tasks of a step on one node."""
    shared = {"SLURM_JOB_ID": os.getpid(), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    given = [[f"{name}={value}" for name, value in {**shared, "SLURM_PROCID": index}.items()] for index in range(2)]
    return [["env", *variables, *words, "--cluster=slurm"] for variables in given]


def in_tf_config(words):
    """The command as a chief and a worker."""
    chief, worker = free_addresses(2)
    jobs = {"chief": [chief], "worker": [worker]}
    tasks = [{"type": "chief", "index": 0}, {"type": "worker", "index": 0}]
    return [["env", f"TF_CONFIG={json.dumps({'cluster': jobs, 'task': task})}", *words] for task in tasks]


def steps_of(folder):
    progress = facts_of(folder)["progress"]
    return progress["epoch"] * 4 + progress["step"]


def test_the_command_names_who_died(colours, tmp_path):
    folder = tmp_path / "run"
    with started(in_tf_config(train_command(colours, folder, FLAGS)), tmp_path / "out") as processes:
        wait_until((folder / "state" / "scratch.npz").exists, processes)
        processes[1].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        assert processes[0].wait(PATIENCE_SECONDS) == 1
        assert time.monotonic() - begun < LOST_SECONDS
    said = (tmp_path / "out" / "0.err").read_text()
    assert "Traceback" not in said
    assert "lost worker 1 (127.0.0.1:" in said
    assert "start the same command on all workers again" in said


@pytest.mark.exhaustive(only=True)
def test_the_command_saves_on_sigterm_and_goes_on(colours, tmp_path):
    folder = tmp_path / "run"
    with started(in_slurm(train_command(colours, folder, FLAGS)), tmp_path / "first") as processes:
        wait_until((folder / "state" / "scratch.npz").exists, processes)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(PATIENCE_SECONDS) for process in processes] == [143, 143]
    for index in range(2):
        said = (tmp_path / "first" / f"{index}.err").read_text()
        assert said.rstrip().endswith("stopped. What was done is saved: run the same command again to go on from there.")
        assert "Traceback" not in said
    saved = steps_of(folder)
    with started(in_tf_config(train_command(colours, folder, FLAGS)), tmp_path / "second") as processes:
        wait_until(lambda: steps_of(folder) > saved + 4, processes)


# ---- other numbers of workers, and other deaths


@pytest.mark.exhaustive(only=True)
def test_three_workers_train_what_one_trains_and_go_on_where_two_were_stopped(colours, alone, tmp_path):
    _, root_alone = alone
    stopping = {"1": {"actions": {str(STOPPED): "terminate"}}}
    do_jobs(tmp_path / "two", 2, [job(colours, tmp_path / "left", SCRATCH, of_worker=stopping)])
    jobs = [job(colours, tmp_path / name, SCRATCH) for name in ("left", "whole")]
    left, whole = do_jobs(tmp_path / "three", 3, jobs)
    assert [of_worker["steps"] for of_worker in left] == [16 - STOPPED] * 3
    assert [of_worker["steps"] for of_worker in whole] == [16] * 3
    assert_equal_weights(tmp_path / "left", root_alone / "scratch")
    assert_equal_weights(tmp_path / "whole", root_alone / "scratch")


@pytest.mark.exhaustive(only=True)
@pytest.mark.parametrize(("number", "killed"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_whoever_dies_the_others_end_and_name_it(colours, tmp_path, number, killed):
    folder = tmp_path / "run"
    with started(train_commands(3, colours, folder, FLAGS), tmp_path / "out") as processes:
        wait_until((folder / "state" / "scratch.npz").exists, processes)
        processes[killed].send_signal(number)
        begun = time.monotonic()
        others = [index for index in range(3) if index != killed]
        assert [processes[index].wait(PATIENCE_SECONDS) for index in others] == [1, 1]
        assert time.monotonic() - begun < LOST_SECONDS
    for index in others:
        said = (tmp_path / "out" / f"{index}.err").read_text()
        assert f"worker {killed} (127.0.0.1:" in said.rpartition("lost ")[2], said[-1000:]


@pytest.mark.exhaustive(only=True)
def test_a_worker_that_waits_for_others_can_be_stopped_and_a_second_one_at_its_address_is_refused(colours, tmp_path):
    commands = train_commands(2, colours, tmp_path / "run", FLAGS)
    with started(commands[1:], tmp_path / "waiting") as (process,):
        out = tmp_path / "waiting" / "0.out"
        wait_until(lambda: "reports what is done" in out.read_text(), [process])
        with started(commands[1:], tmp_path / "twin") as (twin,):
            assert twin.wait(PATIENCE_SECONDS) == 1
        assert "this worker cannot listen there" in (tmp_path / "twin" / "0.err").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(LOST_SECONDS) == 143
    assert not (tmp_path / "run").exists()
