"""Files that are whole or absent: nothing unfinished ever bears a final name."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tfpipe.records.errors import DataError


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that becomes `path`, synced to the disk, when the block ends without an error.

    The temporary name begins with a dot and carries the process id: two writers do not meet, a glob does not catch it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            # Writing to a full disk does not say where; opening says a name that the user never gave.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    sync_directory(path.parent)


def clear_leftovers(path: Path) -> None:
    """Removes what processes that were killed in `written_atomically` left beside a file; the caller holds a lock on it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp").isdecimal():  # the process id
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_atomically(target: Path, *, replace: bool) -> Iterator[Path]:
    """Gives a folder to write into that becomes `target`, synced to the disk, when the block ends without an error.

    Else it vanishes, and what was at `target` is as before. With `replace`, a folder that is there is replaced as a whole;
    without, it must be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(target)
    folder, old = (target.with_name(f".{target.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    try:
        folder.mkdir()
        yield folder
        for path in (*sorted(folder.rglob("*")), folder):
            sync_directory(path)
        if replace and target.exists():
            os.rename(target, old)
        os.rename(folder, target)
        sync_directory(target.parent)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not target.exists():
            os.rename(old, target)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and error.filename2:
            taken = "another process has written there meanwhile; its files are as they were, these are gone"
            raise OSError(error.errno, taken, os.fspath(target)) from error
        if isinstance(error, OSError) and os.fspath(folder) in os.fspath(error.filename or folder):
            # A name that the user never gave, or none where the disk is full.
            raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def _clear_up(target: Path) -> None:
    """Removes what killed processes of this machine left beside a folder, and puts back what one had moved away."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        pid, what = path.name.removeprefix(f".{target.name}.").partition(".")[::2]
        if not pid.isdecimal() or what not in ("tmp", "old") or _is_running(int(pid)):
            continue
        if what == "old" and not target.exists():
            os.rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return pid != os.getpid()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of JSON, in lines for people, whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite, for which JSON has no word.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_atomically(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # a file's name may be no UTF-8


def read_json(path: Path) -> Any:
    """Returns what `write_json` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except ValueError as error:
        raise DataError(f"cannot be understood: {error}", path=path) from None


_LITTER = frozenset(("thumbs.db", "desktop.ini", "icon\r", "__macosx"))  # what file managers and archivers leave behind


def is_hidden(name: str) -> bool:
    """True for the names that no one means as pictures: .DS_Store, Thumbs.db and the like."""
    return name.startswith(".") or name.lower() in _LITTER


def sync_directory(path: Path) -> None:
    """Makes the names in a directory, or the bytes of a file, survive a power cut: renaming alone does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
