#!/usr/bin/env python3
"""Writes what a model says of pictures: a CSV, or lines of JSON, with one row per picture, ordered by id.

  predict --model=runs/a --input=photos/ --output=predictions.csv      id, filename, reason, best classes, every probability
  predict --model=export/saved_model --output=predictions.jsonl a.jpg b.png 'more/*.jpg'     an object per picture
  predict --model=runs/a --input=list.csv --output=predictions.csv                           a column path, perhaps one id
  find photos -name '*.jpg' -print0 | predict --model=runs/a --input=- --output=predictions.csv
As a competition asks for it, or as evaluation writes it:
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=label              id,label with the class's name
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=probability --positive_class=dog
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=index --id_column=Id --value_column=Category
  predict --model=runs/a --input=shards/ --split=test1 --output=table.csv --columns=table

Inputs are folders (with all folders below), files, globs, lists of paths, or one data set of build_tfrecords. The id is the
path in the folder without a picture's extension, or with it where two would have the same id. Bad pictures have a row that
says why; where the columns have no place for that, all are named before the model runs and nothing is written, or, with
--on_error=report, their rows have no value. The output is replaced when all rows are there. Stopped or killed, the same
command goes on where it was. Exit status: 0, or 1 where nothing was written, or where every picture is bad.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.records.images import DEFAULT_MAX_PIXELS
from tfpipe.records.summary import plural

_MODEL = flags.DEFINE_string("model", None, "A run's folder, a .keras file of train, or a file or folder of an export.")
_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "Folder, file, glob, data set, CSV file with a column path, or - for paths on standard input; may be given several times.",
)
_OUTPUT = flags.DEFINE_string("output", None, "The file to write.")
_SPLIT = flags.DEFINE_string("split", None, "Of a data set; needed where it has several.")
_COLUMNS = flags.DEFINE_enum(
    "columns",
    "full",
    ("full", "label", "index", "probability", "table"),
    "full: id, filename, reason (of a bad picture), class_1, score_1, ..., every probability. label: id and predicted class."
    " index: id and its number, 0-based. probability: id and that of --positive_class, or of every class where there are more"
    " than two. table: key, filename, label (empty), predicted and every probability.",
)
_FORMAT = flags.DEFINE_enum("format", None, ("csv", "jsonl"), "Default: what the output's name ends with, else csv.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Classes named in full rows and in JSON. Default: 5, at most all.", 1)
_POSITIVE_CLASS = flags.DEFINE_string(
    "positive_class", None, "For --columns=probability: whose. Default: of two classes, the second."
)
_ID_COLUMN = flags.DEFINE_string("id_column", "id", "Header of the ids.")
_VALUE_COLUMN = flags.DEFINE_string("value_column", "label", "Header of the one value beside them.")
_ON_ERROR = flags.DEFINE_enum(
    "on_error",
    None,
    ("fail", "report"),
    "Bad pictures: name them and write nothing, or give them a row without a value and list them in OUTPUT.rejected.jsonl."
    " Default: report where the row says the reason, else fail.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures that the model sees at once.", 1)
_MAX_PIXELS = flags.DEFINE_integer("max_pixels", DEFAULT_MAX_PIXELS, "Height x width above which a picture is bad.", 1)

_SHOWN = 20  # classes, in the summary


def main(arguments: list[str]) -> int:
    """Predicts, then prints the summary; returns 1 where there is a value for no picture."""
    inputs = [*_INPUT.value, *arguments]
    if not (_MODEL.value and inputs and _OUTPUT.value):
        raise commands.UsageError("--model, --input and --output are needed")
    from tfpipe.serving.prediction import predict  # takes seconds, and --help need not

    summary = predict(
        _MODEL.value,
        inputs,
        _OUTPUT.value,
        split=_SPLIT.value,
        columns=_COLUMNS.value,
        format=_FORMAT.value,
        top_k=_TOP_K.value,
        positive_class=_POSITIVE_CLASS.value,
        id_column=_ID_COLUMN.value,
        value_column=_VALUE_COLUMN.value,
        on_error=_ON_ERROR.value,
        batch_size=_BATCH_SIZE.value,
        max_pixels=_MAX_PIXELS.value,
    )
    found = Counter({name: count for name, count in summary.counts.items() if count})
    counts = ", ".join(f"{name} {count:,}" for name, count in found.most_common(_SHOWN))
    more = f" and {plural(len(found) - _SHOWN, 'more class', 'more classes')}" if len(found) > _SHOWN else ""
    print(f"{_OUTPUT.value}: {plural(summary.num_rows, 'row')}{f', predicted: {counts}{more}' if counts else ''}")
    if summary.rejected_path is not None:
        print(f"{summary.rejected_path}: {plural(len(summary.rejected), 'bad picture')}, rows without a value")
    return 0 if any(summary.counts.values()) else 1


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="The output is as it was before; give the same command again to go on.")


if __name__ == "__main__":
    command()
