"""Pieces of an HTML page that needs nothing but itself. Every text given is escaped here; `Html` is what is markup already."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --ink: #22252a; --faint: #5f666e; --line: #dfe2e5; --accent: #1f6f8b; --alarm: #b3412e;
  --paper: #fff; --desk: #f4f4f1; --cell: 8, 81, 156; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --faint: #9ca3ab; --line: #3a3f45; --accent: #6cb8d3; --alarm: #f08a76; --paper: #1d2024;
    --desk: #131518; --cell: 38, 125, 211; }
  .charts img, .chart img { background: #fff; border-radius: 6px; filter: brightness(.9); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--desk); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif; }
main { max-width: 2000px; margin: 0 auto; padding: 24px 20px 48px; display: grid; gap: 20px; grid-auto-flow: dense;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }
header, section.wide { grid-column: 1 / -1; } @media (min-width: 1220px) { section.broad { grid-column: span 2; } }
header h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
header p, .note { color: var(--faint); margin: .3em 0; overflow-wrap: anywhere; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 18px 22px; min-width: 0; }
h2 { font-size: 1.15rem; margin: 0 0 .5em; } h3 { font-size: 1rem; margin: 1em 0 .4em; }
p { margin: .4em 0 .8em; max-width: 75ch; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0 4px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; min-width: 120px; }
.card b { display: block; font-size: 1.25rem; } .card.main b { font-size: 2.1rem; color: var(--accent); line-height: 1.2; }
.card span { color: var(--faint); font-size: .85rem; }
.scroll { overflow: auto; max-height: 640px; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; } table.plain { width: 100%; }
th, td { padding: 4px 6px; border-bottom: 1px solid var(--line); text-align: right; font-variant-numeric: tabular-nums; }
thead th { position: sticky; top: 0; background: var(--paper); vertical-align: bottom; z-index: 1; }
th:first-child, td:first-child { text-align: left; } tbody th { font-weight: 500; text-align: left; }
td { white-space: nowrap; } th { max-width: 18em; min-width: 3em; overflow-wrap: break-word; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
.matrix td { text-align: center; min-width: 3.2em; border: 1px solid var(--paper);
  background: rgba(var(--cell), var(--share)); }
.matrix td.strong { color: #fff; }
.matrix thead th { text-align: center; max-width: 9em; }
.matrix tbody th { text-align: right; position: sticky; left: 0; background: var(--paper); }
.bar { display: inline-block; height: .65em; background: var(--accent); opacity: .55; border-radius: 2px; margin-right: 6px; }
.charts { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; }
.charts figure { margin: 0; flex: 1 1 240px; max-width: 460px; } .chart { margin: 0; max-width: 900px; }
figure img { max-width: 100%; height: auto; display: block; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.legend { list-style: none; padding: 0; margin: .3em 0; display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: .9rem; }
.legend li { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1.3em; height: .3em; vertical-align: middle; margin-right: .5em; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 16px; margin-top: 10px; }
.gallery figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: 8px; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; margin-bottom: 6px; }
.pair.one { grid-template-columns: 1fr; max-width: 60%; }
.pair img { width: 100%; border-radius: 3px; }
.wrong { color: var(--alarm); font-weight: 600; } .file { color: var(--faint); display: block; }
pre { overflow: auto; font-size: .85rem; background: var(--desk); padding: 12px; border-radius: 6px; margin: 0; }
@media (max-width: 560px) {
  main { padding: 14px 10px; gap: 14px; } section { padding: 14px 12px; } .gallery { grid-template-columns: 1fr; }
}
@media print { section { break-inside: avoid-page; } .scroll { max-height: none; } }
"""


_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Returns a value as markup: escaped, unless it is `Html`."""
    if isinstance(value, Html):
        return value
    return Html(html.escape("".join("\ufffd" if is_harmful(character) else character for character in str(value))))


def is_harmful(character: str) -> bool:
    """True for what no page may hold, and for what turns the direction of the text after it."""
    return unicodedata.category(character) in ("Cc", "Cs", "Cn") or character in _TURNING


def element(tag: str, *content: object, **attributes: object) -> Html:
    """Returns an element with what is in it; `class_` is the attribute class."""
    given = "".join(f' {name.rstrip("_")}="{html.escape(str(value))}"' for name, value in attributes.items())
    return Html(f"<{tag}{given}>{join(content)}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """Returns parts one after another."""
    return Html("".join(map(text, parts)))


def image(uri: str, description: str) -> Html:
    """Returns an image."""
    return Html(f'<img src="{html.escape(uri)}" alt="{text(description)}">')


def table(header: Sequence[object], rows: Iterable[Sequence[object]], *, kind: str = "") -> Html:
    """Returns a table that scrolls within its place; a row's first cell is its heading."""
    head = element("thead", element("tr", *(element("th", name) for name in header)))
    body = (element("tr", element("th", first), *map(cell, rest)) for first, *rest in rows)
    return element("div", element("table", head, element("tbody", *body), class_=kind or "plain"), class_="scroll")


def cell(value: object) -> Html:
    """Returns a cell of a table; a whole `<td>` is left as it is."""
    return value if isinstance(value, Html) and value.startswith("<td") else element("td", value)


def page(title: str, *content: object) -> Html:
    """Returns the whole file."""
    head = join(
        [
            Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
    )
    body = element("body", element("main", *content))
    return Html(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n')
