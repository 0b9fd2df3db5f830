"""PyTorch's files without PyTorch: tensors in any order of axes, and nothing else that a pickle can name."""

import pickle

import numpy as np
import pytest
from torch_writer import tensor, write_torch

from tfpipe.common.errors import DataError
from tfpipe.networks import torch_files


def test_tensors_come_back_as_they_were(tmp_path):
    numbers = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    wanted = {"weight": numbers, "turned": numbers.transpose(2, 0, 1), "scalar": np.array(7), "counts": np.arange(3)}
    found = torch_files.load(write_torch(tmp_path / "a.pth", wanted))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("name", ["os system", "builtins eval", "builtins getattr", "torch load", "collections Counter"])
def test_no_other_name_is_called(tmp_path, name):
    command = f"touch {tmp_path}/called"
    called = b"c" + name.replace(" ", "\n").encode() + b"\n(" + pickle.dumps(command, 2)[2:-1] + b"tR"
    write_torch(tmp_path / "a.pth", {}, {"weight": called})
    with pytest.raises(DataError, match=rf"a.pth: cannot be read as tensors of PyTorch: it names {name.replace(' ', '.')}"):
        torch_files.load(tmp_path / "a.pth")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (tensor("0", 4, (2, 2), (4, 1)), "reaches past its storage, whose length is 4"),
        (tensor("0", 4, (2, 2), (2, 1), offset=1), "reaches past its storage, whose length is 4"),
        (tensor("0", 4, (4, 4, 4), (0, 0, 0)), "reaches past its storage, whose length is 4"),
        (tensor("0", 4, (2, 2), (-2, 1), offset=2), "has the strides"),
        (tensor("0", 4, (2, 2), (1,)), "has the strides"),
        (tensor("1", 4, (2, 2), (2, 1)), "do not match"),
        (tensor("0", 5, (2, 2), (2, 1)), "storage 0 is truncated"),
        (b"K\x01", "other objects than named tensors"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, pickled, message):
    write_torch(tmp_path / "a.pth", {}, {"weight": pickled}, storages={"0": np.zeros(4, "float32")})
    with pytest.raises(DataError, match=message):
        torch_files.load(tmp_path / "a.pth")


def test_what_is_no_such_file(tmp_path):
    whole = write_torch(tmp_path / "a.pth", {"weight": np.ones((3, 4), "float32")}).read_bytes()
    for length in (0, 5, 15, 40, len(whole) - 60, len(whole) - 1):
        (tmp_path / "short.pth").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"short.pth: cannot be read as tensors"):
            torch_files.load(tmp_path / "short.pth")
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"zip.pth: cannot be read as tensors"):
        torch_files.load(tmp_path / "zip.pth")
    with pytest.raises(FileNotFoundError):
        torch_files.load(tmp_path / "none.pth")
