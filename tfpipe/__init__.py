"""From folders of photographs to a classifier you can trust, on TensorFlow and Keras.

    manifest = tfpipe.build_tfrecords("photos/", "shards/", layout="folders", splits={"train": 0.8, "test": 0.2})
    for images, labels in tfpipe.dataset("shards/", "test", batch_size=64, image_size=(224, 224)): ...

Names are imported when they are first used: `import tfpipe` loads neither TensorFlow nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same table for type checkers; a test compares the two
    from tfpipe.building.build import build_tfrecords as build_tfrecords
    from tfpipe.common.errors import DataError as DataError
    from tfpipe.common.errors import RejectedImage as RejectedImage
    from tfpipe.evaluation.evaluator import Evaluation as Evaluation
    from tfpipe.evaluation.evaluator import evaluate as evaluate
    from tfpipe.evaluation.folds import evaluate_folds as evaluate_folds
    from tfpipe.evaluation.mcnemar import Comparison as Comparison
    from tfpipe.evaluation.mcnemar import compare as compare
    from tfpipe.exporting.exporter import Export as Export
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
    from tfpipe.prediction.models import Model as Model
    from tfpipe.prediction.models import load as load
    from tfpipe.prediction.prediction import Summary as Summary
    from tfpipe.prediction.prediction import predict as predict
    from tfpipe.prediction.requests import grpc_request as grpc_request
    from tfpipe.prediction.requests import rest_request as rest_request
    from tfpipe.records import manifest as _manifest
    from tfpipe.records.class_weights import class_weights as class_weights
    from tfpipe.records.manifest import Manifest as Manifest
    from tfpipe.training.folds import FoldRuns as FoldRuns
    from tfpipe.training.folds import train_folds as train_folds
    from tfpipe.training.recipes import Recipe as Recipe
    from tfpipe.training.runs import Run as Run
    from tfpipe.training.runs import train as train
    from tfpipe.verification.verification import verify as verify

    load_manifest = _manifest.load  # imported under another name, type checkers take it for a private one

__version__ = "0.1.0"

# Module -> its public names. Modules are nouns and functions are verbs: a name that equals a
# submodule's would be replaced by the module when that is imported.
_NAMES = {
    "building.build": "build_tfrecords",
    "common.errors": "DataError RejectedImage",
    "evaluation.evaluator": "Evaluation evaluate",
    "evaluation.folds": "evaluate_folds",
    "evaluation.mcnemar": "Comparison compare",
    "exporting.exporter": "Export export",
    "formats.frozen_graph": "load_frozen",
    "images.decoding": "decode_image parse_example resize_image",
    "pipeline.augmentation": "augment_image",
    "pipeline.loader": "dataset describe",
    "pipeline.presets": "Augmentation",
    "pipeline.replaying": "replay",
    "prediction.models": "Model load",
    "prediction.prediction": "Summary predict",
    "prediction.requests": "grpc_request rest_request",
    "records.class_weights": "class_weights",
    "records.manifest": "Manifest load_manifest",
    "training.folds": "FoldRuns train_folds",
    "training.recipes": "Recipe",
    "training.runs": "Run train",
    "verification.verification": "verify",
}
_HOMES = {name: f"tfpipe.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfpipe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), "load" if name == "load_manifest" else name)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return list(__all__)
