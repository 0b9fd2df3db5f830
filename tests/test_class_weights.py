"""`class_weights()`: all classes weigh the same in all, and what has no weight is named."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.records.class_weights import class_weights


def counted(out, counts, *, labelled=True, split="train"):
    """A data set that is a manifest alone: nothing else is looked at."""
    out.mkdir(exist_ok=True)
    num_records, digest = sum(counts.values()), "0" * 64
    shard = manifests.Shard(manifests.shard_file("pets", split, 0, 1), num_records, num_records, digest, digest)
    splits = {split: manifests.Split(labelled, 0, counts if labelled else dict.fromkeys(counts, 0), (shard,))}
    companions = dict.fromkeys(manifests.COMPANION_NAMES, digest)
    manifests.save(manifests.Manifest("pets", 0, tuple(counts), splits, {}, companions, digest, {}, {}, (), (), "0"), out)
    return out


def test_a_rare_class_weighs_more(tmp_path):
    out = counted(tmp_path, {"cat": 750, "小 猫": 250})
    assert class_weights(out, "train") == {0: 750 / 1125, 1: 2.0}
    assert [type(number) for pair in class_weights(out, "train").items() for number in pair] == [int, float] * 2


@given(counts=st.lists(st.integers(1, 10**7), min_size=1, max_size=9))
def test_all_classes_weigh_the_same_and_a_record_1_on_average(tmp_path_factory, counts):
    out = counted(tmp_path_factory.mktemp("counts"), {f"class {label}": count for label, count in enumerate(counts)})
    weights = class_weights(out, "train")
    shutil.rmtree(out)
    assert list(weights) == list(range(len(counts)))
    shares = [weights[label] * count for label, count in enumerate(counts)]
    assert shares == pytest.approx([sum(counts) / len(counts)] * len(counts))
    assert sum(shares) == pytest.approx(sum(counts))


def test_labels_are_places_in_class_names_and_other_classes_do_not_count(tmp_path):
    out = counted(tmp_path, {"cat": 30, "dog": 10, "owl": 1000, "emu": 0})
    assert class_weights(out, "train", ["dog", "cat"]) == {0: 2.0, 1: 40 / 60}
    assert class_weights(out, "train", ["cat", "dog"]) == {0: 40 / 60, 1: 2.0}


def test_equal_to_scikit_learn(tmp_path):
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    counts = [3, 1, 17]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    expected = sklearn.compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=labels)
    out = counted(tmp_path, dict(zip("abc", counts, strict=True)))
    assert list(class_weights(out, "train").values()) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "split 'train' has no records of: emu, 小 鸟; a class without records"),
        (("train", ["cat", "emu"]), "no records of: emu;"),
        (("train", ["cat", "cow", "pig"]), "there are no classes cow, pig; there are cat, emu, 小 鸟"),
        (("train", []), "class_names must be different names of classes (got [])"),
        (("train", ["cat", "cat"]), "class_names must be different names of classes (got ['cat', 'cat'])"),
        (("train", "cat"), "class_names must be different names of classes (got 'cat')"),
        (("train", [0]), "class_names must be different names of classes (got [0])"),
        (("test",), "split must be one of train (got 'test')"),
    ],
)
def test_what_has_no_weight_is_named(tmp_path, arguments, message):
    out = counted(tmp_path, {"cat": 5, "emu": 0, "小 鸟": 0})
    with pytest.raises(ValueError, match=re.escape(message)):
        class_weights(out, *arguments)


def test_without_labels_or_without_a_data_set(tmp_path):
    out = counted(tmp_path / "bare", {"cat": 3}, labelled=False)
    with pytest.raises(ValueError, match=re.escape(f"{out}: split 'train' has no labels")):
        class_weights(out, "train")
    with pytest.raises(FileNotFoundError, match="no manifest here"):
        class_weights(tmp_path, "train")
    path = out / manifests.FILE_NAME
    path.write_text(path.read_text().replace('"num_bytes": 3', '"num_bytes": 4'))
    with pytest.raises(DataError, match="its hash does not match"):
        class_weights(out, "train")


def test_of_a_data_set_that_was_built(photos, tmp_path):
    tfpipe.build_tfrecords(photos, tmp_path / "out", layout="folders", progress=False)
    assert tfpipe.class_weights(tmp_path / "out", "train") == {0: 25 / 36, 1: 25 / 24, 2: 25 / 15}


def test_no_tensorflow_is_loaded():
    code = "import sys, tfpipe; tfpipe.class_weights; sys.exit(sorted({'tensorflow', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.tf
def test_keras_multiplies_each_loss_with_the_weight_of_its_label(photos, tmp_path):
    import keras

    out = tmp_path / "out"
    tfpipe.build_tfrecords(photos, out, layout="folders", progress=False)
    names = ["小 猫", "cat"]
    data = tfpipe.dataset(out, "train", image_size=(4, 4), batch_size=17, class_names=names)  # one batch
    images, labels = next(iter(data))
    model = keras.Sequential([keras.layers.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    each = loss(labels, model(images)).numpy()
    weights = tfpipe.class_weights(out, "train", names)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fitted = model.fit(data, class_weight=weights, verbose=0).history["loss"][0]
    expected = sum(weights[int(label)] * one for label, one in zip(labels, each, strict=True)) / 17
    assert fitted == pytest.approx(expected, rel=1e-5)
    assert fitted != pytest.approx(each.mean(), rel=1e-3)
