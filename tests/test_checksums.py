"""SHA256SUMS: what is missing, added, changed, or no file is named."""

import hashlib
import os
import subprocess

import pytest
from conftest import write

from tfpipe.common.errors import DataError
from tfpipe.records import checksums


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


def put_a_list(folder, data):
    write(folder / "preprocessing.json", b"")
    write(folder / "SHA256SUMS", data)


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
        (lambda folder: put_a_list(folder, b"\xff"), "SHA256SUMS: not a list of hashes"),
        (lambda folder: put_a_list(folder, b"\n" * (1 << 20) + b"0  a.bin"), "SHA256SUMS: more than 1,048,576 bytes"),
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


@pytest.mark.parametrize("form", ["{}  a.bin\n", "\n{} *a.bin\r\n\n"])
def test_lists_of_other_programs_are_read(listed, form):
    sha256 = hashlib.sha256(b"a.bin").hexdigest()
    for digits in (sha256, sha256.upper()):
        write(listed / "SHA256SUMS", form.format(digits).encode())
        assert checksums.read(listed / "SHA256SUMS") == {"a.bin": sha256}
        checksums.check_file(listed / "a.bin")
    write(listed / "SHA256SUMS", form.format("0" * 64).encode())
    with pytest.raises(DataError, match="not the file that SHA256SUMS beside it lists"):
        checksums.check_file(listed / "a.bin")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("see the website", "not a list of hashes: 'see the website' is not"),
        ("00  other", "a.bin: not in SHA256SUMS of the export"),
        ("", "a.bin: not in SHA256SUMS of the export"),
    ],
)
def test_a_list_of_other_files_counts_in_an_export_only(listed, text, message):
    write(listed / "SHA256SUMS", text.encode())
    checksums.check_file(listed / "a.bin")
    assert not checksums.check_folder(listed / "below", listed / "SHA256SUMS")
    write(listed / "preprocessing.json", b"")
    with pytest.raises(DataError, match=message):
        checksums.check_file(listed / "a.bin")
