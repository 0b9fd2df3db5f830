"""Number agreement: every message that counts says "1 record" and "2 records"."""

import ast
import itertools
import re

import pytest
from conftest import CHECKOUT

from tfpipe.common.text import exactly, plural

COUNTED = re.compile(r" (?:[a-z-]+ ){0,2}?([a-z]+[^s]s)\b")
# What follows a value and ends with an s is a noun in the plural, but for these; and adjectives
# alone come between the two.
NO_NOUNS = {
    *("is", "was", "has", "as", "this", "its", "us", "does", "holds", "says", "gives", "means", "takes", "needs", "reads"),
    *("makes", "matches", "leaves", "stands", "refuses", "brings", "ends", "trains", "differs", "times", "lacks", "overfits"),
}
NO_ADJECTIVES = {
    *("is", "was", "has", "must", "needs", "of", "in", "and", "than", "to", "with", "or", "on", "for", "holds", "that", "a"),
    *("the", "are", "from", "by", "at", "as", "what", "whose"),
}
# A number there that cannot be 1: a limit that is exceeded, or is greater than another.
NEVER_ONE = {
    ("formats.py", "graph.ByteSize()"),  # above 2 GiB
    ("sheets.py", "width * height"),  # above a hundred million
    ("contact_sheet.py", "classes"),  # more than are shown
    ("contact_sheet.py", "record.height"),  # more than Pillow's limit
    ("jpeg.py", "blocks"),  # more than ten
    ("summary.py", "count - len(shown)"),  # of twenty and more, ten are shown
    ("recipes.py", "num_images"),  # a hundred or more
    ("files.py", "len(digits)"),  # more than twenty
    ("files.py", "most_bytes"),  # a limit
    ("runs.py", "num_all"),  # a class of one is not divided
    ("freezing.py", "name"),  # a name
    ("predictions.py", "whose"),  # a model's name
    ("inspect_tfrecords.py", "speed"),  # a rate
}


def unguarded(source):
    """(line, expression, what follows) of values in f-strings that a plural follows whatever they are."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for value, text in itertools.pairwise(parts):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            found, expression = COUNTED.match(text.value), ast.unparse(value.value)
            if not found or found[1] in NO_NOUNS or set(found[0].split()[:-1]) & NO_ADJECTIVES:
                continue
            is_constant = re.fullmatch(r"_?[A-Z_]+( - 1)?", expression)
            if value.conversion == -1 and not is_constant and not expression.startswith(("plural(", "exactly(")):
                yield node.lineno, expression, found[0]


def test_no_message_counts_without_agreement():
    tools = [path for path in (CHECKOUT / "tools").glob("*.py") if path.stem not in ("benchmark", "demo")]  # of thousands
    places = [*(CHECKOUT / "tfpipe").rglob("*.py"), *tools]
    assert len(places) > 100
    found = {
        f"{path.relative_to(CHECKOUT)}:{line}: {{{expression}}}{text}"
        for path in places
        for line, expression, text in unguarded(path.read_text("utf-8"))
        if (path.name, expression) not in NEVER_ONE
    }
    assert found == set()


@pytest.mark.parametrize("source", ['f"{count} records"', 'f"{len(bad):,} bad files: {names}"', 'f"a {n} more classes"'])
def test_the_check_of_agreement_can_fail(source):
    assert list(unguarded(source))


def test_a_count_agrees():
    assert [plural(count, "record") for count in (0, 1, 2, 1200)] == ["0 records", "1 record", "2 records", "1,200 records"]
    assert plural(1, "class", "classes") == "1 class"
    assert plural(3, "class", "classes") == "3 classes"
    assert [exactly(count, "byte") for count in (1, 1200)] == ["1 byte", "1200 bytes"]
