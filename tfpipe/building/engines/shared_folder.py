"""One build by many processes, on any machines that see the same files.

Each process that is started with the same arguments takes tasks from the folder and carries them
out on its own cores. One of them plans as well: it lists the inputs, publishes tasks, reads what
was handed in, and writes the manifest. What others need of its knowledge is in files, so that
another one can take its place at any time; its database is its own, in its folder for temporary
files.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tfpipe.building import plan
from tfpipe.building.engines.results import Outcome, accept, failed, function_of, name_of
from tfpipe.building.engines.shared_progress import Mirror, PublishedBar
from tfpipe.building.engines.tasks_on_disk import Tasks
from tfpipe.building.engines.workers_folder import Status, Superseded, WorkersFolder
from tfpipe.building.state import State
from tfpipe.building.steps import SHARED_PREFIX, STATE_NAME, TASKS, Build, Refusal, explained, inputs_digest
from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_folder, temporary_folder
from tfpipe.common.progress import ProgressBar
from tfpipe.common.workers import Done, Workers
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest

_log = logging.getLogger("tfpipe")

DEFAULT_LEASE_SECONDS = 60.0
_BEATS = 6  # in a lease
_POLL_SECONDS = 0.02, 1.0  # from one look at the folder to the next: while things happen, and later
_ADVICE = "Start all with the same arguments, or give this build a workers_folder of its own."
_MOST_WAITING = 64  # tasks: enough for all to find some, few enough to list


def build_together(
    build: Build, folder: Path, what: Mapping[str, Any], num_workers: int, lease_seconds: float, *, progress: bool
) -> Manifest:
    """Takes part in a build until it is complete; errors as in `build_tfrecords`.

    `what` has, besides the options, what all that take part must be given alike.
    """
    with explained(build.directory):
        shared = WorkersFolder(folder, lease_seconds)
        with _alive(shared):
            _check_equal(shared.join({**what, "options": build.options.as_json()}), what, build)
            build.directory.mkdir(parents=True, exist_ok=True)
            if not _is_complete(build):
                with Workers(num_workers, TASKS) as workers:
                    return _Member(build, shared, workers, progress=progress).run()
        if not shared.last_planner():  # nobody planned here: the data set was there before
            return build.confirm()
    _log.info("%s: complete; the inputs were not read again, since %s is of this build", build.directory, folder)
    return _complete(build, shared)


def _check_equal(stored: Mapping[str, Any], what: Mapping[str, Any], build: Build) -> None:
    differences = [f"{name} was {stored.get(name)!r} and is {what[name]!r}" for name in what if stored.get(name) != what[name]]
    if differences := [*differences, *build.options.differences(stored["options"])]:
        raise Refusal("the workers_folder is of a build that was started with other arguments", differences, _ADVICE)


def _is_complete(build: Build) -> bool:
    return (build.directory / manifests.FILE_NAME).exists()


def _complete(build: Build, shared: WorkersFolder) -> Manifest:
    """Returns the manifest, and removes what the build needed; killed in between, another one does so."""
    manifest = manifests.load(build.directory)
    if differences := build.options.differences(manifest.options):
        raise Refusal(f"{build.directory}: a complete data set with other options is here", differences)
    for place in (build.directory, build.directory / manifests.INDEX_FOLDER):
        clear_folder(place)
    shutil.rmtree(build.folder, ignore_errors=True)
    shared.clear()
    return manifest


@contextlib.contextmanager
def _alive(shared: WorkersFolder) -> Iterator[None]:
    """Touches this process's files from time to time, and shows at the end that it leaves."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(shared.lease_seconds / _BEATS):
            with contextlib.suppress(OSError):  # of a server that does not answer now
                shared.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        shared.leave()


class _Member:
    """This process's part in a build that is not complete."""

    def __init__(self, build: Build, shared: WorkersFolder, workers: Workers, *, progress: bool) -> None:
        self._build, self.shared, self._workers, self._progress = build, shared, workers, progress
        self._poll_seconds = _POLL_SECONDS[0]
        last = shared.last_planner()
        self._failed_before = last if shared.status(last).failed else 0

    def run(self) -> Manifest:
        """Works, and plans where nobody does, until the build is complete."""
        try:
            with Mirror(enabled=self._progress) as mirror:
                while not _is_complete(self._build):
                    last = self.shared.last_planner()
                    status = self.shared.status(last)
                    is_over = last == self._failed_before
                    if status.failed and not is_over:
                        raise DataError(status.failed)
                    if (is_over or not self.shared.is_planned_by(last)) and self.shared.lead(last):
                        mirror.close()
                        with contextlib.suppress(Superseded):
                            return self._plan()
                    elif status.digest:
                        self.work(self.shared.tasks(status.digest))
                        mirror.show(status)
                    else:
                        time.sleep(self._next_poll())
                mirror.finish()
            return _complete(self._build, self.shared)
        finally:
            self._give_back()

    def _give_back(self) -> None:
        last = self.shared.status(self.shared.last_planner())
        with contextlib.suppress(OSError):  # all are done, and cleared up
            self.shared.tasks(last.digest).give_back_of({self.shared.machine})

    def work(self, tasks: Tasks) -> None:
        """Gives tasks to this machine's processes, waits a moment, and hands in what they made."""
        self._take(tasks)
        for ticket, value, error in self._workers.receive(self._next_poll()):
            if isinstance(value, Done):
                ticket.num_records += value.num_records
                ticket.num_bytes += value.num_bytes
                continue
            if error is None:
                self._take(tasks)  # first: storing the result waits for the disk
                ticket.tasks.hand_in(ticket.name, Outcome(ticket.num_records, ticket.num_bytes, value))
            elif not ticket.tasks.is_held(ticket.name):
                pass  # this process had stopped; another one does the task, and has removed its files
            elif isinstance(error, OSError):
                raise error  # perhaps this machine's fault: the others go on
            else:
                ticket.tasks.hand_in(ticket.name, failed(error, self.shared.machine))

    def _take(self, tasks: Tasks) -> None:
        while self._workers.num_idle and (taken := tasks.take()):
            name, task = taken
            self._workers.start(function_of(name), task, _Ticket(tasks, name))
            self._poll_seconds = _POLL_SECONDS[0]

    def _next_poll(self) -> float:
        """Returns how long to wait: longer each time, until there is a task again."""
        self._poll_seconds = min(1.5 * self._poll_seconds, _POLL_SECONDS[1], self.shared.lease_seconds / _BEATS)
        return self._poll_seconds

    def _plan(self) -> Manifest:
        try:
            with temporary_folder("build") as scratch, contextlib.closing(State(scratch / STATE_NAME)) as state:
                return self._plan_with(state)
        except (DataError, ValueError) as error:
            self.shared.check_lead()
            self.shared.publish(Status(failed=str(error)))
            with contextlib.suppress(OSError):  # shards are there
                self._build.folder.rmdir()
                self._build.directory.rmdir()
            raise
        except OSError:
            self.shared.check_lead()  # then another one has cleared up
            raise

    def _plan_with(self, state: State) -> Manifest:
        build = self._build
        build.make_folder()
        if (build.folder / STATE_NAME).exists():
            raise ValueError(f"{build.directory}: an unfinished build is here: finish it without workers_folder, or delete it")
        order = build.list_into(state)
        state.sort()
        status = Status(state.digest()[:16])
        tasks = self.shared.tasks(status.digest)
        tasks.create()
        self.shared.publish(status)

        def new_bar(title: str, total: int, done: int) -> ProgressBar:
            return PublishedBar(self.shared, status._replace(title=title, total=total, done=done), enabled=self._progress)

        build, everyone = build._replace(new_bar=new_bar), _Everyone(self, tasks)
        build.audit(state, everyone)
        build.decide(state, order)
        own = build.folder / f"{SHARED_PREFIX}{inputs_digest(state)[:16]}"
        if any(path != own for path in build.folder.glob(f"{SHARED_PREFIX}*")):
            raise Refusal(f"{build.directory}: the inputs of the unfinished build here have changed", [])
        own.mkdir(exist_ok=True)
        written = build._replace(folder=own)
        shards = written.write(state, everyone)
        self.shared.check_lead()
        written.finish(state, plan.Plan(*state.fact("planned")), shards)
        return _complete(build, self.shared)


class _Ticket:
    """A task that this process has taken, and what it has reported."""

    def __init__(self, tasks: Tasks, name: str) -> None:
        self.tasks, self.name = tasks, name
        self.num_records = self.num_bytes = 0


class _Everyone:
    """All that take part, as the planner's engine; itself among them."""

    def __init__(self, member: _Member, tasks: Tasks) -> None:
        self._member, self._shared, self._tasks = member, member.shared, tasks

    def __enter__(self) -> _Everyone:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields `Done` and results, as `Workers.run`."""
        # A planner finds the results of the one before by their names.
        pending = ((name_of(function, task), task) for task in tasks)
        begun = self._tasks.unfinished()
        published: dict[str, Any] = {}
        is_more, next_search = True, 0.0
        while is_more or published:
            self._shared.check_lead()
            if time.monotonic() >= next_search:
                self._shared.give_back_lost(self._tasks)
                next_search = time.monotonic() + self._shared.lease_seconds / _BEATS
            room = _MOST_WAITING - self._tasks.num_waiting()
            while is_more and room > 0:
                name, task = next(pending, ("", None))
                is_more = bool(name)
                if not name:
                    continue
                if function == "audit" and (outcome := self._tasks.read(name, kept=True)):
                    yield from accept(task, outcome)
                    continue
                published[name] = task
                if name not in begun:
                    self._tasks.publish(name, task)
                    room -= 1
            for name in published.keys() & self._tasks.handed_in():
                if outcome := self._tasks.read(name):
                    self._tasks.keep(name)
                    yield from accept(published.pop(name), outcome)
            self._member.work(self._tasks)
