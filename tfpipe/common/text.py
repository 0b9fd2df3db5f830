"""Words for people: what agrees with a number, and what is said in several places."""

from __future__ import annotations

from collections.abc import Sequence

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


def percent(share: float | None) -> str:
    """Returns "12.34%", or "-" for None."""
    return "-" if share is None else f"{share:.2%}"


def number(value: float | None) -> str:
    """Returns four decimals, or "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Returns "10.00% to 15.00%", or "-" for None."""
    return "-" if bounds is None else f"{bounds[0]:.2%} to {bounds[1]:.2%}"


def with_interval(share: float | None, bounds: Sequence[float] | None) -> str:
    """Returns "12.34% (95 %: 10.00% to 15.00%)", or "-" where one is None."""
    return "-" if share is None or bounds is None else f"{percent(share)} (95 %: {interval(bounds)})"


def threshold(value: float | None) -> str:
    """Returns the digits that give the same float32 when read, or "none"."""
    return "none" if value is None else f"{value:.9g}"
