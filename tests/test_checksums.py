"""SHA256SUMS: what is missing, added, changed, or no file is named."""

import os
import subprocess

import pytest
from conftest import write

from tfpipe.records import checksums
from tfpipe.records.errors import DataError


@pytest.fixture
def listed(tmp_path):
    for name in ("a.bin", "below/b é.bin"):
        write(tmp_path / "folder" / name, name.encode())
    checksums.write(tmp_path / "folder", tmp_path / "folder" / "SHA256SUMS")
    return tmp_path / "folder"


def test_sha256sum_reads_the_list(listed):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=listed, check=True, capture_output=True)
    assert checksums.check_folder(listed, listed / "SHA256SUMS")
    checksums.check_file(listed / "a.bin")


def test_a_folder_is_found_in_the_list_of_the_one_above(listed):
    assert checksums.check_folder(listed / "below", listed / "SHA256SUMS")
    assert not checksums.check_folder(listed / "below", listed / "other")
    write(listed / "below" / "b é.bin", b"")
    with pytest.raises(DataError, match=r"b é.bin is another file"):
        checksums.check_folder(listed / "below", listed / "SHA256SUMS")


def add_a_pipe(folder):
    (folder / "a.bin").unlink()
    os.mkfifo(folder / "a.bin")


def add_a_link_to_a_folder(folder):
    (folder / "assets").symlink_to(folder / "below")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add_a_link_to_a_folder, "folder/assets: not a regular file"),
        (lambda folder: write(folder / "a.bin", b"b"), "a.bin is another file: damaged or replaced"),
        (lambda folder: write(folder / "c", b""), "c is not in the list"),
        (lambda folder: (folder / "below" / "b é.bin").unlink(), "below/b é.bin is missing"),
        (add_a_pipe, "not a regular file"),
        (lambda folder: write(folder / "SHA256SUMS", b"\xff"), "no list of hashes"),
    ],
)
def test_another_folder_is_refused(listed, spoil, message):
    spoil(listed)
    with pytest.raises(DataError, match=message):
        checksums.check_folder(listed, listed / "SHA256SUMS")


def test_what_may_be_more_is_left_alone_and_nothing_else(listed):
    os.mkfifo(listed / ".pipe")
    write(listed / "c", b"")
    with pytest.raises(DataError, match=r"c is not in the list; .*--trust"):
        checksums.check_folder(listed, listed / "SHA256SUMS", may_be_more=lambda name: name.startswith("."))
    assert checksums.check_folder(listed, listed / "SHA256SUMS", may_be_more=lambda _: True)
    (listed / "a.bin").unlink()
    with pytest.raises(DataError, match=r"a.bin is missing: damaged or replaced"):
        checksums.check_folder(listed, listed / "SHA256SUMS", may_be_more=lambda _: True)
