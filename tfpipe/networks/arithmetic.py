"""The numbers that networks compute in, and where: precision, TF32, device, memory.

    with arithmetic.exact():                       # true float32 on every device, whatever the process is set to
        probabilities = network(images).numpy()
    precision, reason = choose("auto")             # ("mixed_bfloat16", "the processor has AVX512-BF16")

Evaluation, prediction, explanation, extraction of float32 features and export compute in true
float32. Training computes in the precision of its recipe; the probabilities of one model differ by
up to 0.05 between bfloat16 and float32, and by up to 1e-3 between float32 and TF32, in which GPUs
from Ampere on multiply float32 by default.
"""

from __future__ import annotations

import contextlib
import functools
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
_CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # Linux's name -> usual name; the faster first
_PRODUCTS = ("Conv", "MatMul", "Einsum")  # in names of operations
_AMPERE = (8, 0)  # the compute capability from which NVIDIA's tensor cores take bfloat16 and TF32

Capability = tuple[int, int] | None


# ---- the precision of training


def choose(precision: str) -> tuple[str, str]:
    """Returns one of PRECISIONS, and in words why.

    Args:
        precision: "auto" or one of PRECISIONS.

    Raises:
        ValueError: it is another one; or it is "tf32", and a device lacks it.
    """
    if check(precision) == "auto":
        return _choose_for_gpus() or _choose_for_cpu()
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


def gpu_capabilities() -> list[Capability]:
    """Returns the compute capability of each visible GPU, None for those that are not NVIDIA's."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]


def cpu_flags(path: Path = _CPUINFO) -> frozenset[str]:
    """Returns the flags, as named by Linux, that every core has; none on macOS and ARM."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    found = [frozenset(line.partition(":")[2].split()) for line in lines if line.partition(":")[0].strip() == "flags"]
    return frozenset.intersection(*found) if found else frozenset()


def _are_ampere(capabilities: Sequence[Capability]) -> bool:
    return all(capability is not None and tuple(capability) >= _AMPERE for capability in capabilities)


def _named(capabilities: Sequence[Capability]) -> str:
    return ", ".join(sorted({"unknown" if found is None else ".".join(map(str, found)) for found in capabilities})) or "no GPU"


def _choose_for_gpus() -> tuple[str, str] | None:
    if not (capabilities := gpu_capabilities()):
        return None
    if _are_ampere(capabilities):
        return "mixed_bfloat16", "every GPU has it (compute capability 8.0 or higher)"
    return "float32", f"a GPU lacks bfloat16 (compute capability 8.0 is needed; here: {_named(capabilities)})"


def _choose_for_cpu() -> tuple[str, str]:
    flags = cpu_flags()
    known = [name for flag, name in _CPU_FLAGS.items() if flag in flags]
    if not known:
        return "float32", f"the processor reports no bfloat16 arithmetic ({' or '.join(_CPU_FLAGS.values())})"
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":  # without oneDNN, TensorFlow computes bfloat16 in plain loops
        return "float32", f"the processor has {known[0]}, but TF_ENABLE_ONEDNN_OPTS=0 keeps TensorFlow from using it"
    return "mixed_bfloat16", f"the processor has {known[0]}"


# ---- TF32: one flag of TensorFlow for the whole process; threads of one mode share it, others wait

_changed = threading.Condition()
_held = threading.local()  # its `mode`: what this thread holds the flag at, or None
_flag: dict[str, Any] = {"mode": False, "before": False, "num_holders": 0}
_num_waiting = {False: 0, True: 0}


def _hold(mode: bool | None) -> None:
    """Makes this thread hold the flag at a mode, or at none."""
    import tensorflow as tf

    mine = getattr(_held, "mode", None)
    if mode is mine:
        return
    with _changed:
        if mine is not None:
            _held.mode = None
            _flag["num_holders"] -= 1
            if not _flag["num_holders"]:
                tf.config.experimental.enable_tensor_float_32_execution(_flag["before"])
                _changed.notify_all()
        if mode is None:
            return
        _num_waiting[mode] += 1
        try:
            _changed.wait_for(lambda: _is_free_for(mode))
        finally:
            _num_waiting[mode] -= 1
            _changed.notify_all()
        if not _flag["num_holders"]:
            _flag["before"] = tf.config.experimental.tensor_float_32_execution_enabled()
            tf.config.experimental.enable_tensor_float_32_execution(mode)
        _flag["mode"] = _held.mode = mode
        _flag["num_holders"] += 1


def _is_free_for(mode: bool) -> bool:
    """A waiting thread's mode is next: two threads that take turns could keep it out for ever."""
    return not _num_waiting[not mode] if _flag["mode"] is mode else not _flag["num_holders"]


@contextlib.contextmanager
def computing(*, tf32: bool) -> Iterator[None]:
    """Multiplies float32 inside in TF32, where the device can, or in true float32.

    The setting is restored afterwards. Threads that want the other mode wait until no thread is
    inside, so hold it for one computation, up to its numbers in NumPy, never in a caller's code.
    """
    outer = getattr(_held, "mode", None)
    try:
        _hold(tf32)
        yield
    finally:
        _hold(outer)


# True float32 inside, on every device: `with exact():`, or a decorator, `@exact()`.
exact = functools.partial(computing, tf32=False)


# ---- the rest


@contextlib.contextmanager
def within_memory(batch_size: int, advice: str = "") -> Iterator[None]:
    """Computes on a batch inside.

    Raises:
        MemoryError: the memory of the device, or of the computer, does not suffice; with what to do.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        remedy = f"batch_size={batch_size // 2}{advice}" if batch_size > 1 else "a smaller image_size"
        raise MemoryError(f"out of memory with batch_size={batch_size}; try {remedy}") from error


@contextlib.contextmanager
def portable(model: Any) -> Iterator[None]:
    """Traces Keras models inside without cuDNN's recurrent layers, to run on any device."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "use_cudnn", False)]
    before = [layer.use_cudnn for layer in layers]
    try:
        for layer in layers:
            layer.use_cudnn = False
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value


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
    """Returns device strings by `device()`: of the CPU, and of the first GPU if there is one."""
    import tensorflow as tf

    found = {"CPU": "/CPU:0"}
    if tf.config.list_logical_devices("GPU"):
        with tf.device("/GPU:0"):
            found[device()] = "/GPU:0"
    return found


def describe(dtypes: Iterable[str]) -> dict[str, str]:
    """Returns device and arithmetic of a graph with these `products_of`, inside of `exact`."""
    return {"device": device(), "arithmetic": " and ".join(sorted(dtypes)) or "float32"}


def products_of(graph: Any) -> set[str]:
    """Returns the dtypes in which a GraphDef multiplies matrices; weights may have others."""
    import tensorflow as tf

    nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
    types = {node.attr["T"].type for node in nodes if "T" in node.attr and any(name in node.op for name in _PRODUCTS)}
    return {str(tf.dtypes.as_dtype(number).name) for number in types}
