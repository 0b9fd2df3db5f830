"""Requests to stores: what a server does wrong is healed, or is an error that names object, bytes and the answer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT

from tfpipe.common import arguments, object_cache, stores
from tfpipe.common.object_cache import BLOCK_BYTES, CachedObject
from tfpipe.tools.benchmarks.range_server import RangeServer, serving

CONTENT = bytes(range(256)) * 8192  # four blocks
SHA256 = "5" * 64
HEALED = ("500", "503", "429", "cut", "short", "slow")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a b+ü.bin").write_bytes(CONTENT)
    monkeypatch.setenv("TFPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFPIPE_STORE_SECONDS", "1")
    with serving(tmp_path / "served") as running:
        yield running


@pytest.mark.parametrize("fault", HEALED)
def test_a_fault_of_a_server_is_healed(server: RangeServer, fault: str, monkeypatch: pytest.MonkeyPatch):
    if fault == "slow":
        monkeypatch.setenv("TFPIPE_STORE_SECONDS", "3")
        monkeypatch.setattr(stores, "_REQUEST_SECONDS", 1)
    server.faults.append(fault)
    assert stores.read(f"{server.url}/a b+ü.bin", 1000, 5) == CONTENT[5:1005]
    assert server.requests["GET"] == 2


@pytest.mark.parametrize("fault", HEALED)
def test_a_fault_that_stays_is_an_error_with_its_place(server: RangeServer, fault: str):
    server.faults.append(fault)
    server.for_ever = True
    before = time.monotonic()
    with pytest.raises(OSError, match=r"bytes 5 to 1005 cannot be had: .*[0-9]+ attempts") as caught:
        stores.read(f"{server.url}/a b+ü.bin", 1000, 5)
    assert time.monotonic() - before < 10
    assert caught.value.filename == f"{server.url}/a b+ü.bin"
    assert server.requests["GET"] > 1
    if fault.isdigit():
        assert f"{fault} " in caught.value.strerror
        assert f"the server says {fault}" in caught.value.strerror


def test_after_one_request_was_given_up_the_next_ones_are_made_once(server: RangeServer):
    server.faults.append("500")
    server.for_ever = True
    with pytest.raises(OSError, match="bytes 0 to 9 cannot be had"):
        stores.read(f"{server.url}/a b+ü.bin", 9, 0)
    requests = server.requests["GET"]
    assert requests > 2
    with pytest.raises(OSError, match=r"bytes 1 to 10 cannot be had: .*\(1 attempt\)"):
        stores.read(f"{server.url}/a b+ü.bin", 9, 1)
    assert server.requests["GET"] == requests + 1
    server.faults.clear()
    server.for_ever = False
    assert stores.read(f"{server.url}/a b+ü.bin", 9, 1) == CONTENT[1:10]
    server.faults.append("500")
    assert stores.read(f"{server.url}/a b+ü.bin", 9, 2) == CONTENT[2:11]  # it is patient again


def test_what_cannot_heal_is_an_error_at_once(server: RangeServer):
    with pytest.raises(FileNotFoundError, match=r"no such object.*nothing"):
        stores.read(f"{server.url}/nothing", 10, 0)
    server.faults.append("403")
    with pytest.raises(PermissionError, match="403 Forbidden: the server says 403"):
        stores.read(f"{server.url}/a b+ü.bin", 10, 0)
    assert server.requests["GET"] == 2


def test_a_server_that_is_not_there_is_an_error(server: RangeServer):
    gone = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="bytes 0 to 10 cannot be had"):
        stores.read(f"{gone}/a", 10, 0)


def test_an_object_reads_like_a_file(server: RangeServer):
    with stores.opened(f"{server.url}/a b+ü.bin") as file:
        assert file.read(3) == CONTENT[:3]
        file.seek(-4, os.SEEK_END)
        assert (file.read(), file.read(), file.tell()) == (CONTENT[-4:], b"", len(CONTENT))
    assert stores.size(f"{server.url}/a b+ü.bin") == len(CONTENT)
    assert server.requests["GET"] <= 3


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(server: RangeServer):
    with stores.opened(f"{server.url}/a b+ü.bin") as file:
        assert file.read(3) == CONTENT[:3]
        (server.folder / "a b+ü.bin").write_bytes(CONTENT[::-1])
        with pytest.raises(OSError, match=r"it was replaced while it was read: start again.*a b\+ü.bin"):
            file.read()


def test_blocks_are_kept_and_requested_in_one_go(server: RangeServer):
    cached = CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), SHA256)
    start, length = BLOCK_BYTES - 7, 2 * BLOCK_BYTES
    assert cached.read(length, start) == CONTENT[start : start + length]
    assert server.requests["GET"] == 1
    for offset, wanted in ((0, 5), (start, length), (3 * BLOCK_BYTES - 9, 9), (5, 0)):
        assert CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), SHA256).read(wanted, offset) == CONTENT[offset:][:wanted]
    assert server.requests["GET"] == 1
    assert cached.read(100, len(CONTENT) - 10) == CONTENT[-10:]  # beyond the end
    assert server.requests["GET"] == 2


def test_a_cut_block_is_fetched_again(server: RangeServer, tmp_path: Path):
    cached = CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), SHA256)
    assert cached.read(10, 0) == CONTENT[:10]
    (block,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    os.truncate(block, 20)
    assert cached.read(10, 0) == CONTENT[:10]
    assert server.requests["GET"] == 2
    cached.forget(10, 0)
    assert not block.exists()


def test_the_cache_is_bounded(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", str(2 * BLOCK_BYTES))
    for number in range(8):
        assert CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), f"{number}" * 64).read(9, 0) == CONTENT[:9]
        held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
        assert 0 < held <= 2 * BLOCK_BYTES
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", "0")
    requests = server.requests["GET"]
    bare = CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), SHA256)
    assert [bare.read(9, 3), bare.read(9, 3)] == [CONTENT[3:12]] * 2
    assert server.requests["GET"] == requests + 2
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", "much")
    with pytest.raises(ValueError, match="TFPIPE_CACHE_BYTES must be a number"):
        CachedObject(f"{server.url}/a b+ü.bin", len(CONTENT), SHA256)


def test_a_whole_object_is_fetched_by_its_hash(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "_AHEAD_BYTES", 100_000)  # 21 pieces, 8 at a time
    place, sha256 = f"{server.url}/a b+ü.bin", hashlib.sha256(CONTENT).hexdigest()
    assert object_cache.fetch(place, SHA256) is None
    assert object_cache.local(place) is None
    copy = object_cache.fetch(place, sha256)
    assert copy is not None
    assert copy.read_bytes() == CONTENT
    assert object_cache.local(place) == copy
    requests = server.requests["GET"]
    assert object_cache.fetch(place, sha256) == copy
    assert server.requests["GET"] == requests
    copy.write_bytes(b"spoilt")
    assert object_cache.fetch(place, sha256).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache" / "files").iterdir()] == [sha256]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://bucket/pets", "s3://bucket/pets"),
        (Path("s3://bucket/pets") / "a.csv", "s3://bucket/pets/a.csv"),
        (Path("gs://bucket"), "gs://bucket"),
        ("https://host:80/a", "https://host:80/a"),
    ],
)
def test_places_in_stores_are_paths(given: str | Path, shown: str):
    assert stores.is_remote(given)
    assert stores.url(given) == shown
    assert stores.url(stores.absolute(given)) == shown


def test_local_paths_are_not_places_in_stores(tmp_path: Path):
    for local in ("s3", "photos/s3:", "/s3://a", "./s3://bucket", "data:s3://a", "S3://bucket", "", None, 3):
        assert not stores.is_remote(local)
    assert stores.url("photos/1.jpg") == "photos/1.jpg"
    assert stores.absolute("photos") == Path.cwd() / "photos"


@pytest.mark.parametrize(
    "given",
    [
        "https://user:hunter2hunter2@host/a",
        "https://host/a?sig=hunter2hunter2",
        "s3://k:hunter2hunter2@b/a",
        "az://container/a?sv=1&sig=hunter2hunter2",
        "s3://bucket/a?X-Amz-Signature=hunter2hunter2",
        Path("gs://bucket/a?x-goog-signature=hunter2hunter2"),
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(given: str | Path):
    with pytest.raises(ValueError, match="credentials in the environment") as caught:
        arguments.path("data", given)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["hdfs://node/a", "S3://bucket/a", "HTTPS://u:hunter2hunter2@host/a", Path("Gs://bucket/a"), "abfs://a", "s3://"]
)
def test_urls_of_no_known_store_are_refused(given: str | Path):
    scheme = str(given).partition(":")[0]
    for name in ("data", "output"):
        with pytest.raises(ValueError, match=f"{name}: {scheme}: is no store that tfpipe knows") as caught:
            arguments.path(name, given)
        assert "hunter2" not in str(caught.value)


def test_names_with_a_question_mark_are_allowed():
    stores.check("data", "s3://bucket/why?")
    stores.check("data", "photos/a?sig=b")


def test_a_missing_account_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(OSError, match=r"cannot be used with this environment: .*Account must be specified.*az://nobody"):
        stores.size("az://nobody/a")


def test_answers_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    answer = (
        "403 Forbidden: <?xml?><Error><Code>Signature</Code><Message>does not match hunter2hunter2</Message>"
        "<AWSAccessKeyId>AKIA123</AWSAccessKeyId></Error>"
    )
    assert stores.scrubbed(answer) == "403 Forbidden: Signature: does not match ***"
    assert stores.scrubbed("GET https://u:p@host/a?sig=abc failed") == "GET https://host/a failed"


_READER = """
import sys
from tfpipe.common.object_cache import CachedObject, BLOCK_BYTES
for _ in range(60):
    cached = CachedObject(sys.argv[1], 2097152, "5" * 64)
    for block in range(4):
        if cached.read(100, block * BLOCK_BYTES + 50) != (bytes(range(256)) * 2)[50:150]:
            sys.exit(f"wrong bytes in block {block}")
"""


def test_processes_share_a_cache_that_is_too_small(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", str(3 * BLOCK_BYTES))
    command = [sys.executable, "-c", _READER, f"{server.url}/a b+ü.bin"]
    readers = [subprocess.Popen(command, cwd=CHECKOUT) for _ in range(3)]
    assert [reader.wait(100) for reader in readers] == [0, 0, 0]
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix == ".tmp"]
    assert sum(path.stat().st_size for path in left) <= (3 + len(readers)) * BLOCK_BYTES
