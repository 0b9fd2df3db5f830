"""Which devices a training uses.

chosen = parse("GPU:0,GPU:2")      # ValueError: devices must be ...
strategy = use(chosen)             # ValueError: devices=GPU:2: there is no such device; there are CPU, GPU:0, GPU:1
"""

from __future__ import annotations

import re
from typing import Any

from tfpipe.common import arguments

_WORDS = ("auto", "one", "all", "CPU")
_GPU = re.compile(r"GPU:\d{1,4}")


def parse(text: str) -> tuple[str, ...]:
    """Returns one of "auto", "one", "all" and "CPU", or different names of GPUs, as TensorFlow counts them.

    Raises:
        ValueError: it is something else.
    """
    words = tuple(word.strip() for word in text.split(","))
    are_gpus = all(map(_GPU.fullmatch, words)) and len(set(words)) == len(words)
    if not are_gpus and words not in [(word,) for word in _WORDS]:
        raise arguments.wrong("devices", f"one of {', '.join(_WORDS)}, or names of GPUs as in GPU:0,GPU:2", text)
    return words


def choose(words: tuple[str, ...], gpus: list[str]) -> list[str]:
    """Returns the GPUs that are meant, of those that there are; none for the CPU.

    Raises:
        ValueError: what is asked for is not there.
    """
    if words == ("CPU",):
        return []
    if words == ("one",):
        return gpus[:1]
    wanted = gpus if words in (("auto",), ("all",)) else list(words)
    missing = [word for word in wanted if word not in gpus] or ["all"] * (words == ("all",) and not gpus)
    if missing:
        there = f"there are {', '.join(['CPU', *gpus])}" if gpus else "TensorFlow finds no GPU here: there is the CPU alone"
        raise ValueError(f"devices={missing[0]}: there is no such device; {there}")
    return wanted


def use(words: tuple[str, ...]) -> Any:
    """Hides all GPUs but the chosen ones from TensorFlow, and returns the strategy for several, or None.

    To be called before TensorFlow computes anything.

    Raises:
        ValueError: what is asked for is not there.
    """
    import tensorflow as tf

    devices = {device.name.removeprefix("/physical_device:"): device for device in tf.config.list_physical_devices("GPU")}
    chosen = choose(words, list(devices))
    tf.config.set_visible_devices([devices[name] for name in chosen], "GPU")
    return tf.distribute.MirroredStrategy() if len(chosen) > 1 else None
