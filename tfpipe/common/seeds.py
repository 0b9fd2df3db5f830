"""Seeds and seeded orders, derived by hashing and never by adding.

`seed + epoch` is a bug: run (seed 1, epoch 0) would equal run (seed 0, epoch 1), and an average
over seeds would average overlapping runs. Every random choice of tfpipe is keyed by `derive(seed,
*names)` instead.

The hash is SHA-256 over a prefix-free encoding of its arguments, so ("ab", "c") and ("a", "bc")
differ. Changing it would change the place of every record in every data set built afterwards:
resumed builds would refuse, and equal inputs would no longer give equal bytes across versions. Do
not change it without a new `format_version` in the manifest.
"""

from __future__ import annotations

import hashlib


def digest(seed: int, *names: str | int | bytes) -> bytes:
    """Returns 32 bytes for (seed, *names): equal for equal arguments, unrelated otherwise."""
    state = hashlib.sha256()
    for value in (seed, *names):
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        kind = type(value).__name__[0]  # so that 1, "1" and b"1" are three names
        state.update(f"{kind}{len(data)}:".encode())
        state.update(data)
    return state.digest()


def derive(seed: int, *names: str | int | bytes) -> int:
    """Returns an integer in [0, 2**63) that stands for (seed, *names).

    >>> derive(1, 0) == derive(0, 1)
    False
    """
    return int.from_bytes(digest(seed, *names)[:8], "big") >> 1
