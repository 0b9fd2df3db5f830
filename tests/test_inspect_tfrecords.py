import json
import os
import re
import subprocess
import sys

import pytest
from absl import flags
from conftest import CHECKOUT, cut_in_scan, make_image, write
from inspection_fixtures import build_tiny, copied
from PIL import Image

import tfpipe
from tfpipe.records import manifest as manifests
from tools import inspect_tfrecords


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tool(run_tool):
    return lambda *arguments: run_tool("inspect_tfrecords", *arguments, check=False)


def shard(directory):
    return directory / manifests.load(directory).splits["train"].shards[0].file


def test_info(tool, made):
    done = tool("info", made)
    assert done.returncode == 0
    assert done.stdout.startswith("tiny: 3 records in 1 split, 1 class\n")


def test_verify(tool, made, tmp_path):
    done = tool("verify", made)
    assert done.returncode == 0
    assert "every byte as it was written: 3 records, 1 shard" in done.stdout
    assert manifests.load(made).root_hash in done.stdout
    out = copied(made, tmp_path / "out")
    os.truncate(shard(out), 1200)
    (out / "stray").touch()
    done = tool("verify", out, "--limit=2")
    assert done.returncode == 1
    assert "note: stray: not part of the data set" in done.stdout
    assert "truncated: 1200 bytes" in done.stdout
    assert "more (--limit)" in done.stdout
    assert "NOT as it was written: 3 findings, 1 intact record" in done.stdout


def test_verify_decode(tool, made, tmp_path):
    done = tool("verify", made, "--decode")
    assert done.returncode == 0
    assert re.search(r"root hash \w+\n.*out: 3 images decoded, none damaged, [\d,]+ images/s\n$", done.stdout)
    for index in range(3):
        data = make_image(index, (64, 48))
        write(tmp_path / "in/cat" / f"{index}.jpg", cut_in_scan(data) if index == 1 else data)
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "cut", layout="folders", progress=False, workers=1)
    assert tool("verify", tmp_path / "cut").returncode == 0
    done = tool("verify", tmp_path / "cut", "--decode", "--workers=2")
    assert done.returncode == 1
    assert re.search(
        r"images-train.*: at byte \d+: .*Corrupt JPEG data: premature end.*\[source file 'cat/1.jpg'\]\n", done.stdout
    )
    assert re.search(r"every byte as it was written: .*\n.*: 3 images decoded, 1 damaged, [\d,]+ images/s\n$", done.stdout)
    assert tool("info", made, "--decode").returncode == 2


def test_extract(tool, made, tmp_path):
    done = tool("extract", made, tmp_path / "back")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/back: 3 records extracted, every hash as recorded\n")
    (tmp_path / "back" / "小 猫" / "猫 0.jpg").write_bytes(b"mine")
    done = tool("extract", made, tmp_path / "back")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "猫 0.jpg: there is another file of this name" in done.stderr


def test_show(tool, made, tmp_path):
    done = tool("show", made, tmp_path / "sheet.png", "--per_class=2", "--tile=64")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/sheet.png: written\n")
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    done = tool("show", made, tmp_path / "photo.jpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert "photo.jpg: something else than a PNG file is there; it was not overwritten" in done.stderr


def test_show_without_a_name(made, tmp_path):
    command = [sys.executable, CHECKOUT / "tools/inspect_tfrecords.py", "show", made]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "contact_sheet.png: written\n"
    assert os.listdir(tmp_path) == ["contact_sheet.png"]
    done = subprocess.run([*command[:-1], "."], cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the contact sheet must be written outside the data set's folder" in done.stderr


@pytest.mark.tf
def test_show_augmentations(tool, made, tmp_path):
    done = tool("show", made, tmp_path / "sheet.png", "--augment=strong", "--images=2", "--tile=40")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/sheet.png: written\n")
    two = Image.open(tmp_path / "sheet.png")
    assert two.format == "PNG"
    assert two.width > 11 * 40
    tool("show", made, tmp_path / "sheet.png", "--augment=strong", "--images=3", "--tile=40")
    assert Image.open(tmp_path / "sheet.png").height - two.height > 40
    done = tool("show", made, tmp_path / "sheet.png", "--augment=wild")
    assert (done.returncode, done.stdout) == (1, "")
    assert "augment must be an Augmentation or one of none, light, standard, strong (got 'wild')" in done.stderr


@pytest.mark.tf
def test_show_augmentations_without_a_name(made, tmp_path):
    command = [sys.executable, CHECKOUT / "tools/inspect_tfrecords.py", "show", made, "--augment=light", "--tile=32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "augmentation_sheet.png: written\n"
    assert os.listdir(tmp_path) == ["augmentation_sheet.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images=2"], "--images is not a flag of show without --augment"),
        (["--augment=light", "--per_class=2"], "--per_class is not a flag of show --augment"),
        (["--augment=light", "--max_classes=2"], "--max_classes is not a flag of show --augment"),
    ],
)
def test_a_flag_of_the_other_sheet_is_refused(tool, made, tmp_path, given, message):
    done = tool("show", made, tmp_path / "sheet.png", *given)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\nSee --help.\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["info", "a"], "split"),
        (["verify", "a"], "tile"),
        (["extract", "a", "b"], "limit"),
        (["show", "a"], "workers"),
        (["diff", "a", "b"], "seed"),
        (["salvage", "a", "b"], "per_class"),
        (["verify", "a"], "augment"),
        (["extract", "a", "b"], "images"),
    ],
)
def test_a_flag_of_another_command_is_refused(tool, words, flag):
    done = tool(*words, f"--{flag}=64")
    assert (done.returncode, done.stderr) == (2, f"error: --{flag} is not a flag of {words[0]}\nSee --help.\n")


def test_each_flag_belongs_to_the_commands_that_its_help_names():
    defined = flags.FLAGS.flags_by_module_dict()["tools.inspect_tfrecords"]
    for flag in defined:
        named = flag.help.partition(":")[0].split(", ")
        assert named == [name for name, command in inspect_tfrecords.SUBCOMMANDS.items() if flag.name in command.flags]
    assert {flag.name for flag in defined} == set(inspect_tfrecords._FLAGS)


@pytest.mark.parametrize("name", ["a b", "", "it's", 'say "a"', "back\\slash", "line\nbreak", "\u2028", "\x7f", "\udc80"])
def test_names_that_are_not_one_word_are_quoted(name):
    quoted = inspect_tfrecords._quoted(name)
    assert json.loads(quoted) == name
    assert len(f"{quoted} ".splitlines()) == 1
    assert inspect_tfrecords._quoted("猫/a,b:c=1.jpg") == "猫/a,b:c=1.jpg"


def test_diff(tool, made, tmp_path):
    source = made.parent / "in"
    done = tool("diff", made, source)
    assert done.returncode == 0
    assert done.stdout == "no difference (contents only: a folder has no labels and splits to compare)\n"
    assert tool("diff", made, made).stdout == "no difference\n"
    done = tool("diff", made, f"train={source}")
    assert done.returncode == 1
    assert 'removed "小 猫/猫 0.jpg"\n' in done.stdout
    assert 'added "train/小 猫/猫 0.jpg"\n' in done.stdout
    assert "3 removed, 3 added" in done.stdout
    assert tool("diff", made, f"train={source},train={source}").returncode == 2
    assert tool("diff", made, tmp_path / "nix").returncode == 1


def test_salvage(tool, made, tmp_path):
    out = copied(made, tmp_path / "out")
    content = bytearray(shard(out).read_bytes())
    content[200] ^= 1
    shard(out).write_bytes(content)
    done = tool("salvage", shard(made), tmp_path / "whole")
    assert done.returncode == 0
    assert "3 of 3 records intact" in done.stdout
    done = tool("salvage", shard(out), tmp_path / "rescued")
    assert done.returncode == 1
    assert "lost: 小 猫/猫" in done.stdout
    assert "2 of 3 records intact" in done.stdout
    assert "1 damaged place" in done.stdout
    done = tool("salvage", shard(out), tmp_path / "rescued")
    assert done.returncode == 1
    assert "exists already" in done.stderr


@pytest.mark.parametrize("words", [[], ["nix"], ["verify"], ["diff", "a"], ["info", "a", "b"]])
def test_wrong_words(tool, words):
    done = tool(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    if words in ([], ["nix"]):
        assert "salvage SHARD OUTPUT" in done.stderr


def test_no_data_set(tool, tmp_path):
    for name in ("info", "verify"):
        done = tool(name, tmp_path)
        assert done.returncode == 1
        assert "no manifest here: not a tfpipe data set" in done.stderr


def test_help_shows_flags_and_commands(tool):
    done = tool("--help")
    for words in ("salvage SHARD OUTPUT", "--per_class", "(default: '8')"):
        assert words in done.stdout


def test_as_a_module(made):
    command = [sys.executable, "-m", "tools.inspect_tfrecords", "verify", str(made)]
    assert subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=False).returncode == 0


def test_no_tensorflow_and_no_numpy_is_loaded():
    code = "import sys, tools.inspect_tfrecords; sys.exit(sorted({'tensorflow', 'numpy', 'PIL'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_contact_sheet_needs_no_tensorflow(made, tmp_path):
    code = """
import sys
from absl import flags
from tools import inspect_tfrecords
inspect_tfrecords.main(flags.FLAGS(["inspect_tfrecords", "show", *sys.argv[1:]])[1:])
print(*sorted({"tensorflow", "PIL"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(made), str(tmp_path / "sheet.png")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "PIL"
