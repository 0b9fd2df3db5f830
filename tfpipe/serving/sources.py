"""What there is to predict: pictures in files, folders, globs or a data set, each with an id; and a look at headers.

    listing = list_pictures("test1/")
    listing.pictures[0].id                    # "1"
    audit(listing.pictures[0]).orientation    # or a DataError that says why it is no picture

Ids are in the order that people count in, 1, 2, 10, whatever the file system lists first.
"""

from __future__ import annotations

import glob
import itertools
import mimetypes
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tfpipe.records import catalog, images, manifest
from tfpipe.records.errors import DataError, RejectedImage
from tfpipe.records.files import is_hidden

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_HEAD_BYTES = 4096
_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"))
_TYPES = mimetypes.MimeTypes()  # Python's own table: what a machine has in /etc must not decide what a picture is
_TYPES.add_type("application/jsonl", ".jsonl")  # a list of bad pictures, of a run before


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


class Listing(NamedTuple):
    """Pictures, ordered by id; names that were passed over; the data set's split where they come from one."""

    pictures: Sequence[Picture]
    passed_over: Sequence[str]
    data_set: tuple[Path, str] | None = None


class Audited(NamedTuple):
    """What a look at a picture's file found; both numbers are 0 where it is no file of its own."""

    orientation: int = 0
    num_bytes: int = 0


def list_pictures(inputs: Inputs, split: str | None = None) -> Listing:
    """Returns the pictures of the inputs, each once, in the natural order of their ids.

    The id is the path without a picture's extension: below the folder that was given, below the part of a glob that has no
    wildcard, or the name of a file that was given. Of a record it is the key, without the name of the split before it.

    In folders and globs, hidden files are passed over, and those whose names say that they are no pictures (README.txt).

    Raises:
        FileNotFoundError: an input is missing, or a glob matches nothing.
        ValueError: two pictures have the same id, there is none, or the split is not clear.
        DataError: the data set's files contradict each other.
    """
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    data_sets = [path for path in paths if (Path(path) / manifest.FILE_NAME).is_file()]
    if data_sets and len(paths) > 1:
        raise ValueError(f"{data_sets[0]}: a data set is predicted alone, not with {len(paths) - 1} other inputs")
    if split is not None and not data_sets:
        raise ValueError(f"split={split!r} is of a data set, and {', '.join(map(str, paths))} is none")
    passed_over: list[str] = []
    if data_sets:
        directory, split = Path(data_sets[0]), _chosen_split(Path(data_sets[0]), split)
        pictures = list(_records(directory, split))
    else:
        pictures = [picture for path in paths for picture in _files(os.fspath(path), passed_over)]
    pictures.sort(key=lambda picture: (natural_key(picture.id), picture.path))
    _check_once(pictures)
    if not pictures:
        passed = f"; passed over: {', '.join(passed_over[:10])}" if passed_over else ""
        raise ValueError(f"{', '.join(map(str, paths)) or 'inputs'}: there is no picture{passed}")
    return Listing(pictures, passed_over, (directory, split) if data_sets and split is not None else None)


def _check_once(pictures: Sequence[Picture]) -> None:
    places: dict[str, Picture] = {}
    for picture in pictures:
        other = places.setdefault(_place(picture.path), picture) if picture.path else picture
        if other is not picture:
            raise ValueError(f"{other.path} is given twice, with the ids {other.id!r} and {picture.id!r}")
    for first, second in itertools.pairwise(pictures):
        if first.id == second.id:
            names = " and ".join(picture.path or picture.key for picture in (first, second))
            raise ValueError(f"{names} have the same id, {first.id!r}: rename one, or predict them apart")


def _place(path: str) -> str:
    """Returns where a file is, whatever links its folders were reached by; a link to a file is a picture of its own."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def natural_key(text: str) -> tuple[object, ...]:
    """Returns a sorting key by which 2 comes before 10, and "a2" before "a10"."""
    words, numbers = re.split("[0-9]+", text), re.findall("[0-9]+", text)
    # By length and digits, not as integers: those have a limit of 4300 digits.
    sizes = [(len(number.lstrip("0")), number.lstrip("0")) for number in numbers]
    return (*itertools.chain.from_iterable(itertools.zip_longest(words, sizes, fillvalue=(-1, ""))), text)


def _chosen_split(directory: Path, split: str | None) -> str:
    splits = manifest.load(directory).splits
    if split is None and len(splits) > 1:
        raise ValueError(f"{directory}: which split? It has {', '.join(splits)}")
    chosen = split if split is not None else next(iter(splits), "")
    manifest.load(directory).split(chosen)  # or an error that names those there are
    return chosen


def _records(directory: Path, split: str) -> Iterator[Picture]:
    rows = list(catalog.read_catalog(directory, split=split))
    # The prefix that the build gave them, so that ids are those of the folder that the split was made from.
    prefix = f"{split}/" if all(row.key.startswith(f"{split}/") for row in rows) else ""
    for position, row in enumerate(rows):
        name = row.key.removeprefix(prefix)
        yield Picture(_id(name, PurePosixPath(row.filename).suffix), row.key, row.filename, "", position)


def _files(given: str, passed_over: list[str]) -> Iterator[Picture]:
    if os.path.isdir(given):
        yield from _folder_pictures(given, passed_over)
    elif os.path.lexists(given):  # a name may hold a bracket: what is there is no glob
        yield _picture(os.path.basename(given), given)
    elif glob.has_magic(given):
        yield from _glob_pictures(given, passed_over)
    else:
        raise FileNotFoundError(f"{given}: no such file or folder")


def _folder_pictures(root: str, passed_over: list[str]) -> Iterator[Picture]:
    """Yields the files below a folder. Links to folders are followed after all real folders, each folder once."""
    walked: set[tuple[int, int]] = set()
    pending, unreadable = [root], list[OSError]()
    for start in pending:
        for path, folders, files in os.walk(start, onerror=unreadable.append):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in walked:
                passed_over.append(f"{os.path.relpath(path, root)}/")
                folders.clear()
                continue
            walked.add((status.st_dev, status.st_ino))
            passed_over += [f"{os.path.relpath(os.path.join(path, name), root)}/" for name in filter(is_hidden, folders)]
            folders[:] = sorted(name for name in folders if not is_hidden(name))  # no file system's order decides
            for name in files:
                yield from _named_as_picture(root, os.path.join(path, name), passed_over)
            pending += [link for link in (os.path.join(path, name) for name in folders) if os.path.islink(link)]
    for error in unreadable:
        folder = os.fspath(error.filename)
        yield _picture(os.path.relpath(folder, root), folder, f"cannot list the folder: {error.strerror}")


def _glob_pictures(pattern: str, passed_over: list[str]) -> Iterator[Picture]:
    """Yields the files that match, each by one path, however many links lead to its folder."""
    matches = _matches(pattern)
    if not matches:
        raise FileNotFoundError(f"{pattern}: matches no file")
    root = str(Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts)))
    matches.sort(key=lambda path: (_place(path) != os.path.abspath(path), path.count(os.sep), path))  # real folders first
    places: set[str] = set()
    for path in matches:
        if _place(path) in places:
            passed_over.append(os.path.relpath(path, root))
            continue
        places.add(_place(path))
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


def _named_as_picture(root: str, path: str, passed_over: list[str]) -> Iterator[Picture]:
    relative = os.path.relpath(path, root)
    kind = _TYPES.guess_type(PurePosixPath(relative.lower()).name)[0] or "image"
    if is_hidden(os.path.basename(path)) or not kind.startswith(("image", "application/octet-stream")):
        passed_over.append(relative)
    else:
        yield _picture(relative, path)


def _picture(relative: str, path: str, problem: str = "") -> Picture:
    name = relative.encode("utf-8", "backslashreplace").decode()
    if name != relative and not problem:
        problem = "the name is not UTF-8: rename it"
    return Picture(_id(name, PurePosixPath(name).suffix), name, name, os.path.abspath(path), problem=problem)


def _id(name: str, suffix: str) -> str:
    """Returns a name without its suffix, if that is a picture's: "v1.5" is whole."""
    return (name.removesuffix(suffix) or name) if suffix.lower() in _SUFFIXES else name


def audit(picture: Picture, max_pixels: int = images.DEFAULT_MAX_PIXELS) -> Audited:
    """Looks at a picture's header, as the conversion does; a record was looked at when it was written.

    Raises:
        DataError: it is no picture that TensorFlow can decode, as far as can be seen without decoding it.
    """
    shown = picture.path.encode("utf-8", "backslashreplace").decode()
    if picture.problem:
        raise DataError(picture.problem, path=shown)
    if not picture.path:
        return Audited()
    try:
        data = _read(picture.path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=shown) from None
    try:
        return Audited(images.read_header(data, max_pixels=max_pixels).orientation, len(data))
    except RejectedImage as error:
        raise RejectedImage(error.reason, error.message, path=shown, offset=error.offset) from None


def _read(path: str) -> bytes:
    """Returns a file's bytes; only the first where they say that it is no picture, so that a film is not read whole."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block for ever
        raise OSError(0, "not a regular file")
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD_BYTES)
        return head + file.readall() if head.startswith(images.SIGNATURES) else head
