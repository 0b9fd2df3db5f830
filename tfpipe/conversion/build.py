"""Building a data set: list, audit, plan, write; killed anywhere, it goes on where it stopped.

manifest = build_tfrecords("photos/", "shards/", name="pets", layout="folders", splits={"train": 0.8, "test": 0.2})
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tfpipe
from tfpipe.conversion import plan, sidecars
from tfpipe.conversion.items import Listing
from tfpipe.conversion.locking import locked
from tfpipe.conversion.options import DEFAULT_SHARD_BYTES, Options
from tfpipe.conversion.sources import DEFAULT_LABEL_PATTERN, Inputs, guess_layout, list_sources
from tfpipe.conversion.state import State
from tfpipe.conversion.tasks import AuditTask, ShardTask
from tfpipe.conversion.workers import Progress, Workers
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_catalog
from tfpipe.records.cores import count_cores
from tfpipe.records.errors import DataError
from tfpipe.records.images import DEFAULT_MAX_PIXELS
from tfpipe.records.manifest import Manifest, Shard, Split
from tfpipe.records.progress import ProgressBar

_log = logging.getLogger("tfpipe")

_AUDIT_RECORDS = 256
_AUDIT_BYTES = 16 << 20
_COMMIT_SECONDS = 1.0
_SHOWN = 20  # differences to inputs in an error message

PathLike = str | os.PathLike[str]


def build_tfrecords(
    input: PathLike | Mapping[str, PathLike] | None,  # noqa: A002 (the word that the command's flag has, too)
    output: PathLike,
    *,
    name: str = "images",
    layout: str | None = None,
    splits: Mapping[str, float] | None = None,
    unlabelled: Mapping[str, PathLike] | None = None,
    label_pattern: str = DEFAULT_LABEL_PATTERN,
    class_names: Sequence[str] | None = None,
    num_shards: int | Mapping[str, int] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    seed: int = 0,
    workers: int | None = None,
    on_error: str = "fail",
    on_conflict: str = "fail",
    allow_leaks: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = True,
) -> Manifest:
    """Writes pictures, byte for byte, into sharded TFRecords with a manifest, and returns the manifest.

    Equal inputs and options give equal bytes, for any number of workers and after any number of kills. A killed run goes on
    when it is called again with the same options; a complete data set is left alone.

    Args:
        input: a folder, .csv or .h5 file; or one for each split by name; or None where there are only `unlabelled` ones.
        output: folder for the data set; made if need be. Must be empty, or hold this very build, finished or not.
        name: of the data set; shards are called NAME-SPLIT.tfrecord-00000-of-00016.
        layout: "folders" (one folder per class), "filename" (the class is in the file's name), "csv" (columns path, label
            and, optionally, split and id), "flat" (no labels), "hdf5" (arrays) or "tfds" (a prepared data set).
            None: guessed where that is certain.
        splits: fraction of each split, adding up to 1, as {"train": 0.8, "test": 0.2}; each class is cut at the fractions,
            byte-identical pictures stay together. None: folders named train, val (or validation) and test are splits,
            or all pictures go into "train" ("test" for layout "flat").
        unlabelled: folder of pictures without labels, by split name.
        label_pattern: for layout "filename": a regular expression with one named group, matched from the name's start.
        class_names: in the order of their labels. None: sorted by code point, or as numbers where all are.
        num_shards: per split: one number for all, or by split name. None: by `shard_bytes`.
        shard_bytes: the size that a shard should have, roughly.
        seed: draws the splits and the order of records.
        workers: processes; None: one per core.
        on_error: "fail" lists every input that cannot be taken and writes nothing; "skip" leaves them out and lists them in
            rejected.jsonl.
        on_conflict: "fail" or "keep" byte-identical pictures with different labels.
        allow_leaks: keep byte-identical pictures in different splits that were given, and note them in the manifest.
        max_pixels: height times width above which a picture is rejected.
        progress: show it on stderr (a bar on a terminal, log lines otherwise).

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: an option is wrong, or the output holds a build with other options or other inputs.
        DataError: pictures cannot be taken, labels conflict, splits leak; the message names each.
        BlockingIOError: another build is writing to the same output.
        OSError: the disk is full or the like; what was finished is kept, the same call goes on from there.
    """
    inputs = _inputs(input)
    bare = {split: Path(path) for split, path in (unlabelled or {}).items()}
    if not inputs and not bare:
        raise ValueError("there is no input")
    layout = layout or _guess(inputs)
    options = Options(
        name=name,
        layout=layout,
        label_pattern=label_pattern,
        class_names=None if class_names is None else tuple(class_names),
        input_splits=tuple(split for split in inputs if split is not None),
        unlabelled_splits=tuple(bare),
        splits=None if splits is None else dict(splits),
        num_shards=dict(num_shards) if isinstance(num_shards, Mapping) else num_shards,
        shard_bytes=shard_bytes,
        seed=seed,
        on_error=on_error,
        on_conflict=on_conflict,
        allow_leaks=allow_leaks,
        max_pixels=max_pixels,
    )
    count = count_cores() if workers is None else workers
    if count < 1:
        raise ValueError(f"workers must be 1 or more (got {workers})")
    directory = Path(output)
    for path in (*inputs.values(), *bare.values()):
        if directory.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{directory}: the output lies inside the input {path}: its own shards would become inputs")
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory) as descriptor:
        build = _Build(
            directory, options, lambda: list_sources(inputs, bare, layout, label_pattern), count, descriptor, progress
        )
        try:
            return build.run()
        except BaseException:
            if made and not any(directory.iterdir()):
                directory.rmdir()
            raise


def _inputs(given: PathLike | Mapping[str, PathLike] | None) -> Inputs:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {split: Path(path) for split, path in given.items()}
    return {None: Path(given)}


def _guess(inputs: Inputs) -> str:
    if not inputs:
        return "flat"
    for path in inputs.values():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such input")
    guesses = {guess_layout(path) for path in inputs.values()}
    if len(guesses) > 1:
        raise ValueError(f"the inputs look like different layouts ({', '.join(sorted(guesses))}): pass layout")
    _log.info("layout: %s (guessed; pass layout to be sure)", *guesses)
    return guesses.pop()


class _Refusal(ValueError):
    """The output holds another build, which is left as it is."""


def _is_pointless(state: State, error: BaseException) -> bool:
    """True where a state is not worth going on from: nothing is listed yet, or the inputs or options must change first."""
    try:
        if state.fact("options") is None:
            return True
        wrong = isinstance(error, DataError | ValueError) and not isinstance(error, _Refusal)
        return wrong and state.fact("planned") is None
    except sqlite3.Error:
        return False


def _advice(differences: Sequence[str]) -> str:
    shown = "".join(f"\n  {difference}" for difference in differences[:_SHOWN])
    more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return f"{shown}{more}\nGive it what it was begun with, or delete the output folder to start over."


class _Build(NamedTuple):
    """One call: where, what, and with how many hands."""

    directory: Path
    options: Options
    list_inputs: Callable[[], Listing]
    workers: int
    lock: int
    progress: bool

    def run(self) -> Manifest:
        if (self.directory / manifests.FILE_NAME).exists():
            return self._confirm()
        folder = self.directory / manifests.BUILD_FOLDER
        if not folder.exists() and any(self.directory.iterdir()):
            raise ValueError(f"{self.directory}: the output folder is not empty, and holds no build of tfpipe")
        folder.mkdir(exist_ok=True)
        for stale in (*self.directory.glob(".*.tmp"), *self.directory.glob("index/.*.tmp"), *folder.glob(".*.tmp")):
            stale.unlink()
        state = State(folder / "state.sqlite")
        try:
            manifest = self._resume(state)
        except BaseException as error:
            pointless = _is_pointless(state, error)
            state.close()
            if pointless:
                shutil.rmtree(folder)
            if isinstance(error, sqlite3.Error):
                message = f"{self.directory}: the state of the build cannot be kept ({error}); the same build goes on from here"
                raise OSError(message) from error
            raise
        state.close()
        shutil.rmtree(folder)
        return manifest

    def _resume(self, state: State) -> Manifest:
        order = self._list(state)
        with Workers(self.workers, self.lock) as workers:
            self._audit(state, workers)
            decided = self._plan(state, order)
            shards = self._write(state, workers)
        return self._finish(state, decided, shards)

    def _list(self, state: State) -> Sequence[str] | None:
        listing = self.list_inputs()
        before = state.fact("options")
        if before is None:
            _log.info("listing the inputs")
            state.list_inputs(listing.items)
            state.note("options", self.options.as_json())
            return listing.class_names
        differences = self.options.differences(before)
        if differences:
            raise _Refusal(f"{self.directory}: an unfinished build with other options is here:" + _advice(differences))
        _log.info("going on with the unfinished build in %s", self.directory)
        differences, touched = state.compare(listing.items)
        differences += self._changed(state, touched)
        if differences:
            raise _Refusal(f"{self.directory}: the inputs of the unfinished build here have changed:" + _advice(differences))
        state.commit()
        return listing.class_names

    def _changed(self, state: State, touched: Sequence[tuple[int, str, str, int]]) -> list[str]:
        if not touched:
            return []
        before = dict(state.rows("SELECT rowid, sha256 FROM inputs WHERE sha256 NOT NULL"))
        with Workers(self.workers, self.lock) as workers:
            found = workers.run("audit", [AuditTask(list(touched), self.options.max_pixels)])
            return [
                f"changed: {state.value('SELECT key FROM inputs WHERE rowid = ?', (row,))}"
                for batch in found
                if not isinstance(batch, Progress)
                for row, audited in batch
                if audited.sha256 != before[row]
            ]

    def _audit(self, state: State, workers: Workers) -> None:
        total = state.value("SELECT count(*) FROM inputs WHERE kind != ''")
        done = state.value("SELECT count(*) FROM inputs WHERE kind != '' AND (sha256 NOT NULL OR reason NOT NULL)")
        tasks = (AuditTask(batch, self.options.max_pixels) for batch in state.pending(_AUDIT_RECORDS, _AUDIT_BYTES))
        next_commit = time.monotonic() + _COMMIT_SECONDS
        with ProgressBar("audit", total, initial=done, enabled=self.progress) as bar:
            for message in workers.run("audit", tasks):
                if isinstance(message, Progress):
                    bar.add(*message)
                else:
                    state.store_audit(message)
                    if time.monotonic() > next_commit:  # each waits for the disk: a kill costs at most this much work
                        state.commit()
                        next_commit = time.monotonic() + _COMMIT_SECONDS
        state.commit()

    def _plan(self, state: State, order: Sequence[str] | None) -> plan.Plan:
        decided = state.fact("planned")
        if decided is None:
            plan.check_inputs(state, self.options)
            decided = plan.make_plan(state, self.options, order)
            plan.shard_tasks(state, self.options, self.directory)  # raises on impossible numbers, before it is too late
            state.note("planned", decided)
        return plan.Plan(*decided)

    def _write(self, state: State, workers: Workers) -> dict[str, Shard]:
        (self.directory / manifests.INDEX_FOLDER).mkdir(exist_ok=True)
        tasks = plan.shard_tasks(state, self.options, self.directory)
        state.commit()
        shards = {task.file: shard for task in tasks if (shard := self._finished(state, task)) is not None}
        todo = [task for task in tasks if task.file not in shards]
        total, done = sum(task.end - task.start for task in tasks), sum(shard.num_records for shard in shards.values())
        with ProgressBar("write", total, initial=done, enabled=self.progress) as bar:
            for message in workers.run("write_shard", todo):
                if isinstance(message, Progress):
                    bar.add(*message)
                else:
                    shards[message.file] = message
        return {task.file: shards[task.file] for task in tasks}

    def _finished(self, state: State, task: ShardTask) -> Shard | None:
        try:
            shard = Shard(**json.loads(state.path.with_name(f"{task.file}.json").read_bytes()))
            size = (self.directory / task.file).stat().st_size
        except FileNotFoundError:
            return None
        return shard if size == shard.num_bytes else None

    def _finish(self, state: State, decided: plan.Plan, shards: Mapping[str, Shard]) -> Manifest:
        parts = [state.path.with_name(f"{file}.csv") for file in shards]
        catalog_sha256 = sidecars.write_catalog(self.directory, parts)
        splits = self._splits(state, decided.class_names, shards)
        sidecars.write_rejected(
            self.directory,
            state.rows("SELECT key, path, reason, message FROM inputs WHERE reason NOT NULL ORDER BY key"),
        )
        sidecars.write_tfds_files(self.directory, self.options.name, decided.class_names, splits)
        manifest = Manifest(
            name=self.options.name,
            seed=self.options.seed,
            class_names=decided.class_names,
            splits=splits,
            options=self.options.as_json(),
            catalog_sha256=catalog_sha256,
            inputs_sha256=_inputs_digest(state),
            properties=_properties(state),
            rejected=dict(
                state.rows("SELECT reason, count(*) FROM inputs WHERE reason NOT NULL GROUP BY reason ORDER BY reason")
            ),
            conflicts=decided.conflicts,
            leaks=decided.leaks,
            tfpipe_version=tfpipe.__version__,
        )
        manifests.save(manifest, self.directory)
        return manifest

    def _splits(self, state: State, class_names: Sequence[str], shards: Mapping[str, Shard]) -> dict[str, Split]:
        tasks = plan.shard_tasks(state, self.options, self.directory)
        splits = {}
        for name in plan.split_names(state):
            of_split = "FROM inputs WHERE reason IS NULL AND split = ?"
            counts = dict(state.rows(f"SELECT label, count(*) {of_split} GROUP BY label", (name,)))
            splits[name] = Split(
                labelled=-1 not in counts,
                image_bytes=state.value(f"SELECT sum(image_bytes) {of_split}", (name,)),
                class_counts={class_name: counts.get(label, 0) for label, class_name in enumerate(class_names)},
                shards=tuple(shards[task.file] for task in tasks if task.split == name),
            )
        return splits

    def _confirm(self) -> Manifest:
        """Returns the manifest of a complete data set after looking at every input again; never writes but to clean up.

        Content counts and not times of modification: they differ between copies of the same input.
        """
        manifest = manifests.load(self.directory)
        differences = self.options.differences(manifest.options)
        if differences:
            raise _Refusal(f"{self.directory}: a complete data set with other options is here:" + _advice(differences))
        manifests.check_files(self.directory, manifest)
        with tempfile.TemporaryDirectory() as folder:
            state = State(Path(folder) / "state.sqlite")
            try:
                state.list_inputs(self.list_inputs().items)
                with Workers(self.workers) as workers:
                    self._audit(state, workers)
                if _inputs_digest(state) != manifest.inputs_sha256:
                    differences = self._content_differences(state)
                    raise _Refusal(f"{self.directory}: made from inputs that have changed since:" + _advice(differences))
            finally:
                state.close()
        leftover = self.directory / manifests.BUILD_FOLDER  # killed between the manifest and the end
        if leftover.exists():
            shutil.rmtree(leftover)
        _log.info("%s: complete, from equal inputs with equal options: nothing to do", self.directory)
        return manifest

    def _content_differences(self, state: State) -> list[str]:
        state.write("CREATE TEMP TABLE before (key TEXT, sha256 TEXT, class_name TEXT)")
        rows = ((row.key, row.sha256, row.class_name or None) for row in read_catalog(self.directory))
        state.write_many("INSERT INTO before VALUES (?, ?, ?)", rows)
        now = "SELECT key FROM inputs WHERE reason IS NULL"
        queries = {
            "removed": f"SELECT key FROM before EXCEPT {now}",
            "added": f"{now} EXCEPT SELECT key FROM before",
            "changed": "SELECT key FROM before JOIN inputs USING (key) WHERE reason IS NULL AND before.sha256 != inputs.sha256",
            "relabelled": "SELECT key FROM before JOIN inputs USING (key)"
            " WHERE reason IS NULL AND before.class_name IS NOT inputs.class_name",
        }
        found = [f"{what}: {key}" for what, query in queries.items() for (key,) in state.rows(f"{query} ORDER BY key")]
        return found or ["the inputs that were rejected are others"]


def _inputs_digest(state: State) -> str:
    return sidecars.inputs_digest(
        state.rows("SELECT key, given_split, class_name, coalesce(reason, sha256) FROM inputs ORDER BY key")
    )


def _properties(state: State) -> dict[str, int]:
    queries = {
        "turned": "orientation > 1",
        "grey": "color IN ('grey', 'grey+alpha')",
        "cmyk": "color IN ('cmyk', 'ycck')",
        "png": "format = 'PNG'",
        "png_named_jpeg": "format = 'PNG' AND (lower(filename) LIKE '%.jpg' OR lower(filename) LIKE '%.jpeg')",
    }
    counts = {
        name: state.value(f"SELECT count(*) FROM inputs WHERE reason IS NULL AND {query}") for name, query in queries.items()
    }
    copies = "SELECT count(*) - count(DISTINCT sha256) FROM inputs WHERE reason IS NULL"
    return {**counts, "duplicates": state.value(copies)}
