"""What is told of the errors of other programs, which may say nothing, or a whole architecture."""

import pytest

from tfpipe.common.errors import DataError, lines_of


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
