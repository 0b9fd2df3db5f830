"""One writer per folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_SECONDS = 3.0  # the workers of a killed run hold its lock until they notice, within milliseconds


@contextlib.contextmanager
def locked(directory: Path, writer: str) -> Iterator[int]:
    """Holds an advisory lock on a folder; yields the descriptor that holds it.

    The folder itself is locked, so that no lock file stays behind. It is made if need be, and then removed again if it is
    left empty. Waits a few seconds for the lock.

    Args:
        directory: the folder.
        writer: what the other process is, if there is one: "build", "training".

    Raises:
        BlockingIOError: another process holds it.
    """
    while True:
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # removed again by whoever made it
            continue
        try:
            _lock(descriptor, directory, writer)
            # Whoever had it may have removed the folder, and another may have made it anew: then this is not its lock.
            if _is_same(descriptor, directory):
                try:
                    yield descriptor
                finally:
                    if made and not any(directory.iterdir()):
                        directory.rmdir()
                return
        finally:
            os.close(descriptor)


def lock_at_once(directory: Path) -> int:
    """Returns a descriptor that holds the lock on a folder until it is closed, or raises: it does not wait.

    Raises:
        BlockingIOError: another process, or another thread, holds it.
        FileNotFoundError: there is no such folder, or no longer.
        OSError: the file system has no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same(descriptor, directory):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(directory))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(directory)) from None
        raise
    return descriptor


def _is_same(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, directory: Path, writer: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BlockingIOError(f"{directory}: another {writer} is writing here; wait for it, or stop it") from None
            time.sleep(0.05)
