"""Verification: every byte of a data set against what was written.

report = verify("shards/")
report.findings          # [] where all is well; each one names shard, offset and source file
verify("shards/", decode=True)          # also follows each image's compressed data
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tfpipe.common import arguments, stores
from tfpipe.common.errors import DataError
from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import alike_groups, exactly, folded, html_table
from tfpipe.common.workers import count_cores
from tfpipe.records import combinations, schema, targets, tfrecord
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import check_frames, read_catalog
from tfpipe.records.manifest import CATALOG_NAME, Groups, Manifest
from tfpipe.verification import scans
from tfpipe.verification.reading import Finding
from tfpipe.verification.shards import Findings, ShardReport, check_shard, hash_key
from tfpipe.verification.tolerant_catalog import CatalogRows

_BUCKETS = 256


@dataclass(frozen=True, repr=False)
class Report:
    """The result of `verify`.

    Attributes:
        findings: everything that differs from what was written; the first 1000, if more.
        num_findings: their number.
        notes: oddities without harm: leftovers of a build, other files in the folder.
        num_records: intact records.
        num_shards: shards that the manifest lists.
        num_bytes: of all shards, by the manifest.
        root_hash: the manifest's; "" where that cannot be read.
        num_damaged: findings about images as they were before they were packed; only with `decode`.
        num_decoded: images that were decoded.
        decode_seconds: the time this took.
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

    def __repr__(self) -> str:
        names = ("num_findings", "num_records", "num_shards", "num_bytes", "num_decoded")
        facts = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"Report({facts}, root_hash={self.root_hash[:12]!r})"

    def _repr_html_(self) -> str:
        rows = [["" if fact is None else fact for fact in (each.path, each.offset, each.message)] for each in self.findings]
        return html_table(repr(self), ["file", "byte", "finding"], rows)


def verify(data: str | os.PathLike[str], *, workers: int | None = None, decode: bool = False, progress: bool = True) -> Report:
    """Checks every byte of a data set, and continues after whatever it finds.

    Manifest, sizes and hashes of all shards, indexes and the catalog, extra shards, the CRCs of
    each record, its row of the catalog, the hash of its image, labels, keys, counts per class,
    split and shard, leaks, groups across splits, and the files beside them.

    Args:
        data: the data set's folder.
        workers: threads, one shard each; None: one per core. Hashing runs beside Python code,
            parsing does not. As many processes decode.
        decode: also follow each image's compressed data, to find what was damaged before it was
            packed: what TensorFlow's decoder warns of, without a name, and what it ignores.
        progress: show it on stderr.

    Raises:
        FileNotFoundError: there is no manifest here.
    """
    decode, progress = arguments.check(decode=decode, progress=progress)
    (workers,) = arguments.check_given(workers=workers)
    folder = arguments.path("data", data)
    try:
        manifest = manifests.load(folder)
    except DataError as error:
        return Report([error], 1, [], 0, 0, 0, "")
    return _Verification(folder, manifest).run(workers or count_cores(), decode, progress)


class Ledger:
    """Hashes of the keys and contents of all records: keys must be unique, and leaks be noted.

    Of every key and image 8 bytes of a hash are kept, in arrays of 256 buckets: 16 MB for a million
    records where a set of keys would take 150 MB. One bucket at a time becomes a set. Keys whose
    hashes meet are looked up again and compared in full, so that a chance meeting (1 in 40 million
    for a million records) is not a finding. SQLite would need less memory, and longer than hashing
    the images.
    """

    def __init__(self) -> None:
        self.num_records = 0
        self._keys = _buckets()
        self._contents: dict[str, list[array[int]]] = {}
        self.groups: dict[str, set[int]] = {}

    def enter(self, split: str, report: ShardReport) -> None:
        """Adds the records of one shard."""
        self.num_records += report.num_records
        _spread(report.key_hashes, self._keys)
        _spread(report.content_hashes, self._contents.setdefault(split, _buckets()))
        self.groups.setdefault(split, set()).update(report.group_hashes)

    def repeated_keys(self) -> set[int]:
        """Returns the hashes that more than one key has."""
        doubtful = (bucket for bucket in self._keys if len(set(bucket)) < len(bucket))
        return {value for bucket in doubtful for value, count in Counter(bucket).items() if count > 1}

    def num_duplicates(self) -> int:
        """Returns the number of records with the bytes of an earlier one."""
        splits = self._contents.values()
        distinct = sum(len({value for split in splits for value in split[bucket]}) for bucket in range(_BUCKETS))
        return self.num_records - distinct

    def num_leaks(self) -> int:
        """Returns the number of images in more than one split."""
        leaks = 0
        for bucket in range(_BUCKETS):
            splits = Counter(value for split in self._contents.values() for value in set(split[bucket]))
            leaks += sum(count > 1 for count in splits.values())
        return leaks

    def num_torn(self) -> int:
        """Returns the number of groups in more than one split."""
        splits = Counter(group for groups in self.groups.values() for group in groups)
        return sum(count > 1 for count in splits.values())


def _buckets() -> list[array[int]]:
    return [array("Q") for _ in range(_BUCKETS)]


def _spread(values: Iterable[int], buckets: list[array[int]]) -> None:
    for value in values:
        buckets[value % _BUCKETS].append(value)


class _Verification:
    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory, self._manifest = directory, manifest
        self._findings, self._notes = Findings(), list[str]()
        self._ledger = Ledger()
        self._properties: Counter[str] = Counter()
        self._num_records = sum(split.num_records for split in manifest.splits.values())
        self._places = [(name, index) for name, split in manifest.splits.items() for index in range(len(split.shards))]

    def run(self, workers: int, decode: bool, progress: bool) -> Report:
        directory, manifest, splits = self._directory, self._manifest, self._manifest.splits.values()
        expected = dict(manifest.companions)
        for name in manifest.splits:
            expected |= manifests.frames_hash(manifest, name)
        hashed = (manifests.hash_problem(directory / name, sha256) for name, sha256 in expected.items())
        self._findings.add(*filter(None, hashed), *manifests.file_problems(directory, manifest))
        self._check_other_files()
        self._check_shards(self._catalog_rows(), workers, progress)
        if self._ledger.num_records == self._num_records:
            self._check_properties()
            if manifest.groups is not None:
                self._check_groups(manifest.groups)
        self._check_keys()
        start = time.monotonic()
        damaged, num_decoded = scans.check_images(directory, manifest, workers, progress=progress) if decode else ([], 0)
        decode_seconds = time.monotonic() - start
        self._findings.add(*damaged)
        if not self._findings.count:  # a data set that no reader would open is not in order, whatever the reason
            for name in manifest.splits:
                try:
                    check_frames(directory, manifest, name)
                except DataError as error:
                    self._findings.add(error)
        return Report(
            self._findings.kept,
            self._findings.count,
            self._notes,
            self._ledger.num_records,
            len(self._places),
            sum(split.num_bytes for split in splits),
            manifest.root_hash,
            len(damaged),
            num_decoded,
            decode_seconds,
        )

    def _check_other_files(self) -> None:
        """Finds files that a glob for shards would match, and notes others that do not belong."""
        manifest = self._manifest
        shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
        known = {*shards, *manifest.companions, manifests.FILE_NAME, manifests.INDEX_FOLDER}
        # Extra shards of the data set's own splits are among `manifest.file_problems`.
        reported = tuple(f"{manifest.name}-{split}.tfrecord-" for split in manifest.splits)
        present, indexes_present = manifests.names_in(self._directory)
        for name in sorted(set(present) - known):
            if name == manifests.BUILD_FOLDER:
                self._notes.append(f"{name}/: left by a build that was stopped at its very end; the same build removes it")
            elif ".tfrecord" not in name or name.startswith("."):
                self._notes.append(f"{name}: not part of the data set")
            elif not name.startswith(reported):
                path = self._directory / name
                self._findings.add(Finding("a TFRecord file that the manifest does not list", path=path))
        indexes = {*map(manifests.index_file, shards)}
        indexes |= {manifests.frames_file(manifest.name, name) for name, split in manifest.splits.items() if split.frames}
        indexes |= {manifest.label_rows[0]} if manifest.label_rows else set()
        self._notes += [f"{path}: the index of no shard" for path in indexes_present if path not in indexes]

    def _catalog_rows(self) -> CatalogRows | None:
        try:
            rows = CatalogRows(self._directory)
        except (OSError, DataError):  # its hash was a finding already
            return None
        self._findings.add(*rows.problems)
        for split_name, index in sorted(set(rows.shards()) - set(self._places)):
            message = f"rows of a shard that does not exist: {index} of split {split_name!r}"
            self._findings.add(Finding(message, path=self._directory / CATALOG_NAME))
        return rows

    def _check_shards(self, rows: CatalogRows | None, workers: int, progress: bool) -> None:
        lock, stop = threading.Lock(), threading.Event()
        bar = ProgressBar("verify", self._num_records, enabled=progress)

        def tick(num_records: int, num_bytes: int) -> None:
            if stop.is_set():  # Ctrl-C reaches the main thread only
                raise KeyboardInterrupt
            with lock:
                bar.add(num_records, num_bytes)

        def check(place: tuple[str, int]) -> ShardReport:
            of_shard = None if rows is None else rows.of_shard(*place)
            return check_shard(self._directory, self._manifest, *place, of_shard, tick, texts)

        try:
            texts = combinations.texts(self._directory, self._manifest)
        except DataError as error:
            self._findings.add(error)
            texts = []
        totals = {name: ShardReport() for name in self._manifest.splits}
        with bar, ThreadPoolExecutor(workers) as pool:
            try:
                for (name, _), report in zip(self._places, pool.map(check, self._places), strict=True):
                    self._findings.add(*report.findings.kept, count=report.findings.count)
                    self._ledger.enter(name, report)
                    self._properties.update(report.properties)
                    totals[name].num_records += report.num_records
                    totals[name].image_bytes += report.image_bytes
                    totals[name].labels += report.labels
                    totals[name].unknown += report.unknown
            except BaseException:
                stop.set()
                raise
        for name, total in totals.items():
            if total.num_records == self._manifest.splits[name].num_records:  # else lost ones were reported
                self._check_split(name, total, texts)

    def _add_mismatch(self, message: str) -> None:
        self._findings.add(Finding(message, path=self._directory / manifests.FILE_NAME))

    def _check_split(self, name: str, total: ShardReport, texts: Sequence[str]) -> None:
        """Compares the sums over a split's records with the manifest."""
        split, names = self._manifest.splits[name], self._manifest.class_names
        if split.statistics is not None and all(0 <= label < len(texts) for label in total.labels):  # else it was reported
            rows = {label: targets.values_of(texts[label]) for label in total.labels}
            found = targets.statistics(names, lambda: ((rows[label], count) for label, count in total.labels.items()))
            for target in (one for one in names if found[one] != split.statistics[one]):
                self._add_mismatch(f"split {name!r} has {found[target]} of {target!r}, not as listed")
        for label, class_name in enumerate(names if self._manifest.targets is None else ()):
            count, expected = total.labels[label], split.class_counts.get(class_name)
            if count != expected:
                records = exactly(count, "record")
                self._add_mismatch(f"split {name!r} has {records} of class {class_name!r}, the manifest lists {expected}")
            if split.labelled and split.unknown_counts is not None and total.unknown[label] != split.unknown_counts[class_name]:
                self._add_mismatch(
                    f"split {name!r} has {total.unknown[label]} that may have class {class_name!r}, not as listed"
                )
        if total.image_bytes != split.image_bytes:
            size = exactly(total.image_bytes, "byte")
            self._add_mismatch(f"images of split {name!r} have {size}, the manifest lists {split.image_bytes}")

    def _check_properties(self) -> None:
        names = ("turned", "png", *({"webp", "bmp"} & {*self._properties, *self._manifest.properties}))
        found = {name: self._properties[name] for name in names} | {"duplicates": self._ledger.num_duplicates()}
        for name, count in found.items():
            expected = self._manifest.properties.get(name)
            if count != expected:
                self._add_mismatch(f"{name}: {exactly(count, 'record')}, the manifest lists {expected}")
        leaks, noted = self._ledger.num_leaks(), len(self._manifest.leaks)
        if leaks != noted:
            self._add_mismatch(f"{exactly(leaks, 'image is', 'images are')} in more than one split, the manifest notes {noted}")

    def _check_groups(self, groups: Groups) -> None:
        torn, noted = self._ledger.num_torn(), len(groups.torn)
        if torn != noted:
            self._add_mismatch(f"{exactly(torn, 'group is', 'groups are')} in more than one split, the manifest notes {noted}")
        for split, expected in groups.splits.items():
            count = len(self._ledger.groups[split])
            if count != expected.num_groups:
                found = exactly(count, "group")
                self._add_mismatch(f"split {split!r} has {found}, the manifest lists {expected.num_groups}")
        with contextlib.suppress(OSError, DataError):  # of the catalog, which were findings already
            first: dict[str, str] = {}
            rows = ((first.setdefault(folded(row.group), row.group), row.group) for row in read_catalog(self._directory))
            if pairs := {(min(pair), max(pair)) for pair in rows if pair[0] != pair[1]}:
                self._notes.append(alike_groups(sorted(pairs)))

    def _check_keys(self) -> None:
        suspects = self._ledger.repeated_keys()
        first: dict[str, str] = {}
        for path, offset, key in self._keys() if suspects else ():
            if hash_key(key) in suspects:
                if key in first:
                    message = f"the key {key!r} occurs twice: also in {first[key]}"
                    self._findings.add(Finding(message, path=path, offset=offset))
                first.setdefault(key, f"{path.name} at byte {offset}")

    def _keys(self) -> Iterator[tuple[Path, int, str]]:
        for split in self._manifest.splits.values():
            for shard in split.shards:
                path = self._directory / shard.file
                for piece in tfrecord.salvage_frames(path) if stores.is_remote(path) or path.is_file() else ():
                    if isinstance(piece, tfrecord.RawRecord):
                        with contextlib.suppress(DataError):
                            yield path, piece.offset, schema.decode(piece.data).key
