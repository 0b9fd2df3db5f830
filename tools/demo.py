#!/usr/bin/env python3
"""Runs the main job on digits: TFRecords, a classifier, evaluation, export and predictions.

Started again, it does what is missing, and what was made from other files, or by other code, than
there are now.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

import tfpipe
from tfpipe import commands
from tfpipe.common.files import read_json, sha256_of, write_json
from tfpipe.records.summary import describe_manifest

_OUTPUT = flags.DEFINE_string("output", "demo_output", "Folder for all that the demo makes.")

NUM_DIGITS = 1797  # all that scikit-learn has
RECIPE = {
    "backbone": "lenet",
    "weights": "none",
    "mode": "scratch",
    "grey": True,
    "image_size": (32, 32),
    "pooling": "flatten",
    "epochs": 12,
    "augment": "none",
}
OWN_PHOTOS = """\
tfpipe build --input=photos/ --output=shards/ --name=pets --layout=folders --splits=train=0.7,val=0.15,test=0.15
tfpipe train --data=shards/ --output=runs/a --backbone=vgg16 --weights=imagenet --mode=auto
tfpipe evaluate --model=runs/a --data=shards/ --split=test --output=eval/"""  # as in README.md, where a test runs them

_SIDE = 64  # pixels; the digits themselves are 8 x 8
_RECORD_NAME = "done.json"


def main(arguments: list[str]) -> None:
    """Runs the demo, and tells how to go on."""
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    run_demo(Path(_OUTPUT.value))
    print("\nThe same with photos of your own, in one folder per class (photos/cat/, photos/dog/):")
    print(f"{_enter_checkout()}\n{OWN_PHOTOS}")


def run_demo(output: Path, *, num_digits: int = NUM_DIGITS, recipe: dict[str, Any] = RECIPE) -> None:
    """Makes images, builds, verifies, reads back, trains, evaluates, exports and predicts."""
    photos, shards, sheet = output / "photos", output / "shards", output / "digits.png"
    run, evaluation, exported, table = (output / name for name in ("run", "evaluation", "export", "predictions.csv"))
    steps = Steps(output / _RECORD_NAME)

    def build() -> None:
        splits = {"train": 0.7, "val": 0.15, "test": 0.15}
        tfpipe.build_tfrecords(photos, shards, name="digits", layout="filename", splits=splits, seed=0)

    def train() -> None:
        start = time.monotonic()
        tfpipe.train(shards, run, log=print, **recipe)
        print(f"   {time.monotonic() - start:.0f} s, see {run / 'history.png'}")

    def export() -> None:
        formats = ("saved_model", "pb", "tflite")
        tfpipe.export(run, exported, formats=formats, evaluation=evaluation, overwrite=True)

    def predict() -> None:
        summary = tfpipe.predict(exported / "saved_model", shards, table, split="test")
        print("   " + ", ".join(f"{name}: {count}" for name, count in summary.counts.items()))

    images = "Making JPEG files of scikit-learn's handwritten digits"
    steps.do(images, lambda: make_images(photos, num_digits), makes=[photos])
    steps.do("Packing them into TFRecords", build, needs=[photos], makes=[shards])
    print(describe_manifest(tfpipe.load_manifest(shards)))
    steps.do("Verifying every byte, and drawing a sheet", lambda: _verify(shards, sheet), needs=[shards], makes=[sheet])
    read = "Reading the test split back through tf.data, each image exactly once"
    steps.do(read, lambda: _read_back(shards), needs=[shards])
    steps.do("Training a small network from scratch, all weights new", train, needs=[shards], makes=[run])
    evaluate = "Evaluating it on the test split"
    steps.do(evaluate, lambda: tfpipe.evaluate(run, shards, "test", evaluation), needs=[run, shards], makes=[evaluation])
    metrics = read_json(evaluation / "metrics.json")
    low, high = metrics["accuracy_interval"]
    print(f"   accuracy {metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}) on {metrics['count']} images")
    compare = "Exporting it, and comparing every file with it in a process without tfpipe"
    steps.do(compare, export, needs=[run, evaluation], makes=[exported])
    exact = [row["difference"] for row in read_json(exported / "parity.json")["parity"] if row["allowed"] == 0]
    print(f"   {len(exact)} outputs of TensorFlow's formats compared, largest difference {max(exact):g}")
    steps.do("Asking the exported SavedModel for the test split", predict, needs=[exported, shards], makes=[table])

    print("\nWhat lies where:")
    for what, path in {
        "the data set": shards,
        "a sheet of it": sheet,
        "the classifier": run / "model.keras",
        "how it was trained": run / "history.png",
        "its evaluation, to look at": evaluation / "report.html",
        "the exported model, for TensorFlow Serving": exported / "saved_model",
        "the same as one file": exported / "frozen_bytes.pb",
        "and what is known of it": exported / "model_card.md",
        "its predictions": table,
    }.items():
        print(f"   {what:44} {path}")


class Steps:
    """Steps that are done once: a file keeps hashes of code, inputs and outputs of each."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._done: dict[str, str] = read_json(record) if record.exists() else {}
        code = _hash_files([Path(tfpipe.__file__).parent, Path(__file__)], "*.py")
        self._code = f"{code} {importlib.metadata.version('tensorflow')}"
        self._count = 0

    def do(self, title: str, work: Callable[[], object], *, needs: Sequence[Path] = (), makes: Sequence[Path] = ()) -> None:
        """Does a step, unless nothing has changed since it was done."""
        self._count += 1
        print(f"{self._count}. {title}", flush=True)
        if self._done.get(title) == self._hash(needs, makes):
            print("   already done")
            return
        work()
        self._done[title] = self._hash(needs, makes)
        write_json(self._record, self._done)

    def _hash(self, *files: Sequence[Path]) -> str:
        return hashlib.sha256(" ".join([self._code, *map(_hash_files, files)]).encode()).hexdigest()


def _hash_files(paths: Sequence[Path], pattern: str = "*") -> str:
    """Returns a hash of the names and bytes of files, and of those in folders."""
    files = [(path, file) for path in paths for file in ([path] if path.is_file() else sorted(path.rglob(pattern)))]
    lines = [f"{file.relative_to(path.parent)} {sha256_of(file)}" for path, file in files if file.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_images(folder: Path, count: int) -> None:
    """Writes one JPEG file per digit, called CLASS_NUMBER.jpg."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
        image = Image.fromarray((255 - pixels * 255 / 16).astype("uint8"))
        image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(folder / f"{label}_{index:04d}.jpg", quality=92)


def _verify(shards: Path, sheet: Path) -> None:
    from tfpipe.report.contact_sheet import show
    from tfpipe.verification.verification import verify

    report = verify(shards)
    if report.num_findings:
        raise tfpipe.DataError("\n".join(map(str, report.findings)), path=shards)
    show(shards, sheet, split="train")


def _read_back(shards: Path) -> None:
    keys: Counter[bytes] = Counter()
    for batch in tfpipe.dataset(shards, "test", batch_size=64, image_size=(_SIDE, _SIDE), as_dict=True):
        keys.update(batch["key"].numpy().tolist())
    expected = tfpipe.load_manifest(shards).splits["test"].num_records
    if len(keys) != expected or set(keys.values()) != {1}:
        raise tfpipe.DataError(f"{len(keys)} different keys, {keys.total()} in all, expected {expected}", path=shards)
    print(f"   {expected} images, each once")


def _enter_checkout() -> str:
    """Returns the shell's line that leads to tools/, with the environment of this process."""
    checkout, activate = Path(__file__).resolve().parents[1], Path(sys.prefix, "bin", "activate")
    words = [["cd", str(checkout)]]
    if activate.exists():
        words.append(["source", str(activate.relative_to(checkout) if activate.is_relative_to(checkout) else activate)])
    return " && ".join(map(shlex.join, words))


def command() -> None:
    """Runs the demo."""
    commands.run(main, __name__)


if __name__ == "__main__":
    command()
