"""Vision Transformers: KerasHub's numbers from its presets, in layers that Keras alone reads; blocks, and frozen is frozen."""

import dataclasses
import json
import sys

import keras
import numpy as np
import pytest
from test_submodels import randomised
from transfer_fixtures import SMALL, colours, run

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.networks import keras_files
from tfpipe.networks.architectures import choose_input, native_size
from tfpipe.networks.backbones import build, find_trainable
from tfpipe.networks.layers import Trunk
from tfpipe.networks.submodels import cut, cut_points

pytestmark = pytest.mark.tf

__all__ = ["colours"]  # a fixture

SIZE = (32, 32)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype("float32")
VIT = {"image_shape": (*SIZE, 3), "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
DINOV2 = {"patch_size": 8, "num_layers": 3, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 16}
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Presets as KerasHub saves them: backbone, its options, and what images are scaled by.
PRESETS = {
    "vit": ("ViTBackbone", {**VIT, "dropout_rate": 0.4}, {"scale": 1 / 127.5, "offset": -1.0}),
    "vit without": (
        "ViTBackbone",
        {**VIT, "use_class_token": False, "use_mha_bias": False, "use_mlp_bias": False, "use_patch_bias": False},
        {"scale": 1 / 255},
    ),
    "dinov2": (
        "DINOV2Backbone",
        {**DINOV2, "dropout_rate": 0.4, "image_shape": (*SIZE, 3), "position_embedding_shape": (40, 40, 3)},
        {"scale": list(1 / 255 / DEVIATION), "offset": list(-MEAN / DEVIATION)},
    ),
    "dinov2 registers": (
        "DINOV2Backbone",
        {**DINOV2, "num_register_tokens": 3, "image_shape": (*SIZE, 3), "position_embedding_shape": (*SIZE, 3)},
        {"scale": [0.1, 0.2, 0.3], "offset": [1.0, 2.0, 3.0]},
    ),
}


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub", reason="the extra hub is not installed")


@pytest.fixture(scope="module")
def presets(hub, tmp_path_factory):
    """Folders by name, of random weights."""
    folder = tmp_path_factory.mktemp("presets")
    for name, (kind, options, numbers) in PRESETS.items():
        randomised(getattr(hub.models, kind)(**options), seed=len(name)).save_to_preset(str(folder / name))
        hub.layers.ImageConverter(image_size=SIZE, **numbers).save_to_preset(str(folder / name))
    return folder


@pytest.mark.parametrize("preset", PRESETS)
def test_features_are_those_of_keras_hub(hub, presets, preset):
    name, folder = preset.split()[0], presets / preset
    backbone = build(name, image_size=SIZE, weights=str(folder))
    original = hub.models.Backbone.from_preset(str(folder))
    converted = hub.layers.ImageConverter.from_preset(str(folder))(IMAGES)
    tokens = np.asarray(original(converted if name == "vit" else {"images": converted}, training=False))
    num_extra = tokens.shape[1] - 16
    expected = tokens[:, num_extra:]
    if num_extra:
        expected = np.concatenate([expected, np.repeat(tokens[:, :1], 16, axis=1)], axis=-1)
    found = backbone.network(IMAGES, training=False).numpy()
    assert np.ptp(found) > 1
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-4)
    assert (backbone.preprocessing, native_size(name, str(folder))) == ("none", SIZE)


@pytest.mark.parametrize(("name", "blocks"), [("vit", 2), ("dinov2", 3)])
def test_blocks_can_be_cut_and_unfrozen(presets, name, blocks):
    backbone = build(name, image_size=SIZE, weights=str(presets / name))
    assert list(backbone.blocks) == ["stem", *[f"block_{index + 1}" for index in range(blocks)]]
    assert set(backbone.blocks.values()) <= set(cut_points(backbone.network))
    boundary, trainable = find_trainable(backbone, ["block_2"])
    assert boundary == "block_1_add2"
    assert {"block_2_attention", "norm"} <= trainable
    front, back = cut(backbone.network, boundary)
    np.testing.assert_array_equal(back(front(IMAGES)), backbone.network(IMAGES))


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_g12_dropout_of_attention_and_dense_layers_is_frozen(presets, name, tmp_path):
    network = build(name, image_size=SIZE, weights=str(presets / name)).network
    expected = network(IMAGES, training=False).numpy()
    inputs = keras.Input((*SIZE, 3))
    keras.Model(inputs, Trunk(network, inference=True)(inputs)).save(tmp_path / "model.keras")
    model = keras_files.load(tmp_path / "model.keras")
    assert "keras_hub" not in json.dumps(keras.saving.serialize_keras_object(model))  # a model needs Keras alone
    np.testing.assert_allclose(model(IMAGES, training=True), expected, atol=1e-5)
    assert np.abs(network(IMAGES, training=True).numpy() - expected).max() > 0.1


def test_a_run_from_a_preset(presets, colours, tmp_path):
    recipe = dataclasses.replace(SMALL, backbone="dinov2", weights=str(presets / "dinov2"), image_size=None)
    recipe = dataclasses.replace(recipe, mode="finetune", unfreeze=("block_3",), epochs=2, finetune_epochs=1)
    lines = []
    run(colours, tmp_path / "run", recipe, log=lines.append)
    assert any(line.startswith("image_size=(32, 32)") for line in lines)
    assert any("block_3" in line for line in lines)
    assert tfpipe.load(tmp_path / "run").class_names


def test_the_scale_of_images_is_the_users_where_a_preset_has_none(hub, tmp_path):
    folder = tmp_path / "bare"
    hub.models.ViTBackbone(**VIT).save_to_preset(str(folder))
    with pytest.raises(ValueError, match=r"bare: has no image converter, .* give preprocessing"):
        build("vit", image_size=SIZE, weights=str(folder))
    backbone = build("vit", image_size=SIZE, weights=str(folder), preprocessing="tf")
    assert backbone.preprocessing == "tf"
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in backbone.network.layers)


def test_what_a_preset_must_be(presets, tmp_path):
    with pytest.raises(ValueError, match="a preset of ViTBackbone, not of DINOV2Backbone"):
        build("dinov2", image_size=SIZE, weights=str(presets / "vit"))
    with pytest.raises(ValueError, match="image_size must be 32x32"):
        build("vit", image_size=(40, 40), weights=str(presets / "vit"))
    assert build("dinov2", image_size=(40, 40), weights=str(presets / "dinov2")).network.output_shape == (None, 5, 5, 16)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((presets / "vit" / "config.json").read_text())
    with pytest.raises(DataError, match="damaged: cannot be read as a preset of KerasHub"):
        build("vit", image_size=SIZE, weights=str(damaged))


def test_a_preset_that_is_not_there(monkeypatch):
    import keras_hub

    with pytest.raises(FileNotFoundError, match="no/where: no such folder, and KerasHub has no ViTBackbone of that name"):
        build("vit", image_size=SIZE, weights="no/where")
    seen = []
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", lambda preset, **_: seen.append(preset))
    for handle in ("kaggle://keras/vit/keras/x", next(iter(keras_hub.models.ViTBackbone.presets))):
        with pytest.raises(ValueError, match="not of ViTBackbone"):
            build("vit", image_size=SIZE, weights=handle)
        assert seen.pop() == handle


def test_sizes_and_weights_without_a_preset():
    with pytest.raises(ValueError, match="image_size 30x32: sides must be multiples of dinov2's patches of 14"):
        build("dinov2", image_size=(30, 32))
    with pytest.raises(ValueError, match="no ImageNet weights for vit; weights must be a preset of KerasHub, 'none' or a file"):
        build("vit", image_size=SIZE, weights="imagenet")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "keras_hub", raising=False)
    with pytest.raises(ImportError, match=r"keras_hub is not installed: pip install 'tfpipe\[hub\]'"):
        choose_input("vit", SIZE, "some_preset", None, grey=False)
