"""A trained classifier: saved and found again, equal by its hash, and every wrong file said."""

import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import CHECKOUT
from evaluation_fixtures import CLASS_NAMES, make_classifier
from test_layers import edit_config

from tfpipe.common.errors import DataError
from tfpipe.models import classifiers
from tfpipe.networks import arithmetic, heads, layers
from tfpipe.networks.backbones import build
from tfpipe.networks.layers import Preprocessing, Trunk

pytestmark = pytest.mark.tf

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype="uint8")


@pytest.fixture(scope="module")
def classifier():
    return make_classifier()


@pytest.fixture
def saved(classifier, tmp_path):
    classifier.model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def assembled(backbone, seed=0, class_names=CLASS_NAMES):
    """A classifier as training makes it."""
    keras.utils.set_random_seed(seed)
    found = build(backbone, image_size=(8, 8))
    head = heads.Head().layers(len(class_names), seed)
    preprocessing = Preprocessing("unit", name="preprocessing")
    model = heads.assemble([Trunk(found.network, True, name="trunk")], preprocessing, head, class_names, (8, 8))
    return classifiers.check(model)


# ---- what comes back


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    broken = assembled("lenet")
    kernel = broken.model.get_layer("trunk").network.weights[0]
    changed = kernel.numpy()
    changed[0, 0, 0, 0] = value
    kernel.assign(changed)
    broken.model.save(tmp_path / "model.keras")
    with pytest.raises(DataError, match=r"model\.keras: its weight \S*block1_conv/kernel is not finite"):
        classifiers.load(tmp_path)
    with pytest.raises(DataError, match="is not finite"):
        build("lenet", image_size=(8, 8), weights=str(tmp_path / "model.keras"))


def test_saved_and_loaded_it_is_the_same(classifier, saved):
    for place in (saved, saved.parent, str(saved)):
        again = classifiers.load(place)
        assert again.class_names == classifier.class_names == CLASS_NAMES
        assert again.image_size == (8, 8)
        assert again.resize == "stretch"
        assert again.sha256 == classifier.sha256
        np.testing.assert_array_equal(again.predict(IMAGES), classifier.predict(IMAGES))


def test_the_way_of_resizing_travels_with_it(tmp_path):
    images = keras.Input((8, 8, 3), dtype="uint8")
    values = Preprocessing("unit", "crop", name="preprocessing")(images)
    head = heads.Head().layers(2, 0)
    for layer in head:
        values = layer(values)
    model = keras.Model(images, layers.Probabilities(("a", "b"), name="probabilities")(values))
    model.save(tmp_path / "model.keras")
    assert classifiers.load(tmp_path).resize == "crop"


def test_predictions(classifier):
    probabilities, features = classifier.predict_with_features(IMAGES)
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (7, 3))
    assert (features.dtype, features.shape) == (np.float32, (7, 8))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(classifier.predict(tf.constant(IMAGES)), probabilities)
    assert np.ptp(probabilities, axis=0).max() > 0.01


def test_batches_of_one_and_of_seven_agree(classifier):
    one = np.concatenate([classifier.predict(IMAGES[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(one, classifier.predict(IMAGES), atol=1e-5)


def test_trunk_and_head_are_the_model(classifier):
    with arithmetic.exact():
        features = classifier.trunk(IMAGES)
        logits = classifier.head(features)
        expected = keras.Model(classifier.model.input, classifier.model.get_layer("logits").output)(IMAGES)
    assert features.shape == (7, 8, 8, 8)
    np.testing.assert_allclose(keras.ops.softmax(logits), classifier.predict(IMAGES), atol=1e-6)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


# ---- the hash


@pytest.mark.parametrize("backbone", ["lenet", "custom_backbone:small_inception", "custom_backbone:unnamed"])
def test_equal_classifiers_have_equal_hashes_wherever_keras_counts(backbone):
    """Keras numbers unnamed layers through a session: a run that is resumed, or the second of a script, counts otherwise."""
    assert assembled(backbone).sha256 == assembled(backbone).sha256


def test_the_hash_is_equal_in_another_process_and_when_saved_twice(classifier, saved):
    custom = assembled("custom_backbone:unnamed")
    custom.model.save(saved.parent / "custom.keras")
    code = "import sys; from tfpipe.models import classifiers; print(*(classifiers.load(p).sha256 for p in sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(saved), str(saved.parent / "custom.keras")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.split() == [classifier.sha256, custom.sha256]
    again = classifiers.load(saved)
    again.model.save(saved.with_name("again.keras"))
    assert classifiers.load(saved.with_name("again.keras")).sha256 == classifier.sha256


def test_the_hash_sees_every_weight_and_name_and_layer():
    hashes = [assembled("lenet").sha256]
    hashes.append(assembled("lenet", seed=1).sha256)
    hashes.append(assembled("lenet", class_names=("cat", "dog", "小 猫")).sha256)
    for index in range(len(assembled("lenet").model.weights)):
        changed = assembled("lenet")
        weight = changed.model.weights[index]
        values = weight.numpy()
        values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
        weight.assign(values)
        hashes.append(changed.sha256)
    assert len(set(hashes)) == len(hashes)


def test_the_hash_sees_what_has_no_weights(saved, classifier):
    hashes = [classifier.sha256]
    original = saved.read_bytes()
    for old, new in (
        ('"mode": "tf"', '"mode": "unit"'),
        ('"resize": "stretch"', '"resize": "crop"'),
        ('"activation": "tanh"', '"activation": "relu"'),
        ('"padding": "same"', '"padding": "valid"'),
        ('"class_name": "GlobalAveragePooling2D"', '"class_name": "GlobalMaxPooling2D"'),
    ):
        saved.write_bytes(original)
        edit_config(saved, old, new)
        hashes.append(classifiers.load(saved).sha256)
    assert len(set(hashes)) == len(hashes)


# ---- wrong files


def assert_short(caught, path):
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 250
    assert "\n" not in message


def test_no_file_and_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.keras"):
        with pytest.raises(FileNotFoundError) as caught:
            classifiers.load(path)
        assert_short(caught, path)


def test_no_keras_file(tmp_path):
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "model.txt").write_text("no model")
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match="cannot be loaded") as caught:
            classifiers.load(path)
        assert_short(caught, path)


def test_what_is_needed_is_reported_of_files_that_are_not_damaged_models(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "model.h5")
    for name in ("labels.txt", "preprocessing.json"):
        (tmp_path / name).write_text("no model")
    expected = dict.fromkeys(("labels.txt", "preprocessing.json"), "a run's folder, a .keras file, or a file or folder of an e")
    expected["model.h5"] = "it is an HDF5 file; export it first: tfpipe.export(keras.models.load_model(path), output, class_"
    for name, message in expected.items():
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            classifiers.load(tmp_path / name)
        assert "cut" not in str(caught.value)


def test_the_reason_that_keras_gives_ends_with_a_word(saved):
    old = '"module": "keras.layers", "class_name": "GlobalAveragePooling2D"'
    edit_config(saved, old, '"module": "m", "class_name": "Gone"')
    with pytest.raises(DataError, match=r"Could not locate class 'Gone'.*register_keras_serializable") as caught:
        classifiers.load(saved)
    assert str(caught.value).startswith(str(saved))
    assert str(caught.value).endswith(" [...]")
    assert 400 < len(str(caught.value)) - len(str(saved)) < 600


def test_a_file_that_was_cut_anywhere(saved):
    whole = saved.read_bytes()
    for length in [1, 4, 100, *range(500, len(whole), len(whole) // 25), len(whole) - 1]:
        saved.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be loaded") as caught:
            classifiers.load(saved)
        assert_short(caught, saved)


def test_a_flipped_bit_is_noticed_or_without_effect(saved, classifier):
    whole, messages = saved.read_bytes(), []
    places = [*range(0, len(whole), len(whole) // 50), *range(len(whole) - 300, len(whole), 12)]
    for place in places:
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert classifiers.load(saved).sha256 == classifier.sha256
        except DataError as error:
            messages.append(str(error))
    assert max(map(len, messages)) < len(str(saved)) + 250
    assert len(messages) > len(places) // 2


def test_changed_names_are_reported(saved):
    edit_config(saved, '"cat"', '"car"')
    with pytest.raises(DataError, match="class names were changed") as caught:
        classifiers.load(saved)
    assert_short(caught, saved)


def other_models():
    images = keras.Input((8, 8, 3), dtype="uint8")
    yield keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    yield keras.Model(images, Preprocessing("unit", name="preprocessing")(images))
    values = keras.layers.GlobalAveragePooling2D()(Preprocessing("unit", name="preprocessing")(images))
    yield keras.Model(images, layers.Probabilities(CLASS_NAMES, name="probabilities")(values))


@pytest.mark.parametrize("index", range(3))
def test_other_models_are_not_classifiers(index, tmp_path):
    path = tmp_path / "model.keras"
    list(other_models())[index].save(path)
    way = "; export it first: tfpipe.export(keras.models.load_model(path), output, class_names=[...])" if index < 2 else ""
    with pytest.raises(DataError, match=f"not a classifier of tfpipe.* no [a-z]+{re.escape(way)}$") as caught:
        classifiers.load(path)
    assert_short(caught, path)


def test_the_hash_is_that_of_the_weights_as_they_are_now():
    classifier = make_classifier()
    before = classifier.sha256
    kernel = classifier.model.get_layer("logits").kernel
    kernel.assign(kernel + 1)  # as a further fit in a notebook does
    assert classifier.sha256 != before
    kernel.assign(kernel - 1)
