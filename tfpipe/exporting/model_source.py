"""The inputs of an export: the model, and images of the data set it was trained on.

model, run = find("runs/a", "best", {})
images = find_images(run, data=None, split=None, is_needed=False)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfpipe.common import arguments, stores
from tfpipe.common.errors import DataError
from tfpipe.exporting.reference_images import ReferenceImage
from tfpipe.exporting.wrapping import wrap
from tfpipe.formats.preflight import SPLIT, find_checkpoint
from tfpipe.images.decoding import parse_example
from tfpipe.models import classifiers
from tfpipe.models.classifiers import NamedModel
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import folds, manifest, schema
from tfpipe.records.run_folders import locate_data

_log = logging.getLogger("tfpipe")

_NUM_IMAGES = 8


@dataclass(frozen=True)
class Images:
    """A split of a data set, or nothing if `directory` is empty."""

    directory: str = ""
    split: str = ""

    def __str__(self) -> str:
        return f"split {self.split} of {stores.url(self.directory)}"

    def references(self) -> list[ReferenceImage]:
        """Returns eight files, spread over the split."""
        if not self.directory:
            return []
        reader = RecordReader(Path(self.directory), self.split)
        num_records = manifest.load(self.directory).split(self.split).num_records
        positions = sorted({index * num_records // _NUM_IMAGES for index in range(_NUM_IMAGES)}) if num_records else []
        records = [parse_example(reader.read(position), reader.manifest.task) for position in positions]
        return [ReferenceImage(row[schema.KEY].numpy().decode(), row[schema.ENCODED].numpy()) for row in records]


def find(
    model: str | os.PathLike[str] | keras.Model | NamedModel, checkpoint: str, given: Mapping[str, Any], *, trust: bool = False
) -> tuple[NamedModel, Path | None]:
    """Returns the model, and its run's folder, if it has one.

    Args:
        model: see `tfpipe.export`.
        checkpoint: see `tfpipe.export`.
        given: arguments of `wrap`, None where not given.
        trust: see `tfpipe.export`.

    Raises:
        ValueError: an argument that the model has itself, or a missing one.
        FileNotFoundError, DataError: see `classifiers.load_model`.
    """
    run, named, seen = None, "the model", getattr(model, "seen", ())
    if isinstance(model, str | os.PathLike):
        path, run = find_checkpoint(Path(model), checkpoint)
        named, model, seen = str(path), classifiers.load_model(path, trust=trust)[0], folds.seen_by(path)
    elif not isinstance(model, keras.Model | NamedModel):
        raise arguments.wrong("model", "a path or a Keras model", model)
    elif checkpoint != "best":
        raise ValueError(f"checkpoint={checkpoint!r} is of a run's folder, not of a model")
    if isinstance(model, NamedModel):
        model = model.model
    options = {name: value for name, value in given.items() if value is not None}
    if classifiers.is_named(model):
        if options:
            raise ValueError(f"{named} has its own {', '.join(options)}: leave that out")
        return NamedModel(model, seen), run
    if "class_names" not in options:
        raise ValueError(f"{named} has no class names: class_names is needed (and preprocessing, if it has none inside)")
    return wrap(model, **options), run


def find_images(run: Path | None, data: str | os.PathLike[str] | None, split: str | None, *, is_needed: bool) -> Images:
    """Returns the split of `data`, or of the run's data set, if that has not changed.

    Raises:
        ValueError: there is no such split, or none at all although it `is_needed`.
        FileNotFoundError, DataError: `data` is not a data set.
    """
    directory = os.fspath(data) if data is not None else trained_on(run)
    if not directory:
        if is_needed or split is not None:
            raise ValueError("half=True, and a split, need images: give the data set, data=...")
        return Images()
    splits = manifest.load(directory).splits
    if split is None and data is None and SPLIT not in splits and not is_needed:
        return Images()
    manifest.load(directory).split(split or SPLIT)
    return Images(directory, split or SPLIT)


def trained_on(run: Path | None) -> str:
    """Returns the folder of a run's data set; "" if that has gone, or changed."""
    try:
        return os.fspath(locate_data(run)) if run is not None else ""
    except (FileNotFoundError, DataError) as error:
        _log.info("no images of the run's own data to compare on: %s", error)
        return ""
