"""HTML and Markdown from the files in templates/. Text from outside never becomes markup.

render("report.html", title="<cats>", ...)      # &lt;cats&gt;
render("model_card.md", title="a|b", ...)       # a&#124;b
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import jinja2
from markupsafe import Markup

from tfpipe.common import text

_DIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# As entities, not with a backslash: no reader of Markdown splits a cell at them, and all show them.
_SPECIAL = {ord(character): f"&#{ord(character)};" for character in "\\`*|~$"}
_SPECIAL |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def render(template: str, **values: object) -> str:
    """Returns a template with its values, each escaped for the template's language."""
    if template.endswith(".md"):
        return re.sub("\n{3,}", "\n\n", _environment("md").get_template(template).render(values)).strip() + "\n"
    page = _environment("html").get_template(template).render(values)
    for character in filter(is_harmful, set(page) - {"\n"}):
        page = page.replace(character, "\ufffd")
    return page


@functools.cache
def _environment(language: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfpipe.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=escape_markdown if language == "md" else None,
    )
    names = ("percent", "number", "interval", "between", "with_interval", "threshold", "plural", "format_bytes")
    environment.globals |= {name: getattr(text, name) for name in names} | {"table": markdown_table}
    environment.filters["md"] = escape_markdown
    return environment


def is_harmful(character: str) -> bool:
    """True for control, surrogate, unassigned and direction-changing characters."""
    return unicodedata.category(character) in ("Cc", "Cs", "Cn") or character in _DIRECTIONAL


def escape_markdown(value: object) -> Markup:
    """Returns a value as one line of Markdown without markup; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    shown = "".join("\ufffd" if is_harmful(character) else character for character in str(value))
    return Markup(re.sub("_+", _underscores, shown.translate(_SPECIAL).replace("](", "]&#40;")))  # noqa: S704 - escaped


def _underscores(run: re.Match[str]) -> str:
    # Within a word they are literal; elsewhere they would be emphasis.
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    return run[0] if before.isalnum() and after.isalnum() else "&#95;" * len(run[0])


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Returns a Markdown table of escaped cells."""
    lines = [header, ["---"] * len(header), *rows]
    return Markup("\n".join(f"| {' | '.join(map(escape_markdown, cells))} |" for cells in lines))  # noqa: S704 - escaped
