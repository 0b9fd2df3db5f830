"""What an editable install is to other programs: type checkers, and a Python that is started beside the checkout."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import CHECKOUT


@pytest.fixture
def beside_a_clone(tmp_path):
    """A folder in which a clone of the checkout, called tfpipe, lies: for Python, a namespace package of that name."""
    (tmp_path / "tfpipe").mkdir()
    for name in ("tfpipe", "tools"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, tmp_path / "tfpipe" / name, symlinks=True, ignore=ignore)
    return tmp_path


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_python_beside_a_clone_finds_the_package(beside_a_clone):
    done = run("-c", "import tfpipe, tfpipe.tools.train; print(tfpipe.__version__, tfpipe.__file__)", cwd=beside_a_clone)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.1.0", str(CHECKOUT / "tfpipe" / "__init__.py")]


@pytest.mark.parametrize("place", ["elsewhere", "beside_a_clone"])
def test_mypy_sees_the_types(place, tmp_path, tmp_path_factory, request):
    folder = tmp_path if place == "elsewhere" else request.getfixturevalue(place)
    script = folder / "script.py"
    script.write_text(
        "import tfpipe\nmanifest: tfpipe.Manifest = tfpipe.load_manifest('shards/')\nwrong: int = manifest.name\n"
    )
    cache = f"--cache-dir={tmp_path_factory.getbasetemp() / 'mypy'}"  # of both places: Python's own types are read once
    done = run("-m", "mypy", "--no-implicit-reexport", cache, script.name, cwd=folder)
    found, summary = done.stdout.splitlines()
    assert found.startswith("script.py:3: error: Incompatible types in assignment (expression has type")
    assert summary == "Found 1 error in 1 file (checked 1 source file)"
