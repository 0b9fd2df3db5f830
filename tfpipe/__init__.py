"""From folders of photographs to a classifier you can trust, on TensorFlow and Keras.

    manifest = tfpipe.build_tfrecords("photos/", "shards/", layout="folders", splits={"train": 0.8, "test": 0.2})
    for images, labels in tfpipe.dataset("shards/", "test", batch_size=64, image_size=(224, 224)): ...

Names are imported when they are first used: `import tfpipe` loads neither TensorFlow nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfpipe.building.build import build_tfrecords as build_tfrecords
    from tfpipe.common.errors import DataError as DataError
    from tfpipe.evaluation.evaluator import evaluate as evaluate
    from tfpipe.evaluation.mcnemar import compare as compare
    from tfpipe.exporting.exporter import export as export
    from tfpipe.formats.frozen_graph import load_frozen as load_frozen
    from tfpipe.images.decoding import decode_image as decode_image
    from tfpipe.images.decoding import parse_example as parse_example
    from tfpipe.images.decoding import resize_image as resize_image
    from tfpipe.pipeline.augmentation import augment_image as augment_image
    from tfpipe.pipeline.loader import dataset as dataset
    from tfpipe.pipeline.loader import describe as describe
    from tfpipe.pipeline.presets import Augmentation as Augmentation
    from tfpipe.pipeline.replaying import replay as replay
    from tfpipe.prediction.models import load as load
    from tfpipe.prediction.prediction import predict as predict
    from tfpipe.prediction.requests import grpc_request as grpc_request
    from tfpipe.prediction.requests import rest_request as rest_request
    from tfpipe.records import manifest as _manifest
    from tfpipe.records.class_weights import class_weights as class_weights
    from tfpipe.records.manifest import Manifest as Manifest
    from tfpipe.training.recipes import Recipe as Recipe
    from tfpipe.training.runs import train as train

    load_manifest = _manifest.load  # imported under another name, type checkers take it for a private one

__version__ = "0.1.0"

# Public name -> where it lives. Modules are nouns and functions are verbs: a name that equals a submodule's would be
# replaced by the module when that is imported.
_HOMES = {
    "Augmentation": ("tfpipe.pipeline.presets", "Augmentation"),
    "DataError": ("tfpipe.common.errors", "DataError"),
    "Manifest": ("tfpipe.records.manifest", "Manifest"),
    "Recipe": ("tfpipe.training.recipes", "Recipe"),
    "augment_image": ("tfpipe.pipeline.augmentation", "augment_image"),
    "build_tfrecords": ("tfpipe.building.build", "build_tfrecords"),
    "class_weights": ("tfpipe.records.class_weights", "class_weights"),
    "compare": ("tfpipe.evaluation.mcnemar", "compare"),
    "dataset": ("tfpipe.pipeline.loader", "dataset"),
    "decode_image": ("tfpipe.images.decoding", "decode_image"),
    "describe": ("tfpipe.pipeline.loader", "describe"),
    "evaluate": ("tfpipe.evaluation.evaluator", "evaluate"),
    "export": ("tfpipe.exporting.exporter", "export"),
    "grpc_request": ("tfpipe.prediction.requests", "grpc_request"),
    "load": ("tfpipe.prediction.models", "load"),
    "load_frozen": ("tfpipe.formats.frozen_graph", "load_frozen"),
    "load_manifest": ("tfpipe.records.manifest", "load"),
    "parse_example": ("tfpipe.images.decoding", "parse_example"),
    "predict": ("tfpipe.prediction.prediction", "predict"),
    "replay": ("tfpipe.pipeline.replaying", "replay"),
    "rest_request": ("tfpipe.prediction.requests", "rest_request"),
    "resize_image": ("tfpipe.images.decoding", "resize_image"),
    "train": ("tfpipe.training.runs", "train"),
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfpipe' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return list(__all__)
