"""The manifest: all files of a complete data set, so that anything less is noticed.

    content = manifest.load("shards/")
    content.splits["test"].num_records
    manifest.check_files("shards/", content)  # raises DataError if a shard is missing, truncated, longer, or one too many

`manifest.json` is written last, atomically: where it exists, the data set is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tfpipe.common import arguments, object_cache, stores
from tfpipe.common.errors import DataError
from tfpipe.common.files import IMAGE_SUFFIXES, check_json, parse_json, read_bytes, sha256_of, written_atomically
from tfpipe.common.text import exactly, html_table
from tfpipe.records import schema
from tfpipe.records.samples import Samples

FORMAT_VERSION = 2
_WITH_NEWS = 3  # version of data sets that readers of version 2 would misread: several labels an image, numbers, WebP, BMP
_WITHOUT_FRAMES = 1  # the version before, whose readers had to read the catalog
_VERSIONS = (_WITHOUT_FRAMES, FORMAT_VERSION, _WITH_NEWS)

# What a model predicts, the option `task`: one class an image, any number of them, one of classes in
# an order, or numbers.
SINGLE, MULTILABEL, ORDINAL, REGRESSION = TASKS = ("single", "multilabel", "ordinal", "regression")
PROBABILITIES, VALUES = "probabilities", "values"  # names of what a model gives, the latter of a regression
FILE_NAME = "manifest.json"
CATALOG_NAME = "catalog.csv"
REJECTED_NAME = "rejected.jsonl"
INDEX_FOLDER = "index"
# For tensorflow-datasets. It looks for class names under the feature's name with dots (4.9.10), and
# silently falls back to "0", "1", ...
INFO_NAME = "dataset_info.json"
FEATURES_NAME = "features.json"
LABELS_NAME = f"{schema.LABEL.replace('/', '.')}.labels.txt"
COMPANION_NAMES = (CATALOG_NAME, REJECTED_NAME, INFO_NAME, FEATURES_NAME, LABELS_NAME)
BUILD_FOLDER = ".build"  # the state of an unfinished build

_MAX_WALKED = 100  # folders that are looked into for images
JOINED = "+"  # between the names of splits that are read as one; never in a name
_USUAL_SPLITS = ("train", "val", "test")
_MAX_NAME = 64  # characters; a shard's name must fit into the 255 bytes of a file system's
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MAX_BYTES = 64 << 20  # of a manifest: some 200,000 shards, or a million classes
MAX_TEXT = 4096  # characters of a class's name, a key or a file's
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def check_name(kind: str, name: str) -> str:
    """Returns `name`, the name of a data set or a split.

    Raises:
        ValueError: it could not stand in a shard's file name that tensorflow-datasets can parse.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise ValueError(
            f"{kind} must be a letter, then at most {_MAX_NAME - 1} letters, digits or underscores (got {name!r:.200})"
        )
    return name


def split_order(name: str) -> tuple[int, str]:
    """Returns what splits are sorted by: train, val, test, then the others by name."""
    return (_USUAL_SPLITS.index(name) if name in _USUAL_SPLITS else len(_USUAL_SPLITS)), name


def shard_file(name: str, split: str, shard: int, num_shards: int) -> str:
    """Returns a shard's file name, in the form that tensorflow-datasets looks for."""
    return f"{name}-{split}.tfrecord-{shard:05d}-of-{num_shards:05d}"


def index_file(shard: str) -> str:
    """Returns the path of a shard's index relative to the data set."""
    # In a folder of its own, so that a glob for the shards does not catch it.
    return f"{INDEX_FOLDER}/{shard.replace('.tfrecord-', '-')}.idx"


def frames_file(name: str, split: str) -> str:
    """Returns the path of a split's frames relative to the data set."""
    return f"{INDEX_FOLDER}/{name}-{split}.frames"


def combinations_file(name: str) -> str:
    """Returns the path of the combinations of labels relative to the data set."""
    return f"{INDEX_FOLDER}/{name}.combinations"


def targets_file(name: str) -> str:
    """Returns the path of the rows of targets relative to the data set."""
    return f"{INDEX_FOLDER}/{name}.targets"


@dataclass(slots=True)
class Traits:
    """Properties shared by all images of a split: stages that none of them needs are left out.

    Attributes:
        png: some are PNG files.
        turned: some are stored in another orientation than 1.
        longer: the longest of their longer sides, in pixels.
        others: some are WebP or BMP files; None where none is.
    """

    png: bool = False
    turned: bool = False
    longer: _Count = 1
    others: Literal[True] | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """What a reader needs of a split's catalog: the hash of its file of frames, and the traits."""

    sha256: _Sha256
    traits: Traits


@dataclass(frozen=True, slots=True)
class Combinations:
    """The file of combinations of labels: how many there are, and its hash."""

    count: _Count
    sha256: _Sha256


@dataclass(frozen=True, slots=True)
class Targets:
    """The file of distinct rows of targets: how many there are, its hash, and the units of the targets.

    `units` has each target's, by name; "" where it is not known.
    """

    count: _Count
    sha256: _Sha256
    units: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one target in a split; `deviation` is that of all its records, not an estimate for others."""

    mean: float
    deviation: Annotated[float, msgspec.Meta(ge=0)]
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of records in the data set's folder, and the hash of its index file."""

    file: str
    num_records: _Count
    num_bytes: _Count
    sha256: _Sha256
    index_sha256: _Sha256


@dataclass(frozen=True, slots=True)
class Split:
    """One split.

    Attributes:
        labelled: False where every label is -1.
        image_bytes: the sum of the images' own sizes.
        class_counts: records per class name, every class of the data set named; of numbers, all
            records for each target.
        shards: in reading order.
        frames: None in data sets of format version 1.
        unknown_counts: of several labels an image, records per class name that may have it; else
            None.
        statistics: of numbers, by the target's name; None where there is no label, and of joined
            splits.
    """

    labelled: bool
    image_bytes: _Count
    class_counts: Mapping[str, _Count]
    shards: tuple[Shard, ...]
    frames: Frames | None = None
    unknown_counts: Mapping[str, _Count] | None = None
    statistics: Mapping[str, Statistics] | None = None

    @property
    def num_records(self) -> int:
        """Records of all shards."""
        return sum(shard.num_records for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.num_bytes for shard in self.shards)


def _join(splits: Sequence[Split]) -> Split:
    counts = {name: sum(split.class_counts[name] for split in splits) for name in splits[0].class_counts}
    unknown = None
    if splits[0].unknown_counts is not None:
        unknown = {name: sum((split.unknown_counts or {})[name] for split in splits) for name in counts}
    shards = tuple(shard for split in splits for shard in split.shards)
    return Split(splits[0].labelled, sum(split.image_bytes for split in splits), counts, shards, unknown_counts=unknown)


@dataclass(frozen=True, slots=True)
class Farthest:
    """The class of a split that is farthest from its fraction, relative to the size of the class.

    Attributes:
        class_name: "" in an unlabelled split.
        wanted: records that the fraction of the split makes.
        num_records: records of the class in the split.
    """

    class_name: str
    wanted: Annotated[float, msgspec.Meta(ge=0)]
    num_records: _Count


@dataclass(frozen=True, slots=True)
class GroupsOfSplit:
    """The groups of one split; `farthest` is None where splits were given."""

    num_groups: _Count
    farthest: Farthest | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of images that belong into one split: of a patient, a place, a burst.

    Attributes:
        num_groups: their number.
        num_joined: those that equal bytes join with others; they went into one split.
        splits: by name.
        torn: names of groups in several given splits, kept on request.
    """

    num_groups: _Count
    num_joined: _Count
    splits: Mapping[str, GroupsOfSplit]
    torn: Sequence[str]


@dataclass(frozen=True, slots=True)
class Decided:
    """What decisions of people have changed, see `tfpipe.records.decisions`.

    Attributes:
        counts: of decisions, by kind.
        relabelled: the classes that an image had before, the first first, by key.
        dropped: the class that an image had, by key.
    """

    counts: Mapping[str, _Count]
    relabelled: Mapping[str, Sequence[str]]
    dropped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        name: of the data set.
        seed: of splits and record order.
        class_names: label i is the name at i; of numbers, the names of the targets.
        splits: by name, in the order of the catalog.
        options: of the build that the bytes depend on.
        companions: SHA-256 of `catalog.csv`, `rejected.jsonl` and the files for
            tensorflow-datasets, by name.
        inputs_sha256: of every input's key, split, class and content.
        properties: counts for people: images turned by EXIF, grey, CMYK, byte duplicates.
        rejected: number of rejected inputs by reason; `rejected.jsonl` names each.
        conflicts: groups of keys with equal bytes and different labels, kept on request.
        leaks: groups of keys with equal bytes in different splits, kept on request.
        tfpipe_version: that wrote it.
        groups: of images; None in a data set without groups.
        combinations: of labels, where an image has several, else None; labels of records are their
            indices.
        decisions: what they changed; None where the build was given none.
        targets: numbers that each image has, in place of classes, else None; labels of records are
            the indices of their rows.
    """

    name: str
    seed: int
    class_names: Sequence[str]
    splits: Mapping[str, Split]
    options: Mapping[str, Any]
    companions: Mapping[str, _Sha256]
    inputs_sha256: str
    properties: Mapping[str, int]
    rejected: Mapping[str, int]
    conflicts: Sequence[Sequence[str]]
    leaks: Sequence[Sequence[str]]
    tfpipe_version: str
    groups: Groups | None = None
    combinations: Combinations | None = None
    decisions: Decided | None = None
    targets: Targets | None = None

    def __repr__(self) -> str:
        records = {name: split.num_records for name, split in self.splits.items()}
        return f"Manifest({self.name!r}, records={records}, class_names={reprlib.repr(list(self.class_names))})"

    def _repr_html_(self) -> str:
        counts = [[name, *(split.class_counts.get(name, 0) for split in self.splits.values())] for name in self.class_names]
        totals = ["records", *(split.num_records for split in self.splits.values())]
        return html_table(
            f"Manifest {self.name!r}", ["class" if self.targets is None else "target", *self.splits], [*counts, totals]
        )

    @property
    def task(self) -> str:
        """What a model of these labels predicts: one of TASKS."""
        task: str = self.options.get("task", SINGLE)
        return task

    @property
    def label_rows(self) -> tuple[str, int, str] | None:
        """File of what each label stands for, with its size and SHA-256; None where that is a class."""
        if self.targets is not None:
            return targets_file(self.name), 4 * self.targets.count * len(self.class_names), self.targets.sha256
        if self.combinations is not None:
            return combinations_file(self.name), self.combinations.count * len(self.class_names), self.combinations.sha256
        return None

    @property
    def root_hash(self) -> str:
        """One SHA-256 over name, size, count and hash of every shard: equal for equal data sets."""
        lines = sorted(
            f"{shard.file}\t{shard.num_records}\t{shard.num_bytes}\t{shard.sha256}\n"
            for split in self.splits.values()
            for shard in split.shards
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """Returns one split, or several as one: "fold0+fold1".

        Raises:
            ValueError: there is none of that name, or see `parts`.
        """
        joined = [self.splits[part] for part in self.parts(name)]
        return joined[0] if len(joined) == 1 else _join(joined)

    def parts(self, name: str, argument: str = "split") -> tuple[str, ...]:
        """Returns the splits that a name joins, in the order of the catalog; of a split, itself.

        Raises:
            ValueError: one is unknown, named twice or empty, or some have labels and others not.
        """
        if not isinstance(name, str) or JOINED not in name:
            return (arguments.choice(argument, name, self.splits),)
        named = [arguments.choice(argument, part, self.splits) for part in name.split(JOINED)]
        if len(set(named)) < len(named):
            raise ValueError(f"{argument} {name!r} names a split twice")
        if len({self.splits[part].labelled for part in named}) > 1:
            raise ValueError(f"{argument} {name!r} joins splits with labels and others without")
        return tuple(part for part in self.splits if part in named)


def save(manifest: Manifest, directory: Path) -> None:
    """Writes `manifest.json`, atomically."""
    with written_atomically(directory / FILE_NAME) as file:
        file.write(_encode(manifest))


def _encode(manifest: Manifest) -> bytes:
    content = {"format_version": _version(manifest), "root_hash": manifest.root_hash, **_fields(manifest)}
    sorted_content = json.dumps(content, sort_keys=True, default=_fields)
    content["content_sha256"] = hashlib.sha256(sorted_content.encode()).hexdigest()
    return (json.dumps(content, indent=1, ensure_ascii=False, default=_fields) + "\n").encode()


def _version(manifest: Manifest) -> int:
    frames = [split.frames for split in manifest.splits.values()]
    if manifest.label_rows is not None or any(each and each.traits.others for each in frames):
        return _WITH_NEWS
    return FORMAT_VERSION if all(frames) else _WITHOUT_FRAMES


def _fields(item: Any) -> dict[str, Any]:
    fields = ((field.name, getattr(item, field.name)) for field in dataclasses.fields(item))
    return {name: value for name, value in fields if value is not None}


@arguments.renamed(directory="data")
def load(data: str | os.PathLike[str]) -> Manifest:
    """Reads `manifest.json`, for every reader: all accept and refuse the same data sets.

    Nothing else is opened. Every name in it is that of a file of this folder, and its bytes are
    those that tfpipe writes for its content.

    Raises:
        FileNotFoundError: there is none: not a data set, or its build did not finish.
        DataError: it is not as tfpipe wrote it; names the field, where there is one.
    """
    path = arguments.path("data", data) / FILE_NAME
    try:
        encoded = read_bytes(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{stores.url(path)}: no manifest here: {_what_else(path.parent)}") from None
    content = parse_json(encoded, path)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in _VERSIONS:
        message = f"format version {version!r:.80}, this tfpipe reads versions {_WITHOUT_FRAMES} to {_VERSIONS[-1]}"
        raise DataError(message, path=path)
    manifest = check_json(content, Manifest, path)
    for problem in _problems(manifest):
        raise DataError(problem, path=path)
    try:
        is_whole = _encode(manifest) == encoded
    except UnicodeEncodeError:  # half of a character
        is_whole = False
    if not is_whole:
        message = "its hash does not match its content, or its bytes are not those that tfpipe writes: changed or damaged"
        raise DataError(message, path=path)
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yields contradictions between fields."""
    names = list(manifest.class_names)
    if len(set(names)) < len(names) or any(map(CONTROL.search, names)) or max(map(len, names), default=0) > MAX_TEXT:
        yield f"class_names: a name occurs twice, has more than {MAX_TEXT} characters, or a control character"
    if sorted(manifest.companions) != sorted(COMPANION_NAMES):
        yield f"companions: must be a SHA-256 for each of {', '.join(COMPANION_NAMES)}"
    for field, name in (("name", manifest.name), *(("splits", split) for split in manifest.splits)):
        try:
            check_name(field, name)
        except ValueError as error:
            yield str(error)
    try:
        Samples.of(manifest.options)
    except ValueError as error:
        yield f"options.{error}"
    rows = {MULTILABEL: manifest.combinations is not None, REGRESSION: manifest.targets is not None}
    if manifest.task not in TASKS or any(has_rows != (manifest.task == task) for task, has_rows in rows.items()):
        yield f"options.task: {manifest.task!r:.80} is not a task of these labels"
    for name, count in manifest.properties.items():
        if count < 0:
            yield f"properties.{name}: {count} is not a count"
    if manifest.groups is not None:
        yield from _group_problems(manifest.groups, manifest.splits)
    for name, split in manifest.splits.items():
        if list(split.class_counts) != names:
            yield f"splits.{name}.class_counts: must be a count for each of class_names, in their order"
        most = split.num_records if split.labelled else 0
        if manifest.targets is not None:
            yield from _target_problems(name, split, manifest.targets, most)
        elif split.statistics is not None:
            yield f"splits.{name}.statistics: there are no targets here"
        if manifest.combinations is not None:
            yield from _combination_problems(name, split, names, most)
        elif split.unknown_counts is not None:
            yield f"splits.{name}.unknown_counts: an image has one label here"
        elif manifest.targets is None and sum(split.class_counts.values()) != most:
            yield f"splits.{name}.class_counts: they do not add up to the records that have labels"
        for index, shard in enumerate(split.shards):
            where, file = f"splits.{name}.shards[{index}]", shard_file(manifest.name, name, index, len(split.shards))
            if shard.file != file:
                yield f"{where}.file: must be {file} (got {shard.file!r:.200})"
            if shard.num_records > shard.num_bytes:
                records, size = exactly(shard.num_records, "record"), exactly(shard.num_bytes, "byte")
                yield f"{where}: {records} in {size} cannot be"


def _group_problems(groups: Groups, splits: Mapping[str, Split]) -> Iterator[str]:
    if sorted(groups.splits) != sorted(splits):
        yield "groups.splits: must be those of the data set"
    torn = list(groups.torn)
    if torn != sorted(set(torn)) or any(map(CONTROL.search, torn)):
        yield "groups.torn: must be different names, sorted"
    if not torn and sum(split.num_groups for split in groups.splits.values()) != groups.num_groups:
        yield "groups.splits: their numbers do not add up to num_groups, and no group is torn"


def _combination_problems(name: str, split: Split, names: Sequence[str], most: int) -> Iterator[str]:
    unknown = split.unknown_counts
    if split.frames is None or unknown is None or list(unknown) != names:
        yield f"splits.{name}: must have frames, and unknown_counts for each of class_names, in their order"
    elif any(split.class_counts.get(one, 0) + unknown[one] > most for one in names):
        yield f"splits.{name}.class_counts: more than the records that have labels"


def _target_problems(name: str, split: Split, targets: Targets, most: int) -> Iterator[str]:
    names = list(split.class_counts)
    if list(targets.units) != names:
        yield "targets.units: must be one for each of class_names, in their order"
    if split.frames is None or list(split.statistics or names) != names or (split.statistics is None) == split.labelled:
        yield f"splits.{name}: must have frames, and statistics for each target if it has labels"
    if set(split.class_counts.values()) - {most}:
        yield f"splits.{name}.class_counts: must be the records that have labels"


def _what_else(directory: Path) -> str:
    """Returns what a folder without a manifest is, and what to do."""
    if stores.is_remote(directory):
        return "not a tfpipe data set, or its build did not finish"
    if (directory / BUILD_FOLDER).exists():
        return "its build did not finish: run the same build again"
    if not directory.exists():
        return "there is no such folder"
    some = itertools.islice(os.walk(directory), _MAX_WALKED)
    if any(name.lower().endswith(tuple(IMAGE_SUFFIXES)) for _, _, names in some for name in names):
        packed = f"tfpipe build --input={directory} --output=DATA"
        return f"not a tfpipe data set, but a folder of images, which are packed into one first: {packed}"
    return "not a tfpipe data set"


def file_problems(
    directory: str | os.PathLike[str], manifest: Manifest, splits: Collection[str] | None = None
) -> list[DataError]:
    """Returns the shards that are missing, truncated, longer or too many; reads no bytes of them."""
    folder = Path(directory)
    problems = []
    for split_name, split in manifest.splits.items():
        if splits is not None and split_name not in splits:
            continue
        names, size_of = _contents(folder, [shard.file for shard in split.shards])
        found = ((folder / shard.file, _shard_problem(size_of, shard)) for shard in split.shards)
        problems += [DataError(problem, path=path) for path, problem in found if problem]
        # A plain glob would read these as part of the data.
        known = {shard.file for shard in split.shards}
        prefix = f"{manifest.name}-{split_name}.tfrecord-"
        extra = sorted(name for name in names if name.startswith(prefix) and name not in known)
        problems += [DataError("a shard that the manifest does not list: move it away", path=folder / name) for name in extra]
    return problems


def _contents(folder: Path, files: Sequence[str]) -> tuple[list[str], Callable[[str], int]]:
    """Returns the names in a folder, and a function that gives a file's size or raises OSError."""
    if not stores.is_remote(folder):
        return os.listdir(folder), lambda name: _size(folder / name)
    sizes = stores.sizes(folder, files)

    def size_of(name: str) -> int:
        if name not in sizes:
            raise FileNotFoundError
        return sizes[name]

    return list(sizes), size_of


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names in a data set's folder, and the sorted paths of what is in its `index` folder.

    Of a web server nothing, which does not list its files.
    """
    if stores.is_remote(folder):
        names = stores.sizes(folder, [])
        return [name for name in names if "/" not in name], [name for name in names if name.startswith(f"{INDEX_FOLDER}/")]
    indexes = folder / INDEX_FOLDER
    return os.listdir(folder), [f"{INDEX_FOLDER}/{name}" for name in sorted(os.listdir(indexes))] if indexes.is_dir() else []


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError("not a regular file", path=path)
    return status.st_size


def _shard_problem(size_of: Callable[[str], int], shard: Shard) -> str:
    records = exactly(shard.num_records, "record")
    try:
        size = size_of(shard.file)
    except FileNotFoundError:
        return f"missing: a shard of {records}"
    except OSError as error:  # a link that leads back to itself, say
        return f"cannot be read: {error.strerror}"
    except DataError as error:
        return error.message
    if size == shard.num_bytes:
        return ""
    kind = "truncated" if size < shard.num_bytes else "longer than written"
    return f"{kind}: {exactly(size, 'byte')}, the manifest lists {shard.num_bytes} ({records})"


def check_files(directory: str | os.PathLike[str], manifest: Manifest, splits: Collection[str] | None = None) -> None:
    """Raises one DataError that names every problem of `file_problems`."""
    problems = file_problems(directory, manifest, splits)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "\n  ".join(map(str, problems))
        wrong = exactly(len(problems), "shard is", "shards are")
        raise DataError(f"{wrong} not as listed in the manifest:\n  {lines}", path=directory, problems=problems)


def check_hashes(directory: str | os.PathLike[str], manifest: Manifest, splits: Collection[str] | None = None) -> None:
    """Raises DataError unless catalog, indexes and frames have the hashes in the manifest."""
    expected = {CATALOG_NAME: manifest.companions[CATALOG_NAME]}
    for name, split in manifest.splits.items():
        if splits is None or name in splits:
            expected |= {index_file(shard.file): shard.index_sha256 for shard in split.shards}
            expected |= frames_hash(manifest, name)
    if manifest.label_rows is not None:
        path, _, sha256 = manifest.label_rows
        expected[path] = sha256
    places = [(Path(directory) / file, sha256) for file, sha256 in expected.items()]
    # Objects whose copies are here, with the right hash, are not read again.
    mapped = stores.in_parallel if stores.is_remote(directory) else map
    for problem in filter(None, mapped(lambda place: hash_problem(*place, fresh=False), places)):
        raise problem


def frames_hash(manifest: Manifest, split: str) -> dict[str, str]:
    """Returns the SHA-256 of a split's frames by their path; none in format version 1."""
    frames = manifest.split(split).frames
    return {} if frames is None else {frames_file(manifest.name, split): frames.sha256}


def hash_problem(path: Path, sha256: str, *, fresh: bool = True) -> DataError | None:
    """Returns the error for a file that is not as the manifest lists it, or None.

    The copy of an object is enough where it need not be `fresh`; it is what readers read.
    """
    try:
        if stores.is_remote(path):
            is_right = object_cache.fetch(path, sha256, fresh=fresh) is not None
        else:
            is_right = sha256_of(path) == sha256
    except FileNotFoundError:
        return DataError("missing, though the manifest lists it", path=path)
    except (OSError, DataError) as error:
        return DataError(f"cannot be read: {error.message if isinstance(error, DataError) else error.strerror}", path=path)
    # The other hash is not shown: a link may lead to a file that whoever wrote the manifest cannot
    # read.
    return None if is_right else DataError("not as listed in the manifest: its SHA-256 is another", path=path)
