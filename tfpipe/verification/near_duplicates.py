"""Near-duplicates across the splits of a data set, found without a model.

    for pair in find_near_duplicates("shards/"):
        print(pair.key, pair.other, pair.similarity)

What counts is in `alignment`; an evaluation asks a classifier's features, too. Images are decoded by
Pillow, as they are stored, turned upright.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tfpipe.common.progress import ProgressBar
from tfpipe.common.text import plural
from tfpipe.records import manifest as manifests
from tfpipe.records import tfrecord
from tfpipe.records.manifest import Manifest
from tfpipe.records.schema import Record
from tfpipe.verification.reading import checked_record

_log = logging.getLogger("tfpipe")

_BATCH = 256
_ORIENTATION = 0x0112  # the EXIF tag


class NearDuplicate(NamedTuple):
    """Two images of different splits that look the same; `similarity` is 1 for identical bytes."""

    key: str
    split: str
    other: str
    other_split: str
    similarity: float
    identical: bool


def find_near_duplicates(directory: str | os.PathLike[str], *, workers: int, progress: bool = True) -> list[NearDuplicate]:
    """Returns for each image the one of another split that looks the same and is most similar.

    Each image is decoded once. A pair is reported once, by the image of the smaller split. Memory
    grows with the images of all splits but the largest, by 1 kB each.

    Args:
        directory: of the data set, which `verify` finds in order.
        workers: threads that decode.
        progress: show it on stderr.

    Raises:
        FileNotFoundError, DataError: there is no data set, or it is damaged.
    """
    from tfpipe.verification.alignment import Queries

    manifest = manifests.load(directory)
    # The largest is last and only passed over; of equal ones, train.
    splits = sorted(manifest.splits, key=lambda name: manifest.splits[name].num_records, reverse=True)[::-1]
    found: dict[str, NearDuplicate] = {}
    known: list[tuple[str, Any, dict[str, str]]] = []  # of the splits before: name, queries, keys by hash
    total = sum(split.num_records for split in manifest.splits.values())
    with ProgressBar("near-duplicates", total, enabled=progress) as bar, ThreadPoolExecutor(workers) as pool:
        for split in splits:
            hashes: dict[str, str] = {}

            def batches(name: str = split, hashes: dict[str, str] = hashes) -> Iterator[tuple[Sequence[str], Any]]:
                records = _records(Path(directory), manifest, name)
                while batch := list(itertools.islice(records, _BATCH)):
                    keys, grey = _decoded(pool, batch)
                    hashes |= {record.sha256: record.key for record in batch}
                    for other, queries, by_hash in known:
                        _enter(found, other, queries, by_hash, name, batch, keys, grey)
                    bar.add(len(batch), 0)
                    yield keys, grey

            if split == splits[-1]:
                for _ in batches():
                    pass
            elif manifest.splits[split].num_records:
                known.append((split, Queries(batches()), hashes))
    return sorted(found.values())


def _enter(
    found: dict[str, NearDuplicate],
    split: str,
    queries: Any,
    by_hash: dict[str, str],
    other_split: str,
    batch: Sequence[Record],
    keys: Sequence[str],
    grey: Any,
) -> None:
    """Keeps the best pairs of a batch of one split with the images of another."""
    pairs = [(by_hash[record.sha256], record.key, 1.0, True) for record in batch if record.sha256 in by_hash]
    similar = queries.compare(grey) if len(keys) else ()
    pairs += [(queries.keys[row], keys[column], similarity, False) for row, column, similarity in similar]
    for key, other, similarity, identical in pairs:
        if key not in found or found[key].similarity < similarity:
            found[key] = NearDuplicate(key, split, other, other_split, similarity, identical)


def _records(directory: Path, manifest: Manifest, split: str) -> Iterator[Record]:
    for shard in manifest.splits[split].shards:
        path = directory / shard.file
        for frame in tfrecord.read_frames(path):
            yield checked_record(frame.data, path, frame.offset)


def _decoded(pool: ThreadPoolExecutor, batch: Sequence[Record]) -> tuple[list[str], Any]:
    """Returns the keys of the images that Pillow can decode, and the images, float32 [B, 64, 64]."""
    import numpy as np

    pairs = [(record.key, grey) for record, grey in zip(batch, pool.map(_grey, batch), strict=True) if grey is not None]
    if missing := len(batch) - len(pairs):
        _log.warning("near-duplicates: %s passed over, which Pillow cannot decode", plural(missing, "image"))
    return [key for key, _ in pairs], np.stack([grey for _, grey in pairs]) if pairs else np.empty((0, 64, 64), np.float32)


def _grey(record: Record) -> Any:
    """Returns an image in grey, upright, float32 [64, 64], or None if it cannot be decoded."""
    import numpy as np
    from PIL import Image, ImageOps

    from tfpipe.verification.alignment import SIDE

    try:
        with Image.open(io.BytesIO(record.encoded)) as image:
            image.draft("L", (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded at a fraction of its size
            image.load()
            deep = np.asarray(image, np.float32) / 256 if image.mode.startswith("I") else None  # of 16 bits
            small = (image.convert("L") if deep is None else Image.fromarray(deep)).resize((SIDE, SIDE), Image.Resampling.BOX)
            small.getexif()[_ORIENTATION] = record.orientation
            return np.asarray(ImageOps.exif_transpose(small), np.float32)
    except Exception:  # whatever a decoder raises
        return None
