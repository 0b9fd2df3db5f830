"""Objects of stores on the local disk: whole files by their hash, and blocks of large ones.

    fetch("s3://bucket/pets/catalog.csv", sha256)      # its path here; afterwards `local` knows it
    CachedObject("s3://bucket/pets/pets-test.tfrecord-...", size, sha256).read(1000, 5000)

The folder is $TFPIPE_CACHE, or tfpipe in $XDG_CACHE_HOME or ~/.cache. Everything in it is named
by the SHA-256 that a manifest lists, so that an older or another data set's bytes are never
taken for these. Files appear whole, by a rename: any number of processes share the folder.

Both take $TFPIPE_CACHE_BYTES at most (10 GB; 0 keeps no blocks); above, random blocks are deleted,
and whole files that nobody has opened for a day. Of an epoch that is larger than the cache, the
oldest-first rule would find nothing, and this one finds its share. Blocks are not checked here: a
record has its own CRC, and its reader calls `forget` for one that fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

from tfpipe.common import stores

BLOCK_BYTES = 1 << 19
_FOLDER, _BYTES = "TFPIPE_CACHE", "TFPIPE_CACHE_BYTES"
_USUAL_BYTES = 10 * 10**9
_KEPT = 0.9  # of the bytes, after some were deleted
_BETWEEN = 0.02  # of the bytes that a process writes before it looks again at what is there
_STALE_SECONDS = 3600.0  # of unfinished files
_FILES_SECONDS = 86400.0  # that whole files stay, which readers open now and then

_lock = threading.Lock()
_written: dict[Path, float] = {}  # bytes that this process has written since it looked, by folder
_local: dict[str, Path] = {}


def folder() -> Path:
    """Returns the folder of the cache; it may not exist."""
    given = os.environ.get(_FOLDER)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfpipe"


def limit() -> int:
    """Returns the bytes that blocks may take."""
    text = os.environ.get(_BYTES, "")
    try:
        return max(0, int(float(text))) if text else _USUAL_BYTES
    except ValueError:
        raise ValueError(f"{_BYTES} must be a number of bytes (got {text!r:.50})") from None


def local(path: str | os.PathLike[str]) -> Path | None:
    """Returns the local copy of an object that this process has fetched."""
    copy = _local.get(stores.url(path)) if _local else None
    return copy if copy and copy.exists() else None


def fetch(path: str | os.PathLike[str], sha256: str, *, fresh: bool = False) -> Path | None:
    """Returns the local copy of an object with this hash; None where it has another.

    With `fresh`, the object is read even where its copy is here. Raises OSError.
    """
    file, place = folder() / "files" / sha256, stores.url(path)
    if not fresh and file.is_file() and _sha256(file) == sha256:
        os.utime(file)
        _local[place] = file
        return file
    _local.pop(place, None)
    digest = hashlib.sha256()
    with contextlib.suppress(_OtherHash), whole(file) as target:
        with open(target, "wb") as copy:
            for piece in stores.pieces(path):
                digest.update(piece)
                copy.write(piece)
        if digest.hexdigest() != sha256:
            raise _OtherHash
    if digest.hexdigest() != sha256:
        return None
    _local[place] = file
    return file


class _OtherHash(Exception):
    """An object is not the one that was meant."""


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Yields a name whose file becomes `file`. Not synced: whoever reads it checks it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


class CachedObject:
    """A large object, read by ranges: from blocks on the local disk where they are there.

    Safe to use from several threads and processes.
    """

    def __init__(self, path: str | os.PathLike[str], num_bytes: int, sha256: str) -> None:
        self._path, self._num_bytes = stores.url(path), num_bytes
        self._folder = folder() / "blocks" / sha256[:2] / sha256 if limit() else None
        self._coming: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()

    def read(self, length: int, offset: int) -> bytes:
        """Returns a range's bytes, fewer only at the object's end; raises OSError."""
        end = min(offset + length, self._num_bytes)
        if self._folder is None:
            return stores.read(self._path, max(0, end - offset), offset)
        pieces: dict[int, bytes] = {}
        missing = []
        for block in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            piece = self._cached(self._folder, block, offset, end)
            if piece is None:
                missing.append(block)
            else:
                pieces[block] = piece
        for block, content in self._fetched(self._folder, missing).items() if missing else ():
            start = block * BLOCK_BYTES
            pieces[block] = content[max(0, offset - start) : end - start]
        return b"".join(pieces[block] for block in sorted(pieces))

    def forget(self, length: int, offset: int) -> None:
        """Deletes the blocks of a range, which turned out to be wrong."""
        if self._folder is not None:
            for block in range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)):
                with contextlib.suppress(OSError):
                    (self._folder / str(block)).unlink()

    def _size(self, block: int) -> int:
        return min(BLOCK_BYTES, self._num_bytes - block * BLOCK_BYTES)

    def _cached(self, place: Path, block: int, offset: int, end: int) -> bytes | None:
        """Returns the part of a block that is in a range; None where the block is not here."""
        try:
            descriptor = os.open(place / str(block), os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != self._size(block):  # cut by a power failure
                return None
            first = max(0, offset - block * BLOCK_BYTES)
            wanted = min(self._size(block), end - block * BLOCK_BYTES) - first
            content = os.pread(descriptor, wanted, first)
            return content if len(content) == wanted else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _fetched(self, place: Path, blocks: list[int]) -> dict[int, bytes]:
        """Returns blocks that are not here. What another thread is fetching is waited for."""
        with self._lock:
            others = {block: self._coming[block] for block in blocks if block in self._coming}
            mine = {block: Future[bytes]() for block in blocks if block not in others}
            self._coming |= mine
        try:
            for first, last in _runs(list(mine)):
                for block, content in self._request(place, first, last):
                    mine[block].set_result(content)
        except BaseException as error:
            for future in mine.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            with self._lock:
                for block in mine:
                    del self._coming[block]
        return {block: future.result() for block, future in (mine | others).items()}

    def _request(self, place: Path, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yields neighbouring blocks, from one request, and keeps them."""
        start, end = first * BLOCK_BYTES, min((last + 1) * BLOCK_BYTES, self._num_bytes)
        content = memoryview(stores.read(self._path, end - start, start))
        for block in range(first, last + 1):
            piece = bytes(content[(block - first) * BLOCK_BYTES :][:BLOCK_BYTES])
            with contextlib.suppress(OSError):  # a full disk makes it slower, not wrong
                _make_room(len(piece))
                with whole(place / str(block)) as temporary:
                    temporary.write_bytes(piece)
            yield block, piece


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of neighbours."""
    for index, block in enumerate(blocks):
        if not index or blocks[index - 1] != block - 1:
            first = block
        if index + 1 == len(blocks) or blocks[index + 1] != block + 1:
            yield first, block


def _make_room(num_bytes: int) -> None:
    """Deletes random blocks where there would be more than the limit."""
    place, most = folder() / "blocks", limit()
    with _lock:
        written = _written.get(place, most) + num_bytes  # a process begins with a look
        if written < max(_BETWEEN * most, num_bytes):
            _written[place] = written
            return
        _written[place] = 0
        found, total = [], 0
        for path, status in _files(place.parent):
            age = time.time() - status.st_mtime
            if path.suffix == ".tmp" and age > _STALE_SECONDS:  # of a killed process
                path.unlink(missing_ok=True)
                continue
            total += status.st_size
            if path.parent.name != "files" or age > _FILES_SECONDS:
                found.append((path, status.st_size))
        if total + _BETWEEN * most > most:
            random.shuffle(found)
            while found and total > _KEPT * most:
                path, size = found.pop()
                path.unlink(missing_ok=True)
                total -= size


def _files(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in itertools.chain(place.glob("blocks/*/*/*"), place.glob("files/*")):
        with contextlib.suppress(OSError):
            yield path, path.stat()
