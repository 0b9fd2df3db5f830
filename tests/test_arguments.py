"""Arguments: one rule for each name, in every public function; numbers of any type are taken and written alike."""

import dataclasses
import inspect
import re
from fractions import Fraction
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_image, write
from evaluation_fixtures import make_classifier
from export_fixtures import asked_here
from fold_fixtures import *  # noqa: F403 (fixtures)
from transfer_fixtures import *  # noqa: F403 (fixtures)

import tfpipe
from tfpipe.common import arguments
from tfpipe.common.errors import DataError
from tfpipe.models.split_images import SplitImages, hold_out
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.prediction.models import Model
from tfpipe.records.catalog import read_catalog
from tfpipe.training.logs.run_log import read_history
from tfpipe.training.runs import Run

pytestmark = pytest.mark.tf

__all__ = ["asked_here"]  # a fixture


class Said(NamedTuple):
    """A wrong value, and what the message says of it where that is another text than its `repr`."""

    value: object
    text: str


NAN = float("nan")
COUNT = [0, -1, 1.5, True, "3", NAN, 2**63]
FROM_ZERO = [-1, 1.5, False, "3", 2**63]
SHARE = [-0.1, 100.5, True, "0.5", NAN, float("inf")]
FLAG = [1, 0.0, "yes"]
WORD = ["nothing", 5]
TEXT = [5, ""]
PATH = [5, "", b"x"]

# Values that arguments of these names may not have in any function. One that means something else
# by a name has its own row.
_ROWS = {
    "accumulate batch_size epochs finetune_epochs max_pixels num_readers patience read_block": COUNT,
    "shard_bytes top_k views workers": COUNT,
    "num_parallel_calls": [0, -2, *COUNT[2:]],  # -1 is tf.data.AUTOTUNE
    "epoch first_epoch first_step profile_steps seed version": FROM_ZERO,
    "brightness contrast crop cutmix erasing greyscale horizontal_flip hue mixup rotation saturation vertical_flip": SHARE,
    "specificity tolerance": SHARE,
    "dropout ema l2 label_smoothing momentum val_fraction": [*SHARE, 1],
    "crop_aspect": [*SHARE, 0.99],
    "checkpoint_seconds layer_decay warmup_epochs weight_decay": [-1, True, "1", NAN, 10**400],
    "lease_seconds": [0, -1, True, "60", NAN, 10**5],
    "finetune_learning_rate learning_rate": [0, -1, True, "0.1", "fast", NAN, 10**400],
    "allow_leaks as_dict balanced cache_prefix class_weights csv_safe decode deterministic equal_steps grey half": FLAG,
    "ensemble": FLAG,
    "deepen extend near_duplicates overwrite progress repeat report scaled_decode tensorboard train_batch_norm": FLAG,
    "training trust": FLAG,
    "a b cache calibration_data data from_run images load_frozen.model output weights workers_folder": PATH,
    "engine": WORD,
    "calibrate check columns form format layout mode on_conflict on_error optimizer outputs pooling positive_class": WORD,
    "train_split val_split": WORD,
    "loss normalize precision preprocessing resize schedule signature_name solver split task": WORD,
    "checkpoint engine_address feature_layer id_column label_column model_name path_column value_column": TEXT,
    "group": TEXT,
    "export.log on_found train.log train_folds.log": [5, "yes"],
    "image_size size": [0, (224, 0), (224,), (1, 2, 3), (1.5, 2), "224", True, NAN],
    "shard": [(2, 2), (-1, 2), (0, 0), 3, (0.0, 2), "02", (True, 2), (0,), (0, 1, 2)],
    "class_names": ["cat", ["cat", "cat"], [], {"cat"}, [1], 5],
    "augment": ["heavy", "", 5, True],
    "augmentation": ["light", 5, None],
    "backbone": ["resnet", 5, ""],
    "encoded serialized": [5, [b"x"]],
    "engine_options": [5, "--runner=DirectRunner", [5], ["--a", "--a"]],
    "evaluation": [5, Said([5], "5"), ""],
    "formats": ["nothing", 5, [], Said(["pb", "pb"], "'pb', 'pb'")],
    "decisions": [5, Said([5], "5"), "", b"x"],
    "hidden": [0, (0,), (1.5,), "1024", True],
    "image": [Said(5, "int32 ()"), Said(np.zeros((2, 2, 3), np.float32), "float32 (2, 2, 3)"), np.zeros((2, 2), object)],
    "input": [5, "", Said({"train": 5}, "5")],
    "predict.input": [Said(5, "int"), Said([b"x"], "bytes")],
    "Model.predict.inputs": [Said(5, "int"), Said([None], "NoneType")],
    "key": [5, Said(["a"], "a")],
    "group_pattern": [5, "", "(", "no_group"],
    "label_columns target_columns": ["cat", ["cat", "cat"], [1], 5],
    "label_pattern": [5, "", "(", "no_group"],
    "evaluate_folds.model": PATH,
    "label_separator": [5, "", " "],
    "load.model": [Said(5, "int"), "", Said(b"x", "bytes")],
    "model": [Said(5, ""), Said(object(), "object")],
    "name": ["my-pets", 5, ""],
    "num_shards": [*COUNT, Said({"train": 0}, "0"), Said({"train": "4"}, "'4'")],
    "orientation": [1.5, "1", [1]],
    "grpc_request.images rest_request.images": [Said("1.jpg", "str"), Said([], "")],
    "png16 background convert": ["grey", 5, ""],
    "recipe": [5, {"mode": "full"}],
    "samples": ["white", 5, {"background": "white"}],
    "splits": [
        *["train=0.8", 5, {"train": 0.8, "test": 0.1}],
        *[Said({"train": value, "test": 0.2}, repr(value)) for value in ("0.8", True, 0, 1.5, NAN)],
    ],
    "strategy": [5, "gpu"],
    "tta": ["fliip", "", 1, 65, 2.5, True],
    "unfreeze": [5, ("a", "a"), ("",), [1]],
    "units": [["years"], 5],
    "unlabelled": ["dir", 5, Said({"x": 5}, "5")],
}
WRONG = {name: values for names, values in _ROWS.items() for name in names.split()}
# Their message begins in another way.
SAID_OTHERWISE = {"label_pattern": "label_pattern ", "Model.predict.inputs": "an input must be "}

CLASSES = {
    "Comparison",
    "DataError",
    "Evaluation",
    "Export",
    "FoldRuns",
    "Manifest",
    "Model",
    "RejectedImage",
    "Run",
    "Summary",
    "__version__",
}
PUBLIC = sorted({*tfpipe.__all__, "Model.predict"} - CLASSES)


def function_of(name):
    return Model.predict if name == "Model.predict" else getattr(tfpipe, name)


def parameters_of(name):
    """The arguments of a public function, those that it takes as **options, too: name -> whether it may be None."""
    function = function_of(name)
    found = inspect.signature(function).parameters.values()
    named = [parameter for parameter in found if parameter.kind != parameter.VAR_KEYWORD and parameter.name != "self"]
    if len(named) < len([parameter for parameter in found if parameter.name != "self"]):
        known = {"data", "split", *(one.name for one in named)}
        for more in {"train": [tfpipe.Recipe], "describe": [tfpipe.dataset], "train_folds": [tfpipe.train, tfpipe.Recipe]}[
            name
        ]:
            of_more = inspect.signature(more).parameters.values()
            named += [one for one in of_more if one.name not in known and one.kind != one.VAR_KEYWORD]
    if name == "train_folds":
        named = [one for one in named if one.name not in ("train_split", "val_split")]  # refused, whatever they are
    return {one.name: "None" in str(one.annotation) for one in named}


@pytest.fixture(scope="session")
def valid(colours, shards, tmp_path_factory):
    """Arguments that each public function takes, by its name."""
    folder = tmp_path_factory.mktemp("valid")
    for index in range(4):
        write(folder / "photos" / "ab"[index % 2] / f"{index}.jpg", make_image(index))
    model = make_classifier(tfpipe.load_manifest(colours).class_names)
    photos, out = folder / "photos", folder / "out"
    network = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, "softmax")]
    )
    of_dataset = {"data": colours, "split": "train"}
    image, file = tf.zeros([8, 8, 3], tf.uint8), photos / "a" / "0.jpg"
    return {
        "Augmentation": {},
        "Model.predict": {"self": Model(model), "inputs": [np.zeros((8, 8, 3), np.uint8)]},
        "Recipe": {},
        "augment_image": {"image": image, "size": 8, "augmentation": Augmentation(), "key": "a", "seed": 0, "epoch": 0},
        "build_tfrecords": {"input": photos, "output": out, "workers": 1, "progress": False},
        "class_weights": of_dataset,
        "compare": {"a": folder, "b": folder},
        "dataset": {**of_dataset, "training": True},
        "decode_image": {"encoded": tf.constant(file.read_bytes())},
        "describe": {**of_dataset, "training": True},
        "evaluate_folds": {"model": folder, "data": shards, "output": out},
        "evaluate": {"model": model, "data": colours, "split": "test", "output": out},
        "export": {"model": network, "output": out, "class_names": list("abc"), "data": colours, "split": "test"},
        "grpc_request": {"images": [file], "model_name": "pets"},
        "load": {"model": folder},
        "load_frozen": {"model": folder / "frozen.pb"},
        "load_manifest": {"data": colours},
        "parse_example": {"serialized": tf.constant(b"")},
        "predict": {"model": model, "input": colours, "output": folder / "table.csv", "split": "test"},
        "replay": {**of_dataset, "key": next(iter(read_catalog(colours, split="train"))).key, "seed": 0, "epoch": 0},
        "resize_image": {"image": image, "size": 8},
        "rest_request": {"images": [file]},
        "train": {"data": colours, "output": out, "backbone": "lenet", "weights": "none", "image_size": 32},
        "train_folds": {"data": shards, "output": out, "backbone": "lenet", "weights": "none", "image_size": 32},
        "verify": {"data": colours},
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_of_every_public_function_is_checked_by_its_name(valid, name):
    unlike = []
    for argument, may_be_none in parameters_of(name).items():
        row = f"{name}.{argument}" if f"{name}.{argument}" in WRONG else argument
        cases = [case if isinstance(case, Said) else Said(case, repr(case)) for case in WRONG[row]]  # a new one needs a row
        for value, said in [*cases, *([] if may_be_none else [Said(None, "None")])]:
            message = refusal(function_of(name), {**valid[name], argument: value})
            if not message.startswith(SAID_OTHERWISE.get(row, f"{argument} must ")) or said[:50] not in message:
                unlike.append((argument, value, message))
    assert unlike == []


def refusal(function, given):
    try:
        return f"not refused: {function(**given)!r:.100}"
    except (ValueError, TypeError) as error:
        return str(error)


def test_the_check_fails_for_an_argument_without_a_row_and_for_one_that_is_not_checked(valid, monkeypatch):
    monkeypatch.setitem(tfpipe.__dict__, "compare", lambda a, b, new=0: arguments.path("a", a) and arguments.path("b", b))
    with pytest.raises(KeyError, match="new"):
        test_every_argument_of_every_public_function_is_checked_by_its_name(valid, "compare")
    monkeypatch.setitem(tfpipe.__dict__, "compare", lambda a, b: None)
    with pytest.raises(AssertionError, match="not refused: None"):
        test_every_argument_of_every_public_function_is_checked_by_its_name(valid, "compare")


# ---- former names

_DATA = {"directory": "data"}
RENAMED = {
    **dict.fromkeys(("class_weights", "dataset", "describe", "evaluate", "load_manifest", "replay"), _DATA),
    "train": {**_DATA, "report": "log"},
    "export": {"evaluations": "evaluation", "report": "log"},
    "load": {"path": "model"},
    "load_frozen": {"path": "model"},
    "predict": {"inputs": "input"},
    "grpc_request": {"pictures": "images"},
    "rest_request": {"pictures": "images"},
}


def test_former_names_are_listed():
    found = {name: vars(function_of(name))["renamed"] for name in PUBLIC if "renamed" in vars(function_of(name))}
    assert found == RENAMED


@pytest.mark.parametrize(("name", "old", "new"), [(name, *pair) for name in RENAMED for pair in RENAMED[name].items()])
def test_a_former_name_of_an_argument_works_with_a_warning(valid, name, old, new):
    function, given = function_of(name), dict(valid[name])
    given.pop(new, None)
    with pytest.warns(
        DeprecationWarning, match=rf"{function.__name__}\(\): the argument '{old}' is now called '{new}'"
    ) as caught:
        message = refusal(function, {**given, old: 5})  # seen as the new one, which may not be 5
    assert message.startswith((f"{new} must ", "a list"))
    assert caught[0].filename == __file__  # the caller's line
    with pytest.raises(TypeError, match=f"got '{new}' and its former name '{old}'"):
        function(**{**given, new: 5, old: 5})


def test_a_former_name_gives_what_the_new_one_does(colours):
    with pytest.warns(DeprecationWarning, match="data"):
        assert tfpipe.class_weights(directory=colours, split="train") == tfpipe.class_weights(colours, "train")


# ---- what is taken, and how it is written


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        *[("batch_size", value, 8) for value in (8, np.int64(8), np.uint8(8), np.array(8)[()])],
        *[("dropout", value, 0.5) for value in (0.5, np.float32(0.5), np.float16(0.5), Fraction(1, 2))],
        *[("learning_rate", value, 1.0) for value in (1, 1.0, np.int32(1), np.float64(1), Fraction(1))],
        *[("grey", value, True) for value in (True, np.True_)],
        *[("image_size", value, (96, 96)) for value in (96, np.int32(96), (96, 96), [np.int64(96), 96], np.array([96, 96]))],
        *[("hidden", value, (64,)) for value in (64, (64,), [np.int64(64)], np.array([64]))],
        *[("unfreeze", value, ("block5",)) for value in ("block5", ["block5"], (np.str_("block5"),))],
        *[("mode", value, "full") for value in ("full", np.str_("full"))],
    ],
)
def test_numbers_and_texts_of_any_type_make_equal_recipes(name, given, taken):
    found = getattr(tfpipe.Recipe(**{name: given}), name)
    assert repr(found) == repr(taken)  # of type, too
    assert repr(tfpipe.Recipe(**{name: given}).facts()) == repr(tfpipe.Recipe(**{name: taken}).facts())


def test_an_augmentation_holds_floats():
    given = Augmentation(crop=1, crop_aspect=np.int64(2), hue=Fraction(1, 4), mixup=np.float32(0.5))
    assert repr(given) == repr(Augmentation(crop=1.0, crop_aspect=2.0, hue=0.25, mixup=0.5))


def test_a_whole_learning_rate_is_the_one_that_trains(colours, tmp_path):
    rates = {"learning_rate": 1, "finetune_learning_rate": 2, "warmup_epochs": 0, "schedule": "plateau"}
    run = {"mode": "finetune", "unfreeze": "second_conv", "epochs": 1, "finetune_epochs": 1, "precision": "float32", **rates}
    network = {"backbone": "small_backbone:two_convolutions", "weights": "none", "image_size": np.int64(16)}
    tfpipe.train(colours, tmp_path / "run", progress=False, tensorboard=False, **network, **run)
    assert [row["learning_rate"] for row in read_history(tmp_path / "run")] == [1.0, 2.0]


def test_arguments_of_any_type_give_equal_data_sets_and_manifests(valid, tmp_path):
    photos = valid["build_tfrecords"]["input"]
    plain = {"seed": 3, "splits": {"train": 0.5, "test": 0.5}, "num_shards": {"train": 1, "test": 1}, "max_pixels": 10**6}
    others = {
        "seed": np.int64(3),
        "splits": {"train": Fraction(1, 2), "test": np.float32(0.5)},
        "num_shards": {"train": np.int8(1), "test": 1},
        "max_pixels": np.int32(10**6),
    }
    for name, options in (("a", plain), ("b", others)):
        tfpipe.build_tfrecords(photos, tmp_path / name, workers=1, progress=False, **options)
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()


def test_a_side_is_a_square_wherever_there_is_an_image_size(colours):
    key = next(iter(read_catalog(colours, split="train"))).key
    with_pair, with_side = ({"image_size": size} for size in ((12, 12), 12))
    for one, other in (
        [tfpipe.replay(colours, "train", key, seed=0, epoch=1, **size) for size in (with_pair, with_side)],
        [next(iter(tfpipe.dataset(colours, "test", **size)))[0].numpy() for size in (with_pair, with_side)],
        [tfpipe.resize_image(tf.zeros([9, 8, 3], tf.uint8), size).numpy() for size in ((12, 12), 12)],
    ):
        assert one.shape[-3:] == (12, 12, 3)
        np.testing.assert_array_equal(one, other)
    assert tfpipe.describe(colours, "test", **with_side) == tfpipe.describe(colours, "test", **with_pair)


# ---- no val split


def test_nothing_is_held_out_unrequested(colours, colours_without_val, tmp_path):
    small = {"backbone": "lenet", "weights": "none", "image_size": 32, "val_fraction": 0}
    with pytest.raises(ValueError, match=r"val_fraction=0 holds nothing out, and .* no val split: .* give val_fraction=0\.1"):
        tfpipe.train(colours_without_val, tmp_path / "run", **small)
    assert not (tmp_path / "run" / "run.json").exists()
    train = SplitImages(colours, "train", (8, 8))
    rest, held = hold_out(train, 0.01)  # one of each class, as it says
    assert (len(rest.positions), len(held.positions)) == (train.num_records - 3, 3)


# ---- near names


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data: tfpipe.Recipe(backbone="resnet50v3"), "did you mean resnet50v2?"),
        (lambda data: tfpipe.Recipe(mode="fintune"), "did you mean finetune?"),
        (lambda data: tfpipe.Recipe(augment="lihgt"), "did you mean light?"),
        (lambda data: tfpipe.train(data, "run", lr=0.1), "did you mean learning_rate?"),
        (lambda data: tfpipe.train(data, "run", batchsize=8), "did you mean batch_size?"),
        (lambda data: tfpipe.build_tfrecords(data, "out", layout="folder"), "did you mean folders?"),
        (lambda data: tfpipe.dataset(data, "tarin"), "did you mean train?"),
        (lambda data: tfpipe.dataset(data, "train", class_names=["gren"]), "did you mean green?"),
        (lambda data: tfpipe.dataset(data, "train", resize="crap"), "did you mean crop?"),
        (lambda data: tfpipe.export("run", "out", formats=["savedmodel"]), "did you mean saved_model?"),
    ],
)
def test_a_near_name_is_suggested(colours, call, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        call(colours)
    assert words in str(caught.value)
    assert "did you mean" not in arguments.nearest("xyz", ["folders", "csv"])


# ---- what is returned says what it is


def test_a_dataset_reports_its_classes(colours):
    names = list(tfpipe.load_manifest(colours).class_names)
    assert tfpipe.dataset(colours, "test").class_names == names
    assert tfpipe.dataset(colours, "train", training=True, repeat=True, equal_steps=True).class_names == names
    chosen = tfpipe.dataset(colours, "test", class_names=names[::-1])
    assert chosen.class_names == names[::-1]
    assert not hasattr(chosen.map(lambda image, label: (image, label)), "class_names")  # as the docstring says


@pytest.fixture(scope="module")
def returned(colours, asked_here, tmp_path_factory):
    """What each function returns, by its name."""
    folder = tmp_path_factory.mktemp("returned")
    classifier = make_classifier(tfpipe.load_manifest(colours).class_names)
    phase = {"phase": "<head>", "num_epochs": 1, "best_epoch": 1, "val_accuracy": 0.5, "val_loss": 1.0}
    phase |= {"num_trained": 1, "num_frozen": 2, "on": "features"}
    evaluation = {"report": False, "progress": False}
    found = {
        "manifest": tfpipe.load_manifest(colours),
        "verify": tfpipe.verify(colours, progress=False),
        "run": Run(folder, "frozen", 0.5, [phase], None, "0" * 64, 10**9),
        "evaluate": tfpipe.evaluate(classifier, colours, "test", folder / "eval", **evaluation),
        "part": tfpipe.evaluate(classifier, colours, "test", folder / "part", shard=(0, 2), **evaluation),
        "export": tfpipe.export(make_classifier(), folder / "export", formats="pb"),
        "load": tfpipe.load(folder / "export" / "frozen_image.pb"),
        "load_frozen": tfpipe.load_frozen(folder / "export" / "frozen_image.pb"),
        "predict": tfpipe.predict(classifier, colours, folder / "table.csv", split="test", progress=False),
        "compare": tfpipe.compare(folder / "eval", folder / "eval"),
    }
    good, bad = found["load"].predict([np.zeros((8, 8, 3), np.uint8), folder / "none.jpg"])
    return {**found, "prediction": good, "rejected": bad}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("compare", ["Comparison(count=13", "difference=+0.0000, 95 % [", "p_value=1, same_data=True"]),
        ("verify", ["Report(num_findings=0, num_records=69", "root_hash='"]),
        ("run", ["Run(", "val_accuracy=0.5000", "phases=[<head> 0.5000]"]),
        ("manifest", ["Manifest('colours'", "'train': 40", "'test': 13", "'green'"]),
        ("evaluate", ["Evaluation(", "eval'", "split='test'", "records_seen=13", "accuracy=0."]),
        ("part", ["Evaluation(", "missing_parts=1"]),
        ("export", ["Export(", "export'", "frozen_bytes.pb", "largest difference 0"]),
        ("load", ["Model(class_names=['cat'", "image_size=(8, 8)", "resize='stretch'"]),
        ("prediction", ["Prediction('", "top=["]),
        ("rejected", ["Prediction(None, 0.0, reason='unreadable"]),
        ("load_frozen", ["FrozenGraph(", "frozen_image.pb'", "image -> ", "probabilities"]),
        ("predict", ["Summary(num_rows=13", "0 rejected"]),
    ],
)
def test_what_is_returned_has_a_repr_of_one_line(returned, name, words, tmp_path):
    text = repr(returned[name])
    assert "\n" not in text
    assert len(text) < 300 + len(str(tmp_path))
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("manifest", ["green", "records", "40", "13"]),
        ("evaluate", ["accuracy", "log_loss"]),
        ("compare", ["A right", "B wrong"]),
        ("export", ["frozen_image.pb", "labels.txt"]),
        ("predict", ["green", "mean score"]),
        ("verify", ["a", "7", "bad"]),
        ("run", ["&lt;head&gt;", "0.5000", "features"]),
    ],
)
def test_what_is_returned_is_a_table_in_a_notebook(returned, name, cells):
    value = returned[name]
    if name == "verify":
        value = dataclasses.replace(value, findings=[DataError("bad", path="a", offset=7)])
    shown = value._repr_html_()
    assert shown.startswith("<table>")
    assert [cell for cell in cells if not re.search(f"<t[dh]>{re.escape(cell)}</t[dh]>", shown)] == []


def test_a_run_is_a_mapping_as_before(tmp_path):
    run = Run(tmp_path, "frozen", 0.5, [], None, "0" * 64, 10**9)
    assert (run["mode"], run.get("nothing"), "folder" in run) == ("frozen", None, False)
    assert run == dict(run)
    assert list(run) == ["mode", "val_accuracy", "phases", "head", "model_sha256", "peak_memory_bytes"]
    with pytest.raises(KeyError, match="folder"):
        run["folder"]


def test_the_command_suggests_a_flag(run_tool):
    done = run_tool("train", "--data=a", "--output=b", "--lr=0.1", check=False)
    assert done.returncode == 2
    assert "Unknown command line flag 'lr' (did you mean learning_rate?)" in done.stderr
