"""Runs that choose: the head among logistic regressions, and how far to unfreeze, on validation alone."""

import dataclasses
import json
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
from test_runs import run, run_killed_after, weights_equal, weights_of
from transfer_fixtures import *  # noqa: F403 (fixtures)
from transfer_fixtures import summary_of

import tfpipe
from tfpipe import Recipe
from tfpipe.models import classifiers
from tfpipe.pipeline import reading
from tfpipe.training import phases, regression
from tfpipe.training.logs.run_log import read_history
from tfpipe.training.loop import BEFORE
from tfpipe.training.schedules import EarlyStopping

pytestmark = pytest.mark.tf

CHOOSING = Recipe(backbone="lenet", weights="none", mode="bottleneck", image_size=(16, 16), precision="float32")
TUNING = dataclasses.replace(
    CHOOSING, mode="finetune", batch_size=8, deepen=True, finetune_epochs=2, finetune_learning_rate=1e-3
)


@pytest.fixture(autouse=True)
def _deterministic():
    yield
    tf.config.experimental.enable_op_determinism()


def head_of(folder):
    return json.loads((folder / "head.json").read_text())


def test_the_head_of_a_run_is_the_best_regression(finished):
    folder = finished(CHOOSING)
    summary, lines = summary_of(folder), (folder.parent / "lines").read_text("utf-8").splitlines()
    (phase,) = summary["phases"]
    found = head_of(folder)
    assert (phase["phase"], phase["num_epochs"], phase["on"]) == ("head", 0, "features")
    assert summary["head"] == found["best"]
    assert summary["val_accuracy"] == pytest.approx(found["best"]["val_accuracy"])
    assert phase["val_loss"] == pytest.approx(found["best"]["val_loss"], rel=1e-4, abs=1e-7)
    assert len(found["candidates"]) == 3 * len(regression.STRENGTHS)
    model = classifiers.load(folder).model
    pooling = {"average": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D", "flatten": "Flatten"}
    assert type(model.get_layer("pooling")).__name__ == pooling[found["best"]["pooling"]]
    assert any(line.startswith("head: logistic regression on ") for line in lines)
    assert lines[-1].endswith(f"look at {folder / 'head.png'}.")
    assert read_history(folder) == []


def test_a_pooling_that_is_requested_is_the_only_one(colours, tmp_path):
    run(colours, tmp_path / "run", dataclasses.replace(CHOOSING, pooling="max"))
    assert {candidate["pooling"] for candidate in head_of(tmp_path / "run")["candidates"]} == {"max"}


def test_rare_classes_weigh_more_if_requested(colours, tmp_path, finished):
    found = [weights_of(finished(CHOOSING))[-2]]
    for name, changes in {"balanced": {"balanced": True}, "weighted": {"class_weights": True}}.items():
        run(colours, tmp_path / name, dataclasses.replace(CHOOSING, **changes))
        found.append(weights_of(tmp_path / name)[-2])
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


def test_views_of_augmented_images_are_rows(colours, tmp_path, monkeypatch):
    counts = []
    search = regression.search
    monkeypatch.setattr(regression, "search", lambda train, *rest: (counts.append(train.count), search(train, *rest))[1])
    run(colours, tmp_path / "run", dataclasses.replace(CHOOSING, augment="light", views=3))
    assert counts == [3 * 40]


def test_nothing_but_train_and_val_is_opened(colours, tmp_path, monkeypatch):
    opened, frames = [], reading._frames

    def opening(directory, account, split, *rest):
        opened.append(split)
        return frames(directory, account, split, *rest)

    monkeypatch.setattr(reading, "_frames", opening)
    run(colours, tmp_path / "run", CHOOSING)
    assert set(opened) == {"train", "val"}


class Judge(EarlyStopping):
    """Finds the first epoch of each phase better than its start, or none: what `gains` says, the head's first."""

    gains: ClassVar[list[bool]] = []

    def observe(self, epoch, accuracy, loss):
        if epoch == BEFORE:
            self.is_better = self.gains.pop(0)
        return super().observe(epoch, 0.5, 1.0 if epoch == BEFORE else 0.5 if self.is_better else 2.0)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([False], ["finetune"]),
        ([True, False], ["finetune", "finetune_block2"]),
        ([True, True, True], ["finetune", "finetune_block2", "finetune_block1"]),
    ],
)
def test_blocks_are_unfrozen_as_long_as_that_gains(colours, tmp_path, monkeypatch, gains, expected):
    monkeypatch.setattr(phases, "EarlyStopping", Judge)
    monkeypatch.setattr(Judge, "gains", [True, *gains])
    lines = []
    summary = run(colours, tmp_path / "run", TUNING, log=lines.append)
    assert [phase["phase"] for phase in summary["phases"]] == ["head", *expected]
    numbers = [phase["num_trained"] for phase in summary["phases"]]
    assert numbers == sorted(set(numbers))
    assert any("stay frozen: " in line and "did not improve" in line for line in lines) == (not all(gains))
    rows = [row["phase"] for row in read_history(tmp_path / "run")]
    assert list(dict.fromkeys(rows)) == expected


def test_where_every_image_is_right_nothing_more_is_unfrozen(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(EarlyStopping, "observe", observe_all_right)
    lines = []
    summary = run(colours, tmp_path / "run", TUNING, log=lines.append)
    assert [phase["phase"] for phase in summary["phases"]] == ["head", "finetune"]
    assert any("every validation image is right" in line for line in lines)


def observe_all_right(self, epoch, accuracy, loss, real=EarlyStopping.observe):
    return real(self, epoch, 1.0, 1.0 / (epoch + 2))


def test_without_deepen_one_phase_is_all(colours, tmp_path):
    summary = run(colours, tmp_path / "run", dataclasses.replace(TUNING, deepen=None))
    assert [phase["phase"] for phase in summary["phases"]] == ["head", "finetune"]


def test_a_choosing_run_stopped_anywhere_ends_with_the_same_bits(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "EarlyStopping", Judge)
    monkeypatch.setattr(Judge, "observe", lambda self, epoch, *rest: EarlyStopping.observe(self, epoch, 0.5, 1 / (epoch + 2)))
    run(colours, tmp_path / "whole", TUNING)
    folder = tmp_path / "stopped"
    assert run_killed_after((0, 8, 13, 99), monkeypatch, colours, folder, TUNING) == 3
    assert [row["phase"] for row in read_history(folder)] == [row["phase"] for row in read_history(tmp_path / "whole")]
    for name in ("model.keras", "last.keras"):
        assert weights_equal(folder, tmp_path / "whole", name)
    assert head_of(folder) == head_of(tmp_path / "whole")


def test_more_epochs_of_fine_tuning_begin_deeper_phases_anew(colours, tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "EarlyStopping", Judge)
    monkeypatch.setattr(Judge, "observe", lambda self, epoch, *rest: EarlyStopping.observe(self, epoch, 0.5, 1 / (epoch + 2)))
    short = dataclasses.replace(TUNING, schedule="constant")
    long = dataclasses.replace(short, finetune_epochs=3)
    run(colours, tmp_path / "whole", long)
    run(colours, tmp_path / "extended", short)
    lines = []
    run(colours, tmp_path / "extended", long, log=lines.append)
    assert {"finetune_block2: starts over", "finetune_block1: starts over"} <= set(lines)
    assert weights_equal(tmp_path / "extended", tmp_path / "whole", "model.keras")


def test_sgd_measures_the_rate_of_a_head_and_trains_at_it(colours, tmp_path):
    lines = []
    run(colours, tmp_path / "run", dataclasses.replace(CHOOSING, optimizer="sgd", epochs=3, batch_size=8), log=lines.append)
    assert any(line.startswith("learning_rate=find: ") and "SGD" in line for line in lines)
    rate = json.loads((tmp_path / "run/learning_rate.json").read_text())["learning_rate"]
    assert max(row["learning_rate"] for row in read_history(tmp_path / "run")) <= rate


def test_the_card_reports_what_was_chosen(tmp_path, finished):
    best = head_of(finished(CHOOSING))["best"]
    tfpipe.export(finished(CHOOSING), tmp_path / "export", formats=("keras",), log=lambda line: None)
    card = (tmp_path / "export" / "model_card.md").read_text("utf-8")
    assert f"{best['pooling']} pooling" in card
    assert f"C={best['strength']:g}" in card
