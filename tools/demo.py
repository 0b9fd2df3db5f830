#!/usr/bin/env python3
"""Runs the main job on pictures that it makes: digits to TFRecords, a classifier, its evaluation, export and predictions."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

import tfpipe
from tfpipe import commands
from tfpipe.inspection.contact_sheet import show
from tfpipe.inspection.verification import verify
from tfpipe.records.summary import describe_manifest

_OUTPUT = flags.DEFINE_string("output", "demo_output", "Folder for all that the demo makes.")

_SIDE = 64  # pixels; the digits themselves are 8 x 8
_RECIPE = tfpipe.Recipe(
    backbone="lenet",
    weights="none",
    mode="scratch",
    grey=True,
    image_size=(32, 32),
    pooling="flatten",
    epochs=12,
    augment="none",
)


def main(arguments: list[str]) -> None:
    """Makes pictures, builds, verifies, reads back, trains, evaluates."""
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    output = Path(_OUTPUT.value)
    photos, shards = output / "photos", output / "shards"

    print(f"1. Making JPEG files of scikit-learn's handwritten digits in {photos}")
    count = make_pictures(photos)

    print(f"2. Packing {count} files into TFRecords in {shards}")
    splits = {"train": 0.7, "val": 0.15, "test": 0.15}
    manifest = tfpipe.build_tfrecords(photos, shards, name="digits", layout="filename", splits=splits, seed=0)
    print(describe_manifest(manifest))

    print("3. Verifying every byte")
    report = verify(shards)
    if report.num_findings:
        raise tfpipe.DataError("\n".join(map(str, report.findings)), path=shards)
    sheet = output / "digits.png"
    show(shards, sheet, split="train")

    print("4. Reading the test split back through tf.data, each picture exactly once")
    keys: Counter[bytes] = Counter()
    for batch in tfpipe.dataset(shards, "test", batch_size=64, image_size=(_SIDE, _SIDE), as_dict=True):
        keys.update(batch["key"].numpy().tolist())
    expected = manifest.splits["test"].num_records
    if len(keys) != expected or set(keys.values()) != {1}:
        raise tfpipe.DataError(f"{len(keys)} different keys, {keys.total()} in all, expected {expected}", path=shards)
    print(f"   {expected} pictures, each once.")

    run, evaluation = output / "run", output / "evaluation"
    print(f"5. Training a small network from scratch, all weights new, in {run}")
    start = time.monotonic()
    tfpipe.train(shards, run, _RECIPE, report=print)
    print(f"   {time.monotonic() - start:.0f} s, see {run / 'history.png'}")

    print(f"6. Evaluating it on the test split, in {evaluation}")
    metrics = tfpipe.evaluate(run, shards, "test", evaluation).metrics
    low, high = metrics["accuracy_interval"]
    print(f"   accuracy {metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}) on {metrics['count']} pictures")

    exported = output / "export"
    print(f"7. Exporting it to {exported}, and comparing every file with it in a process without tfpipe")
    done = tfpipe.export(run, exported, formats=("saved_model", "pb", "tflite"), evaluations=[evaluation], overwrite=True)
    exact = [row for row in done.parity if row.allowed == 0]
    print(
        f"   {len(exact)} outputs of TensorFlow's formats compared, largest difference {max(row.difference for row in exact):g}"
    )

    table = output / "predictions.csv"
    print(f"8. Asking the exported SavedModel for the test split, in {table}")
    summary = tfpipe.predict(exported / "saved_model", shards, table, split="test")
    print("   " + ", ".join(f"{name}: {count}" for name, count in summary.counts.items()))

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


def make_pictures(folder: Path) -> int:
    """Writes one JPEG file per digit, called CLASS_NUMBER.jpg; returns how many."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        picture = Image.fromarray((255 - pixels * 255 / 16).astype("uint8"))
        picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(folder / f"{label}_{index:04d}.jpg", quality=92)
    return len(digits.images)


def command() -> None:
    """Runs the demo."""
    commands.run(main, __name__)


if __name__ == "__main__":
    command()
