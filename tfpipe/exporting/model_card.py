"""The model card of an export: what a model is, what it was measured to do, and what nobody has said of it yet.

    text = render(specification, run=Path("runs/a"), evaluations=[Path("eval/")], parity=rows, files=files)

Sections are those of Mitchell et al. 2019, "Model cards for model reporting" (https://arxiv.org/abs/1810.03993). Everything is
read from files and hashes; what only a person can know is marked as to be filled in. No date: equal exports have equal cards.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from tfpipe.common.files import check_json, load_json
from tfpipe.common.text import format_bytes, plural
from tfpipe.exporting import results
from tfpipe.exporting.results import Results
from tfpipe.formats.preflight import KERAS_NAME
from tfpipe.formats.specifications import Specification
from tfpipe.records.run_folders import BACKBONE_NAME, RUN_NAME, SUMMARY_NAME
from tfpipe.report import markdown

FILE_NAME = "model_card.md"

_LARGE_BYTES = 100_000_000
_MAX_NAMES = 50
_RESIZES = {
    "stretch": "stretched to that size; the aspect ratio is not kept",
    "crop": "scaled until they cover that size, and the centre is kept",
    "pad": "scaled until they fit into that size, with black around them",
}
_HALF = {
    "num_pictures": "pictures",
    "accuracy_before": "accuracy before",
    "accuracy": "accuracy with rounded weights",
    "num_changed": "pictures that get another class",
    "largest_difference": "largest difference of a probability",
}

File = tuple[str, int, str]
Blocks = Iterator[str]


class _Data(TypedDict):
    name: str
    root_hash: str
    num_train: int
    num_val: int


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


def render(
    specification: Specification,
    *,
    run: Path | None = None,
    evaluations: Sequence[Path] = (),
    parity: Sequence[Mapping[str, Any]] = (),
    files: Sequence[File] = (),
    half: Mapping[str, Any] | None = None,
) -> str:
    """Returns the card as Markdown.

    Args:
        specification: of the model that was exported.
        run: folder of the run that it came from, None for a model of another program.
        evaluations: folders that `tfpipe.evaluate` wrote, each of this very model.
        parity: rows of the comparison of the exported files; the first one's names are the columns.
        files: (path in the export, bytes, SHA-256) of each.
        half: what storing weights in float16 cost, see `rounding.measure_cost`, and "sha256", the hash of the rounded model;
            None if it was not done. `specification` is then that of the model before.

    Raises:
        ValueError: an evaluation is of another model.
        FileNotFoundError: the run or an evaluation is not there, or not finished.
        DataError: their files are damaged.
    """
    facts = _read_run(run, specification) if run is not None else {}
    found = [results.read(path, specification) for path in evaluations]
    sections: dict[str, Iterable[str]] = {
        "Model details": _details(specification, facts, half),
        "Intended use": _intended_use(),
        "Factors": _factors(),
        "Metrics": _metrics(),
        "Evaluation data": _evaluation_data(found, facts),
        "Training data": _training_data(facts),
        "Quantitative analyses": _analyses(found),
        "Ethical considerations": _ethics(),
        "Caveats and recommendations": _caveats(specification, found),
        "Files": _files(files, parity, half),
    }
    blocks = [f"# Model card: {_title(specification, facts)}"]
    for name, content in sections.items():
        blocks += [f"## {name}", *content]
    return "\n\n".join(blocks) + "\n"


def _read_run(folder: Path, specification: Specification) -> dict[str, Any]:
    """Returns run.json with its recipe complete, "backbone_sha256", and "summary" if that is of the exported model."""
    path, backbone, finished = (folder / name for name in (RUN_NAME, BACKBONE_NAME, SUMMARY_NAME))
    facts: dict[str, Any] = {**load_json(path, _Run)}
    facts["recipe"] = check_json(facts["recipe"] | facts["chosen"], _Recipe, path)
    if backbone.exists():
        facts["backbone_sha256"] = load_json(backbone, _Backbone)["sha256"]
    summary = load_json(finished, _Summary) if finished.exists() else None
    facts["summary"] = summary if summary and summary["model_sha256"] == specification.sha256 else None
    return facts


def _title(specification: Specification, facts: Mapping[str, Any]) -> str:
    if not facts:
        return f"a classifier of {plural(len(specification.class_names), 'class', 'classes')}"
    return markdown.text(f"{facts['recipe']['backbone']} on {facts['data']['name']}")


def _to_fill_in(question: str) -> str:
    return f"> **TO BE FILLED IN:** {question}"


def _details(specification: Specification, facts: Mapping[str, Any], half: Mapping[str, Any] | None) -> Blocks:
    names, (height, width) = specification.class_names, specification.image_size
    shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else "")
    content = {
        "task": f"one of {plural(len(names), 'class', 'classes')} for a picture, with a probability for each",
        "classes, in the order of the probabilities": shown,
        **(_origin(facts) if facts else {"made by": "a program of its own; tfpipe only exported it"}),
        "input": f"uint8 [B, {height}, {width}, 3], RGB, 0..255; not scaled or normalised before",
        "resize": f"{specification.resize}: pictures are {_RESIZES[specification.resize]} (bilinear, antialiased)",
        **{name: f"{value}, of files" for name, value in specification.samples.options().items()},
        "preprocessing": f"{specification.preprocessing}, a part of the model",
        "orientation": "that of EXIF is applied where the input is a file's bytes; arrays have to be upright",
        "largest picture": f"{plural(specification.max_pixels, 'pixel')}; larger files are refused, not decoded",
        **({"model SHA-256": specification.sha256} if half is None else _hashes(specification, half)),
        "tfpipe": specification.version,
    }
    yield markdown.facts(content)
    yield _to_fill_in("who made the model, whom to write to, its licence and those of its weights and pictures.")


def _hashes(specification: Specification, half: Mapping[str, Any]) -> dict[str, object]:
    return {
        "model SHA-256, before its weights were rounded": specification.sha256,
        "model SHA-256, as it is here": half["sha256"],
    }


def _origin(facts: Mapping[str, Any]) -> dict[str, object]:
    recipe, versions = facts["recipe"], facts["versions"]
    hidden = f", hidden layers {', '.join(map(str, recipe['hidden']))}" if recipe["hidden"] else ""
    chosen = (facts["summary"] or {}).get("head")
    pooling = f"{chosen['pooling'] if chosen else recipe['pooling']} pooling"
    content = {
        "backbone": f"{recipe['backbone']}, weights {recipe['weights']}",
        "backbone SHA-256, before training": facts.get("backbone_sha256", "not known"),
        "head": f"{pooling}{hidden}, dropout {recipe['dropout']:g}",
        "mode": recipe["mode"],
        "training": f"{recipe['optimizer']}, batch size {recipe['batch_size']}, seed {recipe['seed']}, {facts['precision']}",
    }
    summary = facts["summary"]
    if summary is None:
        return {**content, "weights": "of another checkpoint than the run's best; their validation accuracy is not known"}
    for phase in summary["phases"]:
        numbers = (
            f"{plural(phase['num_epochs'], 'epoch')}, best {phase['best_epoch']}, {plural(phase['num_trained'], 'parameter')}"
            " trained"
        )
        content[f"phase {phase['phase']}"] = numbers
    if chosen:
        content["head, before fine-tuning"] = (
            f"the logistic regression that validates best: C={chosen['strength']:g},"
            f" loss {chosen['val_loss']:.4f}, accuracy {results.percent(chosen['val_accuracy'])}"
        )
    content["mode"] = summary["mode"]  # "auto" was the wish
    content["validation accuracy"] = results.percent(summary["val_accuracy"]) + ", on which the weights were chosen"
    content["trained with"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return content


def _intended_use() -> Blocks:
    yield _to_fill_in("primary uses: on which pictures, for which decision, with which person in the loop.")
    yield _to_fill_in("primary users.")
    yield _to_fill_in("uses out of scope: what it must not be used for.")


def _factors() -> Blocks:
    yield _to_fill_in("what may matter and differ from the pictures below: cameras, light, places, groups of people, seasons.")


def _metrics() -> Blocks:
    yield (
        "Accuracy, recall, sensitivity and specificity are shares of pictures, with 95 % score intervals (Wilson 1927). The"
        " interval is about chance in the choice of pictures, not about pictures of another kind. Probabilities are judged by"
        " log loss and the expected calibration error (15 bins, Guo et al. 2017)."
    )


def _evaluation_data(found: Sequence[Results], facts: Mapping[str, Any]) -> Blocks:
    if not found:
        yield "**No evaluation was given.** Nothing is known of how well this model does. To add one:"
        yield markdown.code(
            [
                "tfpipe-evaluate --model=RUN --data=SHARDS --split=test --output=EVAL",
                "tfpipe-export-model ... --evaluation=EVAL",
            ]
        )
        return
    rows = [
        [one.split, f"{one.metrics['count']:,}", one.receipt["data_root_hash"], one.receipt["ids_sha256"], one.computed]
        for one in found
    ]
    yield markdown.table(["split", "pictures", "data root hash", "SHA-256 of their ids", "computed in"], rows)
    trained_on = facts["data"]["root_hash"] if facts else None
    if any(one.receipt["data_root_hash"] != trained_on for one in found):
        yield (
            "Not all of this is from the data set that the model was trained on."
            if facts
            else "Of the training data nothing is known."
        )


def _training_data(facts: Mapping[str, Any]) -> Blocks:
    if facts:
        data = facts["data"]
        counts = {"train, pictures": f"{data['num_train']:,}", "validation, pictures": f"{data['num_val']:,}"}
        yield markdown.facts({"data set": data["name"], "data root hash": data["root_hash"], **counts})
        yield "The root hash names the shards bit for bit: `tfpipe-inspect-tfrecords` shows that of any copy."
    yield _to_fill_in("where the pictures come from, who labelled them and how, and whether the people in them agreed.")


def _analyses(found: Sequence[Results]) -> Blocks:
    if not found:
        yield "None: see *Evaluation data*."
    for one in found:
        yield f"### Split {markdown.text(one.split)}, data {one.receipt['data_root_hash'][:12]}"
        yield results.metrics_table(one)
        yield results.class_table(one)


def _ethics() -> Blocks:
    yield _to_fill_in("what a wrong answer can do to whom; what in the pictures is sensitive.")


def _caveats(specification: Specification, found: Sequence[Results]) -> Blocks:
    for one in found:
        yield f"What the evaluation on {markdown.text(one.split)} showed:"
        yield results.limits(one)
    yield "What holds without one:"
    yield markdown.bullets(
        [
            f"The model knows {plural(len(specification.class_names), 'class', 'classes')} and no other answer: a picture of"
            " something else gets one of them, often with a high probability.",
            "Pictures must be decoded, turned and resized as described above. Another decoder or resize changes pixels by some"
            " levels, and probabilities with them; the signatures that take bytes do all of it.",
        ]
    )
    yield _to_fill_in("recommendations for those who use it.")


def _files(files: Sequence[File], parity: Sequence[Mapping[str, Any]], half: Mapping[str, Any] | None) -> Blocks:
    if files:
        rows = [[name, format_bytes(size), sha256] for name, size, sha256 in files]
        yield markdown.table(["file", "size", "SHA-256"], rows)
        yield "`sha256sum --check SHA256SUMS` compares them."
    if any(name == KERAS_NAME for name, _, _ in files):
        yield f"Keras reads {KERAS_NAME} without tfpipe; images are uint8 [B, H, W, 3], RGB, of the input's size:"
        yield markdown.code([f'probabilities = keras.saving.load_model("{KERAS_NAME}")(images)'])
    yield from _large_files([(name, size) for name, size, _ in files if size > _LARGE_BYTES])
    if half is not None:
        yield "Weights are stored in float16 (`--half`); the metrics above are those from before. What it cost, measured:"
        yield markdown.facts({shown: _value(half[name]) for name, shown in _HALF.items()})
    yield "### Parity"
    if not parity:
        yield "The files were not compared with the model that they came from."
        return
    yield (
        "The same pictures through every file, in a process without tfpipe; largest differences from the model itself on the"
        " same device, in float32:"
    )
    columns = list(parity[0])
    yield markdown.table(columns, [[_value(row.get(column)) for column in columns] for row in parity])


def _value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.3g}"
    return results.NONE if value is None else value


def _large_files(large: Sequence[tuple[str, int]]) -> Blocks:
    if not large:
        return
    yield "### Files over 100 MB"
    names = ", ".join(f"{markdown.text(name)} ({format_bytes(size)})" for name, size in large)
    yield f"GitHub refuses a push with a file of more than 100 MiB (104.9 MB). That concerns: {names}. Ways out:"
    quoted = [shlex.quote(name) for name, _ in large]
    yield markdown.bullets(
        [
            "an asset of a release, which may have up to 2 GiB and does not burden those who clone;",
            "Git LFS, within its quotas:",
        ]
    )
    yield markdown.code(["git lfs install", f"git lfs track {' '.join(quoted)}", f"git add .gitattributes {' '.join(quoted)}"])
    yield markdown.bullets(["parts of less than 100 MiB, put together and compared after the download:"])
    lines = [f"split -b 95M {name} {name}.part-" for name in quoted] + [f"cat {name}.part-* > {name}" for name in quoted]
    yield markdown.code([*lines, "sha256sum --check SHA256SUMS"])
