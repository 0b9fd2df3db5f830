"""Objects in stores (S3, Google Cloud Storage, Azure, HTTP): the few requests that tfpipe makes.

    size("s3://bucket/pets/manifest.json")                  # one request
    read("s3://bucket/pets/pets-test.tfrecord-...", 1000, 5000)
    for entry in listed("s3://bucket/pets"): entry.name, entry.num_bytes
    put(Path("manifest.json"), "s3://bucket/pets/manifest.json")

A place in a store is a path like any other: `Path("s3://bucket/pets") / "manifest.json"` is spelled
s3:/bucket/pets/manifest.json, which all functions here take, too. Local paths never come here.

A request is repeated, with growing pauses, after an answer of 408, 429 or 5xx, one that was cut or
too short, and none at all. What does not heal in `TFPIPE_STORE_SECONDS` (120) is an OSError that
names object, bytes and the answer. Credentials are found by obstore, in the environment or from the
machine's role; they are in no URL, and in no message.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from tfpipe.common.text import exactly, plural

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger("tfpipe")

PARALLEL_REQUESTS = 32
SCHEMES = ("s3", "gs", "az", "http", "https")
_URL = re.compile(rf"({'|'.join(SCHEMES)}):/+([^/]+)(?:/(.*))?", re.DOTALL)
# Of any URL, and of a known one as a Path spells it.
_SCHEME = re.compile(rf"[a-z][a-z0-9+.-]*://|({'|'.join(SCHEMES)}):/", re.IGNORECASE)
_SIGNED = re.compile(r"[?&](sig|signature|token|awsaccesskeyid|googleaccessid|x-(amz|goog)-[a-z-]*)=", re.IGNORECASE)
_SECONDS = "TFPIPE_STORE_SECONDS"
_USUAL_SECONDS = 120.0
_REQUEST_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FIRST_AHEAD_BYTES, _AHEAD_BYTES = 1 << 17, 8 << 20  # of an object that is read like a file
_PIECES = 8  # of so many bytes in memory
_SHOWN = 300  # characters of an answer
_ANSWER = re.compile(r"non-2xx status code: ((\d{3}).*)", re.DOTALL)
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")  # Timeout, Interrupted, Connect
_PART = re.compile(r"<(Code|Message)>(.*?)</\1>", re.DOTALL)  # of the XML that S3 and Azure answer
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL")
_HEALING = {408, 429}  # and all from 500 on


class Entry(NamedTuple):
    """An object in a folder of a store."""

    name: str  # relative to the folder
    num_bytes: int
    version: str  # changes with the content: an ETag or the time of the last change


def is_remote(path: object) -> bool:
    """True for places in a store: s3://bucket/pets, also as a Path."""
    return isinstance(path, str | os.PathLike) and _URL.match(os.fsdecode(path)) is not None


def check(name: str, path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a URL that is no place in a store, or has credentials in it, without repeating it."""
    text = os.fsdecode(path)
    found = _URL.match(text)
    if not found and _SCHEME.match(text):
        scheme = text.partition(":")[0]
        raise ValueError(
            f"{name}: {scheme}: is no store that tfpipe knows, or a name is missing: {', '.join(SCHEMES)} (in small letters),"
            f" as in s3://BUCKET/FOLDER; ./{scheme}: is a local folder"
        )
    if found and ("@" in found[2] or (found[1].startswith("http") and "?" in text) or _SIGNED.search(text)):
        raise ValueError(
            f"{name}: a URL with a user name or a query, which may be a secret: leave it out, and give"
            " credentials in the environment (AWS_ACCESS_KEY_ID and the like)"
        )


def url(path: str | os.PathLike[str]) -> str:
    """Returns a place as people write it: s3://bucket/pets for Path("s3://bucket/pets"); else the path."""
    text = os.fsdecode(path)
    found = _URL.match(text)
    return f"{found[1]}://{found[2]}{f'/{found[3]}' if found[3] else ''}" if found else text


def check_local(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a place in a store, where no file can be written piece by piece."""
    if is_remote(path):
        raise ValueError(f"{url(path)}: functions write to local folders; the commands' --output also takes a store")


def absolute(path: str | os.PathLike[str]) -> Path:
    """Returns a local path from the root; a place in a store as it is."""
    return Path(path) if is_remote(path) else Path(path).absolute()


def real(path: str | os.PathLike[str]) -> str:
    """Returns a local path from the root, without "..", or a place in a store: for a file that names it."""
    return url(path) if is_remote(path) else os.path.abspath(path)


def size(path: str | os.PathLike[str]) -> int:
    """Returns an object's bytes; raises FileNotFoundError or another OSError."""
    return int(_head(path)["size"])


def _head(path: str | os.PathLike[str]) -> dict[str, Any]:
    store, key = _place(path)
    return _repeated(lambda: dict(_obstore().head(store, key)), path, "its size")


def _version(meta: Mapping[str, Any]) -> str:
    return str(meta["e_tag"] or meta["last_modified"])


def read(path: str | os.PathLike[str], num_bytes: int, offset: int, version: str = "") -> bytes:
    """Returns exactly these bytes of an object; raises OSError where they cannot be had, or not of a version."""
    if not num_bytes:
        return b""
    store, key = _place(path)

    def request() -> bytes:
        answer = _obstore().get(store, key, options={"range": (offset, offset + num_bytes)})
        if version and _version(answer.meta) != version:
            raise OSError(errno.EIO, "it was replaced while it was read: start again", url(path))
        content = bytes(answer.bytes())
        if len(content) != num_bytes:
            raise _Short(f"{exactly(len(content), 'byte')} of {num_bytes} came")
        return content

    return _repeated(request, path, f"bytes {offset} to {offset + num_bytes}")


def sizes(folder: str | os.PathLike[str], names: Iterable[str]) -> dict[str, int]:
    """Returns the size of every object in and below a folder; on a web server, of `names` that exist."""
    if not is_web(folder):
        return {entry.name: entry.num_bytes for entry in listed(folder)}

    def measured(name: str) -> tuple[str, int] | None:
        try:
            return name, size(Path(folder) / name)
        except FileNotFoundError:
            return None

    return dict(filter(None, in_parallel(measured, names)))


def in_parallel(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yields `function(item)` in order; several requests are on their way at a time."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        yield from pool.map(function, items)


def is_web(path: str | os.PathLike[str]) -> bool:
    """True for http and https, which list and store nothing."""
    return url(path).startswith("http")


def listed(folder: str | os.PathLike[str]) -> list[Entry]:
    """Returns the objects in and below a folder, by name; [] where there are none. Markers of folders are left out.

    Raises ValueError for http(s), which has no listing.
    """
    if is_web(folder):
        raise ValueError(f"{url(folder)}: a web server lists no files")
    store, prefix = _place(folder)

    def request() -> list[Entry]:
        return [
            Entry(item["path"][len(prefix) :].lstrip("/"), item["size"], _version(item))
            for items in _obstore().list(store, prefix or None, chunk_size=1000)
            for item in items
        ]

    found = sorted(_repeated(request, folder, "the list of its objects"))
    markers = _markers(folder, found)
    return [entry for entry in found if entry.name not in markers]


def _markers(folder: str | os.PathLike[str], found: list[Entry]) -> set[str]:
    """Returns the empty objects that consoles and tools make for folders; obstore strips the slash from "cat/"."""
    empty = {entry.name for entry in found if not entry.num_bytes}
    if not empty:
        return set()
    folders = {""}.union(*(map(str, PurePosixPath(entry.name).parents) for entry in found))

    def is_object(name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return not size(Path(folder) / name)
        return False

    unclear = sorted(empty - folders)
    return empty - {name for name, is_one in zip(unclear, in_parallel(is_object, unclear), strict=True) if is_one}


def put(file: Path, path: str | os.PathLike[str]) -> None:
    """Stores a local file as an object, which is whole or absent; raises OSError."""
    store, key = _place(path)
    _repeated(lambda: _obstore().put(store, key, file), path, "storing it")


def delete(path: str | os.PathLike[str]) -> None:
    """Deletes an object, if there is one; raises OSError."""
    store, key = _place(path)
    with contextlib.suppress(FileNotFoundError):
        _repeated(lambda: _obstore().delete(store, key), path, "deleting it")


def pieces(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields an object's bytes in order, some 8 MiB at a time; several requests are on their way."""
    num_bytes = size(path)

    def piece(offset: int) -> bytes:
        return read(path, min(_AHEAD_BYTES, num_bytes - offset), offset)

    for first in range(0, num_bytes, _PIECES * _AHEAD_BYTES):
        yield from in_parallel(piece, range(first, min(first + _PIECES * _AHEAD_BYTES, num_bytes), _AHEAD_BYTES))


def opened(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens an object to read its bytes, ahead in large pieces."""
    return io.BufferedReader(_Object(url(path)), _AHEAD_BYTES)


class _Object(io.RawIOBase):
    def __init__(self, path: str) -> None:
        head = _head(path)
        self._path, self._size, self._version, self._offset = path, int(head["size"]), _version(head), 0
        self._end, self._ahead = 0, _FIRST_AHEAD_BYTES  # of the last request

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        return self._offset

    def readinto(self, buffer: Any) -> int:
        # Whoever jumps gets little, whoever goes on gets more and more.
        self._ahead = min(2 * self._ahead, _AHEAD_BYTES) if self._offset == self._end else _FIRST_AHEAD_BYTES
        num_bytes = max(0, min(len(buffer), self._ahead, self._size - self._offset))
        buffer[:num_bytes] = read(self._path, num_bytes, self._offset, self._version)
        self._offset = self._end = self._offset + num_bytes
        return num_bytes


class _Short(Exception):
    """Fewer bytes came than were requested."""


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise ImportError("places in object stores need the extra 'remote': pip install 'tfpipe[remote]'") from None
    return obstore


def _place(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Returns the store's client and the object's key."""
    check("a place in a store", path)
    found = _URL.match(os.fsdecode(path))
    if not found:
        raise ValueError(f"{os.fsdecode(path)}: not a place in a store")
    return _client(f"{found[1]}://{found[2]}"), (found[3] or "").rstrip("/")


@functools.cache
def _client(root: str) -> Any:
    obstore = _obstore()
    timeout = f"{min(_REQUEST_SECONDS, _patience() / 2) * 1000:.0f}ms"
    # All attempts are made here, by one rule; allow_http: of an endpoint that somebody has chosen.
    options = {"allow_http": True, "timeout": timeout}
    try:
        return obstore.store.from_url(root, client_options=options, retry_config={"max_retries": 0})
    except obstore.exceptions.BaseError as error:  # a variable is missing or wrong
        said = scrubbed(str(error).partition("\n\nDebug source:")[0])
        raise OSError(errno.EINVAL, f"its store cannot be used with this environment: {said}", root) from None


def _patience() -> float:
    text = os.environ.get(_SECONDS, "")
    try:
        return max(1.0, float(text or _USUAL_SECONDS))
    except ValueError:
        raise ValueError(f"{_SECONDS} must be a number of seconds (got {text!r:.50})") from None


_given_up: set[str] = set()  # stores whose last request failed for good


def _root(path: str | os.PathLike[str]) -> str:
    return "/".join(url(path).split("/", 3)[:3])


def _repeated(request: Callable[[], T], path: str | os.PathLike[str], what: str) -> T:
    # Where a request has just been tried for so long in vain, the others are not.
    end = time.monotonic() + (0 if _root(path) in _given_up else _patience())
    pause, attempts = _FIRST_PAUSE, 0
    while True:
        attempts += 1
        try:
            answer = request()
            _given_up.discard(_root(path))
            return answer
        except (_Short, FileNotFoundError, _obstore().exceptions.BaseError) as error:
            problem, heals = _problem(error, path, what, attempts)
            now = time.monotonic()
            if not heals or now >= end or is_exiting():
                if heals:
                    _given_up.add(_root(path))
                raise problem from None
            if attempts == 4:
                _log.warning("%s; trying again", _text(problem))
            # Many readers that failed together must not come back together.
            time.sleep(min(pause * random.uniform(0.5, 1), max(0.0, end - now)))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)


def is_exiting() -> bool:
    """True once Python waits for its other threads, to end."""
    return not threading.main_thread().is_alive()


def _text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}"


def _problem(error: Exception, path: str | os.PathLike[str], what: str, attempts: int) -> tuple[OSError, bool]:
    """Returns the error for people, and whether another attempt may succeed."""
    name, place = type(error).__name__, url(path)
    text, _, details = str(error).partition("\n\nDebug source:")
    answer, kind = _ANSWER.search(text), _KIND.search(details)
    said = scrubbed(answer[1] if answer else f"{text}{f' ({kind[1].lower()})' if kind else ''}")
    if name in ("FileNotFoundError", "NotFoundError"):
        return FileNotFoundError(errno.ENOENT, "no such object", place), False
    message = f"{what} cannot be had: {said}"
    if name in ("PermissionDeniedError", "UnauthenticatedError"):
        return PermissionError(errno.EACCES, message, place), False
    status = int(answer[2]) if answer else 500
    heals = isinstance(error, _Short) or (name == "GenericError" and (status >= 500 or status in _HEALING))
    return OSError(errno.EIO, f"{message} ({plural(attempts, 'attempt')})", place), heals


def scrubbed(text: str) -> str:
    """Returns an answer's status, code and message, without anything that may be a secret."""
    if parts := _PART.findall(text):
        text = f"{text.partition(':')[0]}: {': '.join(part for _, part in parts)}"
    text = re.sub(r"://[^/\s@]*@", "://", re.sub(r"\?[^\s)]*", "", text))
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    return " ".join(text.split())[:_SHOWN]
