"""Opening a split of a data set whose shards hold nothing: all that a reader needs is beside them.

python -m tfpipe.tools.benchmarks.opening FOLDER
"""

from __future__ import annotations

import csv
import resource
import sys
import time
from pathlib import Path

from tfpipe.building import metadata_files
from tfpipe.common.files import sha256_of
from tfpipe.records import manifest
from tfpipe.records.catalog import COLUMNS, FRAME

_NUM_SHARDS, _RECORD_BYTES = 100, 20_000
_CLASS_NAMES = ("cat", "dog")


def make(folder: Path, num_records: int) -> None:
    """Writes a data set of one split, with catalog, indexes and manifest; its shards are holes."""
    (folder / manifest.INDEX_FOLDER).mkdir(parents=True)
    shards = []
    frames_path = folder / manifest.frames_file("many", "train")
    with open(folder / manifest.CATALOG_NAME, "w", newline="") as file, open(frames_path, "wb") as frames:
        catalog = csv.writer(file, lineterminator="\n")
        catalog.writerow(COLUMNS)
        for shard in range(_NUM_SHARDS):
            name = manifest.shard_file("many", "train", shard, _NUM_SHARDS)
            first, end = (num_records * part // _NUM_SHARDS for part in (shard, shard + 1))
            with open(folder / manifest.index_file(name), "w") as index:
                for number in range(first, end):
                    label, position = number % len(_CLASS_NAMES), number - first
                    class_name = _CLASS_NAMES[label]
                    key = f"{class_name}/{number:09d}.jpg"
                    crc32c = number * 2654435761 % (1 << 32)
                    row = label, class_name, "JPEG", 375, 500, 1, crc32c, f"{number:064x}"
                    catalog.writerow((key, key, "train", shard, position, *row))
                    frames.write(FRAME.pack(position * _RECORD_BYTES, _RECORD_BYTES, crc32c, label))
                    index.write(f"{position * _RECORD_BYTES} {_RECORD_BYTES}\n")
            with open(folder / name, "wb") as hole:
                hole.truncate((end - first) * _RECORD_BYTES)
            index_sha256 = sha256_of(folder / manifest.index_file(name))
            shards.append(manifest.Shard(name, end - first, (end - first) * _RECORD_BYTES, "0" * 64, index_sha256))
    for name in set(manifest.COMPANION_NAMES) - {manifest.CATALOG_NAME}:
        (folder / name).touch()
    counts = {name: len(range(label, num_records, len(_CLASS_NAMES))) for label, name in enumerate(_CLASS_NAMES)}
    frames_of_all = manifest.Frames(sha256_of(frames_path), manifest.Traits(longer=500))
    splits = {"train": manifest.Split(True, num_records * _RECORD_BYTES, counts, tuple(shards), frames_of_all)}
    companions = metadata_files.hash_companions(folder)
    facts = {"class_names": _CLASS_NAMES, "splits": splits, "companions": companions, "tfpipe_version": "0"}
    empty = {"options": {}, "properties": {"png16": 0}, "rejected": {}, "conflicts": (), "leaks": ()}
    manifest.save(manifest.Manifest(name="many", seed=0, inputs_sha256="", **facts, **empty), folder)  # type: ignore[arg-type]


def main() -> None:
    """Prints the seconds and the memory that opening takes, beside TensorFlow."""
    from tfpipe.pipeline.reading import RecordReader

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    reader = RecordReader(sys.argv[1], "train")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{reader.num_records:,} records opened in {seconds:.2f} s, with {(after - before) / 1024:.0f} MiB beside TensorFlow")


if __name__ == "__main__":
    main()
