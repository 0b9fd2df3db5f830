"""An output that takes long: what is done lies in a hidden file beside it, and the next process goes on from there.

    with unfinished(Path("out.csv"), {"model": sha256, "inputs": sha256}) as work:
        for ... in everything_from(work.following):
            work.append(following, {"rows": ...})
        with written_atomically(Path("out.csv")) as file:
            for part in work.parts(): ...

`.out.csv.partial` is lines of JSON, each after its CRC: what the work belongs to, then a part in
each, with its place and that of what follows it. From the first line on that is damaged, or does
not follow the one before, nothing is taken, nor are parts of other work. The file is locked while a
process has it, and gone when the block ends well.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfpipe.common.errors import DataError

_log = logging.getLogger("tfpipe")


class Unfinished:
    """What is done of an output.

    Attributes:
        following: place of what comes after the last part; 0 where there is none.
    """

    def __init__(self, output: Path, descriptor: int, purpose: Mapping[str, str]) -> None:
        self.following = 0
        self._output, self._descriptor = output, descriptor
        self._start = self._end = 0
        self._load(purpose)
        os.ftruncate(descriptor, self._end)  # a cut line
        if not self._end:
            self._write(purpose)
            self._start = self._end

    def append(self, following: int, part: Mapping[str, Any]) -> None:
        """Adds a part.

        Raises:
            OSError: it cannot be written; it names the output.
        """
        self._write({"start": self.following, "following": following, **part})
        self.following = following

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yields all parts, also those of processes before this one."""
        return (part for part, _ in _chained(_whole_lines(self._descriptor, self._start)))

    def _write(self, content: Mapping[str, Any]) -> None:
        data, place = _sealed(json.dumps(content).encode()), self._end
        try:
            while data:  # a disk that is nearly full takes what fits
                written = os.pwrite(self._descriptor, data, place)
                data, place = data[written:], place + written
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self._output)) from error
        self._end = place

    def _load(self, purpose: Mapping[str, str]) -> None:
        lines = _whole_lines(self._descriptor, 0)
        found, end = next(lines, ({}, 0))
        if found == purpose:
            self._start = self._end = end
            for part, stop in _chained(lines):
                self.following, self._end = part["following"], stop
        elif found:
            others = ", ".join(name for name in purpose if found.get(name) != purpose[name])
            _log.info("%s: begins anew: what was done before is of other %s", self._output, others)


def _whole_lines(descriptor: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields what the lines say, each with where it ends, up to the first that is damaged."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(start)
        for line in file:
            start += len(line)
            payload = line[9:-1]
            if line != _sealed(payload):
                return
            yield json.loads(payload), start


def _chained(lines: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the parts, up to the first that does not begin where the one before ended."""
    following = 0
    for part, end in lines:
        if part["start"] != following:
            return
        following = part["following"]
        yield part, end


def _sealed(payload: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


@contextlib.contextmanager
def unfinished(output: Path, purpose: Mapping[str, str]) -> Iterator[Unfinished]:
    """Opens what is done of an output, and holds it against other processes.

    Stays behind when the block is left by an error or Ctrl-C after a part was done, unless that
    error is bad data, which the same command would only meet again.

    Args:
        output: the file to write in the block.
        purpose: what decides about its content, by names for people ("inputs"): hashes.

    Raises:
        BlockingIOError: another process is writing this output.
        OSError: the folder cannot be written to, or the disk is full; names the output.
    """
    path = output.with_name(f".{output.name}.partial")
    with _locked(path, output) as descriptor:
        keep = os.fstat(descriptor).st_size > 0  # Ctrl-C while it is read deletes nothing
        try:
            work = Unfinished(output, descriptor, purpose)
            try:
                yield work
                keep = False
            except DataError:
                keep = False
                raise
            except BaseException:
                keep = work.following > 0
                raise
        finally:
            if not keep:
                path.unlink(missing_ok=True)  # while it is locked: nobody takes a file that is about to go


@contextlib.contextmanager
def _locked(path: Path, output: Path) -> Iterator[int]:
    # Not `records.locking`, which locks the folder: two outputs in one folder do not meet.
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(output)) from error
        try:
            _lock(descriptor, output)
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not one that was just finished
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"{output}: another process is writing it; wait for it, or stop it") from None
