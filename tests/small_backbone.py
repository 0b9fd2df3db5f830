"""A backbone that is quick to build, with all that freezing can get wrong: BatchNorm and Dropout in both of its halves."""

import keras
from keras import layers


def two_convolutions(input_shape):
    images = keras.Input(input_shape)
    values = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="first_conv")(images)
    values = layers.BatchNormalization(name="first_norm")(values)
    values = layers.Dropout(0.2, name="first")(values)
    values = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="second_conv")(values)
    values = layers.BatchNormalization(name="second_norm")(values)
    values = layers.Dropout(0.2, name="second")(values)
    return keras.Model(images, values, name="two_convolutions")
