"""Requests for TensorFlow Serving: what a server makes of them, by its documentation, gives the model's probabilities."""

import base64
import binascii
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_image, write
from evaluation_fixtures import CLASS_NAMES, make_classifier
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tfpipe.common.files import read_bytes
from tfpipe.formats import signatures
from tfpipe.formats.specifications import Specification
from tfpipe.images.decoding import decode_image, resize_image
from tfpipe.models.tta import Tta
from tfpipe.networks import arithmetic
from tfpipe.prediction.requests import grpc_request, rest_request

pytestmark = pytest.mark.tf

FILES = [make_image(1), make_image(2, (20, 30), "PNG"), b"GIF89a\x00\x00", make_image(3) + b"\x00\x00"]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
SIGNATURES = ("serving_default", "image")  # of four; the others take what the first does, and making them takes seconds


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


@pytest.fixture(scope="module")
def saved_model(classifier, tmp_path_factory):
    specification = Specification(CLASS_NAMES, (8, 8), "stretch", "tf", classifier.sha256, top_k=2)
    folder, archive = str(tmp_path_factory.mktemp("export") / "saved_model"), keras.export.ExportArchive()
    archive.track(classifier.network)
    functions = signatures.make(signatures.model_function(classifier), specification, has_features=False)
    for name in SIGNATURES:
        archive.add_endpoint(name, functions[name])
    archive.write_out(folder, verbose=False)
    return folder


@pytest.fixture(scope="module")
def loaded(saved_model):
    return tf.saved_model.load(saved_model)


@pytest.fixture(scope="module")
def messages():
    return pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="the extra [serving] is not installed")


def read_request(body, saved_model):
    """Returns the signature name and the inputs that a server, by its documentation, reads from a REST (str) or gRPC body."""
    signatures = _signatures(Path(saved_model))
    name, given = _read_json(body) if isinstance(body, str) else _read_message(body)
    if name not in signatures:
        raise ValueError(f"{saved_model}: has the signatures {', '.join(sorted(signatures))} (got {name!r})")
    expected = signatures[name].inputs
    if not isinstance(given, Mapping):  # the name is left out
        if len(expected) != 1:
            raise ValueError(f"{name!r} has the inputs {', '.join(sorted(expected))}: each must be named")
        given = dict.fromkeys(expected, given)
    if sorted(given) != sorted(expected):
        raise ValueError(f"{name!r} has the inputs {', '.join(sorted(expected))} (got {', '.join(sorted(given))})")
    return name, {key: _tensor(key, value, expected[key]) for key, value in given.items()}


def _signatures(folder):
    model = saved_model_pb2.SavedModel.FromString(read_bytes(folder / "saved_model.pb"))
    graphs = [graph for graph in model.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ValueError(f"{folder}: has no graph with the tag 'serve', which is what a server looks for")
    return {name: signature for name, signature in graphs[0].signature_def.items() if not name.startswith("__")}


def _read_json(body):
    request = json.loads(body)
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise ValueError("a request must have either instances or inputs")
    name, rows = request.get("signature_name", "serving_default"), request.get("instances")
    if rows is None:
        inputs = request["inputs"]
        return name, _from_base64(inputs)
    if not isinstance(rows, list) or not rows:
        raise ValueError("instances must be a list of one or more")
    values = [_from_base64(row) for row in rows]
    if not isinstance(values[0], dict):
        return name, values
    if any(not isinstance(value, dict) or value.keys() != values[0].keys() for value in values):
        raise ValueError("instances must be all values, or all objects with the same names")
    return name, {key: [value[key] for value in values] for key in values[0]}


def _from_base64(value):
    """Returns a value of JSON with bytes for each {"b64": ...} in it."""
    if isinstance(value, list):
        return [_from_base64(item) for item in value]
    if isinstance(value, dict) and value.keys() == {"b64"}:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"b64 cannot be decoded: {error}") from None
    return {key: _from_base64(item) for key, item in value.items()} if isinstance(value, dict) else value


def _read_message(body):
    from tensorflow_serving.apis import predict_pb2

    try:
        request = predict_pb2.PredictRequest.FromString(body)
    except DecodeError as error:
        raise ValueError(f"not a PredictRequest: {error}") from None
    if not request.model_spec.name:
        raise ValueError("a request must name its model")
    return request.model_spec.signature_name or "serving_default", {
        key: tf.make_ndarray(value) for key, value in request.inputs.items()
    }


def _tensor(name, value, expected):
    """Returns an input as a signature expects it."""
    dtype, shape = tf.as_dtype(expected.dtype), tf.TensorShape(expected.tensor_shape)
    wanted = f"{name} must be {dtype.name} {shape.as_list()}"
    if isinstance(value, np.ndarray) and tf.as_dtype(value.dtype) != dtype:
        raise ValueError(f"{wanted} (got {value.dtype})")  # TensorFlow would convert it
    try:
        tensor = tf.constant(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{wanted} ({error})") from None
    if not shape.is_compatible_with(tensor.shape):
        raise ValueError(f"{wanted} (got {tensor.shape.as_list()})")
    return tensor


def make_body(form, images, signature_name):
    if form == "grpc":
        pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="the extra [serving] is not installed")
        return grpc_request(images, model_name="pets", signature_name=signature_name)
    return rest_request(images, signature_name=signature_name, form=form)


def given(signature_name):
    return IMAGES if signature_name == "image" else FILES


def as_json(value):
    """An output as the documentation of the REST API says: strings as they are where the name does not end in _bytes."""
    return (
        [as_json(item) for item in value] if isinstance(value, list) else value.decode() if isinstance(value, bytes) else value
    )


@pytest.mark.parametrize("form", ["row", "columnar", "grpc"])
@pytest.mark.parametrize("signature_name", SIGNATURES)
def test_a_body_holds_what_the_signature_takes(saved_model, form, signature_name):
    name, inputs = read_request(make_body(form, given(signature_name), signature_name), saved_model)
    assert name == signature_name
    (key,) = inputs
    if signature_name == "image":
        assert key == "image"
        np.testing.assert_array_equal(inputs[key], IMAGES)
    else:
        assert key == "image_bytes"
        assert inputs[key].numpy().tolist() == FILES


@pytest.mark.parametrize("form", ["row", "columnar", "grpc"])
def test_every_form_of_a_request_gives_the_probabilities_of_the_model(saved_model, loaded, classifier, form):
    name, inputs = read_request(make_body(form, IMAGES, "image"), saved_model)
    with arithmetic.exact():
        outputs = loaded.signatures[name](**inputs)
    np.testing.assert_array_equal(outputs["probabilities"], classifier.predict(IMAGES))
    best = [CLASS_NAMES[index].encode() for index in classifier.predict(IMAGES).argmax(axis=1)]
    assert outputs["classes"].numpy()[:, 0].tolist() == best


def test_files_are_answered_with_what_the_pipeline_decodes(saved_model, loaded, classifier):
    name, inputs = read_request(rest_request(FILES), saved_model)
    with arithmetic.exact():
        answers = loaded.signatures[name](**inputs)
    assert answers["valid"].numpy().tolist() == [True, True, False, True]
    good = [0, 1, 3]
    images = np.stack([resize_image(decode_image(FILES[index], 1), (8, 8)).numpy() for index in good])
    filled = np.insert(images, 2, 0, axis=0)  # one batch as large: other sizes round differently
    np.testing.assert_array_equal(answers["probabilities"].numpy()[good], classifier.predict(filled)[good])


def test_every_signature_of_an_export_can_be_called(classifier):
    specification = Specification(CLASS_NAMES, (8, 8), "stretch", "tf", classifier.sha256, tta=Tta("flip"))
    functions = signatures.make(signatures.model_function(classifier), specification, has_features=True)
    for name, function in functions.items():
        (spec,) = function.input_signature
        body = json.loads(rest_request(FILES if spec.dtype == tf.string else IMAGES, signature_name=name, form="columnar"))
        assert list(body["inputs"]) == [spec.name]


def test_the_json_is_that_of_the_documentation(tmp_path):
    path = write(tmp_path / "1.jpg", b"\xff\xd8")
    encoded = {"b64": base64.b64encode(b"\xff\xd8").decode()}
    assert json.loads(rest_request([path])) == {"signature_name": "serving_default", "instances": [encoded]}
    columnar = {"signature_name": "features", "inputs": {"image_bytes": [encoded, encoded]}}
    assert json.loads(rest_request([str(path), b"\xff\xd8"], signature_name="features", form="columnar")) == columnar


def test_a_grpc_request_names_its_model(messages, saved_model):
    body = grpc_request(FILES, model_name="pets", version=3)
    request = messages.PredictRequest.FromString(body)
    assert (request.model_spec.name, request.model_spec.signature_name) == ("pets", "serving_default")
    assert request.model_spec.version.value == 3
    assert not messages.PredictRequest.FromString(grpc_request(FILES, model_name="pets")).model_spec.HasField("version")
    assert body == grpc_request(FILES, model_name="pets", version=3)
    request.model_spec.name = ""
    with pytest.raises(ValueError, match="must name its model"):
        read_request(request.SerializeToString(), saved_model)
    request.model_spec.name = "pets"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(np.float32([1, 2])))
    with pytest.raises(ValueError, match=r"image_bytes must be string \[None\] \(got float32\)"):
        read_request(request.SerializeToString(), saved_model)
    with pytest.raises(ValueError, match="not a PredictRequest"):
        read_request(b"\xff\xff", saved_model)


@pytest.mark.parametrize("kind", [io.BytesIO, bytearray, memoryview])
def test_files_are_taken_as_the_bytes_they_hold(kind):
    assert rest_request([kind(data) for data in FILES]) == rest_request(FILES)


def test_grpc_without_its_package_reports_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"pip install 'tfpipe\[serving\]'"):
        grpc_request(FILES, model_name="pets")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "must be one or more"),
        ("1.jpg", {}, r"must be a list \(got a single str\)"),
        (
            FILES,
            {"signature_name": "serve"},
            "must be one of serving_default, features, pixels, tta, image, image_tta .got 'serve'",
        ),
        (FILES, {"form": "rows"}, "form must be one of row, columnar"),
        (FILES, {"signature_name": "image"}, r"takes arrays, uint8 \[H, W, 3\] \(got bytes\)"),
        (IMAGES / 255, {"signature_name": "image"}, r"\(got float64 \[8, 8, 3\]\)"),
        (IMAGES, {}, "arrays go to the signature 'image'"),
        (io.BytesIO(FILES[0]), {}, r"must be a list \(got a single BytesIO\)"),
        (bytearray(FILES[0]), {}, r"must be a list \(got a single bytearray\)"),
        ([None], {}, r"an image must be a path, the bytes of a file, or a file opened with .* \(got NoneType\)"),
        ([io.StringIO("a")], {}, r"opened with open\(path, 'rb'\) \(got StringIO\)"),
        ([IMAGES[0], IMAGES[0, :4]], {"signature_name": "image"}, "must have one size"),
    ],
)
def test_mistakes_are_named(images, options, message):
    with pytest.raises(ValueError, match=message):
        rest_request(images, **options)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"instances": []}', "one or more"),
        ("[1]", "either instances or inputs"),
        ('{"instances": ["a"], "inputs": ["a"]}', "either instances or inputs"),
        ('{"signature_name": "other", "instances": ["a"]}', "has the signatures image, serving_default"),
        ('{"instances": [{"b64": "%"}]}', "b64 cannot be decoded"),
        ('{"instances": [{"image": "a"}]}', r"has the inputs image_bytes \(got image\)"),
        ('{"instances": ["a", {"image_bytes": "a"}]}', r"image_bytes must be string \[None\]"),
        ('{"instances": [{"image_bytes": "a"}, "a"]}', "all values, or all objects"),
        ('{"instances": [["a"]]}', r"image_bytes must be string \[None\] \(got \[1, 1\]\)"),
        ('{"instances": [1]}', r"image_bytes must be string \[None\]"),
        ('{"inputs": {"image_bytes": {"b64": "YQ=="}}}', r"\(got \[\]\)"),
        ('{"signature_name": "image", "instances": [[[[0.5, 0, 0]]]]}', r"image must be uint8 \[None, 8, 8, 3\]"),
        ('{"signature_name": "image", "instances": [[[[1, 0, 0]]]]}', r"\(got \[1, 1, 1, 3\]\)"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(saved_model, body, message):
    with pytest.raises(ValueError, match=message):
        read_request(body, saved_model)


def test_names_may_be_given_or_left_out(saved_model):
    bodies = ['{"instances": [{"image_bytes": {"b64": "YQA="}}]}', '{"inputs": [{"b64": "YQA="}]}']
    for body in bodies:
        name, inputs = read_request(body, saved_model)
        assert (name, inputs["image_bytes"].numpy().tolist()) == ("serving_default", [b"a\0"])
