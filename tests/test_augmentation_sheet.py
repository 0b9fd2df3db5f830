"""The augmentation sheet: the images of training, and nothing lost on the disk."""

import logging
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import make_image, write
from PIL import Image
from pipeline_fixtures import write_data_set

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.records import manifest as manifests
from tfpipe.report import augmentation_sheet, fonts, sheets
from tfpipe.report.augmentation_sheet import show

pytestmark = pytest.mark.tf

TILE = 48
SIZE = (TILE, TILE)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """12 cats and one kitten in three shards, and 4 images without labels."""
    root = tmp_path_factory.mktemp("augmentation")
    for index in range(12):
        write(root / "in" / "cat" / f"{index}.jpg", make_image(index, (90, 60)))
    write(root / "in" / "小 猫" / "0.png", make_image(100, (70, 80), format="PNG"))
    for index in range(4):
        write(root / "bare" / f"{index}.jpg", make_image(200 + index, (60, 60)))
    bare, shards = {"bare": root / "bare"}, {"train": 3, "bare": 1}
    tfpipe.build_tfrecords(
        {"train": root / "in"}, root / "out", layout="folders", unlabelled=bare, num_shards=shards, progress=False
    )
    return root / "out"


def drawn(directory, path, **options):
    show(directory, path, **{"tile": TILE, "image_size": SIZE, **options})
    return np.asarray(Image.open(path).convert("RGB"))


def place(sheet, image):
    """(top, left) of an image that stands on a sheet, pixel by pixel; None where it does not."""
    corners = np.argwhere((sheet[: -TILE + 1, : -TILE + 1] == image[0, 0]).all(axis=2)).tolist()
    return next(((y, x) for y, x in corners if (sheet[y : y + TILE, x : x + TILE] == image).all()), None)


def chosen(directory, split="train", images=8, seed=0):
    samples = augmentation_sheet._choose(directory, manifests.load(directory), split, images, seed)
    return [sample.row.key for sample in samples]


@pytest.mark.parametrize("preset", ["standard", "strong"])
def test_a_row_is_the_image_of_evaluation_and_those_of_ten_epochs(data_set, tmp_path, preset):
    sheet = drawn(data_set, tmp_path / "sheet.png", augment=preset, images=3, seed=4)
    keys = chosen(data_set, images=3, seed=4)
    assert len(set(keys)) == 3
    evaluation = tfpipe.dataset(data_set, "train", image_size=SIZE, as_dict=True, batch_size=None)
    wanted = {row["key"].decode(): [row["image"]] for row in evaluation.as_numpy_iterator() if row["key"].decode() in keys}
    training = tfpipe.dataset(
        data_set, "train", training=True, augment=preset, seed=4, image_size=SIZE, as_dict=True, batch_size=None
    )
    for _ in range(10):
        for row in training.as_numpy_iterator():
            if row["key"].decode() in wanted:
                wanted[row["key"].decode()].append(row["image"])
    places = [[place(sheet, image) for image in wanted[key]] for key in keys]
    assert [len(row) for row in places] == [11, 11, 11]
    tops = [{top for top, _ in row} for row in places]
    assert [len(top) for top in tops] == [1, 1, 1]
    assert sorted(tops, key=min) == tops
    lefts = [left for _, left in places[0]]
    assert sorted(set(lefts)) == lefts == [left for _, left in places[2]]
    assert lefts[1] - lefts[0] > lefts[2] - lefts[1] == lefts[10] - lefts[9]


def test_equal_arguments_equal_bytes_another_seed_or_preset_another_sheet(data_set, tmp_path):
    def made(**options):
        drawn(data_set, tmp_path / "sheet.png", images=1, **options)
        return (tmp_path / "sheet.png").read_bytes()

    first = made()
    assert first == made(augment="standard", split="train", seed=0)
    assert first != made(seed=1)
    assert first != made(augment="strong")
    assert first != made(split="bare")


def test_classes_take_turns(data_set):
    keys = chosen(data_set, images=5)
    assert [Path(key).parent.name for key in keys] == ["cat"] * 4 + ["小 猫"]
    assert len(chosen(data_set, images=100)) == len(set(chosen(data_set, images=100))) == 13
    assert set(chosen(data_set, images=1)) < set(keys)
    assert set(keys) != set(chosen(data_set, images=5, seed=1))


def test_many_classes_share_few_rows(tmp_path):
    for label in range(6):
        for index in range(3):
            write(tmp_path / "in" / f"class {label}" / f"{index}.jpg", make_image(10 * label + index))
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", layout="folders", progress=False)
    counts = Counter(Path(key).parent.name for key in chosen(tmp_path / "out", images=8))
    assert sorted(counts.values()) == [1, 1, 1, 1, 2, 2]


def texts(monkeypatch, directory, path, **options):
    """Everything that is written on a sheet, line by line of text."""
    given = {}
    original = sheets.Sheet.__init__

    def remember(self, title, details, panels, **others):
        given.update(title=title, details=details, panels=panels)
        original(self, title, details, panels, **others)

    monkeypatch.setattr(sheets.Sheet, "__init__", remember)
    drawn(directory, path, **options)
    return given


def test_the_header_names_preset_and_strengths_and_rows_name_class_and_key(data_set, tmp_path, monkeypatch):
    given = texts(monkeypatch, data_set, tmp_path / "sheet.png", images=2, augment="light", seed=3)
    first, second = given["details"]
    for words in ("train, 13 records", "2 drawn with seed 3", "48 x 48, stretch"):
        assert words in first
    strengths = ["crop 0.5", "crop_aspect 1.33", "horizontal_flip 0.5", "brightness 0.05", "contrast 0.1", "saturation 0.1"]
    assert second.split("  \u00b7  ") == ["augment light", *strengths]
    cat, kitten = given["panels"]
    assert (cat.label, cat.name) == (0, "cat")
    assert cat.note.startswith("train/cat/")
    assert kitten[:3] == (1, "小 猫", "train/小 猫/0.png")
    assert [tile.caption for tile in kitten.tiles] == ["evaluation", *(f"epoch {epoch}" for epoch in range(10))]


def test_without_labels_rows_are_named_by_their_keys(data_set, tmp_path, monkeypatch):
    custom = Augmentation(vertical_flip=0.5, mixup=0.2)
    given = texts(monkeypatch, data_set, tmp_path / "sheet.png", images=1, split="bare", augment=custom)
    assert given["details"][1].split("  \u00b7  ") == ["augment custom", "vertical_flip 0.5", "mixup 0.2 (not shown)"]
    (panel,) = given["panels"]
    assert (panel.label, panel.note) == (None, "no label")
    assert panel.name in {f"bare/{index}.jpg" for index in range(4)}


@pytest.mark.parametrize("image_size", [(20, 96), (96, 20), (500, 500)])
def test_images_are_brought_to_the_tile_with_their_aspect(image_size):
    pixels = np.zeros((*image_size, 3), np.uint8)
    fitted = sheets.fit(Image.fromarray(pixels), 48)
    assert fitted.size == (round(48 * image_size[1] / max(image_size)), round(48 * image_size[0] / max(image_size)))


def test_an_image_that_cannot_be_decoded_is_crossed_tiles(tmp_path, caplog):
    out = write_data_set(tmp_path / "out", [make_image(0, (8, 8)), b"no image"], 1)
    with caplog.at_level(logging.WARNING, "tfpipe"):
        sheet = drawn(out, tmp_path / "sheet.png", image_size=(8, 8))
    assert caplog.text.count("(source dog/1.jpg): cannot be decoded: Unknown image") == 1
    alarm = (np.abs(sheet.astype(int) - (179, 65, 46)).max(axis=2) < 8).sum()
    assert alarm > 11 * 2 * TILE


def test_a_shard_that_is_not_there_is_an_error_as_in_training(tmp_path):
    out = write_data_set(tmp_path / "out", [make_image(0, (8, 8))], 1)
    shard = out / manifests.load(out).splits["test"].shards[0].file
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard}: missing"):
        show(out, tmp_path / "sheet.png")


@pytest.mark.parametrize("kind", ["photo", "folder", "link", "pipe"])
def test_nothing_but_a_png_is_replaced(data_set, tmp_path, kind, monkeypatch):
    target = tmp_path / "target"
    photo = write(tmp_path / "photo.png", make_image(1, format="PNG"))
    {
        "photo": lambda: target.write_bytes(make_image(1)),
        "folder": target.mkdir,
        "link": lambda: target.symlink_to(photo),
        "pipe": lambda: os.mkfifo(target),
    }[kind]()
    before = os.lstat(target)
    monkeypatch.setattr(augmentation_sheet, "_choose", None)  # refused before anything is drawn
    with pytest.raises(FileExistsError, match=f"{target}: .* is there; it was not overwritten"):
        show(data_set, target)
    assert os.lstat(target) == before


def test_a_png_is_replaced(data_set, tmp_path):
    target = write(tmp_path / "sheet.png", make_image(1, format="PNG"))
    assert drawn(data_set, target, images=1).shape[1] > 11 * TILE
    assert os.listdir(tmp_path) == ["sheet.png"]


def test_where_no_sheet_can_be_written(data_set, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder, for the augmentation sheet a\.png"):
        show(data_set, tmp_path / "nowhere" / "a.png")
    for inside in ("a.png", "index/a.png"):
        with pytest.raises(ValueError, match="the augmentation sheet must be written outside the data set's folder"):
            show(data_set, data_set / inside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "wild"}, "augment must be an Augmentation or one of none, light, standard, strong (got 'wild')"),
        ({"augment": None}, "augment must be an Augmentation or one of none, light, standard, strong (got None)"),
        ({"split": "nix"}, "split must be one of train, bare (got 'nix')"),
        ({"images": 0}, "images must be an integer, 1 or more and less than 2**31 (got 0)"),
        ({"tile": 31}, "tile must be an integer, 32 or more and less than 2**31 (got 31)"),
        ({"seed": -1}, "seed must be an integer"),
        ({"tile": 5000}, "pixels, at most 100,000,000 can be drawn: lower --tile"),
        ({"tile": 2000, "images": 12}, "can be drawn: lower --tile or --images"),
    ],
)
def test_wrong_arguments(data_set, tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        show(data_set, tmp_path / "sheet.png", **options)
    assert os.listdir(tmp_path) == []


def test_names_that_no_font_has_are_escaped(data_set, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fonts, "_NAMES", ())
    with caplog.at_level(logging.WARNING, "tfpipe"):
        drawn(data_set, tmp_path / "sheet.png", images=2)
    assert "2 characters in no font found here, drawn as escapes" in caplog.text
