"""Frozen graphs of models with branches and loops, and what is damaged."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from format_fixtures import draw_pictures, written

from tfpipe.exporting import freezing, rounding, signatures
from tfpipe.exporting.specifications import Specification
from tfpipe.exporting.wrapping import wrap

pytestmark = pytest.mark.tf

SIZE = (12, 10)
LEVEL = 0.45
BOTH_SIDES = (draw_pictures(3) // 4, draw_pictures(3) // 4 + 190)


@keras.saving.register_keras_serializable("tests")
class Branch(keras.layers.Layer):
    """Doubles bright batches; both branches are constants."""

    def call(self, values):
        return values * tf.cond(tf.reduce_mean(values) > LEVEL, lambda: tf.constant(2.0), lambda: tf.constant(1.0))


@keras.saving.register_keras_serializable("tests")
class WeightyBranch(keras.layers.Layer):
    """Adds one of two pictures, which are large enough to be taken for weights."""

    def call(self, values):
        added = [tf.constant(np.random.default_rng(seed).normal(size=(*SIZE, 3)), values.dtype) for seed in (0, 1)]
        return values + tf.cond(tf.reduce_mean(values) > LEVEL, lambda: added[0] * 1, lambda: tf.reverse(added[1], [0]))


@keras.saving.register_keras_serializable("tests")
class Loop(keras.layers.Layer):
    """Each picture plus a constant made in the loop."""

    def call(self, values):
        return tf.map_fn(lambda picture: picture * 2 + tf.range(30.0), tf.reshape(values, [-1, 12, 30]))

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
    return freezing.load_frozen(written(path, graph.SerializeToString(deterministic=True)))


@pytest.mark.parametrize("middle", [Branch, WeightyBranch, Loop, recurrent])
def test_branches_and_loops_say_what_the_model_says(middle, tmp_path):
    model = make_model(middle)
    graph = freezing.hide_weights(freezing.freeze_images(model, describe(model)))
    assert not graph.library.function
    frozen = opened(graph, tmp_path / "image.pb")
    for pictures in BOTH_SIDES:
        np.testing.assert_array_equal(frozen.classify(pictures), model.predict(pictures))


def test_they_do_so_behind_the_decoder_and_with_halves(tmp_path):
    model = rounding.round_weights(make_model(lambda: keras.Sequential([Branch(), Loop(), keras.layers.GRU(24)])))
    specification = describe(model)
    graph = rounding.store_half(freezing.hide_weights(freezing.freeze_images(model, specification)))
    frozen = opened(freezing.freeze_files(graph, specification), tmp_path / "bytes.pb")
    answer = freezing.trace(freezing.as_answer(graph), signatures.image_spec(specification))
    in_saved_model = tf.function(lambda files: signatures.answer_files(answer, specification, files))
    for pictures in BOTH_SIDES:
        files, wanted = tf.constant([tf.io.encode_png(picture).numpy() for picture in pictures]), model.predict(pictures)
        np.testing.assert_array_equal(frozen(image_bytes=files)["probabilities"], wanted)
        np.testing.assert_array_equal(frozen.classify(pictures), wanted)
        np.testing.assert_array_equal(in_saved_model(files)["probabilities"], wanted)
