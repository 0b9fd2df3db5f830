"""Verification: every byte of a data set against what was written.

report = verify("shards/")
report.findings          # [] where all is well; each one names shard, offset and source file
verify("shards/", decode=True)          # and whether each picture's compressed data are whole
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tfpipe.common.errors import DataError
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import exactly
from tfpipe.common.workers import count_cores
from tfpipe.records import manifest as manifests
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import read_split
from tfpipe.records.manifest import CATALOG_NAME, Manifest
from tfpipe.verification import companions, scans
from tfpipe.verification.findings import Finding, Findings
from tfpipe.verification.ledger import Ledger
from tfpipe.verification.shards import ShardReport, check_shard, hash_key
from tfpipe.verification.tolerant_catalog import CatalogRows


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        findings: everything that is not as written; the first 1000, if more.
        num_findings: how many there are.
        notes: what is odd and harms nothing: leftovers of a build, other files in the folder.
        num_records: intact records.
        num_shards: shards that the manifest lists.
        num_bytes: of all shards, by the manifest.
        root_hash: the manifest's; "" where that cannot be read.
        num_damaged: findings that concern images as they were before they were packed; only where they were to be decoded.
        num_decoded: images that were decoded.
        decode_seconds: that this took.
    """

    findings: Sequence[DataError]
    num_findings: int
    notes: Sequence[str]
    num_records: int
    num_shards: int
    num_bytes: int
    root_hash: str
    num_damaged: int = 0
    num_decoded: int = 0
    decode_seconds: float = 0.0


def verify(
    directory: str | os.PathLike[str], *, workers: int | None = None, decode: bool = False, progress: bool = True
) -> Report:
    """Checks every byte of a data set, and goes on behind whatever it finds.

    Manifest, sizes and hashes of all shards, indexes and the catalogue, extra shards, the CRCs of each record, its row of the
    catalogue, the hash of its picture, labels, keys, counts per class, split and shard, leaks, and the files beside them.

    Args:
        directory: the data set's folder.
        workers: threads, one shard each; None: one per core. Hashing runs beside Python code, parsing does not. As many
            processes decode.
        decode: follow each picture's compressed data, too, to find what was damaged before it was packed: what TensorFlow's
            decoder warns of, without a name, and what it passes over.
        progress: show it on stderr.

    Raises:
        FileNotFoundError: there is no manifest here.
    """
    folder = Path(directory)
    try:
        manifest = manifests.load(folder)
    except DataError as error:
        return Report([error], 1, [], 0, 0, 0, "")
    return _Verification(folder, manifest).run(workers or count_cores(), decode, progress)


class _Verification:
    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._findings = Findings()
        self._ledger = Ledger()
        self._properties: Counter[str] = Counter()

    def run(self, workers: int, decode: bool, progress: bool) -> Report:
        problems, notes = companions.strangers(self._directory, self._manifest)
        for finding in (
            *companions.check_companions(self._directory, self._manifest),
            *manifests.file_problems(self._directory, self._manifest),
            *problems,
        ):
            self._findings.add(finding)
        self._check_shards(self._catalog_rows(), workers, progress)
        if self._ledger.num_records == self._num_records():
            self._check_properties()
        self._check_keys()
        start = time.monotonic()
        damaged: list[Finding] = []
        num_decoded = 0
        if decode:
            damaged, num_decoded = scans.check_pictures(self._directory, self._manifest, workers, progress=progress)
        for finding in damaged:
            self._findings.add(finding)
        if not self._findings.count:  # what no reader would open is not in order, whatever the reason
            for name in self._manifest.splits:
                try:
                    collections.deque(read_split(self._directory, self._manifest, name), 0)
                except DataError as error:
                    self._findings.add(error)
        splits = self._manifest.splits.values()
        return Report(
            self._findings.kept,
            self._findings.count,
            notes,
            self._ledger.num_records,
            sum(len(split.shards) for split in splits),
            sum(split.num_bytes for split in splits),
            self._manifest.root_hash,
            len(damaged),
            num_decoded,
            time.monotonic() - start,
        )

    def _num_records(self) -> int:
        return sum(split.num_records for split in self._manifest.splits.values())

    def _catalog_rows(self) -> CatalogRows | None:
        path = self._directory / CATALOG_NAME
        try:
            rows = CatalogRows(self._directory)
        except (OSError, DataError):  # `check_companions` says so
            return None
        for problem in rows.problems:
            self._findings.add(problem)
        known = {(name, index) for name, split in self._manifest.splits.items() for index in range(len(split.shards))}
        for split_name, index in sorted(set(rows.shards()) - known):
            self._findings.add(Finding(f"rows of a shard that does not exist: {index} of split {split_name!r}", path=path))
        return rows

    def _check_shards(self, rows: CatalogRows | None, workers: int, progress: bool) -> None:
        places = [(name, index) for name, split in self._manifest.splits.items() for index in range(len(split.shards))]
        lock, stop = threading.Lock(), threading.Event()
        bar = ProgressBar("verify", self._num_records(), enabled=progress)

        def tick(num_records: int, num_bytes: int) -> None:
            if stop.is_set():  # Ctrl-C reaches the main thread only
                raise KeyboardInterrupt
            with lock:
                bar.add(num_records, num_bytes)

        def check(place: tuple[str, int]) -> ShardReport:
            of_shard = None if rows is None else rows.of_shard(*place)
            return check_shard(self._directory, self._manifest, *place, of_shard, tick)

        totals = {name: _Total() for name in self._manifest.splits}
        with bar, ThreadPoolExecutor(workers) as pool:
            try:
                for (name, _), report in zip(places, pool.map(check, places), strict=True):
                    self._findings.extend(report.findings)
                    self._ledger.enter(name, report)
                    self._properties.update(report.properties)
                    totals[name].add(report)
            except BaseException:
                stop.set()
                raise
        for name, total in totals.items():
            self._check_split(name, total)

    def _check_split(self, name: str, total: _Total) -> None:
        """Compares what a split's records add up to; only where all are intact, lost ones being told already."""
        split, path = self._manifest.splits[name], self._directory / manifests.FILE_NAME
        if total.num_records != split.num_records:
            return
        counts = {class_name: total.labels[label] for label, class_name in enumerate(self._manifest.class_names)}
        wrong = {
            class_name: (count, split.class_counts.get(class_name))
            for class_name, count in counts.items()
            if count != split.class_counts.get(class_name)
        }
        for class_name, (count, expected) in wrong.items():
            message = f"split {name!r} has {exactly(count, 'record')} of class {class_name!r}, the manifest says {expected}"
            self._findings.add(Finding(message, path=path))
        if total.image_bytes != split.image_bytes:
            message = (
                f"pictures of split {name!r} have {exactly(total.image_bytes, 'byte')}, the manifest says {split.image_bytes}"
            )
            self._findings.add(Finding(message, path=path))

    def _check_properties(self) -> None:
        path = self._directory / manifests.FILE_NAME
        found = {
            "turned": self._properties["turned"],
            "png": self._properties["png"],
            "duplicates": self._ledger.num_duplicates(),
        }
        for name, count in found.items():
            if count != self._manifest.properties.get(name):
                message = f"{name}: {exactly(count, 'record')}, the manifest says {self._manifest.properties.get(name)}"
                self._findings.add(Finding(message, path=path))
        leaks = self._ledger.num_leaks()
        if leaks != len(self._manifest.leaks):
            message = (
                f"{exactly(leaks, 'picture stands', 'pictures stand')} in more than one split, the manifest notes"
                f" {len(self._manifest.leaks)}"
            )
            self._findings.add(Finding(message, path=path))

    def _check_keys(self) -> None:
        suspects = self._ledger.repeated_keys()
        first: dict[str, str] = {}
        for path, offset, key in self._keys() if suspects else ():
            if hash_key(key) not in suspects:
                continue
            here = f"{path.name} at byte {offset}"
            if key in first:
                message = f"the key {key!r} stands twice: also in {first[key]}"
                self._findings.add(Finding(message, path=path, offset=offset))
            first.setdefault(key, here)

    def _keys(self) -> Iterator[tuple[Path, int, str]]:
        for split in self._manifest.splits.values():
            for shard in split.shards:
                path = self._directory / shard.file
                for piece in tfrecord.salvage_frames(path) if path.is_file() else ():
                    if isinstance(piece, tfrecord.Frame):
                        with contextlib.suppress(DataError):
                            yield path, piece.offset, schema.decode(piece.data).key


@dataclass
class _Total:
    """What the intact records of a split add up to."""

    num_records: int = 0
    image_bytes: int = 0
    labels: Counter[int] = field(default_factory=Counter)

    def add(self, report: ShardReport) -> None:
        self.num_records += report.num_records
        self.image_bytes += report.image_bytes
        self.labels += report.labels
