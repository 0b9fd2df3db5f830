"""Where pixels are computed: on the CPU, as in `tf.data`, because a GPU rounds differently."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_cpu(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Returns the function with all its operations on the CPU of this machine."""

    @functools.wraps(function)
    def placed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with tf.device("/CPU:0"):  # merged with the caller's device: job and task of a worker remain
            return function(*args, **kwargs)

    return placed
