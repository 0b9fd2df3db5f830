"""What a build was asked for, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tfpipe.conversion.sources import LAYOUTS
from tfpipe.records.manifest import check_name, split_order
from tfpipe.records.seeds import derive

DEFAULT_SHARD_BYTES = 128 << 20
CHECKS = ("header", "decode")
_TOLERANCE = Fraction(1, 10**6)  # 0.333333 is a third


@dataclass(frozen=True)
class Options:
    """The options that a data set's bytes depend on; arguments as in `build_tfrecords`.

    Two builds with equal options and equal inputs give equal bytes; a build resumes only with equal options.
    """

    name: str
    layout: str
    label_pattern: str
    class_names: tuple[str, ...] | None
    input_splits: tuple[str, ...]
    unlabelled_splits: tuple[str, ...]
    splits: Mapping[str, float] | None
    num_shards: int | Mapping[str, int] | None
    shard_bytes: int
    seed: int
    on_error: str
    on_conflict: str
    allow_leaks: bool
    max_pixels: int
    check: str

    def __post_init__(self) -> None:
        check_name("name", self.name)
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("check", self.check, CHECKS)
        _one_of("on_error", self.on_error, ("fail", "skip"))
        _one_of("on_conflict", self.on_conflict, ("fail", "keep"))
        if not isinstance(self.allow_leaks, bool):
            raise ValueError(f"allow_leaks must be True or False (got {self.allow_leaks!r})")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number (got {self.seed!r})")
        for split in (*self.input_splits, *self.unlabelled_splits, *(self.splits or ())):
            check_name("a split's name", split)
        both = set(self.unlabelled_splits) & {*self.input_splits, *(self.splits or ())}
        if both:
            raise ValueError(f"split {min(both)!r} cannot be both labelled and unlabelled")
        if self.splits is not None:
            if self.input_splits:
                raise ValueError("splits cuts one input into parts; inputs that are named by split are not cut again")
            self.cuts(0, 0)
        for count in self.num_shards.values() if isinstance(self.num_shards, Mapping) else [self.num_shards]:
            if count is not None:
                _positive("num_shards", count)
        _positive("shard_bytes", self.shard_bytes)
        _positive("max_pixels", self.max_pixels)
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names must differ from one another (got {list(self.class_names)})")

    def cuts(self, count: int, label: int) -> list[tuple[int, str]]:
        """Returns where each split ends among the `count` records of a class in order: (end, split name), half-open.

        Each end is the exact fraction, rounded at a place between 0 and 1 that is drawn for the class: rounded half up, a
        thousand classes of five pictures would never give one to a split of a tenth.

        Raises:
            ValueError: the fractions are not positive, or do not add up to 1.
        """
        fractions = {split: _fraction(split, value) for split, value in (self.splits or {}).items()}
        whole = sum(fractions.values(), Fraction(0))
        if abs(whole - 1) > _TOLERANCE:
            raise ValueError(f"the fractions of splits must add up to 1 (got {dict(self.splits or {})})")
        rounding = Fraction(derive(self.seed, "rounding", label), 1 << 63)
        ends, total = [], Fraction(0)
        for split in sorted(fractions, key=split_order):
            total += fractions[split] / whole
            ends.append((int(total * count + rounding), split))
        return ends

    def as_json(self) -> dict[str, Any]:
        """Returns the options as the manifest and the state of a build keep them."""
        content = dataclasses.asdict(self)
        if self.check == CHECKS[0]:
            del content["check"]  # as before there was another
        return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Returns in words what differs from options stored by `as_json`."""
        now, before = {"check": CHECKS[0], **self.as_json()}, {"check": CHECKS[0], **before}
        return [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]


def _fraction(split: str, value: float) -> Fraction:
    try:
        fraction = Fraction(str(value))  # the decimal that the user wrote, not its nearest binary double
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"the fraction of split {split!r} must be a number (got {value!r})") from None
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of split {split!r} must be above 0 and at most 1 (got {value!r})")
    return fraction


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)} (got {value!r})")


def _positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of 1 or more (got {value!r})")
