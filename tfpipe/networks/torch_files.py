"""Reads the tensors of a PyTorch file without PyTorch, and without running what a pickle may hold.

    tensors = load(Path("efficientnet-lite0.pth"))          # {"_conv_stem.weight": float32 [32, 3, 3, 3], ...}

The format is the one that `torch.save` wrote before version 1.6: five pickles (a magic number, the
version, facts of the machine, the objects, the keys of the storages), then each storage as its
length (int64) and its numbers. Source: `torch/serialization.py`, `_legacy_save`.
"""

from __future__ import annotations

import collections
import math
import pickle
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_rest: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Makes tensors' descriptions, dictionaries and plain values; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {("collections", "OrderedDict"): collections.OrderedDict, ("torch._utils", "_rebuild_tensor_v2"): _tensor}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of a table of tensors")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, length, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, not to a whole storage of numbers")
        return _Storage(str(key), dtype, int(length))


def load(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the tensors by name, float32 or int64.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is of another format, is damaged, or holds anything but named tensors.
    """
    try:
        with open_regular(path) as file:
            magic, version, _machine = (_Unpickler(file).load() for _ in range(3))
            if (magic, version) != (_MAGIC, _VERSION):
                raise pickle.UnpicklingError(f"it begins with {magic!r} and {version!r}")
            described, keys = _Unpickler(file).load(), _Unpickler(file).load()
            if not isinstance(described, dict) or not all(isinstance(tensor, _Tensor) for tensor in described.values()):
                raise pickle.UnpicklingError("it holds other objects than named tensors")
            storages = {tensor.storage.key: tensor.storage for tensor in described.values()}
            if set(keys) != set(storages):
                raise pickle.UnpicklingError("its tensors and its storages do not match")
            numbers = {key: _read(file, storages[key]) for key in keys}
        return {str(name): _view(numbers[tensor.storage.key], tensor) for name, tensor in described.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged pickle, Python raises anything
        raise DataError(f"cannot be read as tensors of PyTorch: {error}", path=path) from error


def _read(file: IO[bytes], storage: _Storage) -> np.ndarray[Any, Any]:
    length = int.from_bytes(file.read(8), "little")
    data = file.read(storage.length * storage.dtype.itemsize) if length == storage.length else b""
    if not data or len(data) != length * storage.dtype.itemsize:
        raise EOFError(f"storage {storage.key} is truncated")
    return np.frombuffer(data, storage.dtype)


def _view(numbers: np.ndarray[Any, Any], tensor: _Tensor) -> np.ndarray[Any, Any]:
    """Returns a tensor of its storage; its strides, which count numbers, may be of any order."""
    if len(tensor.shape) != len(tensor.strides) or min((0, tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"a tensor of shape {tensor.shape} has the strides {tensor.strides}")
    furthest = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset + furthest >= len(numbers) or math.prod(tensor.shape) > len(numbers):
        raise ValueError(f"a tensor reaches past its storage, whose length is {len(numbers)} (shape: {tensor.shape})")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
