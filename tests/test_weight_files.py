"""Weights from files: all of them, with or without a top, or an error that names the file and the first layer that differs."""

import h5py
import keras
import numpy as np
import pytest
from custom_backbone import small_inception
from keras import layers
from test_submodels import nested, randomised

from tfpipe.common.errors import DataError
from tfpipe.networks import weight_files
from tfpipe.networks.layers import Preprocessing, Probabilities, Trunk

pytestmark = pytest.mark.tf

FORMATS = ["old.h5", "new.weights.h5", "model.keras", "whole.h5"]


def chain(*filters, top=False, depth=3, dropout=False):
    """Named convolutions with BatchNorm; optionally the top of a classifier."""
    images = values = keras.Input((8, 8, depth))
    for index, count in enumerate(filters):
        values = layers.Conv2D(count, 3, padding="same", name=f"conv{index}")(values)
        values = layers.BatchNormalization(name=f"norm{index}")(values)
    if dropout:
        values = layers.Dropout(0.5, name="drop")(values)
    if top:
        values = layers.Dropout(0.5, name="top_drop")(layers.GlobalAveragePooling2D(name="pool")(values))
        values = layers.Dense(5, name="predictions")(layers.Dense(7, name="hidden")(values))
    return keras.Model(images, values, name="chain")


def save(network, path):
    """As Keras 2 and 3 save: the old format is still written for whole models."""
    if path.name.endswith((".weights.h5",)):
        network.save_weights(path)
    elif path.name == "old.h5":
        network.save(path.with_name("whole.h5"))
        with h5py.File(path.with_name("whole.h5")) as whole, h5py.File(path, "w") as old:
            for name in whole["model_weights"]:
                whole["model_weights"].copy(name, old)
            old.attrs.update(whole["model_weights"].attrs)
    else:
        network.save(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_with_and_without_top(tmp_path, name, top):
    saved = randomised(chain(4, 6, top=top, dropout=True), seed=1)
    network = chain(4, 6, dropout=True)
    weight_files.load(network, save(saved, tmp_path / name))
    assert len(network.weights) == 12
    for weight, expected in zip(network.weights, saved.weights, strict=False):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["old.h5", "new.weights.h5"])
def test_branches_without_names_find_their_places(tmp_path, name):
    saved = randomised(small_inception((16, 16, 3)), seed=1)
    network = small_inception((24, 24, 3))  # other numbers in its layers' names, another size
    weight_files.load(network, save(saved, tmp_path / name))
    for weight, expected in zip(network.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("saved", "network", "layer", "shapes"),
    [
        ((4, 6, 8), (4, 6), "conv2", r"\(3, 3, 6, 8\).*missing in the network"),
        ((4, 6), (4, 6, 8), "conv2", r"\(3, 3, 6, 8\).*missing in the file"),
        ((4, 6), (4, 8), "conv1", r"\(3, 3, 4, 8\).*\(3, 3, 4, 6\)"),
        ((4, 6), (5, 6), "conv0", r"\(3, 3, 3, 5\).*\(3, 3, 3, 4\)"),
        ((4, 6, 6), (4, 4, 6), "conv1", r"\(3, 3, 4, 4\).*\(3, 3, 4, 6\)"),
    ],
)
def test_the_first_layer_that_differs_is_named(tmp_path, name, saved, network, layer, shapes):
    path = save(chain(*saved), tmp_path / name)
    network = randomised(chain(*network))
    before = network.get_weights()
    with pytest.raises(DataError, match=rf"{name}: not the weights of chain: layer {layer} .*{shapes}") as caught:
        weight_files.load(network, path)
    assert caught.value.path == str(path)
    for weight, expected in zip(network.get_weights(), before, strict=True):  # nothing is loaded in part
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_one_channel_is_not_three(tmp_path, name):
    path = save(chain(4, depth=1), tmp_path / name)
    with pytest.raises(DataError, match=r"layer conv0 .*\(3, 3, 3, 4\).*\(3, 3, 1, 4\)"):
        weight_files.load(chain(4), path)


@pytest.mark.parametrize("name", FORMATS[1:3])
def test_what_was_frozen_does_not_matter(tmp_path, name):
    saved, network = randomised(nested((8, 8, 3)), seed=1), nested((8, 8, 3))
    expected = saved.get_weights()
    saved.trainable = False
    network.layers[-1].trainable = False
    weight_files.load(network, save(saved, tmp_path / name))
    assert all(map(np.array_equal, network.get_weights(), expected))


def test_the_format_is_reported_by_content_and_not_by_name(tmp_path):
    saved = randomised(chain(4))
    path = save(saved, tmp_path / "new.weights.h5").rename(tmp_path / "weights_of_mine.hdf5")
    network = chain(4)
    weight_files.load(network, path)
    np.testing.assert_array_equal(network.weights[0], saved.weights[0])


def test_a_run_of_tfpipe_gives_the_weights_of_its_trunks(tmp_path):
    front, back = randomised(chain(4)), randomised(keras.Model((x := keras.Input((8, 8, 4))), layers.Conv2D(6, 3)(x)), seed=2)
    images = keras.Input((8, 8, 3), dtype="uint8")
    values = Trunk(front, True, name="frozen")(Preprocessing("unit", name="preprocessing")(images))
    values = layers.GlobalAveragePooling2D(name="pooling")(Trunk(back, True, name="tuned")(values))
    values = Probabilities(["a", "b"], name="probabilities")(layers.Dense(2, name="logits")(values))
    keras.Model(images, values).save(tmp_path / "model.keras")
    x = keras.Input((8, 8, 3))
    body = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    network = keras.Model(x, layers.Conv2D(6, 3)(body))
    weight_files.load(network, tmp_path / "model.keras")
    for weight, expected in zip(network.get_weights(), front.get_weights() + back.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.parametrize("name", ["new.weights.h5", "model.keras"])
def test_a_cut_file(tmp_path, name):
    path = truncated(save(chain(4), tmp_path / name))
    with pytest.raises(DataError, match=name):
        weight_files.load(chain(4), path)


def test_not_a_file_of_weights(tmp_path):
    (tmp_path / "image.h5").write_bytes(b"\xff\xd8\xff\xe0 an image")
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["images"] = np.zeros(3)
    with h5py.File(tmp_path / "lost.h5", "w") as file:
        file.attrs["layer_names"] = [b"conv0"]
    with pytest.raises(DataError, match=r"image.h5: cannot be read as HDF5"):
        weight_files.load(chain(4), tmp_path / "image.h5")
    with pytest.raises(DataError, match=r"table.h5: .*holds images"):
        weight_files.load(chain(4), tmp_path / "table.h5")
    with pytest.raises(DataError, match=r"lost.h5: .*conv0"):
        weight_files.load(chain(4), tmp_path / "lost.h5")
    with pytest.raises(FileNotFoundError, match=r"none.h5: no such file"):
        weight_files.load(chain(4), tmp_path / "none.h5")
    with pytest.raises(ValueError, match="is a directory"):
        weight_files.load(chain(4), tmp_path)


def vgg16_file(test_data):
    return test_data / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


def test_vgg16_as_keras_loads_it(test_data):
    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    weight_files.load(network, vgg16_file(test_data))
    expected = keras.applications.VGG16(include_top=False, weights=vgg16_file(test_data), input_shape=(32, 32, 3))
    images = np.random.default_rng(0).uniform(-120, 130, (2, 32, 32, 3)).astype("float32")
    assert np.ptp(network(images)) > 0
    np.testing.assert_array_equal(network(images), expected(images))


def test_mobilenetv2_without_its_top(test_data):
    path = test_data / "weights" / "mobilenet_v2_1.0_224.weights.h5"
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(64, 64, 3))
    weight_files.load(network, path)
    whole = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
    whole.load_weights(path)
    expected = keras.Model(whole.input, whole.get_layer("out_relu").output)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    assert np.ptp(network(images)) > 0
    np.testing.assert_array_equal(network(images), expected(images))


def test_vgg16_is_not_vgg19(test_data):
    network = keras.applications.VGG19(include_top=False, weights=None, input_shape=(32, 32, 3))
    with pytest.raises(
        DataError, match=r"vgg16_weights\w*.h5: not the weights of vgg19: layer block3_conv4 .* layer block4_conv1"
    ):
        weight_files.load(network, vgg16_file(test_data))
