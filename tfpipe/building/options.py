"""The options of a build, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tfpipe.building.inputs.sources import LAYOUTS
from tfpipe.common import arguments
from tfpipe.common.seeds import derive
from tfpipe.listing.conversion import CONVERSIONS
from tfpipe.records.combinations import SEPARATOR
from tfpipe.records.manifest import SINGLE, TASKS, check_name, split_order
from tfpipe.records.samples import USUAL, Samples

DEFAULT_SHARD_BYTES = 128 << 20
CHECKS = ("header", "decode")
NORMALIZATIONS = ("none", "nfc")
_CHOICES = {
    "layout": LAYOUTS,
    "check": CHECKS,
    "normalize": NORMALIZATIONS,
    "on_error": ("fail", "skip"),
    "on_conflict": ("fail", "keep"),
    "task": TASKS,
}
# Options that older versions did not have.
_LATER = {
    "check": "header",
    "normalize": "none",
    "path_column": None,
    "label_column": None,
    **dataclasses.asdict(USUAL),
    "group": None,
    "convert": None,
    "converter": None,
    "group_pattern": None,
    "task": SINGLE,
    "label_separator": SEPARATOR,
    "label_columns": None,
    "target_columns": None,
    "units": None,
    "decisions": (),
}
_TOLERANCE = Fraction(1, 10**6)  # 0.333333 is a third


@dataclass(frozen=True)
class Options:
    """The options that a data set's bytes depend on; arguments as in `build_tfrecords`.

    Two builds with equal options and equal inputs give equal bytes; a build resumes only with equal
    options.
    """

    name: str
    layout: str
    label_pattern: str
    class_names: tuple[str, ...] | None
    input_splits: tuple[str, ...]
    unlabelled_splits: tuple[str, ...]
    splits: Mapping[str, float | str] | None  # of folds as "1/5", exactly
    num_shards: int | Mapping[str, int] | None
    shard_bytes: int
    seed: int
    on_error: str
    on_conflict: str
    allow_leaks: bool
    max_pixels: int
    check: str
    normalize: str = "none"
    path_column: str | None = None
    label_column: str | None = None
    guessed: bool = False  # the layout; changes no bytes
    png16: str = USUAL.png16
    background: str = USUAL.background
    group: str | None = None
    group_pattern: str | None = None
    task: str = SINGLE
    label_separator: str = SEPARATOR
    label_columns: tuple[str, ...] | None = None
    target_columns: tuple[str, ...] | None = None
    units: tuple[str, ...] | None = None  # of `target_columns`
    decisions: tuple[str, ...] = ()  # the SHA-256 of each file
    convert: str | None = None
    converter: str | None = None  # what converted: equal files give equal bytes with equal versions

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for name, known in _CHOICES.items():
            arguments.choice(name, getattr(self, name), known)
        Samples(self.png16, self.background)
        if self.convert is not None:
            arguments.choice("convert", self.convert, CONVERSIONS)
        for split in (*self.input_splits, *self.unlabelled_splits, *(self.splits or ())):
            check_name("a split's name", split)
        if self.group is not None and self.group_pattern is not None:
            raise ValueError("group names a column, group_pattern finds groups in paths: give one of them")
        both = set(self.unlabelled_splits) & {*self.input_splits, *(self.splits or ())}
        if both:
            raise ValueError(f"split {min(both)!r} cannot be both labelled and unlabelled")
        if self.splits is not None:
            if self.input_splits:
                raise ValueError("splits cuts one input into parts; inputs that are named by split are not cut again")
            self.cuts(0, 0)

    def cuts(self, count: int, label: int) -> list[tuple[int, str]]:
        """Returns the end of each split among `count` records of a class: (end, split name).

        Each end is the exact fraction, rounded at a place between 0 and 1 that is drawn for the
        class: rounded half up, a thousand classes of five images would never give one to a split of
        a tenth.

        Raises:
            ValueError: the fractions are not positive, or do not add up to 1.
        """
        rounding = Fraction(derive(self.seed, "rounding", label), 1 << 63)
        ends, total = [], Fraction(0)
        for split, fraction in self.fractions().items():
            total += fraction
            ends.append((int(total * count + rounding), split))
        return ends

    def fractions(self) -> dict[str, Fraction]:
        """Returns the exact fraction of each split, in the splits' order.

        Raises:
            ValueError: they do not add up to 1.
        """
        # The decimals that the user wrote, not the nearest binary doubles.
        fractions = {split: Fraction(str(value)) for split, value in (self.splits or {}).items()}
        whole = sum(fractions.values(), Fraction(0))
        if abs(whole - 1) > _TOLERANCE:
            raise ValueError(f"splits must add up to 1 (got {dict(self.splits or {})})")
        return {split: fractions[split] / whole for split in sorted(fractions, key=split_order)}

    def as_json(self) -> dict[str, Any]:
        """Returns the options as stored; those that older versions lack only if unusual."""
        content = {name: value for name, value in dataclasses.asdict(self).items() if (name, value) not in _LATER.items()}
        del content["guessed"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Returns in words how these options differ from options stored by `as_json`."""
        now, before = {**_LATER, **self.as_json()}, {**_LATER, **before}
        return [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
