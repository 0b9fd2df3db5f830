"""A page on this machine on which somebody decides about the suspects of an evaluation, one by one.

    with serve("eval/", "shards/") as url:
        ...    # http://127.0.0.1:7860/

It shows the images' own bytes and loads no model: it needs neither TensorFlow nor Gradio.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tfpipe.common.errors import DataError
from tfpipe.common.locking import locked
from tfpipe.page import preflight
from tfpipe.page.preflight import HOST
from tfpipe.page.review import Answer, Review
from tfpipe.report import templates

_MAX_REQUEST_BYTES = 1 << 16
_log = logging.getLogger("tfpipe")


@contextlib.contextmanager
def serve(
    evaluation: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    port: int = 7860,
    allowed_hosts: Sequence[str] = (),
    open_browser: bool = False,
) -> Iterator[str]:
    """Opens the page and yields its address; the page ends with the block.

    Args:
        evaluation: folder of `tfpipe.evaluate`; gets decisions.csv.
        data: the data set that was evaluated.
        port: to listen on; 0: any free one.
        allowed_hosts: see `tfpipe.page.page.serve`.
        open_browser: show the page in the browser.

    Raises:
        BlockingIOError: another page writes to the same decisions.csv.
        OSError: the port is taken.
        ValueError, FileNotFoundError, DataError: as `Review`.
    """
    folder = Path(evaluation)
    own_names = preflight.host_names(allowed_hosts)
    port = preflight.free_port(port)
    review = Review(folder, Path(data))
    with (
        locked(folder, "review"),
        http.server.ThreadingHTTPServer((HOST, port), partial(_Handler, review, own_names)) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://{HOST}:{port}/"
        if open_browser:
            import webbrowser

            webbrowser.open(url)
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers the page's requests, under its own names and from its own pages alone."""

    _writing = threading.Lock()

    def __init__(self, review: Review, own_names: frozenset[str], *arguments: Any) -> None:
        self._review, self._own_names = review, own_names
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers /, /state, /images/RANK and /others/RANK."""
        kind, _, rank = self.path.lstrip("/").partition("/")
        if not self._is_own():
            return
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = templates.render("review.html", name=self._review.name, nonce=nonce)
            self._send(200, "text/html; charset=utf-8", page.encode(), nonce)
        elif self.path == "/state":
            self._send_json(self._review.state())
        elif kind in ("images", "others") and rank.isascii() and rank.isdigit():
            try:
                self._send(200, *self._review.image(int(rank), other=kind == "others"))
            except (ValueError, DataError, OSError) as error:
                _log.warning("%s", error)
                self._refuse(404, str(error))
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        """Takes a decision, or takes one back; answers with the new state."""
        if not self._is_own():
            return
        size = self.headers.get("Content-Length", "")
        # Pages of others cannot send this type without permission, which nobody gives.
        if self.headers.get("Content-Type") != "application/json" or not size.isdigit() or int(size) > _MAX_REQUEST_BYTES:
            self._refuse(400, "not a decision")
            return
        content = self.rfile.read(int(size))
        try:
            with self._writing:
                if self.path == "/undo":
                    self._send_json({"undone": self._review.undo(), **self._review.state()})
                elif self.path == "/decide":
                    self._review.decide(msgspec.json.decode(content, type=Answer))
                    self._send_json(self._review.state())
                else:
                    self._refuse(404, "there is no such page")
        except (ValueError, msgspec.MsgspecError) as error:
            self._refuse(400, str(error))
        except OSError as error:
            _log.error("the decision is not stored: %s", error)
            self._refuse(500, f"the decision is not stored: {error.strerror or error}")

    def _is_own(self) -> bool:
        is_own = preflight.is_own_page(self.headers.get("Host", ""), self.headers.get("Origin"), self._own_names)
        if not is_own:
            self._refuse(403, preflight.NOT_OWN)
        return is_own

    def _send_json(self, content: Mapping[str, Any]) -> None:
        self._send(200, "application/json", json.dumps(content).encode())

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, "text/plain; charset=utf-8", reason.encode("utf-8", "replace"))

    def _send(self, status: int, kind: str, content: bytes, nonce: str = "") -> None:
        policy = (
            f"default-src 'none'; img-src 'self'; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        )
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'; base-uri 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the browser has moved on
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Logs no requests."""
