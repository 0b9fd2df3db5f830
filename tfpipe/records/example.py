"""The wire format of `tf.train.Example`, written and read without TensorFlow.

    serialized = encode({"image/encoded": jpeg_bytes, "image/height": 375})
    decode(serialized)["image/height"]            # [375]

The bytes of `encode` equal TensorFlow's `SerializeToString(deterministic=True)`; plain `SerializeToString()` leaves the
order of a map open. Messages and field numbers: tensorflow/core/example/feature.proto.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping, Sequence

from tfpipe.common.errors import DataError

Value = bytes | int | float
Features = dict[str, list[bytes] | list[int] | list[float]]

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_UINT64 = (1 << 64) - 1
_MAX_VARINT_BYTES = 10


def encode(features: Mapping[str, Value | Sequence[Value]]) -> bytes:
    """Returns one serialised `tf.train.Example`, keys in the order of TensorFlow's deterministic serialisation.

    Args:
        features: name to a bytes, int (int64) or float (float32) value, or a non-empty sequence of one of these.

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
    # protobuf's upb sorts map keys by their bytes, but a key behind the longer ones that it begins (found by a property
    # test against TensorFlow: "image/key/sha256" comes before "image/key"). 256 is greater than any byte.
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
    # Pieces are joined once, at the very end: a photograph's bytes are copied once and not once per level of nesting.
    return [_varint(field << 3 | _DELIMITED) + _varint(sum(map(len, pieces))), *pieces]


def decode(serialized: bytes) -> Features:
    """Returns the features of one serialised `tf.train.Example`, each as a list; unset features are empty lists.

    Raises:
        DataError: the bytes are not an Example; `offset` is the position within them.
    """
    features: Features = {}
    for field, start, end, _ in _fields(serialized, 0, len(serialized)):
        if field == 1:
            for entry_field, entry_start, entry_end, _ in _fields(serialized, start, end):
                if entry_field == 1:
                    name, value = _entry(serialized, entry_start, entry_end)
                    features[name] = value
    return features


def _entry(data: bytes, start: int, end: int) -> tuple[str, list[bytes] | list[int] | list[float]]:
    name, value = "", _no_values()
    for field, field_start, field_end, _ in _fields(data, start, end):
        if field == 1:
            try:
                name = data[field_start:field_end].decode()
            except UnicodeDecodeError:
                raise DataError("a feature's name is not UTF-8", offset=field_start) from None
        elif field == 2:
            for kind, list_start, list_end, _ in _fields(data, field_start, field_end):
                value = _values(data, kind, list_start, list_end)
    return name, value


def _no_values() -> list[bytes] | list[int] | list[float]:
    return list[bytes]()


def _values(data: bytes, kind: int, start: int, end: int) -> list[bytes] | list[int] | list[float]:
    if kind == _BYTES_LIST:
        return [data[s:e] for field, s, e, wire in _fields(data, start, end) if field == 1 and wire == _DELIMITED]
    if kind == _INT64_LIST:
        integers: list[int] = []
        for field, s, e, wire in _fields(data, start, end):
            if field == 1 and wire == _VARINT:
                integers.append(_signed(_read_varint(data, s, e)[0]))
            elif field == 1 and wire == _DELIMITED:  # packed, the form that protobuf writes today
                while s < e:
                    number, s = _read_varint(data, s, e)
                    integers.append(_signed(number))
        return integers
    if kind == _FLOAT_LIST:
        floats: list[float] = []
        for field, s, e, wire in _fields(data, start, end):
            if field == 1 and wire in (_DELIMITED, _FIXED32):
                if (e - s) % 4:
                    raise DataError("a packed float list's size is not a multiple of 4", offset=s)
                floats.extend(struct.unpack_from(f"<{(e - s) // 4}f", data, s))
        return floats
    return _no_values()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (field number, start of payload, end of payload, wire type) of one message in data[start:end]."""
    at = start
    while at < end:
        tag, payload = data[at], at + 1
        if tag > 0x7F:  # here and below: nearly every number has one byte, and a call costs more than reading it
            tag, payload = _read_varint(data, at, end)
        wire = tag & 7
        if wire == _DELIMITED:
            if payload < end and data[payload] <= 0x7F:
                length, payload = data[payload], payload + 1
            else:
                length, payload = _read_varint(data, payload, end)
            at = payload + length
        elif wire == _VARINT:
            _, at = _read_varint(data, payload, end)
        elif wire in (_FIXED32, _FIXED64):
            at = payload + (4 if wire == _FIXED32 else 8)
        else:
            raise DataError(f"wire type {wire} is none of an Example's", offset=at)
        if at > end or tag >> 3 == 0:
            raise DataError("a field reaches past the end of its message, or has no number", offset=payload)
        yield tag >> 3, payload, at, wire


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= end:
            break
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & _UINT64, at + index + 1
    raise DataError("a number does not end within its message", offset=at)
