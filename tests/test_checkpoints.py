"""The state of a run: it comes back bit for bit, or not at all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfpipe.common.errors import DataError
from tfpipe.training import checkpoints

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
)
FLOATS = st.floats(allow_nan=False) | st.just(math.inf) | st.just(5e-324) | st.just(0.1 + 0.2)


def equal_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(
    groups=st.dictionaries(st.sampled_from(["weights", "json", "ema/0", "小 猫"]), st.lists(ARRAYS, max_size=3), max_size=3),
    facts=st.dictionaries(st.text(max_size=5), FLOATS | st.integers() | st.none() | st.booleans() | st.text(max_size=5)),
)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path_factory, groups, facts):
    path = tmp_path_factory.mktemp("state") / "state.npz"
    checkpoints.save(path, groups, facts)
    found, found_facts = checkpoints.load(path)
    assert found_facts == facts
    assert found.keys() == groups.keys()
    for name, group in groups.items():
        assert len(found[name]) == len(group)
        assert all(equal_bits(one, other) for one, other in zip(found[name], group, strict=True))


def test_nan_and_signed_zero(tmp_path):
    weights = np.array([np.nan, -0.0, np.inf, np.float32(1e-45)], np.float32)
    checkpoints.save(tmp_path / "state.npz", {"weights": [weights]}, {"loss": math.nan, "zero": -0.0})
    found, facts = checkpoints.load(tmp_path / "state.npz")
    assert equal_bits(found["weights"][0], weights)
    assert math.isnan(facts["loss"])
    assert math.copysign(1, facts["zero"]) == -1


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.npz"
    random = np.random.default_rng(0)
    checkpoints.save(
        path, {"weights": [random.normal(size=(20, 3)), random.integers(0, 9, 5)]}, {"epoch": 3, "rates": [0.1, 0.2]}
    )
    return path


def test_a_file_that_was_cut_anywhere_is_damaged(saved):
    whole = saved.read_bytes()
    for length in {*range(0, len(whole), len(whole) // 60), *range(30), *range(len(whole) - 30, len(whole))}:
        saved.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged") as caught:
            checkpoints.load(saved)
        assert caught.value.path == str(saved)
        assert len(str(caught.value)) < 400
    saved.write_bytes(whole)
    checkpoints.load(saved)


def test_a_flipped_bit_is_noticed_or_without_effect(saved):
    whole, (expected, facts) = saved.read_bytes(), checkpoints.load(saved)
    noticed = 0
    for place in range(0, len(whole), 7):
        for bit in (1, 64):
            saved.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found, found_facts = checkpoints.load(saved)
            except DataError:
                noticed += 1
                continue
            assert found_facts == facts
            assert all(equal_bits(*pair) for pair in zip(found["weights"], expected["weights"], strict=True))
    assert noticed > len(whole) // 7


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04"])
def test_other_files_are_damaged(tmp_path, content):
    (tmp_path / "state.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"state\.npz: damaged .*delete it"):
        checkpoints.load(tmp_path / "state.npz")


def test_other_numpy_files_are_damaged(tmp_path):
    with open(tmp_path / "state.npz", "wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(DataError, match="damaged"):
        checkpoints.load(tmp_path / "state.npz")
    np.savez(tmp_path / "state.npz", weights=np.arange(3))
    with pytest.raises(DataError, match="damaged"):
        checkpoints.load(tmp_path / "state.npz")


def test_nothing_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoints.load(tmp_path / "state.npz")


def test_a_failed_write_leaves_the_state_before(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save(saved, {"weights": [np.zeros(3)]}, {"epoch": 4})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_json_cannot_hold_is_reported_before_anything_is_written(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        checkpoints.save(saved, {}, {"weights": np.zeros(3)})
    assert saved.read_bytes() == before
