"""Pieces of a Markdown file. Text from outside, as class names, shows as it is and is no markup, in tables too.

table(["class", "pictures"], [["a|b", 3]])    # the name becomes a&#124;b
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from tfpipe.report.markup import is_harmful

# As entities, not with a backslash: no reader of Markdown splits a cell at them, and all show them.
_SPECIAL = {ord(character): f"&#{ord(character)};" for character in "\\`*|~$"}
_SPECIAL |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def text(value: object) -> str:
    """Returns a value as text of one line that is no markup."""
    shown = "".join("\ufffd" if is_harmful(character) else character for character in str(value))
    return re.sub("_+", _underscores, shown.translate(_SPECIAL).replace("](", "]&#40;"))


def _underscores(run: re.Match[str]) -> str:
    # Within a word they are what they are; elsewhere they would be emphasis.
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    return run[0] if before.isalnum() and after.isalnum() else "&#95;" * len(run[0])


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; every cell is text."""
    return "\n".join(map(_row, [header, ["---"] * len(header), *rows]))


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(text, cells))} |"


def facts(content: Mapping[str, object]) -> str:
    """Returns a table of names and what they stand for."""
    return table(["property", "value"], content.items())


def bullets(lines: Iterable[str]) -> str:
    """Returns a list; its lines are markup."""
    return "\n".join(f"- {line}" for line in lines)


def code(lines: Iterable[str]) -> str:
    """Returns lines for a shell."""
    return "\n".join(["```sh", *lines, "```"])
