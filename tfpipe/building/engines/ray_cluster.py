"""Ray as the engine: tasks run on the nodes of a cluster, which see the same files as this machine."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from tfpipe.building.engines.results import Outcome, accept, run_task

_TASKS_PER_CORE = 2  # sent ahead, so that no core waits for the next


class RayCluster:
    """A cluster, connected to while this is entered; one that the caller is connected to is left so.

    Ray repeats the tasks of workers and nodes that die.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError("engine=ray needs Ray: pip install 'tfpipe[ray]'") from error
        self._ray: Any = ray
        self._address = address
        self._is_own = not ray.is_initialized()

    def __enter__(self) -> RayCluster:
        if self._is_own:
            try:
                self._ray.init(address=self._address, log_to_driver=False, configure_logging=False, include_dashboard=False)
            except ConnectionError as error:
                raise ConnectionError(f"engine_address {self._address!r}: no Ray cluster answers: {error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._is_own:
            self._ray.shutdown()

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields `Done` and results, as `Workers.run`."""
        remote = self._ray.remote(_run)
        most = _TASKS_PER_CORE * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        pending = iter(tasks)
        running: dict[Any, Any] = {}
        try:
            while True:
                for task in itertools.islice(pending, most - len(running)):
                    running[remote.remote(function, task)] = task
                if not running:
                    return
                done, _ = self._ray.wait(list(running))
                for reference in done:
                    yield from accept(running.pop(reference), self._get(reference))
        finally:
            for reference in running:
                self._ray.cancel(reference)

    def _get(self, reference: Any) -> Outcome:
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray: {error}; what was finished is kept: run the same command again") from None
        return outcome


def _run(function: str, task: Any) -> Outcome:
    return run_task(function, task, f"{socket.gethostname()}, process {os.getpid()}")
