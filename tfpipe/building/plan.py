"""Labels, splits and the order of records, decided once from the audited rows and the seed.

Nothing here depends on the order in which a file system lists names, on the number of workers, or
on where the input lies.
"""

from __future__ import annotations

import collections
import itertools
import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tfpipe.building import class_checks, groups, multilabel, targets
from tfpipe.building.inputs.items import LABEL_LIST
from tfpipe.building.options import Options
from tfpipe.building.relabelling import apply_decisions
from tfpipe.building.slices import classes_before, write_slice
from tfpipe.building.state import State
from tfpipe.building.tasks import ShardTask
from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.common.text import alike_groups, exactly, plural
from tfpipe.records.decisions import Decision
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION, check_name, shard_file, split_order
from tfpipe.records.samples import USUAL
from tfpipe.records.schema import UNLABELLED

_log = logging.getLogger("tfpipe")

_ACCEPTED = "FROM inputs WHERE reason IS NULL"

# Tasks whose labels stand for combinations or rows, and what handles these.
_OF_TASK: dict[str, ModuleType] = {MULTILABEL: multilabel, REGRESSION: targets}

PNG_NAMED_JPEG = "format = 'PNG' AND (lower(filename) LIKE '%.jpg' OR lower(filename) LIKE '%.jpeg')"
_WITH_TRAIT = f"{_ACCEPTED} AND ' ' || traits || ' ' LIKE '% ' || ? || ' %'"
_SHOWN = 10  # paths in a warning
_SHOWN_LISTS = 3  # rows of one mistake
_OVERHEAD_BYTES = 380  # of a record besides its image, about


def check_keys(state: State) -> None:
    """Raises DataError if two inputs have one key, naming each."""
    state.execute("CREATE INDEX IF NOT EXISTS inputs_key ON inputs (key)")
    taken = "SELECT key FROM inputs WHERE kind != ''"  # rejected rows of two tables may share a name
    double = [key for (key,) in state.execute(f"{taken} GROUP BY key HAVING count(*) > 1 ORDER BY key")]
    if double:
        paths = "SELECT path FROM inputs WHERE key = ?"
        lines = [" = ".join(path for (path,) in state.execute(paths, (key,))) for key in double]
        raise DataError(
            f"{exactly(len(double), 'key is', 'keys are')} given to more than one input; rename files, or give"
            " the rows of tables ids that differ:" + _listing(f"{key}: {line}" for key, line in zip(double, lines, strict=True))
        )


def check_inputs(state: State, options: Options) -> None:
    """Raises DataError with all rejected inputs if `on_error` is "fail", or if none is left."""
    query = "SELECT reason, path, message FROM inputs WHERE reason IS NOT NULL AND fatal ORDER BY reason, key"
    rejected = [RejectedImage(reason, message, path=path) for reason, path, message in state.execute(query)]
    lists = [each for each in rejected if each.reason == LABEL_LIST]  # all for one reason: the table is read wrongly
    shown = [each for each in rejected if each.reason != LABEL_LIST] + lists[:_SHOWN_LISTS]
    more = [f"{LABEL_LIST}: so do {exactly(len(lists) - _SHOWN_LISTS, 'more row')}"] if len(lists) > _SHOWN_LISTS else []
    lines = _listing([*(f"{each.reason}: {each}" for each in shown), *more])
    if rejected and options.on_error == "fail":
        raise DataError(
            f"{exactly(len(rejected), 'input')} cannot be packed; fix or remove them, or leave them out with on_error=skip:"
            + lines,
            problems=rejected,
        )
    if count := state.value(f"SELECT count(*) {_ACCEPTED} AND {PNG_NAMED_JPEG}"):
        path = state.value(f"SELECT path {_ACCEPTED} AND {PNG_NAMED_JPEG} ORDER BY key")
        what = plural(count, "file named .jpg is a PNG file", "files named .jpg are PNG files")
        _log.warning("%s and packed as such: %s%s", what, path, ", ..." if count > 1 else "")
    _log_kinds(state, options)
    if options.png16 == USUAL.png16:
        what = "of 16 bits will be nearly of one colour (fewer than 5 bits hold the high bytes); build with png16=percentile"
        _warn_of(state, "dim", what)
    if options.background == USUAL.background:
        what = "with an alpha channel will be read without it; background=white or background=black lays that behind"
        _warn_of(state, "transparent", what)
    if not state.value(f"SELECT count(*) {_ACCEPTED}"):
        why = f"all {exactly(len(rejected), 'input')} rejected" if rejected else "the input is empty"
        raise DataError(f"there is no image to pack: {why}{lines}", problems=rejected)


def _log_kinds(state: State, options: Options) -> None:
    """Logs what becomes of images that are not read as they are stored, or not stored as they are."""
    if count := count_trait(state, "deep"):
        _log.info("%s of 16 bits: stored as they are, read as 8 bits by png16=%s", plural(count, "PNG image"), options.png16)
    if count := state.value(f"SELECT count(*) {_ACCEPTED} AND color = 'palette'"):
        _log.info("%s with a palette: stored as they are, read in its colours", plural(count, "PNG image"))
    made = f"SELECT source_format, count(*) {_ACCEPTED} AND source_format NOT NULL GROUP BY 1 ORDER BY 1"
    for name, count in state.execute(made):
        _log.info("%s of format %s: stored as PNG, without loss, by %s", plural(count, "image"), name, options.converter)
    _warn_of(state, "first", "in files of several: only the first is packed")


def count_trait(state: State, word: str) -> int:
    """Returns the number of accepted rows that have a trait, see `tasks.Audited`."""
    return int(state.value(f"SELECT count(*) {_WITH_TRAIT}", (word,)))


def _warn_of(state: State, word: str, what: str) -> None:
    if count := count_trait(state, word):
        paths = [path for (path,) in state.execute(f"SELECT path {_WITH_TRAIT} ORDER BY key LIMIT {_SHOWN}", (word,))]
        _log.warning("%s %s: %s%s", plural(count, "image"), what, ", ".join(paths), ", ..." if count > len(paths) else "")


class Plan(NamedTuple):
    """Decisions about the whole set: label order, and the groups of keys that were let through."""

    class_names: list[str]
    conflicts: list[list[str]]
    leaks: list[list[str]]
    groups: dict[str, Any] | None = None  # see `groups.summary`
    decisions: dict[str, Any] | None = None  # the fields of `manifest.Decided`


def make_plan(
    state: State, options: Options, class_order: Sequence[str] | None, decisions: Sequence[Sequence[Decision]] = ()
) -> Plan:
    """Sets split, label and rank of every accepted row of an audited state.

    `class_order` has the names in label order where the source defines it; `decisions` those of
    each file. Decisions move no image to another split, and change no class's label.

    Raises:
        DataError: conflicting labels or leaks that the options do not allow, naming each group;
            decisions that do not fit the inputs, naming each.
        ValueError: the options do not fit the inputs.
    """
    state.execute("CREATE INDEX IF NOT EXISTS inputs_sha256 ON inputs (sha256)")
    decided = None
    special = _OF_TASK.get(options.task)
    if special is not None:
        class_names = special.label(state, options)
    else:
        class_names = _label(state, options, class_order)
        class_checks.check_classes(state, options, defined=class_order is not None)
        _check_order(class_names, options, defined=class_order is not None)
    if decisions:
        _split(state, options)  # by the classes as listed: the splits are those without decisions
        before = split_names(state)
        decided = apply_decisions(state, decisions, class_names)
        if lost := [split for split in before if split not in split_names(state)]:
            raise DataError(f"the decisions drop all images of split {lost[0]!r}: keep some, or build without this split")
    conflicts = _groups(state, "label", "AND label >= 0")
    if conflicts and options.on_conflict == "fail":
        raise DataError(
            f"{exactly(len(conflicts), 'group')} of byte-identical images with different labels; fix them, or keep them all"
            " with on_conflict=keep:" + _listing(_shown(state, group) for group in conflicts)
        )
    if not decisions:
        _split(state, options)
    for problem in (special or class_checks).training_problems(state, class_names):
        _log.warning("%s", problem)
    leaks = _groups(state, "split", "")
    if leaks and not options.allow_leaks:
        raise DataError(
            f"{exactly(len(leaks), 'group')} of byte-identical images in more than one split; remove copies, let splits=... cut"
            " the whole set, or accept the leak with allow_leaks:" + _listing(_shown(state, group) for group in leaks)
        )
    if (torn := groups.torn(state)) and not options.allow_leaks:
        raise DataError(
            f"{exactly(len(torn), 'group is', 'groups are')} in more than one split; move their images into one, let splits=..."
            " cut the whole set, or accept the leak with allow_leaks:"
            + _listing(groups.described(state, name) for name in torn)
        )
    if pairs := list(groups.alike(state)):
        _log.warning("%s", alike_groups(pairs))
    state.register("record_order", options.seed, "order")
    state.execute("UPDATE inputs SET rank = record_order(key) WHERE reason IS NULL")
    state.execute("CREATE INDEX IF NOT EXISTS inputs_order ON inputs (split, rank, key)")
    fractions = None if options.splits is None else options.fractions()
    strata = targets.names_of_classes(state, class_names) if options.task == REGRESSION else class_names
    grouped = groups.summary(state, strata, fractions, _classes_of(state, options)) if state.has_groups() else None
    return Plan(class_names, conflicts, leaks, grouped, decided)


def split_names(state: State) -> list[str]:
    """Returns the splits of a planned state: train, val, test, then others by name."""
    names = [name for (name,) in state.execute(f"SELECT DISTINCT split {_ACCEPTED}")]
    return sorted(names, key=split_order)


def shard_tasks(state: State, options: Options, directory: Path, folder: Path) -> list[ShardTask]:
    """Returns the shards of a planned state in reading order, records divided evenly by count.

    `folder` is for the build's own files about each.
    """
    tasks = []
    names, optional = split_names(state), state.optional_columns()
    if isinstance(options.num_shards, Mapping) and (unknown := set(options.num_shards) - set(names)):
        raise ValueError(f"num_shards names the split {min(unknown)!r}; there are {', '.join(names)}")
    for split in names:
        ((records, image_bytes),) = state.execute(f"SELECT count(*), sum(image_bytes) {_ACCEPTED} AND split = ?", (split,))
        count = _num_shards(options, split, records, image_bytes)
        for index in range(count):
            start, end = index * records // count, (index + 1) * records // count
            file = shard_file(options.name, split, index, count)
            tasks.append(ShardTask(str(directory), str(folder), split, index, file, start, end, optional))
    return tasks


def with_slices(state: State, options: Options, tasks: Iterable[ShardTask], todo: Container[str]) -> Iterator[ShardTask]:
    """Yields the tasks whose file is in `todo`, each when its slice of the plan has been written.

    One pass over the state, however many shards there are.
    """
    class_names, special = (state.fact("planned") or [[]])[0], _OF_TASK.get(options.task)
    query = """
        SELECT kind, path, place, crc32c, format, height, width, channels, orientation,
               iif(filename = '', key || iif(format = 'JPEG', '.jpg', '.' || lower(format)),
                   filename || iif(source_format IS NULL, '', '.png')), key, sha256,
               label, coalesce(class_name, ''), iif(?, coalesce(group_name, ''), NULL), source_format, source_sha256, history
        FROM inputs WHERE split = ? ORDER BY rank, key"""
    has_groups = state.has_groups()
    for split, of_split in itertools.groupby(tasks, lambda task: task.split):
        rows = ((*row[:-1], classes_before(row[-1])) for row in state.execute(query, (has_groups, split)))
        for task in of_split:
            own = itertools.islice(rows, task.end - task.start)
            if task.file in todo:
                write_slice(task.slice, own if special is None else special.with_lists(own, class_names))
                yield task
            else:
                collections.deque(own, maxlen=0)


def _num_shards(options: Options, split: str, records: int, image_bytes: int) -> int:
    wanted = options.num_shards.get(split) if isinstance(options.num_shards, Mapping) else options.num_shards
    if wanted is None:
        return min(records, max(1, -(-(image_bytes + records * _OVERHEAD_BYTES) // options.shard_bytes)))
    if wanted > records:
        raise ValueError(
            f"num_shards: {exactly(wanted, 'shard')} for the {exactly(records, 'record')} of split {split!r};"
            f" give each split its own number, as in num_shards={{'{split}': {records}}}"
        )
    return wanted


def _label(state: State, options: Options, class_order: Sequence[str] | None) -> list[str]:
    found = [name for (name,) in state.execute(f"SELECT DISTINCT class_name {_ACCEPTED} AND class_name NOT NULL")]
    class_checks.check_names({*found, *(options.class_names or class_order or ())})
    order = list(options.class_names or class_order or sorted(found, key=_class_order(found)))
    if len(set(order)) < len(order):
        double = sorted({name for name in order if order.count(name) > 1})
        raise DataError(f"two labels have one name: {', '.join(double)}; names of classes must differ")
    unknown = sorted(set(found) - set(order))
    if unknown:
        raise DataError(f"classes that class_names does not list: {', '.join(unknown[:20])} (it lists {', '.join(order)})")
    lost = f"SELECT DISTINCT class_name FROM inputs WHERE class_name NOT NULL EXCEPT SELECT class_name {_ACCEPTED}"
    for (name,) in state.execute(lost):
        _log.warning("class %r has no image left: all of its inputs were rejected", name)
    state.execute("UPDATE inputs SET label = ? WHERE reason IS NULL AND class_name IS NULL", (UNLABELLED,))
    state.execute("CREATE INDEX IF NOT EXISTS inputs_class ON inputs (class_name)")
    state.executemany("UPDATE inputs SET label = ? WHERE class_name = ? AND reason IS NULL", enumerate(order))
    return order


def _check_order(names: Sequence[str], options: Options, *, defined: bool) -> None:
    """Raises ValueError where nobody has said in which order the classes are."""
    if options.task != ORDINAL:
        return
    if len(names) < 3:
        raise ValueError(f"task=ordinal is for three classes or more, in an order (got {', '.join(names)}): leave it out")
    if options.class_names is None and not defined and not _are_numbers(names):
        raise ValueError(
            f"task=ordinal needs class_names, which are not all numbers, in their order, the lowest first: {','.join(names)}"
        )


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isascii() and name.isdigit() for name in names)


def _class_order(names: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    # "10" comes after "9": where every name is a number, labels follow the numbers.
    numeric = _are_numbers(names)
    return lambda name: (int(name) if numeric else 0, name)


def _split(state: State, options: Options) -> None:
    state.execute("UPDATE inputs SET split = given_split WHERE reason IS NULL AND given_split NOT NULL")
    without = "reason IS NULL AND split IS NULL"
    bare = ", ".join("?" * len(options.unlabelled_splits))
    inherent = state.value(
        f"SELECT given_split {_ACCEPTED} AND given_split NOT NULL AND given_split NOT IN ({bare})", options.unlabelled_splits
    )
    if options.splits is not None:
        if inherent is not None:
            raise ValueError(
                f"the input already has splits ({inherent}, ...): splits={dict(options.splits)} would cut it twice"
            )
        _cut(state, options)
    elif (key := state.value(f"SELECT key FROM inputs WHERE {without} ORDER BY key")) is not None:
        if inherent is not None:
            raise DataError(f"some inputs name a split and others do not: {key}")
        default = "test" if options.layout == "flat" else "train"
        if default in options.unlabelled_splits:
            raise ValueError(f"split {default!r} is the unlabelled input's: name the other input's split, as in train=DIR")
        _log.info("no splits given: all images go into split %r", default)
        state.execute(f"UPDATE inputs SET split = ? WHERE {without}", (default,))
    first = f"SELECT key {_ACCEPTED} AND split = ?"
    for split in split_names(state):
        try:
            check_name("a split's name", split)
        except ValueError as error:
            raise DataError(f"{state.value(f'{first} ORDER BY key', (split,))}: {error}") from None
    for (split,) in state.execute(f"SELECT split {_ACCEPTED} GROUP BY split HAVING min(label) < 0 AND max(label) >= 0"):
        key = state.value(f"{first} AND label < 0 ORDER BY key", (split,))
        raise DataError(f"split {split!r} has images with a label and others without: {key}")


def _cut(state: State, options: Options) -> None:
    """Cuts each class at the fractions, equal bytes and groups together, in an order drawn by the seed."""
    state.register("group_order", options.seed, "split")
    special = _OF_TASK.get(options.task)
    if state.has_groups():
        groups.cut(state, options.fractions(), _classes_of(state, options))
    elif special is not None:
        special.cut(state, options.fractions(), _classes_of(state, options))
    else:
        _cut_classes(state, options)
    for split in options.splits or ():
        if not state.value("SELECT 1 FROM inputs WHERE split = ? LIMIT 1", (split,)):
            raise ValueError(f"split {split!r} would get no image: too few for its fraction {options.splits}")


def _classes_of(state: State, options: Options) -> groups.ClassesOf:
    special = _OF_TASK.get(options.task)
    return special.classes_of(state, options) if special else groups.the_label


def _cut_classes(state: State, options: Options) -> None:
    by_class = """
        SELECT home, sha256, records, sum(records) OVER (PARTITION BY home) FROM (
            SELECT min(label) AS home, sha256, count(*) AS records FROM inputs
            WHERE reason IS NULL AND split IS NULL GROUP BY sha256
        ) ORDER BY home, group_order(sha256)"""

    def assigned() -> Iterator[tuple[str, str]]:
        label, done, cuts = None, 0, options.cuts(0, 0)
        for home, sha256, records, total in state.execute(by_class):
            if home != label:
                label, done, cuts = home, 0, options.cuts(total, home)
            yield sha256, next(split for end, split in cuts if done < end)
            done += records

    state.set_splits(assigned())


def _groups(state: State, column: str, condition: str) -> list[list[str]]:
    """Returns groups of keys with equal bytes that differ in a column."""
    found: dict[str, list[str]] = {}
    differing = f"SELECT sha256 {_ACCEPTED} {condition} GROUP BY sha256 HAVING count(DISTINCT {column}) > 1"
    query = f"SELECT sha256, key {_ACCEPTED} AND sha256 IN ({differing}) ORDER BY key"
    for sha256, key in state.execute(query):
        found.setdefault(sha256, []).append(key)
    return list(found.values())


def _shown(state: State, keys: Sequence[str]) -> str:
    def shown(key: str) -> str:
        split, class_name = next(state.execute("SELECT split, class_name FROM inputs WHERE key = ?", (key,)))
        return f"{key} ({', '.join(text for text in (split, class_name) if text)})"

    return " = ".join(map(shown, keys))


def _listing(lines: Iterable[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
