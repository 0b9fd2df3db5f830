"""What becomes of a task that another process has carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tfpipe.building import tasks
from tfpipe.common.errors import DataError
from tfpipe.common.workers import Done
from tfpipe.records.manifest import Shard

TYPES: Mapping[str, tuple[Any, Any]] = {
    "audit": (tasks.AuditTask, list[tuple[int, tasks.Audited]]),
    "write_shard": (tasks.ShardTask, Shard),
}
"""The functions of `tasks`, with the types of their tasks and results."""


class Outcome(NamedTuple):
    """What became of a task: a result, or the message of an error that another machine would get, too."""

    num_records: int = 0
    num_bytes: int = 0
    result: Any = None
    error: str | None = None


def name_of(function: str, task: Any) -> str:
    """Returns what no other task of a build is called; it depends on the listing only."""
    return f"{function}-{task.name}"


def function_of(name: str) -> str:
    """Returns the function of `tasks` that a task's name begins with."""
    return name.partition("-")[0]


def run_task(function: str, task: Any, machine: str) -> Outcome:
    """Returns what becomes of a task in this process.

    Raises:
        OSError: perhaps this machine's fault.
    """
    counts = [0, 0]

    def report(num_records: int, num_bytes: int) -> None:
        counts[0] += num_records
        counts[1] += num_bytes

    try:
        result = getattr(tasks, function)(task, report)
    except OSError:
        raise
    except Exception as error:
        return failed(error, machine)
    return Outcome(counts[0], counts[1], result)


def failed(error: Exception, machine: str) -> Outcome:
    """Returns what becomes of a task that raised an error."""
    return Outcome(error=f"{error} (on {machine})")


def accept(task: Any, outcome: Outcome) -> Iterator[Any]:
    """Yields `Done` and the result of a task, as `Workers.run`.

    Raises:
        DataError: the task failed.
    """
    if outcome.error is not None:
        raise DataError(outcome.error)
    yield Done(outcome.num_records, outcome.num_bytes)
    if not isinstance(task, tasks.AuditTask):
        yield outcome.result
        return
    # Files that only one machine cannot read are not the input's fault: this one has listed them.
    missed = {row for row, audited in outcome.result if audited.reason == "unreadable"}
    yield [pair for pair in outcome.result if pair[0] not in missed]
    if missed:
        again = task._replace(images=[image for image in task.images if image[0] in missed])
        yield tasks.audit(again, lambda *_: None)
