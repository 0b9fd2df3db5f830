"""Parts of a table, written by several readers, and their merging.

    OUTPUT/parts/predictions-00000-of-00003.csv     rows of reader 0
    OUTPUT/parts/predictions-00000-of-00003.json    written after them: their hash and claim

A part is complete when its json exists, with the same claim: a part of another model, data set or
options counts as missing, until its reader replaces it. The parts are contiguous, in the
catalog's order. The reader that completes them merges them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.files import open_regular, read_json, sha256_of, write_json
from tfpipe.evaluation.receipts import Claim, differences
from tfpipe.networks.arithmetic import UNKNOWN

_log = logging.getLogger("tfpipe")

FOLDER = "parts"

_BLOCK_BYTES = 1 << 20


def part_path(folder: Path, index: int, count: int) -> Path:
    """Returns the path of part `index` of `count` in an evaluation's folder."""
    return folder / FOLDER / f"predictions-{index:05d}-of-{count:05d}.csv"


def bind(path: Path, sha256: str, claim: Claim, computed: Mapping[str, str]) -> None:
    """Declares a part complete, by the hash of this claim's rows, whatever `path` holds by now."""
    write_json(path.with_suffix(".json"), {"sha256": sha256, **claim, "computed": computed})


def computations(folder: Path, count: int) -> list[dict[str, str]]:
    """Returns device and arithmetic of each part."""
    bindings = [read_json(part_path(folder, index, count).with_suffix(".json")) for index in range(count)]
    return [binding.get("computed", UNKNOWN) for binding in bindings]


def missing_parts(folder: Path, count: int, claim: Claim) -> list[Path]:
    """Returns the parts missing, or of another claim; raises DataError for a damaged one."""
    paths = [part_path(folder, index, count) for index in range(count)]
    return [path for path in paths if not _is_complete(path, claim)]


def _is_complete(path: Path, claim: Claim) -> bool:
    binding = path.with_suffix(".json")
    try:
        content = read_json(binding)
        sha256 = content["sha256"]
    except FileNotFoundError:
        return False
    except (KeyError, TypeError, DataError) as error:
        raise DataError(f"not the json of a part as tfpipe writes it ({lines_of(error)[0]}): delete it", path=binding) from None
    if other := differences(claim, content):
        _log.warning("%s: missing; the file is a part of another evaluation: %s", path, "; ".join(other))
        return False
    if not path.exists() or sha256_of(path) != sha256:
        raise DataError("not as it was written: evaluate this part anew", path=path)
    return True


def withdraw(path: Path) -> None:
    """Declares a part incomplete; to be called before it is replaced."""
    path.with_suffix(".json").unlink(missing_ok=True)


def merge(folder: Path, count: int, header: bytes, claim: Claim) -> Iterator[bytes]:
    """Yields the table of all parts, each of which begins with `header`, piece by piece.

    Raises:
        DataError: a part was replaced in the meantime.
    """
    yield header
    for index in range(count):
        with open_regular(part_path(folder, index, count)) as file:
            file.seek(len(header))
            while block := file.read(_BLOCK_BYTES):
                yield block
    if missing := missing_parts(folder, count, claim):
        raise DataError("replaced while the parts were put together: run the same command again", path=missing[0])
