"""The page: it says of an image what predict says, or why it is none; in a real browser, and on this machine alone."""

import base64
import csv
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from browser_fixtures import PATIENCE, browser
from conftest import CHECKOUT, make_image, write
from evaluation_fixtures import build_images, make_classifier
from PIL import Image
from prediction_fixtures import Averages

from tfpipe.common.errors import DataError, RejectedImage
from tfpipe.evaluation import feature_index
from tfpipe.models import classifiers
from tfpipe.page import page_markup
from tfpipe.page.answers import Answer, Answers, FileResult, Upload
from tfpipe.page.page import _open_index
from tfpipe.prediction.prediction import predict
from tfpipe.records import run_folders
from tfpipe.report import figures

pytestmark = pytest.mark.tf

__all__ = ["browser"]  # a fixture

NAMES = ("cat", "<img src=x onerror='window.harmed=1'>", "小 猫")
HOSTILE_NAME = "${1+1} <b onclick='x'>小 猫, \"q\".jpg"


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side=30_000):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def with_damaged_data():
    """A PNG whose header is in order, checksums included, and whose data are too short for its pixels."""
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


# What is no image, and a word of the reason.
BAD = {
    "page.html": (b"<!DOCTYPE html><p>hello", "HTML"),
    "anim.gif": (b"GIF89a" + bytes(20), "GIF"),
    "bomb.png": (bomb(), "pixels"),
    "empty.jpg": (b"", "no bytes"),
    "cut.jpg": (make_image(1, (60, 40))[:-40], "truncated"),
    "12 bit.jpg": (make_image(1).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c"), "12"),
    "damaged.png": (with_damaged_data(), "cannot be decoded"),
}


def turned(orientation, size=(40, 28)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return make_image(orientation, size, exif=exif)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as train leaves it, as far as the page looks into it, and its data set."""
    root = tmp_path_factory.mktemp("run")
    account = build_images(root, {"train": {"cat": 30, NAMES[2]: 40}}, class_names=NAMES)
    (root / "run").mkdir()
    make_classifier(NAMES).model.save(root / "run" / "model.keras")
    facts = {"directory": str(root / "shards"), "data": {"root_hash": account.root_hash}}
    write(root / "run" / "run.json", json.dumps(facts).encode())
    return root


@pytest.fixture(scope="module")
def classifier(run):
    return classifiers.load(run / "run")


@pytest.fixture(scope="module")
def gallery(run, classifier):
    return feature_index.collect(classifier, run / "shards", progress=False)


@pytest.fixture(scope="module")
def answers(classifier, gallery):
    return Answers(classifier, gallery)


class Exported:
    """A predictor as an export is one: nothing beside probabilities."""

    def __init__(self, classifier):
        self.class_names, self.image_size = classifier.class_names, classifier.image_size
        self.resize, self.sha256, self.predict = classifier.resize, classifier.sha256, classifier.predict


def predicted(model, path, tmp_path):
    """Probabilities of the first file, as `predict` writes them."""
    predict(model, path, tmp_path / "out.csv", columns="probability", progress=False)
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        return np.float32(list(csv.reader(file))[1][1:])


# What is computed


@pytest.mark.parametrize("name", ["turned.jpg", "alpha.png", "large.jpg"])
def test_probabilities_are_those_of_predict(answers, classifier, tmp_path, name):
    file = io.BytesIO()
    Image.open(io.BytesIO(make_image(13, (33, 21)))).convert("RGBA").save(file, "PNG")
    made = {"turned.jpg": turned(6), "alpha.png": file.getvalue(), "large.jpg": make_image(3, (1500, 900))}
    path = write(tmp_path / name, made[name])
    answer = answers.answer(str(path))
    np.testing.assert_array_equal(answer.probabilities, predicted(classifier, path, tmp_path))
    assert answer.seen.shape == (8, 8, 3)
    height, width = answer.image.shape[:2]
    shown = page_markup.answer(name, answer, classifier, "").partition("data:image/jpeg;base64,")[2].partition('"')[0]
    assert max(Image.open(io.BytesIO(base64.b64decode(shown))).size) == min(640, max(height, width))
    if name == "turned.jpg":
        assert (height, width) == (40, 28)  # upright
        upright = write(
            tmp_path / "as it lies.jpg",
            made[name].replace(b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01"),
        )
        assert not np.array_equal(answers.answer(str(upright)).probabilities, answer.probabilities)


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_an_image_is_refused_with_a_reason(answers, tmp_path, name):
    data, word = BAD[name]
    said = answers.answer(str(write(tmp_path / name, data)))
    assert isinstance(said, RejectedImage)
    assert word in said.message


def test_the_limit_of_pixels_is_the_callers(classifier, tmp_path):
    path = str(write(tmp_path / "a.jpg", make_image(1, (40, 30))))
    assert isinstance(Answers(classifier, max_pixels=1199).answer(path), RejectedImage)
    assert not isinstance(Answers(classifier, max_pixels=1200).answer(path), RejectedImage)


@pytest.mark.parametrize("split_name", ["cat/0.jpg", f"{NAMES[2]}/39.jpg"])
def test_a_training_image_is_its_own_nearest(answers, run, split_name):
    answer = answers.answer(str(run / "photos" / "train" / split_name))
    (first, shown), *others = answer.neighbours
    assert first.key == f"train/{split_name}"
    assert first.class_name == split_name.split("/", maxsplit=1)[0]
    assert first.similarity == pytest.approx(1, abs=1e-5)
    assert len(others) == 7
    similarities = [found.similarity for found, _ in answer.neighbours]
    assert similarities == sorted(similarities, reverse=True)
    assert shown == figures.photograph(answer.image, 192)


def test_a_sample_of_the_training_images_is_the_first_as_stored(gallery, classifier, run):
    few = feature_index.collect(classifier, run / "shards", max_images=5, progress=False)
    assert few.keys == gallery.keys[: feature_index.BATCH_SIZE]
    assert len(gallery.keys) == 70
    with pytest.raises(ValueError, match="must be one of train"):
        feature_index.collect(classifier, run / "shards", "test", progress=False)


def test_a_neighbour_that_is_gone_is_reported_and_the_rest_is_there(classifier, run, tmp_path):
    shutil.copytree(run / "shards", tmp_path / "shards")
    answers = Answers(classifier, feature_index.collect(classifier, tmp_path / "shards", progress=False))
    for shard in (tmp_path / "shards").glob("*.tfrecord-*"):
        os.truncate(shard, 100)
    answer = answers.answer(str(run / "photos" / "train" / "cat" / "0.jpg"))
    assert [uri for _, uri in answer.neighbours] == [""] * 8
    assert "cannot be read any more" in page_markup.answer("a", answer, classifier, "train")


def test_the_input_and_its_preprocessing_are_shown(answers, run):
    answer = answers.answer(str(run / "photos" / "train" / "cat" / "0.jpg"))
    np.testing.assert_allclose(answer.prepared, answer.seen / 127.5 - 1, atol=1e-6)
    shown, words = page_markup.visible(answer.prepared)
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert f"{answer.prepared.min():.4g} to {answer.prepared.max():.4g}" in words
    grey, words = page_markup.visible(np.zeros((4, 4, 1), np.float32))
    assert grey.shape == (4, 4, 3)
    assert "grey" in words


def test_an_exported_model_has_scores_and_its_input(answers, classifier, run):
    path = str(run / "photos" / "train" / "cat" / "0.jpg")
    whole, answer = answers.answer(path), Answers(Exported(classifier)).answer(path)
    np.testing.assert_array_equal(answer.probabilities, whole.probabilities)
    np.testing.assert_array_equal(answer.seen, whole.seen)
    assert (answer.heat, answer.prepared, answer.neighbours) == (None, None, ())
    markup = page_markup.answer("a.jpg", answer, classifier, "")
    assert "Grad-CAM" not in markup
    assert "Nearest" not in markup


def test_rows_are_in_order_and_bad_ones_do_not_stop_the_rest(answers, tmp_path):
    files = {f"{number}.jpg": make_image(number) for number in range(40)}  # more than a batch
    files |= {name: data for name, (data, _) in BAD.items()}
    uploads = [Upload(name, str(write(tmp_path / name, data))) for name, data in sorted(files.items())]
    rows = list(answers.rows([*uploads, Upload("gone.jpg", str(tmp_path / "gone.jpg"))]))
    assert [row.name for row in rows] == [*sorted(files), "gone.jpg"]
    for row, upload in zip(rows, uploads, strict=False):
        if row.name in BAD:
            assert row.probabilities is None
            assert BAD[row.name][1] in row.problem
        elif row.name.startswith("3"):
            np.testing.assert_allclose(row.probabilities, answers.answer(upload.path).probabilities, atol=1e-5)
    assert "cannot be read" in rows[-1].problem


# Where the training images are


def test_data_are_found_where_the_run_has_them(run, tmp_path):
    assert run_folders.locate_data(run / "run") == run_folders.locate_data(run / "run" / "model.keras") == run / "shards"
    facts = json.loads((run / "run" / "run.json").read_bytes())
    for changed, error, message in (
        ({}, FileNotFoundError, "does not name"),
        ({"directory": str(tmp_path / "gone")}, FileNotFoundError, "gone"),
        ({"directory": facts["directory"], "data": {"root_hash": "0" * 64}}, DataError, "another data set"),
        ({"directory": facts["directory"], "data": []}, DataError, r"not as tfpipe writes it: .* at data"),
    ):
        write(tmp_path / "run.json", json.dumps({"data": facts["data"], **changed}).encode())
        with pytest.raises(error, match=message):
            run_folders.locate_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="would name the training data"):
        run_folders.locate_data(tmp_path / "elsewhere" / "model.keras")


def test_training_data_for_a_model_that_cannot_compare_are_refused():
    opened = lambda data: _open_index(Averages(), "export", data, "train", 10, progress=False)  # noqa: E731
    with pytest.raises(ValueError, match="data='nope' needs a run's model to compare with; export has probabilities only"):
        opened("nope")
    assert opened(None)[0] is None


# What is written


def test_markup_escapes_names(answers, classifier, run):
    answer = answers.answer(str(run / "photos" / "train" / "cat" / "0.jpg"))
    markup = [
        page_markup.answer(HOSTILE_NAME, answer, classifier, "train"),
        page_markup.rejection(HOSTILE_NAME, "<script>"),
        page_markup.table([FileResult(HOSTILE_NAME, problem="<script>")], NAMES),
        page_markup.header("<script>", classifier, ["<script>"]),
    ]
    for text in markup:
        assert "<script" not in text
        assert "<b onclick" not in text
        assert "<img src=x" not in text


def test_many_classes_are_ten_bars_and_a_line():
    classifier = make_classifier([f"c{number}" for number in range(30)])
    probabilities = np.linspace(0, 1, 30, dtype=np.float32) / 15
    image = np.zeros((4, 4, 3), np.uint8)
    markup = page_markup.answer("a.jpg", Answer(probabilities, image, image), classifier, "")
    assert markup.count('class="track"') == 10
    assert markup.index(">c29<") < markup.index(">c28<")
    assert f"20 more classes with {probabilities[:20].sum():.2%} together" in markup


def test_the_csv_holds_all_and_no_formula():
    names = ["=1+1", "-b", "c", "d"]
    given = np.float32([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    files = ["=cmd|' /C calc'!A0.jpg", '小 猫, "q";=1.jpg', "\t=x", " @sum", "-1.jpg", "+1", "plain.jpg"]
    rows = [FileResult(name, given[index % 2]) for index, name in enumerate(files)] + [
        FileResult("bad.jpg", problem="-x is bad")
    ]
    content = page_markup.to_csv(rows, names)
    header, *lines = csv.reader(io.StringIO(content.decode("utf-8-sig")))
    assert header == ["file", "class", "score", "class 2", "score 2", "class 3", "score 3", "problem"]
    assert content.startswith(b"\xef\xbb\xbf")
    assert len(lines) == 8
    cells = [cell for line in lines for cell in line]
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) or cell[:1] == "\t" for cell in cells)
    assert [line[0].removeprefix("'") for line in lines] == [*files, "bad.jpg"]
    assert lines[1][1] == "'=1+1"
    np.testing.assert_array_equal(np.float32([line[2] for line in lines[:7]]), given.max(axis=1)[[0, 1, 0, 1, 0, 1, 0]])
    assert lines[7] == ["bad.jpg", *[""] * 6, "'-x is bad"]


# The page in a browser


@pytest.fixture(scope="module")
def serve():
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'tfpipe[page]'")
    from tfpipe.page.page import serve

    return serve


@pytest.fixture(scope="module")
def page(serve, browser, run):
    """The page of the run, open in a browser; `page.requests` are the addresses that the browser asked for."""
    with serve(run / "run", port=0, max_bytes=200_000, progress=False) as url:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.requests, page.url_served = [], url
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(url)
        yield page


def upload(page, files):
    """Chooses files, (name, content), and returns the text of what the page says when it is ready for the next ones."""
    page.evaluate("document.querySelector('#answer .tfpipe')?.remove()")
    chosen = page.locator("#images input[type=file]")
    chosen.set_input_files([{"name": name, "mimeType": "", "buffer": data} for name, data in files])
    return said(page)


def said(page):
    page.wait_for_selector("#answer .tfpipe section")
    page.wait_for_selector("#images input[type=file]", state="attached")
    return page.inner_text("#answer")


def bars(page):
    """Class names and shares, in the order of the page."""
    cells = page.locator("#answer .bars > span")
    texts = [cells.nth(index).inner_text() for index in range(cells.count())]
    return dict(zip(texts[::3], texts[2::3], strict=True))


def test_an_image_is_answered_as_predict_answers(page, classifier, tmp_path):
    data = turned(6)
    text = upload(page, [(HOSTILE_NAME, data)])
    probabilities = predicted(classifier, write(tmp_path / "a.jpg", data), tmp_path)
    expected = {NAMES[index]: f"{probabilities[index]:.2%}" for index in np.argsort(-probabilities)}
    assert list(bars(page).items()) == list(expected.items())
    assert page.inner_text("#answer .label") == next(iter(expected))
    assert HOSTILE_NAME in text
    for words in ("Grad-CAM", "Nearest training images", "70 images", "What the model sees", "resized to 8 x 8"):
        assert words in text
    assert page.locator("#answer .neighbours figure").count() == 8
    assert page.evaluate("window.harmed") is None
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_a_narrow_page_does_not_overflow(page):
    upload(page, [("a" * 150 + ".jpg", make_image(1))])
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        wide = "[...document.querySelectorAll('html, #answer section, #answer p, #answer figcaption')]"
        assert page.evaluate(f"{wide}.filter(part => part.scrollWidth > part.clientWidth).map(part => part.outerHTML)") == []
    page.set_viewport_size({"width": 1400, "height": 900})


@pytest.mark.parametrize("name", BAD)
def test_no_image_is_refused_in_words(page, name):
    data, word = BAD[name]
    text = upload(page, [(name, data)])
    assert name in text
    assert word in text
    assert "JPEG, PNG, WebP and BMP files are accepted" in text


def test_several_files_are_a_table(page, classifier, tmp_path):
    files = {"=1+1.jpg": make_image(1), "10.png": make_image(2, format="PNG"), "2.jpg": turned(8)}
    text = upload(page, [*files.items(), *((name, data) for name, (data, _) in BAD.items())])
    assert f"{len(files) + len(BAD)} files, {len(BAD)} of them" in text
    for name, (_, word) in BAD.items():
        assert word in page.locator("#answer tbody tr", has_text=name).inner_text()
    with page.expect_download() as download:
        page.click("#answer a.keep")
    content = Path(download.value.path()).read_text("utf-8-sig")
    assert download.value.suggested_filename == "predictions.csv"
    rows = {row["file"]: row for row in csv.DictReader(io.StringIO(content))}
    assert list(rows).index("2.jpg") < list(rows).index("10.png")
    for name, data in files.items():
        probabilities = predicted(classifier, write(tmp_path / name, data), tmp_path)
        row = rows[f"'{name}" if name.startswith("=") else name]
        assert row["class"] == NAMES[int(probabilities.argmax())]
        assert float(row["score"]) == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_an_image_can_be_pasted(page):
    page.evaluate("document.querySelector('#answer .tfpipe')?.remove()")
    page.evaluate(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));
        }""",
        list(make_image(5, format="PNG")),
    )
    assert "image.png" in said(page)
    assert len(bars(page)) == 3


def drop(page, *paths):
    """Drops files and folders beside the place for them, as a file manager does."""
    page.evaluate("document.querySelector('#answer .tfpipe')?.remove()")
    session = page.context.new_cdp_session(page)
    dragged = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 800, "data": dragged})
    session.detach()


def test_a_folder_can_be_dropped(page, tmp_path):
    names = [f"{number}.jpg" for number in range(110)]  # a browser lists a hundred at a time
    for name in (*names, "小 猫/1.jpg", ".hidden/1.jpg", ".DS_Store"):
        write(tmp_path / "a folder" / name, make_image(1, (9, 9)))
    write(tmp_path / "a folder" / "notes.txt", b"hello")
    drop(page, tmp_path / "a folder", write(tmp_path / "beside.jpg", make_image(2)))
    assert "113 files, 1 of them not readable" in said(page)
    rows = page.locator("#answer tbody tr")
    shown = [rows.nth(index).inner_text().strip().partition("\t")[0] for index in range(rows.count())]
    assert shown == [*(f"a folder/{name}" for name in names), "a folder/notes.txt", "a folder/小 猫/1.jpg", "beside.jpg"]


def test_a_file_can_be_dropped_beside_its_place(page, tmp_path):
    drop(page, write(tmp_path / "beside.jpg", make_image(2)))
    assert "beside.jpg" in said(page)
    assert len(bars(page)) == 3


def test_an_empty_folder_is_reported(page, tmp_path):
    (tmp_path / "nothing").mkdir()
    page.once("dialog", lambda dialog: dialog.dismiss())
    with page.expect_event("dialog") as shown:
        drop(page, tmp_path / "nothing")
    assert shown.value.message == "There are no files in this folder."


def test_a_file_that_is_too_large_is_refused(page):
    page.locator("#images input[type=file]").set_input_files([{"name": "big.jpg", "mimeType": "", "buffer": bytes(200_001)}])
    page.wait_for_selector("text=exceed the maximum allowed size")


def test_nothing_is_asked_of_another_machine(page):
    assert len(page.requests) > 10
    outside = [url for url in page.requests if not url.startswith((page.url_served, "data:", "blob:"))]
    assert outside == []


def test_a_port_that_is_taken_is_reported(serve, page, run):
    port = int(page.url_served.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match=rf"port {port} of 127.0.0.1 .* another with --port"), serve(run / "run", port=port):
        pass


def test_the_page_works_without_the_training_data_and_leaves_nothing(serve, run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    shutil.copy(run / "run" / "model.keras", tmp_path / "model.keras")
    before = dict(os.environ)
    with serve(tmp_path / "model.keras", port=0, progress=False) as url:
        address = "127.0.0.1", int(url.rstrip("/").rpartition(":")[2])
        socket.create_connection(address).close()
        assert len(list((tmp_path / "tmp").iterdir())) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "no nearest training images" in caplog.text
    ours = {
        "GRADIO_ANALYTICS_ENABLED",
        "GRADIO_TEMP_DIR",
        "no_proxy",
        "NO_PROXY",
        *before,
    }  # Gradio sets more when it is first used
    expected = {**{name: before.get(name) for name in ours}, "GRADIO_ANALYTICS_ENABLED": "False"}
    assert {name: os.environ.get(name) for name in ours} == expected
    with pytest.raises(FileNotFoundError), serve(tmp_path / "model.keras", data=tmp_path / "nothing", port=0):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(serve, run, tmp_path, number):
    command = [
        *("sh", "-c", "trap '' HUP; exec \"$@\"", "nohup"),
        sys.executable,
        str(CHECKOUT / "tools" / "demo_page.py"),
        f"--model={run / 'run'}",
        "--port=0",
        "--max_training=0",
    ]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        assert list(tmp_path.glob("tfpipe-page-*"))
        process.send_signal(signal.SIGHUP)  # which is ignored here, and stays so
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "stopped. The page is closed" in errors
    assert not list(tmp_path.glob("tfpipe-page-*"))
    assert "Traceback" not in errors
