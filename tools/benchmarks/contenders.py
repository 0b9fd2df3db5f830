"""The contenders of `benchmark.py`, each in its own process, and their photos."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tfpipe

Item = TypeVar("Item")

BATCH = {"batch_size": 64, "side": 224}

# Kind -> name of the contender -> module in this folder that holds the function of that name, "_"
# for "-". Each contender is compared with every tfpipe of its kind.
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
        "tfpipe-predict": "tensorflow_inputs",
        "keras-predict": "tensorflow_inputs",
    },
}
MODULES = {name: module for kind in CONTENDERS.values() for name, module in kind.items()}

_PACKAGES = {"dali": "nvidia-dali-cuda120", "ffcv": "ffcv", "torch": "torch torchvision", "simplejpeg": "simplejpeg"}


def alternate(contenders: dict[str, Item], measure: Callable[[Item], float], repetitions: int) -> dict[str, list[float]]:
    """Returns the seconds of each contender, by round; the first round does not count."""
    rounds = [{name: measure(item) for name, item in contenders.items()} for _ in range(1 + repetitions)]
    return {name: [times[name] for times in rounds[1:]] for name in contenders}


def compared(name: str, own: list[float], others: list[float]) -> str:
    """Returns the speed of `name` relative to others: ratios within rounds, median and range."""
    ratios = [other / mine for mine, other in zip(own, others, strict=True)]
    return f"{name} is {statistics.median(ratios):6.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})"


def environment() -> dict[str, str]:
    """Returns the environment of a process that imports this tfpipe from any folder."""
    places = [str(Path(tfpipe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def peer(name: str) -> str:
    """Returns the library of a contender: "dali" for "dali-bilinear"."""
    return name.split("-")[0]


class GaveUp(RuntimeError):
    """A contender cannot run here; the message names it and the reason."""


class Worker:
    """A contender in its process, ready to measure, idle between two measurements."""

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
    # No GPU for any. Our own interpreter needs the path of tfpipe; others must not find our
    # packages there.
    found = environment() if python == sys.executable else os.environ
    return {**found, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


def gather_photos(source: Path, folder: Path, count: int) -> int:
    """Fills a new flat folder with `count` JPEG files from `source`, repeated if too few.

    Returns:
        The number of different files among them.
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
    """Writes JPEG files of 500 x 375 pixels: noise at several scales, as large as photos."""
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
