"""What is wrong with a data set, and where: shard, offset, source file."""

from __future__ import annotations

import os

from tfpipe.common.errors import DataError

MAX_KEPT = 1000
"""Findings that one report keeps. A million damaged records must not fill the memory, and nobody reads on after these."""


class Finding(DataError):
    """One thing that is not as it was written.

    Attributes:
        source: file name of the picture concerned, as the catalogue or the record gives it; "" where unknown.
    """

    def __init__(
        self, message: str, *, path: str | os.PathLike[str] | None = None, offset: int | None = None, source: str = ""
    ) -> None:
        self.source = source
        super().__init__(f"{message} [source file {source!r}]" if source else message, path=path, offset=offset)


class Findings:
    """Collects findings: all are counted, the first `MAX_KEPT` are kept."""

    def __init__(self) -> None:
        self.kept: list[DataError] = []
        self.count = 0

    def add(self, finding: DataError) -> None:
        """Counts one finding, and keeps it if there is room."""
        self.count += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(finding)

    def extend(self, other: Findings) -> None:
        """Takes over the findings of another collection."""
        self.kept += other.kept[: MAX_KEPT - len(self.kept)]
        self.count += other.count
