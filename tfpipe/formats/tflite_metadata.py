"""Metadata inside a TFLite file: TensorFlow Lite's own, and our specification.

    whole = attach(model_bytes, specification)
    specification = read(whole, path)

By TensorFlow Lite's convention, metadata are a flatbuffer in the model's buffer TFLITE_METADATA,
which names files in a zip archive after the model; MediaPipe and Android Studio read the labels
from there. Our specification lies beside labels.txt; the archive's comment is the SHA-256 of the
model. A signature names input and output. https://ai.google.dev/edge/litert/models/metadata
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import flatbuffers
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils

from tfpipe.common.errors import DataError
from tfpipe.common.files import MAX_JSON_BYTES
from tfpipe.formats import specifications
from tfpipe.formats.specifications import Specification
from tfpipe.records.manifest import REGRESSION

SIGNATURE = "serving_default"

_BUFFER_NAME = b"TFLITE_METADATA"
_MODEL_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of a model
_METADATA_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
# Numbers of metadata_schema.fbs. The package that has them in Python, tflite-support, needs a
# protobuf that TensorFlow refuses.
_IMAGE_PROPERTIES, _RGB, _TENSOR_AXIS_LABELS, _DESCRIPTIONS = 2, 1, 2, 1
_OFFSET = "UOffsetTRelative"
_Field = tuple[str, int] | None  # type and value
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of zip; the time of writing would make equal models differ


def attach(model: bytes, specification: Specification) -> bytes:
    """Returns a TFLite model of one input and output with names, labels and specification."""
    content = flatbuffer_utils.convert_bytearray_to_object(model)
    graph = content.subgraphs[0]
    inputs, outputs = (
        [schema.TensorMapT(name=graph.tensors[index].name, tensorIndex=index) for index in indices]
        for indices in (graph.inputs, graph.outputs)
    )
    content.signatureDefs = [schema.SignatureDefT(inputs, outputs, SIGNATURE.encode())]
    content.metadata = [*(content.metadata or ()), schema.MetadataT(_BUFFER_NAME, len(content.buffers))]
    content.buffers.append(schema.BufferT(data=list(_describe(specification))))
    return _append_files(
        flatbuffer_utils.convert_object_to_bytearray(content),
        {
            specifications.LABELS_NAME: "".join(f"{name}\n" for name in specification.class_names),
            specifications.FILE_NAME: specification.to_json(),
        },
    )


def _append_files(model: bytes, files: dict[str, str]) -> bytes:
    whole = io.BytesIO(model)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.comment = hashlib.sha256(model).hexdigest().encode()
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EARLIEST), text.encode("utf-8", "surrogateescape"))
    return whole.getvalue()


def read(data: bytes, path: str | os.PathLike[str]) -> Specification:
    """Returns the specification in a TFLite file; raises DataError without, and for damage."""
    if data[4:8] != _MODEL_IDENTIFIER:
        raise DataError("not a TFLite file: it begins differently", path=path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(specifications.FILE_NAME).file_size > MAX_JSON_BYTES:
                raise ValueError("it is too large")
            text = archive.read(specifications.FILE_NAME).decode("utf-8", "surrogateescape")
            model = memoryview(data)[: archive.infolist()[0].header_offset]
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
        message = f"a TFLite file without {specifications.FILE_NAME} in it: not one that tfpipe exported, or truncated"
        raise DataError(message, path=path) from error
    # The interpreter trusts the numbers in a model: one flipped bit can end the process.
    if hashlib.sha256(model).hexdigest().encode() != archive.comment:
        raise DataError("a damaged TFLite file: its model is not the one that was written", path=path)
    return specifications.from_json(text, path)


# ---- the metadata's flatbuffer, written by the schema's field numbers


def _describe(specification: Specification) -> bytes:
    """Returns the metadata: an image as input, a score for each line of the labels as output."""
    builder = flatbuffers.Builder()
    height, width = specification.image_size
    size = _table(builder, [("Uint32", width), ("Uint32", height)])
    properties = _table(builder, [("Int8", _RGB), (_OFFSET, size)])
    levels = _table(builder, [("Int32", 0), ("Int32", 255)])
    content = _table(builder, [("Uint8", _IMAGE_PROPERTIES), (_OFFSET, properties), (_OFFSET, levels)])
    image = _described(builder, "image", f"RGB, 0..255, resized by {specification.resize}", None, (_OFFSET, content))
    is_regression = specification.task == REGRESSION
    what = "targets" if is_regression else "classes"
    labels = _described(builder, specifications.LABELS_NAME, f"names of the {what}, in order", ("Int8", _TENSOR_AXIS_LABELS))
    each = "one for each target, in its unit" if is_regression else "one for each class"
    probabilities = _described(builder, specification.output, each, file=labels)
    inputs, outputs = _vector(builder, image), _vector(builder, probabilities)
    graph = _table(builder, [None, None, (_OFFSET, inputs), (_OFFSET, outputs)])
    ours = _described(builder, specifications.FILE_NAME, "how images are brought to the model", ("Int8", _DESCRIPTIONS))
    kind = "regression on images" if is_regression else "image classifier"
    texts = (kind, f"model {specification.sha256}", specification.version)
    named = [(_OFFSET, builder.CreateString(text)) for text in texts]
    graphs, listed = _vector(builder, graph), _vector(builder, ours)
    parser = builder.CreateString(_MIN_PARSER_VERSION)
    whole = _table(builder, [*named, (_OFFSET, graphs), None, None, (_OFFSET, listed), (_OFFSET, parser)])
    builder.Finish(whole, file_identifier=_METADATA_IDENTIFIER)
    return bytes(builder.Output())


def _described(builder: Any, name: str, description: str, *fields: _Field, file: int = 0) -> int:
    """Writes a table that starts with a name and a description, of a tensor or a file."""
    texts = [(_OFFSET, builder.CreateString(text)) for text in (name, description)]
    if file:
        fields = (None, None, None, None, (_OFFSET, _vector(builder, file)))
    return _table(builder, [*texts, *fields])


def _table(builder: Any, fields: Sequence[_Field]) -> int:
    """Writes a table and returns its offset; None and 0 are left out."""
    builder.StartObject(len(fields))
    for slot, field in enumerate(fields):
        if field is not None:
            kind, value = field
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
    place: int = builder.EndObject()
    return place


def _vector(builder: Any, offset: int) -> int:
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(offset)
    vector: int = builder.EndVector()
    return vector
