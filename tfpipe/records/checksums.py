"""SHA256SUMS: the files of a folder with their hashes, which `sha256sum --check` reads.

    write(folder, folder / "SHA256SUMS")
    check_folder(folder, folder / "SHA256SUMS")    # raises, or returns whether there is such a list

They find damage and what was replaced by itself, not malice: whoever can change a folder can list it anew.
"""

from __future__ import annotations

from pathlib import Path

from tfpipe.records import files
from tfpipe.records.errors import DataError

FILE_NAME = "SHA256SUMS"
_MAX_BYTES = 1 << 20


def list_files(folder: Path) -> list[tuple[str, int, str]]:
    """Returns path below the folder, bytes and SHA-256 of each file.

    Raises:
        DataError: something in the folder is neither a regular file nor a folder.
    """
    return [(name, (folder / name).stat().st_size, files.sha256_of(folder / name)) for name in names_in(folder)]


def names_in(folder: Path) -> list[str]:
    """Returns path below the folder of all that is no folder; a link to one, whose files TensorFlow would read, is none."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in paths]


def write(folder: Path, path: Path) -> list[tuple[str, int, str]]:
    """Writes the list of a folder's files, which is not there yet, and returns what `list_files` found."""
    listed = list_files(folder)
    path.write_text("".join(f"{sha256}  {name}\n" for name, _, sha256 in listed), "utf-8")
    return listed


def read(path: Path) -> dict[str, str]:
    """Returns SHA-256 by path.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no list of hashes.
    """
    with files.open_regular(path) as file:
        data = file.read(_MAX_BYTES)
    try:
        return {name: sha256 for sha256, name in (line.split("  ", 1) for line in data.decode().splitlines())}
    except ValueError as error:
        raise DataError(f"no list of hashes: {error}", path=path) from None


def check_file(path: Path) -> None:
    """Compares a file with the list in its folder, if there is one that names it.

    Raises:
        DataError: it is another file than the one that was listed.
    """
    expected = _read_if_there(path.parent / FILE_NAME).get(path.name)
    if expected is not None and files.sha256_of(path) != expected:
        raise DataError(f"not the file that {FILE_NAME} beside it lists: damaged or replaced", path=path)


def check_folder(folder: Path, *lists: Path) -> bool:
    """Compares a folder, file by file, with the lists that lie in it or in a folder above, and name what is in it.

    Returns:
        Whether there is any.

    Raises:
        DataError: a file is missing, another one or too many, or what is there is no file.
    """
    found: dict[str, str] | None = None
    for path in lists:
        prefix = "" if folder in path.parents else f"{folder.relative_to(path.parent).as_posix()}/"
        expected = {name.removeprefix(prefix): value for name, value in _read_if_there(path).items() if name.startswith(prefix)}
        if expected:
            found = found or {name: sha256 for name, _, sha256 in list_files(folder)}
            _compare(folder, {name: sha256 for name, sha256 in found.items() if folder / name != path}, expected, path)
    return found is not None


def _compare(folder: Path, found: dict[str, str], expected: dict[str, str], path: Path) -> None:
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        name = wrong[0]
        what = "missing" if name not in found else "not in the list" if name not in expected else "another file"
        more = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        raise DataError(f"not what is listed in {path}: {name} is {what}{more}: damaged or replaced", path=folder)


def _read_if_there(path: Path) -> dict[str, str]:
    try:
        return read(path)
    except FileNotFoundError:
        return {}
