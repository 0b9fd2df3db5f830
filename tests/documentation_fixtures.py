"""The pages of the documentation, and their code blocks."""

import re
from typing import NamedTuple

from conftest import CHECKOUT

RECORDS = ("docs/decisions/0", "docs/measurements/")  # commands and names as they were at the time


class Block(NamedTuple):
    """A fenced block: of a page, in a language, and why it is not run, if it is not."""

    page: str
    language: str
    text: str
    not_run: str


def pages():
    """Text of every page by its path in the checkout."""
    files = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")]
    assert len(files) > 100
    return {path.relative_to(CHECKOUT).as_posix(): path.read_text("utf-8") for path in sorted(files)}


def present(found):
    """Those of pages that describe what is there today."""
    return {name: text for name, text in found.items() if not name.startswith(RECORDS)}


def blocks(page, text):
    """Blocks of a page, in order."""
    found = re.finditer(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, block[2], block[3], block[1] or "") for block in found]
