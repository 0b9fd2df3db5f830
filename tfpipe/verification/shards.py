"""Checks of one shard, to the last byte, against manifest, index and catalog.

    report = check_shard("shards/", manifest, "train", 0, rows)
    report.findings.kept                       # [] where all is well

Records are found by the index, so that a damaged one does not hide those after it; where the index
itself is damaged, by their CRCs. Bytes after those that the manifest lists are never read, however
long a shard has become: `manifest.file_problems` reports sizes.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, size_of
from tfpipe.common.text import exactly
from tfpipe.records import combinations, schema, targets, tfrecord
from tfpipe.records.catalog import OPTIONAL, CatalogRow, read_index
from tfpipe.records.manifest import Manifest, Shard, Split, hash_problem, index_file
from tfpipe.records.schema import UNLABELLED, Record
from tfpipe.verification.reading import Finding, name_problem
from tfpipe.verification.tolerant_catalog import Cursor

MAX_KEPT = 1000  # findings of one report: a million damaged records must not fill the memory
_TICK_RECORDS = 64
_PIECE_BYTES = 1 << 20
_SIGNATURES = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF", "BMP": b"BM"}
_COMPARED = ("key", "filename", "label", "class_name", "format", "height", "width", "orientation", "sha256")

Tick = Callable[[int, int], None]  # records and bytes done since the last call


@dataclass
class Findings:
    """Collects findings: all are counted, the first `MAX_KEPT` are kept."""

    kept: list[DataError] = field(default_factory=list)
    count: int = 0

    def add(self, *findings: DataError, count: int | None = None) -> None:
        """Keeps findings while there is room; `count` includes those dropped elsewhere."""
        self.kept += findings[: max(0, MAX_KEPT - len(self.kept))]
        self.count += len(findings) if count is None else count


@dataclass
class ShardReport:
    """The content of one shard."""

    findings: Findings = field(default_factory=Findings)  # everything that differs from what was written
    num_records: int = 0  # intact ones, as the following counts
    image_bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    unknown: Counter[int] = field(default_factory=Counter)  # of several labels an image
    properties: Counter[str] = field(default_factory=Counter)  # see `Manifest.properties`
    key_hashes: array[int] = field(default_factory=lambda: array("Q"))  # 8 bytes each
    content_hashes: array[int] = field(default_factory=lambda: array("Q"))
    group_hashes: set[int] = field(default_factory=set)


def check_shard(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    split: str,
    shard_index: int,
    rows: Iterator[CatalogRow] | None,
    tick: Tick = lambda _records, _bytes: None,
    texts: Sequence[str] | None = None,
) -> ShardReport:
    """Checks one shard: its hash, index, CRCs, records against rows, and image hashes.

    A wrong size is not a finding here, see `manifest.file_problems`; the records that it costs are.
    `rows` are the shard's rows of the catalog, None without one; `texts` those
    of `combinations.texts`, the class names by default; `tick` is called now and then
    with the records and bytes done.
    """
    shard = manifest.split(split).shards[shard_index]
    facts = manifest, manifest.split(split), shard, manifest.class_names if texts is None else texts
    check = _ShardCheck(Path(directory) / shard.file, *facts, Cursor(rows), rows is None, tick)
    try:
        check.run()
    except (FileNotFoundError, DataError):  # reported by `manifest.file_problems`; the lost records follow below
        pass
    except OSError as error:  # a bad sector, say
        check.add(f"cannot be read: {error.strerror or error}")
    for row in check.rows.rest():
        check.add("lost: the catalog has this record, the shard has not", source=row.filename)
    return check.report


@dataclass
class _ShardCheck:
    path: Path
    manifest: Manifest
    split: Split
    shard: Shard
    texts: Sequence[str]  # of labels
    rows: Cursor
    lacks_catalog: bool
    tick: Tick
    ticked: int = 0  # bytes reported so far
    size: int = 0  # bytes to look at
    report: ShardReport = field(default_factory=ShardReport)

    def run(self) -> None:
        index_path = self.path.parent / index_file(self.shard.file)
        with open_regular(self.path) as file:
            found = size_of(file)
            self.size = min(found, self.shard.num_bytes)
            # The hash of a shorter one differs anyway. The other hash is not shown, see
            # `manifest.hash_problem`.
            if found >= self.shard.num_bytes and _sha256_of_start(file, self.size) != self.shard.sha256:
                self.add("the shard's SHA-256 is not the one that the manifest lists")
            problem = hash_problem(index_path, self.shard.index_sha256)
            if problem is None:
                self._check_by_index(file, index_path)
                return
            self.report.findings.add(problem)
            if found > self.shard.num_bytes:
                self._check_in_order(file)
                return
        self._check_by_scan()

    def add(self, message: str, offset: int | None = None, source: str = "") -> None:
        self.report.findings.add(Finding(message, path=self.path, offset=offset, source=source))

    def _check_by_index(self, file: BinaryIO, index_path: Path) -> None:
        position, done = -1, 0
        try:
            for position, (offset, length) in enumerate(read_index(index_path)):
                row = self.rows.take(position)
                try:
                    data = tfrecord.read_frame(file, offset, self.size, self.path)
                    found = tfrecord.FRAME_BYTES + len(data)
                    problem = "" if found == length else f"a record of {exactly(found, 'byte')}, the index has {length}"
                except DataError as error:
                    data, problem = b"", error.message
                self._check_record(data, offset, row, position, problem)
                done = offset + length
        except DataError as error:  # an index that is wrong and yet as the manifest lists it: never written by tfpipe
            self.report.findings.add(error)
        self._check_count(position + 1, "the index lists")
        if self.size > done:
            self.add(f"{exactly(self.size - done, 'byte')} after the last record", offset=done)

    def _check_in_order(self, file: BinaryIO) -> None:
        """Checks records up to the first damage; a search could take as long as any file."""
        count = offset = 0
        try:
            while offset < self.size:
                data = tfrecord.read_frame(file, offset, self.size, self.path)
                self._check_record(data, offset, self.rows.take(None), count)
                count, offset = count + 1, offset + tfrecord.FRAME_BYTES + len(data)
        except DataError as error:
            self.add(f"{error.message}; index and size are wrong too: not searched for records from here on", offset=offset)
        self._check_count(count, "the shard begins with")

    def _check_by_scan(self) -> None:
        count, after_gap = 0, False
        for piece in tfrecord.salvage_frames(self.path):
            if isinstance(piece, tfrecord.Gap):
                size = exactly(piece.end - piece.start, "byte holds", "bytes hold")
                self.add(f"{size} no intact record", offset=piece.start)
                after_gap = True
                continue
            if after_gap:
                self._resume_rows(piece)
            self._check_record(piece.data, piece.offset, self.rows.take(None), count)
            count, after_gap = count + 1, False
        self._check_count(count, "the shard holds")

    def _resume_rows(self, piece: tfrecord.RawRecord) -> None:
        """Steps over the rows of records that a gap has swallowed."""
        try:
            key = schema.decode(piece.data).key
        except DataError:
            return
        while (row := self.rows.peek()) is not None and row.key != key:
            self.rows.take(None)
            self.add("lost: it stood in the damaged bytes before this record", offset=piece.offset, source=row.filename)

    def _check_count(self, count: int, what: str) -> None:
        if count != self.shard.num_records:
            self.add(f"{what} {exactly(count, 'record')}, the manifest lists {self.shard.num_records}")

    def _check_record(self, data: bytes, offset: int, row: CatalogRow | None, position: int, problem: str = "") -> None:
        """Checks one record; `problem` is why it could not be read."""
        try:
            record = None if problem else schema.decode(data)
        except DataError as error:
            record, problem = None, error.message
        if record is None:
            self.add(f"record {position}: {problem}", offset=offset, source=row.filename if row else "")
        else:
            digest = hashlib.sha256(record.encoded)
            if problems := self._problems(record, data, digest.hexdigest(), row):
                self.add(f"record {position} ({record.key}): {'; '.join(problems)}", offset=offset, source=record.filename)
            self._count(record, digest.digest())
        if position % _TICK_RECORDS == _TICK_RECORDS - 1 or position == self.shard.num_records - 1:
            self.tick(position % _TICK_RECORDS + 1, offset - self.ticked)
            self.ticked = offset

    def _problems(self, record: Record, data: bytes, digest: str, row: CatalogRow | None) -> list[str]:
        problems = []
        if row is not None:
            crc = tfrecord.masked_crc32c(data)
            facts = [(name, getattr(record, name), getattr(row, name)) for name in _COMPARED]
            facts += [(name, getattr(record, name) or "", getattr(row, name)) for name in OPTIONAL]
            problems += [f"{name} is {is_!r}, the catalog has {was!r}" for name, is_, was in facts if is_ != was]
            problems += [f"the record's CRC is {crc}, the catalog has {row.crc32c}"] if crc != row.crc32c else []
        elif not self.lacks_catalog:
            problems.append("the catalog has no row for it")
        if digest != record.sha256:
            problems.append(f"the image's SHA-256 is {digest}, the record has {record.sha256}")
        if schema.encode(record) != data:  # two readers may understand it differently
            problems.append("the record has these features, but not the bytes that tfpipe writes for them")
        if not record.encoded.startswith(_SIGNATURES.get(record.format, ())):
            problems.append(f"the image is not {record.format!r:.20}")
        if (record.group is None) != (self.manifest.groups is None):
            lacks = record.group is None
            problems.append(f"a record {'without' if lacks else 'with'} a group in a data set {'with' if lacks else 'without'}")
        others = name_problem(record.filename), self._label_problem(record), self._history_problem(record)
        return [*problems, *filter(None, others)]

    def _history_problem(self, record: Record) -> str:
        decided = self.manifest.decisions
        classes = tuple(decided.relabelled.get(record.key, ())) if decided else ()
        return "" if record.history == classes else f"classes before decisions {record.history}, the manifest lists {classes}"

    def _label_problem(self, record: Record) -> str:
        names, label, name = self.texts, record.label, record.class_name
        several, numbers = self.manifest.combinations is not None, self.manifest.targets is not None
        if several != (record.labels is not None) or numbers != (record.targets is not None):
            return f"one label, a list of them and numbers are different tasks, and the data set's is {self.manifest.task}"
        if record.targets is not None and targets.text_of(record.targets) != name:
            return f"targets {record.targets} are not those of {name!r}"
        if several and self.split.labelled and _lists(record) != self._lists_of(name):
            return f"labels {_lists(record)} are not those of {name!r}"
        if not self.split.labelled:
            return "" if label == UNLABELLED and not name else f"label {label} ({name!r}) in a split without labels"
        if not 0 <= label < len(names):
            return f"label {label} is not one of the {exactly(len(names), *(('row',) if numbers else ('class', 'classes')))}"
        return "" if name == names[label] else f"class name {name!r}, label {label} is {names[label]!r}"

    def _lists_of(self, text: str) -> tuple[tuple[int, ...], ...]:
        places = {name: index for index, name in enumerate(self.manifest.class_names)}
        return tuple(tuple(sorted(places.get(name, -1) for name in part)) for part in combinations.names_of(text))

    def _count(self, record: Record, digest: bytes) -> None:
        report = self.report
        report.num_records += 1
        report.image_bytes += len(record.encoded)
        report.labels.update([record.label] if record.labels is None else record.labels)
        report.unknown.update(record.unknown or ())
        report.properties["turned"] += record.orientation > 1
        report.properties[record.format.lower()] += 1
        report.key_hashes.append(hash_key(record.key))
        report.content_hashes.append(int.from_bytes(digest[:8], "little"))
        if record.group:
            report.group_hashes.add(hash_key(record.group))


def _lists(record: Record) -> tuple[tuple[int, ...], ...]:
    return record.labels or (), record.unknown or ()


def _sha256_of_start(file: BinaryIO, num_bytes: int) -> str:
    digest = hashlib.sha256()
    while piece := file.read(min(_PIECE_BYTES, num_bytes)):
        digest.update(piece)
        num_bytes -= len(piece)
    return digest.hexdigest()


def hash_key(key: str) -> int:
    """Returns 64 bits that stand for a key, or a group."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
