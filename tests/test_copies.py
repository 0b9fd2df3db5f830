"""Commands and stores, with a real S3 server: copies of inputs, outputs stored whole, a killed build that goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import CHECKOUT, signalled
from pipeline_fixtures import make_image
from store_fixtures import CREDENTIALS, content, make_marker, s3_server, upload

import tfpipe
from tfpipe.common import copies, files, stores
from tfpipe.listing import selection
from tfpipe.records import manifest
from tfpipe.verification import extraction

RunTool = Callable[..., subprocess.CompletedProcess[str]]
BUILD = ["--name=pets", "--splits=train=0.5,test=0.5", "--num_shards=20"]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(60):
        file = folder / ("cat", "dog")[number % 2] / f"{number} ü+%.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(make_image(number, 24, 32))
    return folder


@pytest.fixture(scope="module")
def data_set(photos: Path, tmp_path_factory: pytest.TempPathFactory, run_tool: RunTool) -> Path:
    output = tmp_path_factory.mktemp("local") / "pets"
    run_tool("build_tfrecords", f"--input={photos}", f"--output={output}", *BUILD)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(url: str) -> dict[str, bytes]:
    return {entry.name: content(f"{url}/{entry.name}") for entry in stores.listed(url)}


def test_a_build_from_and_to_a_store_gives_the_same_bytes(bucket: str, photos: Path, data_set: Path, run_tool: RunTool):
    upload(photos, f"{bucket}/photos")
    flags = [f"--input={bucket}/photos", f"--output={bucket}/built/pets", *BUILD]
    done = run_tool("build_tfrecords", *flags)
    assert stored(f"{bucket}/built/pets") == contents(data_set)
    assert f"{bucket}/built/pets: stored" in done.stderr
    texts = [done.stdout, done.stderr, *map(str, stored(f"{bucket}/built/pets").values())]
    assert not [secret for secret in CREDENTIALS.values() for text in texts if secret in text and len(secret) == 8]
    assert not list((Path(os.environ["TFPIPE_CACHE"]) / "work").rglob("*.tfrecord-*"))
    refused = {"photos/built": "the output lies inside the input", "built": "the output folder is not empty ("}
    for place, shown in refused.items():
        done = run_tool("build_tfrecords", f"--input=all={bucket}/photos/", f"--output={bucket}/{place}", check=False)
        assert (done.returncode, f"{bucket}/{place}: {shown}" in done.stderr) == (1, True), done.stderr
    done = run_tool("build_tfrecords", *flags, "--seed=5", check=False)
    assert done.returncode == 1
    assert f"{bucket}/built/pets" in done.stderr
    assert os.environ["TFPIPE_CACHE"] not in done.stderr


def test_a_data_set_in_a_store_is_inspected_where_it_is(
    bucket: str, photos: Path, data_set: Path, run_tool: RunTool, tmp_path: Path
):
    place = f"{bucket}/inspected"
    upload(data_set, place)
    assert run_tool("inspect_tfrecords", "info", place).stdout == run_tool("inspect_tfrecords", "info", data_set).stdout
    assert f"{place}: every byte as it was written: 60 records" in run_tool("inspect_tfrecords", "verify", place).stdout
    assert "no difference" in run_tool("inspect_tfrecords", "diff", place, data_set).stdout
    run_tool("inspect_tfrecords", "extract", place, tmp_path / "extracted")
    assert contents(tmp_path / "extracted") == contents(photos)
    run_tool("inspect_tfrecords", "show", place, tmp_path / "remote.png")
    run_tool("inspect_tfrecords", "show", data_set, tmp_path / "local.png")
    assert (tmp_path / "remote.png").read_bytes() == (tmp_path / "local.png").read_bytes()

    shard = sorted(data_set.glob("*.tfrecord-*"))[3]
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(flipped)
    stores.put(tmp_path / "flipped", f"{place}/{shard.name}")
    (tmp_path / "more").write_bytes(b"key,")
    stores.put(tmp_path / "more", f"{place}/pets-other.tfrecord-00000-of-00001")
    done = run_tool("inspect_tfrecords", "verify", place, check=False)
    assert done.returncode == 1
    assert f"{place}/{shard.name}: at byte " in done.stdout
    assert f"{place}/pets-other.tfrecord-00000-of-00001: a TFRecord file that the manifest does not list" in done.stdout


def test_a_killed_build_to_a_store_goes_on(bucket: str, photos: Path, data_set: Path, run_tool: RunTool):
    place = f"{bucket}/killed"
    flags = [f"--input={photos}", f"--output={place}", *BUILD]
    tool = str(CHECKOUT / "tools" / "build_tfrecords.py")
    last = stores.PARALLEL_REQUESTS + 10  # of those before it, only as many as are on their way may be lost
    status, _ = signalled([sys.executable, tool, *flags], "tfpipe.common.stores", "put", last, signal.SIGKILL)
    assert status == -signal.SIGKILL
    there = stored(place)
    assert len(there) >= 10
    assert manifest.FILE_NAME not in there
    expected = contents(data_set)
    assert all(expected[name] == encoded for name, encoded in there.items())  # each is whole
    with pytest.raises(FileNotFoundError, match="its build did not finish"):
        manifest.load(place)
    run_tool("build_tfrecords", *flags)
    assert stored(place) == expected


def test_the_manifest_is_stored_last_and_only_what_is_new(bucket: str, data_set: Path, monkeypatch: pytest.MonkeyPatch):
    put, order = stores.put, []

    def failing(file: Path, path: Path) -> None:
        if len(order) == 10 and not failed:
            failed.append(True)
            raise OSError("the network is gone")
        put(file, path)
        order.append(Path(path).name)

    failed: list[bool] = []
    monkeypatch.setattr(stores, "put", failing)
    monkeypatch.setattr(stores, "PARALLEL_REQUESTS", 1)

    def write() -> None:
        with copies.sent(f"{bucket}/ordered") as folder:
            if not folder.exists():
                shutil.copytree(data_set, folder)
                (folder / "state").mkdir()
                (folder / "state" / "a.npz").touch()

    with pytest.raises(OSError, match="the network is gone"):
        write()
    assert 10 <= len(order) < 14  # a request that had begun
    assert manifest.FILE_NAME not in order
    write()
    assert order[-1] == manifest.FILE_NAME
    assert len(order) == len(contents(data_set)) == len(stores.listed(f"{bucket}/ordered"))
    write()
    assert len(order) == len(contents(data_set))


def test_copies_follow_the_store(bucket: str, tmp_path: Path):
    place = f"{bucket}/folder"
    for name in ("a.txt", "below/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in ("model.xml", "model.bin"):
        (tmp_path / "openvino").mkdir(exist_ok=True)
        (tmp_path / "openvino" / name).write_text(name)
    upload(tmp_path / "openvino", f"{bucket}/openvino")
    assert copies.fetched(f"{bucket}/openvino/model.xml").with_suffix(".bin").read_text() == "model.bin"
    shutil.rmtree(tmp_path / "openvino")
    upload(tmp_path, place)
    folder = copies.fetched(place)
    assert folder.name == "folder"
    assert contents(folder) == {"a.txt": b"a.txt", "below/b.txt": b"below/b.txt"}
    (tmp_path / "a.txt").write_text("other")
    stores.put(tmp_path / "a.txt", f"{place}/a.txt")
    kept = (folder / "below" / "b.txt").stat().st_mtime_ns
    (folder / "more.txt").touch()
    assert contents(copies.fetched(place)) == {"a.txt": b"other", "below/b.txt": b"below/b.txt"}
    assert (folder / "below" / "b.txt").stat().st_mtime_ns == kept
    file = copies.fetched(f"{place}/below/b.txt")
    assert (file.name, file.read_text()) == ("b.txt", "below/b.txt")
    with pytest.raises(FileNotFoundError, match="no such object"):
        copies.fetched(f"{bucket}/nothing")


def test_two_processes_that_fetch_one_folder_see_all_of_it(bucket: str, tmp_path: Path):
    (tmp_path / "many").mkdir()
    for number in range(200):
        (tmp_path / "many" / f"{number}.jpg").write_bytes(b"x" * 1000)
    upload(tmp_path / "many", f"{bucket}/many")
    fetch = "import sys; from tfpipe.common import copies; print(len(list(copies.fetched(sys.argv[1]).iterdir())))"
    command = [sys.executable, "-c", fetch, f"{bucket}/many"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) for _ in range(2)]
    assert [process.communicate(timeout=100)[0] for process in both] == ["200\n", "200\n"]


def test_markers_of_folders_are_no_files(bucket: str, tmp_path: Path):
    for name in ("cat/1.jpg", "cat-2/2.jpg", "empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.txt" else name)
    upload(tmp_path, f"{bucket}/marked")
    for name in ("marked", "marked/cat", "marked/empty"):
        make_marker(name)
    expected = {"cat/1.jpg": b"cat/1.jpg", "cat-2/2.jpg": b"cat-2/2.jpg", "empty.txt": b""}
    assert contents(copies.fetched(f"{bucket}/marked")) == expected
    assert stores.sizes(f"{bucket}/marked", []) == {name: len(text) for name, text in expected.items()}


def test_work_that_was_left_never_replaces_what_others_stored(bucket: str, tmp_path: Path):
    place, other = f"{bucket}/others", tmp_path / "other"
    other.write_text("other")
    folders: list[Path] = []

    def work(*names: str, others: str = "") -> None:
        with copies.sent(place) as folder:
            folders.append(folder)
            folder.mkdir(exist_ok=True)
            for name in names:
                (folder / name).write_text("mine!")
            if not others:
                raise RuntimeError
            stores.put(other, f"{place}/{others}")
            with pytest.raises(BlockingIOError, match="another command is writing here"):
                work()

    for names in ([], ["a.txt"]):
        with pytest.raises(RuntimeError):
            work(*names)
        assert folders[0].parent.exists() == bool(names)
    stores.put(other, f"{place}/a.txt")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"others: others have stored or .*'a.txt'.* another output, or delete "):
            work()
    shutil.rmtree(folders[0].parent)
    with pytest.raises(ValueError, match=r"'b.txt'"):
        work("a.txt", others="b.txt")
    assert stored(place) == {"a.txt": b"other", "b.txt": b"other"}


def test_objects_whose_files_are_gone_are_deleted_before_the_last_are_stored(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place, put = f"{bucket}/replaced", stores.put
    for name in ("a.txt", "b.txt", "manifest.json"):
        (tmp_path / name).write_text(name)
    upload(tmp_path, place)
    there = {}

    def watched(file: Path, path: Path) -> None:
        there[file.name] = {entry.name for entry in stores.listed(place)}
        put(file, path)

    monkeypatch.setattr(stores, "put", watched)
    with copies.sent(place) as folder:
        (folder / "a.txt").unlink()
        (folder / "c.txt").write_text("c")
        (folder / "manifest.json").write_text("new")
    assert there == {"c.txt": {"a.txt", "b.txt", "manifest.json"}, "manifest.json": {"b.txt", "c.txt", "manifest.json"}}
    assert stored(place) == {"b.txt": b"b.txt", "c.txt": b"c", "manifest.json": b"new"}


def test_wrong_credentials_are_an_error_that_does_not_repeat_them(bucket: str, run_tool: RunTool):
    done = run_tool("build_tfrecords", "--input=https://me:hunter2hunter2@host/photos", f"--output={bucket}/x", check=False)
    assert done.returncode == 1
    assert "credentials in the environment" in done.stderr
    assert "hunter2" not in done.stderr
    flags = ["--input=train=HTTPS://me:hunter2hunter2@host/photos", "--output=hdfs://node/x"]
    for shown, given in zip(("HTTPS: is no store", "output: hdfs: is no store"), (flags, flags[1:]), strict=True):
        done = run_tool("build_tfrecords", *given, check=False)
        assert (done.returncode, shown in done.stderr) == (1, True), done.stderr
        assert "hunter2" not in done.stderr
    done = run_tool("build_tfrecords", "--input=s3://no-such-bucket/photos", f"--output={bucket}/x", check=False)
    assert done.returncode == 1
    assert "s3://no-such-bucket/photos: the list of its objects cannot be had: 404 Not Found: NoSuchBucket" in done.stderr


def test_functions_read_from_stores_and_write_to_local_folders_only(
    bucket: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    upload(photos / "cat", f"{bucket}/cats")
    listing = selection.list_images(f"{bucket}/cats")
    assert [image.id for image in listing.images] == [f"{number} ü+%" for number in range(0, 60, 2)]
    with pytest.raises(ValueError, match=r"s3://bucket/a: functions write to local folders"):
        tfpipe.build_tfrecords(f"{bucket}/cats", "s3://bucket/a")
    with pytest.raises(ValueError, match=r"s3://bucket/a: functions write to local folders"):
        files.check_folder("s3://bucket/a")
    with pytest.raises(ValueError, match=r"s3://bucket/a: functions write to local folders"):
        extraction.extract("data", "s3://bucket/a")
    with pytest.raises(ValueError, match=r"s3://bucket/a: "), files.written_atomically(Path("s3://bucket/a")):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.tf
@pytest.mark.exhaustive(only=True)
def test_a_run_lives_in_a_store(bucket: str, data_set: Path, run_tool: RunTool, tmp_path: Path):
    upload(data_set, f"{bucket}/pets")
    flags = ["--backbone=lenet", "--weights=none", "--image_size=32", "--epochs=2", "--batch_size=8"]
    run_tool("train", f"--data={bucket}/pets", f"--output={bucket}/runs/a", *flags)
    run_tool("evaluate", f"--data={bucket}/pets", f"--model={bucket}/runs/a", f"--output={bucket}/eval", "--noreport")
    tfpipe.evaluate(tfpipe.load(f"{bucket}/runs/a"), data_set, "test", tmp_path / "eval", report=False)
    assert content(f"{bucket}/eval/predictions.csv") == (tmp_path / "eval" / "predictions.csv").read_bytes()
    run_tool("export_model", f"--model={bucket}/runs/a", f"--output={bucket}/export", "--formats=keras")
    table = f"--output={bucket}/table.csv"
    run_tool("predict", f"--model={bucket}/export/model.keras", f"--input={bucket}/pets", "--split=test", table)
    assert len(content(f"{bucket}/table.csv").splitlines()) == 31


def test_an_output_in_a_store_is_for_one_process(bucket: str, photos: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch):
    for together in ("--workers_folder=x", "--engine=ray"):
        done = run_tool("build_tfrecords", together, f"--input={photos}", f"--output={bucket}/x", check=False)
        shown = f"for one process, {together.partition('=')[0]} for several"
        assert (done.returncode, shown in done.stderr) == (2, True)
    monkeypatch.setenv("TF_CONFIG", "{}")
    done = run_tool("train", f"--data={photos}", f"--output={bucket}/x", check=False)
    assert (done.returncode, "for one process, TF_CONFIG for several" in done.stderr) == (2, True)
