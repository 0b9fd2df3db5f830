"""Files of Keras: Keras alone reads an export's, with the same bits; tfpipe reads them with its layers."""

import io
import json
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from evaluation_fixtures import make_classifier

from tfpipe.common.errors import DataError
from tfpipe.exporting.wrapping import wrap
from tfpipe.models.classifiers import NamedModel, check
from tfpipe.networks import keras_files, layers, submodels

pytestmark = pytest.mark.tf

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
LAYER = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}}
READ_ALONE = """
import sys
sys.modules["tfpipe"] = None  # nothing of it can be imported
import keras, numpy, tensorflow as tf
tf.config.set_visible_devices([], "GPU")
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    answer = tf.function(lambda images: model(images, training=False), autograph=False)
    numpy.save(path + ".npy", answer(tf.constant(numpy.load(path + ".images.npy"))).numpy())
"""


def make_model(preprocessing, source="logits", *, policy="float32"):
    channels = 1 if preprocessing == "grey" else 3
    columns = 1 if source == "sigmoid" else 2
    convolution = keras.layers.Conv2D(4, 3, activation="relu", dtype=policy)
    dense = keras.layers.Dense(columns, "softmax" if source == "probabilities" else "sigmoid" if source == "sigmoid" else None)
    parts = [convolution, keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Flatten(), dense]
    network = keras.Sequential([keras.Input((8, 8, channels)), *parts])
    return wrap(network, class_names=("cat", "小 猫"), preprocessing=preprocessing, outputs=source).model


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    found = {mode: make_model(mode) for mode in layers.PREPROCESSINGS}
    found |= {source: make_model("tf", source) for source in layers.OUTPUTS}
    return {**found, "half": make_model("tf", policy="mixed_bfloat16"), "trained": make_classifier().model}


def test_keras_alone_reads_every_kind_of_model_with_the_same_bits(models, tmp_path):
    paths = []
    for name, model in models.items():
        paths.append(tmp_path / f"{name}.keras")
        keras_files.save(model, paths[-1])
        np.save(f"{paths[-1]}.images.npy", IMAGES)
    done = subprocess.run([sys.executable, "-c", READ_ALONE, *map(str, paths)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    for path, model in zip(paths, models.values(), strict=True):
        with tf.device("/CPU:0"):  # on a GPU, each process chooses among kernels that round differently
            expected = NamedModel(model).predict(tf.constant(IMAGES))
        np.testing.assert_array_equal(np.load(f"{path}.npy"), expected, path.name)


def test_tfpipe_reads_the_model_that_was_saved(models, tmp_path):
    for model in models.values():
        keras_files.save(model, tmp_path / "model.keras")
        again = keras_files.load(tmp_path / "model.keras")
        assert submodels.hash_network(again) == submodels.hash_network(model)
        assert again.get_layer("probabilities").class_names == model.get_layer("probabilities").class_names
    assert check(again).head.output_shape == (None, 3)  # a classifier that training made is one again
    assert check(models["trained"]).trunk.output_shape == check(again).trunk.output_shape  # and is still one itself


def test_what_is_not_a_keras_file_is_damage(tmp_path):
    (tmp_path / "a.keras").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(DataError, match="cannot be loaded as a Keras model"):
        keras_files.load(tmp_path / "a.keras")


def rewritten(path, member, data):
    """The file of a model with one layer, with a member that is changed or put in."""
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path.with_name("whole.keras"))
    with zipfile.ZipFile(path.with_name("whole.keras")) as whole, zipfile.ZipFile(path, "w") as archive:
        members = {name: whole.read(name) for name in whole.namelist()}
        members[member] = data(members[member]) if callable(data) else data
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_kernel(replace):
    """Replaces the kernel among the weights."""

    def change(data):
        changed = io.BytesIO(data)
        with h5py.File(changed, "r+") as file:
            del file["layers/dense/vars/0"]
            replace(file, "layers/dense/vars/0")
        return changed.getvalue()

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file, name: None, r"Layer 'dense\w*' expected 2 variables, but received 1"),
        (lambda file, name: file.create_dataset(name, (4, 5), "f4"), "The shape of the target variable"),
        (lambda file, name: file.update({name: h5py.ExternalLink("x.h5", "/x")}), "Not allowed: H5 file with ExternalLink"),
    ],
)
def test_the_reason_why_weights_are_refused_is_reported(tmp_path, change, reason):
    path = rewritten(tmp_path / "a.keras", "model.weights.h5", with_kernel(change))
    with pytest.raises(DataError, match=f"cannot be loaded as a Keras model: {reason}"):
        keras_files.load(path)


@pytest.mark.parametrize("text", ["[]", "null", '"text"', json.dumps(LAYER)])
def test_an_architecture_that_is_none_is_reported(tmp_path, text):
    with pytest.raises(DataError, match=r"a.keras: .* its member tfpipe.json is not a model but (list|NoneType|str|Dense)"):
        keras_files.load(rewritten(tmp_path / "a.keras", "tfpipe.json", text))
