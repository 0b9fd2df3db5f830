"""Several labels an image in a build: classes and combinations of an audited state.

The class name of an input is the text of its combination (`tfpipe.records.combinations`), and its
label the combination's index.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tfpipe.building import class_checks, groups
from tfpipe.building.options import Options
from tfpipe.building.state import State
from tfpipe.common.errors import DataError
from tfpipe.common.files import written_atomically
from tfpipe.records import combinations
from tfpipe.records.manifest import Combinations, combinations_file
from tfpipe.records.schema import UNLABELLED

_ACCEPTED = "FROM inputs WHERE reason IS NULL"
_LABEL, _CLASS_NAME = 12, 13  # of a slice's row
_PASSES, _LEAST_GAIN = 10, 1e-9  # of `_settle`: rounding must not move an image to and fro


def label(state: State, options: Options) -> list[str]:
    """Sets the label of every accepted row; returns the names of the classes in order.

    Raises:
        DataError: an image has a class that the options do not list.
        ValueError: the classes are probably not what was meant.
    """
    texts = [text for (text,) in state.execute(f"SELECT DISTINCT class_name {_ACCEPTED} AND class_name NOT NULL")]
    order, named = _order(texts, options), _names(texts)
    class_checks.check_names({*named, *order})
    if unknown := sorted(named - set(order)):
        raise DataError(f"classes that class_names does not list: {', '.join(unknown[:20])} (it lists {', '.join(order)})")
    if not order and texts:
        raise ValueError("no image has a label: does label_column name the column of labels?")
    state.execute("UPDATE inputs SET label = ? WHERE reason IS NULL AND class_name IS NULL", (UNLABELLED,))
    state.execute("CREATE INDEX IF NOT EXISTS inputs_class ON inputs (class_name)")
    state.executemany("UPDATE inputs SET label = ? WHERE class_name = ? AND reason IS NULL", enumerate(sorted(texts)))
    return order


def _texts(state: State) -> list[str]:
    """Returns the text of each combination, by its index."""
    query = f"SELECT DISTINCT label, class_name {_ACCEPTED} AND label >= 0 ORDER BY label"
    return [text for _, text in state.execute(query)]


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for part in combinations.names_of(text) for name in part}


def _order(texts: Iterable[str], options: Options) -> list[str]:
    columns = options.label_columns or ()
    if options.normalize == "nfc":  # as in the texts
        columns = tuple(unicodedata.normalize("NFC", name) for name in columns)
    return list(options.class_names or columns or sorted(_names(texts)))


def classes_of(state: State, options: Options) -> groups.ClassesOf:
    """Returns the function from a label to the indices of its classes; of an image without any, -1."""
    texts = _texts(state)
    places = {name: index for index, name in enumerate(_order(texts, options))}
    found = [[places[name] for name in combinations.names_of(text)[0]] or [UNLABELLED] for text in texts]
    return lambda label: found[label] if label >= 0 else [UNLABELLED]


def cut(state: State, fractions: Mapping[str, Fraction], classes: groups.ClassesOf) -> None:
    """Sets the split of every image without one, equal bytes together, each class near its fraction.

    Each combination is cut for itself, to whole images. What is left over, which may be all where
    combinations are rare, is assigned as `groups.cut` does, with the bytes as the group, and then
    moved one by one as long as that brings the classes nearer to the fractions.
    """
    here = f"{_ACCEPTED} AND inputs.split IS NULL"
    totals = groups.by_class(state.execute(f"SELECT label, count(*) {here} GROUP BY label"), classes)
    state.execute("CREATE TABLE IF NOT EXISTS cut (sha256 TEXT PRIMARY KEY, split TEXT, label INTEGER, records INTEGER)")
    state.execute("DELETE FROM cut")
    images = f"SELECT sha256, min(label) AS label, count(*) AS records {here} GROUP BY sha256"
    images = f"SELECT *, sum(records) OVER (PARTITION BY label) FROM ({images}) ORDER BY label, group_order(sha256)"
    state.executemany("INSERT INTO cut VALUES (?, ?, ?, ?)", _whole(state.execute(images), fractions))
    before: dict[str, Counter[int | None]] = defaultdict(Counter)
    whole = "SELECT split, label, sum(records) FROM cut WHERE split NOT NULL GROUP BY split, label"
    for split, index, count in state.execute(whole):
        before[split].update(dict.fromkeys([*classes(index), groups.ALL], count))
    rest = state.execute("SELECT sha256, label, records FROM cut WHERE split IS NULL ORDER BY group_order(sha256)").fetchall()
    counted = [(sha256, dict.fromkeys(classes(index), count)) for sha256, index, count in rest]
    chosen = dict(groups.assigned(counted, len(rest), totals, fractions, before))
    num_images = state.value(f"SELECT count(*) {here}")
    _settle(chosen, counted, before, {**totals, groups.ALL: num_images}, fractions)
    state.executemany("UPDATE cut SET split = ? WHERE sha256 = ?", ((split, sha256) for sha256, split in chosen.items()))
    state.execute(
        "UPDATE inputs SET split = cut.split FROM cut WHERE cut.sha256 = inputs.sha256"
        " AND inputs.reason IS NULL AND inputs.split IS NULL"
    )


def _settle(
    chosen: dict[str, str],
    images: Sequence[tuple[str, Mapping[int, int]]],
    before: Mapping[str, Counter[int | None]],
    totals: Mapping[int | None, int],
    fractions: Mapping[str, Fraction],
) -> None:
    """Moves images to other splits while that lessens the squared distances from the fractions, over the class's size."""
    excess = {
        split: {one: before.get(split, Counter())[one] - float(fraction * total) for one, total in totals.items()}
        for split, fraction in fractions.items()
    }
    num_images = Counter({split: counted[groups.ALL] for split, counted in before.items()})
    sizes = [(sha256, {**own, groups.ALL: max(own.values())}) for sha256, own in images]

    def place(split: str, own: Mapping[int | None, int], sign: int) -> None:
        num_images[split] += sign
        for one, count in own.items():
            excess[split][one] += sign * count

    def cost(split: str, own: Mapping[int | None, int]) -> float:
        """Returns by how much an image that is in no split would add."""
        return sum(count * (2 * excess[split][one] + count) / totals[one] for one, count in own.items())

    for sha256, own in sizes:
        place(chosen[sha256], own, 1)
    for _ in range(_PASSES):
        has_moved = False
        for sha256, own in sizes:
            here = chosen[sha256]
            if num_images[here] == 1:
                continue
            place(here, own, -1)
            best = min(fractions, key=lambda split, own=own: cost(split, own))  # type: ignore[misc]
            if cost(best, own) < cost(here, own) - _LEAST_GAIN:
                chosen[sha256], has_moved = best, True
            place(chosen[sha256], own, 1)
        if not has_moved:
            return


def _whole(rows: Iterable[Sequence[Any]], fractions: Mapping[str, Fraction]) -> Iterator[tuple[Any, ...]]:
    """Yields (bytes, split or None, label, records), as many of each label in a split as its fraction holds."""
    for _, of_label in itertools.groupby(rows, lambda row: row[1]):
        room: dict[str, int] = {}
        for sha256, label, records, total in of_label:
            room = room or {split: int(fraction * total) for split, fraction in fractions.items()}
            split = next((name for name, left in room.items() if left >= records), None)
            if split is not None:
                room[split] -= records
            yield sha256, split, label, records


def with_lists(rows: Iterable[Sequence[Any]], class_names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a slice with the labels that are there, and the unknown ones, at their end."""
    places = {name: index for index, name in enumerate(class_names)}
    for row in rows:
        parts = combinations.names_of(row[_CLASS_NAME]) if row[_LABEL] >= 0 else ([], class_names)
        yield (*row, *(sorted(places[name] for name in part) for part in parts))


def write_combinations(state: State, directory: Path, name: str, class_names: Sequence[str]) -> Combinations:
    """Writes the file of combinations of a planned state."""
    texts = _texts(state)
    content = combinations.encode(texts, class_names)
    with written_atomically(directory / combinations_file(name)) as file:
        file.write(content)
    return Combinations(len(texts), hashlib.sha256(content).hexdigest())


def counts(state: State, by_label: Mapping[int, int], class_names: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the records per class that have it, and that may, of the records per label."""
    texts = _texts(state)
    found = Counter[str](), Counter[str]()
    for index, count in by_label.items():
        for counter, names in zip(found, combinations.names_of(texts[index]) if index >= 0 else (), strict=False):
            counter.update(dict.fromkeys(names, count))
    present, unknown = ({name: counter[name] for name in class_names} for counter in found)
    return present, unknown


def training_problems(state: State, class_names: Sequence[str]) -> Iterator[str]:
    """Yields what `train` would refuse, in a state with splits."""
    by_split: dict[str, dict[int, int]] = defaultdict(dict)
    for split, index, count in state.execute(f"SELECT split, label, count(*) {_ACCEPTED} GROUP BY split, label"):
        by_split[split][index] = count
    labelled = [split for split, labels in by_split.items() if UNLABELLED not in labels]
    if labelled and not set(labelled) - {"test", "val"}:
        return
    found = {split: counts(state, by_split[split], class_names) for split in labelled}

    def lacking(parts: Sequence[str]) -> list[str]:
        total = sum(sum(by_split[split].values()) for split in parts)
        present, unknown = ({name: sum(found[split][i][name] for split in parts) for name in class_names} for i in (0, 1))
        return [name for name in class_names if not present[name] or present[name] + unknown[name] == total]

    yield from class_checks.lacking_to_train(labelled, lacking, "image with it, or none without it,")
