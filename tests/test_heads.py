"""The head: its options, its seeds, its penalty; and a classifier put together."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipe.networks.backbones import build, truncate
from tfpipe.networks.heads import Head, assemble, dtype_policy
from tfpipe.networks.layers import Preprocessing, Trunk
from tfpipe.networks.submodels import cut_points

pytestmark = pytest.mark.tf

FEATURES = np.random.default_rng(0).normal(size=(4, 3, 2, 5)).astype("float32")


def head_of(head, num_classes=3, seed=0):
    return keras.Sequential([keras.Input(FEATURES.shape[1:]), *head.layers(num_classes, seed)])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pooling": "mean"}, "pooling must be one of average, max, flatten.*mean"),
        ({"hidden": (10, 0)}, "hidden"),
        ({"hidden": (-1,)}, "hidden"),
        ({"hidden": (1.5,)}, "hidden"),
        ({"hidden": (True,)}, "hidden"),
        ({"dropout": 1.0}, "dropout.*1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"l2": -1e-9}, "l2"),
        ({"l2": 1}, "l2"),
    ],
)
def test_options_are_checked(options, word):
    with pytest.raises(ValueError, match=word):
        Head(**options)


@pytest.mark.parametrize(
    ("pooling", "function"),
    [
        ("average", lambda x: x.mean(axis=(1, 2))),
        ("max", lambda x: x.max(axis=(1, 2))),
        ("flatten", lambda x: x.reshape(len(x), -1)),
    ],
)
def test_pooling(pooling, function):
    pooled = Head(pooling).layers(3, 0)[0]
    assert pooled.name == "pooling"
    np.testing.assert_allclose(pooled(FEATURES), function(FEATURES), atol=1e-6)


@given(
    pooling=st.sampled_from(["average", "max", "flatten"]),
    hidden=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    dropout=st.sampled_from([0.0, 0.5]),
    num_classes=st.integers(2, 5),
)
def test_layers_are_what_the_options_say(pooling, hidden, dropout, num_classes):
    found = Head(pooling, hidden, dropout).layers(num_classes, 0)
    dense = [layer for layer in found if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [*hidden, num_classes]
    assert [layer.activation is keras.activations.relu for layer in dense] == [*[True] * len(hidden), False]
    drops = [layer for layer in found if isinstance(layer, keras.layers.Dropout)]
    assert len(drops) == (1 + len(hidden) if dropout else 0)
    assert all(layer.rate == dropout for layer in drops)
    assert (found[0].name, found[-1].name) == ("pooling", "logits")
    assert len({layer.name for layer in found}) == len(found)
    assert {layer.compute_dtype for layer in found} == {"float32"}


def weights(seed, **options):
    keras.utils.set_random_seed(options.pop("session", 0))
    return head_of(Head(hidden=(4, 4), dropout=0.5, **options), seed=seed).get_weights()


def test_equal_seeds_give_equal_weights_whatever_the_session_drew():
    for one, other in zip(weights(5, session=1), weights(5, session=2), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_gives_other_weights_in_every_layer():
    *drawn, (kernel, _), _ = zip(weights(5), weights(6), strict=True)
    for one, other in drawn:
        assert one.ndim == 1 or not np.array_equal(one, other)
    assert not kernel.any()  # no class is preferred before something is learned, whatever the size of the features
    hidden = head_of(Head("average", hidden=(5, 5))).get_weights()
    assert not np.array_equal(hidden[0], hidden[2])  # equal shapes, and yet a draw of their own


def test_dropout_is_drawn_from_the_seed():
    def dropped(seed, session):
        keras.utils.set_random_seed(session)
        return head_of(Head(dropout=0.5, hidden=(8,)), seed=seed)(FEATURES, training=True).numpy()

    np.testing.assert_array_equal(dropped(1, 0), dropped(1, 9))
    model = head_of(Head("flatten", dropout=0.5))
    one, other = (model.get_layer("dropout")(np.ones((2, 50), "float32"), training=True).numpy() for _ in range(2))
    assert not np.array_equal(one, other)


def test_l2_is_the_sum_of_squares_of_kernels_alone():
    model = head_of(Head(hidden=(4,), l2=0.01))
    model.set_weights([weight + 1 for weight in model.get_weights()])
    kernels = [weight for weight in model.get_weights() if weight.ndim == 2]
    assert len(model.losses) == 2
    np.testing.assert_allclose(sum(model.losses), 0.01 * sum((kernel**2).sum() for kernel in kernels), rtol=1e-5)
    assert not head_of(Head(hidden=(4,))).losses


def test_the_head_computes_in_float32_under_every_policy():
    with dtype_policy("mixed_bfloat16"):
        model = head_of(Head(hidden=(4,), dropout=0.5))
    assert model(FEATURES).dtype == "float32"
    assert all(layer.compute_dtype == "float32" for layer in model.layers)


def test_dtype_policy_comes_back_after_an_error():
    before = keras.config.dtype_policy().name
    with dtype_policy("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert keras.config.dtype_policy().name == before
    with pytest.raises(ValueError, match="hidden"), dtype_policy("mixed_bfloat16"):
        Head(hidden=(0,))
    assert keras.config.dtype_policy().name == before


def test_assemble_is_its_layers_one_after_the_other():
    backbone = build("lenet", image_size=(8, 12))
    parts = [Preprocessing("unit", name="preprocessing"), Trunk(backbone.network, True, name="trunk")]
    head = Head(hidden=(4,), dropout=0.5).layers(2, 0)
    model = assemble(parts[1:], parts[0], head, ("a", "小 猫"), (8, 12))
    assert (model.input_shape, model.input.dtype, model.output_shape) == ((None, 8, 12, 3), "uint8", (None, 2))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype="uint8")
    values = images
    for layer in (*parts, *head):
        values = layer(values)
    np.testing.assert_allclose(model(images), keras.ops.softmax(values), atol=1e-6)
    assert model.get_layer("probabilities").class_names == ("a", "小 猫")


@pytest.mark.parametrize("name", ["lenet", "custom_backbone:small_inception", "custom_backbone:unnamed"])
def test_a_truncated_backbone_has_the_blocks_of_what_is_left(name):
    backbone = build(name, image_size=(16, 16))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    for after in cut_points(backbone.network):
        if after == cut_points(backbone.network)[-1]:
            continue
        short = truncate(backbone, after)
        ends = list(short.blocks.values())
        assert ends[-1] == after
        assert ends[:-1] == list(backbone.blocks.values())[: len(ends) - 1]
        assert (short.name, short.preprocessing) == (backbone.name, backbone.preprocessing)
        assert short.network(images).shape[1:] == short.network.output_shape[1:]


def test_truncated_after_a_block():
    backbone = build("lenet", image_size=(8, 8))
    short = truncate(backbone, "block1")
    assert dict(short.blocks) == {"block1": "block1_pool"}
    assert short.network.output_shape == (None, 4, 4, 32)


def test_truncated_at_its_end_it_is_whole():
    backbone = build("custom_backbone:unnamed", image_size=(16, 16))
    short = truncate(backbone, list(backbone.blocks)[-1])
    assert dict(short.blocks) == dict(backbone.blocks)
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype("float32")
    np.testing.assert_array_equal(short.network(images), backbone.network(images))


def test_truncated_at_no_layer():
    with pytest.raises(ValueError, match=r"cannot be cut after 'block7'.*block1_pool"):
        truncate(build("lenet", image_size=(8, 8)), "block7")
