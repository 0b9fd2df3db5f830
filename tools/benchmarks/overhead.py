"""Where a command's processor time goes, part by part: work and overhead.

    python -m tfpipe.tools.benchmarks.overhead train --data=shards/ --output=runs/a      # prints JSON: seconds by part

A part's seconds are those of its functions without those of other parts that they call, of all
threads. Work, as opposed to overhead, is what grows with images and epochs: names in `WORK`.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

from tfpipe.tools.benchmarks.contenders import environment

WORK = ("extraction", "epochs", "the pass")
_REST = "everything else"
_MARK = "overhead: "

# Functions by part; all others are the rest.
_PARTS = {
    "tracing functions into graphs": [
        "tensorflow.python.eager.polymorphic_function.tracing_compilation:_maybe_define_function"
    ],
    "making and loading networks": [
        "tfpipe.training.networks:Networks.__init__",
        "tfpipe.training.networks:Networks.classifier",
        "tfpipe.training.networks:Networks._sequence",
        "tfpipe.models.classifiers:load_model",
    ],
    "hashing weights": ["tfpipe.networks.submodels:hash_network"],
    "extraction": ["tfpipe.models.features:extract"],
    "the check that frozen is frozen": ["tfpipe.training.phases:Phases._check"],
    "regressions of the head": ["tfpipe.training.phases:Phases._search"],
    "epochs": ["tfpipe.training.loop:Loop._run_epoch"],
    "validation before the first epoch": ["tfpipe.training.loop:Loop.validate"],
    "log and TensorBoard": [
        f"tfpipe.training.logs.run_log:RunLog.{name}"
        for name in ("__init__", "scalars", "epoch", "graph", "close", "position", "step")
    ],
    "states and models": ["tfpipe.training.checkpoints:save", "tfpipe.training.runs:_save_model"],
    "figures": [
        *[f"tfpipe.training.logs.curves:{name}" for name in ("draw_candidates", "draw_history", "draw_range_test")],
        "tfpipe.report.figures:_drawn",
    ],
    "metrics": ["tfpipe.evaluation.metrics:measure"],
    "the pass": ["tfpipe.evaluation.evaluator:Pass._write"],
    "near-duplicates": ["tfpipe.evaluation.near_duplicates:find_near_duplicates"],
    "Grad-CAM": ["tfpipe.models.explanation:explain", "tfpipe.models.explanation:overlay"],
    "images of the report": ["tfpipe.evaluation.html_report:_ReportImages.read", "tfpipe.report.figures:photograph"],
    "the rest of the report": ["tfpipe.evaluation.html_report:write_report"],
}
_MODULES = {
    "train": ("tfpipe.tools.train", "tfpipe.training.runs"),
    "evaluate": ("tfpipe.tools.evaluate", "tfpipe.evaluation.html_report"),
}


class _Clock:
    """Processor time by part; one thread's functions open and close parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = [_REST]
        self._since = 0.0

    def turn(self, part: str | None = None) -> None:
        """Gives the time since the last turn to a part, default the innermost that is open."""
        now = time.process_time()
        self.seconds[part or self._open[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Returns the function, its time counted."""

        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            self.turn()
            self._open.append(part)
            try:
                return function(*arguments, **options)
            finally:
                self.turn()
                self._open.pop()

        return counted


def main(argv: Sequence[str]) -> None:
    """Runs a command, and prints its seconds by part as a line of standard error."""
    from tfpipe import start_up

    clock = _Clock()
    clock.turn("Python")
    command, library = _MODULES[argv[0]]
    start_up.quieten()
    importlib.import_module("tensorflow")
    clock.turn("importing TensorFlow and Keras")
    module = importlib.import_module(command)
    importlib.import_module(library)
    clock.turn("other imports")
    for part, functions in _PARTS.items():
        for function in functions:
            _replace(function, partial(clock.wrap, part=part))
    sys.argv = list(argv)
    try:
        module.command()
    finally:
        clock.turn()
        print(_MARK + json.dumps(clock.seconds), file=sys.stderr, flush=True)


def _find(name: str) -> tuple[Any, str]:
    """Returns what holds a function, and its name there."""
    module, _, path = name.partition(":")
    *parents, last = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, last


def _replace(name: str, change: Callable[[Any], Any]) -> None:
    """Replaces a function wherever it has been imported to."""
    owner, last = _find(name)
    old = getattr(owner, last)
    new = change(old)
    for place in [owner, *(module for key, module in sys.modules.items() if key.startswith("tfpipe."))]:
        if getattr(place, last, None) is old:
            setattr(place, last, new)


def report(folder: Path, data: str, mode: str, options: Sequence[str]) -> None:
    """Trains and evaluates, and prints where the processor's time went.

    Args:
        folder: to work in.
        data: a data set with the splits train, val and test.
        mode: of training.
        options: more flags of train.
    """
    run = [f"--data={data}", f"--output={folder / 'run'}", f"--mode={mode}", *options]
    evaluation = [f"--data={data}", f"--model={folder / 'run'}", f"--output={folder / 'eval'}"]
    for command in (["train", *run], ["evaluate", *evaluation]):
        seconds = measure(command)
        overhead = sum(spent for part, spent in seconds.items() if part not in WORK)
        print(f"\n{command[0]}: {sum(seconds.values()):.1f} s of the processor, {overhead:.1f} s of them overhead")
        for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
            print(f"{spent:8.2f}  {part}{' (work)' if part in WORK else ''}", flush=True)


def measure(command: Sequence[str]) -> dict[str, float]:
    """Returns the seconds of processor time by part of a command in a process of its own."""
    started = [sys.executable, "-m", __name__, *command]
    done = subprocess.run(started, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    line = next(line for line in done.stderr.splitlines() if line.startswith(_MARK))
    seconds: dict[str, float] = json.loads(line.removeprefix(_MARK))
    return seconds


if __name__ == "__main__":
    main(sys.argv[1:])
