"""Where pixels are made: on the CPU, as in `tf.data`, whatever device is at hand.

    @on_cpu
    def resize_image(image): ...

A GPU rounds sums and products otherwise, so that what is called eagerly, in a `tf.function` or in a strategy's scope would give
other pixels than a dataset does. Every function that other floors or callers get pixels, features of a record or drawn numbers
from is `on_cpu`; what only such functions and datasets call need not be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def on_cpu(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Returns the function with all its operations on the CPU of this machine."""

    @functools.wraps(function)
    def placed(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        with tf.device("/CPU:0"):  # within a worker's device, whose job and task remain
            return function(*args, **kwargs)

    return placed
