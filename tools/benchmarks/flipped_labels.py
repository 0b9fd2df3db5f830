"""How many labels that were flipped on purpose are among the first suspects.

Some labels, drawn by a seed, become another class, as decisions of a build. Five folds, a head on
the features of a frozen network for each, and predictions out of fold: what a user would do.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tfpipe
from tfpipe.evaluation import suspects
from tfpipe.records import decisions
from tfpipe.records.catalog import CatalogRow, read_catalog
from tfpipe.records.decisions import LABEL, Decision

_LOOKED_AT = (20, 50, 100, 200, 500)
_NUM_FOLDS = 5


def report(folder: Path, source: Path, share: float, seeds: Collection[int], training: Mapping[str, Any]) -> None:
    """Prints, for each seed, how many of the flipped labels are among the first suspects.

    Args:
        folder: to work in.
        source: images in folders by class, or with the class in their names.
        share: of the labels to flip.
        seeds: each draws labels, folds and training anew.
        training: arguments of `train_folds`.
    """
    layout = "folders" if any(path.is_dir() for path in source.iterdir()) else "filename"
    for seed in seeds:
        place = folder / str(seed)
        build: dict[str, Any] = {"splits": {"folds": _NUM_FOLDS}, "layout": layout, "seed": seed, "progress": False}
        tfpipe.build_tfrecords(source, place / "true", **build)
        rows = sorted(read_catalog(place / "true"), key=lambda row: row.key)
        flipped = list(flip(rows, share, seed))
        decisions.write(place / "flipped.csv", flipped)
        tfpipe.build_tfrecords(source, place / "shards", decisions=place / "flipped.csv", **build)
        tfpipe.train_folds(place / "shards", place / "runs", cache=folder / "features", seed=seed, log=None, **training)
        evaluation = tfpipe.evaluate_folds(place / "runs", place / "shards", place / "eval", report=False, progress=False)
        listed = suspects.read(place / "eval")
        print(f"seed {seed}: {line(flipped, [one.key for one in listed], len(rows))}", flush=True)
        print(f"  accuracy out of fold {evaluation.metrics['accuracy']:.4f}, of labels as they are now", flush=True)
        shutil.rmtree(place)


def flip(rows: Sequence[CatalogRow], share: float, seed: int) -> Iterator[Decision]:
    """Yields decisions that give a share of the images another class each, the same for equal seeds."""
    names = sorted({row.class_name for row in rows})
    drawn = random.Random(seed)  # noqa: S311 (no secret)
    for row in sorted(drawn.sample(rows, round(share * len(rows))), key=lambda row: row.key):
        other = drawn.choice([name for name in names if name != row.class_name])
        yield Decision(row.key, row.sha256, row.class_name, LABEL, other)


def line(flipped: Sequence[Decision], listed: Sequence[str], count: int) -> str:
    """Returns in words how many flipped labels are among the first of those listed."""
    wrong = {one.key for one in flipped}
    shown = ", ".join(f"{len(wrong.intersection(listed[:first]))} in the first {first}" for first in _LOOKED_AT)
    return f"{len(wrong)} of {count} labels flipped; {shown}; {len(wrong.intersection(listed))} in all {len(listed)} suspects"
