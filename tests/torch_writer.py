"""Writes PyTorch's files of before version 1.6, opcode by opcode, as there is no PyTorch here."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> bytes:
    """The opcodes of a plain value, without the pickle's first and last."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    key: str, length: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "Float"
) -> bytes:
    """The opcodes of a tensor in a storage."""
    storage = b"(" + plain("storage") + f"ctorch\n{kind}Storage\n".encode() + plain(key) + plain("cpu") + plain(length) + b"NtQ"
    arguments = storage + plain(offset) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def write_torch(
    path: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    pickled: Mapping[str, bytes] = {},
    storages: Mapping[str, np.ndarray[Any, Any]] = {},
) -> Path:
    """Writes tensors, each with its own order of axes, and further objects as opcodes."""
    kept, opcodes = dict(storages), dict(pickled)
    for index, (name, values) in enumerate(tensors.items()):
        order = np.argsort([-stride for stride in values.strides], kind="stable")
        kept[f"tensor {index}"] = values.transpose(order).ravel()
        strides = tuple(stride // values.itemsize for stride in values.strides)
        kind = "Float" if values.dtype == np.float32 else "Long"
        opcodes[name] = tensor(f"tensor {index}", values.size, values.shape, strides, kind=kind)
    table = b"ccollections\nOrderedDict\n)R(" + b"".join(plain(name) + value for name, value in opcodes.items()) + b"u"
    parts = [plain(0x1950A86A20F9469CFC6C), plain(1001), plain({"little_endian": True}), table, plain(list(kept))]
    data = b"".join(b"\x80\x02" + part + b"." for part in parts)
    data += b"".join(len(values).to_bytes(8, "little") + values.tobytes() for values in kept.values())
    path.write_bytes(data)
    return path
