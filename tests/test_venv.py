"""What demo.sh and test.sh begin with: an environment that is made once, and installed into when what it needs has changed."""

import shutil
import subprocess

import pytest
from conftest import CHECKOUT, write

PIP = b"""#!/bin/sh
echo "$@" >>"$0.log"
case "$*" in *install*) exec test ! -e offline;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout at a path with a space, whose environment's Python only notes what it is called with."""
    root = tmp_path / "a checkout"
    for name in ("tools/venv.sh", "setup.cfg", "pyproject.toml", "tfpipe/__init__.py"):
        write(root / name, (CHECKOUT / name).read_bytes())
    write(root / ".venv/bin/python", PIP).chmod(0o755)
    return root


def source(root, extra="", **options):
    words = ["bash", "-euc", f'source "$0/tools/venv.sh" "{extra}"', str(root)]
    return subprocess.run(words, capture_output=True, text=True, cwd=root.parent, **options)


def installations(root):
    return [line.split()[-1] for line in (root / ".venv/bin/python.log").read_text().splitlines() if "install" in line]


def test_what_is_installed_is_not_installed_again(checkout):
    assert "Installing tfpipe into .venv" in source(checkout).stdout
    assert source(checkout).stdout == ""
    source(checkout, "test")
    source(checkout, "test")
    source(checkout)
    assert installations(checkout) == [".", ".[test]"]


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml", "tfpipe/__init__.py"])
def test_it_is_installed_again_when_the_package_has_changed(checkout, name):
    source(checkout)
    with open(checkout / name, "a") as file:
        file.write("# changed\n")
    source(checkout)
    assert installations(checkout) == [".", "."]


def test_a_checkout_that_has_moved_is_installed_again(checkout):
    source(checkout)
    moved = checkout.rename(checkout.with_name("moved"))
    source(moved)
    assert installations(moved) == [".", "."]


def test_without_a_network_it_reports_it_and_tries_again_the_next_time(checkout):
    write(checkout / "offline", b"")
    for _ in range(2):
        done = source(checkout)
        assert done.returncode == 1
        assert "pip could not install tfpipe, for the reason above. It needs the network" in done.stderr
    assert installations(checkout) == [".", "."]


def test_without_a_python_it_reports_what_is_needed(checkout, tmp_path):
    shutil.rmtree(checkout / ".venv")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(shutil.which(name))
    done = source(checkout, env={"PATH": str(programs)})
    assert (done.returncode, done.stderr) == (
        1,
        "Python 3.11 or newer is needed (found: none): install it, or put it first in PATH\n",
    )
    old = write(programs / "python3", b'#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\n')
    old.chmod(0o755)
    done = source(checkout, env={"PATH": str(programs)})
    assert done.returncode == 1
    assert f"(found: {old}, Python 3.9.2)" in done.stderr
