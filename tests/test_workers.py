"""Workers: what a Ctrl-C or a parent that leaves makes of them. What they do for a build is in test_build.py."""

import signal
import subprocess
import sys
import types
from multiprocessing.connection import Pipe

import pytest
from conftest import CHECKOUT

from tfpipe.building.tasks import AuditTask
from tfpipe.common import workers

TASKS = "tfpipe.building.tasks"


@pytest.mark.parametrize("task", ["report(1, 1)", "'a result'", "1 / 0"])
def test_a_worker_whose_parent_has_closed_the_connection_leaves_without_a_word(task):
    ours, theirs = Pipe()
    ours.send(("do", None))
    ours.close()
    code = (
        "from tfpipe.building import tasks\nfrom tfpipe.common import workers\n"
        "workers._listen = lambda connection, inbox: inbox.put(connection.recv())\n"  # sees the task, and not the end
        f"tasks.do = lambda task, report: {task}\n"
        f"workers.serve({theirs.fileno()}, {TASKS!r})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=CHECKOUT, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=300)
    theirs.close()
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_reach_a_worker_that_is_about_to_begin(monkeypatch, number):
    struck = f"import os; os.kill(os.getpid(), {number:d}); {workers._BOOTSTRAP}"
    monkeypatch.setattr(workers, "_BOOTSTRAP", struck)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with workers.Workers(1, TASKS) as started:
        assert list(started.run("audit", [AuditTask([], 1)])) == [workers.Done(0, 0), []]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_task_that_a_worker_cannot_read_ends_it(monkeypatch):
    gone = types.ModuleType("gone")
    gone.Task = type("Task", (), {"__module__": "gone"})
    monkeypatch.setitem(sys.modules, "gone", gone)
    with workers.Workers(1, TASKS) as started, pytest.raises(RuntimeError, match="a worker process exited with code 1"):
        list(started.run("audit", [gone.Task()]))
