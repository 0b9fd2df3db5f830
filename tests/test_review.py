"""The review of suspects: decisions in a real browser, by keys, taken back, kept over a restart, and nothing else written."""

import http.client
import json
import signal
import subprocess
import sys

import pytest
from browser_fixtures import PATIENCE, browser
from conftest import CHECKOUT, make_image, write

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.evaluation import suspects
from tfpipe.evaluation.suspects import Suspect
from tfpipe.page.review import Answer, Review
from tfpipe.page.review_server import serve
from tfpipe.records import decisions
from tfpipe.records.catalog import read_catalog
from tfpipe.records.decisions import Decision

__all__ = ["browser"]  # a fixture

NAMES = ("cat", "<img src=x onerror='window.harmed=1'>", "小 猫")
MANY = [f"class {number:02d}" for number in range(12)]


def prepare(root, names, shown=6):
    """A data set of three images of each class, and an evaluation as far as the page reads it."""
    for place in range(len(names)):
        for number in range(3):
            options = {"format": "PNG"} if number == 2 else {}
            write(root / "photos" / f"{place:02d}-{number}.jpg", make_image(10 * place + number, (60, 40), **options))
    rows = [f'{place:02d}-{number}.jpg,"{name}"' for place, name in enumerate(names) for number in range(3)]
    table = write(root / "photos" / "labels.csv", "\n".join(["path,label", *rows]).encode())
    options = {"layout": "csv", "splits": {"train": 0.5, "test": 0.5}, "class_names": names, "progress": False, "workers": 1}
    built = tfpipe.build_tfrecords(table, root / "shards", **options)
    records = sorted(read_catalog(root / "shards"), key=lambda row: row.key)
    found = []
    for rank, row in enumerate(records[:shown], 1):
        other = records[-1] if rank == 2 else None
        suggested = other.class_name if other else names[(row.label + 1) % len(names)]
        facts = (row.filename, row.split, row.class_name, suggested if rank != 3 else "", 0.5)
        reason = "near_duplicate" if other else "odd" if rank == 3 else "label_error"
        found.append(Suspect(rank, row.key, *facts, reason, other.key if other else ""))
    (root / "eval").mkdir()
    suspects.write(root / "eval", found)
    write(root / "eval" / "receipt.json", json.dumps({"data_root_hash": built.root_hash}).encode())
    return root


@pytest.fixture
def reviewed(tmp_path):
    return prepare(tmp_path, NAMES)


def decided(root):
    path = root / "eval" / "decisions.csv"
    return [(one.key, one.decision, one.new_class) for one in decisions.read(path)] if path.exists() else []


@pytest.fixture
def opened(browser):
    pages = []

    def open_page(url):
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(url)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


def shown(page, key):
    """Waits until the image of a key is shown and can be decided about."""
    page.wait_for_selector(f"body[data-ready='{key}']")


def test_keys_decide_in_a_browser_and_a_restart_goes_on(reviewed, opened, tmp_path):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with serve(reviewed / "eval", reviewed / "shards", port=0) as url:
        page = opened(url)
        shown(page, "00-0.jpg")
        assert page.inner_text("#label") == "cat"
        assert page.inner_text("#suggested") == NAMES[1]
        assert [text.partition(" ")[2] for text in page.locator("#classes li").all_inner_texts()] == list(NAMES)
        assert page.evaluate("document.querySelector('#image').naturalWidth") == 60
        assert not page.is_visible("#twin")
        assert not page.is_visible("#search")
        page.keyboard.press("4")  # there is no fourth class
        page.keyboard.press("3")
        shown(page, "00-1.jpg")
        assert page.is_visible("#twin")  # the near-duplicate
        assert page.evaluate("document.querySelector('#other').naturalWidth") == 60
        page.keyboard.press("x")
        shown(page, "00-2.jpg")  # a PNG
        page.keyboard.press("Enter")  # odd: there is no suggestion
        page.keyboard.press("Space")
        shown(page, "01-0.jpg")
        page.keyboard.press("2")  # the class that it has
        shown(page, "01-1.jpg")
        page.keyboard.press("Enter")
        shown(page, "01-2.jpg")
        assert decided(reviewed) == [
            ("00-0.jpg", "label", NAMES[2]),
            ("00-1.jpg", "drop", ""),
            ("00-2.jpg", "keep", ""),
            ("01-0.jpg", "keep", ""),
            ("01-1.jpg", "label", NAMES[2]),
        ]
        page.keyboard.press("u")
        shown(page, "01-1.jpg")
        assert len(decided(reviewed)) == 4
        page.keyboard.press("ArrowLeft")
        shown(page, "01-0.jpg")
        assert page.inner_text("#decided") == "decided: keep"
        page.keyboard.press("1")  # another decision takes the place of the first
        shown(page, "01-1.jpg")
        assert decided(reviewed)[-1] == ("01-0.jpg", "label", "cat")
        assert page.evaluate("window.harmed") is None
        assert not [address for address in page.requests if not address.startswith(url)]
    with serve(reviewed / "eval", reviewed / "shards", port=0) as url:
        page = opened(url)
        shown(page, "01-1.jpg")  # where it was left
        assert "5 of 6, 2 left" in page.inner_text("#progress")
        page.keyboard.press("u")
        shown(page, "01-0.jpg")  # also what was decided before the restart
        page.keyboard.press("k")
        shown(page, "01-1.jpg")
        page.keyboard.press("k")
        shown(page, "01-2.jpg")
        page.keyboard.press("x")
        page.wait_for_selector("#decided:has-text('decided: drop')")
        assert "all are decided" in page.inner_text("#progress")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before <= {reviewed / "eval" / name for name in NEW}
    assert not list((reviewed / "eval").glob("*tmp*"))
    rows = {row.key: row for row in read_catalog(reviewed / "shards")}
    made = decisions.read(reviewed / "eval" / "decisions.csv")
    assert {one.key: (one.sha256, one.old_class) for one in made} == {
        one.key: (rows[one.key].sha256, rows[one.key].class_name) for one in made
    }
    table = {"layout": "csv", "splits": {"train": 0.5, "test": 0.5}, "class_names": NAMES, "progress": False, "workers": 1}
    built = tfpipe.build_tfrecords(
        reviewed / "photos/labels.csv", reviewed / "again", decisions=reviewed / "eval/decisions.csv", **table
    )
    assert built.decisions.counts == {"label": 1, "drop": 2, "keep": 3}


NEW = ("decisions.csv", ".tfpipe-review.lock")


def test_more_classes_than_keys_are_found_by_typing(opened, tmp_path):
    root = prepare(tmp_path, MANY)
    with serve(root / "eval", root / "shards", port=0) as url:
        page = opened(url)
        shown(page, "00-0.jpg")
        assert page.locator("#classes li").count() == 9
        page.keyboard.press("/")
        page.keyboard.type("11")
        assert page.inner_text("#found") == "class 11"
        page.keyboard.press("Enter")
        shown(page, "00-1.jpg")
        page.keyboard.press("0")
        page.keyboard.type("x")  # typed, not a drop
        page.keyboard.press("Escape")
        page.keyboard.press("9")
        shown(page, "00-2.jpg")
        assert decided(root) == [("00-0.jpg", "label", "class 11"), ("00-1.jpg", "label", "class 08")]


def test_no_key_counts_before_its_image_is_shown(reviewed, opened):
    with serve(reviewed / "eval", reviewed / "shards", port=0) as url:
        page = opened(url)
        shown(page, "00-0.jpg")
        held = []
        page.route("**/images/2", lambda route: held.append(route))
        page.keyboard.press("x")
        page.wait_for_selector("#file:has-text('00-1.jpg')")  # the second is on its way, and not here yet
        page.keyboard.press("x")
        page.keyboard.press("u")
        page.wait_for_timeout(300)  # milliseconds, in which the page would have sent it
        assert decided(reviewed) == [("00-0.jpg", "drop", "")]
        for route in held:
            route.continue_()
        shown(page, "00-1.jpg")
        page.keyboard.press("k")
        shown(page, "00-2.jpg")
        assert decided(reviewed) == [("00-0.jpg", "drop", ""), ("00-1.jpg", "keep", "")]


def test_a_decision_that_is_not_stored_is_reported(reviewed, opened):
    with serve(reviewed / "eval", reviewed / "shards", port=0) as url:
        page = opened(url)
        shown(page, "00-0.jpg")
        (reviewed / "eval" / "decisions.csv").mkdir()  # in the place of the file
        page.keyboard.press("x")
        page.wait_for_selector("#problem:has-text('Not stored: the decision is not stored')")
        shown(page, "00-0.jpg")
        (reviewed / "eval" / "decisions.csv").rmdir()
        page.keyboard.press("x")
        shown(page, "00-1.jpg")
    assert decided(reviewed) == [("00-0.jpg", "drop", "")]


# Who may ask for what


def request(url, method, path, *, headers=None, body=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=60)
    sent = {"Content-Type": "application/json", **(headers or {})} if method == "POST" else headers or {}
    connection.request(method, path, body, sent)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content, response.headers


def test_only_its_own_pages_are_answered(reviewed):
    with serve(reviewed / "eval", reviewed / "shards", port=0, allowed_hosts=["demo.example"]) as url:
        own = url.removeprefix("http://").rstrip("/")
        drop = json.dumps({"rank": 1, "decision": "drop"})
        for headers in (
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "null"},
        ):
            for method, path in (("GET", "/state"), ("GET", "/images/1"), ("POST", "/decide"), ("POST", "/undo")):
                assert request(url, method, path, headers=headers, body=drop)[0] == 403, (headers, path)
        for kind in ("text/plain", "application/x-www-form-urlencoded"):  # which other pages may send
            assert request(url, "POST", "/decide", headers={"Content-Type": kind}, body=drop)[0] == 400
        assert decided(reviewed) == []
        for headers in ({"Origin": f"http://{own}"}, {"Host": "demo.example", "Origin": "https://demo.example"}, {}):
            assert request(url, "POST", "/decide", headers=headers, body=drop)[0] == 200
        assert decided(reviewed) == [("00-0.jpg", "drop", "")]
        status, content, headers = request(url, "GET", "/images/1")
        assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/jpeg", "nosniff")
        assert content == (reviewed / "photos" / "00-0.jpg").read_bytes()
        assert request(url, "GET", "/others/2")[1] == (reviewed / "photos" / "02-2.jpg").read_bytes()
        assert request(url, "GET", "/images/3")[2]["Content-Type"] == "image/png"
        for path in ("/images/0", "/images/7", "/others/1", "/images/x", "/../shards", "/decisions.csv"):
            assert request(url, "GET", path)[0] == 404, path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rank": 0, "decision": "drop"}, "there is no suspect 0"),
        ({"rank": 7, "decision": "drop"}, "there is no suspect 7"),
        ({"rank": 1, "decision": "rename"}, "no decision: 'rename', ''"),
        ({"rank": 1, "decision": "drop", "new_class": "cat"}, "no decision: 'drop', 'cat'"),
        ({"rank": 1, "decision": "label", "new_class": "dog"}, "there is no class 'dog'"),
        ({"rank": 1}, "missing required field `decision`"),
        ({"rank": "1", "decision": "drop"}, "Expected `int`, got `str`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_what_is_no_decision_is_refused(reviewed, content, message):
    with serve(reviewed / "eval", reviewed / "shards", port=0) as url:
        status, answer, _ = request(url, "POST", "/decide", body=json.dumps(content))
    assert status == 400
    assert message in answer.decode()
    assert decided(reviewed) == []


def test_one_page_at_a_time_writes_the_decisions(reviewed):
    with serve(reviewed / "eval", reviewed / "shards", port=0), pytest.raises(BlockingIOError):  # noqa: SIM117
        with serve(reviewed / "eval", reviewed / "shards", port=0):
            pass


# What it is about


def test_an_evaluation_of_another_data_set_is_refused(reviewed, tmp_path):
    write(reviewed / "eval" / "receipt.json", json.dumps({"data_root_hash": "0" * 64}).encode())
    with pytest.raises(ValueError, match=r"the evaluation is of data set 0{12}, .* give the data set that was evaluated"):
        Review(reviewed / "eval", reviewed / "shards")
    (reviewed / "eval" / "suspects.csv").unlink()
    with pytest.raises(FileNotFoundError):
        Review(reviewed / "eval", reviewed / "shards")


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"old_class": "小 猫"}, {"key": "gone.jpg"}])
def test_decisions_about_others_are_refused(reviewed, change):
    review = Review(reviewed / "eval", reviewed / "shards")
    review.decide(Answer(1, "drop"))
    (made,) = decisions.read(reviewed / "eval" / "decisions.csv")
    decisions.write(reviewed / "eval" / "decisions.csv", [made._replace(**change)])
    with pytest.raises(ValueError, match=r"decisions\.csv: the decision about .* is about another image or class"):
        Review(reviewed / "eval", reviewed / "shards")


def test_decisions_about_images_that_are_no_suspects_are_kept(reviewed):
    row = next(row for row in read_catalog(reviewed / "shards") if row.key == "02-1.jpg")
    other = Decision(row.key, row.sha256, row.class_name, "drop")
    decisions.write(reviewed / "eval" / "decisions.csv", [other])
    review = Review(reviewed / "eval", reviewed / "shards")
    review.decide(Answer(1, "keep"))
    assert decided(reviewed) == [("02-1.jpg", "drop", ""), ("00-0.jpg", "keep", "")]
    assert [review.undo(), review.undo(), review.undo()] == ["00-0.jpg", "02-1.jpg", ""]
    assert decided(reviewed) == []


def test_other_bytes_than_those_of_the_catalog_are_not_shown(reviewed):
    review = Review(reviewed / "eval", reviewed / "shards")
    kind, content = review.image(1)
    assert kind == "image/jpeg"
    for shard in (reviewed / "shards").glob("*.tfrecord-*"):
        data = shard.read_bytes()
        if content in data:
            write(shard, data.replace(content, content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(DataError):
        review.image(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_serves_without_tensorflow_until_it_is_stopped(reviewed, number):
    without = "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'keras', 'gradio')))"
    code = f"{without}; import tfpipe.cli; tfpipe.cli.main()"
    arguments = ["page", f"--review={reviewed / 'eval'}", f"--data={reviewed / 'shards'}", "--port=0"]
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
    try:
        url = process.stdout.readline().split()[0]
        assert request(url, "POST", "/decide", body=json.dumps({"rank": 1, "decision": "drop"}))[0] == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == (128 + number if number == signal.SIGINT else -number)
    assert "Traceback" not in errors
    assert decided(reviewed) == [("00-0.jpg", "drop", "")]


def test_wrong_flags_of_the_command(reviewed, run_tool):
    for arguments, message in (
        ([f"--review={reviewed / 'eval'}"], "--data is needed"),
        ([], "--model is needed, or --review"),
        ([f"--review={reviewed / 'eval'}", "--model=runs/a"], "--model is needed, or --review"),
        ([f"--review={reviewed / 'none'}", f"--data={reviewed / 'shards'}"], "none"),
    ):
        done = run_tool("demo_page", *arguments, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
