"""Building by several processes over one folder: real ones, killed, stopped for too long, and disagreeing.

What they share is a file system; that they run on one machine here makes no difference to them, since
they use neither locks nor process ids nor clocks.
"""

import contextlib
import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import CHECKOUT, make_image, write

import tfpipe
from tfpipe.building.engines.tasks_on_disk import Outcome, Tasks
from tfpipe.building.engines.workers_folder import Superseded, WorkersFolder
from tfpipe.building.inputs.items import Source
from tfpipe.building.state import State
from tfpipe.building.tasks import Audited, AuditTask

OPTIONS = {"layout": "folders", "splits": {"train": 0.7, "test": 0.3}, "num_shards": 16, "seed": 5, "check": "decode"}
LEASE_SECONDS = 1.5
PATIENCE_SECONDS = 120  # of a test, on a machine that is busy

CODE = """
import json, resource, sys, tfpipe
given, limit_bytes = json.loads(sys.argv[1]), int(sys.argv[2])
if limit_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
try:
    tfpipe.build_tfrecords(**given)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """768 images, three tasks of the audit, in 32 shards."""
    root = tmp_path_factory.mktemp("source")
    data = make_image(0, (160, 160))
    for index in range(768):
        comment = f"{index:06d}".encode()
        marked = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        write(root / f"class {index % 3}" / f"{index}.jpg", marked)
    return root


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "out"
    tfpipe.build_tfrecords(source, output, progress=False, workers=2, **OPTIONS)
    return files_of(output)


def files_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


class Machine:
    """One process that takes part, in a process group of its own."""

    def __init__(self, source, folder, limit_bytes=0, **options):
        given = {"input": str(source), "output": str(folder / "out"), "workers_folder": str(folder / "q"), "workers": 1}
        given |= {"lease_seconds": LEASE_SECONDS, "progress": False, **OPTIONS, **options}
        command = [sys.executable, "-c", CODE, json.dumps(given), str(limit_bytes)]
        self.folder, self.process = (
            folder,
            subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True, start_new_session=True),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.communicate()

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, number)

    def end(self):
        """Returns exit status and stderr."""
        _, error = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, error

    def taken(self, function):
        return [path for path in self.folder.glob(f"q/tasks-*/taken/{function}-*") if f"-{self.process.pid}-" in path.name]

    def stop_with_task(self, function):
        """Stops the process while it has a task."""

        def stopped():
            if not self.taken(function):
                return False
            self.signal(signal.SIGSTOP)
            time.sleep(0.05)
            if self.taken(function):
                return True
            self.signal(signal.SIGCONT)
            return False

        wait_until(stopped)


def wait_until(is_so):
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def planners(folder):
    return sorted(path.name for path in folder.glob("q/planners/*"))


def status_of(folder, planner):
    path = folder / f"q/planners/{planner:06d}/status.json"
    return path.read_text() if path.exists() else ""


def test_g2_three_processes_build_the_bytes_of_one_and_a_late_one_joins(source, reference, tmp_path):
    with Machine(source, tmp_path) as one, Machine(source, tmp_path) as two:
        wait_until(lambda: any(machine.taken("write_shard") for machine in (one, two)))
        with Machine(source, tmp_path, progress=True) as late:
            wait_until(lambda: late.taken("write_shard") or late.process.poll() is not None)
            assert [machine.end() for machine in (one, two)] == [(0, "")] * 2
            status, error = late.end()
            assert status == 0
            assert "write: 768 of 768 records" in error, "everyone sees what all have done"
    assert files_of(tmp_path / "out") == reference
    assert planners(tmp_path) == ["000001"]
    assert not list(tmp_path.glob("q/tasks-*")) + list(tmp_path.glob("q/machines/*"))
    (tmp_path / "out/.build").mkdir()  # left by a planner that was killed at the very end
    with Machine(source, tmp_path) as too_late:
        assert too_late.end() == (0, "")
    assert not (tmp_path / "out/.build").exists()
    assert planners(tmp_path) == ["000001"]


@pytest.mark.parametrize(("step", "is_killed"), [("audit", False), ("write_shard", False), ("write_shard", True)])
def test_g2_a_planner_and_another_that_stop_for_too_long_or_are_killed_change_no_byte(
    source, reference, tmp_path, step, is_killed
):
    with Machine(source, tmp_path) as planner:
        planner.stop_with_task(step)
        with Machine(source, tmp_path) as worker:
            worker.stop_with_task(step)
            killed, stopped = (planner, worker) if is_killed else (worker, planner)
            killed.signal(signal.SIGKILL)
            with Machine(source, tmp_path) as other:
                if step == "audit":
                    assert other.end() == (0, "")
                    assert files_of(tmp_path / "out") == reference
                else:  # back while another one plans
                    wait_until(lambda: len(planners(tmp_path)) > 1)
                stopped.signal(signal.SIGCONT)
                assert [machine.end() for machine in (stopped, other)] == [(0, "")] * 2
    assert files_of(tmp_path / "out") == reference
    assert len(planners(tmp_path)) > 1


@pytest.mark.parametrize("is_planner", [True, False])
def test_g2_nobody_waits_for_one_that_is_stopped_by_ctrl_c(source, reference, tmp_path, is_planner):
    with Machine(source, tmp_path, lease_seconds=600) as planner:
        planner.stop_with_task("write_shard")
        with Machine(source, tmp_path, lease_seconds=600) as worker:
            worker.stop_with_task("write_shard")
            ended, other = (planner, worker) if is_planner else (worker, planner)
            ended.signal(signal.SIGINT)
            ended.signal(signal.SIGCONT)
            assert ended.end()[0] != 0
            other.signal(signal.SIGCONT)
            assert other.end() == (0, "")
    assert files_of(tmp_path / "out") == reference
    assert len(planners(tmp_path)) == 1 + is_planner


def test_g2_all_killed_and_started_again_audits_nothing_twice(source, reference, tmp_path):
    with Machine(source, tmp_path) as one, Machine(source, tmp_path) as two:
        wait_until(lambda: len(list(tmp_path.glob("out/images-*"))) > 5)
        one.signal(signal.SIGKILL)
        two.signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("q/tasks-*/kept/audit-*")}
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/images-*")}
    assert len(kept) == 3
    with Machine(source, tmp_path) as again:
        wait_until(lambda: '"write"' in status_of(tmp_path, 2))
        after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("q/tasks-*/kept/audit-*")}
        assert again.end() == (0, "")
    assert after == kept
    assert sum(path.stat().st_mtime_ns == before for path, before in shards.items()) >= len(shards) - 2
    assert files_of(tmp_path / "out") == reference


@pytest.mark.exhaustive
def test_g2_killed_and_stopped_at_random_moments_processes_build_the_same_bytes(source, reference, tmp_path, thinned):
    """Three processes at a time; one that was killed is followed by a new one, stopped ones go on after a while."""
    drawn = random.Random(9)
    for trial in thinned(range(12), 2):
        folder = tmp_path / str(trial)
        with contextlib.ExitStack() as stack:
            machines, stopped = [stack.enter_context(Machine(source, folder)) for _ in range(3)], []
            for _ in range(4):
                time.sleep(drawn.uniform(0, 1))
                struck = machines.pop(drawn.randrange(len(machines)))
                if drawn.random() < 0.5:
                    struck.signal(signal.SIGSTOP)
                    stopped.append(struck)
                elif struck.process.poll() is None:
                    struck.signal(signal.SIGKILL)
                machines.append(stack.enter_context(Machine(source, folder)))
            time.sleep(drawn.uniform(0, 2 * LEASE_SECONDS))
            for machine in stopped:
                machine.signal(signal.SIGCONT)
            assert [machine.end() for machine in [*machines, *stopped]] == [(0, "")] * (3 + len(stopped)), trial
        assert files_of(folder / "out") == reference, trial


def test_a_process_with_other_arguments_is_refused_and_the_others_go_on(source, reference, tmp_path):
    with Machine(source, tmp_path) as one:
        wait_until((tmp_path / "q/build.json").exists)
        with Machine(source, tmp_path, seed=6, workers_folder=str(tmp_path / "q")) as other:
            status, error = other.end()
        assert status == 1
        assert "seed was 5 and is 6" in error
        assert "Start all with the same arguments" in error
        assert one.end() == (0, "")
    assert files_of(tmp_path / "out") == reference
    with pytest.raises(ValueError, match=r"output was '.*/out' and is '.*/elsewhere'"):
        tfpipe.build_tfrecords(source, tmp_path / "elsewhere", workers_folder=tmp_path / "q", progress=False, **OPTIONS)


def test_a_process_whose_disk_is_full_leaves_its_tasks_to_the_others(source, reference, tmp_path):
    with Machine(source, tmp_path) as one:
        wait_until(lambda: one.taken("audit"))
        with Machine(source, tmp_path, limit_bytes=65_000) as full:
            status, error = full.end()
            assert status == 1
            assert re.search(r"OSError: .*File too large; what was finished is kept", error)
        assert one.end() == (0, "")
    assert files_of(tmp_path / "out") == reference


def test_bad_inputs_end_all_with_their_names_and_the_same_command_goes_on_once_they_are_mended(source, tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        write(tmp_path / "in" / name, make_image(int(name[2])))
    write(tmp_path / "in/b/bad.jpg", b"\xff\xd8\xff and no more")
    options = {"num_shards": 1, "splits": None}
    with Machine(tmp_path / "in", tmp_path, **options) as one, Machine(tmp_path / "in", tmp_path, **options) as two:
        for status, error in (one.end(), two.end()):
            assert (status, "bad.jpg" in error, "1 input cannot be packed" in error) == (1, True, True), error
    (tmp_path / "in/b/bad.jpg").unlink()
    with Machine(tmp_path / "in", tmp_path, **options) as one, Machine(tmp_path / "in", tmp_path, **options) as two:
        assert [one.end(), two.end()] == [(0, "")] * 2
    assert tfpipe.load_manifest(tmp_path / "out").splits["train"].num_records == 3


def test_a_build_is_not_gone_on_with_in_another_way(source, tmp_path):
    with Machine(source, tmp_path) as one:
        one.stop_with_task("write_shard")
        with pytest.raises(ValueError, match=r"an unfinished build of several machines is here\. Go on with the"):
            tfpipe.build_tfrecords(source, tmp_path / "out", progress=False, **OPTIONS)
    write(tmp_path / "alone/.build/state.sqlite", b"")
    together = {"workers_folder": tmp_path / "r", "progress": False, **OPTIONS}
    with pytest.raises(ValueError, match="an unfinished build is here: finish it without workers_folder"):
        tfpipe.build_tfrecords(source, tmp_path / "alone", **together)
    with pytest.raises(ValueError, match="the workers_folder lies inside"):
        tfpipe.build_tfrecords(source, tmp_path / "r/out", **{**together, "workers_folder": source / "q"})
    write(tmp_path / "file", b"")
    with pytest.raises(NotADirectoryError):
        tfpipe.build_tfrecords(source, tmp_path / "r/out", **{**together, "workers_folder": tmp_path / "file/q"})


# One process's view


def test_one_of_many_leads_and_a_dead_one_is_replaced_by_the_time_of_the_file_system(tmp_path, monkeypatch):
    now = time.time()
    views = [WorkersFolder(tmp_path, 100) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda view: view.lead(0), views)) == [False] * 7 + [True]
    monkeypatch.setattr(time, "time", lambda: 0.0)  # no local clock is looked at
    (leader,) = (view for view in views if view._number)
    other = views[views[0] is leader]
    leader.check_lead()
    assert other.is_planned_by(1)
    os.utime(tmp_path / "planners/000001", (now - 200,) * 2)
    assert not other.is_planned_by(1)
    assert other.lead(1)
    with pytest.raises(Superseded):
        leader.check_lead()
    leader.beat()
    assert not other.is_planned_by(3)
    other.leave()
    assert not views[2].is_planned_by(2), "nobody waits for one that left"


def test_a_task_is_taken_once_and_a_dead_ones_again(tmp_path):
    views = [WorkersFolder(tmp_path, 100) for _ in range(4)]
    tasks = [view.tasks("x") for view in views]
    tasks[0].create()
    for index in range(50):
        tasks[0].publish(f"audit-{index}", AuditTask([(index, "file", "ä", 0)], 7))
    first = tasks[1].take()
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda own: list(iter(own.take, None)), tasks))
    taken[1].append(first)
    assert sorted(int(name.removeprefix("audit-")) for part in taken for name, _ in part) == list(range(50))
    assert all(
        task == AuditTask([(int(name.removeprefix("audit-")), "file", "ä", 0)], 7) for part in taken for name, task in part
    )
    victim = 1
    name = taken[victim][0][0]
    os.utime(tmp_path / "machines" / views[victim].machine, (time.time() - 200,) * 2)
    views[0].give_back_lost(tasks[0])
    assert not tasks[victim].is_held(name)
    assert tasks[0].num_waiting() == len(taken[victim])
    tasks[victim].hand_in(name, Outcome(1, 2, [(0, Audited(reason="late"))]))  # it went on
    assert tasks[0].read(name) == Outcome(1, 2, [(0, Audited(reason="late"))])
    tasks[0].keep(name)
    assert tasks[0].num_waiting() == len(taken[victim]) - 1, "nobody need do it again"


def test_listings_in_any_order_have_one_digest_and_other_files_another(tmp_path):
    items = [Source(f"k{index}", "f", None, "c", "file", f"p{index}", 0, index, 7) for index in range(20)]

    def digest(listed):
        with contextlib.closing(State(tmp_path / secrets.token_hex(8))) as state:
            state.list_inputs(listed)
            state.sort()
            return state.digest()

    assert digest(items) == digest(items[::-1]) == digest(items[7:] + items[:7])
    touched = [*items[:-1], items[-1]._replace(mtime_ns=8)]
    assert len({digest(items), digest(items[:-1]), digest(touched)}) == 3


def test_files_that_one_machine_cannot_read_are_audited_by_the_planner(source, tmp_path):
    """A machine without the inputs' disk hands in `unreadable`; the planner sees them."""
    with Machine(source, tmp_path) as one:
        one.stop_with_task("audit")
        (place,) = tmp_path.glob("q/tasks-*")
        blind = Tasks(place, "blind")
        name, task = blind.take()
        rows = [(row, Audited(reason="unreadable", message="No such file or directory")) for row, *_ in task.images]
        blind.hand_in(name, Outcome(len(rows), 0, rows))
        one.signal(signal.SIGCONT)
        assert one.end() == (0, "")
    assert tfpipe.load_manifest(tmp_path / "out").rejected == {}
