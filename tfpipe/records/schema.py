"""The fields of a record, with the feature names of ImageNet, TF-Slim and Model Garden.

Feature names are defined here and nowhere else. `Record` is the Python side; `encode` and `decode`
are the bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfpipe.common.errors import DataError
from tfpipe.records import example

ENCODED = "image/encoded"
FORMAT = "image/format"
HEIGHT = "image/height"
WIDTH = "image/width"
CHANNELS = "image/channels"
ORIENTATION = "image/orientation"
FILENAME = "image/filename"
KEY = "image/key"
SHA256 = "image/key/sha256"
LABEL = "image/class/label"
CLASS_NAME = "image/class/text"
HISTORY = "image/class/history"
GROUP = "image/group"
SOURCE_FORMAT = "image/source/format"
SOURCE_SHA256 = "image/source/sha256"
# Of several labels an image only, where LABEL is a list: the classes that may be there, and the
# index of the combination.
UNKNOWN = "image/class/unknown"
COMBINATION = "image/class/combination"
# Of numbers only: them, and the index of their row.
TARGET = "image/target"
TARGET_ROW = "image/target/row"

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set."""

    encoded: bytes  # the file's own bytes, unchanged; or of the PNG that was made of it, see `source_format`
    format: str  # "JPEG", "PNG", "WEBP" or "BMP"
    height: int  # pixels, by the file's header, before orientation
    width: int
    channels: int  # by the file's header
    orientation: int  # EXIF, 1..8
    filename: str  # relative, POSIX separators
    key: str  # unique in the data set, independent of the input's location
    sha256: str  # of `encoded`, 64 hexadecimal digits
    label: int  # 0-based, or -1 in an unlabelled split; of several labels or numbers, that of their combination or row
    class_name: str  # "" in an unlabelled split; of several labels or numbers, their text
    group: str | None = None  # None in a data set without groups, "" for an image without one
    source_format: str | None = None  # of the file that `encoded` was made of, "HEIC" or the like; None where it is the file
    source_sha256: str | None = None  # of that file
    history: tuple[str, ...] = ()  # classes before decisions of people, the first first; no feature where there are none
    labels: tuple[int, ...] | None = None  # of several labels an image: the classes that are there, ascending
    unknown: tuple[int, ...] | None = None  # and those that may be there
    targets: tuple[float, ...] | None = None  # of numbers: them, as float32; none in an unlabelled split


_FEATURES = {
    "encoded": ENCODED,
    "format": FORMAT,
    "height": HEIGHT,
    "width": WIDTH,
    "channels": CHANNELS,
    "orientation": ORIENTATION,
    "filename": FILENAME,
    "key": KEY,
    "sha256": SHA256,
    "label": LABEL,
    "class_name": CLASS_NAME,
}
_OPTIONAL = {"group": GROUP, "source_format": SOURCE_FORMAT, "source_sha256": SOURCE_SHA256}  # texts, in records that have them
_LISTS = {"labels": (LABEL, "q"), "unknown": (UNKNOWN, "q"), "targets": (TARGET, "f")}
_KINDS = {"bytes": bytes, "str": bytes, "int": int}  # of a field, in the Example


def encode(record: Record) -> bytes:
    """Returns the record as a serialised `tf.train.Example`."""
    label = LABEL if record.labels is record.targets is None else TARGET_ROW if record.labels is None else COMBINATION
    values = {feature: getattr(record, name) for name, feature in {**_FEATURES, "label": label}.items()}
    values |= {feature: text for name, feature in _OPTIONAL.items() if (text := getattr(record, name)) is not None}
    values |= {HISTORY: [name.encode() for name in record.history]} if record.history else {}
    plain = {name: value.encode() if isinstance(value, str) else value for name, value in values.items()}
    given = ((feature, kind, getattr(record, name)) for name, (feature, kind) in _LISTS.items())
    lists = {feature: array(kind, found) for feature, kind, found in given if found is not None}
    return example.encode({**plain, **lists})


def decode(serialized: bytes) -> Record:
    """Returns the record of a serialised `tf.train.Example`.

    Raises:
        DataError: the bytes are not an Example, or one of the features is missing or of another
            type.
    """
    features = example.decode(serialized)
    fields: dict[str, Any] = {}
    label = next((name for name in (COMBINATION, TARGET_ROW) if name in features), LABEL)
    for name in {COMBINATION: ("labels", "unknown"), TARGET_ROW: ("targets",)}.get(label, ()):
        feature, kind = _LISTS[name]
        found, of = features.get(feature), int if kind == "q" else float
        if found is None or not all(isinstance(value, of) for value in found):
            raise DataError(f"feature {feature!r} must be a list of {of.__name__} (got {found!r:.80})")
        fields[name] = tuple(found)
    present = {name: feature for name, feature in _OPTIONAL.items() if feature in features}
    for name, feature in {**_FEATURES, "label": label, **present}.items():
        values, kind = features.get(feature), "str" if name in present else Record.__annotations__[name]
        if not values or len(values) != 1 or not isinstance(values[0], _KINDS[kind]):
            what = "int64" if kind == "int" else "bytes value"
            raise DataError(f"feature {feature!r} must be one {what} (got {values!r:.80})")
        fields[name] = values[0]
        if kind == "str":
            try:
                fields[name] = fields[name].decode()
            except UnicodeDecodeError:
                raise DataError(f"feature {feature!r} is not UTF-8") from None
    return Record(**fields, history=_history(features.get(HISTORY, [])))


def _history(values: Sequence[Any]) -> tuple[str, ...]:
    try:
        return tuple(value.decode() for value in values)
    except (AttributeError, UnicodeDecodeError):
        raise DataError(f"feature {HISTORY!r} must be names in UTF-8 (got {values!r:.80})") from None
