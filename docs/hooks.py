"""Lets pages of the site hold files of the repository's root, so that each text exists once.

`<!-- include: CHANGELOG.md -->` stands for that file without its title; `the table of guarantees of README.md` for that table.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_GUARANTEES = "the table of guarantees of README.md"
_INCLUDE = re.compile(r"<!-- include: (.*) -->")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces the include lines of a page."""
    return _INCLUDE.sub(lambda found: _included(found[1], page.file.src_uri), markdown)


def _included(name: str, uri: str) -> str:
    if name == _GUARANTEES:
        rows = (ROOT / "README.md").read_text("utf-8").splitlines()
        start = next(index for index, row in enumerate(rows) if row.startswith("| | guarantee"))
        return "\n".join(rows[start : rows.index("", start)])
    text = (ROOT / name).read_text("utf-8").partition("\n")[2]
    folder = posixpath.dirname(uri) or "."
    return re.sub(r"\]\(docs/([^)]*)\)", lambda found: f"]({posixpath.relpath(found[1], folder)})", text)
