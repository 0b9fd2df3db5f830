"""The steps of a build, each resumable: list, audit, plan, write, finish."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

import tfpipe
from tfpipe.building import metadata_files, multilabel, plan, targets
from tfpipe.building.inputs.items import Notes, SourceList
from tfpipe.building.options import Options
from tfpipe.building.relabelling import DROPPED
from tfpipe.building.state import LISTED_CLASS, State
from tfpipe.building.tasks import AuditTask, ShardTask
from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_folder, temporary_folder
from tfpipe.common.progress import ProgressBar
from tfpipe.common.workers import Done
from tfpipe.records import manifest as manifests
from tfpipe.records import schema
from tfpipe.records.catalog import read_catalog
from tfpipe.records.decisions import Decision
from tfpipe.records.manifest import Decided, Frames, Groups, Manifest, Shard, Split, Traits
from tfpipe.records.samples import USUAL

_log = logging.getLogger("tfpipe")

TASKS = "tfpipe.building.tasks"
STATE_NAME = "state.sqlite"
SHARED_PREFIX = "shared-"  # of a folder that stands in its place where several machines build
_SHARED_ADVICE = "Go on with the workers_folder that it was started with, or delete the output folder to start over."
_AUDIT_RECORDS = 256
_AUDIT_BYTES = 16 << 20
_COMMIT_SECONDS = 1.0
_SHOWN = 20  # differences to inputs in an error message


_ADVICE = "Give it what it was started with, or delete the output folder to start over."


class Refusal(ValueError):
    """The output holds another build, which stays untouched."""

    def __init__(self, message: str, differences: Sequence[str], advice: str = _ADVICE) -> None:
        shown = "".join(f"\n  {difference}" for difference in differences[:_SHOWN])
        more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        super().__init__(f"{message}:{shown}{more}\n{advice}")


@contextlib.contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Adds to errors of the disk what becomes of the build."""
    advice = "what was finished is kept: fix the cause (free space?) and run the same build again"
    try:
        yield
    except sqlite3.OperationalError as error:  # "database or disk is full", "disk I/O error", "unable to open database file"
        raise OSError(f"{directory}: the state of the build cannot be written ({error}); {advice}") from error
    except sqlite3.DatabaseError as error:
        message = f"the state of the unfinished build is damaged ({error}): delete the folder and build again"
        raise DataError(message, path=directory) from error
    except OSError as error:
        if error.errno is None or isinstance(error, BlockingIOError):
            raise
        raise OSError(error.errno, f"{error.strerror}; {advice}", error.filename or os.fspath(directory)) from error


def _order_differences(before: Sequence[str] | None, now: Sequence[str] | None) -> list[str]:
    if (before is None) == (now is None) and list(before or ()) == list(now or ()):
        return []
    return [f"the order of the classes was {before} and is {now}"]


class Engine(AbstractContextManager[Any], Protocol):
    """What carries out tasks: `Workers`, or many machines."""

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields `Done` and results of `tasks.FUNCTION(task, report)`, as tasks finish."""


class Build(NamedTuple):
    """One call of `build_tfrecords`."""

    directory: Path  # the output, locked by the caller
    options: Options
    list_inputs: Callable[[], SourceList]  # again at each call
    start_workers: Callable[[], Engine]
    new_bar: Callable[[str, int, int], ProgressBar]  # title, total, done before
    folder: Path  # the build's own files
    decisions: Sequence[Sequence[Decision]] = ()  # of each file

    def run(self) -> Manifest:
        """Builds, resumes or checks a complete build; errors as in `build_tfrecords`."""
        with explained(self.directory):
            if (self.directory / manifests.FILE_NAME).exists():
                return self.confirm()
            self.make_folder()
            if any(self.folder.glob(f"{SHARED_PREFIX}*")):
                raise ValueError(f"{self.directory}: an unfinished build of several machines is here. {_SHARED_ADVICE}")
            for place in (self.directory, self.directory / manifests.INDEX_FOLDER, self.folder):
                clear_folder(place)
            with contextlib.closing(State(self.folder / STATE_NAME)) as state:
                manifest = self._resume(state)
            shutil.rmtree(self.folder)
            return manifest

    def make_folder(self) -> None:
        """Makes the folder of the build's own files; raises ValueError if other things are there."""
        if not self.folder.exists() and any(self.directory.iterdir()):
            raise ValueError(f"{self.directory}: the output folder is not empty, and holds no build of tfpipe")
        self.folder.mkdir(exist_ok=True)

    def _resume(self, state: State) -> Manifest:
        known = state.fact("options") is not None
        try:
            with self.start_workers() as workers:
                order = self._relist(state, workers) if known else self.list_into(state)
                known = True
                self.audit(state, workers)
                if state.fact("planned") is None:
                    self.decide(state, order)
                shards = self.write(state, workers)
        except BaseException as error:
            # Nothing is written before the plan: where nothing is listed yet, or inputs or options
            # must change before it can be made, nothing is kept, so that any other build may
            # follow.
            wrong = isinstance(error, DataError | ValueError) and not isinstance(error, Refusal)
            if not known or (wrong and state.fact("planned") is None):
                shutil.rmtree(self.folder)
            raise
        return self.finish(state, plan.Plan(*state.fact("planned")), shards)

    def list_into(self, state: State) -> Sequence[str] | None:
        """Fills an empty state; returns the names of classes in label order, where the source defines it."""
        _log.info("listing the inputs")
        listing = self.list_inputs()
        state.list_inputs(listing.items)
        plan.check_keys(state)
        self._note(state, listing.notes)
        state.note("class_order", listing.class_names)
        state.note("options", self.options.as_json())
        return listing.class_names

    def _note(self, state: State, notes: Notes) -> None:
        for given, split in sorted(notes.renamed.items()):
            _log.info("split %r is taken as %r", given, split)
        state.note("hidden", notes.hidden)
        state.note("empty_folders", notes.empty_folders)

    def _relist(self, state: State, workers: Engine) -> Sequence[str] | None:
        differences = self.options.differences(state.fact("options"))
        if differences:
            raise Refusal(f"{self.directory}: an unfinished build with other options is here", differences)
        _log.info("going on with the unfinished build in %s", self.directory)
        listing = self.list_inputs()
        differences = _order_differences(state.fact("class_order"), listing.class_names)
        differences = differences or state.relist(listing.items) or self._changed(state, workers)
        if differences:
            raise Refusal(f"{self.directory}: the inputs of the unfinished build here have changed", differences)
        state.accept(reopen=state.fact("planned") is None)
        self._note(state, listing.notes)
        return listing.class_names

    def _results(self, workers: Engine, function: str, tasks: Iterable[Any], title: str, total: int, done: int = 0) -> Any:
        """Yields the results of tasks while a bar shows their progress."""
        with self.new_bar(title, total, done) as bar:
            for message in workers.run(function, tasks):
                if isinstance(message, Done):
                    bar.add(*message)
                else:
                    yield message

    def _changed(self, state: State, workers: Engine) -> list[str]:
        """Returns which of the files that were touched or moved have other bytes now."""
        tasks = (
            AuditTask(batch, self.options.max_pixels, converter=self.options.converter)
            for batch in state.touched(_AUDIT_RECORDS)
        )
        differences = []
        for found in self._results(workers, "audit", tasks, "compare", state.num_touched()):
            for row, audited in found:
                key, sha256 = next(state.execute("SELECT key, sha256 FROM inputs WHERE rowid = ?", (row,)))
                if audited.sha256 != sha256:
                    differences.append(f"changed: {key}")
        return sorted(differences)

    def audit(self, state: State, workers: Engine) -> None:
        """Audits what is not audited yet."""
        total = state.value("SELECT count(*) FROM inputs WHERE kind != ''")
        done = state.value("SELECT count(*) FROM inputs WHERE kind != '' AND (sha256 NOT NULL OR reason NOT NULL)")
        options = self.options
        facts = (options.max_pixels, options.check == "decode", options.png16 == USUAL.png16, options.converter)
        tasks = (AuditTask(batch, *facts) for batch in state.pending(_AUDIT_RECORDS, _AUDIT_BYTES))
        next_commit = time.monotonic() + _COMMIT_SECONDS
        for found in self._results(workers, "audit", tasks, "audit", total, done):
            state.store_audit(found)
            if time.monotonic() > next_commit:  # each waits for the disk: a kill costs at most this much work
                state.commit()
                next_commit = time.monotonic() + _COMMIT_SECONDS
        state.commit()

    def decide(self, state: State, order: Sequence[str] | None) -> None:
        """Makes the plan of an audited state; errors as in `plan.make_plan`."""
        plan.check_inputs(state, self.options)
        decided = plan.make_plan(state, self.options, order, self.decisions)
        self._shard_tasks(state)  # raises on impossible numbers, before it is too late
        state.note("planned", decided)

    def write(self, state: State, workers: Engine) -> dict[str, Shard]:
        """Writes the shards of a planned state that are not there yet; returns all by file."""
        (self.directory / manifests.INDEX_FOLDER).mkdir(exist_ok=True)
        tasks = self._shard_tasks(state)
        shards = {task.file: shard for task in tasks if (shard := self._finished(task)) is not None}
        by_file = {task.file: task for task in tasks}
        todo = plan.with_slices(state, self.options, tasks, by_file.keys() - shards.keys())
        total, done = sum(task.end - task.start for task in tasks), sum(shard.num_records for shard in shards.values())
        for shard in self._results(workers, "write_shard", todo, "write", total, done):
            shards[shard.file] = shard
            by_file[shard.file].slice.unlink(missing_ok=True)
        return {task.file: shards[task.file] for task in tasks}

    def _shard_tasks(self, state: State) -> list[ShardTask]:
        return plan.shard_tasks(state, self.options, self.directory, self.folder)

    def _finished(self, task: ShardTask) -> Shard | None:
        """Returns a shard that an earlier run finished, with all files about it."""
        note, rows, frames = (self.folder / f"{task.file}.{ending}" for ending in ("json", "csv", "frames"))
        try:
            shard = Shard(**json.loads(note.read_bytes()))
            files = (self.directory / task.file, self.directory / manifests.index_file(task.file), rows, frames)
            sizes = [path.stat().st_size for path in files]
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return shard if sizes[0] == shard.num_bytes and all(sizes) else None

    def finish(self, state: State, decided: plan.Plan, shards: Mapping[str, Shard]) -> Manifest:
        """Writes the files about the data set, and the manifest at last."""
        grouped = decided.groups is not None
        parts = [self.folder / f"{file}.csv" for file in shards]
        metadata_files.write_catalog(self.directory, parts, state.optional_columns())
        splits = self._splits(state, decided.class_names, shards)
        rejected = state.execute("SELECT key, reason, message FROM inputs WHERE reason NOT NULL ORDER BY key")
        metadata_files.write_rejected(self.directory, rejected)
        optional = [schema.GROUP] if grouped else []
        metadata_files.write_tfds_files(self.directory, self.options, decided.class_names, splits, optional)
        combined = None
        if self.options.task == manifests.MULTILABEL:
            combined = multilabel.write_combinations(state, self.directory, self.options.name, decided.class_names)
        numbers = None
        if self.options.task == manifests.REGRESSION:
            numbers = targets.write_rows(state, self.directory, self.options, decided.class_names)
        reasons = state.execute("SELECT reason, count(*) FROM inputs WHERE reason NOT NULL GROUP BY reason ORDER BY reason")
        manifest = Manifest(
            name=self.options.name,
            seed=self.options.seed,
            class_names=decided.class_names,
            splits=splits,
            options=self.options.as_json(),
            companions=metadata_files.hash_companions(self.directory),
            inputs_sha256=inputs_digest(state),
            properties=_properties(state),
            rejected=dict(reasons),
            conflicts=decided.conflicts,
            leaks=decided.leaks,
            tfpipe_version=tfpipe.__version__,
            groups=msgspec.convert(decided.groups, Groups | None),
            combinations=combined,
            decisions=msgspec.convert(decided.decisions, Decided | None),
            targets=numbers,
        )
        manifests.save(manifest, self.directory)
        return manifest

    def _splits(self, state: State, class_names: Sequence[str], shards: Mapping[str, Shard]) -> dict[str, Split]:
        tasks = self._shard_tasks(state)
        splits = {}
        for name in plan.split_names(state):
            of_split = "FROM inputs WHERE reason IS NULL AND split = ?"
            files = [task.file for task in tasks if task.split == name]
            parts = [self.folder / f"{file}.frames" for file in files]
            path = self.directory / manifests.frames_file(self.options.name, name)
            png, turned, longer, others = state.execute(
                f"""SELECT max(format = 'PNG'), max(orientation != 1), max(max(height, width)),
                    max(format NOT IN ('JPEG', 'PNG')) {of_split}""",
                (name,),
            ).fetchone()
            seen = Traits(bool(png), bool(turned), longer, True if others else None)
            counts = dict(state.execute(f"SELECT label, count(*) {of_split} GROUP BY label", (name,)))
            class_counts, unknown_counts = {one: counts.get(label, 0) for label, one in enumerate(class_names)}, None
            if self.options.task == manifests.MULTILABEL:
                class_counts, unknown_counts = multilabel.counts(state, counts, class_names)
            statistics = None
            if self.options.task == manifests.REGRESSION and -1 not in counts:
                class_counts = dict.fromkeys(class_names, sum(counts.values()))
                statistics = targets.statistics(state, name, class_names)
            splits[name] = Split(
                labelled=-1 not in counts,
                image_bytes=state.value(f"SELECT sum(image_bytes) {of_split}", (name,)),
                class_counts=class_counts,
                shards=tuple(shards[file] for file in files),
                frames=Frames(metadata_files.write_frames(path, parts), seen),
                unknown_counts=unknown_counts,
                statistics=statistics,
            )
        return splits

    def confirm(self) -> Manifest:
        """Returns the manifest of a complete data set after reading every input again.

        Content counts and not times of modification: they differ between copies of the same input.
        """
        manifest = manifests.load(self.directory)
        differences = self.options.differences(manifest.options)
        if differences:
            raise Refusal(f"{self.directory}: a complete data set with other options is here", differences)
        manifests.check_files(self.directory, manifest)
        manifests.check_hashes(self.directory, manifest)
        with temporary_folder("build") as folder, contextlib.closing(State(folder / "state.sqlite")) as state:
            listing = self.list_inputs()
            state.list_inputs(listing.items)
            if listing.class_names is not None and self.options.class_names is None:
                differences = _order_differences(manifest.class_names, listing.class_names)
            with self.start_workers() as workers:
                self.audit(state, workers)
            if inputs_digest(state) != manifest.inputs_sha256:
                differences += self._content_differences(state, manifest.decisions or Decided({}, {}, {}))
            if differences:
                raise Refusal(f"{self.directory}: made from inputs that have changed since", differences)
        if self.folder.exists():  # killed between the manifest and the end
            shutil.rmtree(self.folder)
        _log.info("%s: complete, from equal inputs with equal options: nothing to do", self.directory)
        return manifest

    def _content_differences(self, state: State, decided: Decided) -> list[str]:
        state.execute("CREATE TEMP TABLE before (key TEXT, sha256 TEXT, class_name TEXT, group_name TEXT)")
        listed = {key: classes[0] for key, classes in decided.relabelled.items()}
        catalog = read_catalog(self.directory)
        rows = ((row.key, row.sha256, listed.get(row.key, row.class_name) or None, row.group or None) for row in catalog)
        dropped = ((key, None, class_name, None) for key, class_name in decided.dropped.items())
        state.executemany("INSERT INTO before VALUES (?, ?, ?, ?)", itertools.chain(rows, dropped))
        now = "SELECT key FROM inputs WHERE reason IS NULL"
        both = "SELECT key FROM before JOIN inputs USING (key) WHERE reason IS NULL"
        differences = state.differences(
            removed=f"SELECT key FROM before EXCEPT {now}",
            added=f"{now} EXCEPT SELECT key FROM before",
            changed=f"{both} AND before.sha256 != inputs.sha256",
            relabelled=f"{both} AND before.class_name IS NOT inputs.class_name",
            regrouped=f"{both} AND before.group_name IS NOT inputs.group_name",
        )
        return differences or ["splits or file names of inputs, or inputs that were rejected, are others"]


def inputs_digest(state: State) -> str:
    """Returns the SHA-256 of what an audited state holds about the inputs."""
    content = f"iif(reason = '{DROPPED}', sha256, coalesce(reason, sha256))"  # as listed: decisions are options
    optional = ", group_name" if state.has_groups() else ""
    query = f"SELECT key, filename, given_split, {LISTED_CLASS}, {content}{optional} FROM inputs ORDER BY key"
    return metadata_files.inputs_digest(state.execute(query))


def _properties(state: State) -> dict[str, int]:
    queries = {
        "turned": "orientation > 1",
        "grey": "color IN ('grey', 'grey+alpha')",
        "cmyk": "color IN ('cmyk', 'ycck')",
        "png": "format = 'PNG'",
        "png_named_jpeg": plan.PNG_NAMED_JPEG,
    }
    accepted = "FROM inputs WHERE reason IS NULL"
    counts = {name: state.value(f"SELECT count(*) {accepted} AND {query}") for name, query in queries.items()}
    others = f"SELECT lower(format), count(*) {accepted} AND format NOT IN ('JPEG', 'PNG') GROUP BY format ORDER BY format"
    counts |= dict(state.execute(others))
    made = f"SELECT 'converted: ' || source_format, count(*) {accepted} AND source_format NOT NULL GROUP BY 1 ORDER BY 1"
    counts |= dict(state.execute(made))
    words = {"png16": "deep", "dim16": "dim", "transparent": "transparent", "profiles": "profile", "first_of_several": "first"}
    counts |= {name: count for name, word in words.items() if (count := plan.count_trait(state, word))}
    if counts["png"] and not state.value(f"SELECT count(*) {accepted} AND traits IS NULL"):
        counts.setdefault("png16", 0)  # readers look for it: older versions, whose audits `traits` lacks, did not count
    duplicates = state.value(f"SELECT count(*) - count(DISTINCT sha256) {accepted}")
    hidden = {f"passed over: {kind}": count for kind, count in sorted((state.fact("hidden") or {}).items())}
    return {**counts, "duplicates": duplicates, **hidden}
