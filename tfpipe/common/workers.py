"""Worker processes that never import TensorFlow, and die with their parent.

    with Workers(2, "tfpipe.building.tasks", lock_descriptor) as workers:
        for result in workers.run("audit", tasks): ...

Why not `multiprocessing`: its children import the user's main script again, so that a plain script
without an `if __name__ == "__main__"` guard would start itself over; and forked children would
inherit a TensorFlow that the parent imported, with its threads gone. A child here is a fresh
interpreter that imports the tasks' module only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple

_PATIENCE_SECONDS = 2.0
_SHARED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # reach the whole group; the parent decides
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from tfpipe.common.workers import serve; serve({descriptor}, {module!r})"


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Done(NamedTuple):
    """Work that a task has done since its last report."""

    num_records: int
    num_bytes: int


class Answer(NamedTuple):
    """What a worker has sent about a task: `Done`, the result, or the error that it raised."""

    ticket: Any  # what `start` was given
    value: Any
    error: Exception | None


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection


class Workers:
    """A fixed number of processes that call the functions of a module.

    Each holds `held_descriptor` open, so that a lock on it lasts until the last of them has ended.
    """

    def __init__(self, count: int, module: str, held_descriptor: int | None = None) -> None:
        self._children = [_start(module, held_descriptor) for _ in range(count)]
        self._busy: dict[Connection, tuple[_Child, Any]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for child in self._children:
            child.connection.close()  # the child ends at once, whatever it is doing
        for child in self._children:
            try:
                child.process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:  # stopped, or waiting for a disk that does not answer
                child.process.kill()
                child.process.wait()

    @property
    def num_idle(self) -> int:
        """The number of processes that have nothing to do."""
        return len(self._children) - len(self._busy)

    def run(self, function: str, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yields `Done` and results of `MODULE.FUNCTION(task, report)`, as tasks finish.

        Raises:
            Exception: whatever a task raised.
            RuntimeError: a worker died.
        """
        pending = iter(tasks)
        task = next(pending, None)
        while task is not None or self._busy:
            while self.num_idle and task is not None:
                self.start(function, task)
                task = next(pending, None)  # made while the workers are busy
            for answer in self.receive():
                if answer.error is not None:
                    raise answer.error
                yield answer.value

    def start(self, function: str, task: Any, ticket: Any = None) -> None:
        """Gives an idle process a task; the answers will carry the ticket."""
        child = next(child for child in self._children if child.connection not in self._busy)
        with contextlib.suppress(BrokenPipeError):  # it died: receiving will raise
            child.connection.send((function, task))
        self._busy[child.connection] = child, ticket

    def receive(self, seconds: float | None = None) -> Iterator[Answer]:
        """Yields what has come from the processes, after waiting for it no longer than `seconds`.

        Raises:
            RuntimeError: a worker died.
        """
        for connection in wait(list(self._busy), seconds):
            child, ticket = self._busy[connection]  # type: ignore[index]  # wait() returns what it was given
            kind, value = _receive(child)
            if kind != "progress":
                del self._busy[child.connection]
            yield Answer(ticket, *((None, value) if kind == "error" else (value, None)))


def _receive(child: _Child) -> tuple[str, Any]:
    try:
        message: tuple[str, Any] = child.connection.recv()
    except (EOFError, ConnectionResetError):
        code = child.process.wait()
        cause = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        cause += " (out of memory?)" if code == -signal.SIGKILL else ""
        raise RuntimeError(f"a worker process {cause}; what was finished is kept: run the same command again") from None
    return message


def _start(module: str, held_descriptor: int | None) -> _Child:
    ours, theirs = Pipe()
    # Absolute: "" stands for the folder that was current when tfpipe was imported, not for the one
    # that is now.
    path = [*(os.path.abspath(entry) for entry in map(str, sys.path)), str(Path(__file__).resolve().parents[2])]
    command = _BOOTSTRAP.format(path=path, descriptor=theirs.fileno(), module=module)
    inherited = (theirs.fileno(),) if held_descriptor is None else (theirs.fileno(), held_descriptor)
    # The child inherits it: a Ctrl-C waits there until `serve` ignores the signal, and is gone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHARED)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=inherited
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Child(process, ours)


def serve(descriptor: int, module: str) -> None:
    """Runs a worker: carries out tasks until the parent closes the connection or dies."""
    for number in _SHARED:
        signal.signal(number, signal.SIG_IGN)
    tasks = importlib.import_module(module)
    connection = Connection(descriptor)
    inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    while True:
        function, task = inbox.get()
        try:
            result = getattr(tasks, function)(task, lambda *done: _send(connection, "progress", Done(*done)))
            _send(connection, "result", result)
        except Exception as error:  # carried to the parent, which raises it
            _send(connection, "error", _portable(error))


def _send(connection: Connection, kind: str, value: Any) -> None:
    try:
        connection.send((kind, value))
    except OSError:  # the parent closed the connection, and `_listen` has yet to see it
        os._exit(1)


def _listen(connection: Connection, inbox: SimpleQueue[tuple[str, Any]]) -> None:
    try:
        while True:
            inbox.put(connection.recv())
    finally:  # the parent ended, or sent what cannot be read, for which the worker would wait for ever
        # Not sys.exit: it would end this thread only, and the task would go on without its parent.
        os._exit(1)


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own bytes)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
