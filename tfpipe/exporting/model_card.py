"""The model card of an export: facts, measured quality, and what a person must fill in.

    text = render(specification, run=Path("runs/a"), evaluations=[Path("eval/")], parity=rows, files=files)

Sections follow Mitchell et al. 2019, "Model cards for model reporting"
(https://arxiv.org/abs/1810.03993). Without a date: equal exports have equal cards.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from tfpipe.common import text
from tfpipe.common.files import check_json, load_json
from tfpipe.common.text import interval, number, percent, plural
from tfpipe.evaluation import metrics, suspects
from tfpipe.evaluation.html_report import NEAR_DUPLICATES_NAME
from tfpipe.evaluation.label_report import worst_labels
from tfpipe.evaluation.numbers import order as in_order
from tfpipe.evaluation.numbers import values
from tfpipe.formats.preflight import KERAS_NAME
from tfpipe.formats.specifications import Specification
from tfpipe.models import predictions
from tfpipe.records import folds
from tfpipe.records.manifest import MULTILABEL, ORDINAL, REGRESSION
from tfpipe.records.run_folders import BACKBONE_NAME, RUN_NAME, SUMMARY_NAME
from tfpipe.report import templates

FILE_NAME = "model_card.md"

_LARGE_BYTES = 100_000_000
_MAX_NAMES = 50
_RESIZES = {
    "stretch": "stretched to that size; the aspect ratio is not kept",
    "crop": "scaled until they cover that size, and the centre is kept",
    "pad": "scaled until they fit into that size, with black around them",
}
_HALF = {
    "num_pictures": "images",
    "accuracy_before": "accuracy before",
    "accuracy": "accuracy with rounded weights",
    "num_changed": "images that get another class",
    "largest_difference": "largest difference of a probability",
}
_INT8 = {"accuracy": "accuracy in 8 bits"}

_MEANS = {"auc": "AUC", "average_precision": "average precision", "f1": "F1"}  # of several labels an image

File = tuple[str, int, str]


class _Data(TypedDict):
    name: str
    root_hash: str
    num_train: int
    num_val: int
    task: NotRequired[str]


class _Run(TypedDict):
    recipe: dict[str, Any]
    chosen: dict[str, Any]
    data: _Data
    versions: dict[str, str]
    precision: str


class _Recipe(TypedDict):
    backbone: str
    weights: str
    hidden: list[int]
    pooling: str | None
    dropout: float
    mode: str
    optimizer: str
    batch_size: int
    seed: int


class _Backbone(TypedDict):
    sha256: str


class _Phase(TypedDict):
    phase: str
    num_epochs: int
    best_epoch: int
    num_trained: int


class _Head(TypedDict):
    pooling: str
    strength: float
    val_loss: float
    val_accuracy: float


class _Summary(TypedDict):
    model_sha256: str
    mode: str
    val_accuracy: float
    phases: list[_Phase]
    head: NotRequired[_Head | None]


class _Computed(TypedDict):
    device: str
    arithmetic: str


class _Fold(TypedDict):
    held_out: str
    model_sha256: str


class _Receipt(TypedDict):
    split: str
    model_sha256: str
    data_root_hash: str
    ids_sha256: str
    options: NotRequired[dict[str, Any]]
    computed: NotRequired[list[_Computed]]
    folds: NotRequired[list[_Fold]]


class _Pairs(TypedDict):
    against: list[str]
    count: int
    count_without: int
    accuracy_without: float | None
    accuracy_without_interval: tuple[float, float] | None


def render(
    specification: Specification,
    *,
    run: Path | None = None,
    evaluations: Sequence[Path] = (),
    parity: Sequence[Mapping[str, Any]] = (),
    files: Sequence[File] = (),
    half: Mapping[str, Any] | None = None,
    int8: Mapping[str, Any] | None = None,
    ensemble: bool = False,
) -> str:
    """Returns the card as Markdown.

    Args:
        specification: of the exported model.
        run: its run's folder, None for a model of another program.
        evaluations: folders of `tfpipe.evaluate`, each of this model; of an ensemble, also of
            `tfpipe.evaluate_folds`, of its members.
        parity: rows of the comparison of the exported files; the first one's names are the columns.
        files: (path in the export, bytes, SHA-256) of each.
        half: the cost of float16 weights, see `half_precision.measure_cost`, and "sha256", the hash
            of the rounded model; `specification` is then of the original one.
        int8: the cost of 8 bits.
        ensemble: the model is the mean of those of the runs beside `run`, see `train_folds`.

    Raises:
        ValueError: an evaluation of another model.
        FileNotFoundError: the run or an evaluation is missing or not finished.
        DataError: damaged files.
    """
    facts = _read_run(run, specification) if run is not None else None
    members: dict[str, _Summary] = {}  # by the fold that they have not seen
    if facts and run is not None and ensemble:
        found_models = folds.find_models(run.parent)
        members = {file.parent.name: load_json(file.parent / SUMMARY_NAME, _Summary) for file in found_models}
        facts["members"] = list(members.values())
    data = facts["data"] if facts else {}
    classes = plural(len(specification.class_names), "class", "classes")
    hashes = {name: one["model_sha256"] for name, one in members.items()}
    found = [_Evaluation.read(path, specification, hashes) for path in evaluations]
    columns = list(parity[0]) if parity else []
    large = [(name, text.format_bytes(size), shlex.quote(name)) for name, size, _ in files if size > _LARGE_BYTES]
    return templates.render(
        "model_card.md",
        title=f"{facts['recipe']['backbone']} on {data['name']}" if facts else f"a classifier of {classes}",
        num_classes=len(specification.class_names),
        has_several=specification.task == MULTILABEL,
        is_regression=specification.task == REGRESSION,
        details=_details(specification, facts, half),
        evaluations=found,
        evaluation_rows=[one.facts() for one in found],
        same_data=facts and all(one.receipt["data_root_hash"] == data["root_hash"] for one in found),
        data={
            "data set": data["name"],
            "data root hash": data["root_hash"],
            f"train, images{', of the first model' if ensemble else ''}": f"{data['num_train']:,}",
            f"validation, images{', of the first model' if ensemble else ''}": f"{data['num_val']:,}",
        }
        if facts
        else {},
        files=[(name, text.format_bytes(size), sha256) for name, size, sha256 in files],
        keras_name=KERAS_NAME,
        has_keras=any(name == KERAS_NAME for name, _, _ in files),
        large=large,
        half={shown: _value(half[name]) for name, shown in _HALF.items()} if half else {},
        int8_split=int8 and int8["split"],
        int8={shown: _value(int8[name]) for name, shown in (_HALF | _INT8).items()} if int8 else {},
        parity=[[_value(row.get(column)) for column in columns] for row in parity],
        parity_columns=columns,
    )


def _read_run(folder: Path, specification: Specification) -> dict[str, Any]:
    """Returns run.json, "backbone_sha256", and "summary" if it is of the exported model."""
    path, backbone, finished = (folder / name for name in (RUN_NAME, BACKBONE_NAME, SUMMARY_NAME))
    facts: dict[str, Any] = {**load_json(path, _Run)}
    facts["recipe"] = check_json(facts["recipe"] | facts["chosen"], _Recipe, path)
    if backbone.exists():
        facts["backbone_sha256"] = load_json(backbone, _Backbone)["sha256"]
    summary = load_json(finished, _Summary) if finished.exists() else None
    facts["summary"] = summary if summary and summary["model_sha256"] == specification.sha256 else None
    return facts


def _task(specification: Specification, shown: str) -> dict[str, object]:
    """Returns what the model gives; `shown` are the names of the columns."""
    names = specification.class_names
    if specification.task == REGRESSION:
        units = ", ".join(unit or "unknown" for unit in specification.units or ())
        return {"task": f"{plural(len(names), 'number')} for an image", "numbers, in order": shown, "in units of": units}
    in_order = ", in an order, the lowest first" if specification.task == ORDINAL else ""
    share = "any" if specification.task == MULTILABEL else "one"
    return {
        "task": f"{share} of {plural(len(names), 'class', 'classes')} for an image, with a probability for each{in_order}",
        "classes, in the order of the probabilities": shown,
    }


def _details(
    specification: Specification, facts: Mapping[str, Any] | None, half: Mapping[str, Any] | None
) -> dict[str, object]:
    names, (height, width) = specification.class_names, specification.image_size
    shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else "")
    hashes = {"model SHA-256": specification.sha256}
    if half is not None:
        hashes = {"model SHA-256, before its weights were rounded": specification.sha256}
        hashes |= {"model SHA-256, as it is here": half["sha256"]}
    return {
        **_task(specification, shown),
        **(_origin(facts) if facts else {"made by": "another program; tfpipe only exported it"}),
        "input": f"uint8 [B, {height}, {width}, 3], RGB, 0..255; not scaled or normalised before",
        "resize": f"{specification.resize}: images are {_RESIZES[specification.resize]} (bilinear, antialiased)",
        **{name: f"{value}, of files" for name, value in specification.samples.options().items()},
        "preprocessing": f"{specification.preprocessing}, a part of the model",
        **({"test-time augmentation": f"signatures and files called tta: {specification.tta}"} if specification.tta else {}),
        "orientation": "that of EXIF is applied where the input is a file's bytes; arrays must be upright",
        "largest image": f"{plural(specification.max_pixels, 'pixel')}; larger files are refused, not decoded",
        **hashes,
        "tfpipe": specification.version,
    }


def _origin(facts: Mapping[str, Any]) -> dict[str, object]:
    recipe, summary = facts["recipe"], facts["summary"]
    hidden = f", hidden layers {', '.join(map(str, recipe['hidden']))}" if recipe["hidden"] else ""
    chosen = (summary or {}).get("head")
    what, score = "probabilities", "accuracy"
    shown: Callable[[float], str] = percent
    if facts["data"].get("task") == REGRESSION:
        what, score, shown = "values", "R2", number
    content = {
        "backbone": f"{recipe['backbone']}, weights {recipe['weights']}",
        "backbone SHA-256, before training": facts.get("backbone_sha256", "not known"),
        "head": f"{(chosen or recipe)['pooling']} pooling{hidden}, dropout {recipe['dropout']:g}",
        "mode": recipe["mode"],
        "training": f"{recipe['optimizer']}, batch size {recipe['batch_size']}, seed {recipe['seed']}, {facts['precision']}",
    }
    if members := facts.get("members"):
        accuracies = ", ".join(shown(one["val_accuracy"]) for one in members)
        content["ensemble"] = f"the mean of the {what} of {plural(len(members), 'model')}, each trained without one fold"
        content[f"validation {score}"] = f"{accuracies}, of each model on the images that its weights were chosen on"
        return {**content, "mode": members[0]["mode"]}
    if summary is None:
        return {**content, "weights": "of another checkpoint than the run's best; their validation accuracy is not known"}
    for phase in summary["phases"]:
        epochs, trained = plural(phase["num_epochs"], "epoch"), plural(phase["num_trained"], "parameter")
        content[f"phase {phase['phase']}"] = f"{epochs}, best {phase['best_epoch']}, {trained} trained"
    if chosen:
        content["head, before fine-tuning"] = (
            f"the regression that validates best: C={chosen['strength']:g},"
            f" loss {chosen['val_loss']:.4f}, {score} {shown(chosen['val_accuracy'])}"
        )
    content["mode"] = summary["mode"]  # the recipe may say "auto"
    content[f"validation {score}"] = shown(summary["val_accuracy"]) + ", on which the weights were chosen"
    content["trained with"] = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return content


def _span(bounds: Sequence[float] | None) -> str:
    return "-" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def _value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else value


def _digits(*bounds: float | None) -> str:
    return " to ".join("-" if value is None else f"{value:.4g}" for value in bounds)


@dataclass(frozen=True)
class _Evaluation:
    """The files of an evaluation: receipt, metrics, near-duplicates if any, and the table."""

    receipt: _Receipt
    metrics: dict[str, Any]
    num_doubtful: int
    pairs: _Pairs | None

    @property
    def has_several(self) -> bool:
        """Whether an image has several labels."""
        return self.metrics.get("task") == MULTILABEL

    @property
    def is_regression(self) -> bool:
        """Whether the model gives numbers."""
        return self.metrics.get("task") == REGRESSION

    @classmethod
    def read(cls, folder: Path, specification: Specification, members: Mapping[str, str]) -> _Evaluation:
        table = predictions.read(folder)
        receipt, found = load_json(folder / predictions.RECEIPT_NAME, _Receipt), metrics.load(folder)
        if "folds" in receipt:
            if {one["held_out"]: one["model_sha256"] for one in receipt["folds"]} != members:
                which = "not those of this ensemble" if members else "which belongs to the export of their mean (ensemble)"
                raise ValueError(f"{folder}: is an out-of-fold evaluation of {plural(len(receipt['folds']), 'model')}, {which}")
        elif (of := receipt["model_sha256"]) != specification.sha256:
            raise ValueError(f"{folder}: is an evaluation of the model {of}, not of the exported one, {specification.sha256}")
        if table.task == REGRESSION:
            return cls(receipt, found, 0, None)
        if table.targets is not None:
            thresholds = [row["threshold"] for row in found["per_class"]]
            return cls(receipt, found, len(worst_labels(table, thresholds)), None)
        for label, row in enumerate(found["per_class"]):
            row["recall_interval"] = metrics.share_interval(table, table.predicted == label, table.labels == label)
        path = folder / NEAR_DUPLICATES_NAME
        return cls(receipt, found, len(suspects.label_errors(table)[0]), load_json(path, _Pairs) if path.exists() else None)

    @property
    def split(self) -> str:
        return self.receipt["split"]

    @property
    def shown(self) -> str:
        if "folds" in self.receipt:
            return f"{self.split}, out of fold"
        tta = self.receipt.get("options", {}).get("tta")
        return f"{self.split}, averaged ({tta['name']})" if tta else self.split

    @property
    def folds(self) -> list[list[str]]:
        return metrics.fold_rows(self.metrics)

    def facts(self) -> Sequence[object]:
        computed = [f"{one['arithmetic']} on {one['device']}" for one in self.receipt.get("computed", ())]
        hashes = self.receipt["data_root_hash"], self.receipt["ids_sha256"]
        return self.shown, f"{self.metrics['count']:,}", *hashes, "; ".join(computed) or "-"

    def metric_rows(self) -> Iterator[Sequence[object]]:
        found = self.metrics
        yield "images, each exactly once", f"{found['count']:,}", ""
        if self.is_regression:
            for row in found["per_target"]:
                for name, shown in values.SHOWN.items():
                    unit = f" {row['unit']}" if row["unit"] and name in values.IN_UNITS else ""
                    yield f"{row['name']}: {shown}", _digits(row[name]) + unit, _digits(*(row[f"{name}_interval"] or (None,)))
            return
        if self.has_several:
            yield "known labels", f"{found['known']:,}", ""
            for name, shown in _MEANS.items():
                yield f"{shown}, mean of the classes", number(found[f"macro_{name}"]), _span(found[f"macro_{name}_interval"])
            yield "known labels that are right", percent(found["label_accuracy"]), ""
            yield "images with all known labels right", percent(found["exact_match"]), ""
            yield "log loss", number(found["log_loss"]), ""
            return
        yield "accuracy", percent(found["accuracy"]), interval(found["accuracy_interval"])
        for name, shown in in_order.SHOWN.items() if found.get("task") == ORDINAL else ():
            yield shown, number(found[name]), _span(found[f"{name}_interval"])
        yield "balanced accuracy (mean recall of the classes)", percent(found["balanced_accuracy"]), ""
        for k, share in list(found["top_k"].items())[1:][-1:]:
            yield f"top-{k} accuracy", percent(share), ""
        yield "AUC" if len(found["per_class"]) == 2 else "AUC, mean of the classes", number(found["auc"]), ""
        yield "log loss", number(found["log_loss"]), ""
        yield "expected calibration error", number(found["ece"]), ""
        if found["binary"]:
            at, name = found["binary"]["sensitivity_at_specificity"], found["binary"]["positive_class"]
            sensitivity = f"sensitivity for {name}, threshold {text.threshold(at['threshold'])}"
            yield f"average precision of {name}", number(found["binary"]["average_precision"]), ""
            yield sensitivity, percent(at["sensitivity"]), interval(at["sensitivity_interval"])
            yield "specificity at this threshold", percent(at["specificity"]), interval(at["specificity_interval"])

    def class_columns(self) -> Sequence[str]:
        if self.is_regression:
            return "target", "unit", "images", "standard deviation"
        if self.has_several:
            return "class", "with", "known", *_MEANS.values(), "threshold", "precision", "recall"
        return "class", "images", "recall", "95 % interval", "precision", "F1", "AUC"

    def class_rows(self) -> Iterator[Sequence[object]]:
        for row in self.metrics["per_target"] if self.is_regression else ():
            yield row["name"], row["unit"] or "-", f"{row['count']:,}", _digits(row["deviation"])
        for row in self.metrics["per_class"] if self.has_several else ():
            scores = [f"{number(row[name])} ({_span(row[f'{name}_interval'])})" for name in _MEANS]
            known = f"{row['support']:,}", f"{row['support'] + row['without']:,}"
            yield (
                row["class_name"],
                *known,
                *scores,
                text.threshold(row["threshold"]),
                *map(percent, (row["precision"], row["recall"])),
            )
        for row in () if self.has_several or self.is_regression else self.metrics["per_class"]:
            recall = percent(row["recall"]), interval(row["recall_interval"])
            others = percent(row["precision"]), number(row["f1"]), number(row["auc"])
            yield row["class_name"], f"{row['support']:,}", *recall, *others

    def confusions(self) -> list[tuple[int, str, str, int]]:
        """Returns (images, true class, predicted class, class size), most frequent first."""
        rows, cells = self.metrics["per_class"], self.metrics["confusion"]["cells"]
        wrong = [(count, rows[i]["class_name"], rows[j]["class_name"], rows[i]["support"]) for i, j, count in cells if i != j]
        return sorted(wrong, key=lambda one: -one[0])
