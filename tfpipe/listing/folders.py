"""What lies in folders and matches globs: files that are pictures by their names, each once whatever links lead to it.

passed_over = []
[found.name for found in find_pictures("test1/", passed_over)]     # "cat/1.jpg": below what was given
"""

from __future__ import annotations

import glob
import itertools
import mimetypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tfpipe.common.files import is_hidden
from tfpipe.listing import walking

_TYPES = mimetypes.MimeTypes()  # Python's own table: what a machine has in /etc must not decide what a picture is
_TYPES.add_type("application/jsonl", ".jsonl")  # predictions and lists of bad pictures, of a run before


class Found(NamedTuple):
    """A file that may be a picture.

    `name` is its path below what was given. `problem` says why it is known to be no picture before anyone has looked into it.
    `id` is what a list calls it, "" where the name decides.
    """

    name: str
    path: str
    problem: str = ""
    id: str = ""


def find_pictures(given: str, passed_over: list[str]) -> Iterator[Found]:
    """Yields the file that was given, or the files of a folder with all folders below it, or of a glob.

    Args:
        given: a path or a glob.
        passed_over: gets the names that are not taken for pictures.

    Raises:
        FileNotFoundError: it is missing, or a glob that matches nothing.
    """
    check_given(given)
    if os.path.isdir(given):
        yield from _in_folder(given, passed_over)
    elif os.path.lexists(given):  # a name may hold a bracket: what is there is no glob
        yield Found(os.path.basename(given), given)
    else:
        yield from _in_glob(given, passed_over)


def check_given(given: str) -> None:
    """Raises FileNotFoundError for a path where nothing is, unless it is a glob."""
    if not os.path.lexists(given) and not glob.has_magic(given):
        raise FileNotFoundError(f"{given}: no such file or folder")


def make_place() -> Callable[[str], str]:
    """Returns a function from a path to where its file is, whatever links its folders were reached by.

    A link to a file is a picture of its own. Folders are looked up once: a hundred thousand files may be in one.
    """
    folders: dict[str, str] = {}

    def place(path: str) -> str:
        folder, name = os.path.split(os.path.abspath(path))
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return place


def _in_folder(root: str, passed_over: list[str]) -> Iterator[Found]:
    """Yields the files below a folder. Links to folders are followed after all real folders, each folder once."""
    for item in walking.walk(root):
        if isinstance(item, walking.Found):
            yield from _named_as_picture(root, item.path, passed_over)
        elif item.reason == "unreadable":
            yield from (found._replace(problem=item.message) for found in _named_as_picture(root, item.path, passed_over))
        elif item.reason != "empty":
            passed_over.append(f"{item.relative}/" if os.path.isdir(item.path) else item.relative)


def _in_glob(pattern: str, passed_over: list[str]) -> Iterator[Found]:
    """Yields the files that match, each by one path, however many links lead to its folder."""
    matches = _matches(pattern)
    if not matches:
        raise FileNotFoundError(f"{pattern}: matches no file")
    root = str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)))
    place = make_place()
    matches.sort(key=lambda path: (place(path) != os.path.abspath(path), path.count(os.sep), path))  # real folders first
    places: set[str] = set()
    for path in matches:
        if place(path) in places:
            passed_over.append(os.path.relpath(path, root))
            continue
        places.add(place(path))
        if not os.path.isdir(path):
            yield from _named_as_picture(root, path, passed_over)
        elif "**" not in pattern:  # which matches the folders on the way, too
            passed_over.append(f"{os.path.relpath(path, root)}/")


def _matches(pattern: str) -> list[str]:
    """Returns what matches a glob; `**` enters every folder once, where Python's multiplies them at every link."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    roots = glob.glob(os.path.join(*parts[:place])) if place else [os.curdir]
    tail = os.path.join(*(parts[place + 1 :] or ("*",)))
    folders = (folder for root in roots for folder in _folders_below(root))
    return [path for folder in folders for path in _matches(os.path.join(glob.escape(folder), tail))]


def _folders_below(root: str) -> Iterator[str]:
    walked: set[str] = set()
    pending = [root]
    for start in pending:
        for path, folders, _ in os.walk(start):
            if os.path.realpath(path) in walked:
                folders.clear()
                continue
            walked.add(os.path.realpath(path))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            pending += [link for link in (os.path.join(path, name) for name in folders) if os.path.islink(link)]
            yield path


def _named_as_picture(root: str, path: str, passed_over: list[str]) -> Iterator[Found]:
    relative = os.path.relpath(path, root)
    kind = _TYPES.guess_type(PurePosixPath(relative.lower()).name)[0] or "image"
    if is_hidden(os.path.basename(path)) or not kind.startswith(("image", "application/octet-stream")):
        passed_over.append(relative)
    else:
        yield Found(relative, path)
