"""Workers on this machine: processes that train together, as on several machines."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from conftest import CHECKOUT

SCRIPT = Path(__file__).with_name("cluster_worker.py")
PATIENCE_SECONDS = 300


def free_addresses(count: int) -> list[str]:
    """Addresses that nobody listens at."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


@contextlib.contextmanager
def started(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts a process for each command, in a session of its own; its output goes to folder/INDEX.out and .err."""
    folder.mkdir(exist_ok=True)
    processes = []
    try:
        for index, words in enumerate(commands):
            with open(folder / f"{index}.out", "w") as out, open(folder / f"{index}.err", "w") as err:
                given = {"stdin": subprocess.PIPE, "stdout": out, "stderr": err, "text": True, "start_new_session": True}
                environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests"), "TF_NUM_INTRAOP_THREADS": "1"}
                processes.append(subprocess.Popen(words, env=environment, cwd=CHECKOUT, **given))
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def do_jobs(folder: Path, num_workers: int, jobs: Sequence[dict[str, Any]], shard_bytes: int = 1 << 20) -> list[list[Any]]:
    """Returns, for each job, what came of it on each worker."""
    content = json.dumps({"addresses": free_addresses(num_workers), "jobs": jobs, "shard_bytes": shard_bytes})
    with started([[sys.executable, str(SCRIPT), str(index)] for index in range(num_workers)], folder) as processes:
        for process in processes:
            process.stdin.write(content)
            process.stdin.close()
            process.stdin = None
        for index, process in enumerate(processes):
            assert process.wait(PATIENCE_SECONDS) == 0, (folder / f"{index}.err").read_text()[-3000:]
    found = [[json.loads(line) for line in (folder / f"{index}.out").read_text().splitlines()] for index in range(num_workers)]
    assert [len(lines) for lines in found] == [len(jobs)] * num_workers
    return [list(of_job) for of_job in zip(*found, strict=True)]


def train_command(data: Path, output: Path, flags: Sequence[str]) -> list[str]:
    """The command of one process."""
    return [sys.executable, str(CHECKOUT / "tools" / "train.py"), f"--data={data}", f"--output={output}", *flags]


def train_commands(num_workers: int, data: Path, output: Path, flags: Sequence[str]) -> list[list[str]]:
    """The command of each worker."""
    together, words = ",".join(free_addresses(num_workers)), train_command(data, output, flags)
    return [[*words, f"--workers={together}", f"--worker={index}"] for index in range(num_workers)]


def wait_until(is_so: Callable[[], bool], processes: Sequence[subprocess.Popen[str]]) -> None:
    """Waits while all processes work."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert [process.poll() for process in processes] == [None] * len(processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)
