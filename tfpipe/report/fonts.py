"""Fonts that have the characters of a text, among those that systems usually carry."""

from __future__ import annotations

import contextlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tfpipe.common.text import plural

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont

_log = logging.getLogger("tfpipe")

# File names; Pillow looks for them where Linux, macOS and Windows keep their fonts. Handsome ones
# come first, those that cover most of the world's scripts last.
_SCRIPTS = ("Arabic", "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai", "Georgian")
_NAMES = (
    *("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial.ttf", "arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "uming.ttc"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Light.ttc"),
    *("msyh.ttc", "simsun.ttc", "YuGothR.ttc", "malgun.ttf"),
    *(f"NotoSans{script}-Regular.ttf" for script in _SCRIPTS),
    *("Arial Unicode.ttf", "ARIALUNI.TTF", "unifont.otf", "unifont.ttf"),
)

# Words of the names of characters, and Debian's package with a font; _OTHER_PACKAGE has all
# others, if coarsely.
_PACKAGES = {"CJK": "fonts-noto-cjk", "HIRAGANA": "fonts-noto-cjk", "KATAKANA": "fonts-noto-cjk", "HANGUL": "fonts-noto-cjk"}
_OTHER_PACKAGE = "fonts-unifont"

_NOT_A_CHARACTER = "\U0010ffff"  # every font draws its sign for missing glyphs here


class Fonts:
    """One font at any size; `missing`: the characters of a text that it does not have."""

    def __init__(self, path: str | None, text: str) -> None:
        self._path = path
        self.missing = _missing(self.of_size(16), text)

    def of_size(self, size: int) -> Font:
        """Returns the font with letters of `size` pixels."""
        from PIL import ImageFont

        if self._path is not None:
            return ImageFont.truetype(self._path, size)
        built_in = ImageFont.load_default(size)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise OSError("Pillow was built without FreeType: letters cannot be drawn")
        return built_in

    def shown(self, text: str) -> str:
        r"""Returns the text with missing and unprintable characters as escapes: \u732b."""
        shown = frozenset(c for c in text if c.isprintable()) - self.missing
        return "".join(c if c in shown else c.encode("unicode_escape").decode() for c in text)


def choose(text: str, path: str | os.PathLike[str] | None = None) -> Fonts:
    """Returns the first font with all characters of a text, or with a warning the best one.

    Args:
        text: everything that will be written.
        path: the font file to take, whatever it lacks.

    Raises:
        OSError: the file cannot be read as a font, or no font was found.
    """
    if path is None:
        best = min(_found(text), key=lambda font: len(font.missing), default=None)
        if best is None:
            raise OSError("no font was found: give a font file with --font (in Python font=)")
    else:
        try:
            best = Fonts(os.fspath(path), text)
        except OSError as error:
            raise OSError(f"{os.fspath(path)}: cannot be read as a font ({error})") from None
    if best.missing:
        _log.warning(
            "%s %s, drawn as escapes: %s; a font file that has them can be given with --font (in Python font=), or"
            " installed: Debian calls it %s",
            plural(len(best.missing), "character"),
            "in no font found here" if path is None else "not in this font",
            "".join(sorted(best.missing)[:20]),
            packages(best.missing),
        )
    return best


def lacking(text: str) -> frozenset[str]:
    """Returns the characters that no font found here has: on a page, boxes."""
    return frozenset(text).intersection(*(font.missing for font in _found(text)))


def _found(text: str) -> Iterator[Fonts]:
    """Yields this machine's fonts, and Pillow's own, up to the first with every character."""
    for name in (*_NAMES, None):
        with contextlib.suppress(OSError):
            font = Fonts(name, text)
            yield font
            if not font.missing:
                return


def packages(characters: Iterable[str]) -> str:
    """Returns the packages of Debian that have fonts for characters: "fonts-noto-cjk"."""
    words = (unicodedata.name(character, "").split(" ")[0] for character in characters)
    return " and ".join(sorted({_PACKAGES.get(word, _OTHER_PACKAGE) for word in words}))


def _missing(font: Font, text: str) -> frozenset[str]:
    # Pillow does not report which characters a font has; a missing one looks like a code point that
    # is not a character.
    sign = font.getmask(_NOT_A_CHARACTER)
    visible = (c for c in set(text) if c.isprintable() and not c.isspace() and not unicodedata.combining(c))
    return frozenset(c for c in visible if (mask := font.getmask(c)).size == sign.size and bytes(mask) == bytes(sign))


def shortened(text: str, font: Font, width: int) -> str:
    """Returns the text, cut in its middle if wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(min(len(text) - 1, width), 0, -1):  # a character has a pixel, or else there is one the less
        cut = f"{text[: kept // 3]}\u2026{text[len(text) - (kept - kept // 3) :]}"
        if font.getlength(cut) <= width:
            return cut
    return ""
