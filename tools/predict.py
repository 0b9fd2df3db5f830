#!/usr/bin/env python3
"""Predicts images: a CSV, or lines of JSON, with one row per image, ordered by id.

  predict --model=runs/a --input=photos/ --output=predictions.csv      id, filename, reason, best classes, every probability
  predict --model=export/saved_model --output=predictions.jsonl a.jpg b.png 'more/*.jpg'     an object per image
  predict --model=runs/a --input=list.csv --output=predictions.csv                           a column path, perhaps one id
  predict --model=runs/a --output=- a.jpg b.png                                              a table on the terminal
  find photos -name '*.jpg' -print0 | predict --model=runs/a --input=- --output=predictions.csv
As competitions require it, or as evaluation writes it:
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=label              id,label with the class's name
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=probability --positive_class=dog
  predict --model=runs/a --input=test1/ --output=submission.csv --columns=index --id_column=Id --value_column=Category
  predict --model=runs/a --input=shards/ --split=test1 --output=table.csv --columns=table

Inputs are folders (with all folders below), files, globs, lists of paths, or one data set of
build_tfrecords. The id is the path in the folder without an image's extension, or with it if two
images would share an id. Bad images have a row with the reason; if the columns have no place for
it, all are named before the model runs and nothing is written, or, with --on_error=report, their
rows have no value. The output is replaced when all rows are there. Stopped or killed, the same
command resumes. Exit status: 0, or 1 if nothing was written or every image is bad.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.common.tables import unescape_formula
from tfpipe.common.text import plural
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.records.summary import aligned

if TYPE_CHECKING:
    from tfpipe.prediction.prediction import Summary

_MODEL = flags.DEFINE_string("model", None, "Needed. A run's folder, a .keras file of train, or a file or folder of an export.")
_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "Folder, file, glob, data set, CSV file with a column path, or - for paths on standard input; may be given several times.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Needed. The file to write; -: standard output, as a table on a terminal.")
_SPLIT = flags.DEFINE_string("split", None, "Of a data set. Default: the one that it has.")
_COLUMNS = flags.DEFINE_enum(
    "columns",
    "full",
    ("full", "label", "index", "probability", "value", "table"),
    "full: id, filename, reason (of a bad image), class_1, score_1, ..., every probability. label: id and predicted class."
    " index: id and its number, 0-based. probability: id and that of --positive_class, or of every class where there are more"
    " than two. value: id and the numbers of a regression."
    " table: key, filename, label (empty), predicted and every probability.",
)
_FORMAT = flags.DEFINE_enum("format", None, ("csv", "jsonl"), "Default: what the output's name ends with, else csv.")
_TOP_K = flags.DEFINE_integer("top_k", None, "Classes named in full rows and in JSON. Default: 5, at most all.", 1)
_POSITIVE_CLASS = flags.DEFINE_string("positive_class", None, "For --columns=probability. Default: of two classes, the second.")
_ID_COLUMN = flags.DEFINE_string("id_column", "id", "Header of the ids.")
_VALUE_COLUMN = flags.DEFINE_string("value_column", "label", "Header of the values.")
_CSV_SAFE = flags.DEFINE_bool(
    "csv_safe",
    True,
    "Put an apostrophe before names that a spreadsheet would compute, such as =1+1.jpg and -1.jpg.",
)
_ON_ERROR = flags.DEFINE_enum(
    "on_error",
    None,
    ("fail", "report"),
    "Bad images: name them and write nothing, or give them a row without a value and list them in OUTPUT.rejected.jsonl."
    " Default: report if rows hold the reason, else fail.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per call of the model.", 1)
_TTA = flags.DEFINE_string(
    "tta", None, "Average views of each image: flip, five (centre, corners), or a number of augmented ones. Default: one view."
)
_TRUST = flags.DEFINE_bool("trust", False, "Trust the model's author: open it even if it holds code, or uses files.")
_MAX_PIXELS = flags.DEFINE_integer("max_pixels", DEFAULT_MAX_PIXELS, "Height x width above which an image is bad.", 1)

_SHOWN = 20  # classes, in the summary
_SHOWN_BEST = 3  # classes of an image on a terminal, unless --top_k asks for others


def main(arguments: list[str]) -> int:
    """Predicts, then prints the summary; returns 1 if no image has a value."""
    inputs = [*_INPUT.value, *arguments]
    if not (_MODEL.value and inputs and _OUTPUT.value):
        raise commands.UsageError("--model, --input and --output are needed")
    if _OUTPUT.value != "-":
        summary = _predict(inputs, _OUTPUT.value, _FORMAT.value)
        _summarise(summary, sys.stdout)
    else:
        as_table = sys.stdout.isatty() and _FORMAT.value is None
        file_format = "jsonl" if as_table and _COLUMNS.value == "full" else _FORMAT.value or "csv"
        with tempfile.TemporaryDirectory(prefix="tfpipe-predict-") as folder:
            path = Path(folder) / f"predictions.{file_format}"
            summary = _predict(inputs, str(path), file_format)
            if as_table:
                print(*aligned([[_printable(cell) for cell in row] for row in _rows(path)], left=(0, 1, 3, 5)), sep="\n")
            else:
                sys.stdout.buffer.write(path.read_bytes())
            sys.stdout.flush()
        _summarise(summary, sys.stderr)
    return 0 if any(summary.counts.values()) else 1


def _predict(inputs: list[str], output: str, file_format: str | None) -> Summary:
    from tfpipe.models import tta
    from tfpipe.prediction import tables

    tta.check(_TTA.value)
    checked: dict[str, Any] = {"split": _SPLIT.value, "columns": _COLUMNS.value, "format": file_format}
    tables.check_prediction(_MODEL.value, inputs, output, **checked)
    from tfpipe.prediction.prediction import predict  # takes seconds

    of_rows = (_TOP_K, _POSITIVE_CLASS, _ID_COLUMN, _VALUE_COLUMN, _CSV_SAFE)
    options = {flag.name: flag.value for flag in (*of_rows, _ON_ERROR, _BATCH_SIZE, _TTA, _MAX_PIXELS, _TRUST)}
    return predict(_MODEL.value, inputs, output, **checked, **options)


def _rows(path: Path) -> list[list[str]]:
    """Returns the rows of a table for a terminal, which has no room for every probability."""
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [[unescape_formula(cell) for cell in row] for row in csv.reader(file)]
        found = [json.loads(line) for line in file]
    if found and "values" in found[0]:
        names = next((list(line["values"]) for line in found if line["values"]), [])
        table = [["id", *names, "reason"]]
        for line in found:
            values = [f"{line['values'][name]:.7g}" if line["values"] else "" for name in names]
            table.append([line["id"], *values, line["reason"]["message"] if line["reason"] else ""])
        return table if any(row[-1] for row in table[1:]) else [row[:-1] for row in table]
    count = min(_TOP_K.value or _SHOWN_BEST, max(len(line["top"]) for line in found))
    header = ["id", *(f"{name}_{place}" for place in range(1, count + 1) for name in ("class", "score")), "reason"]
    rows = []
    for line in found:
        best = [cell for each in line["top"][:count] for cell in (each["class"], f"{each['score']:.4f}")]
        reason = line["reason"]["message"] if line["reason"] else ""
        rows.append([line["id"], *(best or [""] * 2 * count), reason])
    return [header, *rows] if any(row[-1] for row in rows) else [row[:-1] for row in (header, *rows)]


def _printable(cell: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in cell)


def _summarise(summary: Summary, stream: TextIO) -> None:
    found = Counter({name: count for name, count in summary.counts.items() if count}).most_common()
    if summary.has_numbers:
        means = [f"mean of {name} {summary.mean_scores[name]:.4g}" for name, _ in found]
        print(f"{_OUTPUT.value}: {plural(summary.num_rows, 'row')}{''.join(f', {mean}' for mean in means)}", file=stream)
    else:
        _show_classes(summary, found, stream)
    if summary.rejected_path is None:
        return
    bad, rows = plural(len(summary.rejected), "bad image"), plural(len(summary.rejected), "row")
    if _OUTPUT.value == "-":
        print(f"{bad}:", *(f"  {key}: {message}" for key, message in summary.rejected.items()), sep="\n", file=stream)
    else:
        print(f"{summary.rejected_path}: {bad}, {rows} without a value", file=stream)


def _show_classes(summary: Summary, found: list[tuple[str, int]], stream: TextIO) -> None:
    counts = [f"{name} {count:,} (mean score {summary.mean_scores[name]:.3f})" for name, count in found[:_SHOWN]]
    more = f" and {plural(len(found) - _SHOWN, 'more class', 'more classes')}" if len(found) > _SHOWN else ""
    predicted = f", predicted: {', '.join(counts)}{more}" if counts else ""
    print(f"{_OUTPUT.value}: {plural(summary.num_rows, 'row')}{predicted}", file=stream)


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__, when_stopped="The output is as it was before; give the same command again to resume.")


if __name__ == "__main__":
    command()
