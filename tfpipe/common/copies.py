"""Local copies of what lies in stores, for programs that need files: a model, photos, an output.

    fetched("s3://bucket/runs/a")                  # a folder or file on the local disk, as it is there now
    with sent("s3://bucket/runs/b") as folder:     # a local folder, whose files are stored when the block ends
        ...

The copies are in the cache's folder (see `object_cache`), under a hash of the URL. An output's
folder stays until all of it is stored: a killed command finds its state there and goes on. Objects
are stored whole; those whose presence means that the rest is complete, after all others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tfpipe.common import object_cache, stores
from tfpipe.common.locking import locked
from tfpipe.common.text import format_bytes, plural

_log = logging.getLogger("tfpipe")

# Files that mean: what is beside them is complete.
_LAST = ("run.json", "metrics.json", "SHA256SUMS", "summary.json", "receipt.json", "manifest.json")
_KEPT_HERE = ("state",)  # folders that only the next start of a command needs, as hidden files
_VERSIONS, _STORED, _BEGUN = ".versions.json", ".stored.json", ".begun"
_WRITER = "command"  # in messages
_PIECE_BYTES = 8 << 20


def local(path: str | os.PathLike[str]) -> Path:
    """Returns a local path as it is, and the local copy of a place in a store."""
    return fetched(path) if stores.is_remote(path) else Path(path)


def fetched(path: str | os.PathLike[str]) -> Path:
    """Returns the local copy of an object, or of all objects in a folder, as they are now.

    Objects that have not changed since the last call are not read again.

    Raises:
        FileNotFoundError: there is neither.
        OSError: the store cannot be read, or the copy not be written.
    """
    place = _local("copies", path)
    with locked(place.parent, _WRITER, patience_seconds=math.inf):  # else each deletes what the other is fetching
        if not _fetch_folder(path, place):
            if place.is_dir():
                shutil.rmtree(place)
            _fetch(path, place)
            if place.suffix == ".xml":  # of OpenVINO, which has its weights in a file beside it
                _fetch(Path(path).with_suffix(".bin"), place.with_suffix(".bin"))
    return place


def _local(purpose: str, path: str | os.PathLike[str]) -> Path:
    url = stores.url(path).rstrip("/")
    return object_cache.folder() / purpose / hashlib.sha256(url.encode()).hexdigest()[:32] / url.rpartition("/")[2]


def _fetch_folder(path: str | os.PathLike[str], place: Path) -> bool:
    """Makes a local folder equal to one in a store; returns False where there is none."""
    found = {} if stores.is_web(path) else {entry.name: entry for entry in stores.listed(path) if entry.name}
    if not found:
        return False
    if place.is_file():
        place.unlink()
    place.mkdir(parents=True, exist_ok=True)
    known = _noted(place.parent / _VERSIONS)
    for file in [file for file in place.rglob("*") if file.is_file()]:
        if str(file.relative_to(place)) not in found:
            file.unlink()
    missing = [
        name
        for name, entry in found.items()
        if known.get(name) != entry.version or not (place / name).is_file() or (place / name).stat().st_size != entry.num_bytes
    ]
    if missing:
        num_bytes = sum(found[name].num_bytes for name in missing)
        _log.info("%s: fetching %s, %s", stores.url(path), plural(len(missing), "object"), format_bytes(num_bytes))
    for _ in stores.in_parallel(lambda name: _fetch(Path(path) / name, _below(place, name)), missing):
        pass
    _note(place.parent / _VERSIONS, {name: entry.version for name, entry in found.items()})
    return True


def _below(place: Path, name: str) -> Path:
    file = place / name
    if ".." in Path(name).parts or not file.is_relative_to(place):
        raise ValueError(f"an object's name leads out of its folder: {name!r:.200}")
    return file


def _fetch(path: str | os.PathLike[str], file: Path) -> None:
    with object_cache.whole(file) as temporary, open(temporary, "wb") as target:
        source = stores.opened(path)
        shutil.copyfileobj(source, target, _PIECE_BYTES)


@contextlib.contextmanager
def sent(path: str | os.PathLike[str], result: str = "") -> Iterator[Path]:
    """Yields the local place of an output; what is there when the block ends without an error is stored.

    What the store has already is fetched first, unless an earlier block that failed has left its
    work. Objects that it fetched and whose files are gone at the end are deleted.

    Args:
        path: the place in the store.
        result: name of the object that shows that a folder which is not empty is an earlier output.

    Raises:
        ValueError: nothing can be stored there, other things are there, or others have stored
            something since the work began.
        BlockingIOError: another process has the same output.
        OSError: the store cannot be read or written.
    """
    if stores.is_web(path):
        raise ValueError(f"{stores.url(path)}: a web server stores nothing; write to s3://, gs:// or az://")
    place = _local("work", path)
    with locked(place.parent, _WRITER):
        begun = place.parent / _BEGUN
        if begun.exists():
            _check_unchanged(place, path)
        else:
            there = [entry.name for entry in stores.listed(path)] if result else []
            if there and result not in there:  # said before all of it is fetched
                raise ValueError(
                    f"{stores.url(path)}: the output folder is not empty ({plural(len(there), 'object')}), and has no {result}:"
                    " choose another one, or delete what a killed command has left there"
                )
            shutil.rmtree(place, ignore_errors=True)
            if not _fetch_folder(path, place):
                (place.parent / _VERSIONS).unlink(missing_ok=True)
            _note(place.parent / _STORED, _versions(place))
            begun.touch()
        try:
            yield place
        except BaseException:
            if not place.is_file() and _versions(place) == _noted(place.parent / _STORED):  # nothing to go on with
                shutil.rmtree(place.parent)
            raise
        if place.is_dir():
            _check_unchanged(place, path)
            _store_folder(place, path)
        elif place.exists():
            stores.put(place, path)
        _log.info("%s: stored", stores.url(path))
        shutil.rmtree(place.parent)


def _check_unchanged(place: Path, path: str | os.PathLike[str]) -> None:
    """Raises ValueError where others have stored something; notes what a killed block has."""
    known, stored = _noted(place.parent / _VERSIONS), _noted(place.parent / _STORED)
    found = {entry.name: entry for entry in stores.listed(path) if entry.name}
    changed = [entry for entry in found.values() if known.get(entry.name) != entry.version]
    others = [name for name in known if name not in found and (place / name).exists()]
    equal = stores.in_parallel(lambda entry: _is_equal(_below(place, entry.name), Path(path) / entry.name, entry), changed)
    for entry, is_mine in zip(changed, equal, strict=True):
        if is_mine:
            known[entry.name], stored[entry.name] = entry.version, _version(place / entry.name)
        else:
            others.append(entry.name)
    if others:
        raise ValueError(
            f"{stores.url(path)}: others have stored or deleted objects here since this work began ({min(others)!r:.200}):"
            f" give another output, or delete {place.parent}, the unfinished work, and start again from what is there now"
        )
    _note(place.parent / _VERSIONS, known)
    _note(place.parent / _STORED, stored)


def _is_equal(file: Path, path: Path, entry: stores.Entry) -> bool:
    if not file.is_file() or file.stat().st_size != entry.num_bytes:
        return False
    with open(file, "rb") as here, stores.opened(path) as there:
        return all(piece == there.read(len(piece)) for piece in iter(lambda: here.read(_PIECE_BYTES), b""))


def _store_folder(place: Path, path: str | os.PathLike[str]) -> None:
    """Stores the files of a folder that are not there yet, and deletes objects whose files are gone."""
    stored = _noted(place.parent / _STORED)

    def store(name: str) -> None:
        stores.put(place / name, Path(path) / name)
        stored[name] = _version(place / name)

    def delete(name: str) -> None:
        stores.delete(Path(path) / name)
        del stored[name]

    names = [name for name in _names(place) if stored.get(name) != _version(place / name)]
    gone = [name for name in stored if not (place / name).exists()]
    order = {last: index for index, last in enumerate(_LAST)}
    try:
        for _ in stores.in_parallel(store, [name for name in names if name not in order]):
            pass
        for _ in stores.in_parallel(delete, gone):
            pass
        for name in sorted((name for name in names if name in order), key=order.__getitem__):
            store(name)
    finally:
        _note(place.parent / _STORED, stored)


def _names(place: Path) -> list[str]:
    """Returns the files that are for others, relative to their folder."""
    files = map(Path, _versions(place))
    return sorted(
        str(name) for name in files if not any(part.startswith(".") for part in name.parts) and name.parts[0] not in _KEPT_HERE
    )


def _versions(place: Path) -> dict[str, str]:
    return {str(file.relative_to(place)): _version(file) for file in place.rglob("*") if file.is_file()}


def _version(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _noted(file: Path) -> dict[str, str]:
    try:
        noted: dict[str, str] = json.loads(file.read_bytes())
    except (OSError, ValueError):  # none, or one that a power failure cut
        return {}
    return noted


def _note(file: Path, noted: dict[str, str]) -> None:
    with object_cache.whole(file) as temporary:
        temporary.write_text(json.dumps(noted))
