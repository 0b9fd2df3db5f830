"""Small data sets for the tests of tfpipe.pipeline."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tfpipe.building import metadata_files
from tfpipe.records import catalog, manifest, schema, tfrecord

CLASS_NAMES = ("cat", "dog", "owl")


def make_image(seed: int, height: int = 8, width: int = 8, *, image_format: str = "JPEG", orientation: int = 1) -> bytes:
    """A small smooth image's file, different for every seed."""
    random = np.random.default_rng(seed)
    corners = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    file = io.BytesIO()
    corners.resize((width, height), Image.Resampling.BICUBIC).save(file, image_format, exif=exif)
    return file.getvalue()


def damaged(jpeg: bytes) -> bytes:
    """The same file with a marker inside its scan: its header is intact, and decoders refuse it."""
    scan = jpeg.rindex(b"\xff\xda") + 14
    return jpeg[:scan] + b"\xff\x94" * ((len(jpeg) - 2 - scan) // 2) + jpeg[-2:]


def write_data_set(out: Path, images: list[bytes], num_shards: int, split: str = "test") -> Path:
    (out / "index").mkdir(parents=True)
    rows, shards, counts = [], [], dict.fromkeys(CLASS_NAMES, 0)
    for shard in range(num_shards):
        file = manifest.shard_file("pets", split, shard, num_shards)
        content, index = b"", ""
        first, end = (len(images) * i // num_shards for i in (shard, shard + 1))
        for position, number in enumerate(range(first, end)):
            label = number % len(CLASS_NAMES)
            name = f"{CLASS_NAMES[label]}/{number}.jpg"
            jpeg = images[number]
            sha256 = hashlib.sha256(jpeg).hexdigest()
            record = schema.Record(jpeg, "JPEG", 8, 8, 3, 1, name, name, sha256, label, CLASS_NAMES[label])
            frame = b"".join(tfrecord.frame(schema.encode(record)))
            index += f"{len(content)} {len(frame)}\n"
            content += frame
            (crc,) = struct.unpack("<I", frame[-4:])
            rows.append((name, name, split, shard, position, label, CLASS_NAMES[label], "JPEG", 8, 8, 1, crc, sha256))
            counts[CLASS_NAMES[label]] += 1
        (out / file).write_bytes(content)
        (out / manifest.index_file(file)).write_text(index)
        hashes = [hashlib.sha256(data).hexdigest() for data in (content, index.encode())]
        shards.append(manifest.Shard(file, end - first, len(content), *hashes))
    with open(out / "catalog.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([catalog.COLUMNS, *rows])
    for name in set(manifest.COMPANION_NAMES) - {"catalog.csv"}:
        (out / name).touch()
    companions = metadata_files.hash_companions(out)
    splits = {split: manifest.Split(True, sum(map(len, images)), counts, tuple(shards))}
    manifest.save(manifest.Manifest("pets", 0, CLASS_NAMES, splits, {}, companions, "", {"png16": 0}, {}, (), (), "0"), out)
    return out


def open_descriptors(folder: Path) -> int:
    """How many files below a folder this process holds open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(descriptor).startswith(f"{folder}/")
        except FileNotFoundError:  # the listing's own
            continue
    return count
