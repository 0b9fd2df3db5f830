"""Engines of other packages: Ray in a cluster of this machine, Beam with its direct runner."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, make_image, write

import tfpipe

OPTIONS = ["--layout=folders", "--splits=train=0.7,test=0.3", "--num_shards=20", "--check=decode"]
BEAM_PYTHON = os.environ.get("TFPIPE_BEAM_PYTHON") or sys.executable  # Beam wants another protobuf than the newest

# A cluster of two cores; a process that builds on it; and its first worker killed in the middle of
# a task.
RAY = """
import os, pathlib, signal, subprocess, sys, time
import ray
address = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False).address_info["address"]
build = subprocess.Popen([sys.executable, *sys.argv[2:], f"--engine_address={address}"])
def is_busy(process):
    try:
        return process.read_bytes().startswith(b"ray::_run")
    except OSError:
        return False
while not list(pathlib.Path(sys.argv[1]).glob("images-*")) and build.poll() is None:
    time.sleep(0.005)
while build.poll() is None:
    if busy := [path.parent.name for path in pathlib.Path("/proc").glob("[0-9]*/cmdline") if is_busy(path)]:
        os.kill(int(busy[0]), signal.SIGKILL)
        print("killed")
        break
sys.exit(build.wait())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for index in range(300):
        write(root / f"class {index % 3}" / f"{index}.jpg", make_image(index))
    return root


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "out"
    splits = {"train": 0.7, "test": 0.3}
    tfpipe.build_tfrecords(
        source, output, layout="folders", splits=splits, num_shards=20, check="decode", workers=2, progress=False
    )
    return files_of(output)


def files_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


def command(source, output, *more):
    return [CHECKOUT / "tools/build_tfrecords.py", f"--input={source}", f"--output={output}", *OPTIONS, *more]


@pytest.mark.skipif(sys.platform != "linux", reason="finds a worker in /proc")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
def test_g2_ray_builds_the_same_bytes_when_a_worker_is_killed(source, reference, tmp_path):
    script = [sys.executable, "-c", RAY, tmp_path / "out", *command(source, tmp_path / "out", "--engine=ray")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    assert files_of(tmp_path / "out") == reference


def test_g2_beam_builds_the_same_bytes_in_two_processes(source, reference, tmp_path):
    if subprocess.run([BEAM_PYTHON, "-c", "import apache_beam"], capture_output=True).returncode:
        pytest.skip("apache_beam is not installed; TFPIPE_BEAM_PYTHON may name an interpreter that has it")
    runner = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    whole = [BEAM_PYTHON, *command(source, tmp_path / "out", "--engine=beam", "--", *runner)]
    environment = {**os.environ, "PATH": f"{Path(BEAM_PYTHON).parent}:{os.environ['PATH']}", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == reference


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "spark"}, "engine must be one of"),
        ({"engine_address": "auto"}, "engine_address is for engine=ray"),
        ({"engine": "ray", "engine_options": ["--x"]}, "engine_options is for engine=beam"),
        ({"engine": "ray", "workers_folder": "q"}, "workers_folder needs no engine"),
        ({"engine": "ray", "workers": 3}, "workers is for engine='processes'"),
        ({"lease_seconds": 5.0}, "lease_seconds is for workers_folder"),
    ],
)
def test_arguments_of_engines_that_do_not_go_together_are_refused(source, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tfpipe.build_tfrecords(source, tmp_path / "out", layout="folders", progress=False, **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("beam", "apache_beam")])
def test_an_engine_that_is_not_installed_names_its_extra(source, tmp_path, monkeypatch, engine, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'tfpipe\[{engine}\]'"):
        tfpipe.build_tfrecords(source, tmp_path / "out", layout="folders", progress=False, engine=engine)
    assert not (tmp_path / "out").exists()
