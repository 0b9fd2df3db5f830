#!/usr/bin/env python3
"""Writes photographs, byte for byte, into sharded TFRecords with a manifest.

  build_tfrecords --input=photos/ --output=shards/ --name=pets --layout=folders --splits=train=0.8,test=0.2
  build_tfrecords --input=train=signs/train,test=signs/test --output=shards/ --layout=filename
  build_tfrecords --input=cats_dogs/train --unlabelled=test1=cats_dogs/test1 --splits=train=0.9,val=0.1 --output=shards/
  build_tfrecords --input=/data/photos --output=/data/shards --workers_folder=/data/tasks        started on many machines

JPEG, PNG, WebP and BMP files are stored unchanged. A check of their headers names every file that TensorFlow
could not read; --check=decode also checks their compressed data, and names those that it would read
with a warning, such as a photo that is half grey. A stopped run continues when it is started again
with the same flags; a complete data set is left alone.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.building.build import build_tfrecords
from tfpipe.building.engines.choice import ENGINES
from tfpipe.building.engines.shared_folder import DEFAULT_LEASE_SECONDS
from tfpipe.building.inputs.sources import DEFAULT_LABEL_PATTERN, LAYOUTS
from tfpipe.building.options import CHECKS, DEFAULT_SHARD_BYTES, NORMALIZATIONS
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.listing.conversion import CONVERSIONS
from tfpipe.records.combinations import SEPARATOR
from tfpipe.records.manifest import SINGLE, TASKS
from tfpipe.records.samples import BACKGROUNDS, PNG16, USUAL
from tfpipe.records.summary import describe_manifest

_INPUT = flags.DEFINE_string(
    "input", None, "Needed, or --unlabelled. Folder, .csv or .h5 file; or one per split: train=DIR,test=DIR2."
)
_OUTPUT = flags.DEFINE_string("output", None, "Needed. Folder for the data set; created if missing.")
flags.DEFINE_string("name", "images", "Name of the data set; shards are NAME-SPLIT.tfrecord-00000-of-00016.")
flags.DEFINE_enum(
    "layout",
    None,
    LAYOUTS,
    "folders: one folder per class. filename: the class is in the file's name. csv: columns of paths or ids, of labels and,"
    " optionally, called split and id. flat: no labels. hdf5: arrays of images and labels. tfds: a data set that"
    " tensorflow-datasets prepared. Default: guessed where that is certain.",
)
_SPLITS = flags.DEFINE_string(
    "splits",
    None,
    "Fraction of each split, adding up to 1: train=0.8,val=0.1,test=0.1; folds=5,test=0.2: equal ones for train --folds."
    " Default: one, train.",
)
_UNLABELLED = flags.DEFINE_string("unlabelled", None, "Folders of images without labels, by split: test1=DIR. Default: none.")
flags.DEFINE_string(
    "label_pattern",
    DEFAULT_LABEL_PATTERN,
    "For --layout=filename: regular expression with one named group, matched from the start of the file's name.",
)
flags.DEFINE_list("class_names", None, "Classes in the order of labels, not checked further. Default: sorted.")
flags.DEFINE_string("images", None, "For --layout=csv: folder that paths are relative to. Default: the table's own.")
flags.DEFINE_string(
    "path_column",
    None,
    "For --layout=csv: column of paths, or of names without an ending. Default: path, filename, image_id, ...",
)
flags.DEFINE_string("label_column", None, "For --layout=csv: column of classes. Default: label, class, ...")
flags.DEFINE_string(
    "group", None, "Column of --layout=csv with patients, places or bursts: one's images are in one split. Default: none."
)
flags.DEFINE_string(
    "group_pattern", None, r"Regular expression that finds the group in an image's path: patient_(\d+). Default: no groups."
)
flags.DEFINE_enum("normalize", "none", NORMALIZATIONS, "nfc: class names that differ in their Unicode form only are one class.")
flags.DEFINE_enum(
    "task",
    SINGLE,
    TASKS,
    "single: an image has one class. multilabel: any number, of --layout=csv. ordinal: one, of classes in an order."
    " regression: numbers.",
)
flags.DEFINE_string("label_separator", SEPARATOR, "For --task=multilabel: between the classes in a cell of the label column.")
flags.DEFINE_list(
    "label_columns", None, "Columns of --layout=csv, one for each class: 1, 0 or empty for unknown. Default: one label column."
)
flags.DEFINE_list(
    "target_columns", None, "Columns of --layout=csv with a number each, to be predicted, as age,height. Default: classes."
)
flags.DEFINE_list("units", None, "Unit of each of --target_columns: years,cm. Default: none.")
_NUM_SHARDS = flags.DEFINE_string("num_shards", None, "Shards per split: 16, or train=16,test=2. Default: by --shard_mib.")
_SHARD_MIB = flags.DEFINE_integer("shard_mib", DEFAULT_SHARD_BYTES >> 20, "Approximate size of a shard, in MiB.", 1)
flags.DEFINE_integer("seed", 0, "Draws the splits and the order of records.")
flags.DEFINE_integer("workers", None, "Processes. Default: one per core.", 1)
flags.DEFINE_enum(
    "on_error", "fail", ("fail", "skip"), "Bad images: list all and write nothing, or leave out and list in rejected.jsonl."
)
flags.DEFINE_enum("on_conflict", "fail", ("fail", "keep"), "Equal bytes under different labels.")
flags.DEFINE_bool("allow_leaks", False, "Keep equal bytes in different given splits, noted in the manifest.")
flags.DEFINE_enum(
    "check", "header", CHECKS, "header: structure only. decode: compressed data, too; some 5 to 20 ms for a photo."
)
flags.DEFINE_enum(
    "png16",
    USUAL.png16,
    PNG16,
    "How PNG of 16 bits is read, where the file does not declare its significant bits (sBIT). high_byte: that of each sample."
    " full_range: an image's darkest sample is 0, its brightest 255. percentile: the same for the samples that 1 % and 99 % of"
    " them do not exceed. The files are stored unchanged.",
)
flags.DEFINE_enum(
    "convert",
    None,
    CONVERSIONS,
    "png: makes PNG of images that TensorFlow cannot decode, without loss: HEIC (needs tfpipe[heif]), AVIF, TIFF, GIF, other"
    " BMP, the first image of an animation. Default: such files are refused, each with its format.",
)
flags.DEFINE_enum(
    "background", USUAL.background, BACKGROUNDS, "Colour behind transparent images when they are read; keep: drops alpha."
)
flags.DEFINE_list(
    "decisions", (), "decisions.csv of page --review: other labels, images to leave out. Several are applied in order."
)
flags.DEFINE_string(
    "workers_folder",
    None,
    "Empty folder by which several processes build together: start the same command on any machines that see input, output and"
    " this folder under the same names. Default: this process alone.",
)
flags.DEFINE_float(
    "lease_seconds", DEFAULT_LEASE_SECONDS, "With --workers_folder: silence of a process that counts as its death.", 1
)
flags.DEFINE_enum(
    "engine",
    "processes",
    ENGINES,
    "What carries out the work. ray, beam: a cluster whose machines see input and output under the same names. Options of Beam"
    " and its runner follow after two hyphens: --engine=beam -- --runner=DirectRunner --direct_num_workers=2.",
)
flags.DEFINE_string("engine_address", None, "For --engine=ray: auto, or HOST:PORT. Default: RAY_ADDRESS, or this machine.")
flags.DEFINE_integer("max_pixels", DEFAULT_MAX_PIXELS, "Height x width above which an image is rejected.", 1)


_PASSED_ON = (  # unchanged
    *("name", "layout", "label_pattern", "class_names", "seed", "workers", "on_error", "on_conflict", "allow_leaks"),
    *("max_pixels", "check", "images", "path_column", "label_column", "group", "group_pattern", "normalize"),
    *("png16", "background", "convert", "task", "label_separator", "label_columns", "target_columns", "units", "decisions"),
    *("workers_folder", "lease_seconds", "engine", "engine_address"),
)


def main(arguments: list[str]) -> None:
    """Builds, then prints the summary."""
    if arguments and flags.FLAGS.engine != "beam":
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}")
    if not _OUTPUT.value or _INPUT.value == "" or (_INPUT.value is None and _UNLABELLED.value is None):
        raise commands.UsageError("--input (or --unlabelled) and --output are needed")
    manifest = build_tfrecords(
        None if _INPUT.value is None else commands.parse_paths("input", _INPUT.value),
        _OUTPUT.value,
        splits=_SPLITS.value and commands.parse_numbers("splits", _SPLITS.value, _fraction),
        unlabelled=_UNLABELLED.value and commands.parse_pairs("unlabelled", _UNLABELLED.value),
        num_shards=_num_shards(_NUM_SHARDS.value),
        shard_bytes=_SHARD_MIB.value << 20,
        engine_options=arguments,
        **{name: flags.FLAGS[name].value for name in _PASSED_ON},
    )
    print(describe_manifest(manifest))


def _fraction(text: str) -> float:
    return float(Fraction(text))  # 1/3, too


def _num_shards(value: str | None) -> int | dict[str, int] | None:
    if value is None or value.isdigit():
        return None if value is None else int(value)
    return commands.parse_numbers("num_shards", value, int)


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="What was finished is kept: run the same command again to continue.")


if __name__ == "__main__":
    command()
