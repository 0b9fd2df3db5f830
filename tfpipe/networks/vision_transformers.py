"""Vision Transformers in layers of Keras alone, with the weights of a KerasHub preset.

    network = build("dinov2", (224, 224), "dinov2_small")     # [16, 16, 768]; pip install 'tfpipe[hub]'

KerasHub is needed to read a preset, not to load, export or run a model made of one: its own parts
cannot be saved one by one (in 0.32, `from_config` refuses what `get_config` gives), and as one
layer could not be unfrozen block by block. So a preset's weights are brought into equal layers:

- The projection of patches, class token, registers and positions are one EinsumDense on patches
  with empty ones before them: the kernel gives those zero, its bias per place is what each needs.
- The scales of residual branches (LayerScale) are multiplied into the kernels before them.

The output holds, at each place of the map, the token of its patch and the class token. Its average
is what DINOv2's linear evaluation classifies by (Oquab et al. 2023). ViT: Dosovitskiy et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfpipe.common.errors import DataError, lines_of

Arrays = Sequence[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Transformer:
    """Sizes of a network; `num_extra` tokens come before those of patches, the class token first."""

    patch_size: int
    width: int
    num_blocks: int
    num_heads: int
    hidden: int
    num_extra: int = 1
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_bias: bool = True
    hidden_bias: bool = True
    scale: float | Sequence[float] = 1 / 127.5
    offset: float | Sequence[float] = -1.0
    epsilon: float = 1e-6


_DEVIATION = (0.229, 0.224, 0.225)
_OFFSET = tuple(-mean / deviation for mean, deviation in zip((0.485, 0.456, 0.406), _DEVIATION, strict=True))
_SIZES = {  # without a preset: ViT-Base/16 and DINOv2-Small/14, and what their presets rescale images by
    "vit": Transformer(16, 768, 12, 12, 3072),
    "dinov2": Transformer(14, 384, 12, 6, 1536, scale=tuple(1 / 255 / one for one in _DEVIATION), offset=_OFFSET),
}


def build(name: str, image_size: tuple[int, int], preset: str | None = None, *, rescales: bool = True) -> keras.Model:
    """Returns a network, float [B, H, W, 3] -> [B, h, w, 2 D], D being the width.

    Args:
        name: "vit" or "dinov2".
        image_size: (height, width), multiples of the patch's.
        preset: a folder that KerasHub saved, or the name of one that it downloads; by default the
            weights are new.
        rescales: the network itself brings 0..255 to what its weights need.

    Raises:
        FileNotFoundError: there is no such preset.
        ValueError: the size is not possible, or the preset is of another kind.
        DataError: the preset cannot be read.
    """
    if preset is None:
        return make(name, _SIZES[name], image_size, rescales=rescales)
    backbone, numbers = _read(name, image_size, preset, rescales=rescales)
    sizes, weights = (_of_vit if name == "vit" else _of_dinov2)(backbone)
    network = make(name, replace(sizes, **numbers), image_size, rescales=rescales)
    for layer in network.layers:
        if layer.weights:
            layer.set_weights(weights.pop(layer.name))
    return network


def make(name: str, sizes: Transformer, image_size: tuple[int, int], *, rescales: bool = True) -> keras.Model:
    """Returns a network of these sizes with new weights."""
    patch, width, extra = sizes.patch_size, sizes.width, sizes.num_extra
    if any(side % patch for side in image_size):
        raise ValueError(f"image_size {image_size[0]}x{image_size[1]}: sides must be multiples of {name}'s patches of {patch}")
    height, breadth = (side // patch for side in image_size)
    num_patches = height * breadth
    values = images = keras.Input((*image_size, 3))
    if rescales:
        values = layers.Rescaling(sizes.scale, sizes.offset, name="rescaling", dtype="float32")(values)
    values = layers.Reshape((height, patch, breadth, patch, 3), name="rows")(values)
    values = layers.Permute((1, 3, 2, 4, 5), name="squares")(values)
    values = layers.Reshape((num_patches, patch * patch * 3), name="patches")(values)
    values = layers.ZeroPadding1D((extra, 0), name="empty")(values)
    tokens = {"output_shape": (num_patches + extra, width), "bias_axes": "td", "name": "embedding"}
    values = layers.EinsumDense("btp,pd->btd", bias_initializer=keras.initializers.RandomNormal(0.0, 0.02), **tokens)(values)
    values = layers.Dropout(sizes.dropout, name="dropout")(values)
    for index in range(sizes.num_blocks):
        values = _block(values, sizes, f"block_{index + 1}")
    values = layers.LayerNormalization(epsilon=sizes.epsilon, name="norm")(values)
    places = layers.Cropping1D((extra, 0), name="places")(values)
    if extra:
        token = layers.Reshape((width,), name="class_token")(
            layers.Cropping1D((0, num_patches + extra - 1), name="first")(values)
        )
        repeated = layers.RepeatVector(num_patches, name="repeated")(token)
        places = layers.Concatenate(name="with_class_token")([places, repeated])
    places = layers.Reshape((height, breadth, places.shape[-1]), name="map")(places)
    return keras.Model(images, places, name=name)


def _block(inputs: Any, sizes: Transformer, name: str) -> Any:
    """Attention and two dense layers, each added to what it is given."""
    dropout, attention = sizes.dropout, {"dropout": sizes.attention_dropout, "use_bias": sizes.attention_bias}
    values = layers.LayerNormalization(epsilon=sizes.epsilon, name=f"{name}_norm1")(inputs)
    key_dim = sizes.width // sizes.num_heads
    attend = layers.MultiHeadAttention(sizes.num_heads, key_dim, name=f"{name}_attention", **attention)
    values = layers.Dropout(dropout, name=f"{name}_dropout1")(attend(values, values))
    between = layers.Add(name=f"{name}_add1")([values, inputs])
    values = layers.LayerNormalization(epsilon=sizes.epsilon, name=f"{name}_norm2")(between)
    dense = {"use_bias": sizes.hidden_bias}
    values = layers.Dense(sizes.hidden, activation="gelu", name=f"{name}_dense1", **dense)(values)
    values = layers.Dropout(dropout, name=f"{name}_dropout2")(values)
    values = layers.Dense(sizes.width, name=f"{name}_dense2", **dense)(values)
    values = layers.Dropout(dropout, name=f"{name}_dropout3")(values)
    return layers.Add(name=f"{name}_add2")([values, between])


# -- KerasHub's presets


def _read(name: str, image_size: tuple[int, int], preset: str, *, rescales: bool) -> tuple[Any, dict[str, Any]]:
    """Returns KerasHub's network, and the numbers of its preset's image converter."""
    import keras_hub

    kind = keras_hub.models.ViTBackbone if name == "vit" else keras_hub.models.DINOV2Backbone
    if not (Path(preset).is_dir() or preset in kind.presets or "://" in preset):
        raise FileNotFoundError(f"weights={preset}: no such folder, and KerasHub has no {kind.__name__} of that name")
    options = {} if name == "vit" else {"image_shape": (*image_size, 3)}  # DINOv2 interpolates its positions
    try:
        backbone = keras_hub.models.Backbone.from_preset(preset, dtype="float32", **options)
    except Exception as error:  # of a damaged folder, or of a failed download, anything
        raise DataError(f"cannot be read as a preset of KerasHub: {lines_of(error)[-1]}", path=preset) from error
    if not isinstance(backbone, kind):
        raise ValueError(f"weights={preset}: a preset of {type(backbone).__name__}, not of {kind.__name__}")
    if tuple(backbone.image_shape[:2]) != tuple(image_size):
        height, width, _ = backbone.image_shape
        raise ValueError(f"image_size must be {height}x{width}, as {preset} has one position for each of its patches")
    if not rescales:
        return backbone, {}
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset)
    except Exception as error:
        wanted = "has no image converter, which holds the scale of its images: give preprocessing"
        raise ValueError(f"weights={preset}: {wanted} ({lines_of(error)[-1]})") from error
    scale, offset = (1.0 if converter.scale is None else converter.scale), (converter.offset or 0.0)
    return backbone, {"scale": scale, "offset": offset}


def _of_vit(backbone: Any) -> tuple[Transformer, dict[str, Arrays]]:
    embedding, encoder = (backbone.get_layer(name) for name in ("vit_patching_and_embedding", "vit_encoder"))
    (patch_size, other), extra = backbone.patch_size, int(backbone.use_class_token)
    if patch_size != other:
        raise ValueError(f"weights: patches of {patch_size}x{other} are not square")
    positions = embedding.position_embedding.embeddings.numpy()
    if extra:
        positions[0] += embedding.class_token.numpy()[0, 0]
    weights = {"embedding": _embedding(embedding.patch_embedding, positions, extra), "norm": encoder.layer_norm.get_weights()}
    for index, block in enumerate(encoder.encoder_layers, start=1):
        first, second = block.mlp.dense_1.get_weights(), block.mlp.dense_2.get_weights()
        parts = (block.layer_norm_1.get_weights(), block.mha.get_weights(), block.layer_norm_2.get_weights(), first, second)
        weights |= _named(index, parts)
    return Transformer(
        patch_size,
        backbone.hidden_dim,
        backbone.num_layers,
        backbone.num_heads,
        backbone.mlp_dim,
        num_extra=extra,
        dropout=backbone.dropout_rate,
        attention_dropout=backbone.attention_dropout,
        attention_bias=backbone.use_mha_bias,
        hidden_bias=backbone.use_mlp_bias,
        epsilon=backbone.layer_norm_epsilon,
    ), weights


def _of_dinov2(backbone: Any) -> tuple[Transformer, dict[str, Arrays]]:
    if backbone.use_swiglu_ffn:
        raise ValueError("weights: a DINOv2 with gated hidden layers (giant) is not supported; take a smaller one")
    embedding = backbone.embeddings
    positions = embedding.interpolated_position_embeddings.numpy()[0]
    positions[0] += embedding.cls_token.numpy()[0, 0]
    registers = [embedding.register_tokens.numpy()[0]] if backbone.num_register_tokens else []
    positions, extra = np.concatenate([positions[:1], *registers, positions[1:]]), 1 + backbone.num_register_tokens
    projection = embedding.patch_embeddings.projection
    weights = {"embedding": _embedding(projection, positions, extra), "norm": backbone.layernorm.get_weights()}
    for index, block in enumerate(backbone.encoder.layers, start=1):
        attention = _scaled(block.attention.attention.get_weights(), block.layer_scale1)
        second = _scaled(block.mlp.fc2.get_weights(), block.layer_scale2)
        parts = (block.norm1.get_weights(), attention, block.norm2.get_weights(), block.mlp.fc1.get_weights(), second)
        weights |= _named(index, parts)
    sizes = (backbone.patch_size, backbone.hidden_dim, backbone.num_layers, backbone.num_heads, backbone.intermediate_dim)
    rates = {"dropout": backbone.dropout_rate, "attention_dropout": backbone.dropout_rate}
    return Transformer(*sizes, num_extra=extra, **rates), weights


def _embedding(projection: Any, positions: np.ndarray[Any, Any], num_extra: int) -> Arrays:
    kernel, *bias = projection.get_weights()  # [p, p, 3, D]
    positions[num_extra:] += bias[0] if bias else 0.0
    return [kernel.reshape(-1, kernel.shape[-1]), positions]


def _scaled(weights: list[np.ndarray[Any, Any]], scale: Any) -> Arrays:
    """Returns a layer's weights with what scales its results multiplied into its last kernel and bias."""
    return [*weights[:-2], *(values * scale.lambda1.numpy() for values in weights[-2:])]


def _named(index: int, parts: Sequence[Arrays]) -> Mapping[str, Arrays]:
    names = ("norm1", "attention", "norm2", "dense1", "dense2")
    return {f"block_{index}_{name}": part for name, part in zip(names, parts, strict=True)}
