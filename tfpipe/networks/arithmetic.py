"""In which numbers networks compute, and where: precision, TF32, deterministic kernels, the device.

    with arithmetic.exact():                       # true float32 on every device, whatever the process is set to
        probabilities = network(images).numpy()
    precision, reason = choose("auto")             # ("mixed_bfloat16", "the processor has AVX512-BF16")

Evaluation, prediction, explanation, extraction of float32 features and export compute in true
float32. Training computes in what its recipe says; the probabilities of one model differ by up to
0.05 between bfloat16 and float32, and by up to 1e-3 between TF32, in which GPUs from Ampere on
multiply float32 unless they are told otherwise, and float32.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfpipe.common import arguments

PRECISIONS = ("float32", "tf32", "mixed_bfloat16")
UNKNOWN = {"device": "not known", "arithmetic": "not known"}

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # as Linux names them, and as people do; the faster first
_PRODUCTS = ("Conv", "MatMul", "Einsum")  # in names of operations
_AMPERE = (8, 0)  # the compute capability from which NVIDIA's tensor cores take bfloat16 and TF32


# ---- what training computes in


def choose(precision: str) -> tuple[str, str]:
    """Returns one of PRECISIONS, and in words why.

    Args:
        precision: "auto" or one of PRECISIONS.

    Raises:
        ValueError: it is something else, mixed_float16 included: that needs its loss scaled, which
            is not done here; or it is "tf32", and a device lacks it.
    """
    if check(precision) == "auto":
        capabilities = gpu_capabilities()
        return _for_gpus(capabilities) if capabilities else _for_cpu(cpu_flags(), os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"))
    if precision == "tf32" and not has_tf32():
        here, advice = _named(gpu_capabilities()), "take float32, mixed_bfloat16 or auto"
        raise ValueError(f"precision: tf32 needs GPUs of compute capability 8.0 or higher (here: {here}); {advice}")
    return precision, "asked for"


def check(precision: str) -> str:
    """Returns "auto" or one of PRECISIONS; raises ValueError for anything else."""
    if precision == "mixed_float16":
        raise ValueError("precision: mixed_float16 needs loss scaling, which is not done here; use mixed_bfloat16 or float32")
    return arguments.choice("precision", precision, ("auto", *PRECISIONS))


def policy(precision: str) -> str:
    """Returns Keras' dtype policy for one of PRECISIONS."""
    return "float32" if precision == "tf32" else precision


def has_tf32() -> bool:
    """Returns whether there are GPUs, and all of them multiply in TF32."""
    capabilities = gpu_capabilities()
    return bool(capabilities) and _are_ampere(capabilities)


def gpu_capabilities() -> list[tuple[int, int] | None]:
    """Returns the compute capability of each GPU that TensorFlow uses, None for one that is not NVIDIA's."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]


def cpu_flags(path: Path = _CPUINFO) -> frozenset[str]:
    """Returns what every core can do, in Linux's words; nothing where there is no such file (macOS) or line (ARM)."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    found = [frozenset(line.partition(":")[2].split()) for line in lines if line.partition(":")[0].strip() == "flags"]
    return frozenset.intersection(*found) if found else frozenset()


def _are_ampere(capabilities: Sequence[tuple[int, int] | None]) -> bool:
    return all(capability is not None and tuple(capability) >= _AMPERE for capability in capabilities)


def _named(capabilities: Sequence[tuple[int, int] | None]) -> str:
    return ", ".join(sorted({"unknown" if found is None else ".".join(map(str, found)) for found in capabilities})) or "no GPU"


def _for_gpus(capabilities: Sequence[tuple[int, int] | None]) -> tuple[str, str]:
    if _are_ampere(capabilities):
        return "mixed_bfloat16", "every GPU has it (compute capability 8.0 or higher)"
    return "float32", f"a GPU lacks bfloat16 (compute capability 8.0 is needed; here: {_named(capabilities)})"


def _for_cpu(flags: Iterable[str], onednn: str) -> tuple[str, str]:
    known = [name for flag, name in _CPU_FLAGS.items() if flag in flags]
    if not known:
        return "float32", f"the processor has no bfloat16 arithmetic ({' or '.join(_CPU_FLAGS.values())}, as far as it says)"
    if onednn == "0":  # without oneDNN, TensorFlow computes bfloat16 in plain loops
        return "float32", f"the processor has {known[0]}, but TF_ENABLE_ONEDNN_OPTS=0 keeps TensorFlow from using it"
    return "mixed_bfloat16", f"the processor has {known[0]}"


# ---- how float32 is multiplied


class _Setting:
    """TensorFlow's flag for TF32, which is one for the whole process: threads that want the same share it, others wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = threading.local()
        self._mode, self._before = False, False
        self._num_holders = 0
        self._waiting = {False: 0, True: 0}

    @property
    def mine(self) -> bool | None:
        """What this thread holds the flag at, None where it does not."""
        found: bool | None = getattr(self._held, "mode", None)
        return found

    def take(self, mode: bool) -> None:
        import tensorflow as tf

        with self._changed:
            self._waiting[mode] += 1
            try:
                self._changed.wait_for(lambda: self._is_free_for(mode))
            finally:
                self._waiting[mode] -= 1
                self._changed.notify_all()
            if not self._num_holders:
                self._before = tf.config.experimental.tensor_float_32_execution_enabled()
                tf.config.experimental.enable_tensor_float_32_execution(mode)
            self._mode, self._held.mode = mode, mode
            self._num_holders += 1

    def give_back(self) -> None:
        import tensorflow as tf

        if self.mine is None:  # an interrupt came while it was waited for
            return
        with self._changed:
            self._held.mode = None
            self._num_holders -= 1
            if not self._num_holders:
                tf.config.experimental.enable_tensor_float_32_execution(self._before)
                self._changed.notify_all()

    def _is_free_for(self, mode: bool) -> bool:
        """The other mode's turn comes when it is waited for: two threads that take turns would keep a third out for ever."""
        return not self._waiting[not mode] if self._mode is mode else not self._num_holders


_setting = _Setting()


@contextlib.contextmanager
def computing(*, tf32: bool) -> Iterator[None]:
    """Float32 is multiplied in TF32 inside, where the device can, or else in true float32; then all is as it was before.

    The flag is the process': who wants the other waits until no thread is inside any more. So it is
    to be held for a computation, up to its numbers in NumPy, and never while a caller's code runs.
    """
    outer = _setting.mine
    if outer is tf32:
        yield
        return
    if outer is not None:
        _setting.give_back()
    try:
        _setting.take(tf32)
        try:
            yield
        finally:
            _setting.give_back()
    finally:
        if outer is not None:
            _setting.take(outer)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Float32 is true float32 inside, on every device; also a decorator. See `computing`."""
    with computing(tf32=False):
        yield


@contextlib.contextmanager
def portable(model: Any) -> Iterator[None]:
    """A Keras model traced inside has operations for any device: where Keras sees a GPU, recurrent layers take cuDNN's."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "use_cudnn", False)]
    before = [layer.use_cudnn for layer in layers]
    try:
        for layer in layers:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value


def make_deterministic() -> None:
    """Makes TensorFlow take deterministic kernels, for the rest of the process."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


# ---- what results say of it


def device() -> str:
    """Returns on what TensorFlow computes here: "CPU" or the GPU's name."""
    import tensorflow as tf

    spec = tf.DeviceSpec.from_string(tf.add(1.0, 1.0).device)
    gpus = tf.config.get_visible_devices("GPU")
    if spec.device_type != "GPU" or not gpus:
        return str(spec.device_type)
    gpu = gpus[min(spec.device_index or 0, len(gpus) - 1)]  # of one that was split, every part has the same name
    return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))


def places() -> dict[str, str]:
    """Returns where TensorFlow can compute here, for `tf.device`, by `device`: the CPU, then the first GPU if there is one."""
    import tensorflow as tf

    found = {"CPU": "/CPU:0"}
    if tf.config.list_logical_devices("GPU"):
        with tf.device("/GPU:0"):
            found[device()] = "/GPU:0"
    return found


def describe(dtypes: Iterable[str]) -> dict[str, str]:
    """Returns device and arithmetic of what TensorFlow computes here with `products_of` these dtypes, inside of `exact`."""
    return {"device": device(), "arithmetic": " and ".join(sorted(dtypes)) or "float32"}


def products_of(graph: Any) -> set[str]:
    """Returns the dtypes in which a GraphDef multiplies matrices: weights may be stored in others."""
    import tensorflow as tf

    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    types = {node.attr["T"].type for node in nodes if "T" in node.attr and any(name in node.op for name in _PRODUCTS)}
    return {str(tf.dtypes.as_dtype(number).name) for number in types}
