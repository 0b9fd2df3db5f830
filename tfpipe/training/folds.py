"""`tfpipe.train_folds()`: cross-validation, a classifier for each fold that has never seen it.

    folds = train_folds("shards/", "runs/cv", backbone="vgg16", mode="auto")    # runs/cv/fold0, runs/cv/fold1, ...
    tfpipe.evaluate_folds("runs/cv", "shards/", "eval/")

Run i neither trains on fold i nor looks at it: the next fold chooses its best epoch, and the split
val where there is one (see `tfpipe.records.folds.plan`). An epoch is one permutation of all images
that are trained on, as of one split.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.common.files import write_json
from tfpipe.common.progress import log_line
from tfpipe.common.text import html_table, plural
from tfpipe.records import folds
from tfpipe.records.manifest import load
from tfpipe.training import preflight
from tfpipe.training.cluster import Workers
from tfpipe.training.recipes import Recipe
from tfpipe.training.runs import Report, Run, changed, train


@dataclass(frozen=True, repr=False)
class FoldRuns:
    """The runs of all folds.

    Attributes:
        folder: of all; each run has its own in it, called as the fold that it has not seen.
        runs: in the order of the folds.
    """

    folder: Path
    runs: Sequence[Run]

    def __repr__(self) -> str:
        accuracies = [run.val_accuracy for run in self.runs]
        mean = f"{statistics.mean(accuracies):.4f} +- {statistics.stdev(accuracies):.4f}"
        return f"FoldRuns({os.fspath(self.folder)!r}, {plural(len(self.runs), 'run')}, val_accuracy={mean})"

    def _repr_html_(self) -> str:
        rows = [[run.folder.name, run.mode, run.val_accuracy, run.model_sha256[:12]] for run in self.runs]
        return html_table(repr(self), ["not seen", "mode", "val_accuracy", "model_sha256"], rows)


def train_folds(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    log: Report | None = log_line,
    **options: Any,
) -> FoldRuns:
    """Trains a classifier for each fold of a data set, or goes on where that was stopped.

    Finished runs are left alone, and one that was stopped goes on from its last step: the result
    has the bits of an uninterrupted call. Runs share the features of frozen layers, each image's
    computed once.

    Args:
        data: folder of a data set that was built with splits={"folds": 5} or the like.
        output: the folder of all runs.
        recipe: how to train each; default `Recipe()`.
        cache: folder for features, default "features" beside `output`.
        log: see `tfpipe.train`.
        options: further arguments of `tfpipe.train`, and fields of the recipe.

    Raises:
        ValueError: the data set has no folds, or a class is in too few of them; `from_run` was
            trained on this data set, so that it has seen every fold; or as `tfpipe.train`.
        FileNotFoundError, DataError, BlockingIOError: as `tfpipe.train`.
    """
    directory, folder = arguments.path("data", data), arguments.path("output", output)
    place = folder.absolute().parent / "features" if cache is None else arguments.path("cache", cache)
    if beside := {"train_split", "val_split"} & set(options):
        raise TypeError(f"{min(beside)}: of each run the folds define it; tfpipe.train has this argument")
    if log is not None:
        arguments.callback("log", log)
    if options.get("from_run") is not None:
        options["from_run"] = arguments.path("from_run", options["from_run"])
    strategy = options.get("strategy")
    if isinstance(strategy, tf.distribute.Strategy) and Workers(strategy).count > 1:
        raise ValueError("several workers train one run: give each fold to train(train_split=..., val_split=...)")
    fields = {field.name for field in dataclasses.fields(Recipe)} & set(options)
    wanted = changed(Recipe() if recipe is None else recipe, {name: options.pop(name) for name in fields})
    planned = preflight.check_folds(directory, folder, place, wanted, options.get("from_run"))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / folds.FILE_NAME, folds.describe(load(directory)))
    runs = []
    for number, fold in enumerate(planned, 1):
        if log is not None:
            log(f"{fold.held_out}: run {number} of {len(planned)}, trained on {fold.train}, validated on {fold.val}")
        given = {**options, "cache": place, "log": log, "train_split": fold.train, "val_split": fold.val}
        runs.append(train(directory, folder / fold.held_out, wanted, **given))
        if strategy is None:
            keras.backend.clear_session()  # else the memory of all runs adds up
    return FoldRuns(folder, runs)
