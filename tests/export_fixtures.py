"""One small classifier, exported once in every format that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from evaluation_fixtures import make_classifier

import tfpipe
from tfpipe.exporting import parity, parity_process
from tfpipe.exporting.exporter import Export
from tfpipe.models.classifiers import Classifier

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "tf2onnx"))
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
FORMATS = ("saved_model", "pb", "tflite", "keras", *(("onnx",) if HAS_ONNX else ()), *(("openvino",) if HAS_OPENVINO else ()))


@dataclass(frozen=True)
class Exported:
    """A classifier and its export."""

    classifier: Classifier
    export: Export

    @property
    def folder(self) -> Path:
        return self.export.folder


@pytest.fixture(scope="module")
def asked_here() -> Iterator[None]:
    """Files of exports are asked in this process: a fresh one with TensorFlow takes seconds, and `exported` has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "_run_process", parity_process.run_all)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """All formats; class names with commas, quotes and Chinese; top 2 of 3 classes."""
    classifier = make_classifier()
    folder = tmp_path_factory.mktemp("export") / "größe 出"
    return Exported(classifier, tfpipe.export(classifier, folder, formats=FORMATS, top_k=2))
