"""Where pixels are made: on the CPU, as in `tf.data`, whatever device is at hand.

    @on_cpu
    def resize_image(image): ...

A GPU rounds differently: pixels made eagerly, in a `tf.function` or in a strategy's replica would not be those of a dataset.
Every function that makes pixels, or parses records, for callers outside this package is decorated; functions that only
decorated ones and datasets call need not be.
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
        with tf.device("/CPU:0"):  # merged with the caller's device: job and task of a worker remain
            return function(*args, **kwargs)

    return placed
