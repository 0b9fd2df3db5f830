"""Words for people: what agrees with a number, and what is said in several places."""

from __future__ import annotations

TRUST = "a model is a program: open it only if you trust whoever made it, with trust (--trust)"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Returns "1 record", "1,200 records"; `many` where an s does not do."""
    return f"{count:,} {_agreeing(count, one, many)}"


def exactly(count: int, one: str, many: str | None = None) -> str:
    """Returns "1 byte", "1200 bytes": digits as a file or a program has them, to be compared."""
    return f"{count} {_agreeing(count, one, many)}"


def _agreeing(count: int, one: str, many: str | None) -> str:
    return one if count == 1 else many or f"{one}s"


def format_bytes(count: int) -> str:
    """Returns a size in the unit that suits it: 999 B, 12.3 kB, 4.5 MB (powers of 1000)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.95:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
