"""The layers of a classifier: preprocessing as Keras' own, a trunk that training does not reach, named probabilities."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_submodels import randomised

from tfpipe.common.text import hash_names
from tfpipe.networks.heads import dtype_policy
from tfpipe.networks.layers import PREPROCESSINGS, Preprocessing, Probabilities, Trunk

pytestmark = pytest.mark.tf

SHAPE = (6, 6, 3)
NAMES = ("cat", 'a, "b"', "小 猫")


def all_levels():
    """uint8 [4, 8, 8, 3] in which every level is in every channel."""
    return (
        np.stack([np.random.default_rng(channel).permutation(256) for channel in range(3)], -1)
        .astype("uint8")
        .reshape(4, 8, 8, 3)
    )


# ---- preprocessing


@pytest.mark.parametrize(
    ("mode", "module"),
    [
        ("caffe", keras.applications.vgg16),
        ("tf", keras.applications.resnet_v2),
        ("tf", keras.applications.mobilenet_v2),
        ("torch", keras.applications.densenet),
    ],
)
def test_preprocessing_equals_keras(mode, module):
    expected = module.preprocess_input(all_levels().astype("float32"))
    np.testing.assert_allclose(Preprocessing(mode)(all_levels()), expected, atol=2e-5)


def test_grey_equals_pillow_within_rounding():
    images = all_levels()
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    found = Preprocessing("grey")(images).numpy()
    assert found.shape == (4, 8, 8, 1)
    assert np.abs(found[..., 0] * 255 - expected).max() <= 0.51


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_uint8_never_wraps_and_is_not_changed(mode):
    images, layer = all_levels(), Preprocessing(mode)
    expected = layer(images.astype("float32")).numpy()
    np.testing.assert_array_equal(layer(images), expected)
    np.testing.assert_array_equal(layer(tf.constant(images)), expected)
    np.testing.assert_array_equal(images, all_levels())
    whole_range = {"caffe": 255, "tf": 2, "torch": 4, "unit": 1, "grey": 0.7, "none": 255}[mode]
    assert np.ptp(expected) >= whole_range


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_bfloat16_rounds_once(mode):
    expected = tf.cast(Preprocessing(mode)(all_levels()), tf.bfloat16)
    found = Preprocessing(mode, dtype="mixed_bfloat16")(all_levels())
    assert found.dtype == tf.bfloat16
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_preprocessing_comes_back_from_its_config(mode):
    layer = Preprocessing(mode, "crop", name="preprocessing")
    again = keras.layers.deserialize(json.loads(json.dumps(keras.layers.serialize(layer))))
    assert (again.mode, again.resize, again.name) == (mode, "crop", "preprocessing")
    np.testing.assert_array_equal(again(all_levels()), layer(all_levels()))


@pytest.mark.parametrize("mode", PREPROCESSINGS)
def test_the_symbolic_shape_is_that_of_the_numbers(mode):
    found = Preprocessing(mode)(keras.Input((8, 8, 3), dtype="uint8"))
    assert found.shape == (None, *Preprocessing(mode)(all_levels()).shape[1:])


def test_unknown_preprocessing():
    with pytest.raises(ValueError, match=r"mode must be one of caffe, tf,.*got 'imagenet'"):
        Preprocessing("imagenet")


# ---- the trap of a frozen base, and its cure


def make_base():
    images = keras.Input(SHAPE)
    values = keras.layers.Conv2D(4, 3, name="conv")(images)
    values = keras.layers.Dropout(0.4, name="dropout")(keras.layers.BatchNormalization(name="bn")(values))
    return randomised(keras.Model(images, values, name="base"))


def make_images(seed=0):
    return np.random.default_rng(seed).normal(size=(8, *SHAPE)).astype("float32")


def features_and_state(model, *, training):
    before = [weight.numpy().copy() for weight in model.weights]
    found = model(make_images(), training=training).numpy()
    changed = [w.path for w, b in zip(model.weights, before, strict=True) if not np.array_equal(w.numpy(), b)]
    return found, changed


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_frozen_base_of_plain_keras_is_not_frozen(kind):
    """keras#20285: `training=True` of fit passes a `training=False` that was given while the model was built."""
    base = make_base()
    base.trainable = False
    images = keras.Input(SHAPE)
    model = keras.Sequential([images, base]) if kind == "sequential" else keras.Model(images, base(images, training=False))
    expected, _ = features_and_state(model, training=False)
    found, changed = features_and_state(model, training=True)
    assert np.abs(found - expected).max() > 0.1  # Dropout is on
    assert not changed  # BatchNorm, at least, is not


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("saved", [False, True])
def test_a_trunk_in_inference_is_frozen(trainable, saved, tmp_path):
    base = make_base()
    base.trainable = trainable  # a BatchNorm that is trainable would use the batch's statistics
    images = keras.Input(SHAPE)
    model = keras.Model(images, Trunk(base, inference=True, name="frozen")(images))
    expected = base(make_images(), training=False).numpy()
    if saved:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
        assert model.get_layer("frozen").inference is True
    for training in (True, False, None):
        found, changed = features_and_state(model, training=training)
        np.testing.assert_array_equal(found, expected)
        assert not changed
    model.compile("sgd", "mse")
    bn = model.get_layer("frozen").network.get_layer("bn")
    statistics = [bn.moving_mean.numpy().copy(), bn.moving_variance.numpy().copy()]
    model.fit(make_images(), expected + 1, epochs=1, verbose=0)
    np.testing.assert_array_equal(bn.moving_mean.numpy(), statistics[0])
    np.testing.assert_array_equal(bn.moving_variance.numpy(), statistics[1])


def test_a_trunk_in_training_is_as_the_network():
    base = make_base()
    trunk = Trunk(base, inference=False)
    expected = base(make_images(), training=False).numpy()
    np.testing.assert_array_equal(trunk(make_images(), training=False), expected)
    before = base.get_layer("bn").moving_mean.numpy().copy()
    assert np.abs(trunk(make_images(), training=True).numpy() - expected).max() > 0.1
    assert not np.array_equal(base.get_layer("bn").moving_mean.numpy(), before)


def test_a_trunk_reports_its_shape_and_dtype():
    with dtype_policy("mixed_bfloat16"):
        base = make_base()
        found = Trunk(base, inference=True)(keras.Input(SHAPE, dtype="bfloat16"))
    assert (found.shape, found.dtype) == ((None, 4, 4, 4), "bfloat16")


# ---- probabilities


def test_rows_add_up_to_one_also_for_large_logits():
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    logits[1] *= 1e6
    found = Probabilities(NAMES)(tf.cast(logits, tf.bfloat16)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(axis=1), np.asarray(tf.cast(logits, tf.bfloat16)).argmax(axis=1))


def test_probabilities_are_float32_under_every_policy():
    with dtype_policy("mixed_bfloat16"):
        assert Probabilities(NAMES).compute_dtype == "float32"


def test_names_that_were_changed_in_a_file_are_refused(tmp_path):
    logits = keras.Input((3,))
    model = keras.Model(logits, Probabilities(NAMES, name="probabilities")(logits))
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").get_layer("probabilities").class_names == NAMES
    edit_config(tmp_path / "model.keras", '"cat"', '"car"')
    with pytest.raises((ValueError, TypeError), match="class names were changed"):
        keras.saving.load_model(tmp_path / "model.keras")


def edit_config(path, old, new):
    """Replaces a text in the architecture of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert old.encode() in content["config.json"]
    content["config.json"] = content["config.json"].replace(old.encode(), new.encode())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    path.write_bytes(file.getvalue())


def test_the_hash_of_names_tells_them_and_their_order_apart():
    several = [NAMES, NAMES[::-1], NAMES[:2], ("cat", 'a, "b"小', " 猫"), ("ab", "c"), ("a", "bc"), ("1:a", "b"), (), ("",)]
    assert len({hash_names(names) for names in several}) == len(several)
    assert hash_names(list(NAMES)) == hash_names(NAMES)
    assert hash_names(("a\udcff",))  # a folder's name that is no UTF-8
