"""Data sets to break: a tiny one that is built, and one whose records are forged and whose hashes all agree."""

import csv
import dataclasses
import hashlib
import io
import shutil

from conftest import make_image, write

import tfpipe
from tfpipe.records import manifest as manifests
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import COLUMNS, CatalogRow
from tfpipe.records.manifest import CATALOG_NAME, index_file


def build_tiny(root, *, num=3, **options):
    """One class, one split, one shard of `num` records, unless the options say otherwise."""
    for index in range(num):
        write(root / "in" / "小 猫" / f"猫 {index}.jpg", make_image(index, (8, 8), quality=20))
    arguments = {"name": "tiny", "layout": "folders", "progress": False, "workers": 1, **options}
    tfpipe.build_tfrecords(root / "in", root / "out", **arguments)
    return root / "out"


def copied(directory, to):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(directory, to)
    return to


def records_of(directory, shard):
    return [schema.decode(frame.data) for frame in tfrecord.read_frames(directory / shard.file)]


def forge(directory, change):
    """Rewrites the first shard's records with `change(records) -> records`, and every hash and count of a file with it."""
    manifest = manifests.load(directory)
    name, split = next(iter(manifest.splits.items()))
    shard = split.shards[0]
    data, index, rows = bytearray(), "", []
    has_groups = manifest.groups is not None
    for position, record in enumerate(change(records_of(directory, shard))):
        frame = b"".join(tfrecord.frame(schema.encode(record)))
        index += f"{len(data)} {len(frame)}\n"
        fields = {field: getattr(record, field) for field in CatalogRow._fields if hasattr(record, field)}
        crc = int.from_bytes(frame[-4:], "little")
        row = CatalogRow(split=name, shard=0, position=position, crc32c=crc, **fields)
        rows.append(row[: len(COLUMNS) + has_groups])
        data += frame
    old = list(csv.reader((directory / CATALOG_NAME).read_text("utf-8").splitlines(keepends=True)))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([old[0], *rows, *[line for line in old[1:] if line[2:4] != [name, "0"]]])
    (directory / shard.file).write_bytes(data)
    (directory / index_file(shard.file)).write_text(index)
    (directory / CATALOG_NAME).write_text(table.getvalue(), encoding="utf-8", newline="")
    sha256 = hashlib.sha256(data).hexdigest()
    forged = manifests.Shard(shard.file, len(rows), len(data), sha256, hashlib.sha256(index.encode()).hexdigest())
    splits = {**manifest.splits, name: dataclasses.replace(split, shards=(forged, *split.shards[1:]))}
    companions = {**manifest.companions, manifests.CATALOG_NAME: hashlib.sha256(table.getvalue().encode()).hexdigest()}
    manifests.save(dataclasses.replace(manifest, splits=splits, companions=companions), directory)


def replaced(number, **changes):
    """A change for `forge`: other values in one record."""
    return lambda records: [
        dataclasses.replace(record, **changes) if index == number else record for index, record in enumerate(records)
    ]
