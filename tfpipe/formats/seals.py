"""A SHA-256 at the end of a file of protobuf, whose messages are continued by appending: readers see one entry more.

    data = seal(model_bytes, graph_entry)
    is_sealed(data, graph_entry)      # False after a single flipped bit

It finds damage, not malice: whoever can change a file can seal it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

Entry = Callable[[bytes], bytes]  # the 64 digits -> the bytes that say them in a file's format


def seal(data: bytes, entry: Entry) -> bytes:
    """Returns a file with its seal, see `graph_entry` and `onnx_entry`."""
    return data + entry(_digest(data))


def is_sealed(data: bytes, entry: Entry) -> bool:
    """Returns whether a file is as it was when it was sealed."""
    length = len(entry(_digest(b"")))
    content = memoryview(data)[:-length]
    return data[-length:] == entry(_digest(content))


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _field(number: int, content: bytes) -> bytes:
    """Returns a field of protobuf; its number is below 16 and its content below 128 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def graph_entry(digest: bytes) -> bytes:
    """Of a GraphDef: a node without effect, whose name it is."""
    return _field(1, _field(1, b"sha256_" + digest) + _field(2, b"NoOp"))


def onnx_entry(digest: bytes) -> bytes:
    """Of an ONNX model: one of its metadata."""
    return _field(14, _field(1, b"sha256") + _field(2, digest))
