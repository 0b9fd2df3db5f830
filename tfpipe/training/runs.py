"""`tfpipe.train()`: from a data set to a run's folder with a classifier in it.

    run = train("shards/", "runs/a", backbone="vgg16", weights="imagenet", mode="auto", seed=0)

A run's folder holds model.keras (the best weights), last.keras (those of the last step), run.json
(recipe, choices, versions, hashes: all that is needed to do it again), summary.json (written last),
log.jsonl, history.csv, history.png, tensorboard/, and state/, all that is needed to go on: about
four times the weights that are trained. The same command again goes on where a run was stopped; one
with more epochs or patience trains a finished run longer; another is refused. Without its state/,
which may be deleted, a finished run is as good as before, but cannot be trained longer.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfpipe
from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_folder, path_written_atomically, read_json, write_json
from tfpipe.common.locking import locked
from tfpipe.common.progress import log_line
from tfpipe.common.text import html_table, plural
from tfpipe.models import classifiers
from tfpipe.models.classifiers import Classifier
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.networks import arithmetic
from tfpipe.networks.submodels import hash_network
from tfpipe.records.run_folders import (
    BACKBONE_NAME,
    HEAD_IMAGE,
    HEAD_NAME,
    LAST_NAME,
    MODEL_NAME,
    RUN_NAME,
    STATE_FOLDER,
    SUMMARY_NAME,
    check_vacant,
    state_file,
    state_files,
)
from tfpipe.records.samples import Samples
from tfpipe.training import checkpoints, curves, extending, preflight
from tfpipe.training.extending import Extension
from tfpipe.training.loop import Loop
from tfpipe.training.networks import BlockCount, Networks
from tfpipe.training.phases import Phases
from tfpipe.training.profiling import peak_memory_bytes
from tfpipe.training.recipes import Recipe, complete
from tfpipe.training.run_log import Journal, read_history
from tfpipe.training.schedules import RangeTest
from tfpipe.training.steps import Phase

HISTORY_IMAGE = "history.png"
RATE_NAME = "learning_rate.json"

_log = logging.getLogger("tfpipe")

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False, repr=False)
class Run(Mapping[str, Any]):
    """A finished run; as a mapping, what summary.json holds: run["val_accuracy"].

    Attributes:
        folder: the run's folder.
        mode: of training, "auto" replaced by what was chosen.
        val_accuracy: of the best weights.
        phases: per phase its name, epochs, accuracy, loss, numbers of weights and seconds per
            epoch.
        head: the regression that was chosen for the head on cached features, or None.
        model_sha256: of the classifier.
        peak_memory_bytes: of this process.
    """

    folder: Path
    mode: str
    val_accuracy: float
    phases: Sequence[dict[str, Any]]
    head: dict[str, Any] | None
    model_sha256: str
    peak_memory_bytes: int

    def __repr__(self) -> str:
        phases = ", ".join(f"{phase['phase']} {phase['val_accuracy']:.4f}" for phase in self.phases)
        facts = f"mode={self.mode!r}, val_accuracy={self.val_accuracy:.4f}, phases=[{phases}]"
        return f"Run({os.fspath(self.folder)!r}, {facts}, model_sha256={self.model_sha256[:12]!r})"

    def _repr_html_(self) -> str:
        names = ("phase", "num_epochs", "best_epoch", "val_accuracy", "val_loss", "num_trained", "num_frozen", "on")
        return html_table(repr(self), names, [[phase[name] for name in names] for phase in self.phases])

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def __iter__(self) -> Iterator[str]:
        return iter([field.name for field in dataclasses.fields(self)][1:])

    def __len__(self) -> int:
        return len(dataclasses.fields(self)) - 1


@arguments.renamed(directory="data", report="log")
def train(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    checkpoint_seconds: float = 60.0,
    tensorboard: bool = True,
    profile_steps: int = 0,
    progress: bool = True,
    log: Report | None = log_line,
    extend: bool = False,
    from_run: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Run:
    """Trains a classifier, or goes on with a run that was stopped or is to be trained longer; returns it.

    A run goes on from its last step when `epochs`, `finetune_epochs` or `patience` are raised.
    Where its learning rates so far would have been the same (schedules "constant" and "plateau", or
    patience alone), it ends with the bits of one that was asked for these numbers from the start. A
    longer head makes fine-tuning begin anew.

    Args:
        data: folder of a data set that `build_tfrecords` wrote, with a split "train"; "val" is
            validated on, and where there is none, a part of "train" is held out.
        output: the run's folder.
        recipe: how to train; default `Recipe()`.
        cache: folder for features, default "features" beside the run's folder. Shared by all runs,
            safe to delete.
        strategy: of several devices; default one device.
        checkpoint_seconds: how often the state is saved: what a kill can cost at most. Also at each
            epoch's end and on Ctrl-C.
        tensorboard: write event files.
        profile_steps: measure and trace as many steps.
        progress: show bars, or log a line per epoch where there is no terminal.
        log: called with lines that report what is done and why; default the logger "tfpipe", whose
            lines are seen on stderr where nobody has configured logging. None: silence, bars and
            lines per epoch included.
        extend: train a run longer also where its learning rates would have been others from the
            start: a cosine begins anew with a warm-up.
        from_run: a finished run's folder (or its .keras file), whose weights are those to begin
            with: the backbone's, and, if classes and layers are the same, the head's. In place of
            `weights`.
        changes: fields of the recipe: `train("shards/", "runs/a", mode="finetune")`.

    Returns:
        The run, with what summary.json holds.

    Raises:
        ValueError: an option is not what it should be, options do not go together, or the folder
            has another run.
        FileNotFoundError: there is no data set or no file of weights.
        DataError: the data set, the cache or the saved state is damaged, or the loss is no longer
            finite.
        BlockingIOError: another process trains in this folder.
    """
    checkpoint_seconds, tensorboard, profile_steps, progress, extend = arguments.check(
        checkpoint_seconds=checkpoint_seconds,
        tensorboard=tensorboard,
        profile_steps=profile_steps,
        progress=progress,
        extend=extend,
    )
    if log is None:
        progress, log = False, _nothing
    arguments.callback("log", log)
    if not isinstance(strategy, tf.distribute.Strategy | None):
        raise arguments.wrong("strategy", "a tf.distribute.Strategy", strategy)
    if from_run is not None:
        from_run = arguments.path("from_run", from_run)
    wanted = preflight.with_weights_of(from_run, _changed(Recipe() if recipe is None else recipe, changes))
    directory, folder = arguments.path("data", data), arguments.path("output", output)
    place = folder.absolute().parent / "features" if cache is None else arguments.path("cache", cache)
    preflight.check_training(directory, folder, place, wanted)
    prepared = _Data(directory, wanted)
    with locked(folder, "training"):
        clear_folder(folder)
        summary, extension = _open(folder, prepared, extend)
        for line in extension.lines if extension else ():
            log(line)
        if summary is not None:
            _report_summary(folder, summary, log)
            return Run(folder, **summary)
        for line in prepared.reasons:
            log(line)
        if prepared.recipe.deterministic:
            tf.config.experimental.enable_op_determinism()
        strategy = strategy or tf.distribute.get_strategy()
        samples = Samples.of(prepared.manifest.options)
        networks = Networks(prepared.recipe, prepared.class_names, prepared.precision, strategy, samples)
        if from_run is not None:
            log(f"from {from_run}: {networks.take_head(classifiers.load(from_run))}")
        _begin(folder, prepared, networks)
        if extension:
            extension.apply(folder)
        first_steps = read_json(folder / RUN_NAME).get("first_steps", {})
        phases = Phases(
            prepared.recipe,
            networks,
            prepared.train,
            prepared.val,
            folder,
            place,
            strategy,
            progress,
            log,
            first_steps=first_steps,
            fits=prepared.wanted.batch_size == "auto",
        )
        position = max((facts["journal"] for facts in _saved_facts(folder)), default=0)
        with Journal(folder, tensorboard=tensorboard, position=position, profile_steps=profile_steps) as journal:
            run = _Run(folder, phases, journal, checkpoint_seconds)
            results = [run.train(phase) for phase in phases.of_mode()]
        summary = _finish(folder, networks, run, results)
    _report_summary(folder, summary, log)
    return Run(folder, **summary)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    if not isinstance(recipe, Recipe):
        raise arguments.wrong("recipe", "a Recipe", recipe)
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise TypeError(f"{name}: neither an argument of train nor a field of Recipe{arguments.nearest(name, known)}")
    return dataclasses.replace(recipe, **changes)


class _Data:
    """What is trained on, and the recipe completed for it."""

    def __init__(self, directory: Path, wanted: Recipe) -> None:
        self.directory, self.wanted = directory, wanted
        self.manifest = preflight.open_training(directory)
        self.class_names = self.manifest.class_names
        self.recipe, self.reasons = complete(wanted, self.manifest.split("train").num_records, len(self.class_names))
        self.precision, why = arithmetic.choose(self.recipe.precision)
        self.reasons.append(f"precision={self.precision}: {why}")
        self.train, self.val = self._images()

    def _images(self) -> tuple[SplitImages, SplitImages]:
        recipe = self.recipe
        common: dict[str, Any] = {"image_size": recipe.image_size, "resize": recipe.resize, "seed": recipe.seed}
        train = SplitImages(self.directory, "train", augmentation=recipe.augmentation, balanced=recipe.balanced, **common)
        if "val" in self.manifest.splits:
            return train, SplitImages(self.directory, "val", **common)
        train, held = hold_out(train, recipe.val_fraction)
        num_held, num_all = len(held.positions), train.num_records
        self.reasons.append(f"no val split: {num_held:,} of the {num_all:,} training images are held out for validation")
        return train, held

    def facts(self) -> dict[str, Any]:
        """Returns what run.json holds."""
        wanted, chosen = (json.loads(json.dumps(recipe.facts())) for recipe in (self.wanted, self.recipe))
        wanted["weights"] = os.path.basename(self.wanted.weights)  # a file may move; backbone.json has the hash
        versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
        return {
            "recipe": wanted,
            "chosen": {name: value for name, value in chosen.items() if name != "weights" and value != wanted[name]},
            "reasons": self.reasons,
            "precision": self.precision,
            "data": {
                "name": self.manifest.name,
                "root_hash": self.manifest.root_hash,
                **Samples.of(self.manifest.options).options(),
                "class_names": list(self.class_names),
                "num_train": len(self.train.positions),
                "num_val": len(self.val.positions),
            },
            "directory": os.path.abspath(self.directory),  # where the data set was; it may move
            "versions": {"tfpipe": tfpipe.__version__, "python": platform.python_version(), **versions},
            "command": sys.argv,
        }


class _Run:
    """Trains one phase after the other."""

    def __init__(self, folder: Path, phases: Phases, journal: Journal, checkpoint_seconds: float) -> None:
        self._folder, self._phases, self._journal = folder, phases, journal
        self._checkpoint_seconds = checkpoint_seconds
        self._first = True
        self._loop: Loop | None = None
        self._last: list[Any] = []

    def train(self, phase: Phase) -> dict[str, Any]:
        """Trains a phase to its end; returns what the summary says of it."""
        phases = self._phases
        counts = phases.networks.parameters(phase.trained)
        phases.report(describe_parameters(counts, phase.name))
        loop = Loop(
            phase,
            phases.strategy,
            state_file(self._folder, phase.name),
            self._journal,
            self._checkpoint_seconds,
            phases.progress,
            phases.report,
        )
        if phases.recipe.learning_rate == "find" and self._first:
            rate = self._found_rate(loop)
            phase.schedule = phases.schedule(phase.name, rate, phase.batches.num_steps)
        self._first = False
        self._loop, self._last = loop, loop.run()
        stopping = phase.stopping
        number = stopping.best_number
        if phase.epochs:
            when = f"best in epoch {number}" if number else "no epoch was better than its start, which is kept"
            phases.report(f"{phase.name}: validation accuracy {stopping.best:.4f}, {when}")
        return {
            "phase": phase.name,
            "num_epochs": loop.progress.epoch,
            "best_epoch": number,  # from 1; 0: no epoch was better than the phase before
            "val_accuracy": stopping.best,
            "val_loss": stopping.best_loss,
            "num_trained": sum(line.num_trained for line in counts),
            "num_frozen": sum(line.num_frozen for line in counts),
            "on": "features" if phase.batches.is_cached else "pictures",
        }

    def assign_last(self) -> None:
        """Gives the networks the weights of the last step, in place of the best ones."""
        if self._loop is not None:
            self._loop.assign(self._last)

    def _found_rate(self, loop: Loop) -> float:
        """Returns the learning rate that a range test suggests, measured once a run."""
        path = self._folder / RATE_NAME
        if not path.exists():
            test = RangeTest()
            loop.explore(test)
            suggestion = test.suggestion()
            if suggestion is None:
                raise DataError("the range test found no learning rate at which the loss falls: give one with learning_rate")
            rates, losses = test.curve()
            curves.draw_range_test(rates, losses, suggestion, self._folder / "learning_rate.png")
            finite = [loss if math.isfinite(loss) else None for loss in losses]
            write_json(path, {"learning_rate": suggestion, "rates": rates, "losses": finite})
        rate: float = read_json(path)["learning_rate"]
        self._phases.report(f"learning_rate={rate:.2g}: found by a range test, see learning_rate.png; weights are as before")
        return rate


def _nothing(line: str) -> None:
    """Says nothing."""


def _open(folder: Path, data: _Data, extend: bool) -> tuple[dict[str, Any] | None, Extension | None]:
    """Returns the summary if the run is finished, or how it goes on; compares what has been begun with what is wanted.

    A run that has not trained a step yet is no run: its options may be corrected.
    """
    path, summary = folder / RUN_NAME, folder / SUMMARY_NAME
    check_vacant(folder)
    if path.exists() and (summary.exists() or state_files(folder)):
        found, facts = read_json(path), data.facts()
        for part in ("recipe", "data"):
            for name, value in facts[part].items():
                was = found.get(part, {}).get(name)
                if was != value and name not in extending.LENGTHS:
                    raise ValueError(f"{folder}: holds a run with {name}={was!r}, not {value!r}; choose another folder")
        if found.get("versions") != facts["versions"]:
            _log.warning("%s: begun with other versions (%s): the bits may differ", path, found.get("versions"))
        if found.get("precision") != data.precision:
            data.reasons.append(f"precision={found['precision']}: the run was begun with it")
            data.precision = found["precision"]
        extending.check_solver(folder, found, data.recipe)
        if raised := extending.find_raised(folder, found, data.recipe):
            return None, extending.plan(folder, found, facts, data.recipe, raised, rewarm=extend)
    return read_json(summary) if summary.exists() else None, None


def _begin(folder: Path, data: _Data, networks: Networks) -> None:
    """Writes what the run is, once all that can be wrong with its options has been seen; goes on with no other weights."""
    path, found = folder / BACKBONE_NAME, {"sha256": hash_network(networks.backbone.network)}
    if networks.head_from is not None:
        found["head_from"] = networks.head_from
    if not state_files(folder):
        (folder / RATE_NAME).unlink(missing_ok=True)  # of a first try, maybe with other options
        write_json(path, found)
        write_json(folder / RUN_NAME, data.facts())
    elif read_json(path) != found:
        raise ValueError(f"{folder}: was begun with other weights than {data.wanted.weights}; choose another folder")
    (folder / STATE_FOLDER).mkdir(exist_ok=True)


def _saved_facts(folder: Path) -> list[dict[str, Any]]:
    return [checkpoints.load(path)[1] for path in state_files(folder)]


def _finish(folder: Path, networks: Networks, run: _Run, phases: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the models, the image and, last, the summary."""
    model = networks.classifier()
    _save_model(model, folder / MODEL_NAME)
    history = read_history(folder)
    if history:
        curves.draw_history(history, folder / HISTORY_IMAGE)
    for phase in phases:
        seconds = [row["train_seconds"] for row in history if row["phase"] == phase["phase"]]
        phase["seconds_per_epoch"] = statistics.median(seconds) if seconds else None
    summary = {
        "mode": networks.recipe.mode,
        "val_accuracy": phases[-1]["val_accuracy"],
        "phases": phases,
        "head": read_json(folder / HEAD_NAME)["best"] if (folder / HEAD_NAME).exists() else None,
        "model_sha256": Classifier(model).sha256,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    run.assign_last()
    _save_model(networks.classifier(), folder / LAST_NAME)
    write_json(folder / SUMMARY_NAME, summary)
    return summary


def _report_summary(folder: Path, summary: dict[str, Any], report: Report) -> None:
    for phase in summary["phases"]:
        seconds = "" if phase["seconds_per_epoch"] is None else f" of {phase['seconds_per_epoch']:.2f} s"
        epochs = f"{plural(phase['num_epochs'], 'epoch')}{seconds}" if phase["num_epochs"] else "logistic regression"
        best = f" in epoch {phase['best_epoch']}" if phase["best_epoch"] else ""
        report(f"{phase['phase']}: {epochs} on {phase['on']}, validation accuracy {phase['val_accuracy']:.4f}{best}")
    report(f"peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB")
    drawing = next((path for path in (folder / HISTORY_IMAGE, folder / HEAD_IMAGE) if path.exists()), folder)
    report(f"{folder}: this run is finished. The classifier is {folder / MODEL_NAME}; look at {drawing}.")


def describe_parameters(counts: Sequence[BlockCount], phase: str) -> str:
    """Returns the table of trained and frozen parameters as text, a line per block."""
    numbers = [(line.num_layers, line.num_trained, line.num_frozen) for line in counts]
    rows = list(zip([line.block for line in counts], numbers, strict=True))
    rows.append(("all", (sum(n[0] for n in numbers), sum(n[1] for n in numbers), sum(n[2] for n in numbers))))
    cells = [[phase, "layers", "trained", "frozen"], *[[name, *(f"{n:,}" for n in row)] for name, row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("  ".join(row) for row in aligned)


def _save_model(model: keras.Model, path: Path) -> None:
    with path_written_atomically(path, suffix=".keras") as temporary:  # Keras knows the format by the end of the name
        model.save(temporary)
