"""Checks of the set of classes before anything is written, the same for every layout.

Classes that nobody would want are refused, all at once; naming them with `class_names`, or an input
that defines them itself, turns that into a warning. What training would refuse later is a warning,
since a data set may be for evaluation.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tfpipe.building.inputs.sources import DEFAULT_LABEL_PATTERN
from tfpipe.building.options import Options
from tfpipe.building.state import State
from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly, plural
from tfpipe.records import folds
from tfpipe.records.manifest import JOINED

_log = logging.getLogger("tfpipe")

_SHOWN = 5
_FEW = 10  # images; of fewer, each may well be of another class
_NO_VALUE = {"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "?"}
_SEVERAL = re.compile(r"[|;]|^\[.*\]$|^\{.*\}$")
_NUMBERED = re.compile(r"(?P<words>[^\W\d_]+(?:[-._ ][^\W\d_]+)*)[-._ ]+\(?\d+\)?")
_WHOLE_NAMES = r"label_pattern='(?P<label>.+?)[-._ (]*\d+\)?\.\w+$'"


class _Finding(NamedTuple):
    message: str
    is_refused: bool  # nobody would want it: only an explicit option lets it through


def check_names(names: Iterable[str]) -> None:
    """Raises DataError for names that cannot be lines of a file that tensorflow-datasets strips."""
    broken = sorted(name for name in names if name != name.strip() or len(name.splitlines()) > 1)
    if broken:
        raise DataError(f"a class name holds a line break, or begins or ends with a space: {_some(broken)}")


def check_classes(state: State, options: Options, *, defined: bool) -> None:
    """Refuses a set of classes that is probably wrong, or warns of it.

    The input may have `defined` the classes itself. Raises ValueError if nobody would want these;
    the message names all reasons, and the option that overrides them.
    """
    named = "FROM inputs WHERE reason IS NULL AND class_name NOT NULL"
    counts = dict(state.execute(f"SELECT class_name, count(*) {named} GROUP BY class_name"))
    insisted = defined or options.class_names is not None
    findings = [
        finding._replace(is_refused=finding.is_refused and not insisted)
        for find in (_levels, _dropped, _singles, _values, _alike)
        for finding in find(state, options, counts)
    ]
    refused = [finding.message for finding in findings if finding.is_refused]
    if refused:
        lines = "".join(f"\n  {message}" for message in refused)
        raise ValueError(f"the classes are probably not what was meant; fix this, or name all of them with class_names:{lines}")
    for finding in findings:
        _log.warning("%s", finding.message)


def _levels(state: State, options: Options, _: Mapping[str, int]) -> Iterator[_Finding]:
    """A folder of images that is one level too deep, and folders of classes that hold nothing."""
    if options.layout != "folders":
        return
    below: dict[str, set[str]] = defaultdict(set)  # of each class, the folders in it, and "" for images right there
    places: dict[str, str] = {}
    folders: set[str] = set()
    labelled = "class_name NOT NULL AND kind != ''"
    has_splits = bool(state.value(f"SELECT 1 FROM inputs WHERE {labelled} AND given_split NOT NULL LIMIT 1"))
    for key, name, path in state.execute(f"SELECT key, class_name, path FROM inputs WHERE {labelled} ORDER BY key"):
        parts = key.split("/")[has_splits + 1 :]
        below[name].add(parts[0] if len(parts) > 1 else "")
        places.setdefault(name, path.rsplit("/", len(parts))[0])
        folders.add("/".join(key.split("/")[: has_splits + 1]))
    for (key,) in state.execute("SELECT key FROM inputs WHERE reason NOT NULL"):
        folders.add("/".join(key.split("/")[: has_splits + 1]))
    empty = {"/".join(key.split("/")[: has_splits + 1]) for key in (state.fact("empty_folders") or ())} - folders
    empty = {key for key in empty if key.split("/")[0] not in options.unlabelled_splits}
    if empty:
        yield _Finding(f"{plural(len(empty), 'folder holds', 'folders hold')} no image: {_some(empty)}", False)
    if not below or any("" in inside for inside in below.values()):
        return
    if len(below) == 1:
        ((name, inside),) = below.items()
        message = f"{places[name]}: the one class, {name!r}, holds only folders, {_some(inside)}: if these are the classes"
        of_split = " of its split (input=SPLIT=DIR)" if has_splits else ""
        yield _Finding(f"{message}, pass this folder as the input{of_split}", True)
        return
    repeated = {inside for inside, count in Counter(one for group in below.values() for one in group).items() if count > 1}
    if len(repeated) > 1:
        message = f"the folders {_some(below)} are taken for classes, and {_some(repeated)} repeat in them: if these are"
        remedy = "the classes, or splits, move them to the top or name the images in a table"
        yield _Finding(f"{message} {remedy}{'; else pass layout=folders' if options.guessed else ''}", options.guessed)


def _dropped(state: State, options: Options, counts: Mapping[str, int]) -> Iterator[_Finding]:
    """Classes that lose a part of the name: english_setter_1, english_cocker_2."""
    if options.layout != "filename" or options.label_pattern != DEFAULT_LABEL_PATTERN:
        return
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for key, name in state.execute("SELECT key, class_name FROM inputs WHERE reason IS NULL AND class_name NOT NULL"):
        stem, _, _ = key.rsplit("/", 1)[-1].rpartition(".")
        first = re.match(DEFAULT_LABEL_PATTERN, stem)
        if first and (found := _NUMBERED.fullmatch(stem, first.end())):
            words[name][found["words"]] += 1
    owners = Counter(word for of_class in words.values() for word in of_class)
    for name, of_class in sorted(words.items()):
        own = [word for word in of_class if owners[word] == 1]
        # A word of one image is its title and no class, unless there are few of any.
        if len(own) > 1 and 2 * sum(of_class.values()) > counts[name] and len(own) <= max(2, counts[name] // 2):
            merged = _some(f"{name}_{word}" for word in own)
            yield _Finding(f"{merged} become one class, {name!r}: for whole names pass {_WHOLE_NAMES}", True)


def _singles(_: State, options: Options, counts: Mapping[str, int]) -> Iterator[_Finding]:
    images = sum(counts.values())
    if len(counts) > 1 and images >= _FEW and 2 * len(counts) > images:
        remedy = {
            "filename": f"is this layout=flat, or does it need another label_pattern, as {_WHOLE_NAMES}?",
            "csv": "does label_column name the column of classes?",
        }.get(options.layout, "are these folders classes?")
        what = exactly(images, "image has", "images have")
        yield _Finding(
            f"{what} {exactly(len(counts), 'class', 'classes')} ({_some(sorted(counts))}): {remedy}",
            options.layout == "filename",  # tables and folders name each class themselves: there may be few images
        )


def _values(state: State, options: Options, counts: Mapping[str, int]) -> Iterator[_Finding]:
    """Labels that are not names: of a missing value, of several classes, measurements."""
    by_table = options.layout == "csv"  # a person who makes a folder "none" means it, a program that fills a cell does not
    for name in sorted(counts):
        if name.lower() in _NO_VALUE:
            where = [row.rpartition(": ")[2] for (row,) in state.execute(_ROWS_OF, (name, _SHOWN)) if row]
            lines = f" ({', '.join(where)}{', ...' if counts[name] > len(where) else ''})" if where else ""
            message = f"the class {name!r} of {plural(counts[name], 'image')}{lines} is named like a missing value"
            yield _Finding(f"{message}: leave those images out, or give them a class", by_table)
    several = [name for name in sorted(counts) if len(name) > 1 and (_SEVERAL.search(name) or _is_list(name, counts))]
    if several:
        yield _Finding(
            f"{_some(several)} look like several classes each: they need task=multilabel",
            by_table,
        )
    numbers = [_number(name) for name in counts]
    if counts and None not in numbers and any(number != int(number) for number in numbers if number is not None):
        yield _Finding(
            f"the classes are all numbers, {_some(sorted(counts))}: measurements are targets, see target_columns",
            by_table,
        )


_ROWS_OF = "SELECT row FROM inputs WHERE reason IS NULL AND class_name = ? ORDER BY rowid LIMIT ?"


def _is_list(name: str, counts: Mapping[str, int]) -> bool:
    parts = [part.strip() for part in name.split(",")]
    return len(parts) > 1 and any(part in counts for part in parts)


def _number(name: str) -> float | None:
    return float(name) if re.fullmatch(r"[-+]?[0-9]{0,15}\.?[0-9]{1,15}", name) else None


def _alike(_: State, options: Options, counts: Mapping[str, int]) -> Iterator[_Finding]:
    in_named_folders = options.layout == "folders" and not options.guessed  # Delta and delta may be two
    for form, what, remedy in (
        (_composed, "look the same: they differ in their Unicode form only", "normalize=nfc makes one class of them"),
        (_folded, "look alike: they differ in case or spaces only", "give them one name"),
    ):
        seen: dict[str, str] = {}
        for name in sorted(counts):
            other = seen.setdefault(form(name), name)
            if other != name and (form is _composed or _composed(other) != _composed(name)):
                yield _Finding(
                    f"the classes {other!r} and {name!r} {what}: {remedy}", form is _composed or not in_named_folders
                )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    if len(name) == 1:  # A and a are two letters
        return name
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name)).casefold()


def training_problems(state: State, class_names: Sequence[str]) -> Iterator[str]:
    """Yields what `train` would refuse, in a state with splits."""
    counts: dict[str, set[int]] = defaultdict(set)
    for split, label in state.execute("SELECT DISTINCT split, label FROM inputs WHERE reason IS NULL"):
        counts[split].add(label)
    labelled = [split for split, labels in counts.items() if -1 not in labels]
    if not labelled:
        return
    if len(class_names) < 2:
        yield f"there is one class, {class_names[0]!r}: training needs two or more"
        return

    def lacking(parts: Sequence[str]) -> list[str]:
        found = set().union(*(counts[split] for split in parts))
        return [name for label, name in enumerate(class_names) if label not in found]

    yield from lacking_to_train(labelled, lacking)
    if "train" in labelled:
        pairs = "SELECT 1 FROM inputs WHERE reason IS NULL AND split = 'train' GROUP BY label HAVING count(DISTINCT sha256) > 1"
        if not state.value(pairs) and "val" not in counts:
            yield "there is one image of each class in split 'train' and no split 'val': training cannot validate"
    elif set(labelled) - {"test", "val"} and "fold0" not in labelled:
        yield f"no labelled split is called 'train', which training reads; there are {', '.join(sorted(labelled))}"
    if {"train", "fold0"} & set(labelled) and "val" in counts and "val" not in labelled:
        yield "split 'val' has no labels: training cannot validate with it"


def lacking_to_train(
    splits: Collection[str], lacking: Callable[[Sequence[str]], list[str]], what: str = "image"
) -> Iterator[str]:
    """Yields where splits "train" or folds lack classes; `lacking` returns those that some splits together lack."""
    trained = {"split 'train'": ["train"]} if "train" in splits else {}
    if not trained and folds.names(splits):
        try:
            planned = folds.plan(splits, "the folds")
        except ValueError as error:
            yield str(error)
            return
        trained = {f"what is left to train on where {fold.held_out} is held out": fold.train.split(JOINED) for fold in planned}
    places = defaultdict(list)
    for place, parts in trained.items():
        places[tuple(lacking(parts))].append(place)
    for names, found in places.items():
        if names:
            has = plural(len(names), "class has", "classes have")
            yield f"{has} no {what} in {', or in '.join(found)}, without which it cannot be trained on: {_some(names)}"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(repr, listed[:_SHOWN])) + (f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else "")
