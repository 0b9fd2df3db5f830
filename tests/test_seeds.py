import ast
from pathlib import Path

import pytest

from tfpipe.common import seeds

PACKAGE = Path(seeds.__file__).parents[1]


def test_derive_is_a_function_of_all_its_arguments():
    numbers = [(0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (0, -1)]
    arguments = [*numbers, (0, "0"), (0, b"0"), (0, "ab", "c"), (0, "a", "bc"), (0, "abc")]
    values = [seeds.derive(*names) for names in arguments]
    assert len(set(values)) == len(values)
    assert values == [seeds.derive(*names) for names in arguments]
    assert all(0 <= value < 1 << 63 for value in values)


def test_derive_golden():
    # Changing these numbers changes every data set: see the module's docstring.
    assert seeds.derive(0, "order", "cat.1.jpg") == 1212308903724138489
    assert seeds.digest(7, "split", "x").hex()[:16] == "54cc87d7827932fc"


def additions_to_seeds(source: str) -> list[int]:
    """Lines on which something is added to a name that says seed."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.BitXor) and "seed" in ast.unparse(node).lower()
        if any(isinstance(side, ast.Name | ast.Attribute) and "seed" in ast.unparse(side) for side in (node.left, node.right))
    ]


def test_nothing_is_ever_added_to_a_seed():
    files = list(PACKAGE.rglob("*.py"))
    assert files
    assert {str(path): lines for path in files if (lines := additions_to_seeds(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize("source", ["x = seed + epoch", "self.seed + 1", "1 + seed", "seed ^ 3"])
def test_the_check_for_additions_can_fail(source):
    assert additions_to_seeds(source)
