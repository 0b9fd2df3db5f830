"""Pixels do not depend on the device: what makes them runs on the CPU, from wherever it is called."""

import ast
import inspect
import re
import subprocess
import sys

import numpy as np
import placement_fixtures
import pytest
import tensorflow as tf
from conftest import CHECKOUT
from placement_fixtures import KEYS, SEEN, STRONG, of_a_record, of_python, of_tensors

import tfpipe
from tfpipe.images import decoders, decoding, resizing, sampling
from tfpipe.images.placement import on_cpu
from tfpipe.pipeline import augmentation, counter_rng, mixing

pytestmark = pytest.mark.tf

# Of the public names, those that make no pixels, or make them in `tf.data` or inside a model.
OTHERS = """Augmentation Comparison DataError Evaluation Export FoldRuns Manifest Model Recipe RejectedImage Run Summary
__version__ build_tfrecords class_weights compare dataset describe evaluate evaluate_folds export grpc_request load
load_frozen load_manifest predict rest_request train train_folds verify"""
MODULES = (augmentation, decoding, counter_rng, mixing, resizing, sampling, decoders)
OTHER_FLOORS = [
    path
    for path in (CHECKOUT / "tfpipe").rglob("*.py")
    if not {"images", "pipeline", "tools"} & set(path.relative_to(CHECKOUT).parts)
]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    return placement_fixtures.build(tmp_path_factory.mktemp("placement"))


def test_every_public_name_is_looked_at(data_set):
    names = {name.split()[0] for name in (*of_tensors(), *of_a_record(data_set), *of_python(data_set))}
    assert names & set(tfpipe.__all__) == set(tfpipe.__all__) - set(OTHERS.split())


def test_nothing_is_computed_on_another_device_that_is_the_callers(data_set):
    code = f"import sys; sys.path[:0] = ['tests']; import placement_fixtures; placement_fixtures.main({str(data_set)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [tuple(line.split(" | ")) for line in done.stdout.splitlines()]
    assert len(found) == 2 * (len(of_tensors()) + len(of_a_record(data_set)) + len(of_python(data_set)) + 1)
    assert [(name, kinds) for _, name, kinds in found if kinds] == [("control", "Mul")] * 2


@pytest.mark.parametrize("name", [*of_tensors(), "parse_example", "parse_batch", "control"])
def test_in_a_graph_every_operation_is_on_the_cpu(data_set, name):
    control = {"control": (tf.square, [1.0])}
    function, given = {**of_tensors(), **of_a_record(data_set), **control}[name]

    def on_gpu(*arguments):
        with tf.device("/GPU:0"):
            return function(*arguments)

    graph = tf.function(on_gpu, autograph=False).get_concrete_function(*map(tf.constant, given)).graph
    assert ({kind for kind, _ in elsewhere(graph)} - {"Const"} != set()) == (name == "control")


def elsewhere(graph):
    """(kind, device) of a graph's operations that are not said to be on the CPU; in its functions, which go with their caller,
    those that are said to be elsewhere."""
    definition = graph.as_graph_def()
    ends = {"Placeholder", "Identity"}  # arguments and results
    yield from ((node.op, node.device) for node in definition.node if "CPU:0" not in node.device and node.op not in ends)
    for function in definition.library.function:
        yield from ((node.op, node.device) for node in function.node_def if node.device and "CPU:0" not in node.device)


def is_placed(function):
    return getattr(function, "__code__", None) is on_cpu(lambda: None).__code__


def makes_tensors(function):
    return inspect.isfunction(function) and "Tensor" in str(inspect.unwrap(function).__annotations__.get("return"))


TAKEN = r"\b{module}\.{name}\(|\btfpipe\.(?:images|pipeline)\.{module} import [\w, ]*\b{name}\b"


def test_what_other_floors_take_from_the_pipeline_is_placed():
    text = "\n".join(path.read_text("utf-8") for path in OTHER_FLOORS)
    taken = {
        function
        for module in MODULES
        for name, function in vars(module).items()
        if makes_tensors(function) and re.search(TAKEN.format(module=module.__name__.split(".")[-1], name=name), text)
    }
    assert {"decode_image", "resize_image", "parse_example", "parse_batch"} <= {function.__name__ for function in taken}
    assert [function.__name__ for function in taken if not is_placed(function)] == []


def test_images_are_computed_by_nobody_else():
    found = {
        f"{path.name}: {function.name}"
        for path in OTHER_FLOORS
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        and re.search(r"\btf\.(image\.|io\.decode_(?!raw))", ast.unparse(function))
        and "on_cpu" not in map(ast.unparse, function.decorator_list)
    }
    assert found == set()
    placed = [path.name for path in OTHER_FLOORS if "@on_cpu" in path.read_text("utf-8")]
    assert sorted(placed) == ["batches.py", "explanation.py", "near_duplicates.py"]


def test_arguments_and_documentation_stay_those_of_the_function():
    assert list(inspect.signature(tfpipe.resize_image).parameters) == ["image", "size", "mode"]
    assert tfpipe.resize_image.__doc__.startswith("Resizes")


# On a GPU, bits


def as_arrays(found):
    return [value.numpy() if tf.is_tensor(value) else value for value in tf.nest.flatten(found)]


def assert_equal_bits(found, expected):
    found, expected = as_arrays(found), as_arrays(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*of_tensors(), "parse_example", "parse_batch"])
def test_on_a_gpu_tensors_are_those_of_tf_data(data_set, name):
    function, given = {**of_tensors(), **of_a_record(data_set)}[name]
    given = [tf.constant(value) for value in given]
    (expected,) = tf.data.Dataset.from_tensors(tuple(given)).map(function)
    assert_equal_bits(function(*given), expected)
    assert_equal_bits(tf.function(function, autograph=False)(*given), expected)
    strategy = tf.distribute.MirroredStrategy(["GPU:0"])
    with strategy.scope():
        assert_equal_bits(function(*given), expected)
        assert_equal_bits(tf.function(function, autograph=False)(*given), expected)
    assert_equal_bits(strategy.run(function, given), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*of_python(CHECKOUT)])
def test_on_a_gpu_arrays_are_those_of_the_cpu(data_set, name):
    call = of_python(data_set)[name]
    with tf.device("/CPU:0"):
        expected = call()
    assert_equal_bits(call(), expected)
    with tf.distribute.MirroredStrategy(["GPU:0"]).scope():
        assert_equal_bits(call(), expected)


@pytest.mark.gpu
def test_on_a_gpu_what_is_replayed_and_seen_is_what_the_dataset_gives(data_set):
    training = tfpipe.dataset(data_set, "train", training=True, first_epoch=2, as_dict=True, batch_size=3, **SEEN)
    (batch,) = training.as_numpy_iterator()
    for key, image in zip(batch["key"], batch["image"], strict=True):
        np.testing.assert_array_equal(tfpipe.replay(data_set, "train", key, epoch=2, **SEEN), image)
    assert sorted(batch["key"]) == sorted(key.encode() for key in KEYS)


@pytest.mark.gpu
def test_on_a_gpu_a_dataset_is_the_same_wherever_it_is_made_and_read(data_set):
    def images():
        data = tfpipe.dataset(data_set, "train", training=True, batch_size=3, as_dict=True, **SEEN)
        return next(iter(data))["image"]

    expected = images()
    with tf.device("/GPU:0"):
        assert_equal_bits(images(), expected)
    strategy = tf.distribute.MirroredStrategy(["GPU:0"])
    with strategy.scope():
        assert_equal_bits(images(), expected)
    data = tfpipe.dataset(data_set, "train", training=True, batch_size=3, **SEEN)
    assert_equal_bits(next(iter(strategy.experimental_distribute_dataset(data)))[0], expected)


@pytest.mark.gpu
def test_a_gpu_does_compute_what_nobody_places():
    # Else the tests above would show nothing.
    product = tf.matmul(tf.ones((2, 2)), tf.ones((2, 2)))
    assert "GPU:0" in product.device
    placed = placement_fixtures.tfpipe.augment_image.__wrapped__(
        tf.constant(placement_fixtures.NOISE), (40, 56), STRONG, key="a", seed=0, epoch=0
    )
    assert "GPU:0" in placed.device
