"""The wheel: built, installed into a fresh environment outside the checkout, and its commands run there."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import CHECKOUT, make_image, write

pytestmark = pytest.mark.wheel

# What the first tower needs: that it works without TensorFlow and numpy is part of what is tested.
LIGHT = ["absl-py", "google-crc32c", "msgspec", "pillow", "protobuf", "tqdm"]


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: what an earlier build left in the checkout must not get into this one
    for name in ("tfpipe", "tools"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    # No isolation: the test extra brings the build backend, so that nothing is fetched here.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (path,) = folder.glob("tfpipe-*.whl")
    return path


def test_the_wheel_holds_the_library_and_the_commands(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    library = {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("tfpipe/**/*.py")}
    commands = {f"tfpipe/{path.relative_to(CHECKOUT).as_posix()}" for path in CHECKOUT.glob("tools/**/*.py")}
    templates = {path.relative_to(CHECKOUT).as_posix() for path in CHECKOUT.glob("tfpipe/report/templates/*")}
    assert len(templates) > 5
    assert names == {*library, *commands, *templates, "tfpipe/py.typed"}


def test_installed_commands_build_and_verify_without_tensorflow(wheel, tmp_path):
    environment = tmp_path / "fresh"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *LIGHT, cwd=tmp_path)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", wheel, cwd=tmp_path)
    for index in range(6):
        write(tmp_path / "photos" / "ab"[index % 2] / f"{index}.jpg", make_image(index))
    build = environment / "bin" / "tfpipe-build-tfrecords"
    inspect = environment / "bin" / "tfpipe-inspect-tfrecords"
    assert "--label_pattern" in subprocess.run([build, "--help"], capture_output=True, text=True, cwd=tmp_path).stdout
    assert "6 records" in run(build, "--input=photos", "--output=shards", "--workers=2", cwd=tmp_path)
    run(inspect, "verify", "shards", cwd=tmp_path)
    run(inspect, "extract", "shards", "back", cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "photos").rglob("*.jpg")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").rglob("*.jpg")} == before
    assert "tensorflow" not in run(python, "-m", "pip", "list", cwd=tmp_path).lower()
