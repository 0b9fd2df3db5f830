"""Folders, walked in a fixed order: links followed once, loops reported, and whatever is passed over said."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfpipe.common.files import is_hidden


class Found(NamedTuple):
    """One file: `relative` to the root, POSIX separators."""

    relative: str
    path: str
    num_bytes: int
    mtime_ns: int


class Skipped(NamedTuple):
    """What is no file to take.

    `reason` is "unreadable", "link_loop" (a link to a folder that is walked already), "hidden" (a file or folder, see
    `files.is_hidden`) or "empty" (a folder in which nothing else is).
    """

    relative: str
    path: str
    reason: str
    message: str = ""


def walk(root: str | Path) -> Iterator[Found | Skipped]:
    """Yields every file below a folder, and what could not be followed or read.

    A link to a file counts as a file. A link to a folder is followed after all real folders, and only where that folder
    was not walked already, so that each is walked once and the real path wins over the link.
    """
    status = os.stat(root)
    walked = {(status.st_dev, status.st_ino)}
    links: list[tuple[str, str]] = []  # a heap, so that the order in which a file system lists names changes nothing
    yield from _walk_folder(str(root), "", walked, links)
    while links:
        relative, path = heapq.heappop(links)
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        if identity in walked:
            yield _walked_already(relative, path)
            continue
        walked.add(identity)
        yield from _walk_folder(path, f"{relative}/", walked, links)


def _walk_folder(
    path: str, prefix: str, walked: set[tuple[int, int]], links: list[tuple[str, str]]
) -> Iterator[Found | Skipped]:
    # A stack and not recursion: a deep tree must not end in a RecursionError. Entries are not sorted: a folder of a
    # million files would have to be held in memory, and whoever needs an order sorts anyway.
    stack = [(path, prefix)]
    while stack:
        folder, below = stack.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            yield Skipped(below.rstrip("/") or ".", folder, "unreadable", f"cannot list the folder: {error.strerror}")
            continue
        is_empty = True
        with entries:
            for entry in entries:
                relative = below + entry.name
                if is_hidden(entry.name):
                    yield Skipped(relative, entry.path, "hidden")
                    continue
                is_empty = False
                try:
                    status = os.stat(entry.path)
                except OSError as error:
                    what = "the link leads nowhere" if entry.is_symlink() else "cannot be read"
                    yield Skipped(relative, entry.path, "unreadable", f"{what}: {error.strerror}")
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield Found(relative, entry.path, status.st_size, status.st_mtime_ns)
                elif not stat.S_ISDIR(status.st_mode):  # a pipe or a device would block a reader for ever
                    yield Skipped(relative, entry.path, "unreadable", "not a regular file")
                elif entry.is_symlink():
                    heapq.heappush(links, (relative, entry.path))
                elif (status.st_dev, status.st_ino) in walked:  # below a link that leads above folders walked before
                    yield _walked_already(relative, entry.path)
                else:
                    walked.add((status.st_dev, status.st_ino))
                    stack.append((entry.path, f"{relative}/"))
        if is_empty:
            yield Skipped(below.rstrip("/"), folder, "empty")


def _walked_already(relative: str, path: str) -> Skipped:
    message = f"a link leads to a folder that is walked already: {os.path.realpath(path)}"
    return Skipped(relative, path, "link_loop", message)
