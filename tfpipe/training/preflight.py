"""Checks before a training, without TensorFlow, which takes seconds to load; devices, and workers.

check_training("shards/", "runs/a", "features/", recipe)
cluster = find_cluster("a:2222,b:2222", 0, None, os.environ)    # None: this process trains alone
strategy = use_devices(parse_devices("GPU:0,GPU:2"), cluster)
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipe.common import arguments
from tfpipe.common.files import check_folder
from tfpipe.networks import architectures
from tfpipe.records import folds
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest, Split
from tfpipe.records.run_folders import MODEL_NAME, RUN_NAME, SUMMARY_NAME, check_vacant, check_weights_file, seen_by
from tfpipe.training.recipes import Recipe, complete

_TF_CONFIG = "TF_CONFIG"
_SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # below those that Linux gives to outgoing connections
_REPORT_SECONDS = 30.0
_ENDING_SECONDS = 20.0  # that a worker which was stopped may still hold its address: TensorFlow takes 10
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 60  # once all have answered
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEVICES = ("auto", "one", "all", "CPU")


def check_training(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    recipe: Recipe,
    train_split: str = "train",
    val_split: str | None = None,
) -> None:
    """Checks the arguments of a training; raises as `tfpipe.train`."""
    for folder in (output, cache):
        check_folder(folder)
    size = recipe.image_size or architectures.native_size(recipe.backbone, recipe.weights)
    weights = "none" if recipe.mode == "scratch" or recipe.weights == "own" else recipe.weights
    architectures.choose_input(recipe.backbone, size, weights, recipe.preprocessing, grey=recipe.grey)
    is_finished = (Path(output) / SUMMARY_NAME).exists()  # and needs no weights
    if not is_finished and architectures.is_file(recipe.backbone, weights):
        check_weights_file(weights)
    manifest, _ = open_training(directory, train_split, val_split)
    complete(recipe, manifest.split(train_split).num_records, len(manifest.class_names), manifest.task)
    check_vacant(Path(output))


def check_folds(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    recipe: Recipe,
    from_run: str | os.PathLike[str] | None = None,
) -> list[folds.Fold]:
    """Checks the arguments of `tfpipe.train_folds`, and returns what it trains; raises as it does."""
    manifest, folder = manifests.load(directory), Path(output)
    planned = folds.plan(manifest.splits, manifest.name)
    if folds.is_folder(folder):
        if folds.load(folder) != (manifest.root_hash, planned):
            raise ValueError(f"{folder}: holds the folds of another data set; choose another folder")
    elif (folder / RUN_NAME).exists():
        raise ValueError(f"{folder}: holds a run; choose another folder")
    else:
        check_vacant(folder)
    before = None if from_run is None else seen_by(from_run)
    if before is not None and before.root_hash == manifest.root_hash:
        raise ValueError(f"from_run={from_run} was trained on this data set: it has seen images of every fold")
    for fold in planned:
        check_training(directory, folder / fold.held_out, cache, recipe, fold.train, fold.val)
    return planned


def with_weights_of(run: str | os.PathLike[str] | None, recipe: Recipe) -> Recipe:
    """Returns the recipe with the weights of a run; raises ValueError if it names others."""
    if run is None:
        return recipe
    if recipe.weights != Recipe.weights or recipe.mode == "scratch":
        given = "mode=scratch makes all weights new" if recipe.mode == "scratch" else f"weights={recipe.weights} differ"
        raise ValueError(f"from_run={os.fspath(run)} gives the weights to begin with, and {given}: take one of the two")
    return dataclasses.replace(recipe, weights=str(Path(run) / MODEL_NAME if Path(run).is_dir() else Path(run)))


def open_training(
    directory: str | os.PathLike[str], train_split: str = "train", val_split: str | None = None
) -> tuple[Manifest, str | None]:
    """Returns the manifest, and the split that validates; None where a part is held out for that.

    Raises ValueError if images of a class, or labels, are missing, or if an image is in both.
    """
    manifest = manifests.load(directory)
    if train_split == "train" and "train" not in manifest.splits and folds.names(manifest.splits):
        raise ValueError(f"{directory}: has folds and no split 'train': train them with train_folds (train --folds)")
    parts = manifest.parts(train_split, "split" if train_split == "train" else "train_split")
    split = manifest.split(train_split)
    missing = [name for name in manifest.class_names if not split.class_counts[name]]
    if not split.labelled or missing:
        lacks = f"there are none of {', '.join(missing)}" if split.labelled else "it has no labels"
        raise ValueError(f"{directory}: split {train_split!r} must have images of every class; {lacks}")
    constant = [
        name
        for name in (manifest.class_names if manifest.targets else ())
        if all(_is_constant(manifest.splits[part], name, manifest.splits[parts[0]]) for part in parts)
    ]
    if constant:
        raise ValueError(f"{directory}: all images of split {train_split!r} have one value of {', '.join(constant)}")
    unknown = split.unknown_counts or {}
    always = [name for name, count in unknown.items() if count + split.class_counts[name] == split.num_records]
    if always:
        known = f"all that are known have {always}"
        raise ValueError(f"{directory}: split {train_split!r} must have images without each class; {known}")
    if val_split is None and "val" in manifest.splits and "val" not in parts:
        val_split = "val"
    if val_split is not None:
        if both := set(parts) & set(manifest.parts(val_split, "val_split")):
            raise ValueError(f"split {min(both)!r} cannot both be trained on and validate")
        held = manifest.split(val_split)
        if not held.labelled or not held.num_records:
            raise ValueError(f"{directory}: split {val_split!r} has no labelled images to validate with")
    return manifest, val_split


def _is_constant(split: Split, name: str, first: Split) -> bool:
    """Returns whether a target has the value of the first image of another split in all of a split."""
    found, other = (dict(one.statistics or {}).get(name) for one in (split, first))
    return found is not None and other is not None and found.least == found.most == other.least


def parse_devices(text: str) -> tuple[str, ...]:
    """Returns a word of _DEVICES, or different names of GPUs; raises ValueError for others."""
    words = tuple(word.strip() for word in text.split(","))
    are_gpus = all(re.fullmatch(r"GPU:\d{1,4}", word) for word in words) and len(set(words)) == len(words)
    if not are_gpus and words not in [(word,) for word in _DEVICES]:
        raise arguments.wrong("devices", f"one of {', '.join(_DEVICES)}, or names of GPUs as in GPU:0,GPU:2", text)
    return words


def choose_gpus(words: tuple[str, ...], gpus: list[str]) -> list[str]:
    """Returns the requested GPUs, none for the CPU; raises ValueError for a missing one."""
    if words in (("CPU",), ("one",)):
        return gpus[:1] if words == ("one",) else []
    wanted = gpus if words in (("auto",), ("all",)) else list(words)
    missing = [word for word in wanted if word not in gpus] or ["all"] * (words == ("all",) and not gpus)
    if missing:
        there = f"there are {', '.join(['CPU', *gpus])}" if gpus else "TensorFlow finds no GPU here: there is the CPU alone"
        raise ValueError(f"devices={missing[0]}: there is no such device; {there}")
    return wanted


def use_devices(words: tuple[str, ...], cluster: Cluster | None = None, report: Callable[[str], None] = print) -> Any:
    """Hides all other GPUs from TensorFlow; returns the strategy for several, or None.

    Of a cluster, waits for its workers.
    """
    import tensorflow as tf

    devices = {device.name.removeprefix("/physical_device:"): device for device in tf.config.list_physical_devices("GPU")}
    chosen = choose_gpus(words, list(devices))
    tf.config.set_visible_devices([devices[name] for name in chosen], "GPU")
    if cluster is not None:
        return connect(cluster, report)
    return tf.distribute.MirroredStrategy() if len(chosen) > 1 else None


@dataclass(frozen=True)
class Cluster:
    """The addresses of all workers, HOST:PORT, and the index of this one."""

    addresses: tuple[str, ...]
    index: int


def find_cluster(
    workers: str | None, worker: int | None, cluster: str | None, environment: Mapping[str, str]
) -> Cluster | None:
    """Returns the cluster that flags, SLURM's variables or TF_CONFIG name; None for one worker.

    Args:
        workers: addresses as in "a:2222,b:2222"; the first is the chief.
        worker: index of this one.
        cluster: "slurm" to read the variables that srun sets.
        environment: the variables of the process. TF_CONFIG counts if no flag is given.

    Raises:
        ValueError: they contradict each other, or are incomplete.
    """
    if cluster is not None and cluster != "slurm":
        raise ValueError(f"cluster={cluster}: slurm is the only one that must be named; TF_CONFIG is read without")
    if (workers is None) != (worker is None) or (workers and cluster):
        raise ValueError("workers and worker must be given together, and without cluster")
    if workers is not None and worker is not None:
        found, where = Cluster(tuple(word.strip() for word in workers.split(",")), worker), f"workers={workers}"
    elif cluster:
        found, where = _of_slurm(environment), "cluster=slurm"
    elif environment.get(_TF_CONFIG):
        found, where = _of_tf_config(environment[_TF_CONFIG]), _TF_CONFIG
    else:
        return None
    wrong = [address for address in found.addresses if not re.fullmatch(r"[^\s,/]+:\d{1,5}", address)]
    if wrong or len(set(found.addresses)) < len(found.addresses):
        raise ValueError(f"{where}: must be different addresses HOST:PORT (got {', '.join(wrong or found.addresses)})")
    if not 0 <= found.index < len(found.addresses):
        raise ValueError(f"{where}: there is no worker {found.index} of {len(found.addresses)}; the first one is 0")
    return found if len(found.addresses) > 1 else None


def _of_tf_config(text: str) -> Cluster:
    try:
        content = json.loads(text)
        jobs: dict[str, list[str]] = content.get("cluster", {})
        if not jobs:
            return Cluster(("localhost:0",), 0)
        kind, index = content["task"]["type"], int(content["task"]["index"])
        before = len(jobs.get("chief", ())) if kind == "worker" else 0
        if others := {kind, *jobs} - {"chief", "worker"}:
            raise ValueError(f"{_TF_CONFIG}: the tasks of a training are chief and worker (got {', '.join(sorted(others))})")
        return Cluster((*jobs.get("chief", ()), *jobs.get("worker", ())), before + index)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_TF_CONFIG}: not as TensorFlow defines it ({type(error).__name__}: {error})") from None


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
    if missing := [name for name in _SLURM if name not in environment]:
        raise ValueError(f"cluster=slurm: {', '.join(missing)} not set; start the command with srun, once for each worker")
    job, index, nodes, tasks = (environment[name] for name in _SLURM)
    hosts = [host for part in re.findall(r"(?:[^\[,]|\[[^\]]*\])+", nodes) for host in _expand(part)]
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    if len(hosts) != len(counts):
        raise ValueError(f"cluster=slurm: {_SLURM[2]}={nodes} and {_SLURM[3]}={tasks} are of different numbers of nodes")
    port = _FIRST_PORT + int(job) % _NUM_PORTS
    tasks_of = zip(hosts, counts, strict=True)
    return Cluster(tuple(f"{host}:{port + task}" for host, count in tasks_of for task in range(count)), int(index))


def _expand(nodes: str) -> list[str]:
    """Returns the hosts of one of SLURM's expressions: node[01-03,7] or login1."""
    prefix, bracket, ranges = nodes.partition("[")
    if not bracket:
        return [nodes]
    if not re.fullmatch(r"(\d+(-\d+)?,)*\d+(-\d+)?\]", ranges):
        raise ValueError(f"cluster=slurm: {nodes} in {_SLURM[2]} is not understood; give --workers and --worker")
    found = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        found += [f"{prefix}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return found


def connect(cluster: Cluster, report: Callable[[str], None]) -> Any:
    """Returns the strategy of a cluster, once all of its workers have come.

    Must be called before TensorFlow computes anything.

    Raises:
        ConnectionError: this worker cannot listen at its address.
    """
    import tensorflow as tf

    _wait_for_all(cluster, report)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}), task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    # TensorFlow's handler of SIGTERM would swallow it for good: it comes when Python's is back.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    report(f"worker {cluster.index}: all answer; whoever has not connected to all in {_CONNECT_SECONDS} s ends with status 1")
    # TensorFlow would wait for an hour for one that has gone, and holds Python's lock meanwhile: no
    # signal and no thread of Python could end that.
    try:
        with open(os.devnull, "w") as nowhere:
            faulthandler.dump_traceback_later(_CONNECT_SECONDS, exit=True, file=nowhere)
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.OpError as error:
        raise ConnectionError(f"{cluster.addresses[cluster.index]}: {error.message}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number in _STOPPING:
            handler = signal.getsignal(number)
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _wait_for_all(cluster: Cluster, report: Callable[[str], None]) -> None:
    """Waits until each worker can be reached: in TensorFlow, a signal could not end the waiting."""
    own, count = cluster.addresses[cluster.index], len(cluster.addresses)
    report(f"worker {cluster.index} of {count} ({own}): the first one, {cluster.addresses[0]}, reports what is done")
    missing = [address for address in cluster.addresses if address != own]
    reported = time.monotonic()
    with _listening(own):
        while True:
            missing = [address for address in missing if not listens(address)]
            if not missing:
                return
            if time.monotonic() > reported + _REPORT_SECONDS:
                report(f"waiting for {', '.join(missing)}")
                reported = time.monotonic()
            time.sleep(_POLL_SECONDS)


def _listening(address: str) -> socket.socket:
    begun = time.monotonic()
    while True:
        try:
            return socket.create_server(("", int(address.rpartition(":")[2])), backlog=128)
        except (OSError, OverflowError) as error:
            if time.monotonic() > begun + _ENDING_SECONDS:
                raise ConnectionError(f"{address}: this worker cannot listen there: {error}; is another running?") from None
            time.sleep(0.2)


def listens(address: str) -> bool:
    """Returns whether a process listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
