"""Cells of a CSV that no spreadsheet takes for a formula: "=1+1.jpg" is written as "'=1+1.jpg", and read back as it was.

escape("=cmd|calc.jpg")     # "'=cmd|calc.jpg", with the apostrophe that is a spreadsheet's sign for text
unescape(escape(text))      # text, whatever it is
"""

from __future__ import annotations

import re

# A text that begins with a sign of a formula or a control character; and, so that none is ambiguous, one that looks escaped.
_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\x00-\x1f\x7f])")  # noqa: RUF001


def escape(text: str) -> str:
    """Returns a text with an apostrophe before it where a spreadsheet would compute it; others as they are."""
    return f"'{text}" if _FORMULA.match(text) else text


def unescape(text: str) -> str:
    """Returns what `escape` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
