"""The table of backbones: what builds each, what it was trained on, how its blocks are named, which sizes it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import keras
from keras import layers


def make_lenet(input_shape: tuple[int, int, int]) -> keras.Model:
    """Returns convolutions with pooling, after LeCun et al. 1998, with ReLU, smaller kernels and a third one."""
    values = images = keras.Input(input_shape)
    for index, filters in enumerate((32, 64, 128), start=1):
        convolution = layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer="he_normal", name=f"block{index}_conv"
        )
        values = convolution(values)
        values = layers.MaxPooling2D(name=f"block{index}_pool")(values)
    return keras.Model(images, values, name="lenet")


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        builder: of keras.applications, or with that signature; one without ImageNet weights takes input_shape alone.
        preprocessing: what its ImageNet weights were trained on.
        ends: name of each block -> name of its last layer, or "<NAME" for the last cut point before the layer NAME, where
            the last layer has no name that is the same in every session.
        native_size: height and width that it was made for.
        smallest: height and width.
    """

    builder: Callable[..., keras.Model]
    preprocessing: str
    ends: Mapping[str, str]
    native_size: int = 224
    smallest: int = 32
    has_imagenet: bool = True


_VGG_ENDS = {f"block{index}": f"block{index}_pool" for index in range(1, 6)}
_RESNET_ENDS = {
    "conv1": "pool1_pool",
    "conv2": "conv2_block3_out",
    "conv3": "conv3_block4_out",
    "conv4": "conv4_block6_out",
    "conv5": "post_relu",
}
_INCEPTION_ENDS = {"stem": "<mixed0", **{f"mixed{index}": f"mixed{index}" for index in range(11)}}
_INCEPTION_RESNET_ENDS = {
    "stem": "<mixed_5b",
    "mixed_5b": "mixed_5b",
    "block35": "block35_10_ac",
    "mixed_6a": "mixed_6a",
    "block17": "block17_20_ac",
    "mixed_7a": "mixed_7a",
    "block8": "<conv_7b",
    "conv_7b": "conv_7b_ac",
}
_MOBILENET_ENDS = {
    "Conv1": "Conv1_relu",
    "expanded_conv": "expanded_conv_project_BN",
    **{f"block_{index}": f"<block_{index + 1}_expand" for index in range(1, 16)},
    "block_16": "block_16_project_BN",
    "Conv_1": "out_relu",
}
_EFFICIENTNET_BLOCKS = [
    f"block{stage}{letter}" for stage, last in enumerate("abbceh", start=1) for letter in "abcdefgh"[: ord(last) - 96]
]
_EFFICIENTNET_ENDS = {
    "stem": "stem_activation",
    "block1a": "block1a_project_activation",
    **{block: f"<{following}_expand_conv" for block, following in itertools.pairwise(_EFFICIENTNET_BLOCKS[1:])},
    _EFFICIENTNET_BLOCKS[-1]: "<top_conv",
    "top": "top_activation",
}

_LENET_ENDS = {f"block{index}": f"block{index}_pool" for index in range(1, 4)}

_applications = keras.applications
TABLE: Mapping[str, Architecture] = MappingProxyType(
    {
        "vgg16": Architecture(_applications.VGG16, "caffe", _VGG_ENDS),
        "vgg19": Architecture(_applications.VGG19, "caffe", _VGG_ENDS),
        "resnet50v2": Architecture(_applications.ResNet50V2, "tf", _RESNET_ENDS),
        "inceptionv3": Architecture(_applications.InceptionV3, "tf", _INCEPTION_ENDS, 299, 75),
        "inceptionresnetv2": Architecture(_applications.InceptionResNetV2, "tf", _INCEPTION_RESNET_ENDS, 299, 75),
        "mobilenetv2": Architecture(_applications.MobileNetV2, "tf", _MOBILENET_ENDS),
        # Its first two layers bring 0..255 to what it was trained on (include_preprocessing, True unless told otherwise).
        "efficientnetv2b0": Architecture(_applications.EfficientNetV2B0, "none", _EFFICIENTNET_ENDS),
        "lenet": Architecture(make_lenet, "unit", _LENET_ENDS, 32, 8, has_imagenet=False),
    }
)
