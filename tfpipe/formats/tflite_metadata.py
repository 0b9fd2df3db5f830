"""What a TFLite file says of itself: TensorFlow Lite's own metadata, and ours, both inside the one file.

    whole = attach(model_bytes, specification)
    specification = read(path)

By TensorFlow Lite's convention, metadata are a flatbuffer in the model's buffer TFLITE_METADATA,
and the files it names are a zip archive appended to the model; MediaPipe and Android Studio read
the labels from there. Beside labels.txt lies our specification; the archive's comment is the
SHA-256 of the model before it. A signature names input and output.
https://ai.google.dev/edge/litert/models/metadata
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

SIGNATURE = "serving_default"

_BUFFER_NAME = b"TFLITE_METADATA"
_MODEL_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of a model
_METADATA_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
# Numbers of metadata_schema.fbs. The package that has them in Python, tflite-support, needs a
# protobuf that TensorFlow refuses.
_IMAGE_PROPERTIES, _RGB, _TENSOR_AXIS_LABELS, _DESCRIPTIONS = 2, 1, 2, 1
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of zip; the time of writing would make equal models differ


def attach(model: bytes, specification: Specification) -> bytes:
    """Returns a TFLite model of one input and one output with its names, labels and specification in it."""
    content = flatbuffer_utils.convert_bytearray_to_object(model)
    content.signatureDefs = [_signature(content.subgraphs[0])]
    content.metadata = [*(content.metadata or ()), _metadata_entry(len(content.buffers))]
    content.buffers.append(schema.BufferT())
    content.buffers[-1].data = list(_describe(specification))
    return _append_files(
        flatbuffer_utils.convert_object_to_bytearray(content),
        {
            specifications.LABELS_NAME: "".join(f"{name}\n" for name in specification.class_names),
            specifications.FILE_NAME: specification.to_json(),
        },
    )


def _signature(graph: Any) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
    signature.inputs = [_named(graph, index) for index in graph.inputs]
    signature.outputs = [_named(graph, index) for index in graph.outputs]
    return signature


def _named(graph: Any, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = graph.tensors[index].name, index
    return entry


def _metadata_entry(buffer_index: int) -> Any:
    entry = schema.MetadataT()
    entry.name, entry.buffer = _BUFFER_NAME, buffer_index
    return entry


def _append_files(model: bytes, files: dict[str, str]) -> bytes:
    whole = io.BytesIO(model)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.comment = hashlib.sha256(model).hexdigest().encode()
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EARLIEST), text.encode("utf-8", "surrogateescape"))
    return whole.getvalue()


def read(data: bytes, path: str | os.PathLike[str]) -> Specification:
    """Returns the specification in a TFLite file; the path is for errors.

    Raises:
        DataError: it is no TFLite file, has no specification, or was damaged.
    """
    if data[4:8] != _MODEL_IDENTIFIER:
        raise DataError("no TFLite file: it does not begin as one", path=path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(specifications.FILE_NAME).file_size > MAX_JSON_BYTES:
                raise ValueError("it is too large")
            text = archive.read(specifications.FILE_NAME).decode("utf-8", "surrogateescape")
            model = memoryview(data)[: archive.infolist()[0].header_offset]
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as error:
        message = f"a TFLite file without {specifications.FILE_NAME} in it: not one that tfpipe exported, or it was cut"
        raise DataError(message, path=path) from error
    # The interpreter trusts the numbers in a model: one flipped bit can end the process.
    if hashlib.sha256(model).hexdigest().encode() != archive.comment:
        raise DataError("a damaged TFLite file: its model is not the one that was written", path=path)
    return specifications.from_json(text, path)


# ---- the metadata's flatbuffer, written by the schema's field numbers


def _describe(specification: Specification) -> bytes:
    """Returns the metadata of a classifier: an image goes in, a score for each line of the labels comes out."""
    builder = flatbuffers.Builder()
    height, width = specification.image_size
    size = _table(builder, [("Uint32", width), ("Uint32", height)])
    properties = _table(builder, [("Int8", _RGB), ("UOffsetTRelative", size)])
    levels = _table(builder, [("Int32", 0), ("Int32", 255)])
    content = _table(builder, [("Uint8", _IMAGE_PROPERTIES), ("UOffsetTRelative", properties), ("UOffsetTRelative", levels)])
    image = _tensor(builder, "image", f"RGB, 0..255, resized by {specification.resize}", content=content)
    labels = _file(builder, specifications.LABELS_NAME, "names of the classes, in order", _TENSOR_AXIS_LABELS)
    probabilities = _tensor(builder, "probabilities", "one for each class", files=[labels])
    inputs, outputs = _offsets(builder, [image]), _offsets(builder, [probabilities])
    graph = _table(builder, [None, None, ("UOffsetTRelative", inputs), ("UOffsetTRelative", outputs)])
    ours = _file(builder, specifications.FILE_NAME, "how images are brought to the model", _DESCRIPTIONS)
    return _finish(builder, graph, ours, specification)


def _finish(builder: Any, graph: int, ours: int, specification: Specification) -> bytes:
    texts = ("image classifier", f"model {specification.sha256}", specification.version)
    named = [("UOffsetTRelative", builder.CreateString(text)) for text in texts]
    graphs, files = _offsets(builder, [graph]), _offsets(builder, [ours])
    parser = builder.CreateString(_MIN_PARSER_VERSION)
    fields = [*named, ("UOffsetTRelative", graphs), None, None, ("UOffsetTRelative", files), ("UOffsetTRelative", parser)]
    builder.Finish(_table(builder, fields), file_identifier=_METADATA_IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, name: str, description: str, *, content: int = 0, files: Sequence[int] = ()) -> int:
    texts = [("UOffsetTRelative", builder.CreateString(text)) for text in (name, description)]
    listed = ("UOffsetTRelative", _offsets(builder, files) if files else 0)
    return _table(builder, [*texts, None, ("UOffsetTRelative", content), None, None, listed])


def _file(builder: Any, name: str, description: str, kind: int) -> int:
    texts = [("UOffsetTRelative", builder.CreateString(text)) for text in (name, description)]
    return _table(builder, [*texts, ("Int8", kind)])


def _table(builder: Any, fields: Sequence[tuple[str, int] | None]) -> int:
    """Writes a table of the fields in their order and returns its place; None and 0 are left out."""
    builder.StartObject(len(fields))
    for slot, field in enumerate(fields):
        if field is not None:
            kind, value = field
            getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
    place: int = builder.EndObject()
    return place


def _offsets(builder: Any, places: Sequence[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    vector: int = builder.EndVector()
    return vector
