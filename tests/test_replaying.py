"""`replay()`: bit for bit what training saw of a key in an epoch, and something else in another epoch or with another seed."""

import re

import numpy as np
import pytest
from conftest import write
from pipeline_fixtures import make_image, write_data_set

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.pipeline.augmentation import PRESETS, Augmentation
from tfpipe.pipeline.replaying import Replayer, replay
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_catalog

pytestmark = pytest.mark.tf

SIZE = (40, 56)
UNCROPPED = Augmentation(vertical_flip=0.5, rotation=20, hue=0.1, contrast=0.2)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Every orientation, JPEG and PNG, small and large, in classes of 16, 8 and 3."""
    root = tmp_path_factory.mktemp("replaying")
    for orientation in range(1, 9):
        jpeg = make_image(orientation, 60 + orientation, 90, orientation=orientation)
        png = make_image(20 + orientation, 70, 50 + orientation, image_format="PNG", orientation=orientation)
        large = make_image(40 + orientation, 700, 500 + orientation, orientation=orientation)
        write(root / "in" / "cat" / f"{orientation}.jpg", jpeg)
        write(root / "in" / "cat" / f"{orientation}.png", png)
        write(root / "in" / "小 猫" / f"{orientation}.jpg", large)
    for index in range(3):
        write(root / "in" / "rare" / f"{index}.jpg", make_image(60 + index, 33, 21))
    tfpipe.build_tfrecords(root / "in", root / "out", layout="folders", progress=False)
    return root / "out"


def epochs(data_set, count, **options):
    """(key, epoch, image) of every row of some epochs of training."""
    data = tfpipe.dataset(data_set, "train", training=True, as_dict=True, **options)
    for _ in range(count):
        for batch in data.as_numpy_iterator():
            yield from zip(batch["key"], batch["epoch"], batch["image"], strict=True)


@pytest.mark.parametrize(
    ("given", "others"),
    [
        ({}, {}),
        ({"image_size": (224, 224), "augment": "strong"}, {"batch_size": 5}),
        ({"augment": "strong", "scaled_decode": False}, {"shard": (1, 2)}),
        ({"augment": "light"}, {"balanced": True}),
        ({"augment": UNCROPPED, "resize": "crop"}, {"class_names": ["小 猫", "rare"]}),
        ({"augment": UNCROPPED, "resize": "pad"}, {"read_block": 2, "first_epoch": 7}),
        ({"augment": "none"}, {"first_step": 1, "batch_size": 10}),
    ],
)
def test_g7_every_row_of_training_is_replayed_bit_for_bit(data_set, given, others):
    given = {"seed": 3, "image_size": SIZE, **given}
    replayer = Replayer(data_set, "train", **given)
    seen = set()
    for key, epoch, image in epochs(data_set, 2, **given, **others):
        replayed = replayer.image(replayer.position(key), epoch)
        assert (replayed.dtype, replayed.shape) == (np.uint8, image.shape)
        assert (replayed == image).all(), (key, epoch)
        seen.add((key, int(epoch)))
    assert len({key for key, _ in seen}) >= 11
    assert len({epoch for _, epoch in seen}) >= 2


def test_one_call_gives_the_same_image(data_set):
    rows = list(epochs(data_set, 1, seed=5, image_size=SIZE, first_epoch=2))
    for key, epoch, image in rows[::9]:
        assert (replay(data_set, "train", key.decode(), seed=5, epoch=epoch, image_size=SIZE) == image).all()


def test_another_epoch_seed_key_or_preset_gives_another_image(data_set):
    def made(key="rare/0.jpg", **changes):
        return replay(data_set, "train", key, **{"seed": 0, "epoch": 0, "image_size": SIZE, **changes})

    first = made()
    assert (first == made()).all()
    for changes in ({"epoch": 1}, {"seed": 1}, {"key": "rare/1.jpg"}, {"augment": "light"}):
        assert (first != made(**changes)).any(), changes
    assert (made(seed=0, epoch=1) != made(seed=1, epoch=0)).any()


def test_standard_is_the_default_as_in_training(data_set):
    assert Replayer(data_set, "train", seed=0).augmentation == PRESETS["standard"]
    first, named = (replay(data_set, "train", "rare/0.jpg", seed=0, epoch=4, augment=name) for name in (None, "standard"))
    assert (first == named).all()


def test_mixup_and_cutmix_are_left_out(data_set):
    mixed = Augmentation(crop=0.3, mixup=1, cutmix=1)
    unmixed = Augmentation(crop=0.3)
    images = [replay(data_set, "train", "rare/2.jpg", seed=1, epoch=0, image_size=SIZE, augment=a) for a in (mixed, unmixed)]
    assert (images[0] == images[1]).all()


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_image_of_evaluation_is_that_of_a_pass_without_training(data_set, resize):
    replayer = Replayer(data_set, "train", seed=0, image_size=SIZE, resize=resize)
    data = tfpipe.dataset(data_set, "train", image_size=SIZE, resize=resize, batch_size=None)
    for position, (image, _) in enumerate(data.as_numpy_iterator()):
        assert (replayer.evaluated(position) == image).all()
    assert position == 26


def test_positions_are_those_of_stored_order(data_set):
    replayer = Replayer(data_set, "train", seed=0)
    keys = [row.key for row in read_catalog(data_set, split="train")]
    assert [replayer.position(key) for key in keys] == list(range(27))
    assert replayer.position("小 猫/3.jpg".encode()) == keys.index("小 猫/3.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "cat/99.jpg"}, "no record of split 'train' has the key 'cat/99.jpg'"),
        ({"key": ""}, "no record of split 'train' has the key ''"),
        ({"split": "test"}, "split must be one of train (got 'test')"),
        ({"epoch": -1}, "epoch must be an integer, 0 or more and less than 2**31 (got -1)"),
        ({"epoch": 1.0}, "epoch must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"augment": "wild"}, "augment must be an Augmentation or one of none, light, standard, strong (got 'wild')"),
        ({"resize": "fold"}, "resize must be one of"),
        ({"image_size": 0}, "image_size must be (height, width)"),
    ],
)
def test_wrong_arguments(data_set, changes, message):
    arguments = {"split": "train", "key": "cat/1.jpg", "seed": 0, "epoch": 0, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        replay(data_set, **arguments)


def test_what_is_damaged_is_named(data_set, tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest here"):
        replay(tmp_path, "train", "cat/1.jpg", seed=0, epoch=0)
    out = write_data_set(tmp_path / "out", [make_image(0), b"no image"], 1)
    shard = out / manifests.load(out).splits["test"].shards[0].file
    with pytest.raises(DataError, match=r"record 1 \(source dog/1.jpg\): cannot be decoded: Unknown image") as error:
        replay(out, "test", "dog/1.jpg", seed=0, epoch=0)
    assert error.value.path == str(shard)
    content = bytearray(shard.read_bytes())
    content[content.index(b"cat/0.jpg")] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"record 0 \(source cat/0.jpg\): the data does not match its CRC"):
        replay(out, "test", "cat/0.jpg", seed=0, epoch=0)
