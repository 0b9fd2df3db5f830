"""Cells of a CSV: none is a formula, and each reads back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipe.common.tables import escape_formula, unescape_formula

FORMULAS = ["=cmd|calc.jpg", "+1", "-1.jpg", "@x", "\t=x", "\rx", "\x00", " =1", "'=x", "''@", "＝1"]  # noqa: RUF001


@given(st.text(alphabet="'=+-@\t\r\n\x00 a＝") | st.text())  # noqa: RUF001
def test_what_is_escaped_reads_back(text):
    assert unescape_formula(escape_formula(text)) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_has_an_apostrophe_before_it(text):
    assert escape_formula(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "cat.jpg", "'cat'.jpg", "1-2.jpg", "a=b", "小 猫", "'"])
def test_others_stay_as_they_are(text):
    assert escape_formula(text) == unescape_formula(text) == text
