"""The specification of an exported model: how to feed it and read its outputs.

specification = Specification(("cat", "dog"), (224, 224), "stretch", "caffe", sha256)
from_json(specification.to_json(), path) == specification
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfpipe.common import arguments
from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.files import check_json, parse_json
from tfpipe.images.headers import DEFAULT_MAX_PIXELS
from tfpipe.models.tta import Tta
from tfpipe.records import checksums
from tfpipe.records.manifest import MULTILABEL, PROBABILITIES, REGRESSION, SINGLE, TASKS, VALUES
from tfpipe.records.run_folders import Seen
from tfpipe.records.samples import USUAL, Resize, Samples

FILE_NAME = checksums.SPECIFICATION_NAME
LABELS_NAME = "labels.txt"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Specification:
    """How images are prepared for a model, and the meaning of its outputs.

    Attributes:
        class_names: names of the columns of the probabilities.
        image_size: (height, width) of its input.
        resize: how images are resized, see `tfpipe.dataset`.
        preprocessing: inside the model, one of `tfpipe.networks.layers.PREPROCESSINGS`.
        sha256: of the exported model, see `NamedModel.sha256`; of a lossy TFLite file, whose outputs
            differ, one derived from it.
        top_k: columns of "classes" and "scores".
        max_pixels: height times width above which a file is not decoded.
        version: of tfpipe.
        samples: how 16-bit and transparent PNG are converted.
        task: "single", the probabilities add up to 1; "ordinal", they do, too, and the classes are in
            an order; or "multilabel", each is of its class alone. "regression": there are none, but
            values, in units.
        thresholds: of "multilabel", at which probability of its class a label is there.
        units: of "regression", of each target, "" where it is not known; class_names are then those
            of the targets.
        deviations: of "regression", of each target in the training images.
        tta: views that are averaged: of a SavedModel, by its signatures "tta" and "image_tta"; of
            another file, by itself.
        seen: the splits that the model was made from, unless they are train and val: one entry, or one
            for each model that it averages.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    resize: Resize
    preprocessing: str
    sha256: str
    top_k: int = 5
    max_pixels: int = DEFAULT_MAX_PIXELS
    version: str = ""
    samples: Samples = USUAL
    task: str = SINGLE
    thresholds: tuple[float, ...] | None = None
    units: tuple[str, ...] | None = None
    deviations: tuple[float, ...] | None = None
    tta: Tta | None = None
    seen: tuple[Seen, ...] = ()

    @property
    def output(self) -> str:
        """The name of what the model gives."""
        return VALUES if self.task == REGRESSION else PROBABILITIES

    def to_json(self) -> str:
        """Returns one JSON object, the same text for equal specifications."""
        facts = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        del facts["tta"]
        if not self.seen:
            del facts["seen"]
        facts["samples"] = self.samples.options()
        if not facts["samples"]:
            del facts["samples"]  # as in files that were written before there was a choice
        if self.task == SINGLE:
            del facts["task"]
        for name in ("thresholds", "units", "deviations"):  # of other tasks
            if facts[name] is None:
                del facts[name]
        facts |= {"tta": self.tta.facts()} if self.tta else {}
        return dump_json(facts, indent=2) + "\n"


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Returns JSON in UTF-8; bytes of file names that are not UTF-8 are written as escapes."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def from_json(text: str | bytes, path: str | os.PathLike[str]) -> Specification:
    """Returns the specification from its JSON; raises DataError with the path for others."""
    from tfpipe.images import decoding  # here: the names of files are known without TensorFlow

    try:
        facts: dict[str, Any] = parse_json(text.encode() if isinstance(text, str) else text, Path(path))
        if facts.pop("format_version") != FORMAT_VERSION:
            raise DataError(f"{FILE_NAME} is of another version of tfpipe than this one reads ({FORMAT_VERSION})", path=path)
        specification = check_json(facts, Specification, Path(path))
        arguments.check(image_size=specification.image_size)
        decoding.check_mode(specification.resize)
        arguments.choice("task", specification.task, TASKS)
        count = len(specification.class_names)
        for name, task in {"thresholds": MULTILABEL, "units": REGRESSION, "deviations": REGRESSION}.items():
            values = getattr(specification, name)
            if (values is None) == (specification.task == task) or (values is not None and len(values) != count):
                raise DataError(f"{name} must be one for each class, of task {task} only")
    except (ValueError, KeyError, TypeError, AttributeError, DataError) as error:
        raise DataError(f"not the specification of a model: {lines_of(error)[0]}", path=path) from error
    return specification
