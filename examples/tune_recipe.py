#!/usr/bin/env python3
"""Searches for good options of a recipe with KerasTuner; each trial is a run of tfpipe.

    pip install keras-tuner
    python examples/tune_recipe.py --data=shards/ --output=search/

The split val chooses among the trials. The split test is evaluated once, at the end. A search that
was stopped goes on where it was, in the middle of a trial, too.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import keras_tuner
from digits import build_digits

import tfpipe

# What all trials share. For photos: backbone="vgg16", weights="imagenet", mode="finetune", and
# other options below.
RECIPE = tfpipe.Recipe(backbone="lenet", weights="none", mode="scratch")

AUGMENTATIONS = {  # KerasTuner chooses among words and numbers only
    "none": tfpipe.Augmentation(),
    "crop": tfpipe.Augmentation(crop=0.7),
    "crop and turn": tfpipe.Augmentation(crop=0.7, rotation=10),
}


def options_to_search() -> keras_tuner.HyperParameters:
    """Returns the options of `tfpipe.Recipe`, under their own names, with the values to try."""
    options = keras_tuner.HyperParameters()
    options.Float("learning_rate", 3e-4, 1e-2, sampling="log")
    options.Choice("pooling", ["average", "flatten"])
    options.Float("dropout", 0.0, 0.5, step=0.25)
    options.Choice("augment", list(AUGMENTATIONS))
    return options


class Search(keras_tuner.RandomSearch):  # type: ignore[misc]
    """A random search whose trials are runs, each in a folder of its own."""

    def run_trial(self, trial: Any, data: Path, recipe: tfpipe.Recipe) -> dict[str, float]:
        """Trains with a trial's options; returns what the search compares."""
        try:
            run = self.train(trial, data, recipe)
        except (ValueError, tfpipe.DataError) as error:  # options that do not go together, or a loss that is not finite
            print(f"trial {trial.trial_id} failed: {error}", flush=True)
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        print(f"trial {trial.trial_id}: val accuracy {run.val_accuracy:.4f} with {trial.hyperparameters.values}", flush=True)
        return {"val_accuracy": run.val_accuracy}

    def train(self, trial: Any, data: Path, recipe: tfpipe.Recipe) -> tfpipe.Run:
        """Returns a trial's run: a finished one at once, a stopped one after the rest of its training."""
        options = dict(trial.hyperparameters.values)
        options["augment"] = AUGMENTATIONS[options["augment"]]
        folder = Path(self.get_trial_dir(trial.trial_id)) / "run"
        return tfpipe.train(data, folder, recipe, log=None, **options)


def main() -> None:
    """Searches, and evaluates the best run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set with splits train, val and test (default: digits, made here)")
    parser.add_argument("--output", type=Path, default=Path("search_output"), help="folder for all files (%(default)s)")
    parser.add_argument("--trials", type=int, default=5, help="combinations of options to try (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of each trial, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the search and of all runs, 1 or more (%(default)s)")
    given = parser.parse_args()
    evaluation = given.output / "evaluation"
    if (evaluation / "receipt.json").exists():
        parser.exit(1, f"{evaluation}: the test split has been evaluated; another search needs another --output\n")

    data = given.data or build_digits(given.output / "digits")
    recipe = dataclasses.replace(RECIPE, epochs=given.epochs, seed=given.seed)
    search = Search(
        hyperparameters=options_to_search(),
        objective=keras_tuner.Objective("val_accuracy", "max"),
        max_trials=given.trials,
        seed=given.seed,  # 0 would be drawn by chance
        directory=given.output,
        project_name="trials",
    )
    search.oracle.verbose = 0  # run_trial prints a line
    search.search(data, recipe)

    if not (trials := search.oracle.get_best_trials(given.trials)):
        parser.exit(1, "every trial failed\n")
    # The first of equal ones: KerasTuner's order of them is another one after a restart.
    best = min(trials, key=lambda trial: (-trial.score, trial.trial_id))
    run = search.train(best, data, recipe)  # finished: nothing is trained; or an error, if data or recipe are others now
    print(f"best on val: trial {best.trial_id}, {run.folder}")
    found = tfpipe.evaluate(run.folder, data, "test", evaluation)
    low, high = found.metrics["accuracy_interval"]
    print(f"accuracy on test: {found.metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}); see {evaluation}")


if __name__ == "__main__":
    main()
