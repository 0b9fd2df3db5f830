"""A web server of a folder's files with byte ranges, that waits before it answers and errs on request.

python -m tfpipe.tools.benchmarks.range_server FOLDER DELAY_SECONDS      # prints its port; ends with standard input
"""

from __future__ import annotations

import contextlib
import http.server
import re
import sys
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

FAULTS = ("500", "503", "429", "403", "cut", "short", "wrong", "slow")
_SLOW_SECONDS = 30.0
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder on a free port of this machine, in threads.

    Attributes:
        delay_seconds: before each answer.
        faults: of the next requests for a content, one each; the last one again and again if
            `for_ever`.
        requests: by method.
        num_bytes: of contents that were sent.
        most_at_once: requests that waited for their answers at the same time.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, delay_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.delay_seconds = folder, delay_seconds
        self.faults: deque[str] = deque()
        self.for_ever = False
        self.requests: Counter[str] = Counter()
        self.num_bytes = self.most_at_once = self._running = 0
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        """Returns the folder's URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def wait(self) -> None:
        """Waits as long as each answer takes."""
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        time.sleep(self.delay_seconds)
        with self._lock:
            self._running -= 1

    def take_fault(self) -> str:
        """Returns what to do wrong at this request, "" for nothing."""
        with contextlib.suppress(IndexError):
            return self.faults[0] if self.for_ever else self.faults.popleft()
        return ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs nothing: clients give up slow answers."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # header and content in one packet: the answer does not wait for an acknowledgement
    disable_nagle_algorithm = True
    server: RangeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        server = self.server
        server.requests[self.command] += 1
        server.wait()
        fault = server.take_fault() if with_content else ""
        file = server.folder / urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        if fault.isdigit():
            self._send(int(fault), f"the server says {fault}".encode())
            return
        if not file.is_file():
            self._send(404, b"no such file")
            return
        status = file.stat()
        size = status.st_size
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
        with open(file, "rb") as opened:
            opened.seek(start)
            content = opened.read(end - start) if with_content else b""
        if fault == "wrong":
            content = bytes([content[0] ^ 1, *content[1:-1], content[-1] ^ 1])
        if fault == "short":
            content = content[: len(content) // 2]
            end = start + len(content)
        headers = {"ETag": f'"{status.st_mtime_ns:x}"', "Last-Modified": formatdate(0, usegmt=True), "Accept-Ranges": "bytes"}
        if found:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._send(206 if found else 200, content, headers, num_bytes=end - start, fault=fault)
        server.num_bytes += len(content)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, num_bytes: int | None = None, fault: str = ""
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content) if num_bytes is None else num_bytes), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "slow"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "slow":
                self.server.stopped.wait(_SLOW_SECONDS)
            self.close_connection = True
            return
        self.wfile.write(content)
        self.wfile.flush()


@contextlib.contextmanager
def serving(folder: Path, delay_seconds: float = 0.0) -> Iterator[RangeServer]:
    """Serves a folder while the block runs."""
    with RangeServer(folder, delay_seconds) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()


if __name__ == "__main__":
    with serving(Path(sys.argv[1]), float(sys.argv[2])) as running:
        print(running.server_port, flush=True)
        sys.stdin.read()
