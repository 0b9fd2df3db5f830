"""The set of classes is questioned before anything is written: what is refused, what is warned of, what insists."""

import logging
import unicodedata

import pytest
from conftest import make_image, write

import tfpipe
from tfpipe.building import class_checks
from tfpipe.building.inputs.sources import DEFAULT_LABEL_PATTERN, list_sources
from tfpipe.building.options import Options
from tfpipe.building.state import State

NFC, NFD = "caf\u00e9", "cafe\u0301"
WHOLE_NAMES = class_checks._WHOLE_NAMES.removeprefix("label_pattern='").removesuffix("'")


def question(root, paths, layout="folders", *, guessed=True, class_names=None, table=None, normalize="none"):
    """Lists files of these paths and questions their classes; nothing looks into the files."""
    for path in paths:
        write(root / "in" / path, b"x")
    source = root / "in" if table is None else write(root / "in" / "t.csv", "\n".join(table).encode())
    options = Options(
        *("pets", "csv" if table else layout, DEFAULT_LABEL_PATTERN, class_names, (), (), None, None, 1, 0, "fail", "fail"),
        *(False, 1, "header"),
        guessed=guessed,
    )
    state = State(root / "state.sqlite")
    listing = list_sources({None: source}, {}, options.layout, normalize=normalize)
    state.list_inputs(listing.items)
    state.note("empty_folders", listing.notes.empty_folders)
    class_checks.check_classes(state, options, defined=False)


def refused(root, *arguments, **options):
    with pytest.raises(ValueError, match=r"the classes are probably not what was meant; .* class_names:\n") as caught:
        question(root, *arguments, **options)
    return str(caught.value).split("\n")[1:]


def warned(caplog, root, *arguments, **options):
    caplog.clear()
    question(root, *arguments, **options)
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def rows(*labels):
    return ["path,label", *(f"{index}.jpg,{label}" for index, label in enumerate(labels))]


def test_a_folder_one_level_too_deep_names_the_folder_to_pass(tmp_path, caplog):
    paths = ["flowers/rose/1.jpg", "flowers/tulip/2.jpg"]
    (line,) = refused(tmp_path, paths)
    assert line.startswith(f"  {tmp_path}/in/flowers: the one class, 'flowers', holds only folders, 'rose', 'tulip'")
    assert line.endswith("pass this folder as the input")
    assert refused(tmp_path, paths, guessed=False) == [line]
    assert "'rose', 'tulip'" in warned(caplog, tmp_path, paths, class_names=("flowers",))[0]
    assert warned(caplog, tmp_path, [*paths, "flowers/3.jpg"]) == []


def test_the_folder_to_pass_below_split_folders(tmp_path):
    (line,) = refused(tmp_path, ["train/set/a/1.jpg", "test/set/b/2.jpg"])
    assert "/in/test/set: the one class" in line
    assert line.endswith("pass this folder as the input of its split (input=SPLIT=DIR)")


def test_folders_that_repeat_in_all_classes_are_warned_about(tmp_path, caplog):
    years = [f"{year}/{name}/1.jpg" for year in (2020, 2021) for name in "ab"]
    (line,) = refused(tmp_path, years)
    assert "the folders '2020', '2021' are taken for classes, and 'a', 'b' repeat in them" in line
    assert line.endswith("else pass layout=folders")
    (warning,) = warned(caplog, tmp_path, years, guessed=False)
    assert "'2020', '2021'" in warning
    assert "pass layout" not in warning


@pytest.mark.parametrize("inside", ["{0}/images/1.jpg", "{0}/of {0}/1.jpg", "{0}/1.jpg"])
def test_classes_with_folders_of_their_own_are_not_warned_about(tmp_path, caplog, inside):
    assert warned(caplog, tmp_path, [inside.format(name) for name in ("n01", "n02")]) == []


def test_every_image_a_class_of_its_own_in_every_layout(tmp_path, caplog):
    names = [f"cat-{index:03}.jpg" for index in range(10)]
    (line,) = refused(tmp_path / "a", names, "filename")
    assert "10 images have 10 classes ('cat-000', " in line
    assert WHOLE_NAMES in line
    assert "are these folders classes?" in warned(caplog, tmp_path / "b", [f"{name}/1.jpg" for name in names])[0]
    paths = [f"{index}.jpg" for index in range(10)]
    (warning,) = warned(caplog, tmp_path / "c", paths, table=rows(*"abcdefghij"))
    assert "does label_column name the column of classes?" in warning
    assert warned(caplog, tmp_path / "d", paths, table=rows(*"abcdeabcde")) == []
    assert warned(caplog, tmp_path / "e", names[:9], "filename") == []


def test_parts_of_names_that_the_default_pattern_drops(tmp_path, caplog):
    names = ["english_setter_1.jpg", "english_cocker_spaniel_1.jpg", "beagle_1.jpg", "beagle_2.jpg"]
    (line,) = refused(tmp_path / "a", names, "filename")
    assert "'english_cocker_spaniel', 'english_setter' become one class, 'english'" in line
    cameras = ["3_IMG_0042.jpg", "3_DSC_0001.jpg", "4_IMG_1.jpg", "4_DSC_2.jpg"]
    titles = ["cat.1.jpg", "cat_sunset_1.jpg", "cat_home_2.jpg", "cat_beach_3.jpg"]
    assert warned(caplog, tmp_path / "b", cameras + titles, "filename") == []


def test_the_pattern_that_is_proposed_takes_whole_names(tmp_path):
    for name in ("english_setter_1.jpg", "english_setter_02.jpeg", "cat-001.jpg", "cat (2).png", "dog.7.jpg"):
        write(tmp_path / name, b"x")
    found = {item.class_name for item in list_sources({None: tmp_path}, {}, "filename", WHOLE_NAMES).items}
    assert found == {"english_setter", "cat", "dog"}


def test_empty_class_folders_are_named(tmp_path, caplog):
    for name in ("bird", "fox/sub", "cat/empty"):
        (tmp_path / "in" / name).mkdir(parents=True)
    write(tmp_path / "in/fish/.DS_Store", b"x")
    paths = ["cat/1.jpg", "dog/1.jpg"]
    assert warned(caplog, tmp_path, paths) == ["3 folders hold no image: 'bird', 'fish', 'fox'"]
    (tmp_path / "two/in/train/bird").mkdir(parents=True)
    paths = [f"{split}/{path}" for split in ("train", "val") for path in paths]
    assert warned(caplog, tmp_path / "two", paths) == ["1 folder holds no image: 'train/bird'"]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NA", "N/A"])
def test_missing_values_are_not_classes_of_a_table(tmp_path, caplog, word):
    paths = [f"{index}.jpg" for index in range(4)]
    (line,) = refused(tmp_path, paths, table=rows("cat", word, "dog", word))
    assert f"the class {word!r} of 2 images (line 3, line 5) is named like a missing value" in line
    if word.isalpha():  # a folder that somebody has made is a class
        (warning,) = warned(caplog, tmp_path / "b", ["cat/1.jpg", f"{word}/1.jpg"])
        assert "missing value" in warning
    insisted = warned(caplog, tmp_path / "c", paths, table=rows("cat", word, "dog", word), class_names=("cat", word, "dog"))
    assert insisted == [line.strip()]


def test_names_that_look_alike(tmp_path, caplog):
    paths = [f"{index}.jpg" for index in range(6)]
    lines = refused(tmp_path, paths, table=rows("cat", "Cat", "red fox", "red_fox", "A", "a"))
    assert [line.split(" look ")[0] for line in lines] == [
        "  the classes 'Cat' and 'cat'",
        "  the classes 'red fox' and 'red_fox'",
    ]
    folders = ["Delta/1.jpg", "delta/2.jpg", "t-shirt/3.jpg", "t_shirt/4.jpg"]
    expected = ["the classes 'Delta' and 'delta'", "the classes 't-shirt' and 't_shirt'"]
    assert [line.strip().split(" look ")[0] for line in refused(tmp_path / "d", folders)] == expected
    named = warned(caplog, tmp_path / "e", folders, guessed=False)
    assert [line.split(" look ")[0] for line in named] == expected
    both = [f"{NFC}/1.jpg", f"{NFD}/2.jpg", "tea/3.jpg"]
    (line,) = refused(tmp_path / "b", both)
    assert "in their Unicode form only: normalize=nfc" in line
    assert warned(caplog, tmp_path / "c", both, normalize="nfc") == []


@pytest.mark.parametrize("label", ["cat|dog", "cat;dog", '"cat,dog"', "\"['cat', 'dog']\""])
def test_lists_are_not_classes(tmp_path, label):
    (line,) = refused(tmp_path, ["0.jpg", "1.jpg", "2.jpg"], table=rows("cat", label, "dog"))
    assert "look like several classes each" in line


def test_signs_are_classes(tmp_path, caplog):
    paths = [f"{index}.jpg" for index in range(4)]
    assert warned(caplog, tmp_path, paths, table=rows("|", ";", '","', "?x")) == []


def test_measured_numbers_are_not_classes_and_counted_ones_are(tmp_path, caplog):
    paths = [f"{index}.jpg" for index in range(4)]
    assert "'0.87', '1.5', '2.25', '3': measurements" in refused(tmp_path, paths, table=rows("0.87", "1.5", "2.25", "3"))[0]
    assert warned(caplog, tmp_path / "b", paths, table=rows("1", "0", "1", "10")) == []
    assert warned(caplog, tmp_path / "c", paths, table=rows("1.0", "0.0", "1.0", "bread, white")) == []


# What training refuses later


def build(source, output, **options):
    return tfpipe.build_tfrecords(source, output, workers=1, progress=False, **{"layout": "folders", **options})


def test_what_training_refuses_is_reported_at_build(tmp_path, caplog):
    for index, path in enumerate(("one/a/1.jpg", "one/a/2.jpg", "two/train/a/1.jpg", "two/train/b/2.jpg", "two/test/c/3.jpg")):
        write(tmp_path / path, make_image(index))
    build(tmp_path / "one", tmp_path / "1")
    assert "there is one class, 'a': training needs two or more" in caplog.text
    build(tmp_path / "two", tmp_path / "2")
    assert "there is one image of each class in split 'train' and no split 'val': training cannot validate" in caplog.text
    assert "1 class has no image in split 'train', without which it cannot be trained on: 'c'" in caplog.text
    build({"learn": tmp_path / "two/train", "test": tmp_path / "two/test"}, tmp_path / "3")
    assert "no labelled split is called 'train', which training reads; there are learn, test" in caplog.text
    build(tmp_path / "two/train", tmp_path / "4", unlabelled={"valid": tmp_path / "one"})
    assert "split 'val' has no labels: training cannot validate with it" in caplog.text
    caplog.clear()
    build({"test": tmp_path / "two/train"}, tmp_path / "5")  # to evaluate on
    assert caplog.text == ""


def test_a_class_that_folds_lack_to_train_on_is_reported_at_build(tmp_path, caplog):
    for index in range(4):
        write(tmp_path / f"in/common/{index}.jpg", make_image(index))
    write(tmp_path / "in/rare/0.jpg", make_image(9))
    build(tmp_path / "in", tmp_path / "4", splits={"folds": 4})
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    rare = next(name for name, split in tfpipe.load_manifest(tmp_path / "4").splits.items() if split.class_counts["rare"])
    before = f"fold{(int(rare[-1]) - 1) % 4}"  # validates on `rare`
    held = " held out, or in what is left to train on where ".join(f"{name} is" for name in sorted((rare, before)))
    assert line.startswith(f"1 class has no image in what is left to train on where {held} held out")
    assert line.endswith("without which it cannot be trained on: 'rare'")
    caplog.clear()
    build(tmp_path / "in", tmp_path / "2", splits={"folds": 2})
    assert "of two folds one is held out, and none is left to validate with" in caplog.text


def test_a_refused_set_of_classes_leaves_nothing_and_insisting_builds(tmp_path):
    for index, path in enumerate((NFC, NFD)):
        write(tmp_path / "in" / path / "1.jpg", make_image(index))
    with pytest.raises(ValueError, match="normalize=nfc makes one class of them"):
        build(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert build(tmp_path / "in", tmp_path / "out", class_names=[NFC, NFD]).class_names == [NFC, NFD]
    content = build(tmp_path / "in", tmp_path / "nfc", normalize="nfc")
    assert (list(content.class_names), content.options["normalize"]) == ([NFC], "nfc")
    build(tmp_path / "in", tmp_path / "nfc", normalize="nfc")  # complete: nothing to do
    content = build(tmp_path / "in", tmp_path / "named", normalize="nfc", class_names=[NFD])
    assert list(content.class_names) == content.options["class_names"] == [NFC]
    with pytest.raises(ValueError, match="class_names must be different names of classes"):
        build(tmp_path / "in", tmp_path / "twice", normalize="nfc", class_names=[NFD, NFC])
    assert unicodedata.is_normalized("NFC", content.class_names[0])
    with pytest.raises(ValueError, match="normalize was 'nfc' and is 'none'"):
        build(tmp_path / "in", tmp_path / "nfc")
