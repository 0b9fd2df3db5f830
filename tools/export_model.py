#!/usr/bin/env python3
"""Exports a trained classifier as files with the same outputs, and proves that they have them.

  export_model --model=runs/a --output=export/                                         SavedModel and frozen .pb
  export_model --model=runs/a --output=export/ --formats=saved_model,pb,tflite,onnx,keras --evaluation=eval/
  export_model --model=runs/a --output=export/ --formats=tflite_int8,openvino --calibration_data=shards/ --tta=flip
  export_model --model=mine.keras --class_names='cat,dog' --preprocessing=tf --output=export/

EXPORT holds saved_model/ (takes the bytes of image files, also for TensorFlow Serving),
frozen_image.pb and frozen_bytes.pb, model.tflite, model.onnx, model.xml, and for people labels.txt,
preprocessing.json, model_card.md, parity.json and SHA256SUMS. Before the folder appears, every file
runs on the same images, large and small, grey and CMYK, turned and damaged, in a process without
tfpipe; if the outputs of one differ from the model's, nothing is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.common.text import format_bytes, plural
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.records.samples import BACKGROUNDS, PNG16

_MODEL = flags.DEFINE_string("model", None, "Needed. A run's folder, or a .keras file, of any program's.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Needed. The folder to write: new or empty; or, with --overwrite, an unchanged export."
)
_FORMATS = flags.DEFINE_list(
    "formats",
    ["saved_model", "pb"],
    "Some of saved_model, pb, tflite, tflite_int8, onnx, openvino (these two: extras), keras.",
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "Of a run: best, last, or the path of a .keras file.")
_CLASS_NAMES = flags.DEFINE_list(
    "class_names",
    None,
    "Of another program's model: names of its columns, in order; quoted where they hold a comma. Default: the model's own.",
)
_PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    ("caffe", "tf", "torch", "unit", "grey", "none"),
    "Of such a model, in training: BGR minus mean, -1..1, standardised, 0..1, one channel, 0..255. Default: none, the last.",
)
_IMAGE_SIZE = flags.DEFINE_string(
    "image_size", None, "Of such a model, if it takes any: SIDE or HEIGHTxWIDTH. Default: the model's."
)
_RESIZE = flags.DEFINE_enum(
    "resize", None, ("stretch", "crop", "pad"), "Of such a model: how its images were resized. Default: stretch."
)
_OUTPUTS = flags.DEFINE_enum(
    "outputs",
    None,
    ("probabilities", "logits", "sigmoid"),
    "Of such a model. Default: sigmoid if one column has two names, that of the second, else probabilities.",
)
_PNG16 = flags.DEFINE_enum(
    "png16",
    None,
    PNG16,
    "Of such a model: how 16-bit PNG were read, see build_tfrecords. Default: that of --data, or high_byte.",
)
_BACKGROUND = flags.DEFINE_enum(
    "background",
    None,
    BACKGROUNDS,
    "Of such a model: background of transparent images. Default: that of --data, or keep.",
)
_TOP_K = flags.DEFINE_integer("top_k", 5, "Number of classes in a response.", 1)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", DEFAULT_MAX_PIXELS, "Height x width above which a file is refused: bounds the memory of a server.", 1
)
_HALF = flags.DEFINE_bool(
    "half", False, "Store weights in float16, half the bytes (.keras: all); the cost is measured on --data."
)
_TTA = flags.DEFINE_string(
    "tta", None, "Add means over views as signatures and files of their own: flip, five or a number. Default: none."
)
_DATA = flags.DEFINE_string("data", None, "Data set for --half, and for more images to compare on. Default: the run's.")
_CALIBRATION_DATA = flags.DEFINE_string(
    "calibration_data",
    None,
    "For tflite_int8: data set; 128 training images give the ranges, the loss is measured on val. Default: --data, the run's.",
)
_SPLIT = flags.DEFINE_string("split", None, "Of --data. Default: val.")
_EVALUATION = flags.DEFINE_multi_string("evaluation", [], "Folder of evaluate, for the model card; may be given several times.")
_TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Largest difference allowed in probabilities: TFLite, ONNX, OpenVINO.", 0.0)
_ENSEMBLE = flags.DEFINE_bool("ensemble", False, "Of a folder of train --folds: export the mean of its models, as one graph.")
_TRUST = flags.DEFINE_bool("trust", False, "Trust the model's author: open it even if it holds code, or uses files.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an export in --output when the new one is complete.")


def main(arguments: list[str]) -> None:
    """Exports, then prints the files and their differences from the model."""
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    if not (_MODEL.value and _OUTPUT.value):
        raise commands.UsageError("--model and --output are needed")
    size = None if _IMAGE_SIZE.value is None else commands.parse_size("image_size", _IMAGE_SIZE.value)
    from tfpipe.formats import preflight
    from tfpipe.models import tta

    tta.find(_TTA.value, _MODEL.value)
    preflight.check_export(
        _MODEL.value,
        _OUTPUT.value,
        formats=_FORMATS.value,
        checkpoint=_CHECKPOINT.value,
        data=_DATA.value,
        calibration_data=_CALIBRATION_DATA.value,
        split=_SPLIT.value,
        half=_HALF.value,
        evaluations=_EVALUATION.value,
        overwrite=_OVERWRITE.value,
        ensemble=_ENSEMBLE.value,
    )
    from tfpipe.exporting.exporter import export  # takes seconds

    of_model = (_CHECKPOINT, _CLASS_NAMES, _PREPROCESSING, _RESIZE, _OUTPUTS, _PNG16, _BACKGROUND, _TRUST)
    of_export = (_FORMATS, _TOP_K, _MAX_PIXELS, _HALF, _TTA, _EVALUATION, _TOLERANCE, _ENSEMBLE, _OVERWRITE)
    of_data = (_DATA, _CALIBRATION_DATA, _SPLIT)
    options = {flag.name: flag.value for flag in (*of_model, *of_export, *of_data)}
    done = export(_MODEL.value, _OUTPUT.value, image_size=size, **options)
    print(f"\n{'file':28} {'output':30} {'largest difference':>18} {'allowed':>8}")
    for row in done.parity:
        allowed = "any" if row.allowed is None else f"{row.allowed:g}"
        print(f"{row.artefact:28} {row.output:30} {row.difference:18.3g} {allowed:>8}")
    for what, cost in (("float16 weights", done.half), (f"8 bits, on {done.int8['split']}" if done.int8 else "", done.int8)):
        if cost:
            changed = plural(cost["num_changed"], "image gets", "images get")
            print(f"\n{what}: accuracy {cost['accuracy_before']:.4f} before, {cost['accuracy']:.4f} after,", end=" ")
            print(f"of {cost['num_pictures']:,}, {changed} another class")
    print()
    for name, num_bytes, _ in done.files:
        print(f"{format_bytes(num_bytes):>10}  {done.folder / name}")


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="Nothing was written.")


if __name__ == "__main__":
    command()
