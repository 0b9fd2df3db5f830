"""Data sets that tensorflow-datasets wrote, read with our own reader; and ours, opened by tensorflow-datasets."""

import json
import os
import shutil

import numpy as np
import pytest
from conftest import make_image

import tfpipe
from tfpipe.building.inputs import prepared as prepared_sets
from tfpipe.building.inputs.items import SPLIT_NAMES, Notes
from tfpipe.records import schema, tfrecord

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of two splits, written by tensorflow-datasets itself."""
    import tensorflow_datasets as tfds

    class Pets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")
        pkg_dir_path = tmp_path_factory.mktemp("code")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=["dog", "cat"]),
                "note": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._examples(12, 0), "validation": self._examples(5, 50)}

        def _examples(self, count, seed):
            folder = tmp_path_factory.mktemp("images")
            for index in range(count):
                path = folder / f"{index}.jpg"
                path.write_bytes(make_image(seed + index))
                yield index, {"image": path, "label": index % 2, "note": f"n{index}"}

        def _generate_examples(self):
            raise NotImplementedError  # abstract, but _split_generators gives the examples themselves

    root = tmp_path_factory.mktemp("tfds")
    builder = Pets(data_dir=root)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(register_checksums=False))
    return builder.data_path, {seed + i: i % 2 for seed, n in ((0, 12), (50, 5)) for i in range(n)}


def test_encoded_bytes_and_labels_are_taken_over(prepared, tmp_path):
    folder, labels = prepared
    content = tfpipe.build_tfrecords(folder, tmp_path / "out", workers=1, progress=False)
    assert list(content.class_names) == ["dog", "cat"]
    assert {split: part.num_records for split, part in content.splits.items()} == {"train": 12, "val": 5}
    stored = [
        schema.decode(frame.data)
        for part in content.splits.values()
        for shard in part.shards
        for frame in tfrecord.read_frames(tmp_path / "out" / shard.file)
    ]
    assert {record.encoded: record.label for record in stored} == {make_image(seed): label for seed, label in labels.items()}
    assert len({record.key for record in stored}) == 17
    assert all("#" in record.key and record.filename == f"{record.key}.jpg" for record in stored)


def copied(prepared, tmp_path):
    target = tmp_path / "copy"
    shutil.copytree(prepared[0], target)
    return target


def test_a_cut_or_missing_shard_is_named(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    shard = next(folder.glob("*train*tfrecord*"))
    frames = list(tfrecord.read_frames(shard))
    os.truncate(shard, frames[-1].offset)  # at a record's end: a clean, shorter file
    with pytest.raises(tfpipe.DataError, match=r"11 records, dataset_info\.json lists 12"):
        tfpipe.build_tfrecords(folder, tmp_path / "out", progress=False)
    shard.unlink()
    with pytest.raises(tfpipe.DataError, match="missing: a shard of 12 records"):
        tfpipe.build_tfrecords(folder, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_other_features_or_file_formats_are_refused(prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    features = json.loads((folder / "features.json").read_text())
    extra = features["featuresDict"]["features"]
    extra["second"] = extra["image"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(tfpipe.DataError, match="exactly one Image and one ClassLabel"):
        tfpipe.build_tfrecords(folder, tmp_path / "out", progress=False)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "array_record"}))
    with pytest.raises(tfpipe.DataError, match="file format 'array_record'"):
        tfpipe.build_tfrecords(folder, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", {"splits": [{"name": "train", "shardLengths": ["1"]}]}),
        ("dataset_info.json", {"name": "x", "splits": [{"name": "train"}]}),
        (
            "dataset_info.json",
            {"name": "x", "splits": [{"name": "train", "shardLengths": ["1"], "filepathTemplate": "{VERSION}"}]},
        ),
        ("features.json", {"featuresDict": []}),
        ("features.json", []),
    ],
)
def test_incomplete_descriptions_are_named(prepared, tmp_path, file, content):
    folder = copied(prepared, tmp_path)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(tfpipe.DataError, match="copy"):
        tfpipe.build_tfrecords(folder, tmp_path / "out", layout="tfds", progress=False)


def test_two_splits_are_not_made_one(tmp_path):
    splits = [{"name": name, "shardLengths": ["1"]} for name in ("train", "valid", "dev")]
    features = {"x": {"pythonClassName": "Image"}, "y": {"pythonClassName": "ClassLabel"}}
    for file, content in (
        ("dataset_info.json", {"name": "x", "splits": splits}),
        ("features.json", {"featuresDict": {"features": features}}),
    ):
        (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(tfpipe.DataError, match=r"dataset_info\.json: valid and dev would be one split: join them"):
        prepared_sets.list_records(tmp_path, None, SPLIT_NAMES, Notes())


def test_tensorflow_datasets_opens_what_we_build(photos, tmp_path):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    content = tfpipe.build_tfrecords(
        photos, tmp_path / "out", splits={"train": 0.6, "test": 0.4}, num_shards=2, workers=1, progress=False
    )
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert builder.info.features["image/class/label"].names == ["cat", "dog", "小 猫"] == list(content.class_names)
    for split, part in content.splits.items():
        assert builder.info.splits[split].num_examples == part.num_records
        stored = {
            record.key.encode(): record
            for shard in part.shards
            for record in (schema.decode(f.data) for f in tfrecord.read_frames(tmp_path / "out" / shard.file))
        }
        seen = 0
        for read in builder.as_dataset(split=split):
            record = stored[read["image/key"].numpy()]
            assert read["image/class/label"].numpy() == record.label
            assert np.array_equal(read["image/encoded"].numpy(), tf.io.decode_image(record.encoded, channels=3).numpy())
            seen += 1
        assert seen == part.num_records
        images, labels = next(iter(builder.as_dataset(split=split, as_supervised=True)))
        assert (images.dtype, images.shape[2], labels.dtype) == (tf.uint8, 3, tf.int64)
