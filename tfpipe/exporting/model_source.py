"""What an export begins with: the model, wherever it is, and images of the data that it was trained for.

    source = find("runs/a", "best", {})
    source.model, source.run

What a run does not say, or a model of another program, has to be given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.exporting.reference_images import Specimen
from tfpipe.exporting.wrapping import wrap
from tfpipe.formats.preflight import SPLIT, find_checkpoint
from tfpipe.images.decoding import parse_example
from tfpipe.models import classifiers
from tfpipe.models.classifiers import NamedModel
from tfpipe.pipeline.reading import RecordReader
from tfpipe.records import manifest, schema
from tfpipe.records.run_folders import locate_data

_log = logging.getLogger("tfpipe")

_NUM_IMAGES = 8


@dataclass(frozen=True)
class Source:
    """A model, and the run's folder that it came from, if it did."""

    model: NamedModel
    run: Path | None = None


@dataclass(frozen=True)
class Images:
    """A split of a data set, or nothing where `directory` is empty."""

    directory: str = ""
    split: str = ""

    def __str__(self) -> str:
        return f"split {self.split} of {self.directory}"

    def specimens(self) -> list[Specimen]:
        """Returns eight files of the split, from all over it."""
        if not self.directory:
            return []
        reader = RecordReader(Path(self.directory), self.split)
        num_records = manifest.load(self.directory).split(self.split).num_records
        positions = sorted({index * num_records // _NUM_IMAGES for index in range(_NUM_IMAGES)}) if num_records else []
        records = [parse_example(reader.read(position)) for position in positions]
        return [Specimen(row[schema.KEY].numpy().decode(), row[schema.ENCODED].numpy()) for row in records]


def find(
    model: str | os.PathLike[str] | keras.Model | NamedModel, checkpoint: str, given: Mapping[str, Any], *, trust: bool = False
) -> Source:
    """Returns the model of a run, of a .keras file, or one that is there already.

    Args:
        model: see `tfpipe.export`.
        checkpoint: see `tfpipe.export`.
        given: arguments of `wrap`, None where not given.
        trust: see `tfpipe.export`.

    Raises:
        ValueError: the model says already what was given, or needs what was not.
        FileNotFoundError, DataError: see `classifiers.load_model`.
    """
    run, named = None, "the model"
    if isinstance(model, str | os.PathLike):
        path, run = find_checkpoint(Path(model), checkpoint)
        named, model = str(path), classifiers.load_model(path, trust=trust)[0]
    elif not isinstance(model, keras.Model | NamedModel):
        raise arguments.wrong("model", "a path or a Keras model", model)
    elif checkpoint != "best":
        raise ValueError(f"checkpoint={checkpoint!r} is of a run's folder, not of a model")
    if isinstance(model, NamedModel):
        model = model.model
    words = {name: value for name, value in given.items() if value is not None}
    if classifiers.is_named(model):
        if words:
            raise ValueError(f"{named} says its {', '.join(words)} itself: leave that out")
        return Source(NamedModel(model), run)
    if "class_names" not in words:
        raise ValueError(f"{named} does not say its classes: class_names is needed (and preprocessing, if it has none inside)")
    return Source(wrap(model, **words), run)


def find_images(source: Source, data: str | os.PathLike[str] | None, split: str | None, *, is_needed: bool) -> Images:
    """Returns the split that was named, or that of the run's data set, where it is still the same.

    Raises:
        ValueError: it is needed, and there is none; or there is no such split.
        FileNotFoundError, DataError: `data` is no data set.
    """
    directory = os.fspath(data) if data is not None else _trained_on(source.run)
    if not directory:
        if is_needed or split is not None:
            raise ValueError("half=True, and a split, need images: give the data set, data=...")
        return Images()
    splits = manifest.load(directory).splits
    if split is None and data is None and SPLIT not in splits and not is_needed:
        return Images()
    manifest.load(directory).split(split or SPLIT)
    return Images(directory, split or SPLIT)


def _trained_on(run: Path | None) -> str:
    try:
        return os.fspath(locate_data(run)) if run is not None else ""
    except (FileNotFoundError, DataError) as error:
        _log.info("no images of the run's own data to compare on: %s", error)
        return ""
