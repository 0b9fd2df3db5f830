"""What training computes in, and that all else computes in true float32 whatever the process is set to."""

import contextlib
import dataclasses
import itertools
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_image, write
from evaluation_fixtures import CLASS_NAMES, build_images, make_classifier
from export_fixtures import exported
from transfer_fixtures import colours

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.models import classifiers
from tfpipe.networks import arithmetic
from tfpipe.page.answers import Answers
from tfpipe.prediction.models import Model

__all__ = ["colours", "exported"]  # fixtures


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends to be one: machine(gpus=[...], cpu=text of /proc/cpuinfo or None)."""

    def pretend(gpus=(), cpu=None):
        path = tmp_path / "cpuinfo"
        if cpu is not None:
            path.write_text(cpu, "utf-8")
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
        monkeypatch.setattr(arithmetic, "gpu_capabilities", lambda: list(gpus))
        monkeypatch.setattr(arithmetic, "cpu_flags", lambda flags=arithmetic.cpu_flags: flags(path))

    return pretend


def core(*flags):
    return f"processor\t: 0\nmodel name\t: amx_bf16 avx512_bf16\nflags\t\t: fpu {' '.join(flags)}\nbugs\t\t: spectre\n\n"


@pytest.mark.parametrize(
    ("cpu", "policy", "word"),
    [
        (core("avx512f", "amx_bf16", "avx512_bf16"), "mixed_bfloat16", "AMX"),
        (core("avx512f", "avx512_bf16"), "mixed_bfloat16", "AVX512-BF16"),
        (core("avx2", "avx512f"), "float32", "no bfloat16"),
        (core("amx_bf16_other", "xavx512_bf16"), "float32", "no bfloat16"),
        (core("avx512_bf16") + core("avx2"), "float32", "no bfloat16"),  # some cores have it, some not
        ("Features\t: fp asimd bf16\n", "float32", "no bfloat16"),
        ("", "float32", "no bfloat16"),
        (None, "float32", "no bfloat16"),
    ],
)
def test_processors(machine, cpu, policy, word):
    machine(cpu=cpu)
    chosen, reason = arithmetic.choose("auto")
    assert chosen == policy
    assert word in reason


@pytest.mark.parametrize(
    ("gpus", "policy", "word"),
    [
        ([(8, 0)], "mixed_bfloat16", "8.0"),
        ([(9, 0), (10, 1)], "mixed_bfloat16", "8.0"),
        ([(7, 5)], "float32", "7.5"),
        ([(9, 0), (7, 5)], "float32", "7.5, 9.0"),
        ([None], "float32", "unknown"),
    ],
)
def test_gpus_go_before_the_processor(machine, gpus, policy, word):
    for cpu in (core("amx_bf16"), core("avx2")):
        machine(gpus=gpus, cpu=cpu)
        chosen, reason = arithmetic.choose("auto")
        assert chosen == policy
        assert word in reason


def test_without_onednn_the_processors_bfloat16_is_not_used(machine, monkeypatch):
    machine(cpu=core("amx_bf16"))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    chosen, reason = arithmetic.choose("auto")
    assert chosen == "float32"
    assert "TF_ENABLE_ONEDNN_OPTS=0" in reason


@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16"])
def test_a_name_is_taken_on_any_machine(machine, name):
    for gpus in ([], [(7, 0)], [(9, 0)]):
        machine(gpus=gpus)
        assert arithmetic.choose(name) == (name, "asked for")


@pytest.mark.parametrize(
    ("name", "message"), [("mixed_float16", "loss scaling"), ("bfloat16", "got 'bfloat16'"), ("", "got ''")]
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        arithmetic.choose(name)


@pytest.mark.tf
def test_this_machine_has_a_policy_that_keras_knows():
    import keras

    policy, reason = arithmetic.choose("auto")
    assert policy in arithmetic.PRECISIONS
    assert keras.DTypePolicy(policy).variable_dtype == "float32"
    assert reason


def test_tf32_needs_gpus_that_have_it(machine):
    machine(gpus=[(8, 0), (9, 0)])
    assert arithmetic.choose("tf32") == ("tf32", "asked for")
    assert arithmetic.policy("tf32") == "float32"
    for gpus, here in (([], "no GPU"), ([(7, 5)], "7.5"), ([(9, 0), (7, 0)], "7.0, 9.0"), ([None], "unknown")):
        machine(gpus=gpus)
        with pytest.raises(ValueError, match=rf"tf32 needs GPUs of compute capability 8.0 or higher \(here: {here}\)"):
            arithmetic.choose("tf32")


# ---- TF32: the flag is TensorFlow's, one for the process


def is_tf32():
    import tensorflow as tf

    return tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.fixture(params=[True, False], ids=["tf32", "no_tf32"])
def before(request):
    """What the process is set to: the flag is to be that again after each test."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(request.param)
    yield request.param
    found = is_tf32()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    assert found == request.param


@pytest.mark.tf
def test_the_flag_is_set_inside_and_put_back(before):
    for tf32 in (True, False):
        with arithmetic.computing(tf32=tf32):
            assert is_tf32() is tf32
            with arithmetic.computing(tf32=tf32):
                assert is_tf32() is tf32
            with arithmetic.computing(tf32=not tf32):
                assert is_tf32() is not tf32
            assert is_tf32() is tf32
        assert is_tf32() is before


@pytest.mark.tf
def test_the_flag_is_put_back_after_an_error(before):
    with pytest.raises(ZeroDivisionError), arithmetic.exact(), arithmetic.computing(tf32=True), arithmetic.exact():
        raise ZeroDivisionError
    assert is_tf32() is before
    with arithmetic.computing(tf32=True), pytest.raises(ZeroDivisionError), arithmetic.exact():
        raise ZeroDivisionError
    assert is_tf32() is before


@pytest.mark.tf
def test_threads_share_what_is_the_same_and_wait_for_what_is_not(before):
    first, second, third = threading.Event(), threading.Event(), threading.Event()
    order = []

    def share():
        with arithmetic.exact():
            first.set()
            second.wait(60)
        order.append("exact")

    def wait():
        with arithmetic.computing(tf32=True):
            order.append("tf32")
            assert is_tf32()
            third.wait(60)

    with ThreadPoolExecutor(2) as pool:
        sharing = pool.submit(share)
        first.wait(60)
        waiting = pool.submit(wait)
        time.sleep(0.05)
        assert not is_tf32()
        assert order == []
        second.set()
        sharing.result(60)
        while "tf32" not in order:
            time.sleep(0.01)
        assert is_tf32()
        third.set()
        waiting.result(60)
    assert order == ["exact", "tf32"]
    assert is_tf32() is before


@pytest.mark.tf
def test_many_threads_find_what_they_requested_and_none_is_kept_out(before):
    def ask(number):
        tf32 = number % 3 == 0
        for _ in range(100):
            with arithmetic.computing(tf32=tf32):
                assert is_tf32() is tf32
                with arithmetic.computing(tf32=not tf32) if number % 2 else contextlib.nullcontext():
                    assert is_tf32() is (tf32 != bool(number % 2))
                assert is_tf32() is tf32
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8), timeout=100)) == list(range(8))
    assert is_tf32() is before


@pytest.mark.tf
def test_who_waits_is_not_kept_out_by_two_that_take_turns(before):
    stop, count = threading.Event(), itertools.count()

    def hold():
        while not stop.is_set():
            with arithmetic.exact():
                next(count)
                time.sleep(0.001)

    with ThreadPoolExecutor(2) as pool:
        holders = [pool.submit(hold) for _ in range(2)]
        while next(count) < 10:
            time.sleep(0.001)
        begun = next(count)
        with arithmetic.computing(tf32=True):
            assert next(count) < begun + 20
        stop.set()
        for holder in holders:
            holder.result(60)


# ---- who computes in true float32


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    build_images(root, {"test": dict.fromkeys(CLASS_NAMES, 3), "val": dict.fromkeys(CLASS_NAMES, 2)})
    return root / "shards"


@pytest.fixture(scope="module")
def noting():
    """A classifier that takes note of the flag whenever its convolution is computed, and its notes."""
    import keras
    import tensorflow as tf

    seen = []

    def note(values):
        seen.append(is_tf32())
        return values

    @keras.saving.register_keras_serializable("test_arithmetic")
    def noted(values):
        return tf.ensure_shape(tf.numpy_function(note, [keras.ops.tanh(values)], values.dtype), values.shape)

    classifier = make_classifier()
    classifier.model.get_layer("frozen").network.get_layer("convolution").activation = noted
    return classifier, seen


class Foreign:
    """A model of another program, whose `predict` knows nothing of arithmetic."""

    def __init__(self, classifier):
        self.class_names, self.image_size = classifier.class_names, classifier.image_size
        self.resize, self.sha256, self.model = "stretch", "f" * 64, classifier.model

    def predict(self, images):
        return self.model(images, training=False).numpy()


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


def evaluating(model, shards, folder, calibrate="val"):
    tfpipe.evaluate(model, shards, "test", folder, calibrate=calibrate, report=False, progress=False)


def predicting(model, shards, folder):
    tfpipe.predict(model, [shards], folder / "table.csv", split="test", progress=False)


def extracting(model, shards, folder):
    from tfpipe.models import features
    from tfpipe.models.split_images import SplitImages

    network, preprocessing = model.model.get_layer("frozen").network, model.model.get_layer("preprocessing")
    split_images = SplitImages(shards, "test", (8, 8))
    rows = features.extract(folder, network, preprocessing, split_images, view=None, progress=False).rows(np.arange(9))
    images = features.sample(split_images, None)
    features.check_frozen(rows, images, lambda pixels: network(preprocessing(pixels), training=True))


def specification_of(model):
    from tfpipe.exporting.exporter import _specify

    return _specify(model, 2, 10**6)


def frozen(model, shards, folder):
    from tfpipe.formats import frozen_graph

    graph = frozen_graph.FrozenGraph(frozen_graph.freeze_images(model, specification_of(model)), folder / "frozen.pb")
    graph(image=PIXELS)
    graph.classify(PIXELS)


def comparing(model, shards, folder):
    """All that parity asks: the model, a frozen graph in the process' own function, and the Keras file."""
    from tfpipe.exporting import parity, parity_process, reference_images
    from tfpipe.formats import frozen_graph

    path = folder / "frozen.pb"
    path.write_bytes(frozen_graph.to_bytes(frozen_graph.freeze_images(model, specification_of(model))))
    model.model.save(folder / "model.keras")
    files = {"frozen": parity.ExportedFile("frozen", path), "keras": parity.ExportedFile("keras", folder / "model.keras")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "_run_process", parity_process.run_all)
        patch.setattr(arithmetic, "has_tf32", lambda: False)
        rows = parity.compare(model, specification_of(model), files, reference_images.make()[:3])
    assert {row.difference for row in rows if row.device == "CPU"} == {0.0}


def rounding_cost(model, shards, folder):
    from tfpipe.exporting import half_precision

    half_precision.measure_cost(model, model, shards, "test")


def wrapping_it(model, shards, folder):
    import keras

    from tfpipe.exporting.wrapping import wrap

    network = keras.Sequential([model.model.get_layer("frozen").network, keras.layers.GlobalAveragePooling2D()])
    wrap(network, class_names=[*"abcdefgh"], outputs="logits")


def explaining(model, shards, folder):
    from tfpipe.models.explanation import explain

    explain(model, PIXELS, [0, 1])


def asking_an_artefact(model, shards, folder):
    from tfpipe.formats.exported_model import ExportedModel

    ExportedModel(specification_of(model), Foreign(model).predict).predict(PIXELS)


@pytest.mark.tf
@pytest.mark.parametrize(
    "compute",
    [
        lambda model, *_: model.predict(PIXELS),
        lambda model, *_: model.predict_with_features(PIXELS),
        lambda model, *_: Model(model).predict(PIXELS),
        lambda model, *_: Answers(model).answer(str(write(_[1] / "a.png", make_image(0, format="PNG")))),
        evaluating,
        lambda model, *_: evaluating(Foreign(model), *_, calibrate=None),
        predicting,
        lambda model, *_: predicting(Foreign(model), *_),
        explaining,
        extracting,
        frozen,
        asking_an_artefact,
        comparing,
        rounding_cost,
        wrapping_it,
    ],
)
def test_what_is_not_training_computes_in_true_float32(noting, shards, tmp_path, compute):
    classifier, seen = noting
    seen.clear()
    assert is_tf32()
    compute(classifier, shards, tmp_path)
    assert set(seen) == {False}
    assert is_tf32()


@pytest.mark.tf
@pytest.mark.parametrize(
    ("before", "precision", "mode"),
    [(True, "float32", {"mode": "bottleneck", "solver": "gradient"}), (False, "tf32", {"mode": "scratch"})],
    indirect=["before"],
)
def test_training_computes_in_what_it_promises(colours, tmp_path, monkeypatch, before, precision, mode):
    import tensorflow as tf

    from tfpipe.training import steps

    count, seen, lines = steps.Steps._count_correct, [], []

    def note(correct):
        seen.append(is_tf32())
        return correct

    def noted(*values):
        return tf.ensure_shape(tf.numpy_function(note, [count(*values)], tf.float32), [])

    def report(line):
        lines.append(line)
        assert is_tf32() is before  # as the caller left it

    monkeypatch.setattr(steps.Steps, "_count_correct", noted)
    monkeypatch.setattr(arithmetic, "has_tf32", lambda: True)
    network = {"backbone": "lenet", "weights": "none", "image_size": (16, 16), "epochs": 1}
    options = {"precision": precision, "deterministic": False, "tensorboard": False, "progress": False}
    tfpipe.train(colours, tmp_path / "run", log=report, **network, **mode, **options)
    assert set(seen) == {precision == "tf32"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["precision"] == precision
    assert f"precision={precision}: asked for" in lines


# ---- what is not float32 is noticed


def make_rounded():
    """The classifier of `make_classifier`, but its convolution has factors of bfloat16's 8 bits: TF32 has 11."""
    import tensorflow as tf

    classifier = make_classifier()
    convolution = classifier.model.get_layer("frozen").network.get_layer("convolution")
    multiply = convolution.convolution_op

    def rounded(*factors):
        return multiply(*(tf.cast(tf.cast(factor, tf.bfloat16), tf.float32) for factor in factors))

    convolution.convolution_op = rounded
    return classifier


@pytest.mark.tf
def test_products_of_fewer_bits_are_refused_by_parity(tmp_path, monkeypatch):
    from tfpipe.exporting import formats, parity, parity_process, reference_images

    monkeypatch.setattr(parity, "_run_process", parity_process.run_all)
    right = make_classifier()
    wrong, specification = make_rounded(), specification_of(right)
    monkeypatch.setattr(arithmetic, "places", lambda: {"CPU": "/CPU:0", "NVIDIA A": "/CPU:0"})
    for writer, devices in (("pb", {"CPU", "NVIDIA A"}), ("tflite", {"CPU"})):
        written = formats.WRITERS[writer](formats.Work(wrong, specification, tmp_path, False))
        rows = parity.compare(right, specification, written, reference_images.make()[:3])
        assert {row.device for row in rows} == devices
        for device in devices:
            with pytest.raises(DataError, match=r"differs at its (features|probabilities)"):
                parity.check([row for row in rows if row.device == device])


@pytest.mark.tf
def test_products_of_fewer_bits_are_refused_by_the_check_of_frozen_layers():
    from tfpipe.models import features

    right = make_classifier()
    network, coarse = (model.model.get_layer("frozen").network for model in (right, make_rounded()))
    preprocessing = right.model.get_layer("preprocessing")
    expected = features.computation(network, preprocessing, (8, 8))(PIXELS)
    features.check_frozen(expected, PIXELS, lambda images: network(preprocessing(images), training=True))
    with pytest.raises(DataError, match="frozen layers give other features"):
        features.check_frozen(expected, PIXELS, lambda images: coarse(preprocessing(images), training=True))


# ---- what results say of it


@pytest.mark.tf
def test_features_of_a_gpu_are_others_and_those_of_a_cpu_are_found_again(shards, monkeypatch):
    from tfpipe.models import features
    from tfpipe.models.split_images import SplitImages

    classifier = make_classifier()
    network, preprocessing = classifier.model.get_layer("frozen").network, classifier.model.get_layer("preprocessing")
    found = []
    for device in ("CPU", "NVIDIA A", "NVIDIA B"):
        monkeypatch.setattr(arithmetic, "device", lambda device=device: device)
        found.append(features.describe(network, preprocessing, SplitImages(shards, "test", (8, 8)), None))
    assert "device" not in found[0]  # as caches that were made before have it
    assert [one.get("device") for one in found[1:]] == ["NVIDIA A", "NVIDIA B"]


@pytest.mark.tf
def test_a_receipt_names_every_device_that_readers_computed_on(shards, tmp_path, monkeypatch):
    classifier, options = make_classifier(), {"report": False, "progress": False}
    gpu = {"device": "NVIDIA of another machine", "arithmetic": "float32"}
    kinds = [classifier.computation, gpu, arithmetic.UNKNOWN]
    tfpipe.evaluate(classifier, shards, "test", tmp_path, shard=(0, 3), **options)
    monkeypatch.setattr(arithmetic, "device", lambda: gpu["device"])
    tfpipe.evaluate(classifier, shards, "test", tmp_path, shard=(1, 3), **options)
    binding = tmp_path / "parts" / "predictions-00001-of-00003.json"
    before = json.loads(binding.read_text())
    assert before.pop("computed") == gpu
    binding.write_text(json.dumps(before))  # as an earlier version wrote it
    found = tfpipe.evaluate(classifier, shards, "test", tmp_path, shard=(2, 3), **options)
    assert found.receipt["computed"] == sorted(kinds, key=lambda one: one["device"])
    assert json.loads((tmp_path / "receipt.json").read_text()) == found.receipt
    assert classifiers.computation_of(Foreign(classifier)) == arithmetic.UNKNOWN


@pytest.mark.tf
def test_parity_has_rows_for_each_device_and_tells_what_tf32_costs(noting, tmp_path, monkeypatch):
    from tfpipe.exporting import formats, model_card, parity, parity_process, reference_images
    from tfpipe.exporting.exporter import _described

    classifier, seen = noting
    specification = specification_of(classifier)
    monkeypatch.setattr(parity, "_run_process", parity_process.run_all)
    monkeypatch.setattr(arithmetic, "places", lambda: {"CPU": "/CPU:0", "NVIDIA A": "/CPU:0"})
    monkeypatch.setattr(arithmetic, "has_tf32", lambda: True)
    written = formats.WRITERS["pb"](formats.Work(classifier, specification, tmp_path, False))
    seen.clear()
    rows = parity.compare(classifier, specification, written, reference_images.make()[:3], tolerance=1e-4)
    assert set(seen) == {False, True}
    assert is_tf32()
    kinds = {name: {(row.device, row.arithmetic) for row in rows if row.artefact == name} for name in written}
    on_cpu, on_gpu = {("CPU", "float32")}, {("NVIDIA A", "float32"), ("NVIDIA A", "tf32")}
    assert kinds["frozen_image.pb"] == kinds["frozen_bytes.pb"] == on_cpu | on_gpu
    assert {row.stage for row in rows if row.arithmetic == "tf32"} == {"probabilities"}
    far = [dataclasses.replace(row, difference=1e-3) if row.arithmetic == "tf32" else row for row in rows]
    parity.check(far)
    card = model_card.render(specification, parity=[_described(row) for row in far])
    assert re.search(r"frozen_image\.pb \| image\.probabilities \| NVIDIA A, tf32 \| 0\.001 \| any", card)


@pytest.mark.tf
def test_the_arithmetic_of_a_model_is_that_of_its_products(tmp_path):
    import keras

    from tfpipe.exporting.wrapping import wrap
    from tfpipe.formats import frozen_graph

    for policy, expected in (("float32", "float32"), ("mixed_bfloat16", "bfloat16")):
        network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, dtype=policy)])
        model = wrap(network, class_names=["a", "b"], outputs="logits")
        assert model.computation == {"device": arithmetic.device(), "arithmetic": expected}
        graph = frozen_graph.freeze_images(model, specification_of(model))
        assert frozen_graph.FrozenGraph(graph, "x").products == {expected}


@pytest.mark.tf
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_a_graph_made_where_keras_sees_a_gpu_runs_on_a_cpu(monkeypatch, tmp_path, kind):
    import keras

    from tfpipe.exporting.wrapping import wrap
    from tfpipe.formats import frozen_graph

    layer = getattr(keras.layers, kind)(4)
    network = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Reshape((4, 12)), layer, keras.layers.Dense(2)])
    expected = wrap(network, class_names=["a", "b"], outputs="logits").predict(PIXELS[:, :4, :4])
    model = wrap(network, class_names=["a", "b"], outputs="logits")
    monkeypatch.setattr(sys.modules["keras.src.backend.tensorflow.rnn"], "_is_gpu_available", lambda: True)
    np.testing.assert_array_equal(model.predict(PIXELS[:, :4, :4]), expected)
    graph = frozen_graph.FrozenGraph(frozen_graph.freeze_images(model, specification_of(model)), tmp_path)
    np.testing.assert_array_equal(graph.classify(PIXELS[:, :4, :4]), expected)
    assert layer.use_cudnn == "auto"  # as its owner left it


# ---- on a GPU


@pytest.mark.tf
@pytest.mark.gpu
def test_on_a_gpu_probabilities_are_those_of_the_cpu_but_for_rounding():
    import tensorflow as tf

    model = make_classifier(size=(32, 32))
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    with tf.device("/CPU:0"):
        expected = model.predict(images)
    for size in (1, 7, 64):
        found = np.concatenate([model.predict(images[first : first + size]) for first in range(0, 64, size)])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with arithmetic.computing(tf32=True):
        unlike = model.answer(images)["probabilities"].numpy()
    assert (np.abs(unlike - expected).max() > 1e-5) == arithmetic.has_tf32()  # or the flag would be of no effect


@pytest.mark.tf
@pytest.mark.gpu
def test_on_a_gpu_files_are_compared_there_too(exported):
    rows = exported.export.parity
    files = {(row.artefact, row.device, row.arithmetic) for row in rows}
    gpu = arithmetic.device()
    assert gpu not in ("CPU", "GPU")
    for name in ("saved_model", "frozen_image.pb", "frozen_bytes.pb", "model.keras"):
        assert files >= {(name, "CPU", "float32"), (name, gpu, "float32")}
    assert {device for name, device, _ in files if name.endswith(".tflite")} == {"CPU"}
    if arithmetic.has_tf32():
        assert max(row.difference for row in rows if row.arithmetic == "tf32") > 1e-5
