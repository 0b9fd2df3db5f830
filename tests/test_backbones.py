"""Backbones: every row of the table, networks by import path, and what `unfreeze` means."""

import re
import sys
from itertools import pairwise

import keras
import numpy as np
import pytest
from keras.src.applications import convnext
from test_submodels import randomised

from tfpipe.common.errors import DataError
from tfpipe.networks import keras_files
from tfpipe.networks.architectures import TABLE, native_size
from tfpipe.networks.backbones import build, find_trainable
from tfpipe.networks.layers import PREPROCESSINGS, Preprocessing, Trunk
from tfpipe.networks.submodels import cut, cut_points, find_dependents, find_layers, hash_network

pytestmark = pytest.mark.tf

HEAVY_ONLY = (pytest.mark.exhaustive(only=True),)


def smallest(name):
    size = TABLE[name].smallest
    return size, size


# Features of an image of each backbone's own size, and the module of Keras with its preprocessing.
ROWS = {
    "vgg16": ((7, 7, 512), keras.applications.vgg16),
    "vgg19": ((7, 7, 512), keras.applications.vgg19),
    "resnet50": ((7, 7, 2048), keras.applications.resnet),
    "resnet101": ((7, 7, 2048), keras.applications.resnet),
    "resnet152": ((7, 7, 2048), keras.applications.resnet),
    "resnet50v2": ((7, 7, 2048), keras.applications.resnet_v2),
    "resnet101v2": ((7, 7, 2048), keras.applications.resnet_v2),
    "resnet152v2": ((7, 7, 2048), keras.applications.resnet_v2),
    "densenet121": ((7, 7, 1024), keras.applications.densenet),
    "inceptionv3": ((8, 8, 2048), keras.applications.inception_v3),
    "inceptionresnetv2": ((8, 8, 1536), keras.applications.inception_resnet_v2),
    "xception": ((10, 10, 2048), keras.applications.xception),
    "nasnetmobile": ((7, 7, 1056), keras.applications.nasnet),
    "mobilenetv2": ((7, 7, 1280), keras.applications.mobilenet_v2),
    "mobilenetv3small": ((7, 7, 576), keras.applications.mobilenet_v3),
    "mobilenetv3large": ((7, 7, 960), keras.applications.mobilenet_v3),
    "efficientnetv2b0": ((7, 7, 1280), keras.applications.efficientnet_v2),
    "efficientnetv2b1": ((8, 8, 1280), keras.applications.efficientnet_v2),
    "efficientnetv2b2": ((9, 9, 1408), keras.applications.efficientnet_v2),
    "efficientnetv2b3": ((10, 10, 1536), keras.applications.efficientnet_v2),
    "efficientnetv2s": ((12, 12, 1280), keras.applications.efficientnet_v2),
    "efficientnetv2m": ((15, 15, 1280), keras.applications.efficientnet_v2),
    "convnexttiny": ((7, 7, 768), keras.applications.convnext),
    "convnextsmall": ((7, 7, 768), keras.applications.convnext),
    "convnextbase": ((7, 7, 1024), keras.applications.convnext),
}
OWN = {"efficientnetlite0": (7, 7, 1280), "vit": (14, 14, 1536), "dinov2": (16, 16, 768), "lenet": (4, 4, 128)}
# One of each family is built always; each costs 0.2 to 4 seconds.
HEAVY = ("01", "52", "01v2", "52v2", "b1", "b2", "b3", "v2s", "v2m", "extsmall", "base", "v3large", "vit")
OVERLAPPING = ("nasnetmobile",)  # its cells read the two before them: nothing to cut at


def test_the_table_is_what_the_issue_lists():
    assert set(TABLE) == {*ROWS, *OWN}


@pytest.mark.parametrize("name", [pytest.param(name, marks=HEAVY_ONLY if name.endswith(HEAVY) else ()) for name in TABLE])
def test_every_row_builds_and_can_be_cut(name):
    height, width = native_size(name)
    backbone = build(name, image_size=(height, width))
    network = backbone.network
    assert network.input_shape == (None, height, width, 3)
    assert network.output_shape == (None, *(OWN.get(name) or ROWS[name][0]))
    assert backbone.preprocessing in PREPROCESSINGS
    check_blocks(backbone)
    images = np.random.default_rng(0).uniform(-1, 1, (1, height, width, 3)).astype("float32")
    expected = network(images).numpy()
    assert np.ptp(expected) > 0
    ends = list(backbone.blocks.values())
    points = ends if name not in OVERLAPPING else cut_points(network)
    assert set(points) <= set(cut_points(network))
    front, back = cut(network, points[len(points) // 2 - 1])
    np.testing.assert_array_equal(back(front(images)), expected)
    assert front.weights
    assert back.weights


def check_blocks(backbone):
    """From input to output, without a gap; each begins with weights of its own, and all layers named after it are in it."""
    layers = find_layers(backbone.network)
    order, ends = list(layers), list(backbone.blocks.values())
    places = [order.index(end) for end in ends]
    assert places == sorted(set(places))
    assert ends[-1] == order[-1] == cut_points(backbone.network)[-1]
    spans = [order[start:end] for start, end in pairwise([0, *[place + 1 for place in places]])]
    assert [name for span in spans for name in span] == order
    rule = TABLE[backbone.name].blocks
    for block, span in zip(backbone.blocks, spans, strict=True):
        with_weights = [name for name in span if getattr(layers[name], "weights", ())]
        assert any(layers[name].trainable_weights for name in with_weights), block
        if isinstance(rule, str):
            named = {match[match.re.groups] for name in with_weights if (match := re.match(rule, name))}
            assert named <= {block}
    for before, after in pairwise(ends):
        assert after in find_dependents(backbone.network, [before])


@pytest.mark.parametrize("name", ROWS)
def test_preprocessing_is_what_keras_applies(name):
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype("uint8")
    expected = ROWS[name][1].preprocess_input(images.astype("float32"))
    ours = Preprocessing(TABLE[name].preprocessing)(images)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_blocks_keep_their_names():
    """`--unfreeze` and recipes of runs name them."""
    names = {name: list(build(name, image_size=smallest(name)).blocks) for name in ("mobilenetv3small", "convnexttiny")}
    assert names["mobilenetv3small"] == ["stem", "expanded_conv", *[f"expanded_conv_{i}" for i in range(1, 11)], "conv_1"]
    stages = [name for index in range(3) for name in (f"stage_{index}", f"downsampling_block_{index}")]
    assert names["convnexttiny"] == ["stem", *stages, "stage_3"]


@pytest.mark.parametrize("kind", ["convnext", "mobilenetv3small"])
def test_g12_what_new_kinds_draw_in_training_is_frozen(kind, tmp_path):
    """Stochastic depth and LayerScale, of which Keras' rows have the second only; BatchNorm and squeeze and excitation."""
    network = randomised(small_convnext() if kind == "convnext" else build(kind, image_size=(32, 32)).network)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, Trunk(network, inference=True)(inputs))
    model.save(tmp_path / "model.keras")
    model = keras_files.load(tmp_path / "model.keras")
    before = [weight.numpy() for weight in model.weights]
    expected = network(images, training=False).numpy()
    np.testing.assert_allclose(model(images, training=True), expected, rtol=1e-5, atol=1e-5)
    assert all(np.array_equal(weight, value) for weight, value in zip(model.weights, before, strict=True))
    assert np.abs(network(images, training=True).numpy() - expected).max() > 1e-2  # what a Trunk keeps away


def small_convnext():
    kinds = {"depths": (1, 1, 2, 1), "projection_dims": (8, 8, 8, 8), "drop_path_rate": 0.5, "name": "convnext_small"}
    network = convnext.ConvNeXt(**kinds, include_top=False, weights=None, input_shape=(32, 32, 3), default_size=32)
    assert {type(layer).__name__ for layer in network.layers} >= {"LayerScale", "StochasticDepth"}
    return network


def test_efficientnet_rescales_by_itself():
    assert any(
        isinstance(layer, keras.layers.Rescaling) for layer in build("efficientnetv2b0", image_size=(32, 32)).network.layers
    )


@pytest.mark.parametrize("name", TABLE)
def test_too_small_a_size_is_reported_in_our_words(name):
    height, width = smallest(name)
    with pytest.raises(
        ValueError, match=f"image_size {height}x{width - 1} is too small for {name}: at least {height}x{height}"
    ):
        build(name, image_size=(height, width - 1))


def test_native_sizes():
    assert native_size("vgg16") == (224, 224)
    assert native_size("inceptionv3") == (299, 299)
    assert native_size("lenet") == (32, 32)
    assert native_size("some.module:function") == (224, 224)


@pytest.mark.parametrize("call", [native_size, lambda name: build(name, image_size=(32, 32))])
def test_unknown_names(call):
    with pytest.raises(
        ValueError, match=r"one of vgg16, .*lenet or 'package.module:function' \(got 'VGG-16'\) \(did you mean vgg16\?\)"
    ):
        call("VGG-16")


def test_grey():
    assert build("lenet", image_size=(16, 16)).preprocessing == "unit"
    grey = build("lenet", image_size=(16, 16), grey=True)
    assert (grey.preprocessing, grey.network.input_shape) == ("grey", (None, 16, 16, 1))
    assert build("custom_backbone:small_inception", image_size=(16, 16), preprocessing="grey").network.input_shape[-1] == 1
    with pytest.raises(ValueError, match="vgg16 takes three channels"):
        build("vgg16", image_size=(32, 32), grey=True)
    with pytest.raises(ValueError, match="got 'tf'"):
        build("lenet", image_size=(16, 16), grey=True, preprocessing="tf")


def test_preprocessing_can_be_chosen():
    assert build("lenet", image_size=(16, 16), preprocessing="torch").preprocessing == "torch"
    with pytest.raises(ValueError, match=r"preprocessing must be one of caffe, .* \(got 'magic'\)"):
        build("lenet", image_size=(16, 16), preprocessing="magic")


# -- weights


def test_weights_from_a_file(tmp_path):
    saved = randomised(build("lenet", image_size=(16, 16)).network)
    saved.save_weights(tmp_path / "lenet.weights.h5")
    backbone = build("lenet", image_size=(32, 24), weights=str(tmp_path / "lenet.weights.h5"))
    for weight, expected in zip(backbone.network.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(weight, expected)
    with pytest.raises(DataError, match=r"lenet.weights.h5: .*block1_conv .*\(3, 3, 1, 32\).*\(3, 3, 3, 32\)"):
        build("lenet", image_size=(32, 24), weights=str(tmp_path / "lenet.weights.h5"), grey=True)


def test_a_failed_download_advises_to_give_a_file(monkeypatch):
    def fail(*arguments, **options):
        raise Exception("URL fetch failure on https://example.org/vgg16.h5: None -- Name or service not known")

    monkeypatch.setattr("keras.src.applications.vgg16.file_utils.get_file", fail)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded: URL fetch failure on https://example.*Give a file"):
        build("vgg16", image_size=(32, 32), weights="imagenet")


@pytest.mark.parametrize("name", ["lenet", "custom_backbone:small_inception"])
def test_who_has_no_imagenet_weights(name):
    with pytest.raises(ValueError, match=f"no ImageNet weights for {name}"):
        build(name, image_size=(32, 32), weights="imagenet")


def test_real_weights_through_the_table(test_data):
    path = test_data / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    backbone = build("vgg16", image_size=(48, 32), weights=str(path))
    expected = keras.applications.VGG16(include_top=False, weights=path, input_shape=(48, 32, 3))
    assert hash_network(backbone.network) == hash_network(expected)
    assert hash_network(backbone.network) != hash_network(build("vgg16", image_size=(48, 32)).network)


# -- import paths


def test_a_network_by_import_path():
    backbone = build("custom_backbone:small_inception", image_size=(32, 24))
    assert backbone.name == "custom_backbone:small_inception"
    assert backbone.preprocessing == "unit"
    assert list(backbone.blocks) == ["block1", "stem", "inception_a", "reduction", "inception_b"]
    assert list(backbone.blocks.values())[1:] == ["stem", "inception_a", "reduction", "inception_b"]
    assert set(backbone.blocks.values()) <= set(cut_points(backbone.network))
    assert {type(layer).__name__ for layer in backbone.network.layers} >= {"BatchNormalization", "Dropout", "Concatenate"}


def test_blocks_have_the_same_names_in_every_session():
    first, second = (build("custom_backbone:unnamed", image_size=(16, 16)) for _ in range(2))
    assert list(first.blocks) == list(second.blocks) == ["block1", "block2", "block3"]
    assert first.blocks != second.blocks  # the layers' own names differ: Keras counts on


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sequential", "a Sequential model, not a Functional"),
        ("with_head", r"returns \(None, 2\), not a feature map"),
        ("two_outputs", "1 input and 2 outputs"),
        ("other_size", r"takes \(None, 17, 17, 3\), not .*\(None, 32, 32, 3\)"),
        ("twice", "called twice"),
        ("positional", "raised TypeError: .*input_shape"),
        ("failing", "raised RuntimeError: no luck today"),
    ],
)
def test_what_a_function_may_not_return(name, message):
    with pytest.raises(ValueError, match=f"backbone custom_backbone:{name}: .*{message}"):
        build(f"custom_backbone:{name}", image_size=(32, 32))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:make", ImportError, "module no_such_module cannot be imported"),
        ("custom_backbone:no_such", ImportError, "custom_backbone.py has no function no_such"),
        ("custom_backbone:not_a_function", ImportError, "has no function not_a_function"),
        ("custom_backbone:", ValueError, "package.module:function"),
        ("a/b.py:make", ValueError, "package.module:function"),
    ],
)
def test_what_cannot_be_imported(name, error, message):
    before = list(sys.path)
    with pytest.raises(error, match=message):
        build(name, image_size=(32, 32))
    assert sys.path == before


def test_modules_of_the_current_directory_are_found(tmp_path, monkeypatch):
    folder = tmp_path / "networks_of_mine"
    folder.mkdir()
    (folder / "small.py").write_text(
        "import keras\n"
        "def make(input_shape):\n"
        "    images = keras.Input(input_shape)\n"
        "    return keras.Model(images, keras.layers.Conv2D(2, 3, name='only')(images))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build("networks_of_mine.small:make", image_size=(9, 9)).blocks == {"only": "only"}


# -- what trains


@pytest.fixture(scope="module")
def inception():
    return build("custom_backbone:small_inception", image_size=(16, 16))


def test_a_block_means_itself_and_all_after_it():
    vgg = build("vgg16", image_size=(32, 32))
    order = list(find_layers(vgg.network))
    assert find_trainable(vgg, ["block5"]) == ("block4_pool", set(order[order.index("block5_conv1") :]))
    assert find_trainable(vgg, ["block5", "block4"]) == ("block3_pool", set(order[order.index("block4_conv1") :]))
    assert find_trainable(vgg, ["block1"]) == (None, set(order[1:]))
    assert find_trainable(vgg, []) == ("block5_pool", set())


def test_a_layer_means_itself_and_all_that_depends_on_it():
    vgg = build("vgg16", image_size=(32, 32))
    assert find_trainable(vgg, ["block5_conv3"]) == ("block5_conv2", {"block5_conv3", "block5_pool"})
    assert find_trainable(vgg, ["block5_conv3", "block5"])[0] == "block4_pool"


def test_a_layer_in_a_branch_leaves_the_other_branches(inception):
    order = list(find_layers(inception.network))
    inside = order[order.index("reduction") + 1 : order.index("inception_b")]
    for name in (name for name in inside if name.startswith("conv2d")):
        boundary, trainable = find_trainable(inception, [name])
        assert name in trainable
        assert not set(inside) <= trainable
        assert trainable <= {*inside, "inception_b"}
        assert boundary in order[order.index("reduction") : order.index("inception_b")]
        front, back = cut(inception.network, boundary)
        assert not {layer.name for layer in front.layers} & trainable
        assert trainable <= {layer.name for layer in back.layers}


def test_unknown_words_list_the_blocks_and_close_layers():
    vgg = build("vgg16", image_size=(32, 32))
    with pytest.raises(ValueError, match=r"no block or layer 'block5_conv'; its blocks are block1, .*block5; .*block5_conv3"):
        find_trainable(vgg, ["block5_conv"])
    with pytest.raises(ValueError, match="'input"):
        find_trainable(vgg, [vgg.network.layers[0].name])
