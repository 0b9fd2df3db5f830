"""A worker of the tests of test_cluster.py: does trainings one after the other, and prints what came of each.

python tests/cluster_worker.py INDEX < {"addresses": [...], "jobs": [...]}
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from tfpipe import start_up  # noqa: E402
from tfpipe.training import preflight  # noqa: E402


def terminate(_: Any) -> None:
    """As a cluster that takes this worker's machine."""
    os.kill(os.getpid(), signal.SIGTERM)


def nudge(loop: Any) -> None:
    """As a faulty processor."""
    variable = loop.phase.trained[0]
    variable.assign(variable + 1e-4)


def stop_on_signal(number: int, _: Any) -> None:
    """As the command does."""
    raise KeyboardInterrupt(number)


def main(index: int, content: dict[str, Any]) -> None:
    """Does the jobs."""
    start_up.quieten()
    addresses = tuple(content["addresses"])
    together = preflight.Cluster(addresses, index) if len(addresses) > 1 else None
    signal.signal(signal.SIGTERM, stop_on_signal)
    strategy = preflight.use_devices(("CPU",), together, lambda line: None)

    from tfpipe import train
    from tfpipe.models import features
    from tfpipe.training import loop

    features._SHARD_BYTES = content["shard_bytes"]
    real_step, real_write = loop.Loop.train_step, features._write
    actions: dict[int, Any] = {}
    steps, written = [0], []

    def step(self: loop.Loop, *rest: Any) -> Any:
        steps[0] += 1
        if action := actions.get(steps[0]):
            action(self)
        return real_step(self, *rest)

    def write(path: Path, *rest: Any) -> None:
        written.append(path.name)
        real_write(path, *rest)

    loop.Loop.train_step, features._write = step, write  # type: ignore[method-assign, assignment]
    for job in content["jobs"]:
        mine = {**job, **job.get("of_worker", {}).get(str(index), {})}
        actions.clear()
        actions.update({int(at): globals()[name] for at, name in mine.get("actions", {}).items()})
        steps[0] = 0
        written.clear()
        lines: list[str] = []
        options = {
            "progress": False,
            "tensorboard": False,
            "log": lines.append,
            "checkpoint_seconds": 60,
            **mine.get("options", {}),
        }
        found: dict[str, Any] = {}
        try:
            run = train(mine["data"], mine["folder"], strategy=strategy, **options, **mine["recipe"])
            found = {"sha256": run.model_sha256, "folder": str(run.folder)}
        except (Exception, KeyboardInterrupt) as error:
            found = {"error": type(error).__name__, "message": str(error)}
        if index == 0 and "copy" in mine:
            shutil.copytree(mine["folder"], mine["copy"])
        sys.stdout.write(json.dumps({**found, "steps": steps[0], "written": sorted(written), "lines": lines}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.load(sys.stdin))
