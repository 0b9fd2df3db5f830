import io

import h5py
import numpy as np
import pytest
from PIL import Image

import tfpipe
from tfpipe.building.inputs import hdf5
from tfpipe.records import catalog, schema, tfrecord


def store(path, **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


def pixels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def read_back(directory, split):
    content = tfpipe.load_manifest(directory)
    for shard in content.splits[split].shards:
        for frame in tfrecord.read_frames(directory / shard.file):
            yield schema.decode(frame.data)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4)])
def test_images_are_stored_without_loss(tmp_path, shape):
    images = pixels(7, *shape)
    path = store(tmp_path / "x.h5", set_x=images, set_y=np.arange(7) % 3)
    tfpipe.build_tfrecords(path, tmp_path / "out", workers=1, progress=False)
    found = {record.key: record for record in read_back(tmp_path / "out", "train")}
    assert sorted(found) == [f"x.h5#{row:06d}" for row in range(7)]
    for row in range(7):
        record = found[f"x.h5#{row:06d}"]
        stored = np.asarray(Image.open(io.BytesIO(record.encoded)))
        assert np.array_equal(stored, images[row].reshape(stored.shape))
        assert (record.label, record.class_name, record.format) == (row % 3, str(row % 3), "PNG")
        assert record.filename == f"x.h5#{row:06d}.png"


def test_labels_keep_their_numbers_and_names(tmp_path):
    path = store(
        tmp_path / "x.h5", x=pixels(3, 4, 4), y=np.array([[2, 0, 2]]), list_classes=np.array([b"zebra", b"cat", b"ape"])
    )
    content = tfpipe.build_tfrecords({"test": path}, tmp_path / "out", layout="hdf5", workers=1, progress=False)
    assert list(content.class_names) == ["zebra", "cat", "ape"]
    rows = {row.key: (row.label, row.class_name) for row in catalog.read_catalog(tmp_path / "out", split="test")}
    assert rows == {"x.h5#000000": (2, "ape"), "x.h5#000001": (0, "zebra"), "x.h5#000002": (2, "ape")}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.arange(3)}, "exactly one uint8 array of images"),
        ({"a": pixels(3, 4, 4, 3), "b": pixels(3, 4, 4, 3), "y": np.arange(3)}, r"it holds a uint8\[3, 4, 4, 3\], b uint8"),
        ({"x": pixels(3, 4, 4, 3).astype("float32"), "y": np.arange(3)}, "exactly one uint8 array"),
        ({"x": pixels(3, 4, 4, 3), "y": np.arange(4)}, "exactly one array of 3 integer labels"),
        (
            {"x": pixels(2, 4, 4, 3), "y": np.array([0, 5]), "list_classes": np.array([b"a", b"b"])},
            r"labels \[5\] have no name",
        ),
        ({"x": pixels(2, 4, 4, 3), "y": np.array([0, -1])}, r"labels \[-1\] have no name"),
        ({"x": pixels(2, 4, 4, 3), "y": np.array([0, 10**12])}, r"labels \[1000000000000\] have no name"),
        (
            {"x": pixels(2, 4, 4, 3), "y": np.array([0, 1]), "list_classes": np.array([b"a", b"a"])},
            "two labels have one name: a",
        ),
        ({"x": pixels(2, 0, 4, 3), "y": np.array([0, 1])}, "exactly one uint8 array"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, arrays, message):
    path = store(tmp_path / "x.h5", **arrays)
    with pytest.raises(tfpipe.DataError, match=message):
        tfpipe.build_tfrecords(path, tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_file_is_read_anew_and_closed(tmp_path, monkeypatch):
    for folder, labels in (("a", [0, 0, 0]), ("b", [1, 1, 2])):
        (tmp_path / folder).mkdir()
        store(tmp_path / folder / "data.h5", x=pixels(3, 4, 4, 3), y=np.array(labels))
        monkeypatch.chdir(tmp_path / folder)
        tfpipe.build_tfrecords("data.h5", tmp_path / f"out {folder}", workers=1, progress=False)
        assert sorted(row.label for row in catalog.read_catalog(tmp_path / f"out {folder}")) == labels
        store(tmp_path / folder / "data.h5", x=pixels(1, 4, 4, 3), y=np.array([0]))  # no one holds it open


def test_named_types_beside_the_arrays(tmp_path):
    path = store(tmp_path / "x.h5", x=pixels(2, 4, 4, 3), y=np.arange(2))
    with h5py.File(path, "a") as file:
        file["kind"] = np.dtype("f8")
    assert tfpipe.build_tfrecords(path, tmp_path / "out", workers=1, progress=False).splits["train"].num_records == 2


@pytest.mark.parametrize("name", ["x", "y", "list_classes"])
@pytest.mark.parametrize("is_virtual", [False, True])
def test_arrays_in_other_files_are_refused_before_they_are_read(tmp_path, name, is_virtual):
    arrays = {"x": pixels(2, 4, 4, 3), "y": np.array([0, 1]), "list_classes": np.array([b"a", b"b"])}
    store(tmp_path / "other.h5", **arrays)
    array = arrays.pop(name)
    path = store(tmp_path / "x.h5", **arrays)
    with h5py.File(path, "a") as file:
        if is_virtual:
            layout = h5py.VirtualLayout(array.shape, array.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", name, array.shape)
            file.create_virtual_dataset(name, layout)
        else:
            (tmp_path / "secret").write_bytes(array.tobytes())
            file.create_dataset(name, array.shape, array.dtype, external=[(str(tmp_path / "secret"), 0, array.nbytes)])
    with pytest.raises(tfpipe.DataError, match=rf"x\.h5: array '/{name}' lies in other files: copy it into this one"):
        hdf5.list_arrays(path, None)


def test_what_is_not_hdf5_is_named(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"not hdf5")
    with pytest.raises(tfpipe.DataError, match=r"x\.h5: cannot be read as HDF5"):
        hdf5.list_arrays(path, None)


def test_signs(test_data, tmp_path):
    source = test_data / "signs/test_signs.h5"
    content = tfpipe.build_tfrecords({"test": source}, tmp_path / "out", layout="hdf5", workers=2, progress=False)
    assert content.splits["test"].num_records == 120
    with h5py.File(source) as file:
        for record in read_back(tmp_path / "out", "test"):
            row = int(record.key.split("#")[1])
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(record.encoded))), file["test_set_x"][row])
            assert record.label == file["test_set_y"][row]


def test_another_order_of_the_classes_is_another_input(tmp_path):
    images = pixels(4, 4, 4, 3)
    path = store(tmp_path / "x.h5", x=images, y=np.array([0, 1, 0, 1]), list_classes=np.array([b"a", b"b"]))
    tfpipe.build_tfrecords(path, tmp_path / "out", workers=1, progress=False)
    store(path, x=images, y=np.array([1, 0, 1, 0]), list_classes=np.array([b"b", b"a"]))  # the same names, other numbers
    with pytest.raises(ValueError, match="the order of the classes was"):
        tfpipe.build_tfrecords(path, tmp_path / "out", workers=1, progress=False)


def test_two_files_of_which_one_lacks_the_last_class(tmp_path):
    inputs = {
        "train": store(tmp_path / "a.h5", x=pixels(3, 4, 4), y=np.arange(3)),
        "test": store(tmp_path / "b.h5", x=pixels(2, 4, 4, seed=1), y=np.arange(2)),
    }
    content = tfpipe.build_tfrecords(inputs, tmp_path / "out", layout="hdf5", workers=1, progress=False)
    assert list(content.class_names) == ["0", "1", "2"]
