"""Numbers in a build (regression): rows of targets, their strata, and what is written of them.

The class name of an input is the text of its row (`tfpipe.records.targets`), and its label the
row's index; rows are in ascending order, so that a stratum is a range of labels.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tfpipe.building import class_checks, groups
from tfpipe.building.options import Options
from tfpipe.building.state import State
from tfpipe.common.files import written_atomically
from tfpipe.common.text import plural
from tfpipe.records import targets
from tfpipe.records.manifest import Statistics, Targets, targets_file
from tfpipe.records.schema import UNLABELLED

_ACCEPTED = "FROM inputs WHERE reason IS NULL"
_LABELLED = f"{_ACCEPTED} AND label >= 0"
_LABEL, _CLASS_NAME = 12, 13  # of a slice's row


def label(state: State, options: Options) -> list[str]:
    """Sets the label of every accepted row; returns the names of the targets in order.

    Raises:
        ValueError: no image has numbers.
    """
    names = list(options.target_columns or ())
    class_checks.check_names(names)
    if not state.value(f"SELECT 1 {_ACCEPTED} AND class_name NOT NULL LIMIT 1"):
        raise ValueError(f"no image has numbers: is there an input whose rows hold {', '.join(names)}?")
    state.create_function("row_order", 1, lambda text: targets.ordinal(targets.values_of(text)), deterministic=True)
    state.execute("UPDATE inputs SET label = ? WHERE reason IS NULL AND class_name IS NULL", (UNLABELLED,))
    state.execute("CREATE INDEX IF NOT EXISTS inputs_class ON inputs (class_name)")
    distinct = f"SELECT DISTINCT class_name {_ACCEPTED} AND class_name NOT NULL"
    ranked = f"SELECT class_name, row_number() OVER (ORDER BY row_order(class_name)) - 1 AS label FROM ({distinct})"
    state.execute(
        f"UPDATE inputs SET label = ranked.label FROM ({ranked}) AS ranked"
        " WHERE ranked.class_name = inputs.class_name AND inputs.reason IS NULL"
    )
    return names


def _strata(state: State) -> list[int]:
    """Returns the first label of each stratum; all have about as many records, equal rows together."""
    total = state.value(f"SELECT count(*) {_LABELLED}")
    wanted = targets.num_strata(total)
    starts: list[int] = []
    last, done = -1, 0
    for index, count in state.execute(f"SELECT label, count(*) {_LABELLED} GROUP BY label ORDER BY label"):
        if (stratum := done * wanted // total) > last:
            starts.append(index)
            last = stratum
        done += count
    return starts


def classes_of(state: State, _: Options) -> groups.ClassesOf:
    """Returns the function from a label to the index of its stratum, as a list; of no label, -1."""
    starts = _strata(state)
    return lambda index: [bisect_right(starts, index) - 1]


def cut(state: State, fractions: Mapping[str, Fraction], strata: groups.ClassesOf) -> None:
    """Sets the split of every image without one, equal bytes together, each stratum near its fraction.

    Images are taken in the order of their strata, drawn within, each into the split that lacks most
    of its fraction of those taken so far. So no split ever has an image too many, in a stratum or in
    all strata up to one.
    """
    state.create_function("stratum", 1, lambda index: next(iter(strata(index))), deterministic=True)
    images = "SELECT sha256, min(label) AS label, count(*) AS records FROM inputs WHERE reason IS NULL AND split IS NULL"
    images = f"SELECT sha256, records FROM ({images} GROUP BY sha256) ORDER BY stratum(label), group_order(sha256)"
    whole = math.lcm(*(fraction.denominator for fraction in fractions.values()))
    shares = {split: int(fraction * whole) for split, fraction in fractions.items()}

    def assigned() -> Iterator[tuple[str, str]]:
        done, found = 0, dict.fromkeys(shares, 0)
        for sha256, records in state.execute(images):
            done += records
            split = max(shares, key=lambda name: shares[name] * done - whole * found[name])
            found[split] += records
            yield sha256, split

    state.set_splits(assigned())


def names_of_classes(state: State, names: Sequence[str]) -> list[str]:
    """Returns the name of each stratum: of the first target in it, as "age 20 to 34.5"."""
    starts = _strata(state)
    ends = [*(start - 1 for start in starts[1:]), state.value(f"SELECT max(label) {_LABELLED}")]
    text = f"SELECT class_name {_LABELLED} AND label = ? LIMIT 1"
    first, last = ([state.value(text, (one,)).split(targets.SEPARATOR)[0] for one in ones] for ones in (starts, ends))
    return [f"{names[0]} {least} to {most}" for least, most in zip(first, last, strict=True)]


def with_lists(rows: Iterable[Sequence[Any]], _: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a slice with the targets at their end."""
    for row in rows:
        yield (*row, None, None, targets.values_of(row[_CLASS_NAME]) if row[_LABEL] >= 0 else ())


def write_rows(state: State, directory: Path, options: Options, names: Sequence[str]) -> Targets:
    """Writes the file of rows of a planned state."""
    digest, count = hashlib.sha256(), 0
    with written_atomically(directory / targets_file(options.name)) as file:
        for _, text in state.execute(f"SELECT DISTINCT label, class_name {_LABELLED} ORDER BY label"):
            content = targets.encode(targets.values_of(text))
            file.write(content)
            digest.update(content)
            count += 1
    units = options.units or itertools.repeat("", len(names))
    return Targets(count, digest.hexdigest(), dict(zip(names, units, strict=True)))


def statistics(state: State, split: str, names: Sequence[str]) -> Mapping[str, Statistics]:
    """Returns the facts of each target in a labelled split."""
    query = f"SELECT class_name, count(*) {_ACCEPTED} AND split = ? GROUP BY label"
    return targets.statistics(
        names, lambda: ((targets.values_of(text), count) for text, count in state.execute(query, (split,)))
    )


def training_problems(state: State, names: Sequence[str]) -> Iterator[str]:
    """Yields what `train` would refuse, in a state with splits."""
    of_split = f"{_ACCEPTED} AND split = 'train'"
    if not state.value(f"SELECT 1 {of_split} LIMIT 1"):
        others = [split for (split,) in state.execute(f"SELECT DISTINCT split {_LABELLED}")]
        if set(others) - {"test", "val"} and "fold0" not in others:
            yield f"no labelled split is called 'train', which training reads; there are {', '.join(sorted(others))}"
    elif not state.value(f"SELECT 1 {of_split} AND label < 0 LIMIT 1"):
        constant = [name for name, found in statistics(state, "train", names).items() if found.least == found.most]
        if constant:
            what = plural(len(constant), "target has", "targets have")
            yield f"{what} one value in split 'train', of which nothing can be learned: {', '.join(constant)}"
