"""The page: under the name of another site, from a page of one, or for an address, it gives nothing and fetches nothing."""

import asyncio
import http.client
import http.server
import json
import threading
import urllib.request

import pytest
from conftest import make_image
from evaluation_fixtures import make_classifier

from tfpipe.page.preflight import check_page, host_names

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page's port; a name of its own is allowed."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'tfpipe[page]'")
    from tfpipe.page.page import serve

    path = tmp_path_factory.mktemp("page") / "model.keras"
    make_classifier(("cat", "dog")).model.save(path)
    with serve(path, port=0, progress=False, allowed_hosts=["pets.example"]) as url:
        yield int(url.rstrip("/").rsplit(":", 1)[1])


def ask(port, method="GET", path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "[::1]:{}", "LOCALHOST", "pets.example"])
def test_the_page_answers_to_its_own_names(served, host):
    host = host.format(served)
    assert ask(served, Host=host).status == 200
    assert ask(served, Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", "", "[", "8.8.8.8"]
)
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "/gradio_api/queue/join"])
def test_other_names_are_refused(served, host, path):
    for method in ("GET", "POST", "OPTIONS"):
        wanted = {"Access_Control_Request_Method": "POST"} if method == "OPTIONS" else {}
        answer = ask(served, method, path, Host=host, Origin=f"http://{host}", **wanted)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_pages_of_other_sites_are_refused(served, origin):
    for method in ("GET", "POST", "OPTIONS"):
        answer = ask(served, method, "/gradio_api/upload", Origin=origin, Access_Control_Request_Method="POST")
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


def status(given, host, origin=None):
    """What `_OwnPages` answers, without a server."""
    from tfpipe.page.page import _OwnPages

    answers = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        answers.append(message.get("status"))

    named = {"host": host, "origin": origin}
    headers = [(name.encode(), value.encode()) for name, value in named.items() if value is not None]
    asyncio.run(_OwnPages(app, host_names(given))({"type": "http", "headers": headers}, None, send))
    return answers[0]


@pytest.mark.parametrize("given", [["demo.example"], ["Demo.Example"], ["demo.example:8443"], ["x.example", "demo.example"]])
def test_a_proxy_may_pass_its_own_name_on_or_the_page_s(given):
    for host in ("demo.example", "demo.example:443", "DEMO.example:8443", "127.0.0.1:7860", "localhost"):
        assert status(given, host) == 200
        for origin in ("https://demo.example", "https://Demo.example:8443"):
            assert status(given, host, origin) == 200
        for origin in ("https://evil.example", "null", "https://demo.example.evil.example", "http://localhost:1"):
            assert status(given, host, origin) == 403
    for origin in (None, "https://demo.example", "https://evil.example"):
        assert status(given, "evil.example", origin) == 403


def test_a_name_of_this_machine_that_is_given_adds_nothing():
    assert status(["localhost"], "localhost:7860", "http://localhost:7860") == 200
    assert status(["localhost"], "localhost:7860", "http://localhost:1") == 403
    assert status([], "127.0.0.1:7860", "https://demo.example") == 403
    assert status(["[fd00::1]:80"], "[FD00::1]", "http://[fd00::1]") == 200


@pytest.mark.parametrize(
    "given", ["demo.example", ["https://demo.example"], ["*.example"], ["fd00::1"], [""], ["a", "a"], ["[:]"]]
)
def test_what_is_not_a_name_of_a_host_is_reported(given):
    with pytest.raises(ValueError, match="allowed_hosts must be names of hosts, each once, as"):
        check_page("model", None, "train", 0, given)


@pytest.fixture
def counting():
    """An address of a web server on this machine, and what was asked of it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(make_image(1))

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.jpg", asked
    server.shutdown()
    server.server_close()


def post(port, path, data, kind):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/gradio_api/{path}", data, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def say(port, file, session):
    """Gives the page a file as its script does, and returns the last event."""
    body = {"data": [[{"meta": {"_type": "gradio.FileData"}, **file}]], "fn_index": 0, "session_hash": session}
    post(port, "queue/join", json.dumps(body).encode(), "application/json")
    stream = f"http://127.0.0.1:{port}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(stream, timeout=60) as events:
        for line in events:
            event = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                return event
    raise AssertionError("the page did not answer")


def test_an_address_is_never_fetched(served, counting):
    address, asked = counting
    boundary = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
    (path,) = post(served, "upload", boundary + make_image(1) + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    event = say(served, {"path": path, "orig_name": "a.jpg"}, "control")
    assert event["success"]
    assert "cat" in json.dumps(event["output"])
    files = [{"path": address}, {"path": address, "url": address}, {"path": path, "url": address}, {"path": "", "url": address}]
    for index, file in enumerate(files):
        event = say(served, file, f"session{index}")
        assert not event["success"] or file["path"] == path
    assert not asked
    with urllib.request.urlopen(address, timeout=60):  # noqa: S310
        assert asked == ["/a.jpg"]  # so that a fetch would have been counted
