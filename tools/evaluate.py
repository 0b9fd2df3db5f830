#!/usr/bin/env python3
"""Evaluates a classifier on a labelled split: each image once, one table, all metrics from it.

  evaluate --model=runs/a --data=shards/ --split=test --output=eval/
  evaluate --model=export/saved_model --data=shards/ --split=test --output=eval/     or a .pb, .tflite or .onnx file
  evaluate --model=runs/a --data=shards/ --split=test --output=eval/ --positive_class=ill --specificity=0.9 --calibrate=val
  evaluate --model=runs/a --data=shards/ --split=test --output=eval/ --shard=0/3     one of three processes or machines
  evaluate --model=runs/cv --data=shards/ --output=eval/       of train --folds: each image by the model that has not seen it
  evaluate compare A B         do two evaluations of the same images differ?

OUTPUT gets predictions.csv (a row per image), metrics.json, receipt.json (what was evaluated, and
proof of completeness) and report.html. With --shard, the reader that completes the parts merges
them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.common.text import between, display_width, number, plural, threshold, with_interval

if TYPE_CHECKING:
    from tfpipe.evaluation.evaluator import Evaluation

_COMPARE_HELP = """Compares two evaluations of the same images by McNemar's exact test.

  evaluate compare A B         folders of two evaluations, or their predictions.csv files

Prints both accuracies, their difference with its 95 % interval, and how often two equally good
classifiers differ as much, or more, by chance; by group where the data set has groups.
"""

_MODEL = flags.DEFINE_string(
    "model", None, "Needed. A run's folder, a .keras file that train wrote, or a file or folder of an export."
)
_DATA = flags.DEFINE_string("data", None, "Needed. Folder of a data set of build_tfrecords, also in a store: s3://bucket/pets.")
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "Split to evaluate on. Default: test; of train --folds, all folds, each by the model that has not seen it.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Needed. Folder for the results, created if missing; replaces earlier results.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images that go through the model at once.", 1)
_NUM_READERS = flags.DEFINE_integer("num_readers", 1, "Read the split as so many parts, one after another.", 1)
_SHARD = flags.DEFINE_string(
    "shard", None, "INDEX/COUNT: only this part of the split, 0-based; all parts share --output. Default: 0/1."
)
_POSITIVE_CLASS = flags.DEFINE_string(
    "positive_class", None, "Class that sensitivity, ROC and PR curves are about. Default: of two classes the second."
)
_SPECIFICITY = flags.DEFINE_float("specificity", 0.95, "Sensitivity is given at this specificity.", 0.0, 1.0)
_CALIBRATE = flags.DEFINE_string(
    "calibrate", None, "Split to fit a temperature on, for calibrated probabilities. Default: none."
)
_TTA = flags.DEFINE_string(
    "tta", None, "Average views of each image: flip, five (centre, corners), or a number of augmented ones. Default: one view."
)
_TRUST = flags.DEFINE_bool("trust", False, "Trust the model's author: open it even if it holds code, or uses files.")
_REPORT = flags.DEFINE_bool("report", True, "Write report.html.")
_NEAR_DUPLICATES = flags.DEFINE_bool(
    "near_duplicates", True, "Report: look for near-duplicates in train and val, a pass over all."
)

_MAX_CLASSES = 20  # more rows than this are left to the files


def main(arguments: list[str]) -> None:
    """Evaluates or compares, then prints the results."""
    if arguments[:1] == ["compare"]:
        if len(arguments) != 3:
            raise commands.UsageError(f"usage: compare A B (got {plural(len(arguments) - 1, 'argument')})")
        _compare(*arguments[1:])
        return
    if arguments:
        raise commands.UsageError(f"arguments without a flag: {' '.join(arguments)}; the only command is compare A B")
    if not (_MODEL.value and _DATA.value and _OUTPUT.value):
        raise commands.UsageError("--model, --data and --output are needed")
    _evaluate(None if _SHARD.value is None else _parse_shard(_SHARD.value))


def _evaluate(shard: tuple[int, int] | None) -> None:
    from tfpipe.common.files import check_folder
    from tfpipe.evaluation.receipts import check_unseen, open_labelled
    from tfpipe.formats import preflight
    from tfpipe.models import tta
    from tfpipe.records import folds

    tta.check(_TTA.value)
    if shard is not None and _NUM_READERS.value != 1:
        raise commands.UsageError("--shard and --num_readers exclude each other")
    of_folds = _SPLIT.value is None and folds.is_folder(_MODEL.value)
    given = {"--shard": shard, "--num_readers": _NUM_READERS.value, "--calibrate": _CALIBRATE.value, "--tta": _TTA.value}
    if of_folds and (refused := [name for name, value in given.items() if value not in (None, 1)]):
        raise commands.UsageError(
            f"{' and '.join(refused)} cannot be used for out-of-fold predictions: leave that out, or evaluate the mean of all"
            " models on a split that none of them has seen, as in --split=test"
        )
    split = _SPLIT.value or "test"
    for name in () if of_folds else filter(None, (split, _CALIBRATE.value)):
        open_labelled(_DATA.value, name)
    preflight.find_model(_MODEL.value)
    if not of_folds and folds.is_folder(_MODEL.value):
        check_unseen(folds.seen_by(_MODEL.value), _DATA.value, split, _CALIBRATE.value)
    check_folder(_OUTPUT.value)
    from tfpipe.evaluation.evaluator import evaluate
    from tfpipe.evaluation.folds import evaluate_folds
    from tfpipe.formats import opening  # takes seconds

    found: list[Evaluation] = []

    def show(evaluation: Evaluation) -> None:
        found.append(evaluation)
        print(_summary(evaluation), flush=True)  # now: the report may fail

    common: dict[str, Any] = {
        "batch_size": _BATCH_SIZE.value,
        "positive_class": _POSITIVE_CLASS.value,
        "specificity": _SPECIFICITY.value,
        "report": _REPORT.value,
        "on_found": show,
    }
    try:
        if of_folds:
            evaluation = evaluate_folds(_MODEL.value, _DATA.value, _OUTPUT.value, trust=_TRUST.value, **common)
        else:
            predictor = opening.load(_MODEL.value, trust=_TRUST.value)
            evaluation = evaluate(
                predictor,
                _DATA.value,
                split,
                _OUTPUT.value,
                shard=shard,
                num_readers=_NUM_READERS.value,
                calibrate=_CALIBRATE.value,
                tta=tta.find(_TTA.value, _MODEL.value, predictor),
                near_duplicates=_NEAR_DUPLICATES.value,
                **common,
            )
    except KeyboardInterrupt as stop:
        if found:
            stop.add_note("There is no report; table, metrics and receipt are complete.")
        raise
    if evaluation.missing_parts:
        print(_missing(_SHARD.value, evaluation))
    elif found and _REPORT.value:
        print(evaluation.folder / "report.html")


def _parse_shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise commands.UsageError(f"--shard must be INDEX/COUNT with 0 <= INDEX < COUNT, as 0/3 (got {text!r})")
    return int(index), int(count)


def _missing(shard: str, evaluation: Evaluation) -> str:
    paths, ids = [f"  {path}" for path in evaluation.missing_parts], evaluation.missing_ids
    rows = f"{plural(len(ids), 'image')}, {ids[0]!r} to {ids[-1]!r}" if ids else "0 images"
    return "\n".join([f"part {shard} is complete; missing {plural(len(paths), 'part')} ({rows}):", *paths])


def _summary(evaluation: Evaluation) -> str:
    found, folder = evaluation.metrics, evaluation.folder
    files = ["", *(f"{folder / name}" for name in ("predictions.csv", "metrics.json", "receipt.json"))]
    if found.get("task") == "regression":
        return "\n".join([*_number_lines(found, evaluation.receipt["split"]), *files])
    if found.get("task") == "multilabel":
        return "\n".join([*_label_lines(found, evaluation.receipt["split"]), *files])
    lines = [
        f"accuracy {with_interval(found['accuracy'], found['accuracy_interval'])} on {plural(found['count'], 'image')}"
        f" of {evaluation.receipt['split']!r}, each exactly once",
        *_group_lines(found.get("groups")),
        *_order_lines(found),
        f"AUC {number(found['auc'])}, log loss {found['log_loss']:.4f}, ECE {found['ece']:.4f}",
        *_binary_lines(found["binary"]),
        *_calibration_lines(found["calibration"], found),
        *_fold_lines(found),
    ]
    if len(found["per_class"]) <= _MAX_CLASSES:
        lines += ["", *_class_lines(found["per_class"])]
    return "\n".join([*lines, *files])


def _number_lines(found: Mapping[str, Any], split: str) -> list[str]:
    """Returns the metrics of a regression."""
    from tfpipe.evaluation.numbers.values import IN_UNITS, SHOWN

    lines = [f"{plural(found['count'], 'image')} of {split!r}, each exactly once", *_group_lines(found.get("groups"))]
    for row in found["per_target"]:
        unit = f" {row['unit']}" if row["unit"] else ""
        lines += ["", f"{row['name']}, of which the standard deviation is {row['deviation']:.4g}{unit}"]
        for name, text in SHOWN.items():
            low, high = row[f"{name}_interval"] or (None, None)
            value = "-" if row[name] is None else f"{row[name]:.4g}{unit if name in IN_UNITS else ''}"
            lines.append(f"  {text} {value}" + ("" if low is None else f" (95 %: {low:.4g} to {high:.4g})"))
    return [*lines, *_fold_lines(found)]


def _order_lines(found: Mapping[str, Any]) -> list[str]:
    from tfpipe.evaluation.numbers.order import SHOWN

    shown = {name: text for name, text in SHOWN.items() if name in found}
    return [f"{text} {number(found[name])}{between(found[f'{name}_interval'])}" for name, text in shown.items()]


def _label_lines(found: Mapping[str, Any], split: str) -> list[str]:
    """Returns the metrics of several labels an image."""
    chosen, rows = found["calibration"], found["per_class"]
    means = (("AUC", "auc"), ("average precision", "average_precision"), ("F1", "f1"))
    lines = [f"{plural(found['count'], 'image')} of {split!r}, each exactly once, with {plural(found['known'], 'known label')}"]
    for shown, name in means:
        low, high = found[f"macro_{name}_interval"] or (None, None)
        lines.append(f"{shown}, mean of the classes: {number(found[f'macro_{name}'])} (95 %: {number(low)} to {number(high)})")
    lines.append(f"right labels {found['label_accuracy']:.2%}, images with all of them right {found['exact_match']:.2%}")
    if chosen is not None:
        lines.append(f"thresholds chosen on {chosen['split']!r}; with 0.5, mean F1 {number(chosen['before']['macro_f1'])}")
    lines[1:1] = _group_lines(found.get("groups"))
    lines += _fold_lines(found)
    if len(rows) > _MAX_CLASSES:
        return lines
    width = max(display_width(name) for name in ("class", *(row["class_name"] for row in rows)))
    lines += ["", f"{_padded('class', width)}     AUC      AP  threshold  precision  recall      F1     with  unknown"]
    for row in rows:
        scores = f"{number(row['auc']):>6}  {number(row['average_precision']):>6}  {threshold(row['threshold']):>9}"
        at = f"{number(row['precision']):>9}  {number(row['recall']):>6}  {number(row['f1']):>6}"
        lines.append(f"{_padded(row['class_name'], width)}  {scores}  {at}  {row['support']:7,}  {row['unknown']:7,}")
    return lines


def _group_lines(groups: Mapping[str, Any] | None) -> list[str]:
    return (
        [] if groups is None else [f"95 % intervals by group, of {plural(groups['num_groups'], 'group')}; {groups['interval']}"]
    )


def _binary_lines(binary: Mapping[str, Any] | None) -> list[str]:
    if binary is None:
        return []
    at = binary["sensitivity_at_specificity"]
    sensitivity = with_interval(at["sensitivity"], at["sensitivity_interval"])
    specificity = with_interval(at["specificity"], at["specificity_interval"])
    return [
        f"{binary['positive_class']!r} against the rest: ROC-AUC {number(binary['roc_auc'])},"
        f" PR-AUC {number(binary['average_precision'])}",
        f"sensitivity {sensitivity} at specificity {specificity}, threshold {threshold(at['threshold'])}",
    ]


def _calibration_lines(calibration: Mapping[str, Any] | None, found: Mapping[str, Any]) -> list[str]:
    if calibration is None:
        return []
    before = calibration["before"]
    return [
        f"temperature {calibration['temperature']:g}, fitted on {calibration['split']!r}:"
        f" ECE {before['ece']:.4f} -> {found['ece']:.4f}, log loss {before['log_loss']:.4f} -> {found['log_loss']:.4f}"
    ]


def _fold_lines(found: Mapping[str, Any]) -> list[str]:
    from tfpipe.evaluation.metrics import fold_rows

    if not (rows := fold_rows(found)):
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return ["", f"{plural(len(found['folds']['names']), 'fold')}, each predicted by the model that has not seen it", *lines]


def _class_lines(classes: list[dict[str, Any]]) -> list[str]:
    width = max(display_width(name) for name in ("class", *(row["class_name"] for row in classes)))
    lines = [f"{_padded('class', width)}  precision  recall      F1  images"]
    for row in classes:
        numbers = f"{number(row['precision']):>9}  {number(row['recall']):>6}  {number(row['f1']):>6}  {row['support']:8,}"
        lines.append(f"{_padded(row['class_name'], width)}  {numbers}")
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def _compare(a: str, b: str) -> None:
    from tfpipe.evaluation.mcnemar import compare

    found = compare(a, b)
    low, high = found.difference_interval
    print(f"A: {found.accuracy_a:.2%} {a}")
    print(f"B: {found.accuracy_b:.2%} {b}")
    print(f"difference {found.difference:+.2%} (95 %: {low:+.2%} to {high:+.2%}) on {plural(found.count, 'image')}")
    if found.distances is not None and found.distance_interval is not None:
        far_a, far_b = found.distances
        print(
            f"mean distance from the right class, in classes: A {far_a:.4f}, B {far_b:.4f},"
            f" difference {far_a - far_b:+.4f}{between(found.distance_interval)}"
        )
    test = "McNemar's exact test"
    if found.num_groups is not None:
        test = f"exact test by group, of {plural(found.num_groups, 'group')}"
    same = {True: "yes", False: "no", None: "unknown, without two receipts"}[found.same_data]
    print(f"same data set and split: {same}")
    if found.tta:
        print("test-time augmentation: A {}, B {}".format(*found.tta))
    print(
        f"both right {found.both_right:,}, only A {found.only_a:,}, only B {found.only_b:,}, both wrong {found.both_wrong:,};"
        f" {test}: p = {found.p_value:.3g}"
    )


def command() -> None:
    """Runs the command; the console script's entry point."""
    if sys.argv[1:2] == ["compare"]:
        globals()["__doc__"] = _COMPARE_HELP
        for flag in list(flags.FLAGS.flags_by_module_dict()[flags.FLAGS.find_module_defining_flag("model")]):
            delattr(flags.FLAGS, flag.name)
    commands.run(main, __name__, when_stopped="Nothing is kept of a pass that was stopped: run the same command again.")


if __name__ == "__main__":
    command()
