"""What is told of the errors of other programs, which may say nothing, or a whole architecture."""

import pytest
from conftest import make_image, write

import tfpipe
from tfpipe.common.errors import DataError, lines_of
from tfpipe.records.manifest import check_files


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ValueError("one\ntwo"), ["one", "two"]),
        (ValueError("\n  one\n\n"), ["one"]),
        (KeyError(), ["KeyError"]),
        (RuntimeError(" \n"), ["RuntimeError"]),
        (ValueError("word " * 101), ["word " * 99 + "[...]"]),
        (DataError("was cut", path="model.pb"), ["was cut"]),
    ],
)
def test_lines_of_an_error_are_short_and_at_least_one(error, lines):
    assert lines_of(error) == lines


def test_an_error_of_several_files_has_one_of_each_in_a_field(tmp_path):
    good = write(tmp_path / "in/a/1.jpg", make_image(1))
    for name in ("2.jpg", "3.jpg"):
        write(tmp_path / "in/a" / name, b"no image")
    with pytest.raises(tfpipe.DataError, match="2 inputs cannot be packed") as caught:
        tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", progress=False, workers=1)
    assert caught.value.path is None
    assert [(type(each), each.path) for each in caught.value.problems] == [
        (tfpipe.RejectedImage, str(tmp_path / "in/a" / name)) for name in ("2.jpg", "3.jpg")
    ]
    assert {each.reason for each in caught.value.problems} <= set(str(caught.value).replace(":", " ").split())
    for name in ("2.jpg", "3.jpg"):
        write(tmp_path / "in/a" / name, make_image(int(name[0])))
    manifest = tfpipe.build_tfrecords(tmp_path / "in", tmp_path / "out", progress=False, workers=1, num_shards=2)
    shards = [tmp_path / "out" / shard.file for shard in manifest.split("train").shards]
    for shard in shards:
        shard.write_bytes(b"")
    with pytest.raises(DataError, match="2 shards are not") as caught:
        check_files(tmp_path / "out", manifest)
    assert [each.path for each in caught.value.problems] == list(map(str, shards))
    assert DataError("bad", path=good).problems == ()
