"""Keeps TensorFlow's startup messages off the terminal, and unused packages out of Keras.

TF_CPP_MIN_LOG_LEVEL decides, as everywhere in TensorFlow: 2, errors alone, unless the user has set
it. TensorFlow 2.21 reads it only after its first lines are written, so they pass a filter: a
process of its own, which outlives a TensorFlow that aborts.

Keras imports packages that no command passes it data of, where they are installed: 1.8 s of its 5
s.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, BinaryIO

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_SEVERITIES = b"IWE"  # in TensorFlow's order, as its lines begin: I0000 00:00:17...; those of F, fatal, are always shown
# Without them, Keras 3.15 has no wrappers for scikit-learn, no galleries, and takes no tables as
# inputs.
_HIDDEN = ("matplotlib", "pandas", "sklearn")
_NO_GPU = re.compile(rb"E\d{4} .*failed call to cuInit")  # an error only where there is a GPU
_GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg")


def quieten() -> None:
    """Sets the level, and filters messages and imports of TensorFlow once it is imported."""
    level = os.environ.setdefault(_LEVEL, "2")
    hidden = _SEVERITIES[: int(level)] if level.isdecimal() else b""
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, _Importer(hidden))


class _Importer(MetaPathFinder):
    """Imports TensorFlow with its messages filtered and some packages hidden."""

    def __init__(self, hidden: bytes) -> None:
        self._hidden = hidden

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_quietly(module: ModuleType) -> None:
            with _filtered(self._hidden) if self._hidden else contextlib.nullcontext(), _hidden_from_keras():
                load(module)
                module.config.list_physical_devices()  # logs now if there is no GPU

        spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _hidden_from_keras() -> Iterator[None]:
    """Makes imports of some packages fail, which Keras handles; loaded ones stay loaded."""
    absent: dict[str, Any] = {name: None for name in _HIDDEN if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _filtered(hidden: bytes) -> Iterator[None]:
    """Passes standard error, that of C++ included, through a process that drops some lines."""
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(writing)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends with its parent, after its last messages
                signal.signal(number, signal.SIG_IGN)
            with open(reading, "rb") as lines:
                _pass_on(lines, hidden)
        finally:
            os._exit(0)
    terminal = os.dup(2)
    os.dup2(writing, 2)
    for descriptor in (reading, writing):
        os.close(descriptor)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.waitpid(child, 0)


def _pass_on(lines: BinaryIO, hidden: bytes) -> None:
    start = re.compile(rb"[%s]\d{4} |WARNING: All log messages before absl::InitializeLog" % hidden)
    has_gpu = any(map(os.path.exists, _GPU_DRIVERS))
    for line in lines:
        if not start.match(line) and (has_gpu or not _NO_GPU.match(line)):
            os.write(2, line)
