"""Contact sheet: some images of each class at a glance.

show("shards/", "sheet.png", split="train", per_class=8)
"""

from __future__ import annotations

import functools
import heapq
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfpipe.common import arguments, seeds
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular
from tfpipe.common.text import plural
from tfpipe.images.pillow_decoding import as_read
from tfpipe.records import manifest as manifests
from tfpipe.records import tfrecord
from tfpipe.records.catalog import CatalogRow, read_split
from tfpipe.records.manifest import Manifest
from tfpipe.records.samples import Samples
from tfpipe.records.schema import UNLABELLED, Record
from tfpipe.report import sheets
from tfpipe.verification.reading import checked_record

if TYPE_CHECKING:
    from PIL import Image

_USUAL = {"tile": 160, "per_class": 8, "max_classes": 50}

# What ImageOps.exif_transpose does, by the orientation that the record stores: Image.Transpose
# members by name.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Sample(NamedTuple):
    """A record that was drawn: its row of the catalogue, and where it stands."""

    row: CatalogRow
    shard: Path
    offset: int


class _Group(NamedTuple):
    """One row of the sheet: a class, or a split without labels."""

    label: int
    name: str
    num_records: int
    samples: list[Sample]


def show(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    per_class: int = _USUAL["per_class"],
    max_classes: int = _USUAL["max_classes"],
    seed: int = 0,
    tile: int = _USUAL["tile"],
    font: str | os.PathLike[str] | None = None,
) -> None:
    """Draws a PNG with one row of images per class and one per unlabelled split, upright and in the colours of training.

    Equal data sets and arguments give equal samples, however the records are sharded. An image that
    cannot be read or decoded, or has more pixels than Pillow's limit, is drawn as a crossed tile
    with the reason, also where its whole shard is missing.

    Args:
        directory: the data set's folder.
        output: the PNG file, not within the data set; written atomically. A PNG that is there is
            replaced, nothing else is.
        split: the split to draw from, default all.
        per_class: images in a row.
        max_classes: rows at most; the header says how many classes there are.
        seed: draws the sample.
        tile: side of an image's place, in pixels.
        font: TrueType or OpenType file; None: the first of some well-known fonts that has every
            character of the names.

    Raises:
        FileExistsError: there is something at `output` that is no PNG file.
        FileNotFoundError: there is no manifest, no catalogue, or no folder for `output`.
        ValueError: there is no such split, a number is too small, `output` lies within the data
            set, or the sheet would have more than 100 million pixels.
        DataError: the catalogue or an index is damaged.
        OSError: the font cannot be read.
    """
    per_class, max_classes, tile, seed = arguments.check(per_class=per_class, max_classes=max_classes, tile=tile, seed=seed)
    manifest = manifests.load(directory)
    sheets.check_target(Path(output), Path(directory), "contact sheet")  # before the drawing, which takes a while
    names = list(manifest.splits) if split is None else [split]
    manifests.check_hashes(directory, manifest, names)
    groups = _groups(Path(directory), manifest, names, per_class, max_classes, seed)
    title, detail = _header(manifest, names, per_class, max_classes, seed)
    samples = Samples.of(manifest.options)
    sheet = sheets.Sheet(title, [detail], [_panel(group, samples, tile) for group in groups], tile=tile, font=font)
    sheet.save(Path(output), lower=sheets.to_lower({"tile": tile, "per_class": per_class, "max_classes": max_classes}, _USUAL))


def _panel(group: _Group, samples: Samples, tile: int) -> sheets.Panel:
    label = None if group.label == UNLABELLED else group.label
    tiles = [sheets.Tile(functools.partial(_thumbnail, sample, samples, tile), sample.row.key) for sample in group.samples]
    return sheets.Panel(label, group.name, f"{group.num_records:,}", tiles)


def _header(manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> tuple[str, str]:
    splits = ", ".join(f"{name} {manifest.split(name).num_records:,}" for name in names)
    total = sum(manifest.split(name).num_records for name in names)
    classes = len(manifest.class_names)
    shown = f"the first {max_classes} of {classes:,} classes" if classes > max_classes else plural(classes, "class", "classes")
    facts = (f"{plural(total, 'record')} ({splits})", shown, f"up to {per_class} of each, drawn with seed {seed}")
    return manifest.name, "  \u00b7  ".join(facts)


def _groups(directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> list[_Group]:
    samples = draw_samples(directory, manifest, names, per_class, max_classes, seed)
    labelled = [manifest.split(name) for name in names if manifest.split(name).labelled]
    groups = []
    if labelled:
        for label, name in enumerate(manifest.class_names[:max_classes]):
            count = sum(split.class_counts[name] for split in labelled)
            groups.append(_Group(label, name, count, samples.get((label, ""), [])))
    for name in names:
        if not manifest.split(name).labelled:
            of_split = samples.get((UNLABELLED, name), [])
            groups.append(_Group(UNLABELLED, f"{name} (no labels)", manifest.split(name).num_records, of_split))
    return groups


def draw_samples(
    directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int
) -> dict[tuple[int, str], list[Sample]]:
    """Returns the records with the smallest seeded hashes of their keys, by (label, split where unlabelled)."""
    heaps: dict[tuple[int, str], list[tuple[int, str, Sample]]] = {}
    for name in names:
        for row, offset, _ in read_split(directory, manifest, name):
            if row.label >= max_classes:
                continue
            heap = heaps.setdefault((row.label, name if row.label == UNLABELLED else ""), [])
            shard = directory / manifest.split(name).shards[row.shard].file
            entry = (-seeds.derive(seed, "show", row.key), row.key, Sample(row, shard, offset))
            if len(heap) < per_class:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)
    return {place: [sample for *_, sample in sorted(heap, reverse=True)] for place, heap in heaps.items()}


def _thumbnail(sample: Sample, samples: Samples, tile: int) -> Image.Image:
    """Returns the image, upright, no side longer than the tile.

    Raises:
        DataError: the record is damaged, its shard cannot be read, or Pillow cannot decode its
            image.
    """
    from PIL import Image

    record = _stored(sample)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a reason for a crossed tile, not for stderr
            small = sheets.fit(as_read(record.encoded, samples, 2 * tile), tile)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        message = f"{record.width:,} x {record.height:,} pixels are more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(message, path=sample.shard, offset=sample.offset) from None
    except Exception as error:  # whatever a decoder raises on damaged bytes: one tile, not the sheet
        message = f"Pillow cannot decode it: {error or type(error).__name__}"
        raise DataError(message, path=sample.shard, offset=sample.offset) from None
    if record.orientation in _TURNS:
        small = small.transpose(Image.Transpose[_TURNS[record.orientation]])
    return small


def _stored(sample: Sample) -> Record:
    try:
        with open_regular(sample.shard) as file:
            data = tfrecord.read_frame(file, sample.offset, os.fstat(file.fileno()).st_size, sample.shard)
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror or error}", path=sample.shard) from None
    return checked_record(data, sample.shard, sample.offset)
