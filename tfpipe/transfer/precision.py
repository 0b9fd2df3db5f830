"""In which numbers a training computes: bfloat16 where the device has it, else float32.

    policy, reason = choose("auto")   # ("mixed_bfloat16", "the processor has AVX512-BF16")

It concerns training and extraction. Evaluation, prediction and export compute in float32: the probabilities of one model
differ by up to 0.05 between the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfpipe.records import arguments

POLICIES = ("float32", "mixed_bfloat16")

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # as Linux names them, and as people do; the faster first
_AMPERE = (8, 0)  # the compute capability from which NVIDIA's tensor cores take bfloat16


def choose(precision: str) -> tuple[str, str]:
    """Returns a Keras dtype policy, one of POLICIES, and in words why.

    Args:
        precision: "auto" or one of POLICIES.

    Raises:
        ValueError: it is something else, mixed_float16 included: that needs its loss scaled, which is not done here.
    """
    if check(precision) != "auto":
        return precision, "asked for"
    capabilities = gpu_capabilities()
    return _for_gpus(capabilities) if capabilities else _for_cpu(cpu_flags(), os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"))


def check(precision: str) -> str:
    """Returns "auto" or one of POLICIES; raises ValueError for anything else."""
    if precision == "mixed_float16":
        raise ValueError("precision: mixed_float16 needs loss scaling, which is not done here; use mixed_bfloat16 or float32")
    return arguments.choice("precision", precision, ("auto", *POLICIES))


def gpu_capabilities() -> list[tuple[int, int] | None]:
    """Returns the compute capability of each GPU that TensorFlow sees, None for one that is not NVIDIA's."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]


def cpu_flags(path: Path = _CPUINFO) -> frozenset[str]:
    """Returns what every core can do, in Linux's words; nothing where there is no such file (macOS) or line (ARM)."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    found = [frozenset(line.partition(":")[2].split()) for line in lines if line.partition(":")[0].strip() == "flags"]
    return frozenset.intersection(*found) if found else frozenset()


def _for_gpus(capabilities: Sequence[tuple[int, int] | None]) -> tuple[str, str]:
    if all(capability is not None and tuple(capability) >= _AMPERE for capability in capabilities):
        return "mixed_bfloat16", "every GPU has it (compute capability 8.0 or higher)"
    named = ", ".join(sorted({"unknown" if found is None else ".".join(map(str, found)) for found in capabilities}))
    return "float32", f"a GPU lacks bfloat16 (compute capability 8.0 is needed; here: {named})"


def _for_cpu(flags: Iterable[str], onednn: str) -> tuple[str, str]:
    known = [name for flag, name in _CPU_FLAGS.items() if flag in flags]
    if not known:
        return "float32", f"the processor has no bfloat16 arithmetic ({' or '.join(_CPU_FLAGS.values())}, as far as it says)"
    if onednn == "0":  # without oneDNN, TensorFlow computes bfloat16 in plain loops
        return "float32", f"the processor has {known[0]}, but TF_ENABLE_ONEDNN_OPTS=0 keeps TensorFlow from using it"
    return "mixed_bfloat16", f"the processor has {known[0]}"
