import dataclasses
import shutil

import pytest
from conftest import make_image, write

import tfpipe
from tfpipe.common.errors import DataError
from tfpipe.records import catalog, manifest


@pytest.fixture
def built(tmp_path):
    for index in range(5):
        write(tmp_path / "in" / 'a "quoted", name' / f"{index}, {index}.jpg", make_image(index))
    return tmp_path / "out", tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", num_shards=2, workers=1, progress=False)


def test_rows_come_in_reading_order_with_their_places(built):
    directory, content = built
    rows = list(catalog.read_split(directory, content, "train"))
    assert [(row.shard, row.position) for row, _, _ in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert {row.key for row, _, _ in rows} == {f'a "quoted", name/{i}, {i}.jpg' for i in range(5)}
    assert (
        [row for row, _, _ in rows]
        == list(catalog.read_catalog(directory))
        == list(catalog.read_catalog(directory, split="train"))
    )
    assert list(catalog.read_catalog(directory, split="other")) == []


def changed(directory, name, old, new):
    path = directory / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("key,filename", "key,name", "the first line must be key,filename,split"),
        (",train,0,0,", ",train,0,x,", "line 2 is not a row"),
        (",train,0,0,", ",train,0,", "line 2 is not a row"),
    ],
)
def test_lines_that_are_not_rows(built, old, new, message):
    directory, _ = built
    changed(directory, "catalog.csv", old, new)
    with pytest.raises(DataError, match=message):
        list(catalog.read_catalog(directory))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",train,0,1,", ",train,0,7,", "record 1 of .* is not in the catalog at its place"),
        (",train,1,2,", ",test,1,2,", "record 2 of .* is not in the catalog at its place"),
    ],
)
def test_rows_that_are_out_of_place(built, old, new, message):
    directory, content = built
    changed(directory, "catalog.csv", old, new)
    with pytest.raises(DataError, match=message):
        list(catalog.read_split(directory, content, "train"))


def test_more_or_fewer_rows_than_records(built):
    directory, content = built
    lines = (directory / "catalog.csv").read_text().splitlines(keepends=True)
    (directory / "catalog.csv").write_text("".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match="more rows of split 'train' than its shards hold"):
        list(catalog.read_split(directory, content, "train"))
    (directory / "catalog.csv").write_text("".join(lines))
    split = content.splits["train"]
    more = dataclasses.replace(split.shards[0], num_records=3)
    other = dataclasses.replace(content, splits={"train": dataclasses.replace(split, shards=(more, split.shards[1]))})
    with pytest.raises(DataError, match="2 records, the manifest lists 3"):
        list(catalog.read_split(directory, other, "train"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"0 10\n11 5\n", "line 2: offset 11, the records before it end at 10"),
        (b"0 10\n10 -5\n", "line 2 is not 'offset length'"),
        (b"0 10 3\n", "line 1 is not 'offset length'"),
        ("0 1\N{SUPERSCRIPT TWO}\n".encode(), "line 1 is not 'offset length'"),
    ],
)
def test_indexes_that_are_none(tmp_path, text, message):
    path = write(tmp_path / "x.idx", text)
    with pytest.raises(DataError, match=message):
        list(catalog.read_index(path))
    with pytest.raises(DataError, match="the index of a shard is missing"):
        list(catalog.read_index(tmp_path / "y.idx"))


def test_indexes_are_in_a_folder_that_a_glob_for_shards_does_not_catch(built):
    directory, content = built
    shards = {shard.file for split in content.splits.values() for shard in split.shards}
    assert {path.name for path in directory.glob("images-*")} == shards
    shutil.rmtree(directory / manifest.INDEX_FOLDER)
    with pytest.raises(DataError, match="missing"):
        list(catalog.read_split(directory, content, "train"))


def test_a_catalog_is_compared_with_the_manifest_where_it_is_read(built):
    directory, _ = built
    assert list(catalog.read_checked(directory, split="train")) == list(catalog.read_catalog(directory))
    changed(directory, "catalog.csv", ",JPEG,", ",PNG,")
    assert len(list(catalog.read_catalog(directory))) == 5
    with pytest.raises(DataError, match=r"catalog\.csv: not as listed in the manifest"):
        next(catalog.read_checked(directory, split="train"))
