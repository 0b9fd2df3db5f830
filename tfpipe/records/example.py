"""`tf.train.Example`, written and read without TensorFlow.

    serialized = encode({"image/encoded": jpeg_bytes, "image/height": 375})
    decode(serialized)["image/height"]            # [375]

The bytes of `encode` equal TensorFlow's `SerializeToString(deterministic=True)`. protobuf promises
no order of a map's keys across its versions, and equal inputs must give equal shards for good: here
the map is the list of entries that it is on the wire, in an order of our own. Messages and field
numbers: tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from tfpipe.common.errors import DataError

Value = bytes | int | float
Features = dict[str, list[bytes] | list[int] | list[float]]

_KINDS = {"bytes": bytes, "ints": int, "floats": float}


def encode(features: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Returns one serialised `tf.train.Example`, keys in TensorFlow's deterministic order.

    Args:
        features: name to a bytes, int (int64) or float (float32) value, or a sequence of one of
            these; an empty one as `array("q")`, of int, or `array("f")`, of float.

    Raises:
        TypeError: a value is none of these.
        ValueError: a sequence is empty, so that its type is unknown, or an integer is not an int64.
    """
    message = _message()()
    message.features.SetInParent()
    for name in _in_map_order(tuple(features)):
        value = features[name]
        values: Sequence[Value] = [value] if isinstance(value, bytes | int | float) else value
        if not values and not isinstance(value, array):
            raise ValueError(f"feature {name!r} is empty: the type of its values cannot be known")
        kind = next((kind for kind, of in _KINDS.items() if all(isinstance(item, of) for item in values)), None)
        kind = {"q": "ints", "f": "floats"}[value.typecode] if isinstance(value, array) else kind
        if kind is None:
            raise TypeError(f"feature {name!r} must hold bytes, int or float of one kind (got {[type(v) for v in values[:3]]})")
        try:
            found = getattr(message.features.feature.add(key=name).value, kind)
            found.SetInParent()  # an empty list is one, too
            found.value.extend(values)
        except ValueError as error:
            raise ValueError(f"feature {name!r}: not an int64: {error}") from None
    encoded: bytes = message.SerializeToString()
    return encoded


@functools.lru_cache(maxsize=64)  # one data set has one tuple of names
def _in_map_order(names: tuple[str, ...]) -> list[str]:
    # protobuf's upb sorts map keys by their bytes, but a key after the longer ones that it begins
    # (found by a property test against TensorFlow: "image/key/sha256" comes before "image/key").
    # 256 is greater than any byte.
    return sorted(names, key=lambda name: (*name.encode(), 256))


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


# feature.proto, without TensorFlow. In a oneof, an empty key is written, too.
_PROTO = """
name: "example.proto" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Floats" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Ints" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes" number: 1 label: LABEL_OPTIONAL type_name: "Bytes" type: TYPE_MESSAGE oneof_index: 0 }
  field { name: "floats" number: 2 label: LABEL_OPTIONAL type_name: "Floats" type: TYPE_MESSAGE oneof_index: 0 }
  field { name: "ints" number: 3 label: LABEL_OPTIONAL type_name: "Ints" type: TYPE_MESSAGE oneof_index: 0 } }
message_type { name: "Entry" oneof_decl { name: "present" }
  field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING oneof_index: 0 }
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
