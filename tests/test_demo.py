"""The demo: each step once, and again where what it was made from is no longer the same; what it says one can do next."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import CHECKOUT

import tfpipe
from tfpipe.common.files import read_json
from tools import demo


@pytest.fixture
def step(tmp_path):
    """Runs a step that copies a file; returns whether it was done."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("1")

    def run():
        calls = []

        def copy():
            calls.append(1)
            shutil.copytree(tmp_path / "in", tmp_path / "out", dirs_exist_ok=True)

        demo.Steps(tmp_path / "record.json").do("Copying", copy, needs=[tmp_path / "in"], makes=[tmp_path / "out"])
        return bool(calls)

    return run


def test_a_step_is_done_once(step, capsys):
    assert [step(), step(), step()] == [True, False, False]
    assert capsys.readouterr().out.splitlines() == ["1. Copying", *["1. Copying", "   already done"] * 2]


@pytest.mark.parametrize("name", ["in/a", "in/b", "out/a", "out/b"])
def test_a_step_is_done_again_when_a_file_has_changed(step, tmp_path, name):
    step()
    (tmp_path / name).write_text("2")
    assert [step(), step()] == [True, False]


def test_a_step_is_done_again_when_what_it_made_is_gone_or_has_moved(step, tmp_path):
    step()
    (tmp_path / "out" / "a").rename(tmp_path / "out" / "c")
    assert step()
    shutil.rmtree(tmp_path / "out")
    assert step()
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_step_is_done_again_by_other_code(step, tmp_path, monkeypatch):
    step()
    package = shutil.copytree(CHECKOUT / "tfpipe", tmp_path / "tfpipe", symlinks=True)
    monkeypatch.setattr(tfpipe, "__file__", str(package / "__init__.py"))
    assert not step()  # the same code in another place
    with open(package / "records" / "cores.py", "a") as file:
        file.write("\n")
    assert [step(), step()] == [True, False]


def test_a_step_that_failed_is_not_done(tmp_path):
    def fail():
        (tmp_path / "out").write_text("half")
        raise OSError("disk full")

    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            demo.Steps(tmp_path / "record.json").do("Failing", fail, makes=[tmp_path / "out"])


@pytest.mark.tf
def test_the_demo_does_only_what_is_to_be_done(tmp_path, capsys, monkeypatch):
    output, recipe = tmp_path / "my demo", demo.RECIPE | {"epochs": 1}

    def steps_done():
        lines = capsys.readouterr().out.splitlines()
        followed = zip(lines, [*lines[1:], ""], strict=True)
        return [line[0] for line, after in followed if line[:2] in {f"{n}." for n in range(1, 9)} and "already" not in after]

    demo.run_demo(output, num_digits=80, recipe=recipe)
    assert steps_done() == list("12345678")
    trained = read_json(output / "run" / "summary.json")["model_sha256"]
    assert read_json(output / "evaluation" / "receipt.json")["model_sha256"] == trained
    assert read_json(output / "export" / "preprocessing.json")["sha256"] == trained
    (output / "predictions.csv").unlink()
    demo.run_demo(output, num_digits=80, recipe=recipe)
    assert steps_done() == ["8"]

    run = shutil.copytree(output / "run", tmp_path / "run")
    shutil.rmtree(output / "run")
    calls = []

    def note(name):
        calls.append(name)
        (output / "export" / "new").touch()  # which is what predict() is given
        return SimpleNamespace(counts={})

    with monkeypatch.context() as patch:  # what is missing is made again, and all that was made from it; here only noted
        for name in ("evaluate", "export", "predict"):
            patch.setattr(tfpipe, name, lambda *_, name=name, **__: note(name))
        patch.setattr(tfpipe, "train", lambda *_, **__: (run / "new").touch() or shutil.copytree(run, output / "run"))
        demo.run_demo(output, num_digits=80, recipe=recipe)
    assert steps_done() == list("5678")
    assert calls == ["evaluate", "export", "predict"]

    tool = [sys.executable, "-X", "importtime", str(CHECKOUT / "tools" / "demo.py"), f"--output={output}"]
    done = subprocess.run(tool, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("   already done\n") == 8
    assert "tfpipe.records" in done.stderr
    assert "tensorflow" not in done.stderr
    enter, *commands = done.stdout.splitlines()[-4:]
    assert "\n".join(commands) == demo.OWN_PHOTOS
    shell = subprocess.run(
        ["bash", "-c", f"{enter} && pwd && command -v python3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shell.stdout.split("\n")[0] == str(CHECKOUT)


def test_the_commands_for_own_photos_are_those_of_the_readme():
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    lines = demo.OWN_PHOTOS.splitlines()
    assert [line.split()[:2] for line in lines] == [["tfpipe", "build"], ["tfpipe", "train"], ["tfpipe", "evaluate"]]
    for line in lines:
        assert f"\n{line}" in readme
