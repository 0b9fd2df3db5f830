"""Sheets of images as PNG files: panels below each other, each a line of text above a row of tiles.

check_target(output, directory, "contact sheet")
sheet = Sheet(title, [detail], panels, tile=160, font=None)
sheet.save(output, lower="--tile")
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfpipe.common.errors import DataError
from tfpipe.common.files import written_atomically
from tfpipe.images.png import SIGNATURE
from tfpipe.report import fonts

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_log = logging.getLogger("tfpipe")

MAT = "#eceae4"  # around an image that does not fill its tile
_BACKGROUND, _PANEL = "#f4f4f1", "#ffffff"
_INK, _FAINT, _ALARM = "#22252a", "#7d8087", "#b3412e"
_MARGIN, _GAP, _CAPTION, _PADDING = 28, 10, 20, 14
_HEADER, _LINE = 62, 22  # the title, and each line below it

_MAX_PIXELS = 100_000_000  # of the whole sheet: 300 MB of memory, and few viewers open more


class Tile(NamedTuple):
    """An image no larger than the tile, or a `DataError`, which is drawn, and its caption."""

    draw: Callable[[], Image.Image]
    caption: str


class Panel(NamedTuple):
    """A row of tiles, and the line above it: label if any, name, and a fainter note."""

    label: int | None
    name: str
    note: str
    tiles: Sequence[Tile]


def check_target(target: Path, directory: Path, what: str) -> None:
    """Checks that writing a sheet would overwrite only a PNG file, outside the data set's folder.

    Raises:
        FileExistsError: the target is something else than a PNG file.
        FileNotFoundError: its folder is missing.
        ValueError: it lies within the data set.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder, for the {what} {target.name}")
    if target.parent.resolve().is_relative_to(directory.resolve()):
        raise ValueError(f"{target}: the {what} must be written outside the data set's folder")
    if not os.path.lexists(target):
        return
    if stat.S_ISREG(mode := os.lstat(target).st_mode):
        with open(target, "rb") as file:
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return
    kind = "a folder" if stat.S_ISDIR(mode) else "something else than a PNG file"
    raise FileExistsError(f"{target}: {kind} is there; it was not overwritten")


def fit(image: Image.Image, side: int) -> Image.Image:
    """Returns an image resized so that its longer side has `side` pixels."""
    from PIL import Image

    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def to_lower(arguments: Mapping[str, int], defaults: Mapping[str, int]) -> str:
    """Returns the flags to lower for a smaller sheet: those above the defaults, or else all."""
    raised = [f"--{name}" for name, value in arguments.items() if value > defaults[name]]
    return " or ".join(raised or [f"--{name}" for name in arguments])


class Sheet:
    """Panels below a title; `save` draws them.

    Args:
        title: of the whole sheet.
        details: lines below it.
        panels: from top to bottom.
        tile: side of an image's place, in pixels.
        font: TrueType or OpenType file, or None to choose one.
        first_apart: leave a gap after the first tile of each panel.

    Raises:
        OSError: the font cannot be read.
    """

    def __init__(
        self,
        title: str,
        details: Sequence[str],
        panels: Sequence[Panel],
        *,
        tile: int,
        font: str | os.PathLike[str] | None,
        first_apart: bool = False,
    ) -> None:
        captions = [tile.caption for panel in panels for tile in panel.tiles]
        chosen = fonts.choose("".join([title, *captions, *(panel.name + panel.note for panel in panels)]), font)
        self._text, self._tile, self._panels = chosen.shown, tile, panels
        self._title, self._details = chosen.shown(title), details
        self._large, self._medium, self._small = (chosen.of_size(size) for size in (28, 19, 13))
        self._caption = chosen.of_size(max(9, min(12, tile // 13)))
        self._header = _HEADER + _LINE * len(details)
        self._panel_height = 34 + tile + _CAPTION + 2 * _PADDING
        self._apart = 2 * _GAP if first_apart else 0
        self._reported: set[str] = set()

    def save(self, output: Path, *, lower: str) -> None:
        """Draws the sheet into a PNG file, atomically.

        Raises:
            ValueError: the sheet would have more than 100 million pixels; `lower` is the advice.
        """
        width, height = self._measure()
        if width * height > _MAX_PIXELS:
            raise ValueError(
                f"the sheet would have {width:,} x {height:,} = {width * height:,} pixels, at most {_MAX_PIXELS:,} can be"
                f" drawn: lower {lower}"
            )
        encoded = io.BytesIO()
        self._draw(width, height).save(encoded, "PNG")
        with written_atomically(output) as file:
            file.write(encoded.getvalue())

    def _measure(self) -> tuple[int, int]:
        columns = max((len(panel.tiles) for panel in self._panels), default=1) or 1
        inside = columns * (self._tile + _GAP) - _GAP + self._apart + 2 * _PADDING
        lines = [self._large.getlength(self._title), *(self._small.getlength(line) for line in self._details)]
        width = 2 * _MARGIN + max(inside, int(max(lines)))
        height = _MARGIN + self._header + len(self._panels) * (self._panel_height + _GAP) - _GAP + _MARGIN
        return width, height

    def _draw(self, width: int, height: int) -> Image.Image:
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (width, height), _BACKGROUND)
        canvas = ImageDraw.Draw(image)
        canvas.text((_MARGIN, _MARGIN), self._title, _INK, self._large)
        for index, line in enumerate(self._details):
            canvas.text((_MARGIN, _MARGIN + 42 + _LINE * index), line, _FAINT, self._small)
        for index, panel in enumerate(self._panels):
            self._draw_panel(image, canvas, panel, _MARGIN + self._header + index * (self._panel_height + _GAP))
        return image

    def _draw_panel(self, image: Image.Image, canvas: ImageDraw.ImageDraw, panel: Panel, top: int) -> None:
        right, row = image.width - _MARGIN, top + _PADDING
        canvas.rounded_rectangle((_MARGIN, top, right, top + self._panel_height), 8, _PANEL)
        left = _MARGIN + _PADDING
        if panel.label is not None:  # on a chip, so that it is not taken for the class's name
            width = max(24, int(self._small.getlength(str(panel.label))) + 14)
            canvas.rounded_rectangle((left, row, left + width, row + 24), 12, MAT)
            canvas.text((left + width / 2, row + 12), str(panel.label), _INK, self._small, anchor="mm")
            left += width + 12
        space = right - _PADDING - left
        note = self._text(panel.note)
        kept = min(int(self._small.getlength(note)), space // 2)
        name = fonts.shortened(self._text(panel.name), self._medium, space - kept - 12)
        canvas.text((left, row), name, _INK, self._medium)
        used = int(self._medium.getlength(name)) + 12
        note = fonts.shortened(note, self._small, space - used + 1)  # lengths are fractions of a pixel
        canvas.text((left + used, row + 6), note, _FAINT, self._small)
        for column, tile in enumerate(panel.tiles):
            x = _MARGIN + _PADDING + column * (self._tile + _GAP) + (self._apart if column else 0)
            self._draw_tile(image, canvas, tile, (x, row + 34))

    def _draw_tile(self, image: Image.Image, canvas: ImageDraw.ImageDraw, tile: Tile, place: tuple[int, int]) -> None:
        left, top = place
        side = self._tile
        canvas.rectangle((left - 1, top - 1, left + side, top + side), MAT)  # also the edge of an image that is white there
        try:
            small = tile.draw()
        except DataError as error:
            if str(error) not in self._reported:  # one warning of a missing shard, however many images it has
                _log.warning("%s", error)
            self._reported.add(str(error))
            self._draw_cross(canvas, place, error.message)
        else:
            image.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        caption = fonts.shortened(self._text(tile.caption), self._caption, side)
        canvas.text((left, top + side + 4), caption, _FAINT, self._caption)

    def _draw_cross(self, canvas: ImageDraw.ImageDraw, place: tuple[int, int], reason: str) -> None:
        left, top = place
        right, bottom = left + self._tile - 1, top + self._tile - 1
        canvas.line((left, top, right, bottom), _ALARM)
        canvas.line((left, bottom, right, top), _ALARM)
        canvas.rectangle((left, top, right, bottom), outline=_ALARM)
        lines = list(_wrapped(self._text(reason), self._caption, self._tile - 12))[:4]
        y = top + (self._tile - 15 * len(lines)) // 2
        canvas.rectangle((left + 4, y - 3, right - 4, y + 15 * len(lines) + 2), MAT)
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
