"""JSON of known types: what a file of ours must hold, said once, as annotations.

facts = read(folder / "facts.json", Facts)        # a dataclass or TypedDict, of int, str, Mapping[str, float], ...
facts = checked(parse_json(data, path), Facts, path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from tfpipe.common.errors import DataError
from tfpipe.common.files import read_json

T = TypeVar("T")


def checked(content: Any, kind: type[T], path: Path) -> T:
    """Returns parsed JSON as what its file must hold; nothing is converted, and what is not asked for is left out.

    Args:
        content: as `parse_json` returns it.
        kind: a dataclass, TypedDict or annotation.
        path: of the file, for messages.

    Raises:
        DataError: a field is missing or of another type; names it.
    """
    import msgspec  # here: processes that only write need not load it

    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"not as tfpipe writes it: {str(error).replace('`', '')}", path=path) from None


def read(path: Path, kind: type[T]) -> T:
    """Returns the content of a file of JSON, see `checked`.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no regular file, no JSON, or not of this kind.
    """
    return checked(read_json(path), kind, path)
