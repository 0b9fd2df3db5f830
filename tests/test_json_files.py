import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

import pytest
from conftest import write

from tfpipe.common.errors import DataError
from tfpipe.common.files import check_json, load_json


@dataclasses.dataclass(frozen=True)
class Facts:
    count: int
    rate: float
    names: Sequence[str]
    parts: Mapping[str, tuple[int, ...]]
    kind: Literal["a", "b"] = "a"


class Part(TypedDict):
    count: int


GOOD = {"count": 3, "rate": 0.5, "names": ["x"], "parts": {"p": [1, 2]}}


def test_what_is_right_comes_back_typed():
    assert check_json({**GOOD, "new": 1}, Facts, "x.json") == Facts(3, 0.5, ["x"], {"p": (1, 2)})
    assert check_json({"count": 3}, Part, "x.json") == {"count": 3}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"count": "3"}, "count"),
        ({"count": 3.0}, "count"),
        ({"count": True}, "count"),
        ({"count": None}, "count"),
        ({"names": "x"}, "names"),
        ({"names": ["x", 7]}, r"names\[1\]"),
        ({"parts": []}, "parts"),
        ({"parts": {"p": [1, "2"]}}, r"parts\.p\[1\]"),
        ({"kind": "c"}, "kind"),
    ],
)
def test_what_is_wrong_is_named(changes, field):
    with pytest.raises(DataError, match=rf"x\.json: not as tfpipe writes it: .* - at {field}$"):
        check_json({**GOOD, **changes}, Facts, "x.json")


def test_what_is_missing_is_named(tmp_path):
    path = write(tmp_path / "x.json", b'{"count": 3}')
    with pytest.raises(DataError, match=r"x\.json: .*missing required field rate"):
        load_json(path, Facts)
    with pytest.raises(DataError, match="Expected object, got array"):
        check_json([], Facts, path)
