"""A backbone that runs out of memory, as a GPU does, where a batch has more than LIMIT images."""

import keras
import tensorflow as tf
from keras import layers

LIMIT = 1 << 30  # set by tests


def _allocate(count):
    if count > LIMIT:
        raise MemoryError(f"{count} images")  # TensorFlow makes a ResourceExhaustedError of it


@keras.saving.register_keras_serializable("tests")
class Limited(layers.Layer):
    """Returns what goes in."""

    def call(self, values):
        with tf.control_dependencies([tf.numpy_function(_allocate, [tf.shape(values)[0]], [])]):
            return tf.identity(values)


def limited(input_shape):
    images = keras.Input(input_shape)
    values = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="first")(images)
    values = Limited(name="limited")(values)
    values = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="second")(values)
    return keras.Model(images, values, name="limited")
