"""One writer per folder at a time."""

from __future__ import annotations

import contextlib
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
