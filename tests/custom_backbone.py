"""A backbone of one's own, used by import path: a small relative of Inception-v4 (Szegedy et al. 2016)."""

import keras
from keras import layers

DROPOUT = 0.2


def small_inception(input_shape):
    """Stem, an inception block, a reduction, another inception block; BatchNorm and Dropout inside, unnamed layers too."""
    images = keras.Input(input_shape)
    values = conv(images, 8, 3, strides=2)
    values = layers.Concatenate(name="stem")([layers.MaxPooling2D(2)(values), conv(values, 8, 3, strides=2)])
    values = inception(values, 8, "inception_a")
    values = layers.Concatenate(name="reduction")(
        [layers.MaxPooling2D(2, padding="same")(values), conv(conv(values, 8, 1), 12, 3, strides=2)]
    )
    values = inception(values, 12, "inception_b")
    return keras.Model(images, values, name="small_inception")


def inception(values, filters, name):
    branches = [
        conv(values, filters, 1),
        conv(conv(values, filters, 1), filters, 3),
        conv(conv(conv(values, filters, 1), filters, (1, 7)), filters, (7, 1)),
        conv(layers.AveragePooling2D(3, strides=1, padding="same")(values), filters, 1),
    ]
    return layers.Dropout(DROPOUT, name=name)(layers.Concatenate()(branches))


def conv(values, filters, size, strides=1):
    values = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(values)
    return layers.Activation("relu")(layers.BatchNormalization()(values))


def unnamed(input_shape):
    """Every layer has a name that Keras makes up, another one each time."""
    images = keras.Input(input_shape)
    values = conv(conv(images, 4, 3), 6, 3, strides=2)
    return keras.Model(images, values + conv(values, 6, 1))


def sequential(input_shape):
    return keras.Sequential([keras.Input(input_shape), layers.Conv2D(2, 3)])


def with_head(input_shape):
    images = keras.Input(input_shape)
    return keras.Model(images, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(images)))


def two_outputs(input_shape):
    images = keras.Input(input_shape)
    return keras.Model(images, [layers.Conv2D(2, 3)(images), layers.Conv2D(2, 3)(images)])


def other_size(input_shape):
    images = keras.Input((17, 17, 3))
    return keras.Model(images, layers.Conv2D(2, 3)(images))


def twice(input_shape):
    images = keras.Input(input_shape)
    shared = layers.Conv2D(3, 3, padding="same")
    return keras.Model(images, shared(shared(images)))


def positional(shape):
    return small_inception(shape)


def failing(input_shape):
    raise RuntimeError("no luck today")


not_a_function = 3
