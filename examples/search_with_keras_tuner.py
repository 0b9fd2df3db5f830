#!/usr/bin/env python3
"""Searches for the options of a training with KerasTuner.

    pip install tfpipe keras-tuner
    python examples/search_with_keras_tuner.py shards/ search/ --backbone=vgg16 --weights=imagenet --trials=20

Every trial is a run of tfpipe in a folder of its own. All share one cache of features: the backbone
computes each image once, and a trial takes seconds. A search that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras_tuner

import tfpipe


class RunTuner(keras_tuner.BayesianOptimization):
    """Trains a run for each trial; KerasTuner draws the options and compares the results."""

    def __init__(self, data: Path, folder: Path, options: dict[str, Any], **settings: Any) -> None:
        """Keeps what all trials have in common."""
        self.data, self.folder, self.options = data, folder, options
        objective = keras_tuner.Objective("val_accuracy", "max")
        super().__init__(objective=objective, directory=folder, project_name="tuner", **settings)

    def run_trial(self, trial: Any, *_: Any, **__: Any) -> dict[str, float]:
        """Returns the figures of one run."""
        draw = trial.hyperparameters
        run = tfpipe.train(
            self.data,
            self.folder / f"run-{trial.trial_id}",
            **self.options,
            mode="bottleneck",
            solver="gradient",
            learning_rate=draw.Float("learning_rate", 1e-4, 1e-1, sampling="log"),
            hidden=(draw.Choice("hidden", [64, 256]),),
            dropout=draw.Float("dropout", 0.0, 0.6, step=0.1),
            label_smoothing=draw.Choice("label_smoothing", [0.0, 0.1]),
            cache=self.folder / "features",
            progress=False,
            log=None,
        )
        return {"val_accuracy": run.val_accuracy}


def main() -> None:
    """Searches, and names the best run, which `tfpipe evaluate` and `tfpipe export` take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set that `tfpipe build` made")
    parser.add_argument("output", type=Path, help="folder for all runs")
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=20)
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("backbone", "weights", "image_size", "epochs")}
    tuner = RunTuner(given.data, given.output, options, max_trials=given.trials, seed=0)
    tuner.search()
    (best,) = tuner.oracle.get_best_trials(1)
    print(f"{best.score:.4f} {best.hyperparameters.values} {given.output / f'run-{best.trial_id}'}")


if __name__ == "__main__":
    main()
