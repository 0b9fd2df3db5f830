r"""Groups: the images of one patient, place or burst, which all land in one split.

    by_pattern(r"patient_(\d+)")(source).group         # "17"
    cut(state, fractions)                               # sets the split of each image

A split of images that ignores groups shows a classifier the patients of its test split: the
accuracy that it measures is not that of new patients. Groups that hold the same bytes are joined,
and so on through any chain of them; G9 would be broken otherwise.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from tfpipe.building.inputs.items import Source, rejected
from tfpipe.building.state import State
from tfpipe.common.text import folded

_HERE = "FROM inputs WHERE reason IS NULL AND split IS NULL"


def by_pattern(pattern: str) -> Callable[[Source], Source]:
    """Returns a function that finds the group of an input in its path, or rejects the input.

    Raises ValueError if the pattern is not a regular expression with one named group, or any.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"group_pattern must be a regular expression: {error} (got {pattern!r})") from None
    if not compiled.groups or len(compiled.groupindex) > 1:
        raise ValueError(rf"group_pattern must have a group, or one named group, as in 'patient_(\d+)' (got {pattern!r})")
    place = next(iter(compiled.groupindex.values()), 1)

    def with_group(item: Source) -> Source:
        if item.reason:
            return item
        name = item.filename or item.key
        match = compiled.search(name)
        if match and match[place]:
            return item._replace(group=match[place])
        return rejected(item.key, item.path, "no_group", f"{name!r} does not match the group_pattern {pattern!r}")

    return with_group


def torn(state: State) -> list[str]:
    """Returns the groups that given splits tear apart, by name."""
    query = "FROM inputs WHERE reason IS NULL AND group_name NOT NULL GROUP BY group_name HAVING count(DISTINCT split) > 1"
    return [name for (name,) in state.execute(f"SELECT group_name {query} ORDER BY group_name")]


def described(state: State, name: str) -> str:
    """Returns a torn group with the number of its images in each split, and one of them."""
    query = "SELECT split, count(*), min(key) FROM inputs WHERE reason IS NULL AND group_name = ? GROUP BY split ORDER BY split"
    return f"{name}: " + ", ".join(f"{count} in {split} (as {key})" for split, count, key in state.execute(query, (name,)))


def alike(state: State) -> Iterator[tuple[str, str]]:
    """Yields two groups whose names differ in case or spaces only: of each such name the first and the last."""
    state.create_function("folded", 1, folded, deterministic=True)
    names = "SELECT DISTINCT group_name FROM inputs WHERE reason IS NULL AND group_name NOT NULL"
    pair = f"SELECT min(group_name) AS one, max(group_name) AS other FROM ({names}) GROUP BY folded(group_name)"
    yield from state.execute(f"SELECT * FROM ({pair}) WHERE one != other ORDER BY one")


def _join(state: State) -> None:
    """Fills the table `homes`: for each group the first, by name, of those that equal bytes join."""
    state.execute("CREATE TABLE IF NOT EXISTS homes (id INTEGER PRIMARY KEY, name TEXT UNIQUE, home INTEGER)")
    state.execute("DELETE FROM homes")
    state.execute(f"INSERT INTO homes (name) SELECT DISTINCT group_name {_HERE} ORDER BY group_name")
    # Union-find, 8 bytes a group; ids follow the names, so that the least one is the same for any
    # order of inputs.
    parents = array("q", range(1 + (state.value("SELECT max(id) FROM homes") or 0)))

    def home_of(group: int) -> int:
        while parents[group] != group:
            parents[group] = group = parents[parents[group]]
        return group

    shared = f"SELECT sha256 {_HERE} GROUP BY sha256 HAVING count(DISTINCT group_name) > 1"
    query = "SELECT sha256, id FROM inputs JOIN homes ON name = group_name WHERE reason IS NULL AND inputs.split IS NULL"
    pairs = state.execute(f"{query} AND sha256 IN ({shared}) ORDER BY sha256")
    for _, of_image in itertools.groupby(pairs, lambda pair: pair[0]):
        homes = sorted({home_of(group) for _, group in of_image})
        for other in homes[1:]:
            parents[other] = homes[0]
    state.executemany("UPDATE homes SET home = ? WHERE id = ?", ((home_of(group), group) for group in range(1, len(parents))))
    state.execute("CREATE INDEX IF NOT EXISTS homes_home ON homes (home)")


def the_label(label: int) -> tuple[int, ...]:
    """Returns the classes of a label: itself, where an image has one."""
    return (label,)


ClassesOf = Callable[[int], Iterable[int]]


def cut(state: State, fractions: Mapping[str, Fraction], classes_of: ClassesOf = the_label) -> None:
    """Sets the split of every image without one: a whole group in one, each class near its fraction.

    `state` has the function `group_order`, which draws an order of names. `classes_of` a label are
    those that its images count for.

    Groups are taken one by one, large ones first (by powers of two, drawn within), each into the
    split where it leaves the least imbalance: the sum over splits and classes of squared
    differences between records there and the fraction of all taken so far, over the size of the
    class. All records count as one more class, of an average size, so that small classes do not all
    fall into one split. Some split is no worse than the mean over splits drawn by their fractions, so the
    imbalance grows by no more than (1 - sum of squared fractions) times a group's own squared
    counts, over the sizes of the classes (the method of conditional expectations).
    """
    _join(state)
    totals = by_class(state.execute(f"SELECT label, count(*) {_HERE} GROUP BY label"), classes_of)
    state.create_function("magnitude", 1, int.bit_length, deterministic=True)
    query = """
        SELECT home, label, records FROM (
            SELECT home, label, records, sum(records) OVER (PARTITION BY home) AS size FROM (
                SELECT home, label, count(*) AS records FROM inputs JOIN homes ON name = group_name
                WHERE reason IS NULL AND inputs.split IS NULL GROUP BY home, label
            )
        ) JOIN homes USING (home) WHERE id = home ORDER BY magnitude(size) DESC, group_order(name), home, label"""
    num_homes = state.value("SELECT count(DISTINCT home) FROM homes")
    groups = itertools.groupby(state.execute(query), lambda row: row[0])
    counted: Iterator[_Counted] = ((home, by_class((row[1:] for row in rows), classes_of)) for home, rows in groups)
    state.execute("CREATE TABLE IF NOT EXISTS chosen (home INTEGER PRIMARY KEY, split TEXT)")
    state.execute("DELETE FROM chosen")
    state.executemany("INSERT INTO chosen VALUES (?, ?)", assigned(counted, num_homes, totals, fractions))
    state.execute(
        "UPDATE inputs SET split = chosen.split FROM homes JOIN chosen USING (home)"
        " WHERE homes.name = inputs.group_name AND inputs.reason IS NULL AND inputs.split IS NULL"
    )


def by_class(rows: Iterable[Sequence[int]], classes_of: ClassesOf) -> Counter[Any]:
    """Returns the records of each class, from rows of (label, records)."""
    found: Counter[Any] = Counter()
    for label, records in rows:
        found.update(dict.fromkeys(classes_of(label), records))
    return found


ALL = None  # the class of all records


_Counted = tuple[Any, Mapping[Any, int]]  # a group, and its records by class


def assigned(
    groups: Iterable[_Counted],
    num_groups: int,
    totals: Mapping[int, int],
    fractions: Mapping[str, Fraction],
    before: Mapping[str, Counter[Any]] = MappingProxyType({}),
) -> Iterator[tuple[Any, str]]:
    """Yields (group, split), see `cut`; `before`: records of each class, and of ALL, in a split already."""
    shares = {split: float(fraction) for split, fraction in fractions.items()}
    weights: dict[int | None, float] = {label: 1 / total for label, total in totals.items()}
    weights[ALL] = len(totals) / sum(totals.values())
    taken: Counter[int | None] = Counter()
    found: dict[str, Counter[int | None]] = defaultdict(Counter)
    for split, counted in before.items():
        found[split].update(counted)
        taken.update(found[split])
    for index, (group, own) in enumerate(groups):
        counts: dict[int | None, int] = {**own, ALL: sum(own.values())}
        taken.update(counts)

        def lack(split: str, counts: Mapping[int | None, int] = counts) -> float:
            wanting = ((label, shares[split] * taken[label] - found[split][label]) for label in counts)
            return sum(weights[label] * counts[label] * missing for label, missing in wanting)

        empty = [split for split in shares if not found[split][ALL]]
        # The last groups go to splits without any.
        split = max(empty if len(empty) >= num_groups - index else shares, key=lack)
        found[split].update(counts)
        yield group, split


def summary(
    state: State,
    class_names: Sequence[str],
    fractions: Mapping[str, Fraction] | None,
    classes_of: ClassesOf = the_label,
) -> dict[str, Any]:
    """Returns the facts of a planned state's groups, as `records.manifest.Groups` has them.

    `fractions` are those that the splits were cut at, if they were.
    """
    accepted = "FROM inputs WHERE reason IS NULL"
    counts = dict(state.execute(f"SELECT split, count(DISTINCT group_name) {accepted} GROUP BY split"))
    joined = "SELECT count(*) FROM homes WHERE home IN (SELECT home FROM homes GROUP BY home HAVING count(*) > 1)"
    farthest = {} if fractions is None else _farthest(state, class_names, fractions, classes_of)
    return {
        "num_groups": state.value(f"SELECT count(DISTINCT group_name) {accepted}"),
        "num_joined": 0 if fractions is None else state.value(joined),
        "splits": {split: {"num_groups": count, "farthest": farthest.get(split)} for split, count in counts.items()},
        "torn": torn(state),
    }


def _farthest(
    state: State, class_names: Sequence[str], fractions: Mapping[str, Fraction], classes_of: ClassesOf
) -> dict[str, dict[str, Any]]:
    """Returns for each split the class that is farthest from its fraction, by the class's size."""
    splits = ", ".join("?" * len(fractions))
    query = f"SELECT label, split, count(*) FROM inputs WHERE reason IS NULL AND split IN ({splits}) GROUP BY label, split"
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for label, split, count in state.execute(query, list(fractions)):
        for one in classes_of(label):
            found[one][split] += count
    farthest = {}
    for split, fraction in fractions.items():
        shares = {label: Fraction(of.get(split, 0), sum(of.values())) for label, of in found.items()}
        label = max(sorted(shares), key=lambda label: abs(shares[label] - fraction))
        farthest[split] = {
            "class_name": class_names[label] if label >= 0 else "",
            "wanted": float(fraction * sum(found[label].values())),
            "num_records": found[label].get(split, 0),
        }
    return farthest
