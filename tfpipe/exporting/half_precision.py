"""float16 weights: half the bytes, computed in float32 as before, and the cost of rounding.

    rounded = round_weights(model)
    measure_cost(model, rounded, "shards/", "val")["accuracy"]
    graph = store_half(freeze_images(rounded, specification))    # the same numbers in half the bytes

Only storing is exact: files are compared with the rounded model.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.errors import lines_of
from tfpipe.evaluation.receipts import open_split
from tfpipe.models import predictions
from tfpipe.models.classifiers import NamedModel, Predictor, task_of
from tfpipe.models.split_images import read_for
from tfpipe.records import manifest
from tfpipe.records.manifest import MULTILABEL

_MIN_VALUES = 1024  # fewer are not worth an operation


def round_weights(model: NamedModel) -> NamedModel:
    """Returns a copy with weights rounded to float16.

    Raises:
        ValueError: a weight is beyond float16's 65,504, or Keras cannot rebuild the model.
    """
    try:
        copy = keras.models.clone_model(model.model)
    except (TypeError, ValueError, NotImplementedError) as error:  # of a class without get_config, or of a subclassed model
        reason = lines_of(error)[0]
        raise ValueError(f"half needs a model that Keras can build anew from its configuration: {reason}") from error
    rounded = []
    for weight in model.model.weights:
        values = weight.numpy()
        if np.issubdtype(values.dtype, np.floating) and values.size >= _MIN_VALUES:
            with np.errstate(over="ignore"):
                values = values.astype(np.float16).astype(values.dtype)
            if not np.isfinite(values).all():
                raise ValueError(f"{weight.path}: has numbers beyond 65,504, which float16 cannot store")
        rounded.append(values)
    copy.set_weights(rounded)
    return NamedModel(copy, model.seen)


def measure_cost(before: Predictor, after: Predictor, directory: str | os.PathLike[str], split: str) -> dict[str, Any]:
    """Returns the effect of rounding, to float16 or 8 bits, on a split.

    Returns:
        "num_pictures", "accuracy_before", "accuracy", "num_changed" (other class),
        "largest_difference" (of a probability).

    Raises:
        ValueError: the split is unlabelled or empty, or the model lacks one of its classes.
        DataError: a model gives no probabilities for an image.
    """
    open_split(before, directory, split)
    columns = [list(before.class_names).index(name) for name in manifest.load(directory).class_names]
    outputs, labels = [], []
    for batch in read_for(before, directory, split):
        keys = [key.decode() for key in batch["key"].numpy().tolist()]
        outputs.append(np.stack([model.predict(batch["image"]) for model in (before, after)]))
        for model, values in zip((before, after), outputs[-1], strict=True):
            predictions.check(values, keys, model)
        labels += (
            list(batch["label"].numpy()) if task_of(before) == MULTILABEL else [columns[one] for one in batch["label"].numpy()]
        )
    both, truth = np.concatenate(outputs, axis=1), np.array(labels)
    chosen = both.argmax(axis=2)[..., np.newaxis]
    known, truth = np.ones((len(truth), 1), bool), truth.reshape(len(truth), -1)
    if task_of(before) == MULTILABEL:  # accuracy is then of labels
        chosen, known = predictions.present(both, None)[..., columns], truth >= 0
    return {
        "num_pictures": len(truth),
        "accuracy_before": float((chosen[0] == truth)[known].mean()),
        "accuracy": float((chosen[1] == truth)[known].mean()),
        "num_changed": int((chosen[0] != chosen[1]).any(axis=1).sum()),
        "largest_difference": float(np.abs(both[0] - both[1]).max()),
    }


def store_half(graph: Any) -> Any:
    """Returns a GraphDef with large constants stored as float16 and cast; no number changes.

    Constants that float16 cannot hold stay as they are.
    """
    stored = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        values = tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else np.zeros(0)
        if values.dtype != np.float32 or values.size < _MIN_VALUES or not _is_half(values):
            stored.node.add().CopyFrom(node)
            continue
        halves = stored.node.add(op="Const", name=f"{node.name}/half", input=node.input)
        halves.attr["dtype"].type = tf.float16.as_datatype_enum
        halves.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values.astype(np.float16)))
        cast = stored.node.add(op="Cast", name=node.name, input=[halves.name])
        cast.attr["SrcT"].type, cast.attr["DstT"].type = tf.float16.as_datatype_enum, tf.float32.as_datatype_enum
    return stored


def _is_half(values: np.ndarray[Any, Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool((values.astype(np.float16) == values).all())
