"""Files that are whole or absent: nothing unfinished ever bears a final name."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tfpipe.records import locking
from tfpipe.records.errors import DataError


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that becomes `path`, synced to the disk, when the block ends without an error.

    The temporary name begins with a dot and has digits drawn anew: two writers do not meet, a glob does not catch it.
    """
    temporary = path.with_name(f".{path.name}.{_draw_digits()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            # Writing to a full disk does not say where; opening says a name that the user never gave.
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        raise
    sync_directory(path.parent)


def _draw_digits() -> str:
    # No process id: in a container, that of every program is 1.
    return f"{secrets.randbelow(10**10):010d}"


def clear_leftovers(path: Path) -> None:
    """Removes what processes that were killed in `written_atomically` left beside a file; the caller holds a lock on it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp").isdecimal():
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_atomically(target: Path, *, replace: bool) -> Iterator[Path]:
    """Gives a folder to write into that becomes `target`, synced to the disk, when the block ends without an error.

    Else it vanishes, and what was at `target` is as before. With `replace`, a folder that is there is replaced as a whole;
    without, it must be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_up(target)
    with contextlib.ExitStack() as held:
        folder = _make_held(target, held)
        old = folder.with_suffix(".old")
        try:
            yield folder
            for path in (*sorted(folder.rglob("*")), folder):
                sync_directory(path)
            if replace and target.exists():
                _hold(target, held)  # the lock goes with it to its other name
                os.rename(target, old)
            os.rename(folder, target)
            if old.exists():
                os.rename(old, folder)  # a name that is never put back, even where half of it is gone
            sync_directory(target.parent)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if old.exists():
                os.rename(old, folder if target.exists() else target)
                shutil.rmtree(folder, ignore_errors=True)
            _raise_for_user(error, folder, target)
            raise
        shutil.rmtree(folder, ignore_errors=True)  # the one that was there before


def _raise_for_user(error: BaseException, folder: Path, target: Path) -> None:
    """Raises an error with the name that the user gave, where the temporary one is in it."""
    if not isinstance(error, OSError):
        return
    busy = errno.ENOTEMPTY, errno.EEXIST, errno.EWOULDBLOCK, errno.ENOENT
    if error.errno in busy and error.filename in (os.fspath(folder), os.fspath(target)):
        taken = "another process has written there meanwhile; its files are as they were, these are gone"
        raise OSError(errno.EEXIST, taken, os.fspath(target)) from error
    if os.fspath(folder) in os.fspath(error.filename or folder):  # none where the disk is full
        raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error


def _make_held(target: Path, held: contextlib.ExitStack) -> Path:
    """Makes a folder beside `target`; while it is locked, no other process takes it for that of a killed one."""
    while True:
        folder = target.with_name(f".{target.name}.{_draw_digits()}.tmp")
        try:
            folder.mkdir()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # between the two lines another did
            _hold(folder, held)
            return folder


def _hold(folder: Path, held: contextlib.ExitStack) -> None:
    try:
        held.callback(os.close, locking.lock_at_once(folder))
    except (FileNotFoundError, BlockingIOError):
        raise
    except OSError as error:  # a file system without locks: there, nothing is ever cleared up
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def clear_up(target: Path) -> None:
    """Removes what killed processes left beside a folder, and puts back what one had moved away."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        digits, what = path.name.removeprefix(f".{target.name}.").partition(".")[::2]
        if not digits.isdecimal() or what not in ("tmp", "old"):
            continue
        try:
            descriptor = locking.lock_at_once(path)
        except OSError:  # somebody is writing it, or has just ended
            continue
        if what == "old" and not target.exists():
            os.rename(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Checks that files can be written into a folder, which may have to be made first; writes nothing.

    Raises:
        NotADirectoryError: it, or what it would be made in, is a file.
        PermissionError: nothing may be written there.
    """
    folder = Path(path).absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"{there}: a file; a folder is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", os.fspath(there))


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
