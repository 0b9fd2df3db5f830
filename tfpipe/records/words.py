"""Words for people: what agrees with a number."""

from __future__ import annotations


def plural(count: int, one: str, many: str | None = None) -> str:
    """Returns "1 record", "1,200 records"; `many` where an s does not do."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
