"""examples/: each script runs as its first lines say, and leaves what it promises."""

import ast
import csv
import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CHECKOUT
from transfer_fixtures import CLASS_NAMES, COUNTS, colours

pytestmark = pytest.mark.tf

__all__ = ["colours"]  # a fixture

EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))
SMALL = {  # options that make each small
    "own_keras_model": "--side=16 --epochs=3",
    "search_with_keras_tuner": "--backbone=lenet --weights=none --image_size=16 --epochs=2 --trials=2",
}


def start(path, *arguments):
    done = subprocess.run([sys.executable, path, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_example_is_run_here():
    assert [path.stem for path in EXAMPLES] == sorted(SMALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_its_first_lines_show_how_to_start_it(path):
    """Their words are options that the script has."""
    text = path.read_text("utf-8")
    command = re.search(
        rf"^    python examples/{path.name} (.*)$", ast.get_docstring(ast.parse(text), clean=False), re.MULTILINE
    )
    options = {word.split("=")[0] for word in shlex.split(f"{command[1]} {SMALL[path.stem]}") if word.startswith("--")}
    assert options <= set(re.findall(r'add_argument\("(--\w+)"', text))


def test_a_model_of_your_own(colours, tmp_path):
    printed = start(CHECKOUT / "examples/own_keras_model.py", colours, tmp_path, *SMALL["own_keras_model"].split())
    assert json.loads((tmp_path / "export" / "parity.json").read_text())
    with (tmp_path / "eval" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(COUNTS["test"])
    assert {row["predicted"] for row in rows} <= set(CLASS_NAMES)
    assert "accuracy" in printed


def search(colours, folder):
    pytest.importorskip("keras_tuner", reason="KerasTuner is not installed")
    script, options = CHECKOUT / "examples/search_with_keras_tuner.py", SMALL["search_with_keras_tuner"].split()
    return start(script, colours, folder, *options).splitlines()[-1].split()[-1]


def test_a_search(colours, tmp_path):
    best = search(colours, tmp_path)
    runs = sorted(tmp_path.glob("run-*"))
    assert len(runs) == 2
    values = [json.loads((run / "run.json").read_text())["recipe"]["learning_rate"] for run in runs]
    assert len(set(values)) == 2
    assert best in map(str, runs)
    assert len(list((tmp_path / "features").iterdir())) == 2  # of train and val, for all trials


@pytest.mark.exhaustive(only=True)
def test_a_search_goes_on_where_it_stopped(colours, tmp_path):
    best = search(colours, tmp_path)
    times = {run: (run / "model.keras").stat().st_mtime_ns for run in tmp_path.glob("run-*")}
    assert search(colours, tmp_path) == best
    assert {run: (run / "model.keras").stat().st_mtime_ns for run in tmp_path.glob("run-*")} == times
