"""Building a data set: list, audit, plan, write; killed anywhere, it continues where it stopped.

manifest = build_tfrecords("photos/", "shards/", name="pets", layout="folders", splits={"train": 0.8, "test": 0.2})
"""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tfpipe
from tfpipe.building.engines.choice import check_engine, start_engine
from tfpipe.building.engines.shared_folder import DEFAULT_LEASE_SECONDS, build_together
from tfpipe.building.inputs.csv_rows import Choice
from tfpipe.building.inputs.items import SPLIT_NAMES, SourceList, one_split
from tfpipe.building.inputs.sources import DEFAULT_LABEL_PATTERN, Inputs, guess_layout, list_sources
from tfpipe.building.options import DEFAULT_SHARD_BYTES, Options
from tfpipe.building.steps import TASKS, Build, Engine
from tfpipe.common import arguments
from tfpipe.common.files import sha256_of
from tfpipe.common.locking import locked
from tfpipe.common.progress import ProgressBar
from tfpipe.common.workers import Workers, count_cores
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.listing import conversion
from tfpipe.records import folds
from tfpipe.records.combinations import SEPARATOR, LabelLists, check_class_name
from tfpipe.records.decisions import read as read_decisions
from tfpipe.records.manifest import (
    BUILD_FOLDER,
    FILE_NAME,
    MULTILABEL,
    ORDINAL,
    REGRESSION,
    SINGLE,
    Manifest,
    load,
    split_order,
)
from tfpipe.records.samples import USUAL
from tfpipe.records.targets import TargetColumns

_log = logging.getLogger("tfpipe")

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
    check: str = "header",
    images: PathLike | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    group: str | None = None,
    group_pattern: str | None = None,
    normalize: str = "none",
    png16: str = USUAL.png16,
    background: str = USUAL.background,
    convert: str | None = None,
    task: str = SINGLE,
    label_separator: str = SEPARATOR,
    label_columns: Sequence[str] | None = None,
    target_columns: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    decisions: PathLike | Sequence[PathLike] = (),
    progress: bool = True,
    workers_folder: PathLike | None = None,
    lease_seconds: float = DEFAULT_LEASE_SECONDS,
    engine: str = "processes",
    engine_address: str | None = None,
    engine_options: Sequence[str] = (),
) -> Manifest:
    r"""Writes images, byte for byte, into sharded TFRecords, and returns the manifest.

    Equal inputs and options give equal bytes, for any number of workers and after any number of
    kills. A killed run continues when it is called again with the same options; a complete data set
    is left alone.

    Args:
        input: a folder, .csv or .h5 file; or one for each split by name; or None where there are
            only `unlabelled` ones.
        output: folder for the data set; created if missing. Must be empty, or hold this very build,
            finished or not.
        name: of the data set; shards are called NAME-SPLIT.tfrecord-00000-of-00016.
        layout: "folders" (one folder per class), "filename" (the class is in the file's name),
            "csv" (columns of paths or ids, of labels and, optionally, called split and id, between
            commas, semicolons or tabs), "flat" (no labels), "hdf5" (arrays) or "tfds" (a prepared
            data set). None: guessed where that is certain.
        splits: fraction of each split, adding up to 1, as {"train": 0.8, "test": 0.2}; each class
            is cut at the fractions, byte-identical images stay together. None: folders named train,
            val and test are splits, or all images go into "train" ("test" for layout "flat").
            {"folds": 5} makes fold0 to fold4, a fifth each, exactly, or of what others leave
            ({"folds": 5, "test": 0.2}), for `train_folds`.
            Wherever a split is named, valid, validation and dev are "val".
        unlabelled: folder of images without labels, by split name.
        label_pattern: for layout "filename": a regular expression with one named group, matched
            from the name's start.
        class_names: in the order of their labels. None: sorted by code point, or as numbers where
            all are. Names given here are not questioned: unlikely classes, as "nan" in a table, are
            refused otherwise.
        num_shards: per split: one number for all, or by split name. None: by `shard_bytes`.
        shard_bytes: the approximate size of a shard; shards of a split differ by one record at
            most.
        seed: draws the splits and the order of records.
        workers: processes; None: one per core.
        on_error: "fail" lists every bad input and writes nothing; "skip" leaves them out and lists
            them in rejected.jsonl.
        on_conflict: "fail" or "keep" byte-identical images with different labels.
        allow_leaks: keep byte-identical images in different given splits, and note them in the
            manifest.
        max_pixels: height times width above which an image is rejected.
        check: "header" checks each file's headers and structure; "decode" also follows its
            compressed data, and rejects what TensorFlow's decoder would only warn of, such as a
            JPEG cut in its scan; some 5 to 20 ms per photo. For a complete data set, see
            `tfpipe verify --decode`.
        images: for layout "csv": the folder that paths in tables are relative to. None: the table's
            own.
        path_column: for layout "csv": the column of paths, or of ids, which are file names without
            their ending. None: the one called path, filename, image_id or the like.
        label_column: for layout "csv": the column of classes. None: the one called label, class,
            category or the like.
        group: for layout "csv": the column of groups: patients, places, bursts. All images of a
            group are in one split, and so are groups that hold the same bytes; classes stay as near
            the fractions of `splits` as that allows. The manifest's `groups` has how near.
        group_pattern: for any layout: a regular expression, searched for in each path relative to
            the input; its one named group, or its first, is the image's group, as in
            r"patient_(\d+)". An image without one is rejected. Images of `unlabelled` have none.
        normalize: "nfc" makes one class (or group) of names that differ in their Unicode form only, in
            `class_names`, too; "none" takes them unchanged.
        png16: how PNG of 16 bits is read: "high_byte" takes that of each sample; "full_range" makes
            an image's darkest sample 0 and its brightest 255; "percentile" does so with the samples
            that 1 % and 99 % do not exceed. Significant bits that a file declares (sBIT) are always
            obeyed. This and `background` change no record: they are stored in the manifest, and
            applied by whatever reads the data set, and by models trained on it.
        convert: "png" makes PNG of images that TensorFlow cannot decode, by Pillow and without loss:
            HEIC (extra `tfpipe[heif]`), AVIF, TIFF, GIF, BMP of other kinds, and the first image of
            an animation. All others are stored as they are. Records name the format and hash of
            such a file. None: they are rejected, each with its format.
        background: "keep" reads the colours of a transparent image as stored, whatever its alpha;
            "white" and "black" are laid behind them.
        task: "single": an image has one class. "multilabel", of layout "csv": it has any number of
            them, which the label column holds as in "cat|dog"; an empty cell is an image that is
            known to have none, and "?cat" a class that it may have. "ordinal": one class of three
            or more that are in an order, that of `class_names`, or of numbers. "regression", of
            layout "csv": it has numbers, in `target_columns`.
        label_separator: between the classes in a cell of the label column.
        label_columns: of "multilabel": a column for each class, in the order of the labels, in
            place of a label column: 1, 0, or empty for unknown. Implies that task.
        target_columns: of "regression": a column for each number that an image has, as ["age"], in the
            order of the targets; kept as float32. A row without one of them is rejected. Implies that
            task. Splits are cut by strata of the first number, of which there are 10 or fewer.
        units: of `target_columns`, one for each, as ["years"]; for people, stored in the manifest.
        decisions: decisions.csv of `tfpipe page --review`, or several, applied one after another:
            other labels, and images that are left out. Each image keeps its split, the manifest and
            the record list the classes before.
        progress: show it on stderr (a bar on a terminal, log lines otherwise).
        workers_folder: an empty folder, or one that is not there yet, by which several processes
            build together: call this with equal arguments on any machines that see input, output
            and this folder under the same names, at any time. Each takes part until the data set is
            complete; any may be killed. It can be deleted afterwards.
        lease_seconds: with `workers_folder`: after so long without a sign of life a process counts
            as dead, and others do what it had begun.
        engine: what carries out the work: "processes" of this machine; "ray" (extra `tfpipe[ray]`)
            or "beam" (extra `tfpipe[beam]`) on machines that see input and output under the same
            names, and have tfpipe.
        engine_address: for engine "ray": of the cluster, "auto" for the one of this machine. None:
            as the environment says (RAY_ADDRESS), or a cluster of this machine's cores, for this
            build only.
        engine_options: for engine "beam": options of the pipeline and its runner, as in
            ["--runner=DirectRunner", "--direct_num_workers=2"].

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: an option is wrong, or the output holds a build with other options or other
            inputs.
        DataError: bad images, conflicting labels, leaking splits, or decisions about other images;
            the message names each.
        BlockingIOError: another build is writing to the same output, and still is after a few
            seconds.
        OSError: the disk is full or the like; what was finished is kept, the same call continues
            from there.
    """
    directory = _path("output", output)
    names = _split_names(directory)
    inputs: Inputs = {}
    if isinstance(input, Mapping):
        inputs = _renamed("input", _named_paths("input", input), names)
    elif input is not None:
        inputs = {None: _path("input", input)}
    bare = cast("dict[str, Path]", _renamed("unlabelled", _named_paths("unlabelled", unlabelled or {}), names))
    if not inputs and not bare:
        raise ValueError("there is no input")
    _check_places([*inputs.values(), *bare.values()], directory)
    seed, allow_leaks, max_pixels = arguments.check(seed=seed, allow_leaks=allow_leaks, max_pixels=max_pixels)
    shard_bytes, progress, lease_seconds = arguments.check(
        shard_bytes=shard_bytes, progress=progress, lease_seconds=lease_seconds
    )
    (label_pattern,), (workers,) = arguments.check(label_pattern=label_pattern), arguments.check_given(workers=workers)
    path_column, label_column = arguments.check_given(path_column=path_column, label_column=label_column)
    decision_files = _decision_files(decisions)
    group, group_pattern = arguments.check_given(group=group, group_pattern=group_pattern)
    num_folds, others = folds.split_off(splits)
    (label_separator,), (label_columns,) = _checked_labels(label_separator, label_columns)
    target_columns, units = _checked_targets(target_columns, units)
    if target_columns is not None and (task == MULTILABEL or label_columns is not None or label_column is not None):
        raise ValueError("target_columns is for numbers, label_column and label_columns are for classes: give one of them")
    if task == ORDINAL and (label_columns is not None or target_columns is not None):
        raise ValueError("task=ordinal is for one class an image, which label_columns and target_columns do not hold")
    task = MULTILABEL if label_columns is not None else REGRESSION if target_columns is not None else task
    lists: LabelLists | TargetColumns | None = None
    if task == MULTILABEL:
        lists = LabelLists(label_separator, label_columns, normalize == "nfc")
    elif target_columns is not None:
        lists = TargetColumns(target_columns)
    choice = Choice(None if images is None else _path("images", images), path_column, label_column, names, group, lists)
    known_layout = _guess(inputs) if layout is None else layout
    if known_layout != "csv" and group is not None:
        raise ValueError(f"group names a column of layout=csv (the layout is {known_layout!r}): give a group_pattern")
    if known_layout != "csv" and choice[:3] != (None, None, None):
        raise ValueError(f"images, path_column and label_column are for layout=csv (the layout is {known_layout!r})")
    if task == REGRESSION:
        _check_numbers(target_columns, known_layout, class_names, decision_files)
    if known_layout != "csv" and task == MULTILABEL:
        raise ValueError(f"task=multilabel is for layout=csv, whose cells hold several labels (the layout is {known_layout!r})")
    if label_columns is not None and label_column is not None:
        raise ValueError("label_column and label_columns exclude each other: one column for all labels, or one for each class")
    if label_separator != SEPARATOR and (task != MULTILABEL or label_columns is not None):
        raise ValueError("label_separator is for task=multilabel with a label column")
    if decision_files and task == MULTILABEL:
        raise ValueError("decisions are about images of one class each: task=multilabel takes none")
    if choice.images is not None and not choice.images.is_dir():
        raise FileNotFoundError(f"images: {choice.images}: no such folder")
    options = Options(
        name=name,
        layout=known_layout,
        label_pattern=label_pattern,
        class_names=None if class_names is None else _class_names(class_names, normalize),
        input_splits=tuple(sorted(split for split in inputs if split is not None)),
        unlabelled_splits=tuple(sorted(bare)),
        splits=None if splits is None else folds.expand(num_folds, _renamed("splits", _by_split("splits", others), names)),
        num_shards=_renamed("num_shards", _by_split("num_shards", num_shards), names)
        if isinstance(num_shards, Mapping)
        else arguments.check_given(num_shards=num_shards)[0],
        shard_bytes=shard_bytes,
        seed=seed,
        on_error=on_error,
        on_conflict=on_conflict,
        allow_leaks=allow_leaks,
        max_pixels=max_pixels,
        check=check,
        normalize=normalize,
        path_column=path_column,
        label_column=label_column,
        guessed=layout is None,
        png16=png16,
        background=background,
        convert=convert,
        converter=None if convert is None else conversion.versions(),
        group=group,
        group_pattern=group_pattern,
        task=task,
        label_separator=label_separator,
        label_columns=label_columns,
        target_columns=target_columns,
        units=units,
        decisions=tuple(sha256_of(path) for path in decision_files),
    )
    decided = [read_decisions(path) for path in decision_files]

    def list_inputs() -> SourceList:
        is_cut = splits is not None
        how: dict[str, Any] = {"normalize": normalize, "choice": choice, "group_pattern": group_pattern}
        return list_sources(inputs, bare, known_layout, label_pattern, will_be_cut=is_cut, **how)

    count = workers or count_cores()

    def new_bar(title: str, total: int, done: int) -> ProgressBar:
        return ProgressBar(title, total, initial=done, enabled=progress and total > 0)

    (engine_address,) = arguments.check_given(engine_address=engine_address)
    if engine_options not in ((), []):
        engine_options = arguments.texts("engine_options", engine_options, "different options")
    has_lease = lease_seconds != DEFAULT_LEASE_SECONDS
    check_engine(engine, engine_address, engine_options, workers, workers_folder is not None, has_lease)
    if workers_folder is not None:
        place = _path("workers_folder", workers_folder)
        for path in (*inputs.values(), *bare.values(), directory):
            if place.resolve().is_relative_to(path.resolve()):
                raise ValueError(f"{place}: the workers_folder lies inside {path}: give it a place of its own")
        start_workers: Callable[[], Engine] = functools.partial(Workers, count, TASKS)
        build = Build(directory, options, list_inputs, start_workers, new_bar, directory / BUILD_FOLDER, decided)
        places = {"input": inputs, "unlabelled": bare, "images": choice.images, "output": directory}
        alike = {"tfpipe": tfpipe.__version__, **{name: _absolute(given) for name, given in places.items()}}
        return build_together(build, place, alike, count, lease_seconds, progress=progress)
    with locked(directory, "build") as descriptor:
        if engine == "processes":
            start_workers = functools.partial(Workers, count, TASKS, descriptor)
        else:
            start_workers = functools.partial(start_engine, engine, engine_address, engine_options, directory / BUILD_FOLDER)
        return Build(directory, options, list_inputs, start_workers, new_bar, directory / BUILD_FOLDER, decided).run()


def _split_names(directory: Path) -> Mapping[str, str]:
    """Returns the names of splits here: those of a complete older data set, if there is one."""
    if (directory / FILE_NAME).is_file():
        kept = set(load(directory).splits) & set(SPLIT_NAMES) - set(SPLIT_NAMES.values())
        return {name: split for name, split in SPLIT_NAMES.items() if not kept or name == "validation"}
    return SPLIT_NAMES


def _renamed(argument: str, given: Mapping[Any, Any], names: Mapping[str, str]) -> dict[Any, Any]:
    """Returns an argument by split, under the names of splits used here."""
    renamed = {name: names.get(name.lower(), name) if isinstance(name, str) else name for name in given}
    for name, split in renamed.items():
        if name != split:
            _log.info("%s: split %r is taken as %r", argument, name, split)
    if double := one_split(renamed):
        raise ValueError(f"{argument}: {double}")
    return {renamed[name]: value for name, value in given.items()}


def _decision_files(given: PathLike | Sequence[PathLike]) -> list[Path]:
    files = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(files, list | tuple):
        raise arguments.wrong("decisions", "a path, or a list of paths", given)
    return [arguments.path("decisions", file) for file in files]


def _named_paths(name: str, given: Mapping[str, PathLike]) -> dict[str, Path]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a path by split name (got {given!r})")
    return {split: _path(name, path) for split, path in given.items()}


def _checked_labels(separator: Any, columns: Any) -> tuple[tuple[str], tuple[tuple[str, ...] | None]]:
    if not isinstance(separator, str) or not separator.strip():
        raise arguments.wrong("label_separator", "text between labels", separator)
    if columns is None:
        return (separator,), (None,)
    names = arguments.texts("label_columns", columns, "different names of columns")
    for name in names:
        check_class_name(name)
    return (separator,), (names,)


def _checked_targets(columns: Any, units: Any) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    if columns is None:
        if units is not None:
            raise ValueError(f"units must come with the target_columns that they are of (got {units!r})")
        return None, None
    columns = arguments.texts("target_columns", columns, "different names of columns")
    if units is not None and (
        not isinstance(units, list | tuple)
        or len(units) != len(columns)
        or not all(isinstance(unit, str) and unit.isprintable() for unit in units)
    ):
        raise arguments.wrong("units", f"a text for each of target_columns ({', '.join(columns)})", units)
    return columns, None if units is None else tuple(units)


def _check_numbers(columns: Any, layout: str, class_names: Any, decisions: Sequence[Path]) -> None:
    """Raises ValueError for options that do not go with task=regression."""
    if columns is None:
        raise ValueError("task=regression needs target_columns, the columns of the numbers")
    if layout != "csv":
        raise ValueError(f"target_columns is for layout=csv, whose cells hold numbers (the layout is {layout!r})")
    if class_names is not None:
        raise ValueError("class_names is for classes: targets have the names of their columns")
    if decisions:
        raise ValueError("decisions are about images of one class each: task=regression takes none")


def _class_names(given: Sequence[str], normalize: str) -> tuple[str, ...]:
    names = arguments.class_names(given)
    if normalize == "nfc":
        names = arguments.class_names([unicodedata.normalize("NFC", name) for name in names])
    return names


def _path(name: str, given: PathLike) -> Path:
    path = arguments.path(name, given)
    if any("\ud800" <= character <= "\udfff" for character in os.fspath(path)):
        raise ValueError(f"{name}: {os.fsencode(path)!r} is not UTF-8: rename the folder")
    return path


def _by_split(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(split, str) for split in given):
        raise arguments.wrong(name, "a number by split name", given)
    return {split: arguments.check(**{name: given[split]})[0] for split in sorted(given, key=split_order)}


def _check_places(inputs: Iterable[Path], directory: Path) -> None:
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such input")
    for path in inputs:
        if directory.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{directory}: the output lies inside the input {path}: its own shards would become inputs")
    if os.path.lexists(directory) and not directory.is_dir():
        raise ValueError(f"{directory}: the output must be a folder")


def _absolute(given: Any) -> Any:
    """Returns paths as strings that mean the same in any current folder."""
    if isinstance(given, Mapping):
        return {name or "": _absolute(path) for name, path in given.items()}
    return given and os.path.abspath(given)


def _guess(inputs: Inputs) -> str:
    guesses = {guess_layout(path) for path in inputs.values()} or {"flat"}
    if len(guesses) > 1:
        raise ValueError(f"the inputs look like different layouts ({', '.join(sorted(guesses))}): pass layout")
    if inputs:
        _log.info("layout: %s (guessed; pass layout to be sure)", *guesses)
    return guesses.pop()
