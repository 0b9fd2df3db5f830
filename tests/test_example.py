import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpipe.common.errors import DataError
from tfpipe.records import example, schema

int64 = st.integers(-(1 << 63), (1 << 63) - 1)
float32 = st.floats(width=32, allow_nan=False)
kinds = (st.binary(), int64, float32)
values = st.one_of(*kinds, *(st.lists(kind, min_size=1, max_size=5) for kind in kinds))
# Few letters, so that names which begin other names, where the order of keys is peculiar, come up
# often.
names = st.one_of(st.text("ab/é", max_size=4), st.text(max_size=8).filter(lambda name: name.isprintable()))
features = st.dictionaries(names, values, max_size=8)


def as_lists(given_features):
    return {name: value if isinstance(value, list) else [value] for name, value in given_features.items()}


@given(features)
def test_decode_gives_back_what_was_encoded(given_features):
    assert example.decode(example.encode(given_features)) == as_lists(given_features)


@pytest.mark.tf
@settings(deadline=None)
@given(features)
def test_bytes_equal_those_of_tensorflow(given_features):
    import tensorflow as tf

    encoded = example.encode(given_features)
    assert tf.train.Example.FromString(encoded).SerializeToString(deterministic=True) == encoded


@pytest.mark.tf
@settings(deadline=None)
@given(features)
def test_tensorflow_reads_the_same_values(given_features):
    import tensorflow as tf

    read = {}
    for name, feature in tf.train.Example.FromString(example.encode(given_features)).features.feature.items():
        kind = feature.WhichOneof("kind")
        read[name] = list(getattr(feature, kind).value)
    assert read == as_lists(given_features)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_raise_data_error(data):
    with contextlib.suppress(DataError):
        example.decode(data)


@given(features.filter(bool), st.data())
def test_a_cut_example_never_decodes_to_the_same_features(given_features, data):
    encoded = example.encode(given_features)
    cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
    with contextlib.suppress(DataError):
        assert example.decode(cut) != as_lists(given_features)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [([], ValueError, "is empty"), (1 << 63, ValueError, "not an int64"), ([1, b"x"], TypeError, "of one kind")],
)
def test_values_that_have_no_place_in_an_example(value, error, message):
    with pytest.raises(error, match=message):
        example.encode({"x": value})


RECORD = schema.Record(b"\xff\xd8", "JPEG", 3, 4, 1, 6, "a/猫.jpg", "a/猫.jpg", "0" * 64, -1, "")


def test_record_round_trip():
    assert schema.decode(schema.encode(RECORD)) == RECORD


def test_record_golden_bytes():
    encoded = schema.encode(RECORD)
    assert hashlib.sha256(encoded).hexdigest() == "d69feaf295dba092cd0f730b4e533ecad2ebd151cac1bf87c13d9d65eebc360f"
    assert list(example.decode(encoded)) == [
        "image/channels",
        "image/class/label",
        "image/class/text",
        "image/encoded",
        "image/filename",
        "image/format",
        "image/height",
        "image/key/sha256",
        "image/key",
        "image/orientation",
        "image/width",
    ]


@pytest.mark.parametrize("missing", [schema.ENCODED, schema.LABEL, schema.KEY])
def test_a_record_without_a_feature_names_it(missing):
    present = {name: values[0] for name, values in example.decode(schema.encode(RECORD)).items() if name != missing}
    with pytest.raises(DataError, match=missing):
        schema.decode(example.encode(present))


def test_a_feature_of_the_wrong_type_or_encoding_is_named():
    good = {name: values[0] for name, values in example.decode(schema.encode(RECORD)).items()}
    with pytest.raises(DataError, match=r"image/height.*one int64"):
        schema.decode(example.encode({**good, schema.HEIGHT: b"3"}))
    with pytest.raises(DataError, match=r"image/key.*not UTF-8"):
        schema.decode(example.encode({**good, schema.KEY: b"\xff"}))
