"""Many steps in one call, batches in parts, and what becomes of a batch that does not fit into memory."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import limited_backbone
import numpy as np
import pytest
import tensorflow as tf
from transfer_fixtures import SMALL
from transfer_fixtures import uneven_colours as colours

from tfpipe import Recipe, train
from tfpipe.formats.exported_model import ExportedModel
from tfpipe.models import classifiers, features
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.training import batches, checkpoints, loop, steps

pytestmark = pytest.mark.tf

__all__ = ["colours"]  # a fixture

CACHED = dataclasses.replace(
    SMALL,
    mode="finetune",
    unfreeze=("second_conv",),
    cache_prefix=True,
    train_batch_norm=True,
    epochs=4,
    finetune_epochs=2,
    schedule="plateau",
    label_smoothing=0.1,
    class_weights=True,
    ema=0.9,
    augment="light",
    views=2,
)
HEAD = {"mode": "bottleneck", "unfreeze": (), "cache_prefix": None, "train_batch_norm": None, "finetune_epochs": None}
LARGE = Recipe(
    backbone="limited_backbone:limited",
    weights="none",
    mode="scratch",
    image_size=(16, 16),
    epochs=2,
    batch_size=32,
    learning_rate=1e-2,
    optimizer="sgd",
    augment="none",
    precision="float32",
)


def run(data, folder, recipe, **options):
    given = {"progress": False, "tensorboard": False, "log": None, "cache": folder.parent / "features", **options}
    return train(data, folder, recipe, **given)


def course(folder):
    """What the log says of a run, but for times."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in event.items() if not name.endswith("_seconds")} for event in events]


def weights_of(folder, name="last.keras"):
    return keras.saving.load_model(folder / name, compile=False).get_weights()


def distance(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


# ---- many steps in one call


@pytest.fixture
def sizes(monkeypatch):
    """A list that is told how many rows each call of many steps has."""
    found, real = [], loop.Loop.train_block

    def counted(self, block):
        found.append(len(block.places))
        return real(self, block)

    monkeypatch.setattr(loop.Loop, "train_block", counted)
    return found


def test_many_steps_in_a_call_have_the_bits_of_single_ones(colours, tmp_path, monkeypatch, sizes):
    """Whether the features are kept on the device or not; `test_a_run_stopped_anywhere...` has calls of one step, too."""
    hashes, taken = [], []

    def go(name):
        sizes.clear()
        hashes.append(run(colours, tmp_path / name, CACHED)["model_sha256"])
        taken.append(list(sizes))

    monkeypatch.setattr(loop, "_CALL_SECONDS", 1e9)
    go("epochs")
    with monkeypatch.context() as patch:
        patch.setattr(batches, "_RESIDENT_BYTES", {"CPU": 0, "GPU": 0})
        patch.setattr(batches, "_BLOCK_BYTES", 3 * 8 * 8 * 8 * 6 * 4)  # of 3 steps in fine-tuning
        go("blocks")
    monkeypatch.setattr(steps.Steps, "in_blocks", None)
    go("batches")
    assert [max(found, default=0) for found in taken] == [41, 41, 0]
    assert 24 in taken[1]
    names = ("epochs", "blocks", "batches")
    assert hashes == [hashes[0]] * 3
    assert [course(tmp_path / name) for name in names] == [course(tmp_path / "batches")] * 3
    assert distance(weights_of(tmp_path / "epochs"), weights_of(tmp_path / "batches")) == 0


def feature_batches(num_views, rows):
    """Of 512 images with 4 kB of features each."""
    split, features = SimpleNamespace(num_records=512), SimpleNamespace(shape=(16, 16, 4), dtype="float32", rows=rows)
    views = {"views": [features] * num_views, "val_features": features}
    return batches.FeatureBatches(train=split, val=split, **views, batch_size=8, num_classes=2)


@pytest.mark.parametrize(("gpus", "most"), [([], 256 << 20), (["GPU:0"], 2 << 30)])
def test_a_gpu_keeps_more_features_than_a_cpu_which_has_them_in_its_memory(monkeypatch, gpus, most):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: gpus)
    num_views = most // (512 * 4096) - 1
    for views, is_resident in ((num_views, True), (num_views + 1, False)):
        assert (feature_batches(views, lambda positions: positions)._resident is not None) == is_resident


def test_features_that_a_device_has_no_memory_for_come_in_blocks():
    def exhausted(positions):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    assert feature_batches(1, exhausted)._resident is None


def test_a_call_ends_in_time_for_the_next_checkpoint(colours, tmp_path, sizes):
    recipe = dataclasses.replace(CACHED, **HEAD, epochs=1)
    run(colours, tmp_path / "run", recipe, checkpoint_seconds=0.0)
    assert set(sizes) == {8, 1}  # one step each: the last of an epoch has one image


# ---- batches in parts


@pytest.mark.parametrize(
    "options",
    [
        {"augment": Augmentation(mixup=0.4), "ema": 0.5},
        {"mode": "bottleneck", "label_smoothing": 0.2, "class_weights": True, "l2": 0.1},
    ],
    ids=["images", "features"],
)
def test_parts_of_a_batch_have_its_gradient(colours, tmp_path, options):
    recipe = dataclasses.replace(LARGE, **options)
    for parts in (None, 3):  # of 32 images: 11, 11, 10; of the 9 left: one part
        run(colours, tmp_path / f"{parts}", dataclasses.replace(recipe, accumulate=parts))
    one, other = (weights_of(tmp_path / f"{parts}") for parts in (None, 3))
    assert distance(one, other) < 1e-6


def test_smaller_batches_are_something_else(colours, in_parts, tmp_path):
    run(colours, tmp_path / "run", dataclasses.replace(LARGE, dropout=0.2, batch_size=8))
    assert distance(weights_of(in_parts), weights_of(tmp_path / "run")) > 1e-4


# ---- out of memory


@pytest.fixture
def _ten_fit(monkeypatch):
    monkeypatch.setattr(limited_backbone, "LIMIT", 10)


@pytest.fixture(scope="module")
def in_parts(colours, tmp_path_factory):
    """The folder of a run whose batches were to be computed in 4 parts."""
    folder = tmp_path_factory.mktemp("parts") / "run"
    run(colours, folder, dataclasses.replace(LARGE, accumulate=4, dropout=0.2))
    return folder


@pytest.mark.usefixtures("_ten_fit")
def test_a_batch_that_does_not_fit_is_computed_in_parts(colours, tmp_path, in_parts):
    lines, folder = [], tmp_path / "run"
    recipe = dataclasses.replace(LARGE, batch_size="auto", dropout=0.2)
    run(colours, folder, recipe, log=lines.append)
    found = [line for line in lines if "out of memory" in line]
    assert found == [f"scratch: out of memory; batches are now computed in {parts} parts (accumulate)" for parts in (2, 4)]
    assert distance(weights_of(folder), weights_of(in_parts)) == 0  # dropout too: nothing is left of what failed
    assert classifiers.load(folder).sha256


@pytest.mark.usefixtures("_ten_fit")
def test_a_run_that_goes_on_knows_how_many_parts_fit(colours, tmp_path, in_parts, monkeypatch):
    recipe, lines, folder = dataclasses.replace(LARGE, batch_size="auto", dropout=0.2), [], tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "validate", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(colours, folder, recipe, checkpoint_seconds=0.0)
    assert checkpoints.load(folder / "state" / "scratch.npz")[1]["accumulate"] == 4
    run(colours, folder, recipe, log=lines.append)
    assert not any("out of memory" in line for line in lines)
    assert distance(weights_of(folder), weights_of(in_parts)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^out of memory with batch_size=32; try batch_size=16, or accumulate=2: the same batch in as many parts"),
        ({"accumulate": 2}, r"batch_size=32; try batch_size=16, or accumulate=4: "),
        ({"batch_size": "auto"}, r"^out of memory with batch_size=1; try a smaller image_size$"),
    ],
)
def test_what_does_not_fit_is_reported_and_what_to_try(colours, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(limited_backbone, "LIMIT", 0)
    with pytest.raises(MemoryError, match=message):
        run(colours, tmp_path / "run", dataclasses.replace(LARGE, **options))


def test_features_are_extracted_in_the_parts_that_fit(monkeypatch):
    batches, layer = [], limited_backbone.Limited()
    times_two = tf.function(lambda images: 2 * layer(images))

    def double(images):
        batches.append(len(images))
        return times_two(images).numpy()

    monkeypatch.setattr(limited_backbone, "LIMIT", 5)
    compute, images = features.in_parts(double), np.arange(24.0).reshape(12, 2)
    for _ in range(2):
        np.testing.assert_array_equal(compute(images), 2 * images)
    assert batches == [12, 6, 3, 3, 3, 3, 3, 3, 3, 3]
    monkeypatch.setattr(limited_backbone, "LIMIT", 0)
    with pytest.raises(MemoryError, match="out of memory with batch_size=1; try a smaller image_size"):
        compute(images)


@pytest.mark.usefixtures("_ten_fit")
def test_frozen_layers_are_compared_in_the_parts_that_fit():
    images = tf.random.stateless_uniform((16, 16, 16, 3), (0, 0), 0, 256, tf.int32)
    network = keras.Sequential([limited_backbone.Limited()])
    found = features.computation(network, keras.layers.Rescaling(1 / 255), (16, 16))(tf.cast(images, tf.uint8))
    assert found.shape == images.shape
    assert features.check_frozen(found, images / 255, limited_backbone.Limited()) < 1e-6


@pytest.mark.usefixtures("_ten_fit")
def test_a_prediction_reports_which_batch_to_try(in_parts):
    found = classifiers.load(in_parts)
    images = np.zeros((12, 16, 16, 3), np.uint8)
    assert len(found.predict(images[:10])) == 10
    seen = SimpleNamespace(image_size=(16, 16))
    exported = ExportedModel(seen, lambda images: tf.function(limited_backbone.Limited())(images).numpy())
    for predict in (found.predict, found.predict_with_features, exported.predict):
        with pytest.raises(MemoryError, match=r"^out of memory with batch_size=12; try batch_size=6$"):
            predict(images)
