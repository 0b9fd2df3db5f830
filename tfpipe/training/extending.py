"""Training a finished run for longer.

    raised = find_raised(folder, found, recipe)     # {"epochs": (2, 4)}
    lines, apply = plan(folder, found, facts, recipe, raised, rewarm=False)
    apply()

Training goes on from the state that a finished run keeps, and ends with the bits of a run that had
the raised numbers from the start, if its steps so far would have been the same. Where they would
not, that is an error, unless `rewarm` allows it. A phase after one that goes on starts over, as it
begins with the weights that the one before ends with.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfpipe.common.files import write_json
from tfpipe.records.manifest import SINGLE
from tfpipe.records.run_folders import RUN_NAME, STATE_FOLDER, SUMMARY_NAME, state_file, state_files
from tfpipe.training import checkpoints
from tfpipe.training.logs.run_log import read_history
from tfpipe.training.loop import is_done
from tfpipe.training.phases import caches_prefix, epochs_of, is_tuning, make_schedule, names_of
from tfpipe.training.recipes import Recipe
from tfpipe.training.schedules import EarlyStopping

LENGTHS = ("epochs", "finetune_epochs", "patience")  # the numbers that can be raised

Raised = Mapping[str, tuple[int, int]]


def find_raised(folder: Path, found: Mapping[str, Any], recipe: Recipe) -> Raised:
    """Returns (before, now) of each number that is higher than in `found`, the content of run.json.

    Raises:
        ValueError: one is lower, or the head's solver is another one.
    """
    was = {**found["recipe"], **found["chosen"]}
    solver = was.get("solver", recipe.solver and "gradient")  # before there was a choice, all were trained by gradient
    if solver != recipe.solver:
        needed = f"these options need {recipe.solver}"
        raise ValueError(f"{folder}: holds a run with solver={solver}, and {needed}; choose another folder")
    pairs = {name: (was[name], getattr(recipe, name)) for name in LENGTHS}
    changed = {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    for name, (before, now) in changed.items():
        if now < before:
            raise ValueError(f"{folder}: holds a run with {name}={before}, which can be raised, not lowered to {now}")
    return changed


def plan(
    folder: Path, found: Mapping[str, Any], facts: Mapping[str, Any], recipe: Recipe, raised: Raised, *, rewarm: bool
) -> tuple[list[str], Callable[[], None]]:
    """Returns lines about what will be done, and the function that changes the folder.

    A kill at any point costs nothing. `found` is the content of run.json; `facts` and `recipe`
    those of a run that had the raised numbers from the start.

    Raises:
        ValueError: the learning rates so far would have differed, without `rewarm`, or there is no
            state any more.
    """
    lower: dict[str, Any] = {name: pair[0] for name, pair in raised.items()}
    before = dataclasses.replace(recipe, **lower)
    history = read_history(folder)
    numbers = ", ".join(f"{name}={pair[1]} in place of {pair[0]}" for name, pair in raised.items())
    deeper = [row["phase"] for row in history if is_tuning(row["phase"])]
    names = list(dict.fromkeys([*names_of(recipe.mode), *deeper, *(path.stem for path in state_files(folder))]))
    if not state_file(folder, names[0]).exists():
        raise ValueError(
            f"{folder}: {numbers}: its folder {STATE_FOLDER}/ was deleted, and the run cannot go on without; train another from"
            " its weights, with from_run, in another folder"
        )
    lines, first_steps, dropped = [f"{folder}: goes on with {numbers}"], dict(found.get("first_steps", {})), []
    goes_on = False
    for name in names:
        path = state_file(folder, name)
        if goes_on or not path.exists() or (is_tuning(name) and caches_prefix(before) != caches_prefix(recipe)):
            dropped.append(path)
            first_steps.pop(name, None)
            lines += [f"{name}: starts over"] if path.exists() else []
            continue
        state = checkpoints.load(path)[1]
        stopping = EarlyStopping(recipe.patience or 1)
        stopping.restore(state["stopping"])
        is_over = is_done(state["progress"]["epoch"], epochs_of(recipe, name), stopping)
        accuracies = [_score(row, found) for row in history if row["phase"] == name]
        if not _has_same_rates(accuracies, state, name, before, recipe, first_steps.get(name, 0)):
            if not rewarm:
                keep = f"keep patience={before.patience}, " if recipe.schedule == "plateau" else ""
                raise ValueError(
                    f"{folder}: {numbers}: the learning rates of phase {name} so far would have differed (schedule="
                    f"{recipe.schedule}); {keep}go on all the same with extend (--extend), where a cosine warms up again,"
                    " or train another run from its weights with from_run"
                )
            lines.append(f"{name}: will not be what it had been with these numbers from the start")
            if recipe.schedule == "cosine" and not is_over:
                first_steps[name] = _num_done(state)
                lines.append(f"{name}: warms up again, and falls along a new cosine, from step {first_steps[name]} on")
        goes_on = goes_on or not is_over
    entry = {name: list(pair) for name, pair in raised.items()} | {"first_steps": first_steps, "command": sys.argv}
    changes = {name: facts[name] for name in ("recipe", "chosen", "reasons")}
    content = {**found, **changes, "first_steps": first_steps, "extended": [*found.get("extended", []), entry]}

    def apply() -> None:
        for path in (folder / SUMMARY_NAME, *dropped):
            path.unlink(missing_ok=True)
        write_json(folder / RUN_NAME, content)

    return lines, apply


def _num_done(state: Mapping[str, Any]) -> int:
    return int(state["progress"]["epoch"] * state["num_steps"] + state["progress"]["step"])


def _has_same_rates(
    accuracies: list[float], state: Mapping[str, Any], name: str, before: Recipe, recipe: Recipe, first_step: int
) -> bool:
    """Returns whether rates so far and state of the schedule are the same with both recipes."""
    num_steps, end = state["num_steps"], _num_done(state)
    old, new = (make_schedule(each, name, 1.0, num_steps, first_step) for each in (before, recipe))
    for epoch in range(state["progress"]["epoch"] + 1):
        steps = range(epoch * num_steps, min((epoch + 1) * num_steps, end))
        if any(old.rate(step) != new.rate(step) for step in steps):
            return False
        if epoch < state["progress"]["epoch"]:
            old.observe(accuracies[epoch])
            new.observe(accuracies[epoch])
    return old.state() == new.state()


def _score(row: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Returns what the schedule "plateau" was shown of an epoch: accuracy, or the loss."""
    score: float = row["val_accuracy"] if task_of(found) == SINGLE else -row["val_loss"]
    return score


def task_of(found: Mapping[str, Any]) -> str:
    """Returns what the model of a run predicts, from the content of run.json."""
    if found["recipe"].get("loss") == "cross_entropy":
        return SINGLE
    task: str = found["data"].get("task", SINGLE)
    return task
