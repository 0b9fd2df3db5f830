"""The modes of `tfpipe.train` side by side, each with its own process and cache."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipe.tools.benchmarks.contenders import environment

# How each differs from the others.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "scratch": {"mode": "scratch", "weights": "none"},
    "bottleneck": {"mode": "bottleneck"},
    "frozen": {"mode": "frozen"},
    "finetune": {"mode": "finetune", "cache_prefix": False},
    "finetune-cached": {"mode": "finetune", "cache_prefix": True},
    "full": {"mode": "full"},
}
# (faster, slower)
PAIRS = (("bottleneck", "frozen"), ("finetune-cached", "finetune"))

_TRAIN = """
import json, sys, tfpipe
tfpipe.train(**json.loads(sys.argv[1]), tensorboard=False, progress=False, checkpoint_seconds=1e9)
"""


@dataclass(frozen=True)
class Result:
    """What a run took and reached.

    Attributes:
        seconds_per_epoch: median of its last phase without validation; without the first epoch,
            which traces the graph.
        seconds: of the whole process, extraction of features included.
        peak_bytes: most memory at any time, extraction included.
        val_accuracy: of the best epoch of the last phase.
    """

    seconds_per_epoch: float
    seconds: float
    peak_bytes: int
    val_accuracy: float


def measure(name: str, options: Mapping[str, Any], folder: Path) -> Result:
    """Trains in one of RUNS.

    Args:
        name: of RUNS.
        options: of `tfpipe.train` that all runs share.
        folder: a new one, for the run and its cache.

    Raises:
        RuntimeError: training failed; the message is its last line.
    """
    tuning = {"finetune_epochs": options["epochs"]} if RUNS[name]["mode"] == "finetune" else {}
    arguments = {**options, **tuning, **RUNS[name], "output": str(folder / "run"), "cache": str(folder / "features")}
    start = time.perf_counter()
    command = [sys.executable, "-c", _TRAIN, json.dumps(arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, errors="replace", check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return read(folder / "run", seconds)


def read(run: Path, seconds: float) -> Result:
    """Returns the result in a run's folder."""
    from tfpipe.training.logs.run_log import read_history

    summary = json.loads((run / "summary.json").read_bytes())
    last = summary["phases"][-1]["phase"]
    epochs = [row["train_seconds"] for row in read_history(run) if row["phase"] == last]
    peak, accuracy = summary["peak_memory_bytes"], summary["val_accuracy"]
    return Result(statistics.median(epochs[1:] or epochs), seconds, peak, accuracy)


def table(results: Mapping[str, Result]) -> str:
    """Returns the results as text, with the ratios of PAIRS that are there."""
    lines = [f"{'':24}{'s per epoch':>12}{'s in all':>10}{'peak GB':>9}{'val accuracy':>14}"]
    lines += [
        f"{name:24}{found.seconds_per_epoch:12.3f}{found.seconds:10.1f}{found.peak_bytes / 1e9:9.2f}{found.val_accuracy:14.4f}"
        for name, found in results.items()
    ]
    for fast, slow in (pair for pair in PAIRS if set(pair) <= set(results)):
        ratio = results[slow].seconds_per_epoch / results[fast].seconds_per_epoch
        lines.append(f"{fast} is {ratio:.1f} x as fast per epoch as {slow}")
    return "\n".join(lines)
