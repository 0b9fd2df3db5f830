"""Contact sheet: some images of each class, or range of numbers, at a glance.

show("shards/", "sheet.png", split="train", per_class=8)
"""

from __future__ import annotations

import functools
import heapq
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfpipe.common import arguments, seeds
from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, size_of
from tfpipe.common.text import plural
from tfpipe.records import combinations, targets, tfrecord
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import CatalogRow, read_catalog, read_split
from tfpipe.records.manifest import MULTILABEL, Manifest
from tfpipe.records.samples import MAX_BITS, USUAL, Samples
from tfpipe.records.schema import UNLABELLED, Record
from tfpipe.report import sheets
from tfpipe.verification.reading import checked_record

if TYPE_CHECKING:
    from PIL import Image

_DEFAULTS = {"tile": 160, "per_class": 8, "max_classes": 50}


class Sample(NamedTuple):
    """A record that was drawn: its row of the catalog, and its place."""

    row: CatalogRow
    shard: Path
    offset: int


class _Group(NamedTuple):
    """One row of the sheet: a class, a range of numbers, or a split without labels."""

    label: int
    name: str
    num_records: int
    samples: list[Sample]


def show(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    per_class: int = _DEFAULTS["per_class"],
    max_classes: int = _DEFAULTS["max_classes"],
    seed: int = 0,
    tile: int = _DEFAULTS["tile"],
    font: str | os.PathLike[str] | None = None,
) -> None:
    """Draws a PNG with a row of images per class and per unlabelled split, as training sees them.

    Of numbers, a row per range of the first target; the ranges have about as many different values.

    Equal data sets and arguments give equal samples, however the records are sharded. An image that
    cannot be read or decoded, or has more pixels than Pillow's limit, is drawn as a crossed tile
    with the reason.

    Args:
        directory: the data set's folder.
        output: the PNG file, outside the data set; an earlier PNG is replaced, atomically.
        split: the split to draw from, default all.
        per_class: images in a row.
        max_classes: rows at most; the header gives the number of classes.
        seed: of the sample.
        tile: side of an image's place, in pixels.
        font: TrueType or OpenType file; None: the first of some well-known fonts that has every
            character of the names.

    Raises:
        FileExistsError: `output` is something else than a PNG file.
        FileNotFoundError: the manifest, the catalog or the folder for `output` is missing.
        ValueError: there is no such split, a number is too small, `output` lies within the data
            set, or the sheet would have more than 100 million pixels.
        DataError: the catalog or an index is damaged.
        OSError: the font cannot be read.
    """
    per_class, max_classes, tile, seed = arguments.check(per_class=per_class, max_classes=max_classes, tile=tile, seed=seed)
    manifest = manifests.load(directory)
    sheets.check_target(Path(output), Path(directory), "contact sheet")  # before the drawing, which takes a while
    names = list(manifest.splits) if split is None else list(manifest.parts(split))
    manifests.check_hashes(directory, manifest, names)
    samples = Samples.of(manifest.options)
    panels = [
        sheets.Panel(
            None if group.label == UNLABELLED else group.label,
            group.name,
            f"{group.num_records:,}",
            [sheets.Tile(functools.partial(_thumbnail, one, samples, tile), one.row.key) for one in group.samples],
        )
        for group in _groups(Path(directory), manifest, names, per_class, max_classes, seed)
    ]
    detail = _header(manifest, names, per_class, max_classes, seed)
    sheet = sheets.Sheet(manifest.name, [detail], panels, tile=tile, font=font)
    numbers = {"tile": tile, "per_class": per_class, "max_classes": max_classes}
    sheet.save(Path(output), lower=sheets.to_lower(numbers, _DEFAULTS))


def _header(manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> str:
    splits = ", ".join(f"{name} {manifest.split(name).num_records:,}" for name in names)
    total = sum(manifest.split(name).num_records for name in names)
    classes = len(manifest.class_names)
    shown = f"the first {max_classes} of {classes:,} classes" if classes > max_classes else plural(classes, "class", "classes")
    if manifest.targets is not None:
        shown = f"by {manifest.class_names[0]}"
    facts = (f"{plural(total, 'record')} ({splits})", shown, f"up to {per_class} of each, drawn with seed {seed}")
    return "  \u00b7  ".join(facts)


def _groups(directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> list[_Group]:
    samples = draw_samples(directory, manifest, names, per_class, max_classes, seed)
    labelled = [manifest.split(name) for name in names if manifest.split(name).labelled]
    groups = []
    if labelled:
        shown, classes_of = classes(directory, manifest)
        in_ranges: Counter[int] = Counter()
        for split in names if manifest.targets is not None else ():
            in_ranges.update(classes_of(row)[0] for row in read_catalog(directory, split=split))
        for label, name in enumerate(shown[:max_classes]):
            count = in_ranges[label] if in_ranges else sum(split.class_counts[name] for split in labelled)
            groups.append(_Group(label, name, count, samples.get((label, ""), [])))
    for name in names:
        if not manifest.split(name).labelled:
            of_split = samples.get((UNLABELLED, name), [])
            groups.append(_Group(UNLABELLED, f"{name} (no labels)", manifest.split(name).num_records, of_split))
    return groups


def classes(directory: Path, manifest: Manifest) -> tuple[Sequence[str], Callable[[CatalogRow], Sequence[int]]]:
    """Returns the names of a sheet's rows, and the function from a record to the rows that it may be drawn in.

    These are the classes; of numbers, ranges of the first target.
    """
    names = manifest.class_names
    if manifest.targets is not None:
        count, texts = manifest.targets.count, combinations.texts(directory, manifest)
        parts, unit = targets.num_strata(count), manifest.targets.units[names[0]]
        firsts = [-(-part * count // parts) for part in range(parts + 1)]
        ends = [
            [texts[label].split(targets.SEPARATOR)[0] for label in (one, next_one - 1)] for one, next_one in pairwise(firsts)
        ]
        ranges = [f"{names[0]} {least} to {most} {unit}".rstrip() for least, most in ends]
        return ranges, lambda row: [row.label * parts // count if row.label >= 0 else UNLABELLED]
    if manifest.task == MULTILABEL:
        places = {name: index for index, name in enumerate(names)}

        def of(row: CatalogRow) -> Sequence[int]:
            present = combinations.names_of(row.class_name)[0]
            return [UNLABELLED] if row.label == UNLABELLED else [places[one] for one in present]

        return names, of
    return names, lambda row: [row.label]


def draw_samples(
    directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int
) -> dict[tuple[int, str], list[Sample]]:
    """Returns the records with the smallest seeded hashes, by (class, split where unlabelled).

    A record of several labels may be drawn for each of them; of numbers, a class is a range, see `classes`.
    """
    _, classes_of = classes(directory, manifest)
    heaps: dict[tuple[int, str], list[tuple[int, str, Sample]]] = {}
    for name in names:
        for row, offset, _ in read_split(directory, manifest, name):
            for label in classes_of(row):
                if label >= max_classes:
                    continue
                heap = heaps.setdefault((label, name if label == UNLABELLED else ""), [])
                shard = directory / manifest.split(name).shards[row.shard].file
                entry = (-seeds.derive(seed, "show", row.key), row.key, Sample(row, shard, offset))
                if len(heap) < per_class:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
    return {place: [sample for *_, sample in sorted(heap, reverse=True)] for place, heap in heaps.items()}


def _thumbnail(sample: Sample, samples: Samples, tile: int) -> Image.Image:
    """Returns the image, upright, as large as the tile; raises DataError where it cannot."""
    from PIL import ExifTags, Image, ImageOps

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
    small.getexif()[ExifTags.Base.Orientation] = record.orientation
    return ImageOps.exif_transpose(small)


def as_read(encoded: bytes, samples: Samples, side: int) -> Image.Image:
    """Returns an image in RGB, not turned, with training's pixels; CMYK as Pillow converts it.

    A large JPEG is decoded smaller, but no smaller than `side` along its longer side.
    """
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        is_deep = image.format == "PNG" and str(MAX_BITS) in str(image.tile[0].args)
        if is_deep or (image.format != "JPEG" and samples.background != USUAL.background):
            from tfpipe.images.decoding import decode_image

            return Image.fromarray(decode_image(encoded, samples=samples).numpy())
        image.draft("RGB", (side, side))  # a JPEG of 16 megapixels is decoded at an eighth of its size
        image.load()
        image.info.pop("transparency", None)  # Pillow would warn that it is lost
        return image if image.mode == "RGB" else image.convert("RGB")  # may be large: no copy without need


def _stored(sample: Sample) -> Record:
    try:
        with open_regular(sample.shard) as file:
            data = tfrecord.read_frame(file, sample.offset, size_of(file), sample.shard)
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror or error}", path=sample.shard) from None
    return checked_record(data, sample.shard, sample.offset)
