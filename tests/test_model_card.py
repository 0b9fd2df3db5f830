"""Model cards: what stands in the files stands in the card, what nobody said is marked, and no name is markup."""

import json
import subprocess

import numpy as np
import pytest
from evaluation_fixtures import CLASS_NAMES, make_table
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tfpipe.common.errors import DataError
from tfpipe.common.text import hash_names
from tfpipe.evaluation import metrics
from tfpipe.exporting import model_card
from tfpipe.formats.specifications import Specification
from tfpipe.models import predictions
from tfpipe.report.templates import escape_markdown, is_harmful, markdown_table
from tfpipe.training.recipes import Recipe

pytestmark = pytest.mark.tf

SHA256 = "5" * 64
HOSTILE = ("a|b", "`c`", "_d_ **e** \\", *CLASS_NAMES)
SECTIONS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
    "Files",
]


def specify(class_names=HOSTILE, sha256=SHA256):
    return Specification(tuple(class_names), (8, 6), "pad", "caffe", sha256, version="0.1.0")


def shown(tokens):
    return ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]


def tables_of(card):
    """Cells of each table, as a reader of Markdown shows them."""
    found, tokens = [], MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            end = next(i for i in range(index, len(tokens)) if tokens[i].type == "tr_close")
            found[-1].append(shown(tokens[index:end]))
    return found


def table_of(card, first):
    return next(rows for rows in tables_of(card) if rows[0][0] == first)


def write_run(folder, *, sha256=SHA256, **changes):
    folder.mkdir()
    recipe = Recipe(weights="notop.h5", **changes)
    facts = {"recipe": recipe.facts(), "chosen": {"image_size": [8, 6], "learning_rate": 0.5}, "precision": "float32"}
    facts["data"] = {"name": "pe|ts", "root_hash": "d" * 64, "class_names": list(HOSTILE), "num_train": 1400, "num_val": 30}
    facts["versions"] = {"tensorflow": "2.21.0", "keras": "3.15.1"}
    phase = {"phase": "head", "num_epochs": 27, "best_epoch": 12, "num_trained": 1026}
    summary = {"mode": "finetune", "val_accuracy": 0.9375, "phases": [phase], "model_sha256": sha256}
    for name, content in (("run", facts), ("backbone", {"sha256": "b" * 64}), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_evaluation(folder, labels, predicted, *, class_names=HOSTILE, sha256=SHA256, calibration=None, pairs=None):
    folder.mkdir()
    probabilities = np.full((len(labels), len(class_names)), 0.1 / (len(class_names) - 1))
    probabilities[np.arange(len(labels)), predicted] = 0.9
    (folder / "predictions.csv").write_bytes(b"".join(predictions.chunks(make_table(labels, probabilities, class_names))))
    table = predictions.read(folder / "predictions.csv")
    found = {**metrics.measure(table), "calibration": calibration}
    found["predictions_sha256"] = predictions.sha256_of(folder / "predictions.csv")
    ids, names = hash_names(table.keys), hash_names(class_names)
    receipt = {"split": "te_st", "records_seen": len(labels), "ids_sha256": ids, "class_names_sha256": names}
    receipt |= {"model_sha256": sha256, "data_root_hash": "d" * 64}
    written = {"metrics": found, "receipt": receipt} | ({"near_duplicates": pairs} if pairs else {})
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# Of six classes 4, 3, 3, 2, 1 and 0 images; of the third one, two were taken for the first and one
# for the second.
LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4]
PREDICTED = [0, 0, 0, 0, 1, 1, 2, 0, 0, 1, 3, 3, 4]


@pytest.fixture
def card(tmp_path):
    run, evaluation = write_run(tmp_path / "run"), write_evaluation(tmp_path / "eval", LABELS, PREDICTED)
    return model_card.render(specify(), run=run, evaluations=[evaluation])


def test_sections_are_those_of_the_paper_and_what_is_open_is_marked(card):
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == SECTIONS
    for name in ("Intended use", "Factors", "Ethical considerations"):
        assert "> **TO BE FILLED IN:**" in card.split(f"## {name}\n")[1].split("\n## ")[0]


def test_the_model_is_described_by_its_run(card):
    content = dict(table_of(card, "property")[1:])
    assert content["classes, in the order of the probabilities"] == ", ".join(HOSTILE)
    assert content["backbone"] == "vgg16, weights notop.h5"
    assert content["backbone SHA-256, before training"] == "b" * 64
    assert content["mode"] == "finetune"
    assert content["input"].startswith("uint8 [B, 8, 6, 3]")
    assert content["resize"].startswith("pad: images are scaled until they fit")
    assert content["validation accuracy"].startswith("93.75%")
    assert content["phase head"] == "27 epochs, best 12, 1,026 parameters trained"
    assert content["model SHA-256"] == SHA256
    data = dict(next(rows for rows in tables_of(card) if ["data set", "pe|ts"] in rows))
    assert (data["train, images"], data["validation, images"]) == ("1,400", "30")
    assert "# Model card: vgg16 on pe&#124;ts\n" in card


def test_another_checkpoint_does_not_get_the_validation_accuracy_of_the_best(tmp_path):
    card = model_card.render(specify(), run=write_run(tmp_path / "run", sha256="6" * 64))
    assert "93.75%" not in card
    assert "of another checkpoint than the run's best" in card


def test_a_model_without_a_run_or_an_evaluation_reports_it():
    card = model_card.render(specify())
    assert "# Model card: a classifier of 6 classes\n" in card
    assert "**No evaluation was given.**" in card
    assert "tfpipe-evaluate --model=RUN" in card
    assert "another program; tfpipe only exported it" in card


def test_numbers_are_those_of_the_evaluation(card, tmp_path):
    found = json.loads((tmp_path / "eval" / "metrics.json").read_bytes())
    rows = {row[0]: row[1:] for row in table_of(card, "metric")}
    low, high = metrics.wilson(9, 13)
    assert rows["accuracy"] == [f"{9 / 13:.2%}", f"{low:.2%} to {high:.2%}"]
    assert rows["images, each exactly once"] == ["13", ""]
    assert rows["expected calibration error"] == [f"{found['ece']:.4f}", ""]
    classes = table_of(card, "class")
    assert [row[0] for row in classes[1:]] == list(HOSTILE)
    assert classes[1][1:5] == ["4", "100.00%", "51.01% to 100.00%", "66.67%"]
    assert classes[6][1:4] == ["0", "-", "-"]
    assert table_of(card, "split")[1][:3] == ["te_st", "13", "d" * 64]


def test_limits_are_what_went_worst(card):
    listed = [line[2:] for line in card.split("## Caveats")[1].split("What holds")[0].splitlines() if line.startswith("- ")]
    name = [escape_markdown(name) for name in HOSTILE]
    assert f"the rarest class, {name[4]}, has 1." in listed[0]
    assert listed[1] == f"Nothing is known of classes without an image: {name[5]}."
    assert listed[2].startswith(f"Of class {name[2]}, 0.00% (95 %: 0.00% to 56.15%) of 3 images")
    assert listed[3].startswith(f"Of class {name[1]}, 66.67% (95 %: ")
    assert listed[4] == f"Predicted as class {name[0]}: 2 of 3 images of class {name[2]}."
    assert sum(line.startswith("Predicted as") for line in listed) == 3
    assert any("images of 13 have labels that the model contradicts" in line for line in listed)
    assert listed[-1].startswith("Near-duplicates of images of te_st")


def test_calibration_that_the_export_does_not_have_and_near_duplicates_are_reported(tmp_path):
    calibration = {"temperature": 1.75, "split": "val", "before": {"ece": 0.25}}
    pairs = {"against": ["train", "val"], "count": 3, "count_without": 10, "accuracy_without": 0.5}
    pairs["accuracy_without_interval"] = [0.25, 0.75]
    evaluation = write_evaluation(tmp_path / "eval", LABELS, LABELS, calibration=calibration, pairs=pairs)
    card = model_card.render(specify(), evaluations=[evaluation])
    assert "temperature scaling (1.75, fitted on val)" in card
    assert "off by 25.0 points" in card
    expected = (
        "3 images of te_st have near-duplicates in train and val; accuracy on the 10 without: 50.00% (95 %: 25.00% to 75.00%)"
    )
    assert expected in card
    assert "Every image was recognised" in card


def test_an_evaluation_of_another_model_is_refused(tmp_path):
    evaluation = write_evaluation(tmp_path / "eval", LABELS, PREDICTED, sha256="6" * 64)
    with pytest.raises(ValueError, match=f"eval: is an evaluation of the model {'6' * 64}, not of the exported one"):
        model_card.render(specify(), evaluations=[evaluation])
    with pytest.raises(FileNotFoundError, match=r"no receipt\.json"):
        model_card.render(specify(), evaluations=[tmp_path])
    for damaged in ("{", evaluation.joinpath("receipt.json").read_text()[:-1] + ', "computed": [{"device": "CPU"}]}'):
        (evaluation / "receipt.json").write_text(damaged)
        with pytest.raises(DataError, match=r"receipt\.json"):
            model_card.render(specify(), evaluations=[evaluation])


def test_parity_half_and_checksums_are_shown():
    parity = [{"file": "model.onnx", "pixels": 0, "probabilities": 1.2345e-6}, {"file": "a|b", "pixels": None}]
    files = [("model.onnx", 99_999_999, "a" * 64)]
    cost = {"num_pictures": 120, "accuracy_before": 0.99, "accuracy": 0.98, "num_changed": 1, "largest_difference": 0.001}
    card = model_card.render(specify(), parity=parity, files=files, half={**cost, "sha256": "f" * 64})
    assert table_of(card, "file")[1] == ["model.onnx", "100.0 MB", "a" * 64]
    assert [["file", "pixels", "probabilities"], ["model.onnx", "0", "1.23e-06"], ["a|b", "-", "-"]] in tables_of(card)
    shown = next(dict(rows) for rows in tables_of(card) if ["images", "120"] in rows)
    assert shown["accuracy before"] == "0.99"
    assert shown["accuracy with rounded weights"] == "0.98"
    assert shown["images that get another class"] == "1"
    details = dict(tables_of(card)[0])
    assert details["model SHA-256, before its weights were rounded"] == specify().sha256
    assert details["model SHA-256, as it is here"] == "f" * 64
    assert "GitHub" not in card


def test_the_commands_for_large_files_do_what_they_say(tmp_path):
    name, content = "it's a model.keras", b"0123456789" * 500
    card = model_card.render(specify(), files=[(name, 100_000_001, "a" * 64), ("small", 1, "b" * 64)])
    commands = [line for line in card.splitlines() if line.startswith(("split ", "cat "))]
    assert len(commands) == 2
    (tmp_path / name).write_bytes(content)
    subprocess.run(["bash", "-ec", commands[0].replace("95M", "2k")], cwd=tmp_path, check=True)
    (tmp_path / name).unlink()
    assert len(list(tmp_path.iterdir())) == 3
    subprocess.run(["bash", "-ec", commands[1]], cwd=tmp_path, check=True)
    assert (tmp_path / name).read_bytes() == content
    assert "git lfs track" in card


@given(st.lists(st.text("ab_*`|\\[]()<>&~$#!-+.:^=\"' 猫\u3000\n\x00", max_size=12), min_size=1, max_size=4))
@example(["[a](b)", "(_a_)", "__a__b", "a_b", "<b>", "&lt;", "~~a~~", "![a](b)"])
@example(["\ud800", "\u202e", "1. a", "- a", "| --- |", "<!--"])
def test_any_name_is_shown_as_it_is(names):
    rows = tables_of(markdown_table(["x", "class"], [["1", name] for name in names]))
    expected = ["".join("\ufffd" if is_harmful(character) else character for character in name) for name in names]
    assert [row[1].strip() for row in rows[0][1:]] == [name.strip(" \u3000") if name.strip() else "" for name in expected]
    escape_markdown(names[0]).encode()
