import dataclasses
import json
import os
import random
import re
import shutil

import pytest
from conftest import cut_in_scan, make_image, write
from inspection_fixtures import build_tiny, copied, forge, records_of, replaced

import tfpipe
from tfpipe.common.files import sha256_of
from tfpipe.records import manifest as manifests
from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import CatalogRow, read_catalog, read_split
from tfpipe.verification.shards import ShardReport, check_shard
from tfpipe.verification.tolerant_catalog import CatalogRows
from tfpipe.verification.verification import Ledger, verify

CATALOG, MANIFEST = "catalog.csv", "manifest.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("sharded"), num=12, num_shards=3)


@pytest.fixture
def tiny(whole, tmp_path):
    return copied(whole, tmp_path / "tiny")


@pytest.fixture
def three(sharded, tmp_path):
    return copied(sharded, tmp_path / "three")


def shards(directory):
    return [directory / shard.file for split in manifests.load(directory).splits.values() for shard in split.shards]


def index_of(directory):
    return directory / manifests.index_file(shards(directory)[0].name)


def found(directory, **options):
    report = verify(directory, progress=False, **options)
    assert report.num_findings == len(report.findings)
    return "\n".join(map(str, report.findings))


def flip(path, offset, mask=0xFF):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def shard_findings(directory, manifest):
    rows = CatalogRows(directory).of_shard("train", 0)
    return check_shard(directory, manifest, "train", 0, rows).findings.kept


def test_a_whole_data_set_has_no_findings(photos, tmp_path):
    write(photos / "cat" / "z.png", make_image(9, format="PNG"))
    manifest = tfpipe.build_tfrecords(
        photos, tmp_path / "out", layout="folders", splits={"train": 0.6, "test": 0.4}, num_shards=2, progress=False
    )
    report = verify(tmp_path / "out", progress=False)
    assert report.findings == []
    assert report.notes == []
    assert (report.num_records, report.num_shards, report.root_hash) == (26, 4, manifest.root_hash)


@pytest.mark.exhaustive
def test_g3_every_truncation_of_a_shard_is_found(tiny, thinned):
    manifest, (path,) = manifests.load(tiny), shards(tiny)
    content = path.read_bytes()
    for length in thinned(range(len(content)), 100):
        path.write_bytes(content[:length])
        assert shard_findings(tiny, manifest), length
    path.write_bytes(content)
    assert not shard_findings(tiny, manifest)


@pytest.mark.exhaustive
def test_g3_every_flipped_byte_of_a_shard_is_found_at_its_record(tiny, thinned):
    manifest, (path,) = manifests.load(tiny), shards(tiny)
    records = [(row.filename, offset, offset + length) for row, offset, length in read_split(tiny, manifest, "train")]
    for filename, start, end in records:
        for offset in thinned(range(start, end), 60):
            flip(path, offset)
            findings = shard_findings(tiny, manifest)
            flip(path, offset)
            told = [(finding.offset, finding.source) for finding in findings if finding.offset is not None]
            assert told == [(start, filename)], offset
            assert len(findings) == 2, offset  # and the shard's hash
    assert not shard_findings(tiny, manifest)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_g3_a_sample_of_flips_and_cuts_is_found_by_verify(tiny, damage):
    (path,) = shards(tiny)
    content = path.read_bytes()
    for offset in random.Random(damage).sample(range(len(content)), 12):
        if damage == "flip":
            flip(path, offset)
        else:
            path.write_bytes(content[:offset])
        text = found(tiny)
        assert path.name in text
        assert "猫" in text
        path.write_bytes(content)
    assert not found(tiny)


def test_one_bad_record_does_not_hide_the_next(tiny):
    manifest, (path,) = manifests.load(tiny), shards(tiny)
    spans = [(row.filename, offset) for row, offset, _ in read_split(tiny, manifest, "train")]
    flip(path, spans[0][1])  # the length itself
    flip(path, spans[2][1] + 40)
    text = found(tiny)
    assert spans[0][0] in text
    assert f"at byte {spans[2][1]}" in text
    assert spans[2][0] in text
    assert spans[1][0] not in text


def test_g3_deleted_emptied_appended_and_extra_shards(three):
    first, second, third = shards(three)
    first.unlink()
    second.write_bytes(b"")
    with open(third, "ab") as file:
        file.write(third.read_bytes()[:100])
    shutil.copy(third, three / "tiny-train.tfrecord-00003-of-00004")
    shutil.copy(third, three / "tiny-other.tfrecord-00000-of-00001")
    text = found(three)
    assert f"{first.name}: missing" in text
    assert f"{second.name}: truncated: 0 bytes" in text
    assert f"{third.name}: longer than written" in text
    assert "after the last record" not in text  # nor is it told twice
    assert "00003-of-00004: a shard that the manifest does not list" in text
    assert "tiny-other.tfrecord-00000-of-00001: a TFRecord file that the manifest does not list" in text
    report = verify(three, progress=False)
    lost = [getattr(finding, "source", "") for finding in report.findings]
    assert len({source for source in lost if source}) == 8  # the files of two shards of four
    assert report.num_records == 4


@pytest.mark.parametrize("place", ["shard", "index"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_not_a_file_is_found_and_never_opened(tiny, place, kind):
    path = shards(tiny)[0] if place == "shard" else index_of(tiny)
    manifest = manifests.load(tiny)
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    # Would wait for ever if the pipe were opened as files are.
    text = "\n".join(map(str, [*shard_findings(tiny, manifest), *manifests.file_problems(tiny, manifest)]))
    assert f"{path}: {'cannot be read: ' if place == 'index' else ''}not a regular file" in text
    assert text.count("lost: the catalog has this record") == (3 if place == "shard" else 0)


@pytest.mark.parametrize("index", ["whole", "damaged"])
def test_what_was_added_to_a_shard_is_never_read(tiny, index):
    (path,), manifest = shards(tiny), manifests.load(tiny)
    size = path.stat().st_size
    os.truncate(path, 1 << 42)  # 4 TB of nothing: reading it takes an hour
    if index == "damaged":
        flip(index_of(tiny), 0)
    findings = shard_findings(tiny, manifest)
    assert [finding.path for finding in findings] == ([] if index == "whole" else [str(index_of(tiny))])
    assert [problem.message for problem in manifests.file_problems(tiny, manifest)] == [
        f"longer than written: {1 << 42} bytes, the manifest lists {size} (3 records)"
    ]


def test_a_longer_shard_that_is_damaged_too_with_and_without_index(tiny):
    (path,), manifest = shards(tiny), manifests.load(tiny)
    rows = [(row.filename, offset) for row, offset, _ in read_split(tiny, manifest, "train")]
    flip(path, rows[1][1] + 40)
    os.truncate(path, 1 << 42)
    told = [(finding.offset, finding.source) for finding in shard_findings(tiny, manifest)]
    assert told == [(None, ""), (rows[1][1], rows[1][0])]
    flip(index_of(tiny), 0)
    text = "\n".join(map(str, shard_findings(tiny, manifest)))
    assert f"at byte {rows[1][1]}: the record's data does not match its CRC" in text
    assert "not searched for records from here on" in text
    assert all(filename in text for filename, _ in rows[1:])
    assert rows[0][0] not in text


def test_g3_swapped_shards(three):
    first, second, _ = shards(three)
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    text = found(three)
    assert len(one) != len(other)
    for path in (first, second):
        assert re.search(rf"{path.name}: (truncated|longer than written): ", text)
        assert re.search(rf"{path.name}: at byte 0: record 0", text)


def test_g3_swapped_shards_of_equal_sizes_and_with_their_indexes(three):
    first, second, _ = shards(three)
    for one, other in ((first, second), (index_of(three), three / manifests.index_file(second.name))):
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1])
        other.write_bytes(contents[0])
    text = found(three)
    assert "key is" in text
    assert "the catalog has" in text


def test_g3_a_duplicated_shard(three):
    first, second, _ = shards(three)
    second.write_bytes(first.read_bytes())
    text = found(three)
    assert re.search(rf"{second.name}: (truncated|longer than written): ", text)
    assert re.search(rf"{second.name}: at byte 0: record 0", text)
    index_of(three).replace(three / manifests.index_file(second.name))
    assert "occurs twice" in found(three)


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "garbage"])
def test_a_damaged_index_is_found_and_hides_nothing(tiny, damage):
    (path,), index = shards(tiny), index_of(tiny)
    manifest = manifests.load(tiny)
    (_, second), length = list(read_split(tiny, manifest, "train"))[1][:2], len(index.read_bytes())
    source = list(read_split(tiny, manifest, "train"))[1][0].filename
    if damage == "flip":
        flip(index, 3)
    elif damage == "cut":
        os.truncate(index, length - 4)
    elif damage == "delete":
        index.unlink()
    else:
        index.write_bytes(os.urandom(100))
    report = verify(tiny, progress=False)
    assert report.num_records == 3
    assert [finding.path for finding in report.findings] == [str(index)]
    flip(path, second + 30)
    report = verify(tiny, progress=False)
    assert report.num_records == 2
    assert source in [getattr(finding, "source", "") for finding in report.findings]


def test_every_flipped_byte_of_an_index_is_found(tiny):
    manifest, index = manifests.load(tiny), index_of(tiny)
    for offset in range(len(index.read_bytes())):
        flip(index, offset, 1)
        assert shard_findings(tiny, manifest), offset
        flip(index, offset, 1)


def test_flipped_bytes_of_a_catalog_are_found_and_lose_no_record(tiny):
    path = tiny / CATALOG
    for offset in random.Random(0).sample(range(path.stat().st_size), 60):
        flip(path, offset, random.Random(offset).choice([1, 2, 32, 0xFF]))
        report = verify(tiny, progress=False)
        assert "catalog.csv: not as listed in the manifest" in str(report.findings[0])
        assert report.num_records == 3
        flip(path, offset, random.Random(offset).choice([1, 2, 32, 0xFF]))  # and back
    assert not found(tiny)


def test_a_missing_or_emptied_catalog_hides_nothing(tiny):
    (path,) = shards(tiny)
    (tiny / CATALOG).write_bytes(b"")
    assert verify(tiny, progress=False).num_records == 3
    (tiny / CATALOG).unlink()
    flip(path, 30)
    text = found(tiny)
    assert "catalog.csv: missing, though the manifest lists it" in text
    assert f"{path.name}: at byte 0: record 0" in text


def test_rows_too_many_too_few_and_of_unknown_shards(tiny):
    path = tiny / CATALOG
    header, *rows = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([header, rows[0], rows[2]]), "utf-8")
    assert "the catalog has no row for it" in found(tiny)
    path.write_text("".join([header, *rows, rows[2].replace(",train,0,2,", ",train,0,3,")]), "utf-8")
    assert "lost: the catalog has this record" in found(tiny)
    path.write_text("".join([header, *rows, rows[2].replace(",train,0,2,", ",train,7,2,")]), "utf-8")
    assert "rows of a shard that does not exist: 7 of split 'train'" in found(tiny)


def test_every_flipped_digit_of_what_a_manifest_counts_is_found(tiny):
    path = tiny / MANIFEST
    content = json.loads(path.read_bytes())

    def numbers(node, where=()):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                yield from numbers(value, (*where, key))
            elif isinstance(value, int) and not isinstance(value, bool):
                yield (*where, key)

    # Those that nothing else on disk repeats: colours are not in the records, options are what the
    # user chose.
    loose = {("properties", "grey"), ("properties", "cmyk"), ("properties", "png_named_jpeg")}
    places = [place for place in numbers(content) if place[0] != "options" and place not in loose]
    assert len(places) > 8
    for place in places:
        changed = json.loads(path.read_bytes())
        node = changed
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] += 1
        original = path.read_bytes()
        path.write_text(json.dumps(changed), "utf-8")
        assert found(tiny), place
        path.write_bytes(original)


def test_a_manifest_that_is_not_a_json_is_one_finding(tiny):
    flip(tiny / MANIFEST, 0)
    assert "manifest.json: cannot be understood" in found(tiny)


def test_no_manifest_is_an_error(tiny):
    (tiny / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="no manifest here"):
        verify(tiny)


@pytest.mark.parametrize("name", ["rejected.jsonl", "dataset_info.json", "features.json", "image.class.label.labels.txt"])
@pytest.mark.exhaustive
def test_files_beside_the_shards(tiny, name, thinned):
    path = tiny / name
    content = path.read_bytes()
    for offset in thinned(range(len(content)), 20):
        flip(path, offset)
        assert f"{name}: not as listed in the manifest" in found(tiny), offset
        flip(path, offset)
    path.write_bytes(content + b"\n")
    assert f"{name}: not as listed in the manifest" in found(tiny)
    path.unlink()
    assert f"{name}: missing" in found(tiny)
    path.mkdir()
    assert f"{name}: cannot be read" in found(tiny)
    path.rmdir()
    path.write_bytes(content)
    assert not found(tiny)


def test_leftovers_are_notes(tiny):
    (tiny / ".build").mkdir()
    (tiny / "notes.txt").touch()
    (tiny / "index" / "old.idx").touch()
    report = verify(tiny, progress=False)
    assert not report.findings
    assert [note.split(":")[0] for note in report.notes] == [".build/", "notes.txt", "index/old.idx"]


# Forged data sets: every hash of a file agrees, only the records themselves tell.
FORGED = {
    "the image's SHA-256": replaced(1, encoded=b"another"),
    "label 5 is not one of the 1 class": replaced(1, label=5),
    "label -1 is not one of": replaced(1, label=-1),
    "class name 'dog', label 0 is": replaced(1, class_name="dog"),
    "occurs twice": lambda records: [records[0], dataclasses.replace(records[1], key=records[0].key), records[2]],
    "png: 1 record,": replaced(1, format="PNG"),
    "turned: 1 record,": replaced(1, orientation=6),
    "splits.train.class_counts: they do not add up": lambda records: records[:2],
    "duplicates: 1 record,": lambda records: [
        records[0],
        records[1],
        dataclasses.replace(records[2], encoded=records[0].encoded, sha256=records[0].sha256),
    ],
}


@pytest.mark.parametrize("message", FORGED)
def test_forged_records(tiny, message):
    forge(tiny, list)
    assert not found(tiny)
    forge(tiny, FORGED[message])
    assert message in found(tiny)


def test_a_label_in_a_split_without_labels(tmp_path):
    out = build_tiny(tmp_path, layout="flat")
    forge(out, replaced(0, label=0, class_name="小 猫"))
    assert "in a split without labels" in found(out)


def test_a_leak_that_nobody_noted(tmp_path):
    out = build_tiny(tmp_path, num=8, splits={"train": 0.5, "test": 0.5})
    other = records_of(out, manifests.load(out).splits["test"].shards[0])[0]
    forge(out, replaced(0, encoded=other.encoded, sha256=other.sha256))
    assert "1 image is in more than one split, the manifest notes 0" in found(out)


@pytest.mark.parametrize("field", [field for field in CatalogRow._fields if field not in ("split", "shard", "position")])
def test_each_column_of_the_catalog_is_compared(tiny, field):
    manifest = manifests.load(tiny)
    rows = [row for row, *_ in read_split(tiny, manifest, "train")]
    value = getattr(rows[1], field)
    rows[1] = rows[1]._replace(**{field: value + 1 if isinstance(value, int) else f"{value}x"})
    (finding,) = check_shard(tiny, manifest, "train", 0, iter(rows)).findings.kept
    assert "the catalog has" in str(finding)
    assert str(value) in str(finding)


def changed_shard(directory, **changes):
    """The manifest with other facts of its only shard."""
    manifest = manifests.load(directory)
    split = manifest.splits["train"]
    shard = dataclasses.replace(split.shards[0], **changes)
    return dataclasses.replace(manifest, splits={"train": dataclasses.replace(split, shards=(shard,))})


def test_another_count_than_the_manifests(tiny):
    findings = shard_findings(tiny, changed_shard(tiny, num_records=4))
    assert [finding.message for finding in findings] == ["the index lists 3 records, the manifest lists 4"]
    index_of(tiny).unlink()
    findings = shard_findings(tiny, changed_shard(tiny, num_records=4))
    assert findings[-1].message == "the shard holds 3 records, the manifest lists 4"


def test_an_index_that_is_wrong_and_has_the_hash_of_the_manifest(tiny):
    index = index_of(tiny)
    *lines, last = index.read_text().splitlines()
    offset, length = last.split()
    index.write_text("\n".join([*lines, f"{offset} {int(length) + 1}\n"]))
    findings = shard_findings(tiny, changed_shard(tiny, index_sha256=sha256_of(index)))
    assert [finding.offset for finding in findings] == [int(offset)]
    assert f"a record of {length} bytes, the index has {int(length) + 1}" in str(findings[0])
    index.write_text("0 5\n7 5\n")
    findings = shard_findings(tiny, changed_shard(tiny, index_sha256=sha256_of(index)))
    assert any("the records before it end at 5" in str(finding) for finding in findings)


def test_a_label_moved_to_another_class(tmp_path):
    write(tmp_path / "in" / "dog" / "a.jpg", make_image(50))
    out = build_tiny(tmp_path)
    assert manifests.load(out).class_names == ["dog", "小 猫"]
    cat = next(
        index for index, record in enumerate(records_of(out, manifests.load(out).splits["train"].shards[0])) if record.label
    )
    forge(out, replaced(cat, label=0, class_name="dog"))
    text = found(out)
    assert "split 'train' has 2 records of class 'dog', the manifest lists 1" in text
    assert "split 'train' has 2 records of class '小 猫', the manifest lists 3" in text


def test_shards_listed_in_another_order(three):
    manifest = manifests.load(three)
    split = manifest.splits["train"]
    turned = dataclasses.replace(split, shards=split.shards[::-1])
    manifests.save(dataclasses.replace(manifest, splits={"train": turned}), three)
    assert "splits.train.shards[0].file: must be tiny-train.tfrecord-00000-of-00003" in found(three)


def test_scattered_rows_are_still_told_by_their_shards(three):
    path = three / CATALOG
    header, *rows = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([header, *rows[::2], *rows[1::2]]), "utf-8")
    catalog = CatalogRows(three)
    for shard_index in range(3):
        rows = list(catalog.of_shard("train", shard_index))
        assert [(row.shard, row.position) for row in rows] == [(shard_index, position) for position in (0, 2, 1, 3)]


def test_the_ledger_compares_in_full_what_meets_by_hash():
    ledger, report = Ledger(), ShardReport(num_records=3)
    report.key_hashes.extend([7, 8, 7])
    report.content_hashes.extend([1, 1, 256])
    ledger.enter("train", report)
    assert ledger.repeated_keys() == {7}
    assert (ledger.num_duplicates(), ledger.num_leaks()) == (1, 0)
    ledger.enter("test", report)
    assert (ledger.num_duplicates(), ledger.num_leaks()) == (4, 2)


def test_many_findings_are_counted_and_not_all_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tfpipe.verification.shards.MAX_KEPT", 5)
    out = build_tiny(tmp_path, num=12)
    shards(out)[0].unlink()
    report = verify(out, progress=False)
    assert len(report.findings) == 5
    assert report.num_findings == 13


def test_any_number_of_threads_tells_the_same(three):
    flip(shards(three)[0], 50)
    flip(shards(three)[2], 50)
    assert found(three, workers=1) == found(three, workers=3)


def test_real_images(test_data, tmp_path):
    out = tmp_path / "out"
    tfpipe.build_tfrecords(
        {"train": test_data / "signs/train_signs", "test": test_data / "signs/test_signs"},
        out,
        layout="filename",
        allow_leaks=True,
        num_shards=3,
        progress=False,
    )
    assert not found(out)
    flip(shards(out)[1], 100_000)
    assert ".jpg" in found(out)


@pytest.mark.parametrize("workers", [1, 3])
def test_images_that_were_damaged_before_they_were_packed_are_named(tmp_path, workers):
    for index in range(40):
        data = make_image(index, (64, 48))
        write(tmp_path / "in/cat" / f"{index}.jpg", cut_in_scan(data) if index in (7, 31) else data)
    options = {"name": "tiny", "layout": "folders", "num_shards": 2, "progress": False, "workers": 1}
    tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", **options)
    assert found(tmp_path / "out") == ""
    report = verify(tmp_path / "out", decode=True, workers=workers, progress=False)
    assert (report.num_findings, report.num_damaged, report.num_records, report.num_decoded) == (2, 2, 40, 40)
    assert report.decode_seconds > 0
    rows = {row.filename: row for row in read_catalog(tmp_path / "out")}
    places = sorted((rows[f"cat/{index}.jpg"].shard, rows[f"cat/{index}.jpg"].position, index) for index in (7, 31))
    for finding, (shard, _, index) in zip(report.findings, places, strict=True):  # in reading order
        assert finding.path == str(shards(tmp_path / "out")[shard])
        assert records_at(finding.path, finding.offset).filename == finding.source == f"cat/{index}.jpg"
        assert "damaged_scan: Corrupt JPEG data: premature end of data segment, in unit " in str(finding)


def records_at(path, offset):
    return next(schema.decode(frame.data) for frame in tfrecord.read_frames(path) if frame.offset == offset)


def test_decoding_passes_over_records_and_indexes_that_cannot_be_read(three):
    flip(shards(three)[0], 200)
    index = three / manifests.index_file(shards(three)[1].name)
    index.write_bytes(b"no index")
    report = verify(three, decode=True, progress=False)
    assert report.num_findings == verify(three, progress=False).num_findings > 0
    assert (report.num_damaged, report.num_decoded) == (0, 7)  # of 12, without a record and the shard of the index
