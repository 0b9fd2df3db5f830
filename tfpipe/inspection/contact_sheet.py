"""Contact sheet: some pictures of each class at a glance.

show("shards/", "sheet.png", split="train", per_class=8)
"""

from __future__ import annotations

import heapq
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfpipe.inspection import fonts
from tfpipe.inspection.fonts import Fonts
from tfpipe.inspection.reading import checked_record
from tfpipe.records import manifest as manifests
from tfpipe.records import seeds, tfrecord
from tfpipe.records.catalog import Row, read_split
from tfpipe.records.errors import DataError
from tfpipe.records.files import written_atomically
from tfpipe.records.manifest import Manifest
from tfpipe.records.schema import UNLABELLED, Record
from tfpipe.records.summary import plural

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_log = logging.getLogger("tfpipe")

_BACKGROUND, _PANEL, _MAT = "#f4f4f1", "#ffffff", "#eceae4"
_INK, _FAINT, _ALARM = "#22252a", "#7d8087", "#b3412e"
_MARGIN, _GAP, _HEADER, _CAPTION, _PADDING = 28, 10, 84, 20, 14

_MAX_PIXELS = 100_000_000  # of the whole sheet: 300 MB of memory, and few viewers open more
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_USUAL = {"tile": 160, "per_class": 8, "max_classes": 50}

# What ImageOps.exif_transpose does, by the orientation that the record stores: Image.Transpose members by name.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class _Sample(NamedTuple):
    row: Row
    shard: Path
    offset: int


class _Group(NamedTuple):
    """One row of the sheet: a class, or a split without labels."""

    label: int
    name: str
    num_records: int
    samples: list[_Sample]


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
    """Draws a PNG with one row of pictures per class and one per unlabelled split, turned upright.

    Equal data sets and arguments give equal samples, however the records are sharded. A picture that cannot be read or
    decoded, or has more pixels than Pillow's limit, is drawn as a crossed tile with the reason, also where its whole shard
    is missing.

    Args:
        directory: the data set's folder.
        output: the PNG file, not within the data set; written atomically. A PNG that is there is replaced, nothing else is.
        split: the split to draw from, default all.
        per_class: pictures in a row.
        max_classes: rows at most; the header says how many classes there are.
        seed: draws the sample.
        tile: side of a picture's place, in pixels.
        font: TrueType or OpenType file; None: the first of some well-known fonts that has every character of the names.

    Raises:
        FileExistsError: there is something at `output` that is no PNG file.
        FileNotFoundError: there is no manifest, no catalogue, or no folder for `output`.
        ValueError: there is no such split, a number is too small, `output` lies within the data set, or the sheet would have
            more than 100 million pixels.
        DataError: the catalogue or an index is damaged.
        OSError: the font cannot be read.
    """
    for name, value, least in (("per_class", per_class, 1), ("max_classes", max_classes, 1), ("tile", tile, 32)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more (got {value})")
    manifest = manifests.load(directory)
    _check_target(Path(output), Path(directory))  # before the drawing, which takes a while
    names = list(manifest.splits) if split is None else [split]
    groups = _groups(Path(directory), manifest, names, per_class, max_classes, seed)
    text = "".join(group.name + "".join(sample.row.key for sample in group.samples) for group in groups)
    sheet = _Sheet(tile, fonts.choose(manifest.name + text, font))
    title, detail = _header(manifest, names, per_class, max_classes, seed)
    width, height = sheet.measure(title, detail, groups)
    if width * height > _MAX_PIXELS:
        raise ValueError(_too_large(width, height, {"tile": tile, "per_class": per_class, "max_classes": max_classes}))
    picture = sheet.draw(title, detail, groups)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    with written_atomically(Path(output)) as file:
        file.write(encoded.getvalue())


def _check_target(target: Path, directory: Path) -> None:
    """Refuses to write where something would be lost: a photograph, say, when the arguments stand in the wrong order."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder, for the contact sheet {target.name}")
    if target.parent.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{target}: the contact sheet must be written outside the data set's folder")
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        with open(target, "rb") as file:
            if file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE:
                return
    kind = "a folder" if stat.S_ISDIR(mode) else "something else than a PNG file"
    raise FileExistsError(f"{target}: {kind} is there; it was not overwritten")


def _too_large(width: int, height: int, arguments: dict[str, int]) -> str:
    raised = [f"--{name}" for name, value in arguments.items() if value > _USUAL[name]]
    lower = " or ".join(raised or [f"--{name}" for name in arguments])
    return (
        f"the sheet would have {width:,} x {height:,} = {width * height:,} pixels, at most {_MAX_PIXELS:,} can be drawn: lower"
        f" {lower}"
    )


def _header(manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> tuple[str, str]:
    splits = ", ".join(f"{name} {manifest.split(name).num_records:,}" for name in names)
    total = sum(manifest.split(name).num_records for name in names)
    classes = len(manifest.class_names)
    shown = f"the first {max_classes} of {classes:,} classes" if classes > max_classes else plural(classes, "class", "classes")
    facts = (f"{plural(total, 'record')} ({splits})", shown, f"up to {per_class} of each, drawn with seed {seed}")
    return manifest.name, "  \u00b7  ".join(facts)


def _groups(directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int) -> list[_Group]:
    samples = _draw_samples(directory, manifest, names, per_class, max_classes, seed)
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


def _draw_samples(
    directory: Path, manifest: Manifest, names: list[str], per_class: int, max_classes: int, seed: int
) -> dict[tuple[int, str], list[_Sample]]:
    """Returns the records with the smallest seeded hashes of their keys, by (label, split where unlabelled)."""
    heaps: dict[tuple[int, str], list[tuple[int, str, _Sample]]] = {}
    for name in names:
        for row, offset, _ in read_split(directory, manifest, name):
            if row.label >= max_classes:
                continue
            heap = heaps.setdefault((row.label, name if row.label == UNLABELLED else ""), [])
            shard = directory / manifest.split(name).shards[row.shard].file
            entry = (-seeds.derive(seed, "show", row.key), row.key, _Sample(row, shard, offset))
            if len(heap) < per_class:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)
    return {place: [sample for *_, sample in sorted(heap, reverse=True)] for place, heap in heaps.items()}


class _Sheet:
    """Where things stand on the sheet."""

    def __init__(self, tile: int, chosen: Fonts) -> None:
        self._tile, self._fonts = tile, chosen
        self._title = chosen.of_size(28)
        self._name = chosen.of_size(19)
        self._small = chosen.of_size(13)
        self._caption = chosen.of_size(max(9, min(12, tile // 13)))
        self._row_height = 34 + tile + _CAPTION + 2 * _PADDING

    def measure(self, title: str, detail: str, groups: list[_Group]) -> tuple[int, int]:
        """Returns width and height of the sheet that `draw` draws."""
        columns = max((len(group.samples) for group in groups), default=1) or 1
        inside = columns * (self._tile + _GAP) - _GAP + 2 * _PADDING
        needed = int(max(self._title.getlength(title), self._small.getlength(detail)))
        width = 2 * _MARGIN + max(inside, needed)
        height = _MARGIN + _HEADER + len(groups) * (self._row_height + _GAP) - _GAP + _MARGIN
        return width, height

    def draw(self, title: str, detail: str, groups: list[_Group]) -> Image.Image:
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", self.measure(title, detail, groups), _BACKGROUND)
        canvas = ImageDraw.Draw(picture)
        canvas.text((_MARGIN, _MARGIN), self._fonts.shown(title), _INK, self._title)
        canvas.text((_MARGIN, _MARGIN + 42), detail, _FAINT, self._small)
        for index, group in enumerate(groups):
            self._draw_group(picture, canvas, group, _MARGIN + _HEADER + index * (self._row_height + _GAP))
        return picture

    def _draw_group(self, picture: Image.Image, canvas: ImageDraw.ImageDraw, group: _Group, top: int) -> None:
        right = picture.width - _MARGIN
        canvas.rounded_rectangle((_MARGIN, top, right, top + self._row_height), 8, _PANEL)
        left = _MARGIN + _PADDING
        if group.label != UNLABELLED:
            left += self._draw_label(canvas, group.label, left, top + _PADDING) + 12
        count = f"{group.num_records:,}"
        room = right - _PADDING - int(self._small.getlength(count)) - 12 - left
        name = fonts.shortened(self._fonts.shown(group.name), self._name, room)
        canvas.text((left, top + _PADDING), name, _INK, self._name)
        left += int(self._name.getlength(name)) + 12
        canvas.text((left, top + _PADDING + 6), count, _FAINT, self._small)
        for column, sample in enumerate(group.samples):
            place = _MARGIN + _PADDING + column * (self._tile + _GAP), top + _PADDING + 34
            self._draw_sample(picture, canvas, sample, place)

    def _draw_label(self, canvas: ImageDraw.ImageDraw, label: int, left: int, top: int) -> int:
        """Draws a label on a chip, so that it is not taken for the class's name; returns the chip's width."""
        text = str(label)
        width = max(24, int(self._small.getlength(text)) + 14)
        canvas.rounded_rectangle((left, top, left + width, top + 24), 12, _MAT)
        canvas.text((left + width / 2, top + 12), text, _INK, self._small, anchor="mm")
        return width

    def _draw_sample(self, picture: Image.Image, canvas: ImageDraw.ImageDraw, sample: _Sample, place: tuple[int, int]) -> None:
        left, top = place
        tile = self._tile
        canvas.rectangle((left, top, left + tile - 1, top + tile - 1), _MAT)
        try:
            small = _thumbnail(sample, tile)
        except DataError as error:
            _log.warning("%s", error)
            self._draw_cross(canvas, place, error.message)
        else:
            picture.paste(small, (left + (tile - small.width) // 2, top + (tile - small.height) // 2))
        key = fonts.shortened(self._fonts.shown(sample.row.key), self._caption, tile)
        canvas.text((left, top + tile + 4), key, _FAINT, self._caption)

    def _draw_cross(self, canvas: ImageDraw.ImageDraw, place: tuple[int, int], reason: str) -> None:
        left, top = place
        right, bottom = left + self._tile - 1, top + self._tile - 1
        canvas.line((left, top, right, bottom), _ALARM)
        canvas.line((left, bottom, right, top), _ALARM)
        canvas.rectangle((left, top, right, bottom), outline=_ALARM)
        lines = list(_wrapped(self._fonts.shown(reason), self._caption, self._tile - 12))[:4]
        y = top + (self._tile - 15 * len(lines)) // 2
        canvas.rectangle((left + 4, y - 3, right - 4, y + 15 * len(lines) + 2), _MAT)
        for index, line in enumerate(lines):
            canvas.text((left + 7, y + 15 * index), line, _ALARM, self._caption)


def _wrapped(text: str, font: fonts.Font, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield fonts.shortened(line, font, width)
            longer = word
        line = longer
    yield fonts.shortened(line, font, width)


def _thumbnail(sample: _Sample, tile: int) -> Image.Image:
    """Returns the picture, upright, no side longer than the tile.

    Raises:
        DataError: the record is damaged, its shard cannot be read, or Pillow cannot decode its picture.
    """
    from PIL import Image

    record = _stored(sample)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a reason for a crossed tile, not for stderr
            small = _scaled(record.encoded, tile)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        message = f"{record.width:,} x {record.height:,} pixels are more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}"
        raise DataError(message, path=sample.shard, offset=sample.offset) from None
    except Exception as error:  # whatever a decoder raises on damaged bytes: one tile, not the sheet
        message = f"Pillow cannot decode it: {error or type(error).__name__}"
        raise DataError(message, path=sample.shard, offset=sample.offset) from None
    if record.orientation in _TURNS:
        small = small.transpose(Image.Transpose[_TURNS[record.orientation]])
    return small


def _stored(sample: _Sample) -> Record:
    try:
        if not stat.S_ISREG(os.stat(sample.shard).st_mode):  # opening a named pipe would wait for a writer
            raise DataError("the shard is no regular file", path=sample.shard)
        with open(sample.shard, "rb") as file:
            data = tfrecord.read_frame(file, sample.offset, os.fstat(file.fileno()).st_size, sample.shard)
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror or error}", path=sample.shard) from None
    return checked_record(data, sample.shard, sample.offset)


def _scaled(encoded: bytes, tile: int) -> Image.Image:
    """Returns a decoded picture, its longer side as long as the tile, on the mat where it is transparent."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as opened:
        opened.draft("RGB", (2 * tile, 2 * tile))  # a JPEG of 16 megapixels is decoded at an eighth of its size
        whole = _scalable(opened)
    scale = tile / max(whole.size)
    size = max(1, round(whole.width * scale)), max(1, round(whole.height * scale))
    small = whole.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    if small.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", small.size, _MAT), small).convert("RGB")
    return small


def _scalable(opened: Image.Image) -> Image.Image:
    """Returns a decoded picture as RGB, or RGBA where parts are transparent; 16-bit grey at its real brightness."""
    opened.load()
    if opened.mode.startswith("I"):
        return opened.convert("I").point(lambda level: level / 256).convert("RGB")
    mode = "RGBA" if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info else "RGB"
    return opened if opened.mode == mode else opened.convert(mode)  # a picture may be large: no copy without need
