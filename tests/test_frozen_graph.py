"""Frozen graphs of models with branches and loops, and what is damaged."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import write
from evaluation_fixtures import make_classifier
from format_fixtures import draw_images, written

from tfpipe.common.errors import DataError
from tfpipe.exporting import half_precision
from tfpipe.exporting.formats import WRITERS, Work
from tfpipe.exporting.wrapping import wrap
from tfpipe.formats import frozen_graph, opening, signatures, specifications
from tfpipe.formats.specifications import Specification
from tfpipe.networks import arithmetic

pytestmark = pytest.mark.tf

SIZE = (12, 10)
LEVEL = 0.45
BOTH_SIDES = (draw_images(3) // 4, draw_images(3) // 4 + 190)


@keras.saving.register_keras_serializable("tests")
class Branch(keras.layers.Layer):
    """Doubles bright batches; both branches are constants."""

    def call(self, values):
        return values * tf.cond(tf.reduce_mean(values) > LEVEL, lambda: tf.constant(2.0), lambda: tf.constant(1.0))


@keras.saving.register_keras_serializable("tests")
class WeightyBranch(keras.layers.Layer):
    """Adds one of two images, which are large enough to be taken for weights."""

    def call(self, values):
        added = [tf.constant(np.random.default_rng(seed).normal(size=(*SIZE, 3)), values.dtype) for seed in (0, 1)]
        return values + tf.cond(tf.reduce_mean(values) > LEVEL, lambda: added[0] * 1, lambda: tf.reverse(added[1], [0]))


@keras.saving.register_keras_serializable("tests")
class Loop(keras.layers.Layer):
    """Each image plus a constant made in the loop, which is large enough to be stored as float16."""

    def call(self, values):
        return tf.map_fn(
            lambda image: image * 2 + tf.constant([*range(30)] * 40, tf.float32)[:30], tf.reshape(values, [-1, 12, 30])
        )

    def compute_output_spec(self, values):
        return keras.KerasTensor((None, 12, 30), values.dtype)


def recurrent():
    return keras.Sequential([keras.layers.Reshape((12, 30)), keras.layers.GRU(24)])


def make_model(middle):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((*SIZE, 3))
    values = keras.layers.Flatten()(middle()(inputs))
    dense = keras.layers.Dense(3, activation="softmax", kernel_initializer=keras.initializers.RandomNormal(stddev=0.5))
    return wrap(keras.Model(inputs, dense(values)), class_names=("a", "b", "c"), preprocessing="unit")


def describe(model):
    return Specification(model.class_names, model.image_size, model.resize, "unit", model.sha256, 2)


def opened(graph, path):
    return frozen_graph.load_frozen(written(path, frozen_graph.to_bytes(graph)))


@pytest.mark.parametrize("middle", [Branch, WeightyBranch, Loop, recurrent])
def test_branches_and_loops_give_what_the_model_gives(middle, tmp_path):
    model = make_model(middle)
    graph = frozen_graph.freeze_images(model, describe(model))
    assert not graph.library.function
    frozen = opened(graph, tmp_path / "image.pb")
    for images in BOTH_SIDES:
        np.testing.assert_array_equal(frozen.classify(images), model.predict(images))


def test_they_do_so_after_the_decoder_and_with_halves(tmp_path):
    model = half_precision.round_weights(make_model(lambda: keras.Sequential([Branch(), Loop(), keras.layers.GRU(24)])))
    specification = describe(model)
    graph = half_precision.store_half(frozen_graph.freeze_images(model, specification))
    frozen = opened(frozen_graph.freeze_files(graph, specification), tmp_path / "bytes.pb")
    answer = frozen_graph.trace(frozen_graph.as_function(graph), signatures.image_spec(specification))
    in_saved_model = tf.function(lambda files: signatures.apply_to_files(answer, specification, files))
    for images in BOTH_SIDES:
        files, wanted = tf.constant([tf.io.encode_png(image).numpy() for image in images]), model.predict(images)
        np.testing.assert_array_equal(frozen(image_bytes=files)["probabilities"], wanted)
        np.testing.assert_array_equal(frozen.classify(images), wanted)
        with arithmetic.exact():
            np.testing.assert_array_equal(in_saved_model(files)["probabilities"], wanted)


# ---- empty batches


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model and its frozen file."""
    model = make_model(lambda: keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(8, activation="relu")]))
    graph = frozen_graph.freeze_images(model, describe(model))
    return model, written(tmp_path_factory.mktemp("plain") / "image.pb", frozen_graph.to_bytes(graph))


def test_an_empty_batch_has_no_answers(tmp_path):
    model, nothing = make_classifier(), np.zeros((0, 8, 8, 3), np.uint8)
    graph = frozen_graph.freeze_images(model, describe(model))
    found = opened(graph, tmp_path / "image.pb")(image=nothing)
    assert {name: values.shape for name, values in found.items()} == {"probabilities": (0, 3), "features": (0, 8)}
    functions = signatures.make(signatures.model_function(model), describe(model), has_features=True)
    assert functions["image"](nothing)["classes"].shape == (0, 2)


# ---- damage


def test_a_flipped_bit_anywhere_is_damage(plain, tmp_path):
    data = plain[1].read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 100):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(DataError) as caught:
            frozen_graph.load_frozen(written(tmp_path / "damaged.pb", bytes(damaged)))
        assert caught.value.path == str(tmp_path / "damaged.pb")


@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_cut_file_is_damage(plain, tmp_path, part):
    data = plain[1].read_bytes()
    with pytest.raises(DataError):
        frozen_graph.load_frozen(written(tmp_path / "cut.pb", data[: int(part * len(data))]))


def test_graphs_that_cannot_be_loaded_are_reported(tmp_path):
    with tf.Graph().as_default() as made:
        tf.constant(Specification(("a", "b"), SIZE, "pad", "unit", "5" * 64).to_json(), name="specification")
    graph = made.as_graph_def()
    graph.node.add(op="NoSuchOperation", name="probabilities")
    with pytest.raises(DataError, match=r"more than compute: NoSuchOperation; .*--trust"):
        frozen_graph.load_frozen(written(tmp_path / "other.pb", frozen_graph.to_bytes(graph)))
    with pytest.raises(DataError, match="cannot be loaded as a frozen graph"):
        frozen_graph.load_frozen(tmp_path / "other.pb", trust=True)
    graph.node[0].attr["value"].tensor.string_val.append(b"\xff")
    with pytest.raises(DataError, match="not the specification"):
        frozen_graph.load_frozen(written(tmp_path / "other.pb", frozen_graph.to_bytes(graph)), trust=True)


def test_words_that_are_not_utf8_are_damage_in_a_saved_model(tmp_path):
    write(tmp_path / "saved_model.pb", b"")
    write(tmp_path / "assets.extra" / "preprocessing.json", b'{"class_names": ["\xff"]}')
    with pytest.raises(DataError, match="not the specification"):
        opening.load(tmp_path)


def test_names_that_are_not_utf8_come_back():
    given = Specification(("小 猫", "caf\udce9", 'a"b'), SIZE, "pad", "unit", "5" * 64)
    assert specifications.from_json(given.to_json().encode("utf-8"), "here") == given


# ---- what cannot be written


class Unregistered(keras.layers.Layer):
    def call(self, values):
        return values * 2


def test_models_that_a_format_cannot_hold_are_reported(tmp_path):
    model = make_model(Unregistered)
    with pytest.raises(DataError, match=r"format keras: .*; register the class") as caught:
        WRITERS["keras"](Work(model, describe(model), tmp_path, half=False))
    assert str(tmp_path) not in str(caught.value)


def test_what_a_converter_raises_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such operation\nand its whole graph")

    model = make_model(Unregistered)
    for name in ("tflite", "onnx"):
        monkeypatch.setattr(f"tfpipe.formats.{name}_files.convert", fail)
        with pytest.raises(DataError, match=f"^the model cannot be converted to {name}: no such operation; leave it out of fo"):
            WRITERS[name](Work(model, describe(model), tmp_path, half=False))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3, activation="softmax")

    def call(self, values):
        return self.dense(keras.ops.mean(values, axis=(1, 2)))


def test_half_of_a_subclassed_model_is_refused():
    model = wrap(Subclassed(), class_names=("a", "b", "c"), image_size=SIZE)
    with pytest.raises(ValueError, match="half needs a model that Keras can build anew"):
        half_precision.round_weights(model)


def test_a_loaded_graph_reports_what_it_takes(tmp_path):
    model = make_model(Branch)
    image = opened(frozen_graph.freeze_images(model, describe(model)), tmp_path / "image.pb")
    images = np.zeros((2, *SIZE, 3), np.uint8)
    np.testing.assert_array_equal(image(images)["probabilities"], image(image=images)["probabilities"])
    for wrong in (images[0], images.astype(np.float32), images[:, :-1], [b"file"]):
        with pytest.raises(ValueError, match=r"image must be uint8 \(None, .*, with the batch first \(got "):
            image(wrong)
    for arguments in ((), (images, images)):
        with pytest.raises(ValueError, match="inputs are image"):
            image(*arguments)
    with pytest.raises(ValueError, match=r"inputs are image \(got number 1, image\)"):
        image(images, image=images)
    files = opened(
        frozen_graph.freeze_files(frozen_graph.freeze_images(model, describe(model)), describe(model)), tmp_path / "bytes.pb"
    )
    assert files([b"no image"])["valid"].tolist() == [False]
    assert files([])["probabilities"].shape == (0, 3)
    for wrong in (["a.jpg"], "a.jpg", ("a.jpg",), np.array(["a.jpg"])):
        with pytest.raises(ValueError, match="image_bytes must be the bytes of files, not their paths"):
            files(image_bytes=wrong)
    with pytest.raises(ValueError, match=r"image_bytes must be string \(None,\), with the batch first \(got string \(\)\)"):
        files(b"one")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_what_computes_in_16_bits_is_named_before_tflite_fails_on_it(policy, tmp_path):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = make_model(lambda: keras.layers.Dense(4))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    with pytest.raises(DataError, match=r"converted to tflite: it computes in 16 bits .* the policy float32; leave it out"):
        WRITERS["tflite"](Work(model, describe(model), tmp_path, False))
    assert list(tmp_path.iterdir()) == []
