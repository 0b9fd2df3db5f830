"""Contenders of `benchmark.py predict`: photos -> probabilities, with the same trained model.

Both decode, bring to the model's size and compute in float32. tfpipe reads every header first, turns pictures upright, resizes
with antialiasing and writes a CSV of all probabilities; Keras keeps an array.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfpipe.tools.benchmarks.worker import Task

Pass = Callable[[], Iterable[Any]]


def tfpipe_predict(task: Task) -> Pass:
    """`tfpipe.predict`, the whole call: from listing the folder to the file in place."""
    from tfpipe.formats import opening
    from tfpipe.prediction import prediction

    predictor = opening.load(task.model)
    folder, output = os.path.dirname(task.photos[0]), os.path.join(task.scratch, "predictions.csv")

    def predict() -> Iterator[Any]:
        summary = prediction.predict(predictor, folder, output, batch_size=task.batch_size, progress=False)
        yield range(summary.num_rows)

    return predict


def keras_predict(task: Task) -> Pass:
    """Keras as its guides show it: a reader of folders, predict."""
    import keras

    from tfpipe.models import classifiers

    model = classifiers.load(task.model).model
    folder, (height, width) = os.path.dirname(task.photos[0]), model.input_shape[1:3]

    def predict() -> Iterator[Any]:
        images = keras.utils.image_dataset_from_directory(
            folder, labels=None, image_size=(height, width), batch_size=task.batch_size, shuffle=False, verbose=False
        )
        yield model.predict(images, verbose=0)

    return predict
