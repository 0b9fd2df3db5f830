"""One shard, checked to the last byte against manifest, index and catalogue.

    report = check_shard("shards/", manifest, "train", 0, rows)
    report.findings.kept                       # [] where all is well

Records are found by the index, so that a damaged one does not hide those behind it. Where the index itself is damaged,
they are found by their CRCs.

What follows on the bytes that the manifest tells of is never read, however long a shard has become: that its size differs is
`manifest.file_problems`' to tell.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.common.text import exactly
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import Row, read_index
from tfpipe.records.manifest import Manifest, hash_problem, index_file
from tfpipe.records.schema import UNLABELLED, Record
from tfpipe.verification.findings import Finding, Findings
from tfpipe.verification.reading import name_problem
from tfpipe.verification.tolerant_catalog import Cursor

_TICK_RECORDS = 64
_PIECE_BYTES = 1 << 20
_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
_COMPARED = ("key", "filename", "label", "class_name", "format", "height", "width", "orientation", "sha256")

Tick = Callable[[int, int], None]  # records and bytes done since the last call


@dataclass
class ShardReport:
    """What one shard holds.

    Attributes:
        findings: everything that is not as written.
        num_records: intact records.
        image_bytes: the sum of their pictures' sizes.
        labels: intact records by label.
        properties: intact records by name, as in `Manifest.properties`: those that a record itself tells.
        key_hashes: 8 bytes that stand for each key.
        content_hashes: 8 bytes that stand for each picture's bytes.
    """

    findings: Findings = field(default_factory=Findings)
    num_records: int = 0
    image_bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    properties: Counter[str] = field(default_factory=Counter)
    key_hashes: array[int] = field(default_factory=lambda: array("Q"))
    content_hashes: array[int] = field(default_factory=lambda: array("Q"))


class _Piece(NamedTuple):
    """What stands at one place of a shard: a record's data, or what is wrong there."""

    offset: int
    data: bytes | None
    problem: str = ""
    end: int = 0


def check_shard(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    split: str,
    shard_index: int,
    rows: Iterator[Row] | None,
    tick: Tick = lambda _records, _bytes: None,
) -> ShardReport:
    """Checks one shard: its hash, its index, each frame's CRCs, each record against its row, each picture's hash.

    A size that is not the manifest's is no finding here, see `manifest.file_problems`; what it costs in records is one.

    Args:
        directory: the data set's folder.
        manifest: its manifest.
        split: the split's name.
        shard_index: of the shard within its split.
        rows: the shard's rows of the catalogue; None where there is no catalogue.
        tick: told now and then about records and bytes done.
    """
    return _ShardCheck(Path(directory), manifest, split, shard_index, rows, tick).run()


class _ShardCheck:
    def __init__(
        self, directory: Path, manifest: Manifest, split: str, shard_index: int, rows: Iterator[Row] | None, tick: Tick
    ) -> None:
        self._manifest = manifest
        self._split = manifest.split(split)
        self._shard = self._split.shards[shard_index]
        self._path = directory / self._shard.file
        self._index_path = directory / index_file(self._shard.file)
        self._rows = None if rows is None else Cursor(rows)
        self._tick = tick
        self._ticked = 0  # bytes told so far
        self._size = 0  # bytes to look at
        self.report = ShardReport()

    def run(self) -> ShardReport:
        try:
            self._check()
        except (FileNotFoundError, DataError):  # `manifest.file_problems` says so; what is lost is told here
            pass
        except OSError as error:  # a bad sector, say
            self._add(f"cannot be read: {error.strerror or error}")
        if self._rows is not None:
            for row in self._rows.rest():
                self._add("lost: the catalogue has this record, the shard has not", source=row.filename)
        return self.report

    def _check(self) -> None:
        with open_regular(self._path) as file:
            found = os.fstat(file.fileno()).st_size
            self._size = min(found, self._shard.num_bytes)
            # The hash of a shorter one differs anyway. Which it is instead is not told, see `manifest.hash_problem`.
            if found >= self._shard.num_bytes and _sha256_of_start(file, self._size) != self._shard.sha256:
                self._add("the shard's SHA-256 is not the one that the manifest lists")
        if self._index_is_whole():
            self._check_by_index()
        elif found > self._shard.num_bytes:
            self._check_in_order()
        else:
            self._check_by_scan()

    def _add(self, message: str, offset: int | None = None, source: str = "", path: Path | None = None) -> None:
        self.report.findings.add(Finding(message, path=path or self._path, offset=offset, source=source))

    def _index_is_whole(self) -> bool:
        problem = hash_problem(self._index_path, self._shard.index_sha256)
        if problem:
            self.report.findings.add(problem)
        return problem is None

    def _check_by_index(self) -> None:
        position, done = -1, 0
        try:
            for position, piece in enumerate(self._pieces_by_index()):
                row = self._rows.take(position) if self._rows else None
                self._check_piece(piece, row, position)
                done = piece.end
        except DataError as error:  # an index that is wrong and yet as the manifest says: never written by tfpipe
            self.report.findings.add(error)
        self._check_count(position + 1, "the index lists")
        if self._size > done:
            self._add(f"{exactly(self._size - done, 'byte')} behind the last record", offset=done)

    def _pieces_by_index(self) -> Iterator[_Piece]:
        with open_regular(self._path) as file:
            for offset, length in read_index(self._index_path):
                try:
                    data = tfrecord.read_frame(file, offset, self._size, self._path)
                except DataError as error:
                    yield _Piece(offset, None, error.message, offset + length)
                    continue
                found = tfrecord.FRAME_BYTES + len(data)
                if found == length:
                    yield _Piece(offset, data, "", offset + length)
                else:
                    yield _Piece(
                        offset, None, f"a record of {exactly(found, 'byte')}, the index says {length}", offset + length
                    )

    def _check_in_order(self) -> None:
        """Checks the records up to the first damage: behind it, a search would run to the end of a file of any length."""
        count = offset = 0
        try:
            with open_regular(self._path) as file:
                while offset < self._size:
                    data = tfrecord.read_frame(file, offset, self._size, self._path)
                    self._check_piece(_Piece(offset, data), self._rows.take(None) if self._rows else None, count)
                    count, offset = count + 1, offset + tfrecord.FRAME_BYTES + len(data)
        except DataError as error:
            self._add(f"{error.message}; index and size are wrong too: not searched for records from here on", offset=offset)
        self._check_count(count, "the shard begins with")

    def _check_by_scan(self) -> None:
        count, after_gap = 0, False
        for piece in tfrecord.salvage_frames(self._path):
            if isinstance(piece, tfrecord.Gap):
                self._add(
                    f"{exactly(piece.end - piece.start, 'byte holds', 'bytes hold')} no intact record", offset=piece.start
                )
                after_gap = True
                continue
            row = None
            if self._rows:
                if after_gap:
                    self._resume_rows(piece)
                row = self._rows.take(None)
            self._check_piece(_Piece(piece.offset, piece.data), row, count)
            count, after_gap = count + 1, False
        self._check_count(count, "the shard holds")

    def _resume_rows(self, piece: tfrecord.Frame) -> None:
        """Steps over the rows of records that a gap has swallowed."""
        try:
            key = schema.decode(piece.data).key
        except DataError:
            return
        while self._rows and (row := self._rows.peek()) is not None and row.key != key:
            self._rows.take(None)
            self._add("lost: it stood in the damaged bytes before this record", offset=piece.offset, source=row.filename)

    def _check_count(self, count: int, what: str) -> None:
        if count != self._shard.num_records:
            self._add(f"{what} {exactly(count, 'record')}, the manifest says {self._shard.num_records}")

    def _check_piece(self, piece: _Piece, row: Row | None, position: int) -> None:
        if piece.data is None:
            self._add(f"record {position}: {piece.problem}", offset=piece.offset, source=row.filename if row else "")
        else:
            self._check_record(piece.data, piece.offset, row, position)
        if position % _TICK_RECORDS == _TICK_RECORDS - 1 or position == self._shard.num_records - 1:
            self._tick(position % _TICK_RECORDS + 1, piece.offset - self._ticked)
            self._ticked = piece.offset

    def _check_record(self, data: bytes, offset: int, row: Row | None, position: int) -> None:
        try:
            record = schema.decode(data)
        except DataError as error:
            self._add(f"record {position}: {error.message}", offset=offset, source=row.filename if row else "")
            return
        digest = hashlib.sha256(record.encoded)
        problems = self._row_problems(record, data, row)
        if digest.hexdigest() != record.sha256:
            problems.append(f"the picture's SHA-256 is {digest.hexdigest()}, the record says {record.sha256}")
        if schema.encode(record) != data:  # two readers may understand it differently
            problems.append("the record has these features, but not the bytes that tfpipe writes for them")
        if not record.encoded.startswith(_SIGNATURES.get(record.format, ())):
            problems.append(f"the image is no {record.format!r:.20}")
        if problem := name_problem(record.filename):
            problems.append(problem)
        problems += self._label_problems(record)
        if problems:
            message = f"record {position} ({record.key}): {'; '.join(problems)}"
            self._add(message, offset=offset, source=record.filename)
        self._count(record, digest.digest())

    def _row_problems(self, record: Record, data: bytes, row: Row | None) -> list[str]:
        if row is None:
            return [] if self._rows is None else ["the catalogue has no row for it"]
        problems = [
            f"{name} is {getattr(record, name)!r}, the catalogue says {getattr(row, name)!r}"
            for name in _COMPARED
            if getattr(record, name) != getattr(row, name)
        ]
        crc = tfrecord.masked_crc32c(data)
        if crc != row.crc32c:
            problems.append(f"the record's CRC is {crc}, the catalogue says {row.crc32c}")
        return problems

    def _label_problems(self, record: Record) -> list[str]:
        names = self._manifest.class_names
        if not self._split.labelled:
            bare = record.label == UNLABELLED and not record.class_name
            return [] if bare else [f"label {record.label} ({record.class_name!r}) in a split without labels"]
        if not 0 <= record.label < len(names):
            return [f"label {record.label} is not one of the {exactly(len(names), 'class', 'classes')}"]
        if record.class_name != names[record.label]:
            return [f"class name {record.class_name!r}, label {record.label} is {names[record.label]!r}"]
        return []

    def _count(self, record: Record, digest: bytes) -> None:
        report = self.report
        report.num_records += 1
        report.image_bytes += len(record.encoded)
        report.labels[record.label] += 1
        report.properties["turned"] += record.orientation > 1
        report.properties["png"] += record.format == "PNG"
        report.key_hashes.append(hash_key(record.key))
        report.content_hashes.append(int.from_bytes(digest[:8], "little"))


def _sha256_of_start(file: BinaryIO, num_bytes: int) -> str:
    digest = hashlib.sha256()
    while piece := file.read(min(_PIECE_BYTES, num_bytes)):
        digest.update(piece)
        num_bytes -= len(piece)
    return digest.hexdigest()


def hash_key(key: str) -> int:
    """Returns 64 bits that stand for a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
