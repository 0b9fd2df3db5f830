"""Request bodies for TensorFlow Serving, over REST and gRPC, for the signatures of an export.

    body = rest_request(["1.jpg", "2.png"])         # curl -d @body.json http://localhost:8501/v1/models/pets:predict

    channel = grpc.insecure_channel("localhost:8500")
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    response = PredictResponse.FromString(predict(grpc_request(["1.jpg", "2.png"], model_name="pets")))

Bodies follow https://www.tensorflow.org/tfx/serving/api_rest; the tests read them by it, without a
server.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import tensorflow as tf

from tfpipe.common import arguments
from tfpipe.common.files import read_bytes

Array = np.ndarray[Any, Any]
Form = Literal["row", "columnar"]
Image = str | os.PathLike[str] | bytes | BinaryIO | Array

_DEFAULT = "serving_default"
_OF_PIXELS = ("image", "image_tta")
_INPUTS = dict.fromkeys((_DEFAULT, "features", "pixels", "tta"), "image_bytes") | dict.fromkeys(_OF_PIXELS, "image")


@arguments.renamed(pictures="images")
def rest_request(images: Iterable[Image], *, signature_name: str = _DEFAULT, form: Form = "row") -> str:
    """Returns the JSON body of a POST to /v1/models/NAME:predict.

    Args:
        images: paths or contents of files, or files opened in binary mode; for the signatures
            "image" and "image_tta", arrays, uint8 [H, W, 3] of the model's size, as numbers in JSON:
            12 times the size of a usual JPEG.
        signature_name: of the export.
        form: "row" for a response image by image, "columnar" for one output by output.

    Raises:
        ValueError: an invalid argument.
        FileNotFoundError: there is no such file.
    """
    arguments.choice("form", form, get_args(Form))
    name, values = _values(images, signature_name)
    encoded = [
        value.tolist() if isinstance(value, np.ndarray) else {"b64": base64.b64encode(value).decode()} for value in values
    ]
    content = {"instances": encoded} if form == "row" else {"inputs": {name: encoded}}
    return json.dumps({"signature_name": signature_name, **content}, separators=(",", ":"))


@arguments.renamed(pictures="images")
def grpc_request(
    images: Iterable[Image], *, model_name: str, signature_name: str = _DEFAULT, version: int | None = None
) -> bytes:
    """Returns a serialised PredictRequest for /tensorflow.serving.PredictionService/Predict.

    Args:
        images: as for `rest_request`; arrays are sent as they are.
        model_name: name of the model on the server.
        signature_name: of the export.
        version: of the model, default the latest.

    Raises:
        ValueError, FileNotFoundError: as `rest_request`.
        ImportError: the extra [serving] is not installed.
    """
    (model_name,), (version,) = arguments.check(model_name=model_name), arguments.check_given(version=version)
    name, values = _values(images, signature_name)
    request = _messages().PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model_name, signature_name
    if version is not None:
        request.model_spec.version.value = version
    request.inputs[name].CopyFrom(tf.make_tensor_proto(np.stack(values) if name == "image" else values))
    serialized: bytes = request.SerializeToString(deterministic=True)
    return serialized


def _values(images: Iterable[Image], signature_name: str) -> tuple[str, list[Any]]:
    """Returns the name of the signature's input and its values: bytes or arrays."""
    arguments.choice("signature_name", signature_name, _INPUTS)
    is_one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "read")
    if is_one or not isinstance(images, Iterable):
        raise ValueError(f"images must be a list (got a single {type(images).__name__})")
    read = _pixels if signature_name in _OF_PIXELS else _bytes
    values = [read(image) for image in images]
    if not values:
        raise ValueError("images must be one or more: servers refuse an empty request")
    if len(shapes := {value.shape for value in values if isinstance(value, np.ndarray)}) > 1:
        raise ValueError(f"images must have one size (got {sorted(shapes)})")
    return _INPUTS[signature_name], values


def _bytes(image: Image) -> bytes:
    if isinstance(image, np.ndarray):
        raise ValueError("arrays go to the signature 'image'; the others take files, as paths or bytes")
    if isinstance(image, str | os.PathLike):
        return read_bytes(image)
    content = image.read() if hasattr(image, "read") and not isinstance(image, io.TextIOBase) else image
    if not isinstance(content, bytes | bytearray | memoryview):
        wanted = "a path, the bytes of a file, or a file opened with open(path, 'rb')"
        raise ValueError(f"an image must be {wanted} (got {type(image).__name__})")
    return bytes(content)


def _pixels(image: Image) -> Array:
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the signature 'image' takes arrays, uint8 [H, W, 3] (got {got})")
    return image


def _messages() -> Any:
    try:
        from tensorflow_serving.apis import predict_pb2
    except ModuleNotFoundError as error:
        raise ImportError("gRPC needs TensorFlow Serving's messages: pip install 'tfpipe[serving]'") from error
    return predict_pb2
