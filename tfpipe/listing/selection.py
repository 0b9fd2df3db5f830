"""The images to predict: files, folders, globs, lists of paths or a data set.

    listing = list_images("test1/")
    listing.images[0].id                    # "1"

Ids are in natural order, 1, 2, 10, whatever the file system lists first.
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

from tfpipe.common import copies, stores
from tfpipe.common.files import IMAGE_SUFFIXES
from tfpipe.common.text import plural
from tfpipe.listing import folders, path_lists
from tfpipe.records import catalog, manifest

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Image(NamedTuple):
    """One image to predict."""

    id: str  # unique among the inputs
    key: str
    filename: str
    path: str  # absolute; "" for a record of a data set
    position: int = -1  # of a record in its split
    problem: str = ""  # why it is known to be unreadable before it is opened

    @property
    def shown(self) -> str:
        """The path for a message, or the key of a record."""
        return self.path.encode("utf-8", "backslashreplace").decode() or self.key


class Listing(NamedTuple):
    """Images ordered by id, the names passed over, and data set and split, if any."""

    images: Sequence[Image]
    passed_over: Sequence[str]
    data_set: tuple[Path, str] | None = None


def list_images(inputs: Inputs, split: str | None = None, *, tell_apart: bool = False) -> Listing:
    """Returns the images of the inputs, each once, in the natural order of their ids.

    The id is the path without an image's extension: relative to the given folder, relative to the
    part of a glob before its first wildcard, as written in a list of paths (unless that has ids of
    its own), or the name of a given file. The id of a record is its key, without the name of the
    split before it. With `tell_apart`, images that would share an id, x.jpg and x.png, keep their
    extensions.

    In folders and globs, hidden files are passed over, and files named as something else
    (README.txt).

    Raises:
        FileNotFoundError: an input is missing, or a glob matches nothing.
        ValueError: two images have the same id, there are none, the split is not clear, or an input
            is not a path.
        DataError: the data set's files contradict each other, or a list of paths cannot be read.
    """
    paths = given_paths(inputs)
    data_set = _data_set(paths, split)
    passed_over: list[str] = []
    if data_set:
        named = list(_records(*data_set))
    else:
        named = [_image(found) for path in paths for found in _find(os.fspath(path), passed_over)]
    counts = Counter(short for _, short in named)
    images = [image if tell_apart and counts[short] > 1 else image._replace(id=short) for image, short in named]
    images.sort(key=lambda image: (natural_key(image.id), image.path))
    _check_once(images)
    if not images:
        passed = f"; passed over: {', '.join(passed_over[:10])}" if passed_over else ""
        raise ValueError(f"{', '.join(map(str, paths)) or 'input'}: there is no image{passed}")
    return Listing(images, passed_over, data_set)


def check_given(inputs: Inputs, split: str | None = None) -> None:
    """Raises as `list_images` for a missing input or an unclear split; walks no folder."""
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
        raise ValueError(f"split={split!r} needs a data set, and {', '.join(map(str, paths))} is not one")
    if not data_sets:
        return None
    loaded = manifest.load(data_sets[0])
    if split is None and len(loaded.splits) > 1:
        raise ValueError(f"{data_sets[0]}: which split? It has {', '.join(loaded.splits)}")
    chosen = split if split is not None else next(iter(loaded.splits), "")
    loaded.split(chosen)  # or an error that names the known ones
    return data_sets[0], chosen


def given_paths(inputs: Any) -> list[str | os.PathLike[str]]:
    """Returns one or more inputs as a list; raises ValueError if one is not a path."""
    is_one = isinstance(inputs, str | bytes | os.PathLike) or hasattr(inputs, "read") or not isinstance(inputs, Iterable)
    paths = [inputs] if is_one else list(inputs)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            advice = "bytes and arrays are for tfpipe.load(model).predict(inputs)"
            raise ValueError(f"input must be paths (got {type(path).__name__}); {advice}")
    return [copies.local(path) if stores.is_remote(path) else path for path in paths]


def hash_listing(listing: Listing) -> str:
    """Returns a hash that changes with the images, their order, sizes and times."""
    state = hashlib.sha256()
    if listing.data_set is not None:
        state.update(manifest.load(listing.data_set[0]).root_hash.encode())
    for image in listing.images:
        state.update(repr((tuple(image), _times(image.path))).encode("utf-8", "backslashreplace"))
    return state.hexdigest()


def _times(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _check_once(images: Sequence[Image]) -> None:
    places: dict[str, Image] = {}
    place = folders.make_place()
    for image in images:
        other = places.setdefault(place(image.path), image) if image.path else image
        if other is not image:
            raise ValueError(f"{other.path} is given twice, with the ids {other.id!r} and {image.id!r}")
    for first, second in itertools.pairwise(images):
        if first.id == second.id:
            names = " and ".join(image.path or image.key for image in (first, second))
            raise ValueError(f"{names} have the same id, {first.id!r}: rename one, or predict them apart")


def natural_key(text: str) -> tuple[str, str]:
    """Returns a sorting key by which 2 comes before 10, and "a2" before "a10"."""

    def counted(number: re.Match[str]) -> str:
        # Before any other character; by length and digits, not as an integer, which may have at
        # most 4300 digits.
        digits = number[0].lstrip("0")
        return f"\0{chr(min(len(digits), 0x10FFFF))}{digits}"

    return re.sub("[0-9]+", counted, text), text


def _records(directory: Path, split: str) -> Iterator[tuple[Image, str]]:
    rows = list(catalog.read_checked(directory, split=split))
    # The prefix that the build gave them, so that ids are those of the folder that the split was
    # made from.
    prefix = f"{split}/" if all(row.key.startswith(f"{split}/") for row in rows) else ""
    for position, row in enumerate(rows):
        name = row.key.removeprefix(prefix)
        yield Image(name, row.key, row.filename, "", position), _short(name, PurePosixPath(row.filename).suffix)


def _find(given: str, passed_over: list[str]) -> Iterator[folders.FoundFile]:
    return path_lists.read_list(given) if path_lists.is_list(given) else folders.find_images(given, passed_over)


def _image(found: folders.FoundFile) -> tuple[Image, str]:
    name, given_id = (text.encode("utf-8", "backslashreplace").decode() for text in (found.name, found.id))
    problem = found.message
    if (name, given_id) != (found.name, found.id) and not problem:
        problem = "the name is not UTF-8: rename it"
    image = Image(given_id or name, name, name, os.path.abspath(found.path), problem=problem)
    return image, given_id or _short(name, PurePosixPath(name).suffix)


def _short(name: str, suffix: str) -> str:
    """Returns a name without its suffix, if that is an image's: "v1.5" stays whole."""
    return (name.removesuffix(suffix) or name) if suffix.lower() in IMAGE_SUFFIXES else name
