"""The page: whole, closed, by itself, and with what the table and the metrics say."""

import json
import re
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from browser_fixtures import PATIENCE, browser
from conftest import make_image
from report_fixtures import HOSTILE_NAMES, jpeg, make_classifier, write_splits

from tfpipe.common import text
from tfpipe.evaluation import html_report as report
from tfpipe.evaluation.evaluator import evaluate
from tfpipe.evaluation.html_report import worst_mistakes, write_report
from tfpipe.evaluation.suspects import label_errors
from tfpipe.models.predictions import Predictions
from tfpipe.report import fonts, templates

pytestmark = pytest.mark.tf

__all__ = ["browser"]  # a fixture

SECTIONS = [
    "Result",
    "Class balance",
    "Confusion matrix",
    "Classes",
    "ROC and precision-recall",
    "Reliability",
    "Worst mistakes",
    "Likely label errors",
    "Odd images",
    "Near-duplicates",
    "Receipt",
]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page as read: its text, its tags, and an error where they are not closed in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.counts, self.attributes = [], [], {}, []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.joined = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def section(self, name):
        first, *rest = [self.joined.index(f" {title} ") for title in SECTIONS[SECTIONS.index(name) :]]
        return self.joined[first : rest[0] if rest else None]


def evaluated(folder, class_names, num_test, *, classifier=None, train=4):
    images = {"train": [make_image(1000 + i) for i in range(train)], "test": [make_image(i) for i in range(num_test)]}
    images = {split: contents for split, contents in images.items() if contents}
    data = write_splits(folder, images, class_names)
    classifier = classifier or make_classifier(class_names)
    evaluate(classifier, data, "test", folder / "eval", report=False, progress=False)
    return folder / "eval", classifier, data


def read_page(path):
    source = path.read_text("utf-8")
    page = Page(source)
    titles = re.findall("<h2>(.*?)</h2>", source)
    assert titles == SECTIONS
    assert not re.search(r"(?i)https?://(?!arxiv)|<script|<link|@import|src=\"(?!data:)|url\(", source)
    return page


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Twelve test images of three classes with awkward names; 1 and 4 are in train, too."""
    folder = tmp_path_factory.mktemp("hostile")
    images = {
        "train": [make_image(100), make_image(1), make_image(4), make_image(101)],
        "test": [make_image(i) for i in range(12)],
    }
    data = write_splits(folder, images, HOSTILE_NAMES)
    classifier = make_classifier(HOSTILE_NAMES)
    evaluate(classifier, data, "test", folder / "eval", report=False, progress=False)
    path = write_report(folder / "eval", classifier, data, "test", progress=False)
    return path, classifier, data


def test_the_page_is_whole_and_needs_nothing_else(hostile):
    page = read_page(hostile[0])
    assert page.counts["section"] == len(SECTIONS)
    assert all(value for name, value in page.attributes if name == "alt")
    assert hostile[0].stat().st_size < 3_000_000


def test_names_are_shown_as_they_are_and_are_not_markup(hostile):
    source = hostile[0].read_text("utf-8")
    page = Page(source)
    for section in ("Class balance", "Confusion matrix", "Classes", "ROC and precision-recall", "Worst mistakes"):
        for name in HOSTILE_NAMES:
            assert " ".join(name.split()) in page.section(section).replace(" : ", ": "), (section, name)
    assert '<b>&"' not in source
    assert "o'wl</td>" not in source


def test_numbers_are_those_of_the_files(hostile):
    folder = hostile[0].parent
    found = json.loads((folder / "metrics.json").read_bytes())
    page = Page(hostile[0].read_text("utf-8"))
    low, high = found["accuracy_interval"]
    result = page.section("Result")
    for shown in (f"{found['accuracy']:.2%}", f"{low:.2%} to {high:.2%}", " 12 ", f"{found['ece']:.4f}", f"{found['auc']:.4f}"):
        assert shown in result
    for row in found["per_class"]:
        assert f"{row['precision']:.4f}" if row["precision"] is not None else "-" in page.section("Classes")
    receipt = json.loads((folder / "receipt.json").read_bytes())
    assert receipt["ids_sha256"] in page.section("Receipt")
    assert receipt["model_sha256"][:12] in result
    assert receipt["data_root_hash"][:12] in result


def test_metrics_on_the_page_come_from_the_file_and_are_not_measured_anew(hostile, tmp_path):
    folder, classifier, data = hostile[0].parent, *hostile[1:]
    for name in ("predictions.csv", "receipt.json", "metrics.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = json.loads((tmp_path / "metrics.json").read_bytes())
    (tmp_path / "metrics.json").write_text(json.dumps({**found, "accuracy": 0.12345, "ece": 0.98765}))
    page = read_page(write_report(tmp_path, classifier, data, "test", near_duplicates=False, progress=False))
    assert "12.35%" in page.section("Result")
    assert "0.9877" in page.section("Reliability")
    assert "Not searched for" in page.section("Near-duplicates")
    assert not (tmp_path / report.NEAR_DUPLICATES_NAME).exists()


def test_near_duplicates_are_shown_counted_and_left_out(hostile):
    folder = hostile[0].parent
    duplicates = json.loads((folder / report.NEAR_DUPLICATES_NAME).read_bytes())
    assert sorted((pair["key"], pair["twin"]) for pair in duplicates["pairs"]) == [
        ("test/1.jpg", "train/1.jpg"),
        ("test/4.jpg", "train/2.jpg"),
    ]
    table = report.predictions.read(folder)
    rest = [i for i, key in enumerate(table.keys) if key not in ("test/1.jpg", "test/4.jpg")]
    assert duplicates["count_without"] == len(rest) == 10
    assert duplicates["accuracy_without"] == np.mean(table.predicted[rest] == table.labels[rest])
    section = Page(hostile[0].read_text("utf-8")).section("Near-duplicates")
    assert f"{duplicates['accuracy_without']:.2%}" in section
    assert "2 images of test have a near-duplicate in train, 2 of them byte for byte" in section
    result = Page(hostile[0].read_text("utf-8")).section("Result")
    assert "accuracy without near-duplicates in train, on 10 images left (2 removed)" in result
    assert "different labels" in section  # 4 is of class 1 here, and 2 in train
    assert "train: " in section


def test_equal_evaluations_give_equal_pages(hostile):
    path, classifier, data = hostile
    before = path.read_bytes()
    assert write_report(path.parent, classifier, data, "test", progress=False) == path
    assert path.read_bytes() == before


def test_the_report_of_another_model_or_split_is_refused(hostile):
    path, classifier, data = hostile
    with pytest.raises(ValueError, match="split 'test'"):
        write_report(path.parent, classifier, data, "train", progress=False)
    with pytest.raises(ValueError, match="model_sha256"):
        write_report(path.parent, make_classifier(HOSTILE_NAMES, seed=1), data, "test", progress=False)


def test_of_a_model_with_no_more_than_probabilities_the_page_reports_what_it_lacks(hostile, tmp_path):
    path, classifier, data = hostile
    for name in ("predictions.csv", "receipt.json", "metrics.json"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    names = ("class_names", "image_size", "resize", "sha256")
    exported = types.SimpleNamespace(**{name: getattr(classifier, name) for name in names})
    page, whole = read_page(write_report(tmp_path, exported, data, "test", progress=False)), Page(path.read_text("utf-8"))
    assert not (tmp_path / report.NEAR_DUPLICATES_NAME).exists()
    mistakes, duplicates = page.section("Worst mistakes"), page.section("Near-duplicates")
    assert "(Grad-CAM) is not shown: this model gives probabilities only" in mistakes
    assert "Not searched for: this model gives probabilities only" in duplicates
    same = [name for name in SECTIONS if name not in ("Result", "Worst mistakes", "Near-duplicates")]
    assert all(page.section(name) == whole.section(name) for name in same)
    wrong = len(worst_mistakes(report.predictions.read(tmp_path)))
    assert page.counts["img"] == whole.counts["img"] - wrong - 2 * 2  # no heat, and no pairs of near-duplicates
    assert "Grad-CAM, Selvaraju" in whole.section("Worst mistakes")


def test_a_set_without_mistakes_and_without_train(tmp_path):
    classifier = make_classifier(["dark", "bright"])
    names = ["dark", "bright"]
    light = [np.full((8, 8, 3), level, np.uint8) for level in (5, 250)]
    data = write_splits(tmp_path, {"test": [jpeg(image) for image in light]}, names)
    convolution = classifier.model.get_layer("frozen").network.layers[-1]
    convolution.set_weights([np.ones_like(weight) * (weight.ndim > 1) for weight in convolution.get_weights()])
    classifier.model.get_layer("logits").set_weights([np.stack([np.zeros(8), np.ones(8)], 1), np.array([100.0, 0.0])])
    found = evaluate(classifier, data, "test", tmp_path / "eval", report=False, progress=False)
    assert found.metrics["accuracy"] == 1
    page = read_page(write_report(tmp_path / "eval", classifier, data, "test", progress=False))
    assert "every image was recognised" in page.section("Worst mistakes")
    assert "no label is contradicted" in page.section("Likely label errors")
    assert "no train or val split" in page.section("Near-duplicates")
    assert "bright : AUC 1.0000" in page.section("ROC and precision-recall").replace("bright:", "bright :")
    assert "average precision" in page.section("ROC and precision-recall")


_PLACES = """() => [...document.querySelectorAll("section")].map(section => {
  const box = section.getBoundingClientRect();
  return [section.querySelector("h2").textContent, box.left, box.right, box.top];
})"""
_COLOURS = """() => ["body", "section", "thead th", "tbody th", ".matrix td.weak", "pre"].flatMap(name => {
  const style = getComputedStyle(document.querySelector(name));
  return [style.backgroundColor, style.color];
}).map(colour => colour.match(/[\\d.]+/g).map(Number))"""


@pytest.fixture
def opened(hostile, browser):
    """Opens the page in a window of a width and a colour scheme."""
    pages = []

    def open_page(width, scheme="light"):
        pages.append(browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme))
        pages[-1].goto(hostile[0].as_uri(), timeout=PATIENCE)
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1000, 1), (1400, 2), (1900, 3)])
def test_the_page_uses_the_width_and_no_more(opened, width, columns):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    places = {name: (left, right, top) for name, left, right, top in page.evaluate(_PLACES)}
    rows = {}
    for left, right, top in places.values():
        rows.setdefault(top, []).append((left, right))
    assert max(map(len, rows.values())) == columns
    assert max(right for _, right, _ in places.values()) - min(left for left, _, _ in places.values()) > 0.93 * width
    assert places["Worst mistakes"][1] - places["Worst mistakes"][0] > 0.93 * width
    tops = page.evaluate("[...document.querySelector('.gallery').children].map(one => one.getBoundingClientRect().top)")
    assert tops.count(tops[0]) >= min(len(tops), width // 300)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_dark_on_light_or_light_on_dark(opened, scheme):
    colours = opened(1000, scheme).evaluate(_COLOURS)
    for background, ink in zip(colours[::2], colours[1::2], strict=True):
        if background[3:] in ([], [1]):  # not see-through
            assert (
                (sum(background[:3]) > sum(ink[:3]) + 300) if scheme == "light" else (sum(background[:3]) + 300 < sum(ink[:3]))
            )


def test_names_that_no_font_here_has_are_reported_once_with_the_package(hostile, tmp_path, caplog, monkeypatch):
    path, classifier, data = hostile
    for name in ("predictions.csv", "receipt.json", "metrics.json"):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    monkeypatch.setattr(fonts, "_NAMES", ())  # what is left is Pillow's own font, which has no Chinese
    write_report(tmp_path, classifier, data, "test", near_duplicates=False, progress=False)
    (line,) = [record.getMessage() for record in caplog.records if "font" in record.getMessage()]
    assert line.startswith("report.html: 3 characters of names in no font found here, 小深猫: ")
    assert line.endswith("may show boxes; Debian has one in fonts-noto-cjk")
    caplog.clear()
    monkeypatch.setattr(fonts, "lacking", lambda text: frozenset())
    write_report(tmp_path, classifier, data, "test", near_duplicates=False, progress=False)
    assert "font" not in caplog.text


def test_packages_that_have_fonts():
    assert fonts.packages("猫") == fonts.packages("かカ한") == "fonts-noto-cjk"
    assert fonts.packages("ᚠ猫") == "fonts-noto-cjk and fonts-unifont"
    assert fonts.lacking("cat") == frozenset()


def test_a_hundred_classes_and_classes_without_images(tmp_path):
    names = [f"class {i}" if i % 2 else f"类 {i}" for i in range(100)]
    folder, classifier, data = evaluated(tmp_path, names, 60)
    page = read_page(write_report(folder, classifier, data, "test", progress=False))
    assert "Most frequent confusions" in page.section("Confusion matrix")
    assert "smallest AUC" in page.section("ROC and precision-recall")
    assert "24 of " in page.section("Worst mistakes")
    assert all(name in page.section("Classes") for name in names)
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_one_image(tmp_path):
    folder, classifier, data = evaluated(tmp_path, ["a", "b"], 1, train=0)
    page = read_page(write_report(folder, classifier, data, "test", progress=False))
    assert "No curves" in page.section("ROC and precision-recall")


def table(labels, probabilities):
    probabilities = np.array(probabilities, float)
    keys = [str(i) for i in range(len(labels))]
    return Predictions(keys, keys, np.array(labels), probabilities, [str(i) for i in range(probabilities.shape[1])])


def test_a_threshold_is_shown_with_all_digits_that_count():
    assert [text.threshold(value) for value in (float(np.float32(0.99996)), None)] == ["0.999960005", "none"]


def test_the_worst_mistakes_are_the_most_confident():
    given = table([0, 0, 1, 1], [[0.4, 0.6], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert worst_mistakes(given).tolist() == [2, 0]


def test_a_label_is_doubtful_where_another_class_is_claimed_with_confidence():
    # Thresholds: class 0 the mean of .9 .9 .1 = .63, class 1 the mean of .8 .8 .35 = .65.
    given = table([0, 0, 0, 1, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8], [0.65, 0.35]])
    assert label_errors(given)[0].tolist() == [2, 5]
    unsure = table([0, 0, 0, 1, 1, 1], [[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.2, 0.8], [0.55, 0.45]])
    assert label_errors(unsure)[0].tolist() == []
    assert worst_mistakes(unsure).tolist() == [2, 5]
    # Of 0.5 for class 0, whose own have 0.9, and 0.4 for class 1, whose own have 0.35, the latter
    # is a claim.
    third = table([0, 1, 2], [[0.9, 0.1, 0], [0.65, 0.35, 0], [0.5, 0.4, 0.1]])
    assert label_errors(third)[0].tolist() == [2]
    nobody = table([0, 0], [[0.3, 0.7, 0], [0.9, 0.1, 0]])
    assert label_errors(nobody)[0].tolist() == []  # a class without images claims nothing


def test_templates_escape_everything_but_markup():
    page = templates.render("page_rejection.html", name="<i>", reason="x & \"y\" 'z'")
    assert "<b>&lt;i&gt;</b>" in page
    assert "x &amp; &#34;y&#34; &#39;z&#39;" in page
    harmful, harmless = "a\x00b\x1b\ud800\u202ec\u2069", "猫\u3000狗 a\u00a0b\u200d\u2028"
    page = templates.render("page_rejection.html", name=harmful, reason=harmless)
    assert "a\ufffdb" + "\ufffd" * 3 + "c\ufffd" in page
    assert harmless in page
