import os

import pytest
from inspection_fixtures import build_tiny

from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.records import tfrecord
from tfpipe.records.catalog import read_split
from tfpipe.records.tfrecord import Gap
from tfpipe.verification.salvage import salvage


@pytest.fixture
def tiny(tmp_path):
    return build_tiny(tmp_path, num=4)


def spans(directory):
    """(file name, start, end, data) of every record."""
    manifest = manifests.load(directory)
    path = directory / manifest.splits["train"].shards[0].file
    data = {frame.offset: frame.data for frame in tfrecord.read_frames(path)}
    rows = read_split(directory, manifest, "train")
    return path, [(row.filename, offset, offset + length, data[offset]) for row, offset, length in rows]


def rescued(path):
    return [frame.data for frame in tfrecord.read_frames(path)]


@pytest.mark.exhaustive
def test_each_flipped_byte_costs_exactly_the_record_it_hits(tiny, tmp_path, thinned):
    path, records = spans(tiny)
    content = path.read_bytes()
    output = tmp_path / "rescued"
    for place, (filename, start, end, _) in enumerate(records):
        for offset in thinned(range(start, end), 20):
            damaged = bytearray(content)
            damaged[offset] ^= 0x10
            path.write_bytes(damaged)
            report = salvage(path, output)
            assert rescued(output) == [data for index, (*_, data) in enumerate(records) if index != place]
            assert (report.num_records, report.num_expected) == (3, 4)
            assert report.gaps == [Gap(start, end)]
            assert report.lost == [filename]
            output.unlink()


def test_a_whole_shard_comes_through_unchanged(tiny, tmp_path):
    path, _ = spans(tiny)
    report = salvage(path, tmp_path / "rescued")
    assert (tmp_path / "rescued").read_bytes() == path.read_bytes()
    assert (report.num_records, report.num_bytes, report.gaps, report.lost) == (4, path.stat().st_size, [], [])


def test_a_cut_shard(tiny, tmp_path):
    path, records = spans(tiny)
    cut = records[2][1] + 100
    os.truncate(path, cut)
    report = salvage(path, tmp_path / "rescued")
    assert rescued(tmp_path / "rescued") == [data for *_, data in records[:2]]
    assert report.gaps == [Gap(records[2][1], cut)]
    assert report.lost == [filename for filename, *_ in records[2:]]


def test_a_cut_between_two_records_shows_only_in_the_catalog(tiny, tmp_path):
    path, records = spans(tiny)
    os.truncate(path, records[1][2])
    report = salvage(path, tmp_path / "rescued")
    assert (report.num_records, report.num_expected, report.gaps) == (2, 4, [])
    assert len(report.lost) == 2


def test_inserted_garbage(tiny, tmp_path):
    path, records = spans(tiny)
    content, place = path.read_bytes(), records[1][2]
    path.write_bytes(content[:place] + b"garbage" + content[place:])
    report = salvage(path, tmp_path / "rescued")
    assert (tmp_path / "rescued").read_bytes() == content
    assert report.gaps == [Gap(place, place + 7)]
    assert report.lost == []


def test_nothing_but_zeros(tiny, tmp_path):
    path, _ = spans(tiny)
    path.write_bytes(bytes(path.stat().st_size))
    for content in (bytes(path.stat().st_size), b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"no intact record in its {len(content):,} bytes; nothing was written") as caught:
            salvage(path, tmp_path / "rescued")
        assert caught.value.path == str(path)
        assert not list(tmp_path.glob("*rescued*"))


@pytest.mark.parametrize("alone", ["catalog gone", "elsewhere", "other name"])
def test_without_a_catalog(tiny, tmp_path, alone):
    path, _ = spans(tiny)
    if alone == "catalog gone":
        (tiny / "catalog.csv").unlink()
    elif alone == "elsewhere":
        path = path.rename(tmp_path / path.name)
    else:
        path = path.rename(path.with_name("x.tfrecord"))
    report = salvage(path, tmp_path / "rescued")
    assert (report.num_records, report.num_expected, report.lost) == (4, None, [])


def test_without_manifest_and_index(tiny, tmp_path):
    path, records = spans(tiny)
    (tiny / "manifest.json").unlink()
    for index in (tiny / "index").iterdir():
        index.unlink()
    os.truncate(path, records[3][1])
    assert salvage(path, tmp_path / "rescued").lost == [records[3][0]]


def test_records_of_another_kind(tmp_path):
    (tmp_path / "x").write_bytes(b"".join(tfrecord.frame(b"no example")) + b"tail")
    report = salvage(tmp_path / "x", tmp_path / "rescued")
    assert rescued(tmp_path / "rescued") == [b"no example"]
    assert report.gaps == [Gap(26, 30)]


def test_refusals(tiny, tmp_path):
    path, _ = spans(tiny)
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        salvage(path, path)
    assert path.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        salvage(tmp_path / "nix", tmp_path / "rescued")
    with pytest.raises(FileNotFoundError, match=r"/nowhere: no such folder, for the output rescued$"):
        salvage(path, tmp_path / "nowhere" / "rescued")
    assert not list(tmp_path.glob("*rescued*"))


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, kind in (
        ("/dev/zero", "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "folder", "a folder"),
    ):
        with pytest.raises(ValueError, match=f"^{path}: {kind}; a TFRecord file was expected"):
            salvage(path, tmp_path / "rescued")
    assert not list(tmp_path.glob("*rescued*"))
