"""What there is to predict: pictures in files, folders, globs, lists of paths or a data set, each with an id.

    listing = list_pictures("test1/")
    listing.pictures[0].id                    # "1"

Ids are in the order that people count in, 1, 2, 10, whatever the file system lists first.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tfpipe.common.files import IMAGE_SUFFIXES
from tfpipe.common.text import plural
from tfpipe.listing import folders, path_lists
from tfpipe.listing.folders import Found
from tfpipe.records import catalog, manifest

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Picture(NamedTuple):
    """One picture to predict.

    `id` is unique among the inputs. `path` is the absolute path of its file, or "" where it is the record at `position` of
    a split. `problem` says why it is known to be no picture before anyone has looked into it.
    """

    id: str
    key: str
    filename: str
    path: str
    position: int = -1
    problem: str = ""

    @property
    def shown(self) -> str:
        """The path for a message, or the key of a record."""
        return self.path.encode("utf-8", "backslashreplace").decode() or self.key


class Listing(NamedTuple):
    """Pictures, ordered by id; names that were passed over; the data set's split where they come from one."""

    pictures: Sequence[Picture]
    passed_over: Sequence[str]
    data_set: tuple[Path, str] | None = None


def list_pictures(inputs: Inputs, split: str | None = None, *, tell_apart: bool = False) -> Listing:
    """Returns the pictures of the inputs, each once, in the natural order of their ids.

    The id is the path without a picture's extension: below the folder that was given, below the part of a glob that has no
    wildcard, as a list of paths has it (if that has no ids of its own), or the name of a file that was given. Of a record it
    is the key, without the name of the split before it. With `tell_apart`, pictures that would have the same id for it, x.jpg
    and x.png, keep their extensions.

    In folders and globs, hidden files are passed over, and those whose names say that they are no pictures (README.txt).

    Raises:
        FileNotFoundError: an input is missing, or a glob matches nothing.
        ValueError: two pictures have the same id, there is none, the split is not clear, or an input is no path.
        DataError: the data set's files contradict each other, or a list of paths cannot be read.
    """
    paths = given_paths(inputs)
    data_set = _data_set(paths, split)
    passed_over: list[str] = []
    if data_set:
        named = list(_records(*data_set))
    else:
        named = [_picture(found) for path in paths for found in _find(os.fspath(path), passed_over)]
    pictures = _shortened(named, tell_apart=tell_apart)
    pictures.sort(key=lambda picture: (natural_key(picture.id), picture.path))
    _check_once(pictures)
    if not pictures:
        passed = f"; passed over: {', '.join(passed_over[:10])}" if passed_over else ""
        raise ValueError(f"{', '.join(map(str, paths)) or 'input'}: there is no picture{passed}")
    return Listing(pictures, passed_over, data_set)


def check_given(inputs: Inputs, split: str | None = None) -> None:
    """Raises what `list_pictures` does for an input that is missing or a split that is not clear; walks no folder."""
    paths = given_paths(inputs)
    if not _data_set(paths, split):
        for path in [os.fspath(path) for path in paths]:
            if path != path_lists.STANDARD_INPUT:
                folders.check_given(path)


def _data_set(paths: Sequence[str | os.PathLike[str]], split: str | None) -> tuple[Path, str] | None:
    """Returns the data set among the inputs, and its split."""
    data_sets = [Path(path) for path in paths if (Path(path) / manifest.FILE_NAME).is_file()]
    if data_sets and len(paths) > 1:
        raise ValueError(f"{data_sets[0]}: a data set is predicted alone, not with {plural(len(paths) - 1, 'other input')}")
    if split is not None and not data_sets:
        raise ValueError(f"split={split!r} is of a data set, and {', '.join(map(str, paths))} is none")
    return (data_sets[0], _chosen_split(data_sets[0], split)) if data_sets else None


def given_paths(inputs: Any) -> list[str | os.PathLike[str]]:
    """Returns the inputs as a list, also where there is one, or an iterator.

    Raises:
        ValueError: one of them is no path.
    """
    is_one = isinstance(inputs, str | bytes | os.PathLike) or hasattr(inputs, "read") or not isinstance(inputs, Iterable)
    paths = [inputs] if is_one else list(inputs)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            advice = "bytes and arrays are for tfpipe.load(model).predict(inputs)"
            raise ValueError(f"input must be paths (got {type(path).__name__}); {advice}")
    return paths


def hash_listing(listing: Listing) -> str:
    """Returns a hash that is another one when pictures, their order, or, as sizes and times say, their bytes are others."""
    state = hashlib.sha256()
    if listing.data_set is not None:
        state.update(manifest.load(listing.data_set[0]).root_hash.encode())
    for picture in listing.pictures:
        state.update(repr((tuple(picture), _times(picture.path))).encode("utf-8", "backslashreplace"))
    return state.hexdigest()


def _times(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _shortened(named: Sequence[tuple[Picture, str]], *, tell_apart: bool) -> list[Picture]:
    """Returns the pictures, each with the shorter id beside it if that is its own."""
    counts = Counter(short for _, short in named)
    return [picture if tell_apart and counts[short] > 1 else picture._replace(id=short) for picture, short in named]


def _check_once(pictures: Sequence[Picture]) -> None:
    places: dict[str, Picture] = {}
    place = folders.make_place()
    for picture in pictures:
        other = places.setdefault(place(picture.path), picture) if picture.path else picture
        if other is not picture:
            raise ValueError(f"{other.path} is given twice, with the ids {other.id!r} and {picture.id!r}")
    for first, second in itertools.pairwise(pictures):
        if first.id == second.id:
            names = " and ".join(picture.path or picture.key for picture in (first, second))
            raise ValueError(f"{names} have the same id, {first.id!r}: rename one, or predict them apart")


def natural_key(text: str) -> tuple[str, str]:
    """Returns a sorting key by which 2 comes before 10, and "a2" before "a10"."""

    def counted(number: re.Match[str]) -> str:
        # Before any other character; by length and digits, not as an integer, of which 4300 digits are the limit.
        digits = number[0].lstrip("0")
        return f"\0{chr(min(len(digits), 0x10FFFF))}{digits}"

    return re.sub("[0-9]+", counted, text), text


def _chosen_split(directory: Path, split: str | None) -> str:
    splits = manifest.load(directory).splits
    if split is None and len(splits) > 1:
        raise ValueError(f"{directory}: which split? It has {', '.join(splits)}")
    chosen = split if split is not None else next(iter(splits), "")
    manifest.load(directory).split(chosen)  # or an error that names those there are
    return chosen


def _records(directory: Path, split: str) -> Iterator[tuple[Picture, str]]:
    rows = list(catalog.read_catalog(directory, split=split))
    # The prefix that the build gave them, so that ids are those of the folder that the split was made from.
    prefix = f"{split}/" if all(row.key.startswith(f"{split}/") for row in rows) else ""
    for position, row in enumerate(rows):
        name = row.key.removeprefix(prefix)
        yield Picture(name, row.key, row.filename, "", position), _short(name, PurePosixPath(row.filename).suffix)


def _find(given: str, passed_over: list[str]) -> Iterator[Found]:
    if path_lists.is_list(given):
        return path_lists.read_list(given)
    return folders.find_pictures(given, passed_over)


def _picture(found: Found) -> tuple[Picture, str]:
    name, given_id = (text.encode("utf-8", "backslashreplace").decode() for text in (found.name, found.id))
    problem = found.problem
    if (name, given_id) != (found.name, found.id) and not problem:
        problem = "the name is not UTF-8: rename it"
    picture = Picture(given_id or name, name, name, os.path.abspath(found.path), problem=problem)
    return picture, given_id or _short(name, PurePosixPath(name).suffix)


def _short(name: str, suffix: str) -> str:
    """Returns a name without its suffix, if that is a picture's: "v1.5" is whole."""
    return (name.removesuffix(suffix) or name) if suffix.lower() in IMAGE_SUFFIXES else name
