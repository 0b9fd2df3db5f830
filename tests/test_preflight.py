"""Which devices a training uses, by the words of --devices, and which workers, by flags and variables."""

import json

import pytest

from tfpipe.training.preflight import Cluster, choose_gpus, find_cluster, parse_devices

GPUS = ["GPU:0", "GPU:1", "GPU:2"]


@pytest.mark.parametrize(
    ("text", "there", "expected"),
    [
        ("auto", GPUS, GPUS),
        ("auto", [], []),
        ("all", GPUS, GPUS),
        ("one", GPUS, GPUS[:1]),
        ("one", [], []),
        ("CPU", GPUS, []),
        ("GPU:2", GPUS, ["GPU:2"]),
        ("GPU:2, GPU:0", GPUS, ["GPU:2", "GPU:0"]),
    ],
)
def test_the_devices_that_are_meant(text, there, expected):
    assert choose_gpus(parse_devices(text), there) == expected


@pytest.mark.parametrize(
    ("text", "there", "message"),
    [
        ("GPU:0,GPU:3", GPUS, "devices=GPU:3: there is no such device; there are CPU, GPU:0, GPU:1, GPU:2"),
        ("GPU:0", [], "devices=GPU:0: there is no such device; TensorFlow finds no GPU here: there is the CPU alone"),
        ("all", [], "devices=all: there is no such device; TensorFlow finds no GPU here: there is the CPU alone"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(text, there, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        choose_gpus(parse_devices(text), there)


@pytest.mark.parametrize("text", ["", "gpu", "GPU", "GPU:0,GPU:0", "GPU:0,CPU", "all,one", "GPU:x", "0"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match="devices must be one of auto, one, all, CPU, or names of GPUs as in GPU:0,GPU:2"):
        parse_devices(text)


@pytest.mark.tf
def test_the_command_reports_which_devices_there_are(tmp_path, run_tool):
    from transfer_fixtures import build_colours

    shards = build_colours(tmp_path, {"train": (2, 2, 2)})
    flags = [f"--data={shards}", f"--output={tmp_path / 'run'}", "--backbone=lenet", "--weights=none", "--devices=GPU:99"]
    done = run_tool("train", *flags, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --devices=GPU:99: there is no such device; ")
    assert not (tmp_path / "run").exists()


# ---- workers


NONE, OF_SLURM = (None, None, None), (None, None, "slurm")
SLURM = {
    "SLURM_JOB_ID": "30007",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NODELIST": "node[09-10,7],login",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x3)",
}


def tf_config(jobs, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (("a:1, b:2", 1, None), {}, Cluster(("a:1", "b:2"), 1)),
        (("a:1", 0, None), {}, None),
        (NONE, {}, None),
        (NONE, tf_config({"worker": ["a:1", "b:2"]}, index="1"), Cluster(("a:1", "b:2"), 1)),
        (
            NONE,
            tf_config({"chief": ["c:1"], "worker": ["a:1", "b:2"]}, index=1),
            Cluster(("c:1", "a:1", "b:2"), 2),
        ),
        (NONE, tf_config({"chief": ["c:1"], "worker": ["a:1"]}, "chief"), Cluster(("c:1", "a:1"), 0)),
        (NONE, tf_config({"worker": ["a:1"]}), None),
        (NONE, {"TF_CONFIG": "{}"}, None),
        (("a:1,b:2", 0, None), {"TF_CONFIG": "nonsense"}, Cluster(("a:1", "b:2"), 0)),
        (
            OF_SLURM,
            SLURM,
            Cluster(("node09:20007", "node09:20008", "node10:20007", "node7:20007", "login:20007"), 3),
        ),
        (
            OF_SLURM,
            {**SLURM, "SLURM_STEP_NODELIST": "a", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"},
            None,
        ),
    ],
)
def test_the_workers_that_are_meant(given, environment, expected):
    assert find_cluster(*given, environment) == expected


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        (("a:1,b:2", None, None), {}, "workers and worker must be given together, and without cluster"),
        ((None, 0, None), {}, "workers and worker must be given together, and without cluster"),
        (("a:1,b:2", 0, "slurm"), SLURM, "workers and worker must be given together, and without cluster"),
        (("a:1,b:2", 2, None), {}, "workers=a:1,b:2: there is no worker 2 of 2; the first one is 0"),
        (("a:1,b", 0, None), {}, r"workers=a:1,b: must be different addresses HOST:PORT \(got b\)"),
        (("a:1,a:1", 0, None), {}, r"workers=a:1,a:1: must be different addresses HOST:PORT \(got a:1, a:1\)"),
        ((None, None, "k8s"), {}, "cluster=k8s: slurm is the only one that must be named; TF_CONFIG is read without"),
        (NONE, {"TF_CONFIG": "["}, "TF_CONFIG: not as TensorFlow defines it .*"),
        (NONE, {"TF_CONFIG": "[]"}, "TF_CONFIG: not as TensorFlow defines it .*"),
        (NONE, {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, "TF_CONFIG: not as TensorFlow defines it .*"),
        (
            NONE,
            tf_config({"worker": ["a:1"], "ps": ["b:1"]}),
            r"TF_CONFIG: the tasks of a training are chief and worker \(got ps\)",
        ),
        (
            NONE,
            tf_config({"worker": ["a:1", "b:1"]}, "evaluator"),
            r"TF_CONFIG: the tasks of a training are chief and worker \(got evaluator\)",
        ),
        (NONE, tf_config({"worker": ["a:1", "b:1"]}, index=2), "TF_CONFIG: there is no worker 2 of 2; .*"),
        (
            OF_SLURM,
            {},
            "cluster=slurm: SLURM_JOB_ID, .* not set; start the command with srun, once for each worker",
        ),
        (OF_SLURM, {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1"}, "cluster=slurm: .* different numbers of nodes"),
        (
            OF_SLURM,
            {**SLURM, "SLURM_STEP_NODELIST": "rack[1-2]node[1-2]"},
            r"cluster=slurm: rack\[1-2\]node\[1-2\] in SLURM_STEP_NODELIST is not understood; give --workers and --worker",
        ),
    ],
)
def test_a_cluster_that_is_not_one_is_refused(given, environment, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        find_cluster(*given, environment)
