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

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # from a file system that has none

_PATIENCE_SECONDS = 3.0  # the workers of a killed run hold its lock until they notice, within milliseconds

_log = logging.getLogger("tfpipe")


@contextlib.contextmanager
def locked(directory: Path, writer: str, *, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[int]:
    """Holds an advisory lock on a folder; yields the descriptor that holds it.

    The folder itself is locked, so that no lock file remains. It is created if missing, and then
    removed again, with the folders above it that were created, if it is left empty. `writer` names
    another process in messages: "build", "training". A wait longer than the default is logged.

    Raises:
        BlockingIOError: another process holds it, and still does after the wait.
        OSError: the file system has no locks.
    """
    begun, is_logged = time.monotonic(), patience_seconds <= _PATIENCE_SECONDS
    made: list[Path] = []
    while True:
        made = [place for place in (directory, *directory.parents) if not place.exists()] or made
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = lock_at_once(directory)
            break
        except FileNotFoundError:  # removed again by whoever created it
            continue
        except BlockingIOError:
            if time.monotonic() > begun + patience_seconds:
                raise BlockingIOError(f"{directory}: another {writer} is writing here; wait for it, or stop it") from None
            if not is_logged:
                _log.info("%s: another %s is writing here; waiting for it", directory, writer)
                is_logged = True
            time.sleep(0.05)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # not empty
            for place in made:
                place.rmdir()
        os.close(descriptor)


def lock_at_once(path: Path) -> int:
    """Returns a descriptor that holds the lock on a file or folder until closed; does not wait.

    Raises:
        BlockingIOError: another process, or another thread, holds it.
        FileNotFoundError: there is none, or no longer: whoever had the lock may have removed it.
        OSError: the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that cannot be written
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    return descriptor
