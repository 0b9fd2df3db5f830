#!/usr/bin/env python3
"""Measures speed as a ratio to a named reference, in one run, with alternating repetitions.

  benchmark build --files=4000 --file_kb=100 --repetitions=5
  benchmark build --input=photos/                        your own images
  benchmark build --workers_folder                       and as processes that share a folder of tasks
  benchmark plan --num_images=1000000                    memory of the process that plans, by the number of rows
  benchmark memory --files=200000                        memory of each process while many small files are packed
  benchmark input --input=photos/ --num_images=1280      images/s of input pipelines: JPEG files to batches of 64 x 224 x 224
  benchmark input --only=tfpipe-train,dali --peer_python=dali=ENV/bin/python
  benchmark extract --input=photos/ --num_images=256 --weights=vgg16.h5 --peer_python=torch=ENV/bin/python
  benchmark predict --model=runs/a --input=photos/ --num_images=256      photos to a table of probabilities
  benchmark stages --input=photos/ --workers=16     where the time of the training pipeline goes, stage by stage
  benchmark cores --input=photos/ --num_images=7680 --repetitions=3      input pipelines on 1, 2, 4 ... cores
  benchmark modes --data=shards/ --weights=vgg16.h5 --epochs=3      the modes of training side by side
  benchmark overhead --data=shards/ --weights=vgg16.h5 --image_size=96      where the time of train and evaluate goes
  benchmark opening --num_images=1000000      a split of so many records: seconds and memory until the first can be read
  benchmark remote --input=photos/ --num_images=10048 --delay_ms=100 --repetitions=3      a data set behind a slow server
  benchmark flipped --input=photos/ --weights=vgg16.h5 --share=0.05      flipped labels among the first suspects

build: tfpipe's own command against `cp -r` followed by sha256sum of source and copy (--workers
processes), and against a plain loop with tf.io.TFRecordWriter and tf.train.Example, each as a whole
process. Medians, and ratios pair by pair. With --workers_folder, also --workers processes of one
worker each, as on so many machines.

plan: a table of --num_images rows that name 1,000 small images is built, since rows are what the
planner has to remember.

input: each contender is a process that stays, restricted to as many cores as it has threads or
workers; one works at a time, on a whole pass over the same photos. A pass counts from opening the
iterator to the last batch; starting, packing and the first pass do not count. Contenders whose
packages are missing are skipped; those that cannot be installed beside TensorFlow get an
interpreter of their own.

extract: the same for features of a frozen backbone: photos to numpy arrays, images/s. tfpipe makes
its cache anew in each pass.

predict: the same for a trained model: tfpipe.predict against Keras' predict on a reader of folders.

stages: the training pipeline up to each of its stages: images/s, CPU of all threads, and what each
of its own threads takes, which sets a ceiling however many cores there are; an epoch's first second
against the rate after it; peak memory.

cores: tfpipe's training with and without colour, the same by hand in tf.data, and reading alone, on
every power of 2 of the cores at hand; then `stages` on all of them.

modes: tfpipe.train in each mode, with equal options and no augmentation, as a process and with a
cache of its own.

remote: training input of a data set behind a web server of this machine, in a process of its own, that
waits before each answer, and of the same one on the disk, in turn in one process.

flipped: a share of the labels is flipped on purpose, once for each of --repetitions seeds; how many of
them are among the first suspects of predictions out of fold (5 folds, a head on frozen features).

overhead: train and evaluate, part by part, in seconds of the processor; data with splits train, val
and test.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

import tfpipe
from tfpipe import commands
from tfpipe.common.workers import count_cores
from tfpipe.tools.benchmarks import contenders, modes, opening, overhead, planning
from tfpipe.tools.benchmarks.contenders import alternate, compared

_INPUT = flags.DEFINE_string("input", None, "Folder of images to measure on. Default: images that the benchmark makes.")
_FILES = flags.DEFINE_integer("files", 4000, "Images to make.", 1)
_FILE_KB = flags.DEFINE_integer("file_kb", 100, "Their size, about, in kB; 1 unless given for memory.", 1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Rounds; each runs every contender once.", 1)
_WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes of tfpipe; threads or processes of each input pipeline.", 1)
_WORKERS_FOLDER = flags.DEFINE_bool("workers_folder", False, "Of build: also as processes that share a folder of tasks.")
_IMAGES = flags.DEFINE_integer("num_images", 1280, "Images of a pass; a multiple of 64. Fewer photos are repeated.", 64)
_BACKBONE = flags.DEFINE_string("backbone", "vgg16", "Of extract and modes, one that train takes.")
_WEIGHTS = flags.DEFINE_string("weights", "imagenet", "Of the backbone: imagenet, none or a file.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the images of extract and modes.", 8)
_MODEL = flags.DEFINE_string("model", None, "Needed for predict: a run's folder, or a .keras file of train.")
_DATA = flags.DEFINE_string("data", None, "Needed for modes and overhead: a data set with splits train and val.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Of each phase of modes; the first does not count.", 2)
_ONLY = flags.DEFINE_list("only", [], "Contenders to run, of those of `input`, `extract` or `predict`, or modes. Default: all.")
_PEER_PYTHON = flags.DEFINE_string(
    "peer_python",
    None,
    "Interpreters of contenders, by the first word of their names: dali=ENV/bin/python,ffcv=... Default: this one.",
)
_DELAY_MS = flags.DEFINE_integer("delay_ms", 100, "Of remote: what the server waits before each answer.", 0)
_SHARE = flags.DEFINE_float("share", 0.05, "Of flipped: of the labels.", 0.0, 1.0)
_SCRATCH = flags.DEFINE_string("scratch", None, "Folder to work in. Default: the system's folder for temporary files.")

_ROOT = Path(tfpipe.__file__).parents[1]

_ON_CORES = ("tfpipe-train", "tfdata-crop-colour", "tfpipe-train-nocolour", "tfdata-crop", "tfpipe-read-shuffled")

# Each contender is the whole job as a user would start it, interpreter and imports included.
_BUILD = """
import tfpipe
tfpipe.build_tfrecords({{"train": {source!r}}}, {output!r}, layout="flat", workers={workers}, progress=False)
"""
_TOGETHER = """
import subprocess, sys
code = "import tfpipe; tfpipe.build_tfrecords({{'train': {source!r}}}, {output!r}, layout='flat', workers=1, progress=False,"
code += " workers_folder={output!r} + '-tasks')"
processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range({workers})]
sys.exit(max(process.wait() for process in processes))
"""
_PLAIN = """
import pathlib, tensorflow as tf
def feature(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
files = sorted(path for path in pathlib.Path({source!r}).rglob("*") if path.is_file())
shards = max(1, sum(path.stat().st_size for path in files) // (128 << 20))
for shard in range(shards):
    with tf.io.TFRecordWriter(f"{output}-{{shard:05d}}-of-{{shards:05d}}") as writer:
        for path in files[shard::shards]:
            content = {{"image/encoded": feature(path.read_bytes()), "image/filename": feature(path.name.encode())}}
            writer.write(tf.train.Example(features=tf.train.Features(feature=content)).SerializeToString())
"""
_AUDIT = """
import os, sys; from tfpipe.images.headers import read_header
for folder, _, names in os.walk({source!r}):
    for name in names:
        with open(os.path.join(folder, name), "rb", buffering=0) as file:
            read_header(file.readall())
"""
_COPY = """
cp -r "$0" "$1" && find "$0" "$1" -type f -print0 | xargs -0 -P {workers} -n 64 sha256sum >/dev/null
"""


def main(arguments: list[str]) -> None:
    """Runs the benchmark that is named."""
    benchmarks: dict[str, Callable[[Path], None]] = {
        "build": measure_build,
        "plan": measure_plan,
        "memory": measure_memory,
        "input": measure_input,
        "extract": measure_extract,
        "predict": measure_predict,
        "stages": measure_stages,
        "cores": measure_cores,
        "modes": measure_modes,
        "overhead": measure_overhead,
        "opening": measure_opening,
        "remote": measure_remote,
        "flipped": measure_flipped,
    }
    if len(arguments) != 1 or arguments[0] not in benchmarks:
        raise commands.UsageError(f"name one benchmark of: {', '.join(benchmarks)}")
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as folder:
        benchmarks[arguments[0]](Path(folder))


def measure_build(folder: Path) -> None:
    """Compares building with copying and hashing, and with a plain TensorFlow loop."""
    source = images(folder / "source", _FILE_KB.value << 10)
    files = [path for path in source.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {num_bytes / 1e6:.0f} MB, mean {num_bytes / len(files) / 1e3:.0f} kB; {os.cpu_count()} cores")
    commands_by_name = {
        "tfpipe": [sys.executable, "-c", _BUILD],
        "cp, sha256sum of both": ["sh", "-c", _COPY, str(source), str(folder / "out")],
        "tf.io.TFRecordWriter": [sys.executable, "-c", _PLAIN],
        "read + audit alone, 1 process": [sys.executable, "-c", _AUDIT],
        "tfpipe, import alone": [sys.executable, "-c", "import tfpipe.building.build"],
    }
    if _WORKERS_FOLDER.value:
        commands_by_name["tfpipe, a folder of tasks"] = [sys.executable, "-c", _TOGETHER]
    seconds = alternate(commands_by_name, lambda command: timed(command, source, folder / "out"), _REPETITIONS.value)
    for name, times in seconds.items():
        print(
            f"{name:32} median {statistics.median(times):7.2f} s (min {min(times):.2f}, max {max(times):.2f})"
            f" {num_bytes / statistics.median(times) / 1e6:8.0f} MB/s   {compared('tfpipe', seconds['tfpipe'], times)}"
        )


def images(folder: Path, size: int) -> Path:
    """Returns the user's folder, or one with new images of about `size` bytes."""
    return Path(_INPUT.value).resolve() if _INPUT.value else make_images(folder, _FILES.value, size)


def timed(command: list[str], source: Path, output: Path) -> float:
    """Returns the seconds of one run into a fresh output, which is removed again."""
    values = {"source": str(source), "output": str(output), "workers": _WORKERS.value}
    filled = [*command[:2], command[2].format(**values), *command[3:]]
    os.sync()  # what the contender before left to be written is not this one's work
    start = time.perf_counter()
    subprocess.run(filled, check=True, cwd=_ROOT, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    for path in output.parent.glob(f"{output.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return seconds


def measure_memory(folder: Path) -> None:
    """Prints the peak resident memory of parent and workers while small images are packed."""
    size = _FILE_KB.value << 10 if flags.FLAGS["file_kb"].present else 1000
    source = images(folder / "source", size)
    values = {"source": str(source), "output": str(folder / "out"), "workers": _WORKERS.value}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", _BUILD.format(**values)], cwd=_ROOT)
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=planning.watch, args=(process, peaks))
    watcher.start()
    code = process.wait()
    watcher.join()
    seconds, count = time.perf_counter() - start, sum(path.is_file() for path in source.rglob("*"))
    print(f"{count} files packed in {seconds:.1f} s, exit code {code}")
    for pid, peak in peaks.items():
        print(f"{'parent' if pid == process.pid else 'worker'}: peak {peak / 1024:.0f} MiB resident")


def measure_plan(folder: Path) -> None:
    """Prints what the planner takes for many rows."""
    source = make_images(folder / "source", 1000, 1000)
    planning.report(folder, sorted(source.rglob("*.jpg")), _IMAGES.value, _WORKERS.value)


def measure_input(folder: Path) -> None:
    """Compares input pipelines."""
    compete(folder, ("training", "evaluation", "reading"), contenders.BATCH)


def measure_stages(folder: Path) -> None:
    """Prints what each stage of the training pipeline takes."""
    print_stages(make_task(folder)["shards"], _WORKERS.value)


def print_stages(shards: str, cores: int) -> None:
    """Runs `benchmarks/stages.py` on some cores."""
    command = [sys.executable, "-m", "tfpipe.tools.benchmarks.stages", shards, str(cores), str(_IMAGES.value)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if status := subprocess.run(command, check=False, cwd=_ROOT, env=environment).returncode:
        sys.exit(status)  # the reason has been printed


def measure_cores(folder: Path) -> None:
    """Compares input pipelines on more and more cores."""
    task, most = {**make_task(folder), **contenders.BATCH}, count_cores()
    for cores in dict.fromkeys([*(1 << power for power in range(most.bit_length())), most]):
        workers = {
            name: contenders.Worker(name, sys.executable, {**task, "workers": cores}, folder / f"{name}-{cores}")
            for name in _ON_CORES
        }
        seconds = alternate(workers, contenders.Worker.measure, _REPETITIONS.value)
        for worker in workers.values():
            worker.close()
        speeds = {name: _IMAGES.value / statistics.median(times) for name, times in seconds.items()}
        print(f"{cores:3} cores, images/s: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items()))
        for ours, theirs in zip(_ON_CORES[:4:2], _ON_CORES[1:4:2], strict=True):
            print(f"          {theirs}: {compared(ours, seconds[ours], seconds[theirs])}", flush=True)
    print_stages(task["shards"], most)


def measure_extract(folder: Path) -> None:
    """Compares ways to get features."""
    weights = str(Path(_WEIGHTS.value).resolve()) if Path(_WEIGHTS.value).is_file() else _WEIGHTS.value
    print(f"{_BACKBONE.value}, images of {_IMAGE_SIZE.value} x {_IMAGE_SIZE.value}")
    options = {"batch_size": 32, "side": _IMAGE_SIZE.value, "backbone": _BACKBONE.value, "weights": weights}
    compete(folder, ("extraction",), options)


def measure_predict(folder: Path) -> None:
    """Compares ways from photos to probabilities."""
    if not _MODEL.value:
        raise commands.UsageError("--model is needed")
    compete(folder, ("prediction",), {"batch_size": 64, "side": 0, "model": str(Path(_MODEL.value).resolve())})


def compete(folder: Path, kinds: Sequence[str], options: dict[str, Any]) -> None:
    """Measures contenders of some kinds on the same photos, and prints their speeds."""
    names, pythons = check_names(kinds, _ONLY.value, _PEER_PYTHON.value)
    task = {**make_task(folder), **options}
    workers: dict[str, contenders.Worker] = {}
    try:
        for name in names:
            try:
                workers[name] = contenders.Worker(name, pythons[contenders.peer(name)], task, folder / name)
            except contenders.GaveUp as reason:
                print(f"skipped: {reason}", flush=True)
        print_speeds(alternate(workers, contenders.Worker.measure, _REPETITIONS.value))
    finally:
        for worker in workers.values():
            worker.close()


def make_task(folder: Path) -> dict[str, Any]:
    """Gathers the photos and packs them; returns what every contender is given."""
    source = Path(_INPUT.value) if _INPUT.value else folder / "source"
    if not _INPUT.value:
        contenders.make_photos(source, 64)
    different = contenders.gather_photos(source, folder / "photos", _IMAGES.value)
    photos = sorted(map(str, (folder / "photos").iterdir()))
    kilobytes = sum(map(os.path.getsize, photos)) / len(photos) / 1e3
    kind = "your photos" if _INPUT.value else "made: softened noise of 500 x 375, like photos in size only"
    print(f"{len(photos)} images a pass, {different} different ({kind}), mean {kilobytes:.0f} kB; {_WORKERS.value} cores")
    tfpipe.build_tfrecords({"train": folder / "photos"}, folder / "shards", layout="flat", num_shards=4, progress=False)
    return {"photos": photos, "shards": str(folder / "shards"), "workers": _WORKERS.value}


def check_names(kinds: Sequence[str], only: list[str], peer_python: str | None) -> tuple[list[str], dict[str, str]]:
    """Returns the contenders to run, and the interpreter of every peer."""
    names = [name for kind in kinds for name in contenders.CONTENDERS[kind]]
    peers = list(dict.fromkeys(map(contenders.peer, names)))
    pythons = commands.parse_pairs("peer_python", peer_python) if peer_python else {}
    check_known("only", only, names)
    check_known("peer_python", pythons, peers)
    if wrong := [python for python in pythons.values() if not shutil.which(python)]:
        raise commands.UsageError(f"--peer_python: no interpreter {', '.join(wrong)}")
    if _IMAGES.value % contenders.BATCH["batch_size"]:
        raise commands.UsageError(f"--num_images must be a multiple of {contenders.BATCH['batch_size']} (got {_IMAGES.value})")
    return [name for name in names if name in only or not only], dict.fromkeys(peers, sys.executable) | pythons


def check_known(flag: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Raises UsageError if a flag names a contender that there is not."""
    if wrong := [name for name in given if name not in known]:
        raise commands.UsageError(f"--{flag}: no contender {', '.join(wrong)}; there are {', '.join(known)}")


def print_speeds(seconds: dict[str, list[float]]) -> None:
    """Prints the images/s of each contender, and its ratios to tfpipe's contenders of its kind."""
    for kind, names in contenders.CONTENDERS.items():
        running = [name for name in names if name in seconds]
        if running:
            print(f"\n{kind}, images/s")
        for name in running:
            speeds = [_IMAGES.value / time for time in seconds[name]]
            ours = [other for other in running if contenders.peer(other) == "tfpipe" and other != name]
            ratios = "".join(f"   {compared(other, seconds[other], seconds[name])}" for other in ours)
            digits = 0 if min(speeds) >= 100 else 1
            median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(speeds), min(speeds), max(speeds)))
            print(f"{name:22} median {median:>6} (min {least}, max {most}){ratios}")


def measure_modes(folder: Path) -> None:
    """Compares the modes of training."""
    if not _DATA.value:
        raise commands.UsageError("--data is needed")
    check_known("only", _ONLY.value, list(modes.RUNS))
    size, epochs = _IMAGE_SIZE.value, _EPOCHS.value
    options = {"data": _DATA.value, "backbone": _BACKBONE.value, "weights": _WEIGHTS.value, "image_size": [size, size]}
    lengths = {"epochs": epochs, "patience": epochs}
    results: dict[str, modes.Result] = {}
    for name in _ONLY.value or modes.RUNS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = modes.measure(name, {**options, **lengths, "augment": "none", "seed": 0}, folder / name)
        shutil.rmtree(folder / name)  # features are large
    print(modes.table(results))


def measure_overhead(folder: Path) -> None:
    """Measures the overhead of training and evaluation."""
    if not _DATA.value:
        raise commands.UsageError("--data is needed")
    size, epochs = _IMAGE_SIZE.value, _EPOCHS.value
    options = [f"--backbone={_BACKBONE.value}", f"--weights={_WEIGHTS.value}", f"--image_size={size}", "--seed=0"]
    for mode, lengths in {"bottleneck": [], "finetune": [f"--finetune_epochs={epochs}"]}.items():
        print(f"\n{mode}")
        overhead.report(folder / mode, _DATA.value, mode, [*options, *lengths])


def measure_opening(folder: Path) -> None:
    """Prints what opening a large split takes, in a process for each repetition."""
    opening.make(folder / "shards", _IMAGES.value)
    for _ in range(_REPETITIONS.value):
        command = [sys.executable, "-m", "tfpipe.tools.benchmarks.opening", str(folder / "shards")]
        subprocess.run(command, check=True, cwd=_ROOT, stderr=subprocess.DEVNULL)


def measure_remote(folder: Path) -> None:
    """Compares a data set behind a slow server with the same one on the local disk."""
    arguments = [make_task(folder)["shards"], _DELAY_MS.value, _REPETITIONS.value, folder]
    print(f"{_DELAY_MS.value} ms a request")
    command = [sys.executable, "-m", "tfpipe.tools.benchmarks.remote_inputs", *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if status := subprocess.run(command, check=False, cwd=_ROOT, env=environment).returncode:
        sys.exit(status)  # the reason has been printed


def measure_flipped(folder: Path) -> None:
    """Counts labels flipped on purpose among the first suspects."""
    if not _INPUT.value:
        raise commands.UsageError("--input is needed")
    from tfpipe.tools.benchmarks import flipped_labels

    size = _IMAGE_SIZE.value
    training = {"backbone": _BACKBONE.value, "weights": _WEIGHTS.value, "mode": "bottleneck", "image_size": (size, size)}
    seeds = range(_REPETITIONS.value)
    flipped_labels.report(folder, Path(_INPUT.value).resolve(), _SHARE.value, seeds, training)


def make_images(folder: Path, count: int, size: int) -> Path:
    """Writes JPEG files of about `size` bytes: one image of noise, each with another comment."""
    from PIL import Image

    folder.mkdir(parents=True)
    drawn = random.Random(0)  # noqa: S311 (noise)
    pixels = max(8, int(((size - 300) / 0.82) ** 0.5))  # noise in grey at quality 90: a header, and 0.82 bytes a pixel
    path = folder / "first.jpg"
    Image.frombytes("L", (pixels, pixels), drawn.randbytes(pixels * pixels)).save(path, quality=90)
    data = path.read_bytes()
    path.unlink()
    for index in range(count):
        comment = f"{index:012d}".encode()
        marked = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        below = folder / f"{index // 1000:04d}"
        below.mkdir(exist_ok=True)
        (below / f"{index:07d}.jpg").write_bytes(marked)
    return folder


def command() -> None:
    """Runs the command."""
    commands.run(main, __name__)


if __name__ == "__main__":
    command()
