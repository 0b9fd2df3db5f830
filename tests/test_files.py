import errno
import json
import os
from pathlib import Path

import pytest

from tfpipe.records import files


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


def test_what_killed_processes_left_of_a_file_is_cleared_and_nothing_else(tmp_path):
    kept = ["[x].csv", ".[x].csv.mine.tmp", ".[x].csv.other.7.tmp", ".x.csv.7.tmp", ".[x].csv.7.old"]
    for name in (*kept, ".[x].csv.4711.tmp", ".[x].csv.7.tmp"):
        (tmp_path / name).touch()
    files.clear_leftovers(tmp_path / "[x].csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
