"""Training as users start it: modes, what a stop costs, what is refused."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import transfer_fixtures
from conftest import CHECKOUT
from transfer_fixtures import *  # noqa: F403 (fixtures)
from transfer_fixtures import SMALL, run, summary_of

import tfpipe
from tfpipe import Recipe, train
from tfpipe.common.errors import DataError
from tfpipe.models import classifiers
from tfpipe.networks import objectives
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.training import checkpoints, loop, runs
from tfpipe.training.logs.run_log import read_history
from tfpipe.training.steps import RateGroup, Steps

pytestmark = pytest.mark.tf

TUNED = dataclasses.replace(SMALL, mode="finetune", unfreeze=("second_conv",), finetune_epochs=2, finetune_learning_rate=1e-3)


@pytest.fixture(autouse=True)
def _deterministic():
    yield
    tf.config.experimental.enable_op_determinism()  # what the first run switched on stays on, for all tests alike


def weights_of(folder):
    return classifiers.load(folder).model.get_weights()


# ---- modes


@pytest.mark.parametrize("mode", ["scratch", "bottleneck", "frozen", "finetune", "full"])
def test_each_mode_trains_what_it_promises(colours, finished, mode):
    folder = finished(TUNED if mode == "finetune" else dataclasses.replace(SMALL, mode=mode))
    summary, lines = summary_of(folder), (folder.parent / "lines").read_text("utf-8").splitlines()
    assert [phase["phase"] for phase in summary["phases"]] == {
        "scratch": ["scratch"],
        "bottleneck": ["head"],
        "frozen": ["head"],
        "finetune": ["head", "finetune"],
        "full": ["full"],
    }[mode]
    last = summary["phases"][-1]
    first, second, head = 3 * 3 * 3 * 6 + 6, 3 * 3 * 6 * 8 + 8, 8 * 8 + 8 + 8 * 3 + 3
    norms = 2 * 6, 2 * 8  # gamma and beta; as many statistics are never trained by a gradient
    trained = {"scratch": first + second + sum(norms) + head, "finetune": second + norms[1] + head}
    assert last["num_trained"] == trained.get("scratch" if mode == "full" else mode, head)
    assert last["num_trained"] + last["num_frozen"] == first + second + 2 * sum(norms) + head
    assert any(line.startswith(last["phase"]) and "frozen" in line for line in lines)
    found = classifiers.load(folder)
    assert found.sha256 == summary["model_sha256"]
    assert found.class_names == tuple(tfpipe.load_manifest(colours).class_names)
    assert {path.name for path in folder.iterdir()} >= {"model.keras", "last.keras", "run.json", "history.png"}
    kept = sorted(path.stem for path in (folder / "state").iterdir())  # to be trained longer
    assert kept == sorted(phase["phase"] for phase in summary["phases"])


def test_frozen_weights_do_not_move_and_trained_ones_do(finished):
    models = [classifiers.load(finished(recipe)).model for recipe in (SHORT, SMALL)]
    trunks = [model.get_layer("trunk").get_weights() for model in models]
    assert all(np.array_equal(one, two) for one, two in zip(*trunks, strict=True))
    heads = [model.get_layer("logits").get_weights() for model in models]
    assert not np.array_equal(heads[0][0], heads[1][0])


def test_g12_heads_trained_on_features_and_end_to_end_agree(finished):
    on_features = dataclasses.replace(SMALL, mode="bottleneck")
    recipes = (SMALL, on_features, dataclasses.replace(on_features, seed=1))
    frozen, bottleneck, other = (weights_of(finished(recipe)) for recipe in recipes)
    assert max(np.abs(one - two).max() for one, two in zip(frozen, bottleneck, strict=True)) < 1e-4
    assert max(np.abs(one - two).max() for one, two in zip(other, bottleneck, strict=True)) > 1e-2


def test_g12_augmented_views_agree_with_the_same_epochs_end_to_end(colours, tmp_path):
    augmented = dataclasses.replace(SMALL, augment="light", epochs=2)
    run(colours, tmp_path / "frozen", dataclasses.replace(augmented, mode="frozen"))
    run(colours, tmp_path / "bottleneck", dataclasses.replace(augmented, mode="bottleneck", views=2))
    frozen, bottleneck = (weights_of(tmp_path / name) for name in ("frozen", "bottleneck"))
    assert max(np.abs(one - two).max() for one, two in zip(frozen, bottleneck, strict=True)) < 1e-4


def test_fine_tuning_on_a_cached_prefix_is_fine_tuning(colours, tmp_path):
    recipe = dataclasses.replace(TUNED, epochs=1)
    for cached in (True, False):
        run(colours, tmp_path / str(cached), dataclasses.replace(recipe, cache_prefix=cached))
    one, two = (weights_of(tmp_path / name) for name in ("True", "False"))
    assert max(np.abs(a - b).max() for a, b in zip(one, two, strict=True)) < 1e-4


def test_a_run_starts_only_if_what_is_frozen_is_frozen(colours, tmp_path, monkeypatch):
    from tfpipe.networks import layers

    monkeypatch.setattr(layers.Trunk, "call", lambda self, values, training=None: self.network(values, training=loop))
    with pytest.raises(DataError, match="frozen layers give other features in training"):
        run(colours, tmp_path / "run")


def test_any_network_by_import_path(colours, tmp_path):
    recipe = dataclasses.replace(
        TUNED, backbone="custom_backbone:small_inception", image_size=(32, 32), unfreeze=("inception_b",)
    )
    recipe = dataclasses.replace(recipe, epochs=1, finetune_epochs=1)
    lines = []
    summary = run(colours, tmp_path / "run", recipe, log=lines.append)
    assert [phase["phase"] for phase in summary["phases"]] == ["head", "finetune"]
    assert any("inception_b" in line for line in lines)


# ---- what a stop costs


class Killed(BaseException):
    pass


def stopping_after(num_steps, monkeypatch, action):
    """Makes the loop do something instead of its step number `num_steps`."""
    count = itertools.count(1)

    def stop_in(real):
        def step(self, *arguments):
            if next(count) > num_steps:
                action()
            return real(self, *arguments)

        return step

    monkeypatch.setattr(loop, "_CALL_SECONDS", 0.0)  # one step a call
    for name in ("train_step", "train_block"):
        monkeypatch.setattr(loop.Loop, name, stop_in(getattr(loop.Loop, name)))


def kill():
    raise Killed


def run_killed_after(steps, monkeypatch, *arguments, checkpoint_seconds=0.0):
    """Starts a run once for each of `steps`, killed in its next step but that many; returns the number of kills."""
    num_kills = 0
    for num_steps in steps:
        with monkeypatch.context() as patch:
            stopping_after(num_steps, patch, kill)
            try:
                run(*arguments, checkpoint_seconds=checkpoint_seconds)
                break
            except Killed:
                num_kills += 1
    return num_kills


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(colours, tmp_path, monkeypatch, finished, checkpoint_seconds):
    recipe = dataclasses.replace(TUNED, ema=0.9, train_batch_norm=True, epochs=2)
    whole = finished(recipe)
    folder = tmp_path / "stopped"
    # Before the first step, and in the second epoch of the head and the first of what follows.
    assert run_killed_after((0, 8, 9), monkeypatch, colours, folder, recipe, checkpoint_seconds=checkpoint_seconds) > 0
    run(colours, folder, recipe)
    assert classifiers.load(folder).sha256 == classifiers.load(whole).sha256
    assert weights_equal(folder, whole, "last.keras")
    histories = [read_history(path) for path in (folder, whole)]
    without = [[{name: row[name] for name in row if not name.endswith("_seconds")} for row in rows] for rows in histories]
    assert without[0] == without[1]
    assert len(without[0]) == 4


def weights_equal(a, b, name):
    one, two = (keras.saving.load_model(folder / name, compile=False).get_weights() for folder in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("mode", ["frozen", "bottleneck"])
def test_ctrl_c_saves_the_step_that_it_came_in(colours, tmp_path, monkeypatch, finished, mode):
    folder, recipe = tmp_path / "run", dataclasses.replace(SMALL, mode=mode)
    with monkeypatch.context() as patch:
        stopping_after(3, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(colours, folder, recipe)
    _, facts = checkpoints.load(folder / "state" / "head.npz")
    assert (facts["progress"]["epoch"], facts["progress"]["step"]) == (0, 4)
    run(colours, folder, recipe)
    assert classifiers.load(folder).sha256 == classifiers.load(finished(recipe)).sha256


def test_equal_runs_give_equal_bits_and_other_seeds_others(colours, tmp_path, finished):
    recipe = dataclasses.replace(SMALL, mode="scratch")
    again, other = (run(colours, tmp_path / str(seed), dataclasses.replace(recipe, seed=seed)) for seed in (0, 1))
    assert summary_of(finished(recipe))["model_sha256"] == again["model_sha256"] != other["model_sha256"]


def test_kill_9_in_the_middle_of_a_file_leaves_nothing_after_the_next_run(colours, tmp_path, monkeypatch):
    """Also where process ids come again, as in containers: that of every program is 1 there."""
    recipe, folder = dataclasses.replace(SMALL, mode="bottleneck", epochs=1), tmp_path / "run"
    monkeypatch.setattr(os, "getpid", lambda: 1)

    def never_end(path, *_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", never_end)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process removes nothing
        for _ in range(2):
            with pytest.raises(Killed):
                run(colours, folder, recipe, cache=tmp_path / "features")
    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "save", lambda self, path: (path.write_bytes(b"half"), kill()))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            run(colours, folder, recipe, cache=tmp_path / "features")
    assert list(folder.glob(".*.keras*")), "nothing was left: the test shows nothing"
    run(colours, folder, recipe, cache=tmp_path / "features")
    assert not list(tmp_path.rglob(".*"))


# ---- options


SHORT = dataclasses.replace(SMALL, epochs=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"schedule": "plateau", "epochs": 4, "warmup_epochs": 0.0},
        {"schedule": "constant"},
        {"class_weights": True},
        {"balanced": True},
        {"label_smoothing": 0.1, "l2": 1e-3},
        {"augment": Augmentation(mixup=0.2), "mode": "frozen"},
        {"ema": 0.9},
        {"pooling": "max"},
        {"pooling": "flatten", "hidden": (8, 4)},
        {"grey": True, "backbone": "lenet", "mode": "scratch"},
        {"precision": "mixed_bfloat16"},
        {"image_size": (24, 40), "resize": "pad"},
    ],
    ids=str,
)
def test_each_option_runs_and_changes_the_result(colours, tmp_path, finished, changes):
    base = dataclasses.replace(SHORT, mode="bottleneck")  # whose features are there
    summary = run(colours, tmp_path / "run", dataclasses.replace(base, **changes))
    assert np.isfinite(summary["val_accuracy"])
    kept = {name: changes[name] for name in ("mode", "backbone", "epochs", "warmup_epochs") if name in changes}
    assert summary["model_sha256"] != summary_of(finished(dataclasses.replace(base, **kept)))["model_sha256"]


def test_the_range_test_leaves_no_trace_but_its_rate(colours, tmp_path):
    found = run(
        colours,
        tmp_path / "found",
        dataclasses.replace(SMALL, mode="bottleneck", dropout=0.0, batch_size=41, learning_rate="find"),
    )
    rate = json.loads((tmp_path / "found" / "learning_rate.json").read_text())["learning_rate"]
    assert (tmp_path / "found" / "learning_rate.png").stat().st_size > 1000
    given = run(
        colours,
        tmp_path / "given",
        dataclasses.replace(SMALL, mode="bottleneck", dropout=0.0, batch_size=41, learning_rate=rate),
    )
    assert found["model_sha256"] == given["model_sha256"]


LEARNING = dataclasses.replace(SMALL, mode="scratch", epochs=10, dropout=0.0)


def test_training_learns(finished):
    assert summary_of(finished(LEARNING))["val_accuracy"] > 0.8  # a third by chance


def test_a_rate_found_by_a_first_try_is_not_another_runs(colours, tmp_path, monkeypatch):
    found = dataclasses.replace(SMALL, mode="bottleneck", dropout=0.0, batch_size=41, learning_rate="find")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "run", lambda self: kill())
        with pytest.raises(Killed):
            run(colours, tmp_path / "run", dataclasses.replace(found, hidden=()))
    first = json.loads((tmp_path / "run" / "learning_rate.json").read_text())
    run(colours, tmp_path / "run", found)
    assert json.loads((tmp_path / "run" / "learning_rate.json").read_text()) != first


def test_without_a_val_split_a_part_is_held_out_and_that_is_reported(colours_without_val, tmp_path):
    lines = []
    recipe = dataclasses.replace(SMALL, mode="bottleneck", val_fraction=0.25, epochs=1)
    run(colours_without_val, tmp_path / "run", recipe, log=lines.append)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    num_all = tfpipe.load_manifest(colours_without_val).split("train").num_records
    assert facts["num_train"] + facts["num_val"] == num_all
    assert any(f"no val split: {facts['num_val']} of the {num_all} training images are held out" in line for line in lines)


def test_a_loss_that_is_not_a_number_ends_the_run_with_a_reason(colours, tmp_path):
    with pytest.raises(DataError, match=r"run: scratch, epoch 1: the training loss is .*; take a lower learning rate"):
        run(
            colours,
            tmp_path / "run",
            dataclasses.replace(SMALL, mode="scratch", learning_rate=1e3, optimizer="sgd", weight_decay=1e6),
        )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_a_number_ends_the_run_with_a_reason(colours, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(loop.Loop, "validate", lambda self: (loss, 0.5))
    with pytest.raises(DataError, match=r"run: head, epoch 1: the validation loss is .*; take a lower learning rate"):
        run(colours, tmp_path / "run")


# ---- the folder


def test_a_finished_run_is_left_alone(colours, finished):
    folder = finished(SHORT)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run(colours, folder, SHORT) == summary_of(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("schedule", "plateau"), ("seed", 1), ("augment", "light"), ("hidden", (9,))])
def test_another_run_in_the_same_folder_is_refused(colours, finished, name, value):
    with pytest.raises(ValueError, match=f"holds a run with {name}="):
        run(colours, finished(SHORT), dataclasses.replace(SHORT, **{name: value}))


def test_another_data_set_is_refused(colours_without_val, finished):
    with pytest.raises(ValueError, match="holds a run with"):
        run(colours_without_val, finished(SHORT), SHORT)


def test_a_folder_with_other_files_is_not_taken(colours, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.doc").write_text("mine")
    with pytest.raises(ValueError, match=r"has other files \(thesis.doc\) and no run"):
        run(colours, tmp_path / "run")


def test_the_same_folder_twice_at_once_is_refused(colours, tmp_path, monkeypatch):
    from tfpipe.common.locking import locked

    monkeypatch.setattr("tfpipe.common.locking._PATIENCE_SECONDS", 0.1)
    with locked(tmp_path / "run", "training"), pytest.raises(BlockingIOError, match="another training is writing here"):
        run(colours, tmp_path / "run")


def test_a_damaged_state_is_named(colours, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping_after(2, patch, kill)
        with pytest.raises(Killed):
            run(colours, tmp_path / "run", checkpoint_seconds=0)
    state = tmp_path / "run" / "state" / "head.npz"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"head.npz: damaged"):
        run(colours, tmp_path / "run")


# ---- several devices

DEVICES = """
import sys, tensorflow as tf
tf.config.set_visible_devices([], "GPU")  # one device is to be a CPU, too
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * {count})
sys.path[:0] = [{tests!r}]
from test_runs import check_masks, train_on
strategy = tf.distribute.MirroredStrategy([f"CPU:{{index}}" for index in range({count})])
check_masks(strategy)
train_on(strategy, {data!r}, {out!r})
"""


def train_on(strategy, data, out):
    """Trains in two modes, with sums of gradients in the second, and looks at statistics of batches alone."""
    plain = {"weights": "none", "image_size": (16, 16), "precision": "float32", "augment": "none", "optimizer": "sgd"}
    quiet = {"progress": False, "tensorboard": False, "strategy": strategy}
    scratch = Recipe(backbone="lenet", mode="scratch", epochs=2, batch_size=8, learning_rate=1e-2, hidden=(8,), **plain)
    tuned = dataclasses.replace(scratch, mode="finetune", finetune_epochs=1, finetune_learning_rate=1e-3)
    for recipe in (scratch, dataclasses.replace(tuned, accumulate=2 if strategy else None)):
        runs.train(data, out + recipe.mode, recipe, cache=f"{out}features", **quiet)
    norms = {
        "backbone": "small_backbone:two_convolutions",
        "mode": "scratch",
        "batch_size": 32,
        "learning_rate": 1e-9,
        "ema": 0.5,
    }
    runs.train(data, f"{out}norms", Recipe(**norms, epochs=3, **plain), **quiet)


@pytest.fixture(scope="module")
def one_device(colours, tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    train_on(None, colours, f"{root}/")
    return root


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.exhaustive(only=True))])
def test_several_devices_train_what_one_trains(colours, one_device, tmp_path, count):
    code = DEVICES.format(tests=str(CHECKOUT / "tests"), data=str(colours), out=f"{tmp_path}/", count=count)
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for mode in ("scratch", "finetune"):
        one, several = (weights_of(root / mode) for root in (one_device, tmp_path))
        assert max(np.abs(a - b).max() for a, b in zip(one, several, strict=True)) < 1e-6, mode
    # The last batch has 9 images: the rows that fill it up must not darken BatchNorm's statistics.
    one, several = (moving_mean(root / "norms") for root in (one_device, tmp_path))
    assert np.abs(one - several).max() < 0.05 * np.abs(one).max()


class Note(keras.layers.Layer):
    """Keeps what it sees, each replica its own."""

    def build(self, input_shape):
        self.seen = self.add_weight(shape=(8, 64), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        self.seen.assign(tf.cast(inputs > 0, tf.int32))
        return inputs


def check_masks(strategy):
    """Each replica drops other units, and all of them seeds that go on as one device's."""
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        dropout, note = keras.layers.Dropout(0.5, seed=1), Note()
        network = keras.Sequential([keras.Input((64,)), dropout, note, keras.layers.Dense(2)])
        group = RateGroup(keras.optimizers.SGD(), network.trainable_variables, 1.0)
    options = {
        "ema": 0,
        "accumulate": 1,
        "label_smoothing": 0,
        "class_weights": None,
        "objective": objectives.of_task("single"),
    }
    batches = SimpleNamespace(batch_size=8 * replicas)
    phase = SimpleNamespace(network=network, groups=[group], trained=group.variables, batches=batches, **options)
    count = 8 * replicas
    Steps(phase, strategy, 1).take((tf.ones((count, 64)), tf.one_hot([0] * count, 2), tf.ones(count)), count, 0.1, 0.0)
    masks = [mask.numpy() for mask in strategy.experimental_local_results(note.seen.value)]
    assert len({mask.tobytes() for mask in masks}) == replicas
    assert all(0.3 < mask.mean() < 0.7 for mask in masks)
    seeds = strategy.experimental_local_results(dropout.seed_generator.state.value)
    assert [seed.numpy().tolist() for seed in seeds] == [[1, 1]] * replicas


def moving_mean(folder):
    return classifiers.load(folder).model.get_layer("trunk").network.get_layer("first_norm").moving_mean.numpy()


# ---- the command


def test_each_field_of_the_recipe_has_a_flag():
    done = subprocess.run([sys.executable, str(CHECKOUT / "tools" / "train.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name}:" in done.stdout or f"--[no]{field.name}:" in done.stdout, field.name


def test_the_command_reports_what_it_does(colours, tmp_path, run_tool):
    out = tmp_path / "run"
    flags = [f"--data={colours}", f"--output={out}", "--backbone=lenet", "--weights=none", "--image_size=16", "--epochs=3"]
    done = run_tool("train", *flags, "--augment=light,horizontal_flip=0", "--hidden=8,4", "--profile_steps=2")
    assert "mode=scratch: there are no weights to transfer" in done.stdout
    assert "block1" in done.stdout
    assert "head" in done.stdout
    assert f"The classifier is {out / 'model.keras'}" in done.stdout
    assert (out / "profile.txt").stat().st_size
    assert list((out / "tensorboard").rglob("*tfevents*"))
    facts = json.loads((out / "run.json").read_text())
    assert facts["recipe"]["augment"]["horizontal_flip"] == 0
    assert facts["recipe"]["hidden"] == [8, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=nothing"], "mode must be one of"),
        (["--augment=heavy"], "augment must be an Augmentation or one of"),
        (["--augment=light,flop=1"], "there is no flop"),
        (["--weights=nowhere.h5"], "nowhere.h5"),
        (["--backbone=vgg99"], "vgg99"),
        (["--image_size=1x2x3"], "--image_size must be"),
        (["--mode=bottleneck", "--augment=none,mixup=0.2", "--weights=none"], "mixup and cutmix mix images"),
        (["--unfreeze=block5", "--mode=frozen", "--weights=none"], "unfreeze is of no effect in mode frozen"),
        (["nonsense"], "arguments without a flag"),
    ],
)
def test_wrong_flags_are_one_line(colours, tmp_path, run_tool, flags, message):
    done = run_tool("train", f"--data={colours}", f"--output={tmp_path / 'run'}", *flags, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_module_is_the_public_function():
    assert tfpipe.train is runs.train


def test_fine_tuning_never_ends_with_less_than_it_began_with(colours, tmp_path):
    recipe = dataclasses.replace(TUNED, epochs=6, finetune_epochs=1, dropout=0.0)
    summary = run(colours, tmp_path / "run", dataclasses.replace(recipe, finetune_learning_rate=0.5))
    head, finetune = summary["phases"]
    assert finetune["val_accuracy"] >= head["val_accuracy"]


# ---- what is saved is what was validated


def evaluated(folder, data, split="val"):
    """Returns (accuracy, mean loss) of a run's model."""
    images, labels = next(iter(tfpipe.dataset(data, split, batch_size=100, image_size=(16, 16))))
    probabilities = classifiers.load(folder).predict(images)
    chosen = probabilities[np.arange(len(labels)), labels.numpy()]
    return float((probabilities.argmax(1) == labels.numpy()).mean()), float(-np.log(chosen).mean())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_saved_model_is_the_one_that_was_validated(colours, tmp_path, ema):
    recipe = dataclasses.replace(SMALL, mode="scratch", epochs=8, learning_rate=1e-1, ema=ema, weight_decay=0.0, dropout=0.0)
    summary = run(colours, tmp_path / "run", recipe)
    (phase,) = summary["phases"]
    assert phase["best_epoch"] < 8, "the best epoch is the last: the test shows nothing"
    accuracy, loss = evaluated(tmp_path / "run", colours)
    assert accuracy == pytest.approx(phase["val_accuracy"], abs=1e-6)
    assert loss == pytest.approx(phase["val_loss"], rel=1e-3)


def test_an_average_of_few_steps_is_not_one_of_the_first_weights(colours, tmp_path, finished):
    averaged = run(colours, tmp_path / "averaged", dataclasses.replace(LEARNING, ema=0.9999))
    assert averaged["val_accuracy"] > summary_of(finished(LEARNING))["val_accuracy"] - 0.2


# ---- a wrong first try


def test_options_can_be_corrected_before_the_first_step(colours, tmp_path):
    wrong = dataclasses.replace(SMALL, backbone="lenet", weights="imagenet", mode="bottleneck", epochs=1)
    with pytest.raises(ValueError, match="there are no ImageNet weights for lenet"):
        run(colours, tmp_path / "run", wrong)
    run(colours, tmp_path / "run", dataclasses.replace(wrong, weights="none"))


def test_litter_does_not_count_as_another_file(colours, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.123.tmp").write_text("{")
    run(colours, tmp_path / "run", dataclasses.replace(SMALL, mode="bottleneck", epochs=1))


def test_a_finished_run_does_not_need_its_weights_file(colours, tmp_path):
    from tfpipe.networks import backbones

    backbone = backbones.build("lenet", image_size=(16, 16), weights="none")
    file = tmp_path / "lenet.weights.h5"
    backbone.network.save_weights(file)
    recipe = dataclasses.replace(SMALL, backbone="lenet", weights=str(file), mode="bottleneck", epochs=1)
    first = run(colours, tmp_path / "run", recipe)
    file.unlink()
    assert run(colours, tmp_path / "run", recipe) == first


def test_ctrl_c_in_the_last_validation_stops_the_run(colours, tmp_path, monkeypatch):
    recipe = dataclasses.replace(TUNED, epochs=1)
    real = loop.Loop.validate

    def validate(self):
        os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "validate", validate)
        with pytest.raises(KeyboardInterrupt):
            run(colours, tmp_path / "run", recipe)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["head.npz"]
    run(colours, tmp_path / "run", recipe)


@pytest.mark.parametrize(("handler", "is_seen"), [(signal.SIG_IGN, False), (signal.default_int_handler, True)])
@pytest.mark.parametrize("number", loop._STOPPING)
def test_a_signal_that_is_ignored_stays_ignored(number, handler, is_seen):
    before = signal.signal(number, handler)
    try:
        with loop._interrupts() as interrupted:
            os.kill(os.getpid(), number)
        assert interrupted == [number] * is_seen
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_handled_a_signal_gets_it_when_the_step_is_saved(number):
    received = []

    def stop():
        with loop._interrupts() as interrupted:
            for _ in range(2):
                os.kill(os.getpid(), number)  # the second does not stop at once: `timeout` sends two
            assert interrupted == [number] * 2
            assert received == []
            raise KeyboardInterrupt

    before = signal.signal(number, lambda number, _: received.append(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            stop()
    finally:
        signal.signal(number, before)
    assert received == [number]


def test_outside_of_the_loop_the_library_handles_no_signal():
    before = [signal.getsignal(number) for number in loop._STOPPING]
    with loop._interrupts():
        assert not any(signal.getsignal(number) in before for number in loop._STOPPING)
    assert [signal.getsignal(number) for number in loop._STOPPING] == before
    assert before[1:] == [signal.SIG_DFL, signal.SIG_DFL]


@pytest.mark.parametrize(("number", "method", "step"), [(signal.SIGINT, "train_step", 4), (signal.SIGTERM, "validate", 5)])
def test_a_validation_that_was_stopped_is_done_again_to_the_same_bits(
    colours, tmp_path, monkeypatch, finished, number, method, step
):
    """Also one that had not begun: the signal came in the last step of the epoch."""
    recipe = dataclasses.replace(SMALL, mode="scratch", epochs=2, ema=0.9)
    real = getattr(loop.Loop, method)

    def stop(self, *rest):
        if self.position.step == step:
            os.kill(os.getpid(), number)
        return real(self, *rest)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, method, stop)
            with pytest.raises(KeyboardInterrupt):
                run(colours, tmp_path / "stopped", recipe)
    finally:
        signal.signal(signal.SIGTERM, before)
    _, facts = checkpoints.load(tmp_path / "stopped" / "state" / "scratch.npz")
    assert (facts["progress"]["epoch"], facts["progress"]["step"]) == (0, 5)
    assert read_history(tmp_path / "stopped") == []
    run(colours, tmp_path / "stopped", recipe)
    folders = tmp_path / "stopped", finished(recipe)
    assert classifiers.load(folders[0]).sha256 == classifiers.load(folders[1]).sha256
    losses = [[row["val_loss"] for row in read_history(folder)] for folder in folders]
    assert losses[0] == losses[1]


def test_a_layer_that_keras_named_can_end_the_backbone(colours, tmp_path):
    from tfpipe.networks import backbones
    from tfpipe.networks.submodels import find_layers

    found = list(find_layers(backbones.build("custom_backbone:unnamed", image_size=(16, 16)).network))
    numbers = [int(name.rpartition("_")[2]) for name in found if name.startswith("conv2d_")]
    name = f"conv2d_{max(numbers, default=0) + 1}"  # the first convolution of the network that the run builds
    recipe = dataclasses.replace(SMALL, backbone="custom_backbone:unnamed", mode="bottleneck", epochs=1)
    summary = run(colours, tmp_path / "run", dataclasses.replace(recipe, feature_layer=name))
    assert summary["phases"][0]["num_frozen"] > 0


@pytest.mark.parametrize("path", ["output", "cache"])
def test_a_file_in_place_of_a_folder_is_reported(colours, tmp_path, path):
    (tmp_path / "file").write_text("")
    given = {"output": tmp_path / "run", "cache": tmp_path / "features", path: tmp_path / "file"}
    with pytest.raises(NotADirectoryError, match="file: a file; a folder is needed"):
        train(colours, given["output"], SMALL, cache=given["cache"], progress=False)


def test_a_damaged_record_is_named(tmp_path):
    shards = transfer_fixtures.build_colours(tmp_path, {"train": (8, 8, 8), "val": (2, 2, 2)})
    shard = next(shards.glob("*train.tfrecord-00000*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for mode in ("bottleneck", "frozen"):
        with pytest.raises(DataError, match=r"train\.tfrecord-00000.*at byte"):
            run(shards, tmp_path / mode, dataclasses.replace(SMALL, mode=mode))
