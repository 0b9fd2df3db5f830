"""Folders walked in a fixed order, and the image files in folders and globs, each once.

passed_over = []
[found.name for found in find_images("test1/", passed_over)]     # "cat/1.jpg": relative to the folder
"""

from __future__ import annotations

import glob
import heapq
import itertools
import mimetypes
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tfpipe.common.files import is_hidden

_TYPES = mimetypes.MimeTypes()  # Python's own table: a machine's /etc must not decide which files are images
_TYPES.add_type("application/jsonl", ".jsonl")  # predictions and lists of rejected images, of an earlier run


class FoundFile(NamedTuple):
    """A file, or a path that is not taken, with the reason."""

    name: str  # relative to the folder that was walked, POSIX separators
    path: str
    num_bytes: int = 0
    mtime_ns: int = 0
    # "" for a file, else "unreadable", "link_loop" (a link to a folder walked already), "hidden"
    # (see `files.is_hidden`) or "empty" (a folder that holds nothing but hidden files).
    reason: str = ""
    message: str = ""  # the reason in words
    id: str = ""  # given by a list of paths


def walk(root: str | Path) -> Iterator[FoundFile]:
    """Yields every file below a folder, and what could not be followed or read.

    A link to a file counts as a file. A link to a folder is followed after all real folders, and
    only where that folder was not walked already: each is walked once, and the real path wins over
    the link.
    """
    walked: set[tuple[int, int]] = set()
    links = [("", str(root))]  # a heap, so that the order in which a file system lists names changes nothing
    while links:
        name, path = heapq.heappop(links)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in walked:
            yield _walked_already(name, path)
        else:
            walked.add((status.st_dev, status.st_ino))
            yield from _walk_folder(path, f"{name}/" if name else "", walked, links)


def _walk_folder(path: str, prefix: str, walked: set[tuple[int, int]], links: list[tuple[str, str]]) -> Iterator[FoundFile]:
    # A stack, not recursion: a deep tree must not end in a RecursionError. Entries are not sorted:
    # a folder of a million files would have to be held in memory, and whoever needs an order sorts
    # anyway.
    stack = [(path, prefix)]
    while stack:
        folder, below = stack.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            message = f"cannot list the folder: {error.strerror}"
            yield FoundFile(below.rstrip("/") or ".", folder, reason="unreadable", message=message)
            continue
        is_empty = True
        with entries:
            for entry in entries:
                name = below + entry.name
                if is_hidden(entry.name):
                    yield FoundFile(name, entry.path, reason="hidden")
                    continue
                is_empty = False
                try:
                    status = os.stat(entry.path)
                except OSError as error:
                    what = "the link leads nowhere" if entry.is_symlink() else "cannot be read"
                    yield FoundFile(name, entry.path, reason="unreadable", message=f"{what}: {error.strerror}")
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield FoundFile(name, entry.path, status.st_size, status.st_mtime_ns)
                elif not stat.S_ISDIR(status.st_mode):  # reading a pipe or a device would block for ever
                    yield FoundFile(name, entry.path, reason="unreadable", message="not a regular file")
                elif entry.is_symlink():
                    heapq.heappush(links, (name, entry.path))
                elif (status.st_dev, status.st_ino) in walked:  # below a link that leads above folders walked before
                    yield _walked_already(name, entry.path)
                else:
                    walked.add((status.st_dev, status.st_ino))
                    stack.append((entry.path, f"{name}/"))
        if is_empty:
            yield FoundFile(below.rstrip("/"), folder, reason="empty")


def _walked_already(name: str, path: str) -> FoundFile:
    message = f"a link leads to a folder that is walked already: {os.path.realpath(path)}"
    return FoundFile(name, path, reason="link_loop", message=message)


def find_images(given: str, passed_over: list[str]) -> Iterator[FoundFile]:
    """Yields the given file, or the files in and below a folder, or those that match a glob.

    `passed_over` gets the names that are not taken for images. Raises FileNotFoundError for a
    missing path, or a glob that matches nothing.
    """
    check_given(given)
    if os.path.isdir(given):
        for item in walk(given):
            if item.reason in ("", "unreadable"):
                yield from _named_as_image(item, passed_over)
            elif item.reason != "empty":
                passed_over.append(f"{item.name}/" if os.path.isdir(item.path) else item.name)
    elif os.path.lexists(given):  # a file's name may hold a bracket: it is not a glob then
        yield FoundFile(os.path.basename(given), given)
    else:
        yield from _in_glob(given, passed_over)


def check_given(given: str) -> None:
    """Raises FileNotFoundError for a path that does not exist, unless it is a glob."""
    if not os.path.lexists(given) and not glob.has_magic(given):
        raise FileNotFoundError(f"{given}: no such file or folder")


def make_place() -> Callable[[str], str]:
    """Returns a function from a path to its real place, whatever links lead to its folder.

    A link to a file is an image of its own. Folders are resolved once: one may hold a hundred
    thousand files.
    """
    folders: dict[str, str] = {}

    def place(path: str) -> str:
        folder, name = os.path.split(os.path.abspath(path))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return place


def _in_glob(pattern: str, passed_over: list[str]) -> Iterator[FoundFile]:
    """Yields the files that match, each by one path, however many links lead to its folder."""
    matches = _matches(pattern)
    if not matches:
        raise FileNotFoundError(f"{pattern}: matches no file")
    root = str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)))
    place = make_place()
    matches.sort(key=lambda path: (place(path) != os.path.abspath(path), path.count(os.sep), path))  # real folders first
    places: set[str] = set()
    for path in matches:
        name = os.path.relpath(path, root)
        if place(path) in places:
            passed_over.append(name)
            continue
        places.add(place(path))
        if not os.path.isdir(path):
            yield from _named_as_image(FoundFile(name, path), passed_over)
        elif "**" not in pattern:  # which matches the folders on the way, too
            passed_over.append(f"{name}/")


def _matches(pattern: str) -> list[str]:
    """Returns the paths that match a glob; unlike Python's, `**` enters every folder once."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    roots = glob.glob(os.path.join(*parts[:place])) if place else [os.curdir]
    tail = os.path.join(*(parts[place + 1 :] or ("*",)))
    folders = (folder for root in roots for folder in _folders_in(root))
    return [path for folder in folders for path in _matches(os.path.join(glob.escape(folder), tail))]


def _folders_in(root: str) -> list[str]:
    """Returns a folder and all folders below it, each by one path; nothing for a file."""
    if not os.path.isdir(root):
        return []
    names = {""}
    for item in walk(root):
        folder = item.name if item.reason == "empty" else os.path.dirname(item.name)
        while folder not in names:
            names.add(folder)
            folder = os.path.dirname(folder)
    return [os.path.join(root, name) if name else root for name in sorted(names)]


def _named_as_image(item: FoundFile, passed_over: list[str]) -> Iterator[FoundFile]:
    kind = _TYPES.guess_type(PurePosixPath(item.name.lower()).name)[0] or "image"
    if is_hidden(os.path.basename(item.path)) or not kind.startswith(("image", "application/octet-stream")):
        passed_over.append(item.name)
    else:
        yield item
