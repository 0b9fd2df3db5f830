"""A real S3 server on this machine, moto's, in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfpipe.common import stores

BUCKET = "tfpipe-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing1", "AWS_SECRET_ACCESS_KEY": "testing2", "AWS_REGION": "us-east-1"}
_SERVE = """
import sys, moto.server
moto.server.main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The URL of an empty bucket; the environment leads to its server, and to a cache in `folder`."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, open(folder / "log", "wb") as log:
        for name, value in {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "TFPIPE_CACHE": str(folder / "cache"),
        }.items():
            patch.setenv(name, value)
        stores._client.cache_clear()
        server = subprocess.Popen([sys.executable, "-c", _SERVE, str(port)], stdout=log, stderr=log)
        try:
            _wait_for(port)
            _create(port, BUCKET)
            yield f"s3://{BUCKET}"
        finally:
            server.kill()
            server.wait()
            stores._client.cache_clear()


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        time.sleep(0.1)
    raise TimeoutError("moto's server did not start")


def _create(port: int, name: str) -> None:
    """Makes the bucket, or an empty object in it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()


def make_marker(name: str) -> None:
    """Makes the empty object "cat/" that S3's console makes for a folder."""
    _create(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), f"{BUCKET}/{name}/")


def upload(folder: Path, url: str) -> None:
    """Stores all files of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stores.put(path, f"{url}/{path.relative_to(folder)}")


def content(url: str) -> bytes:
    """Returns an object's bytes."""
    with stores.opened(url) as file:
        return file.read()


def environment() -> dict[str, str]:
    """Returns the environment of a command that is started."""
    return dict(os.environ)
