"""One contender in a process of its own: prepares, then measures one pass per request.

  worker.py MODULE CONTENDER

It reads a task, one line of JSON, from stdin, and answers in lines of JSON on the stdout it was
started with: {"ready": true} once prepared, then {"images": 1280, "seconds": 1.5} for each line
"go", and {"error": ..., "missing": true if a package is} when it gives up. Between two passes it
waits on stdin with nothing prefetched. A pass counts from opening the iterator to its last batch.
Closing the iterator does not count: tf.data's waits now and then for the thread that tunes it,
which sleeps for up to as long as the iterator has lived (TensorFlow 2.21).

Needs no package: the contenders' modules import theirs, in whatever environment this interpreter
belongs to.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """Input of every contender of a run.

    Attributes:
        photos: paths of the JPEG files, in one flat folder.
        shards: the data set built from them, split "train".
        scratch: an empty folder of the contender's own.
        batch_size: images per batch; divides their number, so that no contender has a smaller last
            batch.
        side: height and width of the images to yield.
        workers: threads or processes; also the cores that the process may use.
        backbone: of extraction, see `tfpipe.networks.backbones`.
        weights: of the backbone.
        model: of prediction, a run's folder or a .keras file.
    """

    photos: list[str]
    shards: str
    scratch: str
    batch_size: int
    side: int
    workers: int
    backbone: str = ""
    weights: str = ""
    model: str = ""


# Opens a pass: yields batches; len() of each is its number of images.
Pass = Callable[[], Iterable[Any]]


def serve(contender: Callable[[Task], Pass], task: Task, answer: Callable[[dict[str, Any]], None]) -> None:
    """Prepares, then measures a pass for each line on stdin."""
    open_pass = contender(task)
    answer({"ready": True})
    for _ in sys.stdin:
        answer(measure(open_pass))


def measure(open_pass: Pass) -> dict[str, Any]:
    """Returns the number of images of one pass, and the seconds until the last one."""
    num_images, seconds, start = 0, 0.0, time.perf_counter()
    for batch in open_pass():
        num_images += len(batch)
        seconds = time.perf_counter() - start
    return {"images": num_images, "seconds": seconds}


def restrict(num_cores: int) -> None:
    """Restricts this process to the first cores (Linux): libraries start a thread for each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:num_cores])


def main() -> None:
    """Serves the contender that the arguments name."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout, too

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    module, name, task = sys.argv[1], sys.argv[2], Task(**json.loads(sys.stdin.readline()))
    restrict(task.workers)
    try:
        serve(getattr(importlib.import_module(module), name), task, answer)
    except Exception as error:  # whatever it is, the other contenders go on
        answer({"error": f"{type(error).__name__}: {error}", "missing": isinstance(error, ImportError)})
        raise


if __name__ == "__main__":
    main()
