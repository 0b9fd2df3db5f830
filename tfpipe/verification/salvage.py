"""Salvage: copies the intact records of a damaged shard, and lists the lost ones.

report = salvage("shards/pets-train.tfrecord-00003-of-00016", "rescued.tfrecord")
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfpipe.common.errors import DataError
from tfpipe.common.files import written_atomically
from tfpipe.common.text import plural
from tfpipe.records import schema, tfrecord
from tfpipe.records.tfrecord import Gap
from tfpipe.verification.tolerant_catalog import CatalogRows

_SHARD_NAME = re.compile(r"\w+-(?P<split>\w+)\.tfrecord-(?P<shard>\d{5,})-of-\d{5,}")


@dataclass(frozen=True)
class RescueReport:
    """The result of `salvage`.

    Attributes:
        num_records: intact records, all of them in the output.
        num_bytes: their bytes, frames included.
        gaps: stretches of bytes that hold no intact record.
        num_expected: records of this shard in the catalog; None without a catalog.
        lost: file names of these records that are not intact.
    """

    num_records: int
    num_bytes: int
    gaps: Sequence[Gap]
    num_expected: int | None
    lost: Sequence[str]


def salvage(shard: str | os.PathLike[str], output: str | os.PathLike[str]) -> RescueReport:
    """Writes every intact record of a TFRecord file to a new one.

    Works for any TFRecord file. Of a shard beside its catalog, the lost files are named.

    Args:
        shard: the damaged file; it is not changed.
        output: the new file, written atomically.

    Raises:
        FileNotFoundError: there is no such shard, or no folder for `output`.
        FileExistsError: `output` exists.
        ValueError: `shard` is a folder, a device or the like.
        DataError: no record is intact; nothing is written.
    """
    source, target = Path(shard), Path(output)
    _check_paths(source, target)
    num_records = num_bytes = 0
    gaps: list[Gap] = []
    with written_atomically(target) as file:
        for piece in tfrecord.salvage_frames(source):
            if isinstance(piece, Gap):
                gaps.append(piece)
                continue
            for part in tfrecord.frame(piece.data):
                file.write(part)
            num_records += 1
            num_bytes += piece.length
        if not num_records:  # within the block: no empty file remains
            message = f"no intact record in its {plural(source.stat().st_size, 'byte')}; nothing was written"
            raise DataError(message, path=source)
    num_expected, lost = _lost(source, target)
    return RescueReport(num_records, num_bytes, gaps, num_expected, lost)


def _check_paths(source: Path, target: Path) -> None:
    mode = source.stat().st_mode
    if not stat.S_ISREG(mode):  # a named pipe would wait for a writer, a device may have no end
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise ValueError(f"{source}: {kind}; a TFRecord file was expected, one shard of a data set")
    if os.path.lexists(target):
        raise FileExistsError(f"{target}: exists already; it was not overwritten")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such folder, for the output {target.name}")


def _lost(shard: Path, rescued: Path) -> tuple[int | None, list[str]]:
    """Returns the number of a shard's records by its catalog, and names of lost files."""
    match = _SHARD_NAME.fullmatch(shard.name)
    if not match:
        return None, []
    try:
        rows = CatalogRows(shard.parent)
    except (OSError, DataError):
        return None, []
    # Both are in the order of writing, so that one walk along the two is enough.
    keys = _keys(rescued)
    key = next(keys, None)
    num_expected, lost = 0, []
    for row in rows.of_shard(match["split"], int(match["shard"])):
        num_expected += 1
        if row.key == key:
            key = next(keys, None)
        else:
            lost.append(row.filename)
    return num_expected or None, lost


def _keys(path: Path) -> Iterator[str]:
    for _, data in tfrecord.read_frames(path):
        try:
            yield schema.decode(data).key
        except DataError:  # an intact record of someone else's
            yield ""
