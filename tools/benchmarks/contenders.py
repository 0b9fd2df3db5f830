"""The contenders of `benchmark.py input`, `extract` and `predict`, each in its own process, and the photos they are given."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tfpipe.tools.benchmarks.rounds import environment

BATCH = {"batch_size": 64, "side": 224}

# Kind -> name of the contender -> module in this folder that holds the function of that name, "_" for "-".
# Each contender is compared with every tfpipe of its kind.
CONTENDERS = {
    "training": {
        "tfpipe-train": "tensorflow_inputs",
        "tfpipe-train-nocolour": "tensorflow_inputs",
        "tfpipe-train-stored": "tensorflow_inputs",
        "tfdata-crop-colour": "tensorflow_inputs",
        "tfdata-crop": "tensorflow_inputs",
        "tfdata-tutorial": "tensorflow_inputs",
        "keras": "tensorflow_inputs",
        "ffcv": "peer_inputs",
        "dali": "peer_inputs",
        "dali-bilinear": "peer_inputs",
        "torch": "peer_inputs",
        "simplejpeg-full": "peer_inputs",
        "simplejpeg-scaled": "peer_inputs",
    },
    "evaluation": {
        "tfpipe-eval": "tensorflow_inputs",
        "tfpipe-eval-scaled": "tensorflow_inputs",
        "tfdata-antialias": "tensorflow_inputs",
        "tfdata-bilinear": "tensorflow_inputs",
    },
    "reading": {
        "tfpipe-read-shuffled": "tensorflow_inputs",
        "tfpipe-read-stored": "tensorflow_inputs",
        "tfrecord-offsets": "tensorflow_inputs",
    },
    "extraction": {
        "tfpipe-extract": "extraction",
        "tfpipe-extract-float32": "extraction",
        "keras-extract": "extraction",
        "torch-extract": "extraction",
        "torch-extract-compiled": "extraction",
    },
    "prediction": {
        "tfpipe-predict": "prediction",
        "keras-predict": "prediction",
    },
}
MODULES = {name: module for kind in CONTENDERS.values() for name, module in kind.items()}

_PACKAGES = {"dali": "nvidia-dali-cuda120", "ffcv": "ffcv", "torch": "torch torchvision", "simplejpeg": "simplejpeg"}


def peer(name: str) -> str:
    """Returns whose contender it is: "dali" for "dali-bilinear"."""
    return name.split("-")[0]


class GaveUp(RuntimeError):
    """A contender cannot run here; the message says which, and why."""


class Worker:
    """A contender in its process, ready to measure once made; it waits, idle, between two measurements."""

    def __init__(self, name: str, python: str, task: dict[str, Any], scratch: Path) -> None:
        """Starts it and waits until it is prepared; GaveUp if it cannot be."""
        scratch.mkdir()
        self._name, self._num_images, self._log = name, len(task["photos"]), scratch / "stderr"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).resolve().with_name("worker.py")), MODULES[name], name.replace("-", "_")],
                env=_environment(python),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._ask(json.dumps({**task, "scratch": str(scratch)}))
        except BaseException:
            self.close()
            raise

    def measure(self) -> float:
        """Returns the seconds of one pass over all images."""
        answer = self._ask("go")
        if answer["images"] != self._num_images:
            raise GaveUp(f"{self._name}: yielded {answer['images']} images of {self._num_images}")
        return float(answer["seconds"])

    def close(self) -> None:
        """Ends the process."""
        try:
            self._process.communicate(timeout=10)  # closes its stdin, which ends it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        received = ""
        if self._process.stdin and self._process.stdout:
            try:
                print(line, file=self._process.stdin, flush=True)
                received = self._process.stdout.readline()
            except BrokenPipeError:
                received = ""
        if not received:
            last = self._log.read_text("utf-8", "replace").splitlines()[-1:]
            raise GaveUp(f"{self._name}: its process died: {''.join(last)}")
        answer: dict[str, Any] = json.loads(received)
        if "error" in answer:
            raise GaveUp(f"{self._name}: {answer['error']}{self._advice() if answer['missing'] else ''}")
        return answer

    def _advice(self) -> str:
        package = _PACKAGES.get(peer(self._name), "tensorflow")
        return f"; pip install {package}, or --peer_python={peer(self._name)}=INTERPRETER of an environment that has it"


def _environment(python: str) -> dict[str, str]:
    # No GPU for anyone. Our own interpreter is told where tfpipe is; another one must not find our packages beside it.
    found = environment() if python == sys.executable else os.environ
    return {**found, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


def gather_photos(source: Path, folder: Path, count: int) -> int:
    """Fills a new flat folder with `count` JPEG files, drawn from those below `source`, repeated where they are too few.

    Returns:
        How many different files there are among them.
    """
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"} and path.is_file())
    if not found:
        raise FileNotFoundError(f"{source}: no JPEG files in there")
    random.Random(0).shuffle(found)  # noqa: S311 (the same choice every time)
    folder.mkdir()
    for index, path in enumerate(itertools.islice(itertools.cycle(found), count)):
        shutil.copyfile(path, folder / f"{index:06d}.jpg")
    return min(count, len(found))


def make_photos(folder: Path, count: int) -> None:
    """Writes JPEG files of 500 x 375 pixels: noise at several scales, coarse strongest, about as large as photos are."""
    from PIL import Image

    folder.mkdir()
    drawn = random.Random(0)  # noqa: S311 (noise)
    for index in range(count):
        image = Image.frombytes("RGB", (4, 3), drawn.randbytes(36)).resize((500, 375), Image.Resampling.BICUBIC)
        for cells, strength in ((32, 0.3), (128, 0.15), (500, 0.03)):
            size = (cells, cells * 3 // 4)
            noise = Image.frombytes("RGB", size, drawn.randbytes(size[0] * size[1] * 3))
            image = Image.blend(image, noise.resize(image.size, Image.Resampling.BICUBIC), strength)
        image.save(folder / f"{index:03d}.jpg", quality=90)
