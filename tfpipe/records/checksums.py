"""SHA256SUMS: the files of a folder with their hashes, which `sha256sum --check` reads.

    write(folder, folder / "SHA256SUMS")
    check_folder(folder, folder / "SHA256SUMS")    # raises, or returns whether there is such a list

They find damage and single replaced files, not malice: whoever can change a folder can list it
anew.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from tfpipe.common import files
from tfpipe.common.errors import DataError
from tfpipe.common.text import TRUST

FILE_NAME = "SHA256SUMS"
SPECIFICATION_NAME = "preprocessing.json"  # which every export has
_MAX_BYTES = 1 << 20
_LINE = re.compile(r"(?P<sha256>[0-9a-fA-F]+) [ *](?P<name>.+)")  # *: as sha256sum --binary writes it


def list_files(folder: Path) -> list[tuple[str, int, str]]:
    """Returns relative path, bytes and SHA-256 of each file; raises DataError for a device."""
    return [(name, (folder / name).stat().st_size, files.sha256_of(folder / name)) for name in names_in(folder)]


def names_in(folder: Path) -> list[str]:
    """Returns the relative paths of all files and links, as TensorFlow would read them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in paths]


def write(folder: Path, path: Path) -> list[tuple[str, int, str]]:
    """Writes the list of a folder's files to a new file, and returns it, see `list_files`."""
    listed = list_files(folder)
    path.write_text("".join(f"{sha256}  {name}\n" for name, _, sha256 in listed), "utf-8")
    return listed


def read(path: Path) -> dict[str, str]:
    """Returns SHA-256 by path; raises FileNotFoundError, or DataError for other content."""
    data = files.read_bytes(path, _MAX_BYTES)
    try:
        lines = [line for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"not a list of hashes: {error}", path=path) from None
    found = {}
    for line in lines:
        parts = _LINE.fullmatch(line)
        if parts is None:
            raise DataError(f"not a list of hashes: {line!r:.200} is not a hash, two spaces and a name", path=path)
        found[parts["name"]] = parts["sha256"].lower()
    return found


def check_file(path: Path) -> None:
    """Compares a file with the list in its folder, if there is one; raises DataError if it differs.

    A list that does not name the file counts only in an export.
    """
    beside = path.parent / FILE_NAME
    expected = _read_if_there(beside).get(path.name)
    if expected is None and beside.exists() and _is_export(path.parent):
        raise DataError(f"not in {FILE_NAME} of the export that it lies in: move it to another folder", path=path)
    if expected is not None and files.sha256_of(path) != expected:
        raise DataError(f"not the file that {FILE_NAME} beside it lists: damaged or replaced", path=path)


def check_folder(folder: Path, *lists: Path, may_be_more: Callable[[str], bool] = lambda _: False) -> bool:
    """Compares a folder with lists of hashes in or above it; returns whether any names its files.

    Lists that are missing, or name nothing in the folder, are ignored; `may_be_more` is True for
    relative paths that no list has to name. Raises DataError if a file is missing, differs or is
    not listed.
    """
    read_lists = {path: _read_below(folder, path) for path in lists}
    listed = set[str]().union(*read_lists.values())
    names = [name for name in names_in(folder) if name in listed or not may_be_more(name)] if listed else []
    found = {name: files.sha256_of(folder / name) for name in names}
    for path, expected in read_lists.items():
        if expected:
            more = [name for name in names if name not in expected and folder / name != path and not may_be_more(name)]
            _compare(folder, found, expected, more, path)
    return bool(listed)


def _read_below(folder: Path, path: Path) -> dict[str, str]:
    prefix = "" if folder in path.parents else f"{folder.relative_to(path.parent).as_posix()}/"
    return {name.removeprefix(prefix): value for name, value in _read_if_there(path).items() if name.startswith(prefix)}


def _compare(folder: Path, found: dict[str, str], expected: dict[str, str], more: list[str], path: Path) -> None:
    changed = sorted(name for name, sha256 in expected.items() if found.get(name) != sha256)
    if wrong := changed or more:
        name = wrong[0]
        what = "not in the list" if not changed else "another file" if name in found else "missing"
        others = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        advice = ": damaged or replaced" if changed else f"; {TRUST}"
        raise DataError(f"not what is listed in {path}: {name} is {what}{others}{advice}", path=folder)


def _read_if_there(path: Path) -> dict[str, str]:
    try:
        return read(path)
    except FileNotFoundError:
        return {}
    except DataError:
        if _is_export(path.parent):
            raise
        return {}  # somebody's own, of other files


def _is_export(folder: Path) -> bool:
    return (folder / SPECIFICATION_NAME).exists()


def append_entry(data: bytes, entry: bytes) -> bytes:
    """Returns a protobuf file with its SHA-256 appended as one more entry.

    Args:
        data: the file.
        entry: a field of its message, with %b for the 64 digits.
    """
    return data + entry % hashlib.sha256(data).hexdigest().encode()


def has_valid_entry(data: bytes, entry: bytes) -> bool:
    """Returns whether a file is unchanged since `append_entry`."""
    length = len(entry) - len(b"%b") + 64
    return data[-length:] == entry % hashlib.sha256(memoryview(data)[:-length]).hexdigest().encode()
