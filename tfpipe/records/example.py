"""`tf.train.Example`, written and read without TensorFlow.

    serialized = encode({"image/encoded": jpeg_bytes, "image/height": 375})
    decode(serialized)["image/height"]            # [375]

The bytes of `encode` equal TensorFlow's `SerializeToString(deterministic=True)`. They are written
here, and not by protobuf, which promises no order of a map's keys across its versions: equal inputs
must give equal shards for good. Reading is protobuf's. Messages and field numbers:
tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tfpipe.common.errors import DataError

Value = bytes | int | float
Features = dict[str, list[bytes] | list[int] | list[float]]

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_DELIMITED = 2  # wire type
_UINT64 = (1 << 64) - 1


def encode(features: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Returns one serialised `tf.train.Example`, keys in TensorFlow's deterministic order.

    Args:
        features: name to a bytes, int (int64) or float (float32) value, or a non-empty sequence of
            one of these.

    Raises:
        TypeError: a value is none of these.
        ValueError: a sequence is empty, so that its type is unknown, or an integer is not an int64.
    """
    pieces: list[bytes] = []
    for name in _in_map_order(tuple(features)):
        key, value = name.encode(), _feature(name, features[name])
        entry = [*_delimited(1, [key]), *_delimited(2, value)]
        pieces += _delimited(1, entry)
    return b"".join(_delimited(1, pieces))


@functools.lru_cache(maxsize=64)  # one data set has one tuple of names
def _in_map_order(names: tuple[str, ...]) -> list[str]:
    # protobuf's upb sorts map keys by their bytes, but a key after the longer ones that it begins
    # (found by a property test against TensorFlow: "image/key/sha256" comes before "image/key").
    # 256 is greater than any byte.
    return sorted(names, key=lambda name: (*name.encode(), 256))


def _feature(name: str, value: Value | Sequence[Value]) -> list[bytes]:
    values: Sequence[Value] = [value] if isinstance(value, bytes | int | float) else value
    if not values:
        raise ValueError(f"feature {name!r} is empty: the type of its values cannot be known")
    if all(isinstance(item, bytes) for item in values):
        pieces = [piece for item in values if isinstance(item, bytes) for piece in _delimited(1, [item])]
        return _delimited(_BYTES_LIST, pieces)
    if all(isinstance(item, int) for item in values):
        packed = b"".join(_varint(_as_unsigned(name, item)) for item in values if isinstance(item, int))
        return _delimited(_INT64_LIST, _delimited(1, [packed]))
    if all(isinstance(item, float) for item in values):
        return _delimited(_FLOAT_LIST, _delimited(1, [struct.pack(f"<{len(values)}f", *values)]))
    raise TypeError(f"feature {name!r} must hold bytes, int or float of one kind (got {[type(v) for v in values[:3]]})")


def _as_unsigned(name: str, value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"feature {name!r}: {value} is not an int64")
    return value & _UINT64


_SMALL = [bytes([value]) for value in range(0x80)]


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(field: int, pieces: list[bytes]) -> list[bytes]:
    # Pieces are joined once, at the very end: a photograph's bytes are copied once and not once per
    # level of nesting.
    return [_varint(field << 3 | _DELIMITED) + _varint(sum(map(len, pieces))), *pieces]


def decode(serialized: bytes) -> Features:
    """Returns the features of one serialised `tf.train.Example`, each as a list.

    Raises:
        DataError: the bytes are not an Example.
    """
    from google.protobuf.message import DecodeError

    try:
        parsed = _message().FromString(serialized)
    except DecodeError as error:
        raise DataError(f"not a tf.train.Example: {error}") from None
    features: Features = {}
    for entry in parsed.features.feature:
        kind = entry.value.WhichOneof("kind")
        features[entry.key] = list(getattr(entry.value, kind).value) if kind else []
    return features


# feature.proto, without TensorFlow. The map is the list of entries that it is on the wire.
_PROTO = """
name: "example.proto" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Floats" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Ints" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes" number: 1 label: LABEL_OPTIONAL type_name: "Bytes" type: TYPE_MESSAGE oneof_index: 0 }
  field { name: "floats" number: 2 label: LABEL_OPTIONAL type_name: "Floats" type: TYPE_MESSAGE oneof_index: 0 }
  field { name: "ints" number: 3 label: LABEL_OPTIONAL type_name: "Ints" type: TYPE_MESSAGE oneof_index: 0 } }
message_type { name: "Entry" field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: "Feature" type: TYPE_MESSAGE } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type_name: "Entry" type: TYPE_MESSAGE } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type_name: "Features" type: TYPE_MESSAGE } }
"""


@functools.cache
def _message() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()  # a pool of its own: TensorFlow registers its messages in the common one
    pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))
