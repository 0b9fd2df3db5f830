"""Cuts of networks: the parts make the whole, cut points are what their definition says, hashes outlive the session."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import CHECKOUT
from custom_backbone import small_inception, unnamed
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpipe.networks.submodels import cut, cut_points, find_dependents, find_layers, hash_network

pytestmark = pytest.mark.tf

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")


def randomised(network, seed=0):
    """All weights random, BatchNorm's statistics and biases included: fresh ones hide a lost layer."""
    drawn = np.random.default_rng(seed)
    network.set_weights([drawn.uniform(0.1, 1, weight.shape) for weight in network.get_weights()])
    return network


# A graph as lists: the n-th layer behind the input reads the layers listed, 0 being the input.
@st.composite
def graphs(draw):
    reads = []
    for index in range(draw(st.integers(1, 7))):
        sources = st.sets(st.integers(max(0, index - 2), index), min_size=1, max_size=2)
        reads.append(sorted(draw(sources)))
    return reads


def network_of(reads):
    """Elementwise layers are enough: only the shape of the graph matters. Dead ends are no part of a network."""
    tensors = [keras.Input((3,), name="input")]
    for index, sources in enumerate(reads, start=1):
        value = tensors[sources[0]] if len(sources) == 1 else None
        layer = keras.layers.Rescaling(1.0 + index, name=f"n{index}") if len(sources) == 1 else None
        tensors.append(layer(value) if layer else keras.layers.Add(name=f"n{index}")([tensors[s] for s in sources]))
    return keras.Model(tensors[0], tensors[-1])


def edges_of(reads):
    alive = {len(reads)}
    for index in range(len(reads), 0, -1):
        if index in alive:
            alive.update(reads[index - 1])
    return alive, [(source, index) for index in alive if index for source in reads[index - 1]]


def reachable(start, edges, without=None):
    found, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node != without and node not in found:
            found.add(node)
            waiting += [target for source, target in edges if source == node]
    return found


@settings(max_examples=60)
@given(graphs())
def test_cut_points_are_what_no_way_from_input_to_output_avoids(reads):
    alive, edges = edges_of(reads)
    output = len(reads)
    expected = [f"n{node}" for node in sorted(alive) if node and output not in reachable(0, edges, without=node)]
    assert cut_points(network_of(reads)) == expected


@settings(max_examples=30)
@given(graphs(), st.data())
def test_dependents_are_what_can_be_reached(reads, data):
    alive, edges = edges_of(reads)
    node = data.draw(st.sampled_from(sorted(alive - {0})))
    assert find_dependents(network_of(reads), [f"n{node}"]) == {f"n{found}" for found in reachable(node, edges)}


def test_a_residual_block_is_cut_around_and_not_inside():
    network = network_of([[0], [1], [1, 2], [3]])
    assert cut_points(network) == ["n1", "n3", "n4"]
    with pytest.raises(ValueError, match=r"'n2': something after it reads past it.*n1, n3, n4"):
        cut(network, "n2")


def test_unknown_layers_and_the_input_are_not_cut_points():
    network = network_of([[0], [1]])
    with pytest.raises(ValueError, match="no such layer"):
        cut(network, "n7")
    with pytest.raises(ValueError, match="'input'"):
        cut(network, "input")


def test_a_layer_that_is_called_twice_is_not_a_cut_point():
    shared = keras.layers.Dense(3, name="shared")
    images = keras.Input((3,))
    network = keras.Model(images, keras.layers.ReLU(name="last")(shared(keras.layers.ReLU(name="between")(shared(images)))))
    assert cut_points(network) == ["between", "last"]
    front, back = cut(network, "between")
    values = IMAGES[0, 0]
    np.testing.assert_array_equal(back(front(values)), network(values))


@pytest.mark.parametrize("make", [small_inception, unnamed])
def test_the_parts_make_the_whole(make):
    network = randomised(make((16, 16, 3)))
    expected = network(IMAGES).numpy()
    assert np.ptp(expected) > 0
    points = cut_points(network)
    assert len(points) > 4
    for point in points:
        front, back = cut(network, point)
        np.testing.assert_array_equal(back(front(IMAGES)), expected, err_msg=point)
        assert len(front.weights) + len(back.weights) == len(network.weights)


def test_parts_can_be_cut_again():
    network = randomised(small_inception((16, 16, 3)))
    expected = network(IMAGES).numpy()
    front, back = cut(network, "stem")
    assert cut_points(front) == cut_points(network)[: len(cut_points(front))]
    assert cut_points(back) == cut_points(network)[len(cut_points(front)) :]
    middle, last = cut(back, "reduction")
    np.testing.assert_array_equal(last(middle(front(IMAGES))), expected)
    first, _ = cut(network, "reduction")  # and cutting left the whole as it was
    np.testing.assert_array_equal(first(IMAGES), middle(front(IMAGES)))


def test_parts_share_weights_with_the_whole():
    network = randomised(small_inception((16, 16, 3)))
    _, back = cut(network, "reduction")
    before = network(IMAGES).numpy()
    back.weights[0].assign(back.weights[0] + 1)
    assert not np.array_equal(network(IMAGES), before)


def test_parts_survive_saving(tmp_path):
    _, back = cut(randomised(small_inception((16, 16, 3))), "reduction")
    back.save(tmp_path / "back.keras")
    loaded = keras.saving.load_model(tmp_path / "back.keras")
    values = np.ones((1, *back.input_shape[1:]), "float32")
    np.testing.assert_array_equal(loaded(values), back(values))
    assert hash_network(loaded) == hash_network(back)


def test_layers_come_after_what_they_read():
    order = list(find_layers(small_inception((16, 16, 3))))
    assert order.index("stem") < order.index("inception_a") < order.index("reduction") < order.index("inception_b")
    assert order[-1] == "inception_b"


HASHES = """
import sys; sys.path.insert(0, "tests")
import keras
from test_submodels import randomised, nested
from custom_backbone import small_inception, unnamed
from tfpipe.networks.submodels import hash_network
for _ in range(3): unnamed((8, 8, 3))
print(*[hash_network(randomised(make((16, 16, 3)))) for make in (small_inception, unnamed, nested)])
"""


def nested(input_shape):
    images = keras.Input(input_shape)
    return keras.Model(images, unnamed(input_shape)(keras.layers.Conv2D(3, 1)(images)))


def test_two_processes_agree_whatever_they_built_before():
    command = [sys.executable, "-c", HASHES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=True)
    here = [hash_network(randomised(make((16, 16, 3)))) for make in (small_inception, unnamed, nested)]
    assert done.stdout.split() == here
    assert len(set(here)) == 3


def test_one_changed_weight_changes_the_hash():
    network = randomised(unnamed((16, 16, 3)))
    hashes = {hash_network(network)}
    for weight in network.weights:
        values = weight.numpy()
        values.flat[-1] = np.nextafter(values.flat[-1], np.float32(9))
        weight.assign(values)
        hashes.add(hash_network(network))
    assert len(hashes) == 1 + len(network.weights)


@pytest.mark.parametrize("change", [{"strides": 2}, {"activation": "gelu"}, {"dilation_rate": 2}, {"name": "other"}])
def test_architecture_counts_and_names_do_not(change):
    def made(**options):
        images = keras.Input((8, 8, 3))
        options = {"padding": "same", "activation": "relu", "name": "relu", **options}
        return randomised(keras.Model(images, keras.layers.Conv2D(2, 3, **options)(images)))

    assert (hash_network(made(**change)) == hash_network(made())) == ("name" in change)


def test_the_graph_counts():
    assert hash_network(network_of([[0], [1], [1, 2]])) != hash_network(network_of([[0], [1], [0, 2]]))


def test_freezing_does_not_change_the_hash():
    network = randomised(small_inception((16, 16, 3)))
    before = hash_network(network)
    network.trainable = False
    assert hash_network(network) == before
    network.trainable = True
    network.layers[1].trainable = False
    assert hash_network(network) == before
