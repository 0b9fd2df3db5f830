"""What the commands share: help, wrong words, errors, Ctrl-C, progress."""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHECKOUT, make_image, write

from tfpipe import commands
from tfpipe.records import manifest

TOOLS = sorted(path.stem for path in (CHECKOUT / "tools").glob("*.py") if path.stem != "__init__")
WAYS = {
    "file": lambda tool: [sys.executable, f"tools/{tool}.py"],
    "module": lambda tool: [sys.executable, "-m", f"tools.{tool}"],
    "installed": lambda tool: [sys.executable, "-c", f"from tfpipe.tools.{tool} import command; command()"],
}


def run(*command, **options):
    return subprocess.run([*map(str, command)], cwd=CHECKOUT, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("way", WAYS)
def test_help_shows_every_flag_with_its_default(tool, way):
    done = run(*WAYS[way](tool), "--help")
    assert done.returncode == 0
    assert "absl.app" not in done.stdout
    source = (CHECKOUT / f"tools/{tool}.py").read_text("utf-8")
    flags = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
    assert flags or "DEFINE" not in source
    shown = dict(re.findall(r"^  --(?:\[no\])?(\w+): (.*?)(?=\n  --|\n\nTry|\Z)", done.stdout, re.DOTALL | re.MULTILINE))
    assert {*flags, "version"} <= set(shown)
    assert [flag for flag, text in shown.items() if not re.search(r"\(default: |\bDefault:|\bNeeded\b", text)] == []
    assert done.stdout.startswith(source.split('"""')[1].strip().splitlines()[0])


def test_wrong_words_exit_with_2_and_say_what_is_right():
    for arguments, message in [
        ([], "--input (or --unlabelled) and --output are needed"),
        (["photos/"], "arguments without a flag: photos/"),
        (["--input=", "--output=x"], "--input (or --unlabelled) and --output are needed"),
        (["--input=a", "--output=b", "--splits=train"], "--splits must be NAME=VALUE,NAME=VALUE"),
        (["--input=a", "--output=b", "--splits=train=x"], "--splits: 'x' is not a number"),
        (["--input=a", "--output=b", "--splits=train=1/0"], "--splits: '1/0' is not a number"),
        (["--input=a", "--output=b", "--num_shards=train=1.5"], "--num_shards: '1.5' is not a whole number"),
    ]:
        done = run(sys.executable, "tools/build_tfrecords.py", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"error: {message}" in done.stderr


def test_an_unknown_flag_is_an_error():
    done = run(sys.executable, "tools/build_tfrecords.py", "--inptu=x")
    assert done.returncode == 2
    assert "Did you mean: input" in done.stderr


def test_a_flag_that_is_given_twice_is_an_error(tmp_path, photos):
    output = tmp_path / "out"
    given = [f"--input=train={photos}", f"--input=test={photos}", f"--output={output}"]
    done = run(sys.executable, "tools/build_tfrecords.py", *given)
    assert done.returncode == 2
    assert f"flag --input=test={photos}: already defined as train={photos}; a flag is given once" in done.stderr
    assert not output.exists()


def test_a_flag_with_a_wrong_value_is_an_error():
    for flag in ("--workers=0", "--layout=tree", "--seed=x"):
        done = run(sys.executable, "tools/build_tfrecords.py", flag)
        assert done.returncode == 2
        assert f"error: flag {flag.split('=')[0]}=" in done.stderr
        assert "Traceback" not in done.stderr


def test_errors_are_one_line_without_a_traceback(tmp_path):
    done = run(sys.executable, "tools/build_tfrecords.py", f"--input={tmp_path}/nowhere", f"--output={tmp_path}/out")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path}/nowhere: no such input\n")


def test_a_read_only_output_is_an_error(photos, tmp_path):
    done = run(sys.executable, "tools/build_tfrecords.py", f"--input={photos}", "--output=/proc/nothing/out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "/proc/nothing" in done.stderr


def test_build_prints_a_summary(photos, tmp_path):
    arguments = [f"--input={photos}", f"--output={tmp_path}/out", "--splits=train=0.8,test=0.2", "--num_shards=train=2,test=1"]
    done = run(sys.executable, "tools/build_tfrecords.py", *arguments, "--name=pets")
    assert done.returncode == 0, done.stderr
    content = manifest.load(tmp_path / "out")
    assert content.root_hash in done.stdout
    assert "小 猫" in done.stdout
    assert "layout: folders (guessed" in done.stderr
    assert re.search(r"write: 25 of 25 records, [\d.]+ MB/s", done.stderr)
    assert [len(part.shards) for part in content.splits.values()] == [2, 1]


def test_a_terminal_that_cannot_show_a_name_is_no_reason_to_fail(photos, tmp_path):
    command = [
        sys.executable,
        "tools/build_tfrecords.py",
        f"--input={photos}",
        f"--output={tmp_path}/out",
        "--splits=train=2/3,test=1/3",
    ]
    done = run(*command, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert r"\u5c0f \u732b" in done.stdout


def test_named_inputs_and_paths_with_an_equals_sign(tmp_path):
    write(tmp_path / "a=b" / "x" / "1.jpg", make_image(1))
    write(tmp_path / "c" / "x" / "2.jpg", make_image(2))
    done = run(sys.executable, "tools/build_tfrecords.py", f"--input={tmp_path}/a=b", f"--output={tmp_path}/one")
    assert done.returncode == 0, done.stderr
    both = f"--input=train={tmp_path}/a=b,test={tmp_path}/c"
    done = run(sys.executable, "tools/build_tfrecords.py", both, f"--output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert list(manifest.load(tmp_path / "two").splits) == ["train", "test"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--output=~/e", "--output=$HOME/e"),
        ("--input=train=~/a,test=~/b", "--input=train=$HOME/a,test=$HOME/b"),
        ("~/in/*.jpg", "$HOME/in/*.jpg"),
        ("--output=~", "--output=$HOME"),
    ],
)
def test_a_home_that_the_shell_did_not_put_in_is_refused(word, meant, capsys):
    with pytest.raises(SystemExit) as ended:
        commands._parse_flags({}, ["tool", word])
    assert ended.value.code == 2
    assert f'error: {word}: the shell leaves ~ as it is here; write "{meant}"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("batch_size must be 1 or more (got 0)", "--batch_size must be 1 or more (got 0)"),
        ("input must be a path", "--input must be a path"),
        ("give them rows without a value (on_error=report)", "give them rows without a value (--on_error=report)"),
        ("/a/batch_size/1.jpg: split=x of on_error.csv", "/a/batch_size/1.jpg: --split=x of on_error.csv"),
        ("layer_name must be given, and a==b", "layer_name must be given, and a==b"),
        ("--batch_size and the input", "--batch_size and the input"),
    ],
)
def test_errors_name_flags(words, shown):
    code = "import sys; from tools.predict import flags, commands; flags.FLAGS(['x']); print(commands.in_flags(sys.argv[1]))"
    assert run(sys.executable, "-c", code, words).stdout == f"{shown}\n"


def test_errors_of_the_system_are_words(tmp_path):
    found = [commands._message(error) for error in (PermissionError(13, "Permission denied", "a.csv"), OSError(28, "No space"))]
    assert found == ["a.csv: permission denied", "no space"]
    with pytest.raises(OSError, match="Errno") as raised:
        os.rename(tmp_path / "a", tmp_path / "b")
    assert commands._message(raised.value) == f"{tmp_path}/a -> {tmp_path}/b: no such file or directory"


def test_other_tildes_are_left_alone():
    words = ["/a/~/b", "./~", "a~/b", "a=b~/c", "~old.jpg"]
    commands._check_homes(["--flagfile=~/flags"])  # absl knows what is meant
    assert commands._parse_flags({}, ["tool", *words]) == ["tool", *words]


def test_closed_streams_are_empty_ones():
    code = "import sys; from tfpipe import commands; sys.stderr = None; commands._open_closed_streams()"
    code += "; print(sys.stdin.buffer.read(), file=sys.stderr); print(1)"
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} -c '{code}' <&- >&-"], cwd=CHECKOUT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"b''\n")


@pytest.mark.parametrize("value", ["train", "=x", "train=", "train=1,train=2", "train=1,,test=2"])
def test_pairs_that_are_none(value):
    with pytest.raises(commands.UsageError, match="--splits must be NAME=VALUE"):
        commands.parse_pairs("splits", value)


def workers_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


@pytest.fixture
def long_build(tmp_path):
    """A build of fifty shards that stands still, parent and workers, when the first are there."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc here to find the workers in")
    for index in range(3000):
        write(tmp_path / f"in/a/{index}.jpg", make_image(index % 50, quality=50 + index % 50))
    command = [
        sys.executable,
        "tools/build_tfrecords.py",
        f"--input={tmp_path}/in",
        f"--output={tmp_path}/out",
        "--num_shards=50",
    ]
    for _ in range(5):
        process = subprocess.Popen(
            command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while process.poll() is None and not list(tmp_path.glob("out/images-*")):
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        if process.poll() is None and len(list(tmp_path.glob("out/images-*"))) < 40:
            break
        stop_for_good(process)  # this machine had something else to do until the build was nearly done
        shutil.rmtree(tmp_path / "out")
    else:
        pytest.fail("five builds were done before they could be stopped")
    while not all(map(is_stopped, [process.pid, *workers_of(process)])):  # one that waits for the disk stops after it
        time.sleep(0.005)
    yield process, command
    stop_for_good(process)


def stop_for_good(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_build_and_the_next_run_goes_on(long_build, tmp_path, number, status):
    process, command = long_build
    for sent in (number, signal.SIGCONT):
        os.killpg(process.pid, sent)  # as a terminal or systemd does: to parent and workers
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "run the same command again to continue" in said
    assert "Traceback" not in said
    shards = {path: path.stat().st_ino for path in tmp_path.glob("out/images-*")}
    assert 0 < len(shards) < 50
    assert not (tmp_path / "out/manifest.json").exists()
    assert run(*command).returncode == 0
    assert {path: path.stat().st_ino for path in shards} == shards
    assert len(list(tmp_path.glob("out/images-*"))) == 50


def test_ctrl_c_does_not_wait_for_a_worker_that_does_not_answer(long_build):
    process, _ = long_build
    assert workers_of(process)  # which stay as they are
    for number in (signal.SIGINT, signal.SIGCONT):
        os.kill(process.pid, number)
    assert process.wait(timeout=30) == 130


def test_on_a_terminal_there_is_a_bar(photos, tmp_path):
    parent, child = pty.openpty()
    command = [sys.executable, "tools/build_tfrecords.py", f"--input={photos}", f"--output={tmp_path}/out"]
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=child, stdout=subprocess.DEVNULL)
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not chunk:
            break
        shown += chunk
    os.close(parent)
    assert process.wait() == 0
    assert b"audit: 100%" in shown
    assert b"write: 100%" in shown
    assert b"MB/s" in shown
