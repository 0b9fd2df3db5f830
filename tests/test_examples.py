"""The scripts of examples/, run as a user does: killed, on damaged data, again, and twice for equal bits."""

import os
import re
import subprocess
import sys
import time

import keras
import pytest
from conftest import CHECKOUT
from documentation_fixtures import blocks
from export_fixtures import asked_here
from transfer_fixtures import COUNTS, build_colours

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.common.files import read_json
from tfpipe.exporting.wrapping import wrap

pytestmark = pytest.mark.tf

__all__ = ["asked_here"]  # a fixture

EXAMPLES = CHECKOUT / "examples"
sys.path.append(str(EXAMPLES))

import custom_model  # noqa: E402


def start(script, *arguments):
    """A process of a script; what it prints and logs are its stdout."""
    command = [sys.executable, EXAMPLES / script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(script, *arguments):
    """(exit status, what it printed) of a script."""
    process = start(script, *arguments)
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return build_colours(tmp_path_factory.mktemp("colours"), COUNTS)


@pytest.mark.filterwarnings(r"ignore:.*\(\) is deprecated:DeprecationWarning:keras_tuner")
def test_a_search_survives_a_kill_and_looks_at_test_once(colours, tmp_path, monkeypatch, capsys):
    tune_recipe = pytest.importorskip("tune_recipe", reason="keras-tuner is not installed")
    output = tmp_path / "search"
    arguments = [f"--data={colours}", f"--output={output}", "--trials=2", "--epochs=40"]
    trials = output / "trials"
    process = start("tune_recipe.py", *arguments)
    log = trials / "trial_1" / "run" / "log.jsonl"
    while not log.exists() or log.read_text().count('"event": "epoch"') < 2:  # of which the first is saved
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    assert "trial 0: " in process.communicate()[0]
    assert not (log.parent / "summary.json").exists()
    epoch = next(line for line in log.read_text().splitlines() if '"event": "epoch"' in line)  # with its seconds
    trained = (trials / "trial_0" / "run" / "summary.json").stat().st_mtime_ns

    (shard,) = list(colours.glob("*-test.*-00000-of-*"))
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    monkeypatch.setattr(sys, "argv", ["tune_recipe.py", *arguments])
    with pytest.raises(DataError, match=shard.name):  # nothing of test is read before the end
        tune_recipe.main()
    shard.write_bytes(whole)
    assert re.findall(r"^trial (\d): ", capsys.readouterr().out, re.MULTILINE) == ["1"]
    assert epoch in log.read_text().splitlines()  # the killed run went on
    assert (trials / "trial_0" / "run" / "summary.json").stat().st_mtime_ns == trained

    tune_recipe.main()
    text = capsys.readouterr().out
    assert "trial 0: " not in text
    assert "trial 1: " not in text
    found = {path.parent: read_json(path) for path in trials.glob("*/run/summary.json")}
    best = min(found, key=lambda path: (-found[path]["val_accuracy"], path))
    assert len(found) == 2
    assert f"{best}\n" in text
    receipt = read_json(output / "evaluation" / "receipt.json")
    assert (receipt["split"], receipt["records_seen"]) == ("test", sum(COUNTS["test"]))
    assert receipt["model_sha256"] == found[best]["model_sha256"]

    with pytest.raises(SystemExit, match="1"):
        tune_recipe.main()
    assert "the test split has been evaluated" in capsys.readouterr().err


def test_a_model_of_ones_own_is_trained_exported_and_used(colours, tmp_path, asked_here, monkeypatch, capsys):
    photos = sorted((colours.parent / "photos" / "test").glob("*/0.*"))
    nothing = tmp_path / "nothing.jpg"
    nothing.touch()
    options = [f"--data={colours}", f"--output={tmp_path / 'mine'}", "--side=16", "--epochs=2"]
    monkeypatch.setattr(sys, "argv", ["custom_model.py", *options, *map(str, photos), str(nothing)])
    custom_model.main()
    text = capsys.readouterr().out
    assert "network and export agree on 16 images of val" in text
    receipt = read_json(tmp_path / "mine" / "evaluation" / "receipt.json")
    assert (receipt["split"], receipt["records_seen"]) == ("test", sum(COUNTS["test"]))
    lines = text.splitlines()[-4:]
    names = tfpipe.load_manifest(colours).class_names
    for photo, line in zip(photos, lines, strict=False):
        assert line.startswith(f"{photo}: ")
        assert any(line.startswith(f"{photo}: {name} ") for name in names)
    assert lines[3].startswith(f"{nothing}: empty")


def test_a_wrong_preprocessing_is_noticed(colours):
    keras.utils.set_random_seed(0)
    network = custom_model.make_network(16, 3)
    for name, is_right in {custom_model.PREPROCESSING: True, "unit": False}.items():
        model = tfpipe.Model(wrap(network, class_names=tfpipe.load_manifest(colours).class_names, preprocessing=name))
        if is_right:
            custom_model.check_preprocessing(network, model, colours, 16)
        else:
            with pytest.raises(SystemExit, match="differ by"):
                custom_model.check_preprocessing(network, model, colours, 16)


def test_the_page_shows_parts_of_the_scripts():
    page = "docs/how-to/examples.md"
    shown = [block.text for block in blocks(page, (CHECKOUT / page).read_text("utf-8")) if block.language == "python"]
    sources = [re.sub(r"^ +", "", path.read_text("utf-8"), flags=re.MULTILINE) for path in EXAMPLES.glob("*.py")]
    assert shown
    assert [text for text in shown if not any(text in source for source in sources)] == []


@pytest.mark.exhaustive(only=True)
@pytest.mark.parametrize("script", ["custom_model.py", "tune_recipe.py"])
def test_without_arguments_an_example_works_and_gives_equal_bits_again(script, tmp_path):
    receipts, texts = [], []
    for name in ("one", "two"):
        status, text = run(script, f"--output={tmp_path / name}")
        assert status == 0, text
        if script == "custom_model.py":
            assert re.search(r"^comparing with the model on \d+ files", text, re.MULTILINE)  # without absl's "INFO:tfpipe:"
        receipts.append(read_json(tmp_path / name / "evaluation" / "receipt.json"))
        texts.append([line for line in text.splitlines() if line.startswith(("trial ", "accuracy "))])
    assert receipts[0]["model_sha256"] == receipts[1]["model_sha256"]
    assert receipts[0]["records_seen"] == 269
    assert [line.replace("/two/", "/one/") for line in texts[1]] == texts[0]
