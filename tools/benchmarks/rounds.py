"""Alternating repetitions, and what they say: ratios within rounds, since a machine's speed moves between them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tfpipe

Item = TypeVar("Item")


def alternate(contenders: dict[str, Item], measure: Callable[[Item], float], repetitions: int) -> dict[str, list[float]]:
    """Returns the seconds of each contender; a round measures each once, the first round warms up and is not counted."""
    rounds = [{name: measure(item) for name, item in contenders.items()} for _ in range(1 + repetitions)]
    return {name: [times[name] for times in rounds[1:]] for name in contenders}


def compared(name: str, own: list[float], others: list[float]) -> str:
    """Returns in words how fast `name` is, from the seconds of the same rounds."""
    ratios = [other / mine for mine, other in zip(own, others, strict=True)]
    return f"{name} is {statistics.median(ratios):6.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})"


def environment() -> dict[str, str]:
    """Returns the environment of a process that imports this tfpipe, from whatever folder it is started."""
    places = [str(Path(tfpipe.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
