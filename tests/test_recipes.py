"""Recipes: what is chosen is said, contradictions are refused, facts tell recipes apart."""

import dataclasses
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.training.recipes import Mode, Recipe, complete, help_of_options

pytestmark = pytest.mark.tf

MODES = tuple(mode for mode in get_args(Mode) if mode != "auto")
# Fields whose None means something to a run, or which are not of the mode.
STAY_NONE = {
    **{mode: {"views", "solver", "deepen", "finetune_epochs", "finetune_learning_rate"} for mode in ("scratch", "full")},
    "frozen": {"views", "solver", "deepen", "finetune_epochs", "finetune_learning_rate", "train_batch_norm"},
    "bottleneck": {"deepen", "finetune_epochs", "finetune_learning_rate", "train_batch_norm"},
    "finetune": set(),
}
OF_STEPS = {"pooling", "epochs", "learning_rate"}  # what a head by regression does not need, or finds out itself
MAY_BE_NONE = {"accumulate", "loss", "preprocessing", "feature_layer", "cache_prefix"}

OTHERS = {
    "backbone": "lenet",
    "weights": "none",
    "preprocessing": "tf",
    "grey": True,
    "mode": "full",
    "image_size": (9, 10),
    "resize": "crop",
    "feature_layer": "block4",
    "unfreeze": ("block5", "block4"),
    "views": 3,
    "cache_prefix": False,
    "augment": Augmentation(crop=0.5),
    "balanced": True,
    "class_weights": True,
    "val_fraction": 0.2,
    "seed": 1,
    "batch_size": 16,
    "accumulate": 2,
    "solver": "gradient",
    "deepen": True,
    "pooling": "max",
    "hidden": (10,),
    "dropout": 0.1,
    "l2": 1e-4,
    "loss": "squared",
    "label_smoothing": 0.1,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "momentum": 0.5,
    "learning_rate": "find",
    "epochs": 3,
    "schedule": "plateau",
    "warmup_epochs": 0.5,
    "finetune_learning_rate": 1e-5,
    "finetune_epochs": 4,
    "layer_decay": 0.9,
    "train_batch_norm": True,
    "patience": 2,
    "ema": 0.99,
    "precision": "float32",
    "deterministic": False,
}


def without_what_has_no_effect(recipe):
    mode = "scratch" if (recipe.mode, recipe.weights) == ("auto", "none") else recipe.mode
    tuned, normed = mode in ("auto", "finetune"), mode in ("auto", "scratch", "finetune", "full")
    return dataclasses.replace(
        recipe,
        finetune_epochs=recipe.finetune_epochs if tuned else None,
        train_batch_norm=recipe.train_batch_norm if normed else None,
    )


recipes = st.builds(
    Recipe,
    mode=st.sampled_from(get_args(Mode)),
    weights=st.sampled_from(["imagenet", "none"]),
    backbone=st.sampled_from(["vgg16", "lenet", "inceptionv3", "package.module:network"]),
    augment=st.sampled_from([None, "none", "light", "standard", Augmentation(rotation=3)]),
    views=st.none(),
    epochs=st.none() | st.integers(1, 300),
    patience=st.none() | st.integers(1, 9),
    learning_rate=st.sampled_from([None, "find", 1e-4]),
    finetune_epochs=st.none() | st.just(3),
    train_batch_norm=st.none() | st.booleans(),
    image_size=st.none() | st.just((32, 48)),
).map(lambda recipe: without_what_has_no_effect(recipe))


@given(recipe=recipes, num_images=st.integers(1, 50_000))
def test_every_choice_is_made_and_reported_and_nothing_else_changes(recipe, num_images):
    done, reasons = complete(recipe, num_images, 3)
    assert done.mode in MODES
    said = {reason.split("=")[0] for reason in reasons}
    assert len(said) == len(reasons)
    for field in dataclasses.fields(Recipe):
        before, after = getattr(recipe, field.name), getattr(done, field.name)
        assert (before != after) == (field.name in said), field.name
        if before is not None and field.name != "mode":
            assert after == before
        if after is None:
            regression = OF_STEPS if done.solver == "regression" else set()
            alone = {"patience"} if regression and done.mode == "bottleneck" else set()
            assert field.name in STAY_NONE[done.mode] | MAY_BE_NONE | regression | alone
    for reason in reasons:
        assert len(reason.split(": ", 1)[1]) > 5


@given(recipe=recipes, num_images=st.integers(1, 50_000))
def test_what_is_complete_stays_as_it_is(recipe, num_images):
    done, _ = complete(recipe, num_images, 3)
    assert complete(done, num_images, 3) == (done, [])


@pytest.mark.parametrize(
    ("options", "num_images", "mode"),
    [
        ({}, 1400, "finetune"),
        ({}, 100, "finetune"),
        ({}, 99, "bottleneck"),
        ({"weights": "none"}, 1400, "scratch"),
        ({"mode": "frozen"}, 50, "frozen"),
    ],
)
def test_the_mode_that_auto_takes(options, num_images, mode):
    done, reasons = complete(Recipe(**options), num_images, 2)
    assert done.mode == mode
    assert any(reason.startswith(f"mode={mode}: ") for reason in reasons) == ("mode" not in options)


def test_the_size_is_what_the_backbone_was_made_for():
    assert complete(Recipe(backbone="inceptionv3"), 1000, 2)[0].image_size == (299, 299)
    assert complete(Recipe(), 1000, 2)[0].image_size == (224, 224)


def test_only_networks_with_new_weights_or_all_trained_are_augmented_by_themselves():
    for mode in MODES:
        done, _ = complete(Recipe(mode=mode), 1000, 2)
        assert (done.augmentation != Augmentation()) == (mode in ("scratch", "full"))
        assert done.augmentation.horizontal_flip == 0  # of letters and hand signs another class
        assert done.train_batch_norm is {"scratch": True, "finetune": False, "full": False}.get(mode)


def test_many_images_get_few_views():
    found = [complete(Recipe(augment="light"), count, 2)[0].views for count in (100, 1_999, 5_000, 100_000)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3
    assert min(found) > 1
    assert complete(Recipe(), 100, 2)[0].views == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "bottleneck", "augment": Augmentation(mixup=0.2)}, ["mixup", "bottleneck"]),
        ({"mode": "finetune", "augment": Augmentation(cutmix=1.0)}, ["cutmix", "finetune"]),
        ({"augment": Augmentation(cutmix=1.0)}, ["cutmix", "finetune"]),
        ({"views": 4}, ["views=4", "augment"]),
        ({"views": 2, "augment": "none"}, ["views=2", "augment"]),
        ({"mode": "full", "augment": Augmentation(mixup=0.2), "class_weights": True}, ["class_weights", "mixup", "balanced"]),
        ({"mode": "bottleneck", "unfreeze": ("block5",)}, ["unfreeze", "bottleneck"]),
        ({"warmup_epochs": 6}, ["warmup_epochs=6", "half of 10 epochs"]),
        ({"warmup_epochs": 2, "epochs": 3, "mode": "bottleneck"}, ["warmup_epochs=2", "half of 3 epochs"]),
        ({"deepen": True, "unfreeze": ("block4",)}, ["deepen", "leave unfreeze out"]),
        ({"mode": "scratch", "weights": "vgg.h5"}, ["scratch", "weights=vgg.h5"]),
    ],
)
def test_contradictions_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        complete(Recipe(**options), 1000, 3)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_classifier_needs_two_classes(num_classes):
    with pytest.raises(ValueError, match=f"two classes or more .*{num_classes}"):
        complete(Recipe(), 1000, num_classes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "auto2"),
        ("optimizer", "adam"),
        ("schedule", "step"),
        ("pooling", "mean"),
        *[
            (name, value)
            for name in ("batch_size", "epochs", "finetune_epochs", "views", "patience")
            for value in (0, 1.5, True)
        ],
        ("seed", -1),
        ("seed", 1 << 31),
        ("val_fraction", 0.95),
        ("val_fraction", -0.1),
        ("label_smoothing", 1.0),
        ("momentum", 1.0),
        ("ema", 1),
        ("ema", True),
        ("weight_decay", -1e-9),
        ("warmup_epochs", -1),
        ("layer_decay", float("nan")),
        ("learning_rate", 0),
        ("learning_rate", "fond"),
        ("learning_rate", float("inf")),
        ("finetune_learning_rate", "find"),
        ("dropout", 1.0),
        ("l2", -1),
        ("hidden", (0,)),
    ],
)
def test_values_are_checked_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Recipe(**{name: value})


def test_facts_are_json_and_tell_recipes_apart():
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Recipe)}
    several = [Recipe(), *(dataclasses.replace(Recipe(), **{name: value}) for name, value in OTHERS.items())]
    texts = [json.dumps(recipe.facts(), sort_keys=True, allow_nan=False) for recipe in several]
    assert len(set(texts)) == len(several)
    for recipe, text in zip(several, texts, strict=True):
        assert json.loads(text) == recipe.facts()
        assert set(recipe.facts()) == set(OTHERS)


def test_each_option_has_help_which_is_the_docstring():
    found = help_of_options()
    assert list(found) == [field.name for field in dataclasses.fields(Recipe)]
    assert found["patience"].endswith("2 in fine-tuning after a regression.")


def test_one_part_is_the_default():
    assert Recipe(accumulate=1) == Recipe()


def test_the_head_and_the_augmentation_are_the_options():
    recipe = Recipe(pooling="max", hidden=(3,), dropout=0.2, l2=0.1, augment="strong")
    assert (recipe.head.pooling, recipe.head.hidden, recipe.head.dropout, recipe.head.l2) == ("max", (3,), 0.2, 0.1)
    assert recipe.augmentation == Augmentation.named("strong")
    assert Recipe().augmentation == Augmentation()


@pytest.mark.parametrize("option", ["hidden", "dropout", "l2", "learning_rate", "epochs"])
@pytest.mark.parametrize("mode", ["bottleneck", "finetune"])
def test_a_head_that_is_to_be_trained_in_steps_is(mode, option):
    assert complete(Recipe(mode=mode), 1000, 3)[0].solver == "regression"
    recipe = Recipe(mode=mode, **{option: OTHERS[option]})
    done, reasons = complete(recipe, 1000, 3)
    assert done.solver == "gradient"
    assert f"solver=gradient: for the sake of {option}" in reasons
    with pytest.raises(ValueError, match=f"{option} is of no effect with solver=regression"):
        complete(dataclasses.replace(recipe, solver="regression"), 1000, 3)


@pytest.mark.parametrize(
    "option", ["batch_size", "label_smoothing", "optimizer", "weight_decay", "schedule", "patience", "ema"]
)
def test_options_of_steps_are_fine_tunings_where_there_is_one(option):
    given = {option: OTHERS[option]}
    assert complete(Recipe(mode="bottleneck", **given), 1000, 3)[0].solver == "gradient"
    assert complete(Recipe(mode="finetune", **given), 1000, 3)[0].solver == "regression"


def test_auto_alone_goes_deeper_by_itself():
    assert complete(Recipe(), 1000, 3)[0].deepen is True
    assert complete(Recipe(unfreeze="block4"), 1000, 3)[0].deepen is False
    assert complete(Recipe(mode="finetune"), 1000, 3)[0].deepen is False
    assert complete(Recipe(mode="finetune", deepen=True), 1000, 3)[0].deepen is True


@pytest.mark.parametrize("mode", MODES)
def test_each_optimizer_has_rates_of_its_own(mode):
    found = {}
    for optimizer in ("adamw", "sgd"):
        solver = {"solver": "gradient"} if mode in ("bottleneck", "finetune") else {}
        done, reasons = complete(Recipe(mode=mode, optimizer=optimizer, **solver), 1000, 3)
        found[optimizer] = (done.learning_rate, done.finetune_learning_rate)
        other = {"adamw": "SGD", "sgd": "AdamW"}[optimizer]
        assert not [reason for reason in reasons if other in reason]
    assert found["adamw"][0] != found["sgd"][0]
    assert found["adamw"][1] is None or found["adamw"][1] < found["sgd"][1]
