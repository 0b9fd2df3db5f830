"""Resumable output: a hidden file keeps finished parts, after which the next process continues.

    with unfinished(Path("out.csv"), {"model": sha256, "inputs": sha256}) as work:
        for ... in everything_from(work.following):
            work.append(following, {"rows": ...})
        with written_atomically(Path("out.csv")) as file:
            for part in work.parts(): ...

`.out.csv.partial` holds lines of JSON, each after its CRC: the purpose of the work, then parts,
each with its position and that of its successor. Parts of other work are ignored, and so is
everything from the first line on that is damaged or does not follow its predecessor. The file is
locked while it is in use, and deleted when the block ends without an error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfpipe.common.errors import DataError
from tfpipe.common.locking import lock_at_once

_log = logging.getLogger("tfpipe")


class Unfinished:
    """The finished parts of an output.

    Attributes:
        following: position after the last part; 0 without any.
    """

    def __init__(self, output: Path, descriptor: int, purpose: Mapping[str, str]) -> None:
        self.following = self._start = self._end = 0
        self._output, self._descriptor = output, descriptor
        lines = _whole_lines(descriptor, 0)
        found, end = next(lines, ({}, 0))
        if found == purpose:
            self._start = self._end = end
            for part, stop in _chained(lines):
                self.following, self._end = part["following"], stop
        elif found:
            others = ", ".join(name for name in purpose if found.get(name) != purpose[name])
            _log.info("%s: starts from scratch: the unfinished output is of other %s", output, others)
        os.ftruncate(descriptor, self._end)  # a cut line
        if not self._end:
            self._write(purpose)
            self._start = self._end

    def append(self, following: int, part: Mapping[str, Any]) -> None:
        """Adds a part; raises OSError that names the output where that fails."""
        self._write({"start": self.following, "following": following, **part})
        self.following = following

    def parts(self) -> Iterator[dict[str, Any]]:
        """Yields all parts, also those of former processes."""
        return (part for part, _ in _chained(_whole_lines(self._descriptor, self._start)))

    def _write(self, content: Mapping[str, Any]) -> None:
        data, place = _with_crc(json.dumps(content).encode()), self._end
        with _naming(self._output):
            while data:  # a disk that is nearly full takes what fits
                written = os.pwrite(self._descriptor, data, place)
                data, place = data[written:], place + written
        self._end = place


def _whole_lines(descriptor: int, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the content and end of each line, up to the first damaged one."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(start)
        for line in file:
            start += len(line)
            payload = line[9:-1]
            if line != _with_crc(payload):
                return
            yield json.loads(payload), start


def _chained(lines: Iterator[tuple[dict[str, Any], int]]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields parts up to the first that does not start where its predecessor ended."""
    following = 0
    for part, end in lines:
        if part["start"] != following:
            return
        following = part["following"]
        yield part, end


def _with_crc(payload: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


@contextlib.contextmanager
def unfinished(output: Path, purpose: Mapping[str, str]) -> Iterator[Unfinished]:
    """Opens the finished parts of an output and locks them against other processes.

    They are kept if the block is left by an error or Ctrl-C after at least one part, unless the
    error is a `DataError`, which the same command would only meet again.

    Args:
        output: the file to write in the block.
        purpose: hashes of everything that determines the content, by names for people ("inputs").

    Raises:
        BlockingIOError: another process is writing this output.
        OSError: the folder cannot be written to, or the disk is full; names the output.
    """
    path = output.with_name(f".{output.name}.partial")
    descriptor = _lock(path, output)
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
        os.close(descriptor)


def _lock(path: Path, output: Path) -> int:
    # The file, not its folder as a build does: two outputs in one folder do not conflict.
    while True:
        with _naming(output):
            path.touch()
        try:
            return lock_at_once(path)
        except BlockingIOError:
            raise BlockingIOError(f"{output}: another process is writing it; wait for it, or stop it") from None
        except FileNotFoundError:
            continue  # another process has just finished it


@contextlib.contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Makes errors name the output instead of the hidden file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(output)) from error
