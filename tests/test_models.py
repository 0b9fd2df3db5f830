"""tfpipe.load: a model answers for paths, bytes and arrays alike, from the pixels that evaluation sees."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_image, write
from evaluation_fixtures import CLASS_NAMES, make_classifier
from PIL import Image
from prediction_fixtures import AWKWARD, Averages, bad_files, kinds, read, undecodable

from tfpipe.prediction.models import Model, load
from tfpipe.prediction.prediction import predict

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    make_classifier().model.save(path)
    return path


@pytest.fixture(scope="module")
def model(path):
    return load(path)


@pytest.fixture(scope="module")
def averages():
    return Model(Averages())


def test_a_model_reports_what_it_is(model):
    assert tuple(model.class_names) == CLASS_NAMES
    assert (model.image_size, model.resize) == ((8, 8), "stretch")


def test_paths_and_bytes_are_answered_as_files_are_predicted(model, path, tmp_path):
    files = [write(tmp_path / "in" / name, data) for name, data in kinds().items()]
    predict(path, files, tmp_path / "out.csv", batch_size=1, columns="full", progress=False)
    expected = {row[1]: row for row in read(tmp_path / "out.csv")[1:]}
    predict(model, files, tmp_path / "loaded.csv", batch_size=1, progress=False)
    assert (tmp_path / "loaded.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    by_path = model.predict(files, batch_size=1)
    by_bytes = model.predict((file.read_bytes() for file in files), batch_size=1)
    for file, one, other in zip(files, by_path, by_bytes, strict=True):
        assert [*one[:3], one.reason] == [*other[:3], other.reason]
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        row = expected[file.name]
        assert one.probabilities.dtype == np.float32
        assert [f"{value:.9g}" for value in one.probabilities] == row[9:]
        assert [cell for name, score in one.top for cell in (name, f"{score:.9g}")] == row[3:9]
        assert (one.class_name, one.score, one.reason) == (*one.top[0], "")
    assert model.predict(str(files[0]), batch_size=1)[0].top == by_path[0].top


def test_arrays_are_resized_as_files_are(averages, tmp_path):
    data = make_image(1, (40, 28), "PNG")
    array = np.asarray(Image.open(io.BytesIO(data)))
    assert array.shape == (28, 40, 3)
    (from_bytes,) = averages.predict(data)
    for given in (array, [array], array[np.newaxis], tf.constant(array), bytearray(data)):
        (found,) = averages.predict(given)
        np.testing.assert_array_equal(found.probabilities, from_bytes.probabilities)
    for batch in averages.predictor.batches:
        np.testing.assert_array_equal(batch, averages.predictor.batches[0])
    many = averages.predict(np.stack([array, 255 - array]), batch_size=1)
    assert many[0].top == from_bytes.top != many[1].top
    mixed = averages.predict([array[:5], data, write(tmp_path / "1.png", data)])
    assert mixed[1].top == mixed[2].top == from_bytes.top != mixed[0].top


def test_open_files_are_read_whole(averages, tmp_path):
    file = write(tmp_path / "1.jpg", make_image(1) + b"\n")
    (expected,) = averages.predict(file)
    for wrap in (lambda opened: opened, lambda opened: [opened], lambda opened: iter([opened])):
        for opened in (io.BytesIO(file.read_bytes()), open(file, "rb")):  # noqa: SIM115
            with opened:
                (found,) = averages.predict(wrap(opened))
            assert found.top == expected.top
    for text in (io.StringIO("a\nb"), [io.TextIOWrapper(io.BytesIO(make_image(1)))]):
        with pytest.raises(ValueError, match=r"an open file must give bytes: open.path, 'rb'"):
            averages.predict(text)


def test_paths_and_bytes_may_come_in_arrays(averages, tmp_path):
    data = make_image(1) + bytes(3)
    file = write(tmp_path / "1.jpg", data)
    (expected,) = averages.predict(file)
    columns = [np.array([str(file)]), np.array([[file]]), np.array([data], object), tf.constant([data]), tf.constant(data)]
    columns += [[tf.io.read_file(str(file))], [np.str_(file)]]
    for given in columns:
        (found,) = averages.predict(given)
        assert found.top == expected.top


def test_bad_images_are_answered_one_by_one(averages, tmp_path):
    bad_files(tmp_path)
    good = write(tmp_path / "good.jpg", make_image(1))
    bad = sorted(file for file in tmp_path.iterdir() if file != good and not file.name.startswith("caf"))
    files = [b"", good, *bad, undecodable(), tmp_path / "missing.jpg", good, "no\0path"]
    found = averages.predict(files, batch_size=3)
    assert [answer.class_name is not None for answer in found] == [file == good for file in files]
    reasons = [answer.reason.split(":")[0] for answer in found]
    assert reasons[-4:] == ["undecodable", "unreadable", "", "unreadable"]
    assert set(reasons) == {"empty", "", "not_an_image", "unreadable", "truncated", "other_format", "undecodable"}
    for answer in found:
        if answer.reason:
            assert (answer.class_name, answer.score, list(answer.top)) == (None, 0.0, [])
            np.testing.assert_array_equal(answer.probabilities, np.zeros(3, np.float32))
    assert averages.predict([]) == []


def test_a_limit_of_pixels():
    (answer,) = Model(Averages(), max_pixels=100).predict(make_image(1))
    assert answer.reason.startswith("too_many_pixels: ")


def test_the_best_are_as_many_as_requested(averages):
    assert len(averages.predict(make_image(1), top_k=2)[0].top) == 2
    assert {name for name, _ in averages.predict(make_image(1), top_k=9)[0].top} == set(AWKWARD)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be uint8 .got float32.: in floats, 0..1 and 0..255 cannot be told apart"),
        ([np.zeros((4, 4, 3), np.float64)], "cannot be told apart"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8, 0..255 .got int64"),
        (np.zeros((4, 4), np.uint8), r"the shape \[4, 4\]\); of a grey image: np.stack\(\[x\] \* 3, axis=-1\)"),
        ([np.zeros((4, 4, 1), np.uint8)], r"the shape \[4, 4, 1\]\); of grey images: np.repeat\(x, 3, axis=-1\)"),
        (np.zeros((4, 4, 4), np.uint8), r"the shape \[4, 4, 4\]\); of RGBA: x\[..., :3\]"),
        (np.array([b"a.jpg"]), r"must be uint8, 0..255 \(got \|S5\); paths and bytes are given as they are, in a list"),
        (np.array(["a.jpg", 3], object), r"must be a path, .* \(got int\)"),
        (np.zeros((0, 4, 3), np.uint8), r"the shape \[0, 4, 3\]"),
        ([np.zeros((1, 4, 4, 3), np.uint8)], r"\[B, H, W, 3\] goes alone"),
        (Image.new("L", (4, 4)), r"a path, .* or an array.*got Image\); of a PIL image: np.asarray\(image.convert\('RGB'\)\)"),
        ([Image.new("RGB", (4, 4))], r"of a PIL image: np.asarray"),
        ([None], r"a path, an open file or the bytes of one, or an array.*got NoneType\)$"),
        (3, "a path, an open file or the bytes of one, or an array.*got int"),
    ],
)
def test_other_inputs_are_refused(averages, given, message):
    with pytest.raises(ValueError, match=message):
        averages.predict(given)


def test_other_options_are_refused(averages):
    for options in ({"top_k": 0}, {"batch_size": 0}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match="must be an integer, 1 or more"):
            averages.predict([], **options)


def test_a_keras_model_is_to_be_exported_first(model):
    with pytest.raises(ValueError, match=r"got Functional\); export a Keras model first: tfpipe\.export\(model, output, "):
        load(model.predictor.model)


def test_a_model_that_is_not_there_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
