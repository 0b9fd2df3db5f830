import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import CHECKOUT, write

from tfpipe.common import files
from tfpipe.common.errors import DataError


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "x"

    def fail():
        with files.written_atomically(target) as file:
            file.write(b"half")
            file.flush()
            assert not target.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    with files.written_atomically(target) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt):
        fail_over(target)
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [target]


def fail_over(target):
    with files.written_atomically(target) as file:
        file.write(b"other")
        raise KeyboardInterrupt


def test_errors_name_the_file_and_never_the_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.written_atomically(tmp_path / "no/x"):
        pass
    assert caught.value.filename == str(tmp_path / "no/x")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught, files.written_atomically(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(FileNotFoundError) as caught, files.written_atomically(tmp_path / "x"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")  # an error of the block itself stays as it is


@pytest.mark.parametrize("name", [".DS_Store", "._1.jpg", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Icon\r", "__MACOSX"])
def test_hidden_names(name):
    assert files.is_hidden(name)
    assert not files.is_hidden("x" + name)


def test_json_is_whole_or_absent_and_has_a_word_for_every_name(tmp_path):
    content = {"小 猫": [1, 0.1, None], "no UTF-8": "\udcff"}
    files.write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8", "surrogateescape")) == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "x.json").read_bytes().decode("utf-8", "surrogateescape")) == content
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_another_process_made_meanwhile_is_left_as_it_is(tmp_path):
    target = tmp_path / "export"

    def be_too_late():
        with files.folder_written_atomically(target, replace=False) as folder:
            (folder / "mine").touch()
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(OSError, match="another process has written there meanwhile") as caught:
        be_too_late()
    assert caught.value.filename == str(target)
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [Path("export"), Path("export/theirs")]


def test_two_writers_of_a_folder_do_not_meet(tmp_path):
    # Nor do two that have one process id: threads, or the first processes of two containers.
    target = tmp_path / "export"

    def write_both():
        with files.folder_written_atomically(target, replace=False) as first:
            (first / "first").touch()
            with files.folder_written_atomically(target, replace=False) as second:
                (second / "second").touch()
            assert (first / "first").exists()

    with pytest.raises(OSError, match="another process has written there meanwhile"):
        write_both()
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [Path("export"), Path("export/second")]


def test_a_folder_that_is_being_replaced_is_not_put_back(tmp_path, monkeypatch):
    # Between moving the old one away and moving the new one there, another process clears up.
    target = tmp_path / "export"
    (target / "old").mkdir(parents=True)
    rename = os.rename

    def rename_slowly(source, to):
        rename(source, to)
        if str(to).endswith(".old"):
            files.clear_up(target)
            assert not target.exists()

    monkeypatch.setattr(os, "rename", rename_slowly)
    with files.folder_written_atomically(target, replace=True) as folder:
        (folder / "new").touch()
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*"))] == [Path("export"), Path("export/new")]


def test_what_was_replaced_never_comes_back_even_if_it_is_deleted_by_halves(tmp_path, monkeypatch):
    target = tmp_path / "export"
    (target / "old").mkdir(parents=True)

    def killed(*_, **__):
        raise SystemExit

    def replace():
        with files.folder_written_atomically(target, replace=True) as folder:
            (folder / "new").touch()

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            replace()
    (target / "new").unlink()
    target.rmdir()  # by the user
    files.clear_up(target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("of a library")])
def test_an_error_reports_what_and_the_name_that_was_given(tmp_path, error):
    def fail():
        with files.written_atomically(tmp_path / "x"):
            raise error

    with pytest.raises(OSError, match=f"{error.strerror or error}: ") as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "x")
    folder = tmp_path / ("x" * 250)  # too long with what is put before and behind
    with pytest.raises(OSError, match=r"(?i)name too long") as caught, files.folder_written_atomically(folder, replace=False):
        pass
    assert caught.value.filename == str(folder)


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    with files.written_atomically(tmp_path / "x") as first, files.written_atomically(tmp_path / "x") as second:
        first.write(b"a" * 10)
        second.write(b"b" * 5)
    assert (tmp_path / "x").read_bytes() == b"a" * 10
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_killed_processes_left_of_a_folder_is_cleared_or_put_back(tmp_path):
    target = tmp_path / "export"
    for name in (".export.4711.old", ".export.4712.tmp", ".export.mine.tmp", ".exports.4711.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with files.folder_written_atomically(target, replace=True) as folder:
        assert (target / "x").exists()
        (folder / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".export.mine.tmp", ".exports.4711.tmp", "export"]
    assert [path.name for path in target.iterdir()] == ["new"]


def test_what_killed_processes_left_of_a_file_is_cleared_and_nothing_else(tmp_path):
    kept = ["[x].csv", ".[x].csv.mine.tmp", ".[x].csv.other.7.tmp", ".x.csv.7.tmp", ".[x].csv.7.tmp.2", ".[x].csv.7.tmp~"]
    for name in (*kept, ".[x].csv.4711.tmp", ".[x].csv.7.tmp", ".[x].csv.7.tmp.keras"):
        (tmp_path / name).touch()
    files.clear_up(tmp_path / "[x].csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_killed_processes_left_in_a_folder_is_cleared_and_nothing_else(tmp_path):
    kept = ["x", ".x.tmp", ".x.mine.tmp", "x.7.tmp", ".x.7.old"]
    for name in (*kept, ".x.7.tmp", ".x.y.8.tmp", ".model.keras.9.tmp.keras"):
        (tmp_path / name).touch()
    with files.written_atomically(tmp_path / "z"):  # of a process that is at work
        files.clear_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "z"])


@pytest.mark.parametrize("writer", ["written_atomically", "path_written_atomically"])
def test_what_a_killed_writer_left_the_next_one_removes(tmp_path, writer):
    code = (
        "import os, pathlib, signal, sys; from tfpipe.common import files\n"
        f"with files.{writer}(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], cwd=CHECKOUT, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with files.written_atomically(tmp_path / "x") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_library_can_write_to_a_name_of_its_own_ending(tmp_path):
    with files.path_written_atomically(tmp_path / "x.keras", suffix=".keras") as first:
        with files.path_written_atomically(tmp_path / "x.keras", suffix=".keras") as second:
            first.write_bytes(b"first")
            second.write_bytes(b"second")
            assert {first.suffix, second.suffix} == {".keras"}
        assert (tmp_path / "x.keras").read_bytes() == b"second"
    assert (tmp_path / "x.keras").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x.keras"]


def test_a_temporary_folder_is_private_and_those_of_killed_processes_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = ["tfpipe-page-mine", "tfpipe-parity-0000000001"]
    for name in (*kept, "tfpipe-page-0000000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").touch()
    with files.temporary_folder("page") as first, files.temporary_folder("page") as second:
        assert first.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name, *kept}
        (first / "photo.jpg").touch()
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


@pytest.mark.parametrize("writer", ["temporary_beside", "temporary_folder", "folder_written_atomically"])
def test_a_signal_between_two_lines_leaves_nothing(tmp_path, monkeypatch, writer):
    """Between making and locking, above all."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files.locking, "lock_at_once", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    arguments = {"temporary_folder": ["x"]}.get(writer, [tmp_path / "x"])
    options = {"folder_written_atomically": {"replace": False}}.get(writer, {})
    with pytest.raises(KeyboardInterrupt), getattr(files, writer)(*arguments, **options):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_locks_files_are_written_and_none_is_cleared(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".x.7.tmp").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.written_atomically(tmp_path / "x") as file:
        file.write(b"whole")
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.7.tmp", "x"]


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    for read in (files.read_json, files.sha256_of):
        with pytest.raises(DataError, match=r"manifest\.json: not a regular file"):
            read(tmp_path / "manifest.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "recursion"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' occurs twice"),
        ("9" * 5000, "a number of 5,000 digits"),
        ("[NaN]", "NaN is not a finite number"),
        ("[-Infinity]", "-Infinity is not a finite number"),
        ("[1e999]", "1e999 is not a finite number"),
        ("{} {}", "Extra data"),
        ("", "Expecting value"),
    ],
)
def test_what_is_not_our_json(tmp_path, text, message):
    path = write(tmp_path / "x.json", text.encode())
    with pytest.raises(DataError, match=rf"x\.json: cannot be understood: .*{message}"):
        files.read_json(path)


def test_json_reads_back(tmp_path):
    content = {"a": [1, -(2**63), 2**64 - 1, 0.5, None, True], "b": {"name \udcff": "\0"}}
    files.write_json(tmp_path / "x.json", content)
    assert files.read_json(tmp_path / "x.json") == content


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = write(tmp_path / "x", b"12345")
    assert files.read_bytes(path, 5) == files.read_bytes(path) == b"12345"
    with pytest.raises(DataError, match="x: more than 4 bytes"):
        files.read_bytes(path, 4)


def test_a_file_that_the_kernel_makes_up_is_refused(tmp_path):
    """Those of /proc have no size, whatever they hold, and some wait for more; others without one are empty."""
    (tmp_path / "link").symlink_to("/proc/self/status")
    with pytest.raises(DataError, match="link: not a regular file"):
        files.read_bytes(tmp_path / "link")
    assert files.read_bytes(write(tmp_path / "empty", b"")) == b""
