"""`tfpipe.train()`: from a data set to a run's folder with a classifier in it.

    run = train("shards/", "runs/a", backbone="vgg16", weights="imagenet", mode="auto", seed=0)

A run's folder holds model.keras (the best weights), last.keras (those of the last step), run.json
(recipe, choices, versions, hashes: enough to repeat it), summary.json (written last), log.jsonl,
history.csv, history.png, tensorboard/, and state/, about four times the trained weights, from which
the same call goes on where a run was stopped. More epochs or patience train a finished run longer;
other changes are refused. state/ may be deleted from a finished run, which then cannot be trained
longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfpipe
from tfpipe.common import arguments, stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_folder, path_written_atomically, read_json, write_json
from tfpipe.common.locking import locked
from tfpipe.common.progress import log_line
from tfpipe.common.text import html_table, plural
from tfpipe.models import classifiers
from tfpipe.models.classifiers import Classifier
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.networks import arithmetic, objectives
from tfpipe.networks.submodels import hash_network
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import run_folders
from tfpipe.records.manifest import REGRESSION, SINGLE
from tfpipe.records.run_folders import state_file, state_files
from tfpipe.records.samples import Samples
from tfpipe.training import checkpoints, extending, preflight, regression
from tfpipe.training.batches import FeatureBatches
from tfpipe.training.cluster import Workers
from tfpipe.training.logs import curves
from tfpipe.training.logs.profiling import peak_memory_bytes
from tfpipe.training.logs.run_log import HISTORY_NAME, LOG_NAME, RunLog, read_history
from tfpipe.training.loop import Loop
from tfpipe.training.networks import BlockCount, Networks
from tfpipe.training.phases import Phases
from tfpipe.training.recipes import Recipe, complete
from tfpipe.training.schedules import RangeTest

HISTORY_IMAGE = "history.png"
RATE_NAME = "learning_rate.json"

_log = logging.getLogger("tfpipe")

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False, repr=False)
class Run(Mapping[str, Any]):
    """A finished run; as a mapping, the content of summary.json: run["val_accuracy"].

    Attributes:
        folder: the run's folder.
        mode: of training, never "auto".
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
    train_split: str = "train",
    val_split: str | None = None,
    **changes: Any,
) -> Run:
    """Trains a classifier, or goes on with a run that was stopped, or longer; returns the run.

    A run goes on from its last step when `epochs`, `finetune_epochs` or `patience` are raised.
    Where its learning rates so far would have been the same (schedules "constant" and "plateau", or
    patience alone), it ends with the bits of one that had these numbers from the start. A longer
    head makes fine-tuning start over.

    Args:
        data: folder of a data set of `build_tfrecords`.
        output: the run's folder.
        recipe: how to train; default `Recipe()`.
        cache: folder for features, default "features" beside the run's folder. Shared by all runs,
            safe to delete.
        strategy: of several devices, or of several workers, each of which makes this call with the
            same arguments: the first one writes the run's folder, and all must see `cache`.
            Default: one device.
        checkpoint_seconds: between two savings of the state, the most that a kill can cost. Also
            saved at each epoch's end and on Ctrl-C.
        tensorboard: write event files.
        profile_steps: number of steps to measure and trace.
        progress: show bars, or log a line per epoch where there is no terminal.
        log: called with lines that report what is done and why; default the logger "tfpipe", which
            writes to stderr where nobody has configured logging. None: silence, bars and lines per
            epoch included.
        extend: train a run longer also where its learning rates would have differed from the
            start: a cosine starts over with a warm-up.
        from_run: a finished run's folder (or its .keras file) to begin with, in place of `weights`:
            the backbone's weights, and, if classes and layers are the same, the head's.
        train_split: the split to train on; or several, "fold0+fold1", in one permutation each epoch.
        val_split: the one that chooses the best epoch. Default: "val"; without such a split, a part
            of `train_split` is held out.
        changes: fields of the recipe: `train("shards/", "runs/a", mode="finetune")`.

    Returns:
        The run, with the content of summary.json.

    Raises:
        ValueError: an option is wrong, options contradict each other, or the folder has another
            run.
        FileNotFoundError: there is no data set or no file of weights.
        DataError: the data set, the cache or the saved state is damaged, or the loss is no longer
            finite.
        ConnectionError: another worker ended, or was not heard of for 10 s.
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
        progress, log = False, lambda line: None  # noqa: ARG005
    arguments.callback("log", log)
    if not isinstance(strategy, tf.distribute.Strategy | None):
        raise arguments.wrong("strategy", "a tf.distribute.Strategy", strategy)
    if from_run is not None:
        from_run = arguments.path("from_run", from_run)
    wanted = preflight.with_weights_of(from_run, changed(Recipe() if recipe is None else recipe, changes))
    directory, folder = arguments.path("data", data), arguments.path("output", output)
    place = folder.absolute().parent / "features" if cache is None else arguments.path("cache", cache)
    strategy = strategy or tf.distribute.get_strategy()
    workers = Workers(strategy)
    if not workers.is_chief:
        progress, tensorboard, profile_steps, log = False, False, 0, lambda line: None  # noqa: ARG005

    def prepare() -> _Job:
        preflight.check_training(directory, folder, place, wanted, train_split, val_split)
        return _Job(directory, wanted, train_split, val_split)

    with workers.watched(), contextlib.ExitStack() as held:
        job = workers.agree(prepare)
        workers.compare({**job.identity(), "extend": extend}, "start all workers with the same flags, data and versions")
        here = held.enter_context(workers.private(folder))
        workers.agree(lambda: held.enter_context(locked(here, "training")))
        clear_folder(here)
        workers.share(here, [file.relative_to(here) for file in _files_to_go_on_from(here)])
        extension, apply_extension = workers.agree(lambda: _compare(here, job, extend))
        for line in extension:
            log(line)
        if (here / run_folders.SUMMARY_NAME).exists() and not extension:
            return _finished(here, folder, log)
        for line in job.reasons:
            log(line)
        if job.recipe.deterministic:
            tf.config.experimental.enable_op_determinism()
        networks = Networks(
            job.recipe,
            job.class_names,
            job.precision,
            strategy,
            Samples.of(job.manifest.options),
            job.task,
            job.scale,
            job.units,
        )
        if from_run is not None:
            log(f"from {from_run}: {networks.take_head(classifiers.load(from_run))}")
        workers.agree(lambda: _begin(here, job, networks))
        workers.compare(read_json(here / run_folders.BACKBONE_NAME), "start all workers with the same weights")
        apply_extension()
        first_steps, fits = read_json(here / run_folders.RUN_NAME).get("first_steps", {}), wanted.batch_size == "auto"
        inputs = job.recipe, networks, job.train, job.val
        phases = Phases(*inputs, here, place, strategy, workers, progress, log, first_steps, fits)
        position = max((checkpoints.load(path)[1]["journal"] for path in state_files(here)), default=0)
        results: list[dict[str, Any]] = []
        with RunLog(here, tensorboard=tensorboard, position=position, profile_steps=profile_steps) as run_log:
            for phase in phases.of_mode():
                state = state_file(here, phase.name)
                loop = Loop(phase, strategy, state, run_log, workers, checkpoint_seconds, progress, log)
                counts = networks.parameters(phase.trained)
                log(describe_parameters(counts, phase.name))
                if job.recipe.learning_rate == "find" and not results:
                    phase.schedule = phases.schedule(phase.name, _found_rate(here, loop), phase.batches.num_steps)
                last = loop.run()
                results.append(_result(loop, counts))
        workers.agree(lambda: _finish(here, networks, results, lambda: loop.assign(last)))
        return _finished(here, folder, log)


def _files_to_go_on_from(folder: Path) -> list[Path]:
    names = (run_folders.RUN_NAME, run_folders.SUMMARY_NAME, run_folders.BACKBONE_NAME, run_folders.HEAD_NAME, RATE_NAME)
    files = [folder / name for name in (*names, LOG_NAME, HISTORY_NAME)]
    return [*(file for file in files if file.exists()), *state_files(folder)]


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """Returns a recipe with other fields; raises TypeError for one that it does not have."""
    if not isinstance(recipe, Recipe):
        raise arguments.wrong("recipe", "a Recipe", recipe)
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in changes:
        if name not in known:
            raise TypeError(f"{name}: neither an argument of train nor a field of Recipe{arguments.nearest(name, known)}")
    return dataclasses.replace(recipe, **changes)


class _Job:
    """The images of a run, and the recipe completed for them."""

    def __init__(self, directory: Path, wanted: Recipe, train_split: str, val_split: str | None) -> None:
        self.directory, self.wanted = directory, wanted
        self.manifest, found = preflight.open_training(directory, train_split, val_split)
        self.unusual = {} if train_split == "train" else {"train_split": train_split}
        self.unusual |= {} if found in (None, "val") else {"val_split": found}
        self.class_names = self.manifest.class_names
        num_images = self.manifest.split(train_split).num_records
        self.recipe, self.reasons = complete(wanted, num_images, len(self.class_names), self.manifest.task)
        self.precision, why = arithmetic.choose(self.recipe.precision)
        self.reasons.append(f"precision={self.precision}: {why}")
        recipe = self.recipe
        self.task = SINGLE if recipe.loss == "cross_entropy" else self.manifest.task
        common: dict[str, Any] = {"image_size": recipe.image_size, "resize": recipe.resize, "seed": recipe.seed}
        train = SplitImages(directory, train_split, augmentation=recipe.augmentation, balanced=recipe.balanced, **common)
        if found is not None:
            self.train, self.val = train, SplitImages(directory, found, **common)
            return
        self.train, self.val = hold_out(train, recipe.val_fraction)
        num_held, num_all = len(self.val.positions), train.num_records
        self.reasons.append(f"no val split: {num_held:,} of the {num_all:,} training images are held out for validation")

    @property
    def scale(self) -> objectives.Scale | None:
        """The scale of the targets of a regression."""
        return objectives.Scale.of(self.train.targets) if self.task == REGRESSION else None

    @property
    def units(self) -> tuple[str, ...]:
        """The units of the targets of a regression."""
        return () if self.manifest.targets is None else tuple(self.manifest.targets.units.values())

    @cached_property
    def _read_block(self) -> int | None:
        """Records that a shuffled epoch reads together: its order is another where the data set is in a store."""
        is_remote = stores.is_remote(self.directory) and not self.recipe.balanced
        return RecordReader(self.directory, self.train.split).read_size if is_remote else None

    def identity(self) -> dict[str, Any]:
        """Returns what must be equal on all workers."""
        facts = self.facts()
        data = {f"data {name}": value for name, value in facts["data"].items()}
        return {**facts["recipe"], **facts["chosen"], **data, **facts["versions"], "precision": self.precision}

    def facts(self) -> dict[str, Any]:
        """Returns the content of run.json."""
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
                **({} if self.manifest.task == SINGLE else {"task": self.manifest.task}),
                "num_train": len(self.train.positions),
                "num_val": len(self.val.positions),
                "read_block": self._read_block,
                **self.unusual,
            },
            "directory": stores.real(self.directory),  # of the data set at present; it may move
            "versions": {"tfpipe": tfpipe.__version__, "python": platform.python_version(), **versions},
            "command": sys.argv,
        }


def _compare(folder: Path, job: _Job, extend: bool) -> tuple[list[str], Callable[[], None]]:
    """Compares the run in the folder with the requested one; returns a plan to extend it.

    A run without a step so far does not count: its options may be corrected.
    """
    path = folder / run_folders.RUN_NAME
    run_folders.check_vacant(folder)
    if path.exists() and ((folder / run_folders.SUMMARY_NAME).exists() or state_files(folder)):
        found, facts = read_json(path), job.facts()
        for part in ("recipe", "data"):
            beside = {name: None for name in ("train_split", "val_split") if name in found.get(part, {})}
            for name, value in {**beside, **facts[part]}.items():
                was = found.get(part, {}).get(name)
                if was != value and name not in extending.LENGTHS:
                    raise ValueError(f"{folder}: holds a run with {name}={was!r}, not {value!r}; choose another folder")
        if found.get("versions") != facts["versions"]:
            _log.warning("%s: begun with other versions (%s): the bits may differ", path, found.get("versions"))
        if found.get("precision") != job.precision:
            job.reasons.append(f"precision={found['precision']}: the run was begun with it")
            job.precision = found["precision"]
        if raised := extending.find_raised(folder, found, job.recipe):
            return extending.plan(folder, found, facts, job.recipe, raised, rewarm=extend)
    return [], lambda: None


def _begin(folder: Path, job: _Job, networks: Networks) -> None:
    """Writes run.json and the hash of the weights, or checks that hash in a run that goes on."""
    path, found = folder / run_folders.BACKBONE_NAME, {"sha256": hash_network(networks.backbone.network)}
    if networks.head_from is not None:
        found["head_from"] = networks.head_from
    if not state_files(folder):
        (folder / RATE_NAME).unlink(missing_ok=True)  # of a first try, maybe with other options
        write_json(path, found)
        write_json(folder / run_folders.RUN_NAME, job.facts())
    elif read_json(path) != found:
        raise ValueError(f"{folder}: was begun with other weights than {job.wanted.weights}; choose another folder")
    (folder / run_folders.STATE_FOLDER).mkdir(exist_ok=True)


def _found_rate(folder: Path, loop: Loop) -> float:
    """Returns the learning rate that a range test suggests, measured once a run."""
    path = folder / RATE_NAME
    if not path.exists():
        test = RangeTest()
        loop.explore(test)
        suggestion = test.suggestion()
        if suggestion is None:
            raise DataError("the range test found no learning rate at which the loss falls: give one with learning_rate")
        curves.draw_range_test(test.rates(), test.losses, suggestion, path.with_suffix(".png"))
        write_json(path, {"learning_rate": suggestion, "rates": test.rates(), "losses": test.losses})
    rate: float = read_json(path)["learning_rate"]
    loop.report(f"learning_rate={rate:.2g}: found by a range test, see learning_rate.png; weights are as before")
    return rate


def _result(loop: Loop, counts: Sequence[BlockCount]) -> dict[str, Any]:
    """Returns the summary of a phase, after a report."""
    phase, stopping = loop.phase, loop.phase.stopping
    score = phase.objective.score
    number = stopping.best_number
    if phase.epochs:
        when = f"best in epoch {number}" if number else "no epoch was better than its start, which is kept"
        loop.report(f"{phase.name}: validation {score} {stopping.best:.4f}, {when}")
    return {
        "phase": phase.name,
        "num_epochs": loop.position.epoch,
        "best_epoch": number,  # from 1; 0: no epoch was better than the phase before
        "val_accuracy": stopping.best,
        "val_loss": stopping.best_loss,
        "num_trained": sum(line.num_trained for line in counts),
        "num_frozen": sum(line.num_frozen for line in counts),
        "on": "features" if isinstance(phase.batches, FeatureBatches) else "pictures",
    }


def _finish(folder: Path, networks: Networks, phases: list[dict[str, Any]], assign_last: Callable[[], None]) -> None:
    """Writes the models, the history's image and, last, the summary."""
    model, score = networks.classifier(), objectives.of_task(networks.task, scale=networks.scale).score
    _save_model(model, folder / run_folders.MODEL_NAME)
    history = read_history(folder)
    if history:
        curves.draw_history(history, folder / HISTORY_IMAGE, by_loss=networks.task != SINGLE, score=score)
    for phase in phases:
        seconds = [row["train_seconds"] for row in history if row["phase"] == phase["phase"]]
        phase["seconds_per_epoch"] = statistics.median(seconds) if seconds else None
    summary = {
        "mode": networks.recipe.mode,
        "val_accuracy": phases[-1]["val_accuracy"],
        "phases": phases,
        "head": read_json(folder / run_folders.HEAD_NAME)["best"] if (folder / run_folders.HEAD_NAME).exists() else None,
        "model_sha256": Classifier(model).sha256,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    assign_last()
    _save_model(networks.classifier(), folder / run_folders.LAST_NAME)
    write_json(folder / run_folders.SUMMARY_NAME, summary)


def _finished(here: Path, folder: Path, report: Report) -> Run:
    """Reports and returns a finished run, whose files this worker has in `here`."""
    run = Run(folder, **read_json(here / run_folders.SUMMARY_NAME))
    task = extending.task_of(read_json(here / run_folders.RUN_NAME))
    score = "R2" if task == REGRESSION else "accuracy"
    for phase in run.phases:
        seconds = "" if phase["seconds_per_epoch"] is None else f" of {phase['seconds_per_epoch']:.2f} s"
        epochs = f"{plural(phase['num_epochs'], 'epoch')}{seconds}" if phase["num_epochs"] else regression.KINDS[task]
        best = f" in epoch {phase['best_epoch']}" if phase["best_epoch"] else ""
        report(f"{phase['phase']}: {epochs} on {phase['on']}, validation {score} {phase['val_accuracy']:.4f}{best}")
    report(f"peak memory {run.peak_memory_bytes / 1e9:.2f} GB")
    image = next((folder / name for name in (HISTORY_IMAGE, run_folders.HEAD_IMAGE) if (here / name).exists()), folder)
    report(f"{folder}: this run is finished. The classifier is {folder / run_folders.MODEL_NAME}; look at {image}.")
    return run


def describe_parameters(counts: Sequence[BlockCount], phase: str) -> str:
    """Returns the table of trained and frozen parameters as text, a line per block."""
    rows = [(line.block, line.num_layers, line.num_trained, line.num_frozen) for line in counts]
    totals = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    cells = [[phase, "layers", "trained", "frozen"], *[[row[0], *(f"{n:,}" for n in row[1:])] for row in [*rows, totals]]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("  ".join(row) for row in aligned)


def _save_model(model: keras.Model, path: Path) -> None:
    with path_written_atomically(path, suffix=".keras") as temporary:  # Keras knows the format by the end of the name
        model.save(temporary)
