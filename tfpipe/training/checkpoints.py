"""The state of a run on disk: numbers and facts in one file that is whole or absent.

save(path, {"weights": [...]}, {"epoch": 3, "step": 120})
arrays, facts = load(path)
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, written_atomically

Array = np.ndarray[Any, Any]


def save(path: Path, groups: Mapping[str, Sequence[Array]], facts: Mapping[str, Any]) -> None:
    """Writes groups of arrays and facts, which JSON can hold; floats come back as the same bits.

    A NumPy archive, which has a CRC for each array.
    """
    arrays = {f"{name}/{index}": array for name, group in groups.items() for index, array in enumerate(group)}
    sizes = {name: len(group) for name, group in groups.items()}
    text = np.frombuffer(json.dumps({"facts": facts, "sizes": sizes}).encode(), np.uint8)
    with written_atomically(path) as file:
        np.savez(file, **{**arrays, "json": text})  # type: ignore[arg-type]


def load(path: Path) -> tuple[dict[str, list[Array]], dict[str, Any]]:
    """Returns what was saved.

    Raises:
        FileNotFoundError: there is nothing.
        DataError: the file is damaged.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as members, np.load(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("it is compressed")  # as no state is: it could be of any size
            content = json.loads(archive["json"].tobytes())
            sizes: dict[str, int] = content["sizes"]
            groups = {name: [archive[f"{name}/{index}"] for index in range(size)] for name, size in sizes.items()}
            return groups, content["facts"]
    except (ValueError, KeyError, EOFError, TypeError, NotImplementedError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"damaged ({error}); delete it, and the run starts over", path=path) from None
