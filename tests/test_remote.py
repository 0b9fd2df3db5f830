"""Data sets in stores: the same pixels as from the disk, whatever the server does; or an error with its place."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from pipeline_fixtures import make_image, write_data_set
from store_fixtures import s3_server, upload

import tfpipe
from tfpipe.common import object_cache, stores
from tfpipe.common.errors import DataError
from tfpipe.pipeline.reading import RecordReader
from tfpipe.tools.benchmarks.range_server import RangeServer, serving
from tfpipe.training import runs

pytestmark = pytest.mark.tf

NUM_IMAGES = 200
FAULTS = ("500", "429", "cut", "short", "wrong")


@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Of the whole module: threads of a failed pipeline still request when its test is over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFPIPE_STORE_SECONDS", "2")
        yield


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "pets"
    return write_data_set(folder, [make_image(seed, 24 + seed % 9, 32) for seed in range(NUM_IMAGES)], 3)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture
def server(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """The data set behind a web server, and a cache of the test's own."""
    shutil.copytree(data_set, tmp_path / "served")
    monkeypatch.setenv("TFPIPE_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path / "served") as running:
        yield running


def digest(data: str | Path, **options: object) -> str:
    """A digest of all pixels, labels and names in their order."""
    found = hashlib.sha256()
    for element in tfpipe.dataset(data, "test", image_size=(16, 16), batch_size=16, as_dict=True, **options):
        for name in sorted(element):
            value = element[name].numpy()
            found.update(b"".join(value) if value.dtype == object else value.tobytes())
    return found.hexdigest()


def records(place: str | Path) -> list[bytes]:
    """All records of a split, as `dataset` reads them: b"" for one that cannot be read."""
    reader = RecordReader(place, "test")
    return reader.read_batch(np.arange(reader.num_records)).tolist()


def failure_with(server: RangeServer, fault: str) -> str:
    """The error of a pass in which all requests for records go wrong."""
    data = tfpipe.dataset(server.url, "test", image_size=(16, 16), batch_size=16)
    server.faults.append(fault)
    server.for_ever = True
    try:
        list(data)
    except tf.errors.InvalidArgumentError as error:
        return str(error)
    return "no error"


def blocks(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "blocks").rglob("*") if path.is_file())


def test_s3_gives_the_pixels_of_the_disk(bucket: str, data_set: Path, caplog: pytest.LogCaptureFixture):
    upload(data_set, f"{bucket}/pets")
    place = f"{bucket}/pets"
    assert tfpipe.load_manifest(place) == tfpipe.load_manifest(data_set)
    assert digest(place) == digest(data_set)
    caplog.clear()
    with caplog.at_level("INFO", "tfpipe"):
        trained = digest(place, training=True, seed=3)
    assert "read_block=64: the data set is in a store" in caplog.text
    assert trained == digest(data_set, training=True, seed=3, read_block=64)
    assert trained != digest(data_set, training=True, seed=3)
    assert digest(Path(place), shard=(1, 2)) == digest(data_set, shard=(1, 2))


def test_s3_refuses_what_is_not_a_whole_data_set(bucket: str, data_set: Path, tmp_path: Path):
    place = f"{bucket}/part"
    with pytest.raises(FileNotFoundError, match=rf"^{place}/manifest.json: no manifest here"):
        tfpipe.dataset(place, "test")
    upload(data_set, place)
    first, *_ = sorted(data_set.glob("*.tfrecord-*"))
    (tmp_path / "cut").write_bytes(first.read_bytes()[:-5])
    stores.put(tmp_path / "cut", f"{place}/{first.name}")
    with pytest.raises(DataError, match=rf"^{place}/{first.name}: truncated: "):
        tfpipe.dataset(place, "test")
    stores.put(first, f"{place}/{first.name}")
    extra = first.name.replace("00003", "00009")
    stores.put(first, f"{place}/{extra}")
    with pytest.raises(DataError, match=rf"^{place}/{extra}: a shard that the manifest does not list"):
        tfpipe.dataset(place, "test")


@pytest.mark.parametrize("cache_bytes", ["0", "1e9"])
@pytest.mark.parametrize("fault", FAULTS)
def test_g3_a_fault_of_a_server_changes_no_pixel(
    server: RangeServer, data_set: Path, fault: str, cache_bytes: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", cache_bytes)
    data = RecordReader(server.url, "test")
    server.faults.extend([fault] * (1 if fault == "wrong" else 2))  # one and the same record is fetched twice at most
    assert data.read_batch(np.arange(NUM_IMAGES)).tolist() == records(data_set)
    assert not server.faults
    assert not any(map(data.failure, range(NUM_IMAGES)))


@pytest.mark.parametrize("fault", FAULTS)
def test_g3_a_fault_that_stays_is_an_error_and_not_a_smaller_data_set(server: RangeServer, fault: str):
    message = failure_with(server, fault)
    gc.collect()  # the pipeline ends while the server is there
    assert f"{server.url}/pets-test.tfrecord-00000-of-00003: at byte 0: record 0 (source cat/0.jpg)" in message
    if fault == "wrong":
        assert "(damaged" in message
    else:
        assert "bytes 0 to " in message
    if fault.isdigit():
        assert f"{fault} " in message
        assert f"the server says {fault}" in message


def test_a_warm_cache_needs_no_server_and_a_flipped_byte_is_fetched_again(server: RangeServer, data_set: Path, tmp_path: Path):
    expected = records(data_set)
    assert records(server.url) == expected
    found = blocks(tmp_path / "cache")
    assert len(found) == 3  # shards of one block
    before = server.requests["GET"]
    assert records(server.url) == expected
    assert server.requests["GET"] == before + 1  # the manifest
    content = bytearray(found[0].read_bytes())
    content[len(content) // 2] ^= 1
    found[0].write_bytes(content)
    assert records(server.url) == expected
    assert server.requests["GET"] == before + 3
    assert found[0].read_bytes() != content
    os.truncate(found[1], 100)
    assert records(server.url) == expected


def test_another_data_set_at_the_same_place_is_not_read_from_the_cache(server: RangeServer, data_set: Path, tmp_path: Path):
    assert records(server.url) == records(data_set)
    shutil.rmtree(server.folder)
    other = write_data_set(server.folder, [make_image(seed + 1000, 24, 32) for seed in range(50)], 2)
    assert records(server.url) == records(other) != records(data_set)
    (catalog,) = [path for path in (tmp_path / "cache" / "files").iterdir() if path.read_bytes()[:3] == b"key"][:1]
    catalog.write_bytes(b"spoilt")
    object_cache._local.clear()
    assert records(server.url) == records(other)
    (server.folder / "catalog.csv").write_bytes(b"spoilt")
    object_cache._local.clear()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"catalog\.csv: not as listed in the manifest: its SHA-256 is another"):
        tfpipe.dataset(server.url, "test")


def test_neighbours_come_in_one_request_and_several_are_on_their_way(server: RangeServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFPIPE_CACHE_BYTES", "0")
    reader = RecordReader(server.url, "test")
    server.requests.clear()
    reader.read_batch(np.arange(60))
    assert server.requests["GET"] == 1
    server.delay_seconds = 0.2
    reader.read_batch(np.arange(0, 60, 2))
    assert server.requests["GET"] == 31
    assert server.most_at_once > 10


def test_a_run_records_the_order_of_its_data(bucket: str, tmp_path: Path):
    """In a store it is another: a run that was begun with a local copy does not go on there, nor two workers together."""
    local = write_data_set(tmp_path / "pets", [make_image(seed) for seed in range(20)], 2, split="train")
    upload(local, f"{bucket}/run/pets")
    recipe = tfpipe.Recipe(backbone="lenet", weights="none", image_size=(32, 32), mode="scratch", epochs=1)
    blocks = [
        runs._Job(place, recipe, "train", None).identity()["data read_block"] for place in (local, Path(f"{bucket}/run/pets"))
    ]
    assert blocks == [None, 64]
    given = {"cache": tmp_path / "features", "progress": False, "tensorboard": False, "log": None}
    tfpipe.train(local, tmp_path / "run", recipe, **given)
    with pytest.raises(ValueError, match="holds a run with read_block=None, not 64"):
        tfpipe.train(f"{bucket}/run/pets", tmp_path / "run", recipe, **given)
