"""Data sets that somebody else made: each is read as it was, or refused with the name of a file, and nothing else is opened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import data_set_attacks as attacks
import pytest
from conftest import CHECKOUT, make_image, write

import tfpipe

CHILD = Path(__file__).with_name("data_set_child.py")
# Where a pipeline runs, TensorFlow's own error brings the message.
REFUSALS = {"DataError", "Finding", "ValueError", "FileNotFoundError", "InvalidArgumentError"}


def outcomes(root, kind):
    """The lines of a child by attack and way."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, CHILD, root, kind], capture_output=True, text=True, timeout=600, env=environment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = lines[-1] if lines else {}
    assert done.returncode == 0, (done.returncode, last.get("attack"), last.get("way"), done.stderr[-2000:])
    found = {}
    for line in lines:
        found.setdefault(line["attack"], {})[line["way"]] = line
    assert list(found) == ["none", *attacks.MANIFEST, *attacks.FILES]
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    for place, name in enumerate(["=1+1", "<b>&amp;"]):  # for a spreadsheet and for a browser
        for index in range(3):
            write(root / "in" / "train" / name / f"{index}.jpg", make_image(10 * place + index, (16, 8)))
        write(root / "in" / "test" / name / "0.jpg", make_image(10 * place + 9, (16, 8)))
    options = {"name": "pets", "layout": "folders", "num_shards": 2, "workers": 1, "progress": False}
    tfpipe.build_tfrecords(root / "in", root / "base", **options)
    return root


@pytest.fixture(scope="module")
def light(root):
    return outcomes(root, "light")


@pytest.fixture(scope="module")
def heavy(root):
    return outcomes(root, "tensorflow")


# Another image is another data set, which `extract` writes as it is; `dataset` compares labels,
# `verify` keys.
OTHER_RECORDS = {"record: key 'other'", "record: encoded b'no image'"}


def is_compared(name, way):
    """Whether what was read must be what was there: `info` and `diff` tell what manifest and catalog hold."""
    of_bytes = way == "reader" and name.startswith("record")
    return way not in ("info", "diff") and name not in OTHER_RECORDS and not of_bytes


def check(found):
    """Returns what is wrong with what was done with attacks, in words."""
    wrong, clean = [], found["none"]
    for name, ways in found.items():
        for way, line in ways.items():
            where = f"{name}, {way}: {line.get('error')} {line.get('message', '')[:300]}"
            if "error" in line and (line["error"] not in REFUSALS or "/attacked" not in line["message"]):
                wrong.append(where)
            if "error" not in line and line["read"] != clean[way]["read"] and is_compared(name, way):
                wrong.append(f"{name}, {way}: other records were read")
            if name in attacks.MANIFEST and "error" not in line:
                wrong.append(f"{name}, {way}: taken")
            wrong += [f"{name}, {way}: opened {path}" for path in line["opened"] if not may_be_opened(name, path)]
    return wrong


def may_be_opened(name, path):
    if not {"base", "attacked", "out"} & set(Path(path).parts):
        return False
    return name not in attacks.MANIFEST or path.endswith("/attacked/manifest.json")


def test_attacks_without_tensorflow(light):
    assert check(light) == []


@pytest.mark.tf
def test_attacks_on_pipelines(heavy):
    assert check(heavy) == []


@pytest.mark.tf
@pytest.mark.exhaustive(only=True)
def test_attacks_on_pipelines_of_every_record(root):
    assert check(outcomes(root, "every record")) == []


@pytest.mark.tf
def test_verify_finds_what_others_refuse(light, heavy):
    missed = [
        f"{name}, {way}: {line['message']}"
        for name, line in light.items()
        if "error" not in line["verify"]
        for way, line in {**line, **heavy[name]}.items()
        if "error" in line
    ]
    assert missed == []
    assert "error" not in light["a link to the same bytes elsewhere as shard"]["verify"]


def test_the_checks_can_fail():
    good = {"opened": [], "read": 1}
    bad = {"opened": ["/outside/secret"], "read": 2}
    raised = {"opened": [], "error": "KeyError", "message": "'x'"}
    found = {"none": {"verify": good}, "a": {"verify": bad}, "b": {"verify": raised}, "deep": {"verify": good}}
    assert [text.split(": ")[1].split()[0] for text in check(found)] == ["other", "opened", "KeyError", "taken"]
