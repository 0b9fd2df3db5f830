"""Augmentation sheet: images as evaluation and each of ten epochs of training see them.

show("shards/", "sheet.png", augment="standard", seed=0)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfpipe.common import arguments
from tfpipe.common.text import plural
from tfpipe.pipeline.presets import PRESETS, Augmentation
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest
from tfpipe.records.schema import UNLABELLED
from tfpipe.report import sheets
from tfpipe.report.contact_sheet import Sample, classes, draw_samples

if TYPE_CHECKING:
    from PIL import Image

    from tfpipe.images.decoding import Resize
    from tfpipe.pipeline.replaying import Replayer

_NUM_EPOCHS = 10
_DEFAULTS = {"tile": 160, "images": 8}
_SEPARATOR = "  \u00b7  "


def show(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    augment: Augmentation | str = "standard",
    split: str | None = None,
    images: int = _DEFAULTS["images"],
    seed: int = 0,
    image_size: tuple[int, int] = (224, 224),
    resize: Resize = "stretch",
    tile: int = _DEFAULTS["tile"],
    font: str | os.PathLike[str] | None = None,
) -> None:
    """Draws a PNG with a row per image: as evaluation sees it, then training in epochs 0 to 9.

    The augmented images are those of `dataset(directory, split, training=True, augment=augment,
    seed=seed, ...)`, bit for bit, scaled to the tile; MixUp and CutMix are not shown. An image that
    cannot be decoded is drawn as a crossed tile with the reason.

    Args:
        directory: the data set's folder.
        output: the PNG file, as of `contact_sheet.show`.
        augment: an `Augmentation` or the name of a preset.
        split: the split to draw from, default the first, which is train where there is one.
        images: rows; the classes take turns.
        seed: of the sample and the augmentation.
        image_size: (height, width), as given to `dataset`.
        resize: as given to `dataset`.
        tile: side of an image's place, in pixels.
        font: as of `contact_sheet.show`.

    Raises:
        As `contact_sheet.show`; ValueError also for an unknown preset.
    """
    images, tile, image_size = arguments.check(images=images, tile=tile, image_size=image_size)
    augmentation = Augmentation.named(augment)
    manifest = manifests.load(directory)
    sheets.check_target(Path(output), Path(directory), "augmentation sheet")  # before the drawing, which takes a while
    split = next(iter(manifest.splits)) if split is None else split
    arguments.choice("split", split, manifest.splits)
    from tfpipe.pipeline.replaying import Replayer  # takes seconds: after the checks

    unmixed = dataclasses.replace(augmentation, mixup=0, cutmix=0)  # these need labels
    replayer = Replayer(directory, split, seed=seed, image_size=image_size, resize=resize, augment=unmixed)
    samples = _choose(Path(directory), manifest, split, images, seed)
    starts = [0, *itertools.accumulate(shard.num_records for shard in manifest.split(split).shards)]
    panels = [_panel(replayer, sample, starts[sample.row.shard] + sample.row.position, tile) for sample in samples]
    total = plural(manifest.split(split).num_records, "record")
    shape = f"{image_size[0]} x {image_size[1]}"
    facts = (f"{split}, {total}", f"{len(samples)} drawn with seed {seed}", f"as dataset() gives them, {shape}, {resize}")
    details = [_SEPARATOR.join(facts), _described(augmentation)]
    sheet = sheets.Sheet(manifest.name, details, panels, tile=tile, font=font, first_apart=True)
    sheet.save(Path(output), lower=sheets.to_lower({"tile": tile, "images": images}, _DEFAULTS))


def _choose(directory: Path, manifest: Manifest, split: str, images: int, seed: int) -> list[Sample]:
    """Returns records of a split, by label, with as many of each class as possible."""
    by_class = draw_samples(directory, manifest, [split], images, max(1, len(classes(directory, manifest)[0])), seed)
    drawn = [(rank, label, sample) for (label, _), of_class in by_class.items() for rank, sample in enumerate(of_class)]
    chosen = sorted(drawn, key=lambda entry: entry[:2])[:images]
    return [sample for rank, label, sample in sorted(chosen, key=lambda entry: (entry[1], entry[0]))]


def _described(augmentation: Augmentation) -> str:
    preset = next((name for name, strengths in PRESETS.items() if strengths == augmentation), "custom")
    strengths = {field.name: getattr(augmentation, field.name) for field in dataclasses.fields(augmentation)}
    if not augmentation.crop:
        del strengths["crop_aspect"]
    unseen = {"mixup", "cutmix"}
    words = [f"{name} {value:.3g}{' (not shown)' if name in unseen else ''}" for name, value in strengths.items() if value]
    return _SEPARATOR.join([f"augment {preset}", *words])


def _panel(replayer: Replayer, sample: Sample, position: int, tile: int) -> sheets.Panel:
    def draw(epoch: int | None) -> Image.Image:
        from PIL import Image

        pixels = replayer.evaluated(position) if epoch is None else replayer.image(position, epoch)
        return sheets.fit(Image.fromarray(pixels), tile)

    epochs: list[tuple[int | None, str]] = [(None, "evaluation"), *((epoch, f"epoch {epoch}") for epoch in range(_NUM_EPOCHS))]
    tiles = [sheets.Tile(functools.partial(draw, epoch), caption) for epoch, caption in epochs]
    row = sample.row
    if row.label == UNLABELLED:
        return sheets.Panel(None, row.key, "no label", tiles)
    return sheets.Panel(row.label, row.class_name, row.key, tiles)
