"""What one record holds: the feature names of the ImageNet / TF-Slim tradition, Model Garden's defaults.

Feature names stand here and nowhere else. `Record` is the Python side; `encode` and `decode` are the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

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

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class Record:
    """One photograph of a data set.

    Attributes:
        encoded: the file's own bytes, untouched.
        format: "JPEG" or "PNG".
        height: pixels, of the file's header, before orientation.
        width: pixels, of the file's header, before orientation.
        channels: components of the file's header.
        orientation: EXIF, 1..8.
        filename: relative, POSIX separators.
        key: unique in the data set, independent of the input's location.
        sha256: of `encoded`, 64 hexadecimal digits.
        label: 0-based, or -1 in an unlabelled split.
        class_name: the label's name, "" in an unlabelled split.
    """

    encoded: bytes
    format: str
    height: int
    width: int
    channels: int
    orientation: int
    filename: str
    key: str
    sha256: str
    label: int
    class_name: str


def encode(record: Record) -> bytes:
    """Returns the record as a serialised `tf.train.Example`."""
    return example.encode(
        {
            ENCODED: record.encoded,
            FORMAT: record.format.encode(),
            HEIGHT: record.height,
            WIDTH: record.width,
            CHANNELS: record.channels,
            ORIENTATION: record.orientation,
            FILENAME: record.filename.encode(),
            KEY: record.key.encode(),
            SHA256: record.sha256.encode(),
            LABEL: record.label,
            CLASS_NAME: record.class_name.encode(),
        }
    )


def decode(serialized: bytes) -> Record:
    """Returns the record of a serialised `tf.train.Example`.

    Raises:
        DataError: the bytes are not an Example, or one of the features is missing or of another type.
    """
    features = example.decode(serialized)

    def integer(name: str) -> int:
        values = features.get(name)
        if not values or len(values) != 1 or not isinstance(values[0], int):
            raise DataError(f"feature {name!r} must be one int64 (got {values!r:.80})")
        return values[0]

    def blob(name: str) -> bytes:
        values = features.get(name)
        if not values or len(values) != 1 or not isinstance(values[0], bytes):
            raise DataError(f"feature {name!r} must be one bytes value (got {values!r:.80})")
        return values[0]

    def text(name: str) -> str:
        try:
            return blob(name).decode()
        except UnicodeDecodeError:
            raise DataError(f"feature {name!r} is not UTF-8") from None

    return Record(
        encoded=blob(ENCODED),
        format=text(FORMAT),
        height=integer(HEIGHT),
        width=integer(WIDTH),
        channels=integer(CHANNELS),
        orientation=integer(ORIENTATION),
        filename=text(FILENAME),
        key=text(KEY),
        sha256=text(SHA256),
        label=integer(LABEL),
        class_name=text(CLASS_NAME),
    )
