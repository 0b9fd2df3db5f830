"""The table of backbones, which loads no TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tfpipe.common import arguments

# none: 0..255 as it is, for networks with a rescaling of their own. grey: one channel, 0..1.
PREPROCESSINGS = ("caffe", "tf", "torch", "unit", "grey", "none")


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        application: name of its builder in keras.applications; "" for one of
            `tfpipe.networks.backbones`, which has no ImageNet weights.
        preprocessing: that of its ImageNet weights.
        ends: name of each block -> name of its last layer, or "<NAME" for the last cut point before
            the layer NAME, where the name of the last layer differs between sessions.
        native_size: height and width that it was designed for.
        smallest: smallest height and width.
    """

    application: str
    preprocessing: str
    ends: Mapping[str, str]
    native_size: int = 224
    smallest: int = 32


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
TABLE: Mapping[str, Architecture] = MappingProxyType(
    {
        "vgg16": Architecture("VGG16", "caffe", _VGG_ENDS),
        "vgg19": Architecture("VGG19", "caffe", _VGG_ENDS),
        "resnet50v2": Architecture("ResNet50V2", "tf", _RESNET_ENDS),
        "inceptionv3": Architecture("InceptionV3", "tf", _INCEPTION_ENDS, 299, 75),
        "inceptionresnetv2": Architecture("InceptionResNetV2", "tf", _INCEPTION_RESNET_ENDS, 299, 75),
        "mobilenetv2": Architecture("MobileNetV2", "tf", _MOBILENET_ENDS),
        # Keras builds it with layers that rescale 0..255 (include_preprocessing=True by default).
        "efficientnetv2b0": Architecture("EfficientNetV2B0", "none", _EFFICIENTNET_ENDS),
        "lenet": Architecture("", "unit", {f"block{index}": f"block{index}_pool" for index in range(1, 4)}, 32, 8),
    }
)
_BY_PATH = Architecture("", "unit", {}, 224, 1)


def check_name(name: str) -> str:
    """Returns the name; raises ValueError if it is neither in the table nor an import path."""
    if not isinstance(name, str) or not (":" in name or name in TABLE):
        wanted = f"one of {', '.join(TABLE)} or 'package.module:function'"
        raise arguments.wrong("backbone", wanted, name, arguments.nearest(name, TABLE))
    return str(name)


def native_size(name: str) -> tuple[int, int]:
    """Returns the (height, width) that a backbone was designed for; 224 x 224 for import paths."""
    size = TABLE.get(check_name(name), _BY_PATH).native_size
    return size, size


def choose_input(
    name: str, image_size: tuple[int, int], weights: str, preprocessing: str | None, *, grey: bool
) -> tuple[str, tuple[int, int, int]]:
    """Returns preprocessing and input shape (H, W, channels); arguments as `backbones.build`.

    Raises:
        ValueError: an invalid name or size, or arguments that exclude each other.
    """
    row = TABLE.get(check_name(name), _BY_PATH)
    if preprocessing is not None:
        arguments.choice("preprocessing", preprocessing, PREPROCESSINGS)
    if grey and preprocessing not in (None, "grey"):
        raise ValueError(f"grey means preprocessing 'grey', one channel (got {preprocessing!r}, which keeps three)")
    mode = "grey" if grey else preprocessing or row.preprocessing
    height, width = image_size
    if min(height, width) < row.smallest:
        raise ValueError(
            f"image_size {height}x{width} is too small for {name}: at least {row.smallest}x{row.smallest} is needed"
        )
    if mode == "grey" and row.application:
        raise ValueError(f"backbone {name} takes three channels; grey is for lenet and for networks by import path")
    if weights == "imagenet" and not row.application:
        raise ValueError(f"there are no ImageNet weights for {name}; weights must be 'none' or a file")
    return mode, (height, width, 1 if mode == "grey" else 3)
