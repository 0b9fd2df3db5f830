"""Words and numbers for people."""

from __future__ import annotations

import hashlib
import html
import unicodedata
from collections.abc import Iterable, Sequence

_SHOWN = 10  # pairs in a message
TRUST = "a model is a program: open it only if you trust whoever made it, with trust (--trust)"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Returns "1 record", "1,200 records"; `many` where appending an s is wrong."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def exactly(count: int, one: str, many: str | None = None) -> str:
    """Returns "1 byte", "1200 bytes": digits without separators, to be compared."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def folded(name: str) -> str:
    """Returns a name without its case, its Unicode form and spaces around it: what people may take for the same."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def alike_groups(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a warning of groups that `folded` makes one."""
    shown = ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:_SHOWN])
    more = f" and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
    return f"groups that differ in case or spaces only count as two each: {shown}{more}; give them one name if they are one"


def format_bytes(count: int) -> str:
    """Returns a size in a suitable unit: 999 B, 12.3 kB, 4.5 MB (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def percent(share: float | None) -> str:
    """Returns "12.34%", or "-" for None."""
    return "-" if share is None else f"{share:.2%}"


def number(value: float | None) -> str:
    """Returns four decimals, or "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Returns "10.00% to 15.00%", or "-" for None."""
    return "-" if bounds is None else f"{bounds[0]:.2%} to {bounds[1]:.2%}"


def between(bounds: Sequence[float] | None) -> str:
    """Returns " (95 %: 0.1234 to 0.2345)", or nothing for None."""
    return "" if bounds is None else f" (95 %: {number(bounds[0])} to {number(bounds[1])})"


def with_interval(share: float | None, bounds: Sequence[float] | None) -> str:
    """Returns "12.34% (95 %: 10.00% to 15.00%)", or "-" where one is None."""
    return "-" if share is None or bounds is None else f"{percent(share)} (95 %: {interval(bounds)})"


def hash_names(names: Iterable[str]) -> str:
    """Returns the SHA-256 of "LENGTH:NAME" of names in order, LENGTH in characters: 64 digits."""
    return hashlib.sha256("".join(f"{len(name)}:{name}" for name in names).encode("utf-8", "surrogateescape")).hexdigest()


def threshold(value: float | None) -> str:
    """Returns the digits that give the same float32 when read, or "none"."""
    return "none" if value is None else f"{value:.9g}"


def display_width(text: str) -> int:
    """Returns a text's columns in a terminal: Chinese characters two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, columns: int, mark: str = "…") -> str:
    """Returns a text that takes at most so many columns, cut before `mark` where it is longer."""
    if display_width(text) <= columns:
        return text
    text = text[:columns]
    while text and display_width(text + mark) > columns:
        text = text[:-1]
    return text + mark


def html_table(caption: str, header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns an HTML table, for `_repr_html_`; floats with 4 digits."""

    def line(tag: str, cells: Sequence[object]) -> str:
        texts = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"
