"""The networks of a run: shared layers, what is trained in each, rates, counts, and the result in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfpipe.models import classifiers
from tfpipe.networks import arithmetic, backbones
from tfpipe.training.networks import Networks
from tfpipe.training.recipes import Recipe, complete

pytestmark = pytest.mark.tf

NAMES = ("cat", 'a, "b"', "小 猫")
CUSTOM = "custom_backbone:small_inception"
BACKBONES = [CUSTOM, "lenet", "custom_backbone:unnamed"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype="uint8")


def make(backbone=CUSTOM, precision="float32", **changes):
    """Networks of a complete recipe, whose weights are random, BatchNorm's statistics included."""
    options = {"backbone": backbone, "weights": "none", "mode": "finetune", "image_size": (16, 16), **changes}
    recipe, _ = complete(Recipe(**options), 1000, len(NAMES))
    networks = Networks(recipe, NAMES, precision, tf.distribute.get_strategy())
    drawn = np.random.default_rng(0)
    network = networks.backbone.network
    network.set_weights([random_weight(drawn, weight) for weight in network.weights])
    networks.on_features()  # builds the head, whose last kernel begins at zero
    kernel, bias = networks.head[-1].get_weights()
    networks.head[-1].set_weights([random_weight(drawn, kernel), bias])
    return networks


def random_weight(drawn, weight):
    """Values that neither grow nor vanish from layer to layer."""
    if len(weight.shape) > 1:
        return drawn.normal(size=weight.shape) / np.sqrt(np.prod(weight.shape[:-1]))
    return drawn.uniform(0.3, 1.0, weight.shape)


def paths(variables):
    return {id(variable) for variable in variables}


# ---- what they share, and what is trained


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_networks_of_all_phases_share_their_variables(backbone):
    networks = make(backbone)
    whole = paths(networks.frozen().weights)
    head = paths(weight for layer in networks.head for weight in layer.weights)
    assert head < whole
    assert paths(networks.all_trained().weights) == whole
    assert paths(networks.partly_trained().weights) == whole
    assert paths(networks.on_features().weights) == head
    assert head < paths(networks.partly_trained_on_features().weights) < whole
    assert whole == head | paths(networks.backbone.network.weights)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_frozen_leaves_nothing_but_the_head_to_train(backbone):
    networks = make(backbone, hidden=(4,))
    networks.all_trained()  # what was before does not matter
    head = paths(variable for layer in networks.head for variable in layer.trainable_variables)
    assert len(head) == 4
    for network in (networks.frozen(), networks.on_features()):
        assert paths(network.trainable_variables) == head
    assert paths(v for group in networks.groups(backbone=True) for v in group.variables) == head


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_trained_trains_all(backbone):
    networks = make(backbone, mode="full")
    networks.frozen()
    network = networks.all_trained()
    expected = paths(v for layer in networks.backbone.network.layers for v in layer.weights if "moving" not in v.path)
    expected |= paths(v for layer in networks.head for v in layer.weights)
    assert paths(network.trainable_variables) == expected
    assert paths(v for group in networks.groups(backbone=True) for v in group.variables) == expected


@pytest.mark.parametrize("words", [(), ("inception_b",), ("inception_a",), ("inception_b", "reduction")])
def test_partly_trained_trains_exactly_the_unfrozen_layers(words):
    networks = make(unfreeze=words)
    networks.frozen()
    network = networks.partly_trained()
    _, names = backbones.find_trainable(networks.backbone, words or (list(networks.backbone.blocks)[-1],))
    layers = networks.backbone.network.layers
    assert 0 < len(names) < len(layers)
    expected = paths(
        v
        for layer in [*layers, *networks.head]
        if layer.name in names or layer in networks.head
        for v in layer.weights
        if "moving" not in v.path
    )
    assert paths(network.trainable_variables) == expected
    assert paths(networks.partly_trained_on_features().trainable_variables) == expected
    assert paths(v for group in networks.groups(backbone=True) for v in group.variables) == expected
    assert paths(v for group in networks.groups(backbone=False) for v in group.variables) == paths(
        v for layer in networks.head for v in layer.weights
    )


def test_nothing_stays_frozen_and_there_is_no_prefix():
    networks = make("lenet", unfreeze=("block1",))
    assert networks.front is None
    whole = paths(networks.all_trained().trainable_variables)
    assert paths(networks.partly_trained().trainable_variables) == whole
    with pytest.raises(ValueError, match="no prefix"):
        networks.partly_trained_on_features()


# ---- what they compute


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_prefix_and_the_rest_are_the_whole(backbone):
    networks = make(backbone)
    features = networks.front(networks.preprocessing(IMAGES), training=False)
    assert features.shape[1:] == networks.front.output_shape[1:]
    expected = networks.partly_trained()(IMAGES, training=False)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(networks.partly_trained_on_features()(features, training=False), expected, rtol=1e-5, atol=1e-6)
    pooled = networks.backbone.network(networks.preprocessing(IMAGES), training=False)
    np.testing.assert_allclose(networks.on_features()(pooled, training=False), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(networks.frozen()(IMAGES, training=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["frozen", "partly_trained", "partly_trained_on_features", "all_trained"])
def test_dropout_and_batch_norm_are_off_in_training_unless_asked(way):
    networks = make(mode="full" if way == "all_trained" else "finetune")
    network = getattr(networks, way)()
    inputs = networks.front(networks.preprocessing(IMAGES)) if way.endswith("features") else IMAGES
    before = [weight.numpy() for weight in network.weights]
    np.testing.assert_array_equal(network(inputs, training=True), network(inputs, training=False))
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


@pytest.mark.parametrize("mode", ["finetune", "full"])
def test_batch_norm_that_is_requested_is_on_where_it_is_trained(mode):
    networks = make(mode=mode, train_batch_norm=True)
    network = networks.partly_trained() if mode == "finetune" else networks.all_trained()
    before = {id(weight): weight.numpy() for weight in network.weights}
    network(IMAGES, training=True)
    changed = {id(weight) for weight in network.weights if not np.array_equal(before[id(weight)], weight.numpy())}
    front = paths(networks.front.weights) if networks.front else set()
    assert changed
    assert not changed & front
    statistics = paths(v for v in network.weights if "moving" in v.path)
    assert changed <= statistics - front


def test_equal_recipes_give_equal_weights_and_other_seeds_others():
    def weights(seed):
        recipe, _ = complete(Recipe(backbone=CUSTOM, mode="scratch", image_size=(16, 16), seed=seed), 1000, 3)
        return Networks(recipe, NAMES, "float32", tf.distribute.get_strategy()).all_trained().get_weights()

    for one, other in zip(weights(3), weights(3), strict=True):
        np.testing.assert_array_equal(one, other)
    kernels = [pair for pair in zip(weights(3), weights(4), strict=True) if pair[0].ndim > 1]
    assert kernels
    *drawn, logits = kernels
    assert not any(np.array_equal(*pair) for pair in drawn)
    assert not np.any(logits)  # whatever the seed


# ---- rates and counts


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "custom.weights.h5"
    backbones.build(CUSTOM, image_size=(16, 16)).network.save_weights(path)
    return str(path)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_each_block_below_is_slower(decay, weights_file):
    networks = make(mode="full", weights=weights_file, layer_decay=decay)
    networks.all_trained()
    groups = networks.groups(backbone=True)
    blocks = list(networks.backbone.blocks)
    assert paths(groups[0].variables) == paths(v for layer in networks.head for v in layer.weights)
    if decay == 1.0:
        assert [group.multiplier for group in groups] == [1.0, 1.0]
        return
    assert [group.multiplier for group in groups] == [1.0, *(decay**depth for depth in range(len(blocks)))]
    last = {v.path for v in groups[1].variables}
    assert last == {v.path for v in networks.backbone.network.trainable_variables} - {
        v.path for g in groups[2:] for v in g.variables
    }
    first_conv = next(layer for layer in networks.backbone.network.layers if layer.weights)
    assert first_conv.weights[0].path in {v.path for v in groups[-1].variables}
    assert len({id(group.optimizer) for group in groups}) == len(groups)


def test_new_weights_have_one_rate():
    networks = make(mode="full", weights="none", layer_decay=0.5)
    networks.all_trained()
    assert [group.multiplier for group in networks.groups(backbone=True)] == [1.0, 1.0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_kernels_decay(optimizer):
    networks = make(optimizer=optimizer, weight_decay=0.5)
    network = networks.partly_trained()
    before = {v.path: v.numpy() + 1 for v in network.trainable_variables}
    for v in network.trainable_variables:
        v.assign(before[v.path])
    for group in networks.groups(backbone=True):
        group.optimizer.build(group.variables)
        group.optimizer.apply([tf.zeros(v.shape) for v in group.variables])
    decayed = {v.path for v in network.trainable_variables if not np.array_equal(v.numpy(), before[v.path])}
    assert decayed == {v.path for v in network.trainable_variables if v.path.endswith("kernel")}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("way", ["frozen", "partly_trained", "all_trained"])
def test_the_table_of_parameters_counts_each_once(backbone, way):
    networks = make(backbone)
    network = getattr(networks, way)()
    lines = networks.parameters(network.trainable_variables)
    assert [line.block for line in lines] == [*networks.backbone.blocks, "head"]
    assert sum(line.num_trained + line.num_frozen for line in lines) == network.count_params()
    assert sum(line.num_trained for line in lines) == sum(v.value.numpy().size for v in network.trainable_variables)
    assert lines[-1].num_frozen == 0
    if way == "frozen":
        assert not any(line.num_trained for line in lines[:-1])


# ---- the result


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_classifier_is_what_was_trained(backbone, precision, tmp_path):
    networks = make(backbone, precision, hidden=(6,), dropout=0.3)
    trained = networks.partly_trained()
    for variable in networks.head[-1].trainable_variables:
        variable.assign(variable + 0.25)
    with arithmetic.exact():
        logits = trained(IMAGES, training=False)
        model = networks.classifier()
        found = model(IMAGES, training=False).numpy()
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(found, keras.ops.softmax(logits), atol=1e-6 if precision == "float32" else 0.05)
    assert np.ptp(found, axis=0).max() > 1e-3
    assert {layer.compute_dtype for layer in flat(model)} == {"float32"}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(classifiers.load(tmp_path).predict(IMAGES), found, atol=1e-6)
    assert keras.config.dtype_policy().name == "float32"


def flat(model):
    return [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.layers.InputLayer)]


def test_training_in_bfloat16_computes_in_bfloat16():
    networks = make(precision="mixed_bfloat16")
    assert networks.backbone.network.output.dtype == "bfloat16"
    assert networks.front.output.dtype == "bfloat16"
    assert {weight.dtype for weight in networks.frozen().weights} == {"float32"}


@pytest.mark.parametrize(
    ("backbone", "after", "shape"),
    [
        (CUSTOM, "inception_a", (4, 4, 32)),
        (CUSTOM, "stem", (4, 4, 16)),
        ("lenet", "block1_conv", (16, 16, 32)),
        ("lenet", "block1", (8, 8, 32)),
        ("custom_backbone:unnamed", "block1", (16, 16, 4)),
    ],
)
def test_a_feature_layer_cuts_the_rest_away_and_weights_stay_in_order(backbone, after, shape):
    networks = make(backbone, feature_layer=after, mode="bottleneck")
    assert networks.backbone.network.output_shape[1:] == shape
    full = keras.ops.softmax(networks.frozen()(IMAGES, training=False))
    np.testing.assert_allclose(networks.classifier()(IMAGES), full, atol=1e-6)
    assert np.ptp(full) > 0
    lines = networks.parameters(networks.frozen().trainable_variables)
    assert sum(line.num_trained + line.num_frozen for line in lines) == networks.frozen().count_params()


def test_fine_tuning_of_what_is_left():
    networks = make(feature_layer="inception_a")
    assert list(networks.backbone.blocks)[-1] == "inception_a"
    features = networks.front(networks.preprocessing(IMAGES))
    np.testing.assert_allclose(
        networks.partly_trained_on_features()(features), networks.partly_trained()(IMAGES), rtol=1e-5, atol=1e-6
    )


def test_grey():
    networks = make("lenet", grey=True)
    assert networks.backbone.network.input_shape == (None, 16, 16, 1)
    expected = keras.ops.softmax(networks.frozen()(IMAGES))
    np.testing.assert_allclose(networks.classifier()(IMAGES), expected, atol=1e-6)


def test_an_unknown_feature_layer():
    with pytest.raises(ValueError, match="cannot be cut after 'mixed7'"):
        make(feature_layer="mixed7")


def test_a_recipe_must_be_complete():
    with pytest.raises(ValueError, match="image_size"):
        Networks(Recipe(backbone="lenet", mode="scratch"), NAMES, "float32", tf.distribute.get_strategy())
