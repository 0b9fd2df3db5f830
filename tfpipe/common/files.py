"""Files that are whole or absent: nothing unfinished ever has a final name."""

from __future__ import annotations

import contextlib
import copy
import errno
import glob
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from tfpipe.common import locking, object_cache, stores
from tfpipe.common.errors import DataError

T = TypeVar("T")

MAX_JSON_BYTES = 256 << 20
_MAX_DIGITS = 20  # of an int64 with its sign, and of a uint64
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")  # of a path in msgspec's messages


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that becomes `path`, synced, when the block ends without an error."""
    with path_written_atomically(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def path_written_atomically(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yields the name of a file that becomes `path`, synced, if the block ends without error.

    Else it vanishes, and `path` stays unchanged. Temporary files of killed processes beside `path`
    are removed first. The name ends with `suffix`, for a library that looks at it.
    """
    stores.check_local(path)
    clear_up(path)
    try:
        with temporary_beside(path, suffix) as temporary:
            yield temporary
            sync_directory(temporary)
            os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or _is_temporary(str(error.filename), path):
            # Writing to a full disk gives no name; opening gives one that the user does not know.
            raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def temporary_beside(path: Path, suffix: str = "") -> Iterator[Path]:
    """Yields the name of a new file beside `path`, which is removed when the block ends.

    The name begins with a dot and has random digits: two writers do not meet, a glob does not match
    it. During the block the file is locked: `clear_up` leaves it alone.
    """
    with _held(lambda: _draw_name(path, suffix), lambda made: made.touch(exist_ok=False)) as (temporary, _):
        yield temporary


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yields a private temporary folder, which is removed when the block ends.

    Those that killed processes left there for the same purpose are removed first.
    """
    place, prefix = Path(tempfile.gettempdir()), f"tfpipe-{purpose}-"
    for path in place.glob(f"{prefix}*"):
        if path.name.removeprefix(prefix).isdecimal():
            _remove_unless_held(path)
    with _held(lambda: place / f"{prefix}{_draw_digits()}", lambda made: made.mkdir(mode=0o700)) as (folder, _):
        yield folder


@contextlib.contextmanager
def folder_written_atomically(target: Path, *, replace: bool) -> Iterator[Path]:
    """Yields a folder that becomes `target`, synced, when the block ends without an error.

    Else it vanishes, and `target` stays unchanged. With `replace`, an existing folder is replaced
    as a whole; without, it must be empty.
    """
    stores.check_local(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_up(target)

    def create(folder: Path) -> None:
        try:
            folder.mkdir()
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error

    with _held(lambda: _draw_name(target), create) as (folder, held):
        old = folder.with_suffix(".old")
        try:
            yield folder
            for path in (*sorted(folder.rglob("*")), folder):
                sync_directory(path)
            if replace and target.exists():
                _hold(target, held)  # the lock goes with it to its other name
                os.rename(target, old)
            os.rename(folder, target)
            if old.exists():
                os.rename(old, folder)  # a name that is never put back, even where half of it is gone
            sync_directory(target.parent)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if old.exists():
                os.rename(old, folder if target.exists() else target)
                shutil.rmtree(folder, ignore_errors=True)
            _raise_for_user(error, folder, target)
            raise
        shutil.rmtree(folder, ignore_errors=True)  # the one that was there before


def _raise_for_user(error: BaseException, folder: Path, target: Path) -> None:
    """Raises an OSError about the temporary folder with the name that the user gave."""
    if not isinstance(error, OSError):
        return
    busy = errno.ENOTEMPTY, errno.EEXIST, errno.EWOULDBLOCK, errno.ENOENT
    if error.errno in busy and error.filename in (os.fspath(folder), os.fspath(target)):
        taken = "another process has written there meanwhile; its files are as they were, these are gone"
        raise OSError(errno.EEXIST, taken, os.fspath(target)) from error
    if os.fspath(folder) in os.fspath(error.filename or folder):  # none where the disk is full
        raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error


def _draw_name(path: Path, suffix: str = "") -> Path:
    return path.with_name(f".{path.name}.{_draw_digits()}.tmp{suffix}")


def _draw_digits() -> str:
    # No process id: in a container, that of every program is 1.
    return f"{secrets.randbelow(10**10):010d}"


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9]+\.(tmp|old)(\.[a-z]+)?", re.DOTALL)  # as `_draw_name` makes it


def _is_temporary(name: str, path: Path) -> bool:
    found = _TEMPORARY.fullmatch(os.path.basename(name))
    return found is not None and found["name"] == path.name


@contextlib.contextmanager
def _held(draw: Callable[[], Path], create: Callable[[Path], None]) -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """Creates a file or folder, locked against clearing up, and removes it at the end."""
    with contextlib.ExitStack() as held:
        while True:
            made = draw()
            held.callback(_remove, made)  # before it is there: a signal may come between any two lines
            create(made)
            with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process removed it before it was locked
                _hold(made, held)
                break
        yield made, held


def _hold(path: Path, held: contextlib.ExitStack) -> None:
    try:
        held.callback(os.close, locking.lock_at_once(path))
    except OSError as error:  # a file system without locks: there, nothing is ever cleared up
        if error.errno not in locking.NO_LOCKS:
            raise


def clear_up(target: Path) -> None:
    """Removes leftovers of killed processes beside `target`; restores a folder moved away."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if _is_temporary(path.name, target):
            _remove_unless_held(path, target)


def clear_folder(folder: Path) -> None:
    """Removes temporary files of killed processes from a folder of this program's own."""
    for path in folder.glob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name):
            _remove_unless_held(path)


def _remove_unless_held(path: Path, target: Path | None = None) -> None:
    try:
        descriptor = locking.lock_at_once(path)
    except OSError:  # somebody is writing it, or has just ended
        return
    try:
        if target and path.suffix == ".old" and not target.exists():
            os.rename(path, target)
        else:
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Checks that files can be written into a folder, which may not exist yet; writes nothing.

    Raises:
        ValueError: it is in a store.
        NotADirectoryError: it, or what it would be made in, is a file.
        PermissionError: nothing may be written there.
    """
    stores.check_local(path)
    folder = Path(path).absolute()
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"{there}: a file; a folder is needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", os.fspath(there))


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """Opens a regular file to read its bytes, and returns the descriptor, which the caller closes.

    Anything else raises DataError: opening a pipe or device would wait or have effects, and so may
    files that the kernel makes up (/proc/kmsg).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    status = os.fstat(descriptor)
    # The files of /proc and /sys have no size and yet give bytes.
    made_up = not status.st_size and any(os.path.isdir(p) and os.stat(p).st_dev == status.st_dev for p in ("/proc", "/sys"))
    if stat.S_ISREG(status.st_mode) and not made_up:
        return descriptor
    os.close(descriptor)
    raise DataError("not a regular file", path=path)


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a file to read its bytes, see `open_descriptor`, or an object of a store."""
    if stores.is_remote(path):
        copy = object_cache.local(path)
        return open(copy, "rb") if copy else stores.opened(path)
    return open(open_descriptor(path), "rb")


def size_of(file: BinaryIO) -> int:
    """Returns the bytes of an open file or object, which is then at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def read_bytes(path: str | os.PathLike[str], most_bytes: int | None = None) -> bytes:
    """Returns a file's or object's bytes; raises DataError if there are more than `most_bytes`."""
    with open_regular(path) as file:
        data = file.read(-1 if most_bytes is None else most_bytes + 1)
    if most_bytes is not None and len(data) > most_bytes:
        raise DataError(f"more than {most_bytes:,} bytes, which no such file of tfpipe has", path=path)
    return data


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, whole or not at all; raises ValueError for NaN and infinity."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_atomically(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # a file's name may not be UTF-8


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; raises FileNotFoundError, or as `parse_json`."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), path)


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """Returns the content of JSON bytes; `path` is for messages.

    Raises:
        DataError: they are not JSON, or a key occurs twice, a number has more than 64 bits or is
            NaN, or it is too deep.
    """
    try:
        text = data.decode("utf-8", "surrogateescape")
        return json.loads(text, object_pairs_hook=_unique, parse_int=_small, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot be understood: {error}", path=path) from None


def check_json(content: Any, kind: type[T], path: Path) -> T:
    """Returns parsed JSON as a dataclass, TypedDict or other type; drops unknown keys.

    Raises DataError, which names the field, if one is missing or of another type.
    """
    import msgspec  # here: processes that only write need not load it

    def problem_of(content: Any) -> str:
        try:
            msgspec.convert(content, kind)
        except msgspec.ValidationError as error:
            return str(error)
        return ""

    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        message = _with_keys(copy.deepcopy(content), str(error), problem_of)
        raise DataError(f"not as tfpipe writes it: {message.replace('`', '').replace('$.', '')}", path=path) from None


def _with_keys(content: Any, problem: str, problem_of: Callable[[Any], str]) -> str:
    """Returns msgspec's message with the keys of mappings, in place of which it has [...]."""
    message, place = problem, content
    for name, index in _STEP.findall(problem.partition("`$")[2]):
        if index == "...":
            items = list(place.items())
            while len(items) > 1:  # halved: one of a million classes is found at once
                half = len(items) // 2
                place.clear()
                place.update(items[:half])
                items = items[:half] if problem_of(content) == problem else items[half:]
            place.clear()
            place.update(items)
            name = items[0][0]
            message = message.replace("[...]", f".{name:.80}", 1)
        place = place[name or int(index)]
    return message


def load_json(path: Path, kind: type[T]) -> T:
    """Returns the content of a JSON file, see `read_json` and `check_json`."""
    return check_json(read_json(path), kind, path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.200} occurs twice in one object")
    return content


def _small(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, which 64 bits do not hold")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.80} is not a finite number")
    return number


IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
        *(".heic", ".heif", ".avif"),
    )
)
"""Endings of the names of images, in lower case."""

_LITTER = frozenset(("thumbs.db", "desktop.ini", "icon\r", "__macosx"))  # left by file managers and archivers


def is_hidden(name: str) -> bool:
    """True for names that nobody means as images: .DS_Store, Thumbs.db and the like."""
    return name.startswith(".") or name.lower() in _LITTER


def sync_directory(path: Path) -> None:
    """Makes a directory's names, or a file's bytes, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
