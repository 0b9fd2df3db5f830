"""One writer per folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what a file system says that has none

_PATIENCE_SECONDS = 3.0  # the workers of a killed run hold its lock until they notice, within milliseconds

_log = logging.getLogger("tfpipe")


@contextlib.contextmanager
def locked(directory: Path, writer: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[int]:
    """Holds an advisory lock on a folder; yields the descriptor that holds it.

    The folder itself is locked, so that no lock file stays behind. It is made if need be, and then removed again, with the
    folders above it that were made, if it is left empty.

    Args:
        directory: the folder.
        writer: what the other process is, if there is one: "build", "training".
        patience_seconds: how long to wait for the lock. A wait that is longer than by default is told.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system has no locks.
    """
    while True:
        made = [place for place in (directory, *directory.parents) if not place.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # removed again by whoever made it
            continue
        try:
            _lock(descriptor, directory, writer, patience_seconds)
            # Whoever had it may have removed the folder, and another may have made it anew: then this is not its lock.
            if _is_same(descriptor, directory):
                try:
                    yield descriptor
                finally:
                    with contextlib.suppress(OSError):  # not empty
                        for place in made:
                            place.rmdir()
                return
        finally:
            os.close(descriptor)


def lock_at_once(path: Path) -> int:
    """Returns a descriptor that holds the lock on a file or folder until it is closed, or raises: it does not wait.

    Raises:
        BlockingIOError: another process, or another thread, holds it.
        FileNotFoundError: there is none, or no longer.
        OSError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that cannot be written
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    return descriptor


def _is_same(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, directory: Path, writer: str, patience_seconds: float) -> None:
    begun, is_told = time.monotonic(), patience_seconds <= _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > begun + patience_seconds:
                raise BlockingIOError(f"{directory}: another {writer} is writing here; wait for it, or stop it") from None
            if not is_told:
                _log.info("%s: another %s is writing here; waiting for it", directory, writer)
                is_told = True
            time.sleep(0.05)
