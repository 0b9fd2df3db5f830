"""What a data set's damage looks like to who reads it: a `DataError` that says where, not TensorFlow's report of its graph.

for batch in read(dataset("shards/", "test")): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfpipe.common.errors import DataError


def read(data: tf.data.Dataset) -> Iterator[Any]:
    """Yields the elements.

    Raises:
        DataError: a record is damaged.
    """
    elements = iter(data)
    while True:
        try:
            element = next(elements)
        except StopIteration:
            return
        except tf.errors.InvalidArgumentError as error:
            raise DataError(plain(error.message)) from error
        yield element


def plain(message: str) -> str:
    """Returns what went wrong, without the nodes of the graph that it went wrong in."""
    # "{{function_node ...}} Error in user-defined function ...: assertion failed: [WHAT]\n\t
    # [[{{node Assert/Assert}}]] ..."
    found = re.search(r"assertion failed: \[(.*)\]\s*\[\[\{\{node", message, flags=re.DOTALL)
    return found[1] if found else message
