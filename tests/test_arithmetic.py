"""What training computes in, and that all else computes in true float32 whatever the process is set to."""

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import picture, write
from evaluation_fixtures import CLASS_NAMES, build_pictures, make_classifier

import tfpipe
from tfpipe.pipeline import arithmetic
from tfpipe.serving.answers import Answers
from tfpipe.serving.models import Model


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
def test_many_threads_find_what_they_asked_for_and_none_is_kept_out(before):
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
    build_pictures(root, {"test": dict.fromkeys(CLASS_NAMES, 3), "val": dict.fromkeys(CLASS_NAMES, 2)})
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


def evaluating(model, shards, folder):
    tfpipe.evaluate(model, shards, "test", folder, calibrate="val", report=False, progress=False)


def predicting(model, shards, folder):
    tfpipe.predict(model, [shards], folder / "table.csv", split="test", progress=False)


def extracting(model, shards, folder):
    from tfpipe.transfer import features
    from tfpipe.transfer.pictures import Pictures

    network, preprocessing = model.model.get_layer("frozen").network, model.model.get_layer("preprocessing")
    pictures = Pictures(shards, "test", (8, 8))
    rows = features.extract(folder, network, preprocessing, pictures, view=None, progress=False).rows(np.arange(9))
    images = features.sample(pictures, None)
    features.check_frozen(rows, images, lambda pixels: network(preprocessing(pixels), training=True))


def specification_of(model):
    from tfpipe.exporting.exporter import _specify

    return _specify(model, 2, 10**6)


def frozen(model, shards, folder):
    from tfpipe.exporting import freezing

    graph = freezing.FrozenGraph(freezing.freeze_images(model, specification_of(model)), folder / "frozen.pb")
    graph(image=PIXELS)
    graph.classify(PIXELS)


def comparing(model, shards, folder):
    """All that parity asks: the model, a frozen graph in the process' own function, and the Keras file."""
    from tfpipe.exporting import freezing, parity, parity_process, specimens

    path = folder / "frozen.pb"
    path.write_bytes(freezing.to_bytes(freezing.freeze_images(model, specification_of(model))))
    model.model.save(folder / "model.keras")
    files = {"frozen": parity.ExportedFile("frozen", path), "keras": parity.ExportedFile("keras", folder / "model.keras")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "_ask", parity_process.answer)
        patch.setattr(arithmetic, "has_tf32", lambda: False)
        rows = parity.compare(model, specification_of(model), files, specimens.make()[:3])
    assert {row.difference for row in rows if row.device == "CPU"} == {0.0}


def rounding_cost(model, shards, folder):
    from tfpipe.exporting import rounding

    rounding.measure_cost(model, model, shards, "test")


def wrapping_it(model, shards, folder):
    import keras

    from tfpipe.exporting.wrapping import wrap

    network = keras.Sequential([model.model.get_layer("frozen").network, keras.layers.GlobalAveragePooling2D()])
    wrap(network, class_names=[*"abcdefgh"], outputs="logits")


def explaining(model, shards, folder):
    from tfpipe.transfer.explanation import explain

    explain(model, PIXELS, [0, 1])


def asking_an_artefact(model, shards, folder):
    from tfpipe.exporting.predictors import Artefact

    Artefact(specification_of(model), Foreign(model).predict).predict(PIXELS)


@pytest.mark.tf
@pytest.mark.parametrize(
    "compute",
    [
        lambda model, *_: model.predict(PIXELS),
        lambda model, *_: model.predict_with_features(PIXELS),
        lambda model, *_: Model(model).predict(PIXELS),
        lambda model, *_: Answers(model).answer(str(write(_[1] / "a.png", picture(0, format="PNG")))),
        evaluating,
        lambda model, *_: evaluating(Foreign(model), *_),
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
