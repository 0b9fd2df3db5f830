"""Checks of arguments: one rule per name, whichever function takes it.

    batch_size, image_size = check(batch_size=np.int64(64), image_size=96)    # 64, (96, 96)
    check(batch_size=0)                  # ValueError: batch_size must be an integer, 1 or more and less than 2**63 (got 0)
    choice("mode", "fintune", MODES)     # ValueError: mode must be one of ... (got 'fintune') (did you mean finetune?)

Integers are Python's and NumPy's, numbers also `Fraction` and the like; they are returned as int
and float, so that equal ones are written alike. A bool or a text is not a number, and NaN and
infinity are in no range.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tfpipe.common import copies, stores

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function with former names of arguments, `old="new"`; they work until 1.0."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got {new!r} and its former name {old!r}")
                message = f"{function.__name__}(): the argument {old!r} is now called {new!r}; the old name works until 1.0"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        vars(call)["renamed"] = names
        return call

    return decorate


def check(**values: Any) -> tuple[Any, ...]:
    """Returns the values as plain Python types; raises ValueError for one against its rule."""
    return tuple(_RULES[name](name, value) for name, value in values.items())


def check_given(**values: Any) -> tuple[Any, ...]:
    """Checks like `check` arguments that may be None."""
    return tuple(None if value is None else _RULES[name](name, value) for name, value in values.items())


def wrong(name: str, wanted: str, value: object, hint: str = "") -> ValueError:
    """Returns the error for an argument that must be something else."""
    return ValueError(f"{name} must be {wanted} (got {value!r:.200}){hint}")


def choice(name: str, value: Any, known: Iterable[str], *, or_else: str = "") -> str:
    """Returns one of the known words; otherwise raises ValueError, which names the nearest.

    `or_else` names further possibilities, for the message.
    """
    words = list(known)
    if not isinstance(value, str) or value not in words:
        raise wrong(name, f"{or_else}one of {', '.join(words)}", value, nearest(value, words))
    return str(value)


def nearest(value: object, known: Iterable[str]) -> str:
    """Returns " (did you mean learning_rate?)" for a word that is nearly a known one, else ""."""
    import difflib

    names, word = list(known), str(value).lower()
    initials = [name for name in names if word == "".join(part[:1] for part in name.split("_"))]
    close = initials or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def texts(name: str, value: Any, wanted: str) -> tuple[str, ...]:
    """Returns one or more different texts in an order, which a set does not have."""
    unordered = isinstance(value, Mapping | Set)
    listed = [] if unordered or isinstance(value, str | bytes) or not isinstance(value, Iterable) else list(value)
    if not listed or not all(isinstance(item, str) and item for item in listed) or len(set(listed)) < len(listed):
        raise wrong(name, wanted, value, " (a list has an order)" if unordered else "")
    return tuple(map(str, listed))


def class_names(value: Any) -> tuple[str, ...]:
    """Returns different names of classes in an order."""
    return texts("class_names", value, "different names of classes")


def class_places(value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """Returns some of the known names of classes, in the given order."""
    names = class_names(value)
    missing = [name for name in names if name not in known]
    if missing:
        hint = nearest(missing[0], known)
        raise ValueError(f"class_names: there are no classes {', '.join(missing)}; there are {', '.join(known)}{hint}")
    return names


def callback(name: str, value: Any) -> Any:
    """Returns a function."""
    if not callable(value):
        raise wrong(name, "a function", value)
    return value


def path(name: str, value: Any) -> Path:
    """Returns a path; an empty one, from an unset variable in a shell, is refused.

    Of a place in a store, its local copy; data sets are read where they are, and nothing is written there.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text:
        raise wrong(name, "a path", value)
    stores.check(name, text)
    if name in _WRITTEN:
        stores.check_local(text)
    return Path(text) if name in _DATA_SETS else copies.local(text)


_DATA_SETS = ("data", "calibration_data")
_WRITTEN = ("output", "cache", "workers_folder")


Rule = Callable[[str, Any], Any]


def _integer(least: int, bits: int = 31) -> Rule:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) < 1 << bits:
            raise wrong(name, f"an integer, {least} or more and less than 2**{bits}", value)
        return int(value)

    return check


def _number(least: float, most: float, *, above: bool = False, below: bool = False) -> Rule:
    bounds = f", {f'more than {least}' if above else f'{least} or more'} and {'less than' if below else 'at most'} {most}"

    def check(name: str, value: Any) -> float:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if is_number and least <= value <= most:  # first: not every integer can be made a float
            number = float(value)
            if not (above and number <= least) and not (below and number >= most):  # again: it may have been rounded
                return number
        raise wrong(name, f"a number{bounds if above or below else f' between {least} and {most}'}", value)

    return check


def _flag(name: str, value: Any) -> bool:
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's, too
        raise wrong(name, "True or False", value)
    return bool(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(name, "a text that is not empty", value)
    return str(value)


def _size(name: str, value: Any) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, Integral) else tuple(value) if _is_listed(value) else ()
    try:
        height, width = (_COUNT(name, side) for side in sides)
    except ValueError:
        raise wrong(name, "(height, width) or the side of a square, positive integers", value) from None
    return height, width


def _shard(name: str, value: Any) -> tuple[int, int]:
    try:
        index, count = (_FROM_ZERO(name, number) for number in (value if _is_listed(value) else ()))
        if index < count:
            return index, count
    except ValueError:
        pass
    raise wrong(name, "(index, count) with 0 <= index < count", value)


def _units(name: str, value: Any) -> tuple[int, ...]:
    try:
        return tuple(_COUNT(name, number) for number in (value if _is_listed(value) else [value]))
    except ValueError:
        raise wrong(name, "positive numbers of units", value) from None


def _is_listed(value: Any) -> bool:
    return (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or bool(getattr(value, "shape", None))


_COUNT, _FROM_ZERO, _SHARE = _integer(1), _integer(0), _number(0, 1)

# The rule, and the names that it is for.
_TABLE: list[tuple[Rule, str]] = [
    (_COUNT, "num_parallel_calls num_readers num_shards read_block top_k accumulate epochs finetune_epochs patience"),
    (_COUNT, "views workers"),
    (_COUNT, "images max_classes per_class"),  # of a contact sheet
    (_integer(32), "tile"),
    (_integer(1, 63), "batch_size max_pixels shard_bytes"),
    (_FROM_ZERO, "epoch first_epoch first_step profile_steps seed"),
    (_integer(0, 63), "version"),
    (_units, "hidden"),
    (_shard, "shard"),
    (_size, "image_size size"),
    (_number(0, 1, below=True), "dropout l2"),
    (_number(0, 86_400, above=True), "lease_seconds"),
    (_number(0, 1, above=True), "splits specificity"),
    (_number(0, 0.9), "val_fraction"),
    (_number(0, 0.99), "label_smoothing"),
    (_number(0, 0.9999), "momentum"),
    (_number(0, 0.99999), "ema"),
    (_number(0, 1e6), "layer_decay warmup_epochs weight_decay"),
    (_number(1e-12, 1e3), "finetune_learning_rate learning_rate"),
    (_number(0, 1e9), "checkpoint_seconds"),
    (_SHARE, "brightness contrast crop erasing greyscale saturation horizontal_flip vertical_flip tolerance"),
    (_number(1, 100), "crop_aspect"),
    (_number(0, 0.5), "hue"),
    (_number(0, 45), "rotation"),
    (_number(0, 100), "cutmix mixup"),
    (_flag, "allow_leaks as_dict balanced class_weights csv_safe deterministic equal_steps cache_prefix deepen extend"),
    (_flag, "decode ensemble grey half"),
    (_flag, "near_duplicates overwrite progress repeat report scaled_decode tensorboard train_batch_norm training trust"),
    (_text, "backbone checkpoint feature_layer id_column label_column label_pattern model_name path_column preprocessing"),
    (_text, "engine_address group group_pattern value_column"),
]
_RULES = {name: rule for rule, names in _TABLE for name in names.split()}
