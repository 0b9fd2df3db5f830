"""Decisions of people applied to the inputs of a build: other labels, and images that are left out.

Each is about the bytes and the class that somebody saw: for others it is refused. All problems are
reported at once, before anything is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfpipe.building.slices import SEPARATOR, classes_before
from tfpipe.building.state import LISTED_CLASS, State
from tfpipe.common.arguments import nearest
from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly
from tfpipe.records.decisions import DECISIONS, DROP, LABEL, Decision

DROPPED = "dropped"  # the reason in rejected.jsonl
_DIGITS = 12  # of a hash in a message


def apply_decisions(state: State, decisions: Iterable[Sequence[Decision]], class_names: Sequence[str]) -> dict[str, Any]:
    """Applies files of decisions, one after another, to labelled inputs; returns the fields of `manifest.Decided`.

    Raises:
        DataError: images that are not there, or have other bytes or another class, or classes that
            are not among `class_names`; the message names each.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    counts: Counter[str] = Counter(dict.fromkeys(DECISIONS, 0))
    problems = []
    for decision in (decision for of_file in decisions for decision in of_file):
        row = next(state.execute(_INPUT, (decision.key,)), None)
        if problem := _problem(decision, row, labels):
            problems.append(f"{decision.key}: {problem}")
            continue
        counts[decision.decision] += 1
        if decision.decision == DROP:
            message = f"{decision.key}: dropped by a decision; it had the class {decision.old_class!r}"
            state.execute(_DROP, (DROPPED, message, decision.key))
        elif decision.decision == LABEL:
            state.execute(_RELABEL, {**decision._asdict(), "label": labels[decision.new_class], "separator": SEPARATOR})
    if problems:
        wrong = exactly(len(problems), "decision does", "decisions do")
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise DataError(f"{wrong} not fit the inputs; remove the rows, or review again:{lines}")
    return {
        "counts": dict(counts),
        "relabelled": dict(_relabelled(state)),
        "dropped": dict(state.execute(_DROPPED, (DROPPED,))),
    }


_INPUT = "SELECT sha256, class_name, reason FROM inputs WHERE key = ? ORDER BY reason NOT NULL"
_DROP = "UPDATE inputs SET split = NULL, reason = ?, message = ?, fatal = 0 WHERE key = ? AND reason IS NULL"
_RELABEL = """
    UPDATE inputs SET class_name = :new_class, label = :label,
        history = iif(history = '', '', history || :separator) || :old_class
    WHERE key = :key AND reason IS NULL"""
_DROPPED = f"SELECT key, {LISTED_CLASS} FROM inputs WHERE reason = ? ORDER BY key"


def _problem(decision: Decision, row: tuple[Any, ...] | None, labels: Mapping[str, int]) -> str:
    """Returns why a decision does not apply to the row (sha256, class, reason) of its key, or ""."""
    if row is None:
        return "there is no such image"
    sha256, class_name, reason = row
    if reason == DROPPED:
        return "an earlier decision has dropped it"
    if reason is not None:
        return "" if decision.decision == DROP else f"it is rejected ({reason})"
    if sha256 != decision.sha256:
        return f"its bytes are others now (SHA-256 {sha256[:_DIGITS]}, the decision is about {decision.sha256[:_DIGITS]})"
    if class_name != decision.old_class:
        return f"its class is {class_name!r}, the decision is about {decision.old_class!r}"
    if decision.decision == LABEL and decision.new_class not in labels:
        return f"there is no class {decision.new_class!r}{nearest(decision.new_class, labels)}"
    return ""


def _relabelled(state: State) -> Iterator[tuple[str, list[str]]]:
    changed = "SELECT key, history FROM inputs WHERE history != '' AND reason IS NULL ORDER BY key"
    for key, history in state.execute(changed):
        yield key, list(classes_before(history))
