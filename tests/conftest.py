"""Images that tests build from: small ones that are made, real ones from TFPIPE_TEST_DATA where it is set."""

from __future__ import annotations

import ctypes
import functools
import gc
import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[1]

# Properties are tested, not time: a busy machine must not fail them.
hypothesis.settings.register_profile(
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
)
hypothesis.settings.load_profile("default")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Several processes test at once: threads of NumPy's BLAS would wait for each other, busily.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # tests run in several processes, and those start others

# Tracing makes objects by the million, of which hardly any is garbage: looking for it was a fifth
# of the tests' time.
gc.set_threshold(200_000, 10, 10)


def pytest_collection_finish() -> None:
    """Excludes what imports made, four objects of five, from every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """Graphs of TensorFlow are garbage in cycles, and whole files of tests run in one process."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


# A shell starts `bash tools/test.sh &` with Ctrl-C ignored, nohup with SIGHUP: tests that send them
# are not about that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files that would be deselected as a whole, with what they import: `-m "not tf"` loads no TensorFlow."""
    chosen = config.option.markexpr
    if collection_path.suffix != ".py" or not ("not tf" in chosen or chosen == "exhaustive"):
        return None
    text = collection_path.read_text("utf-8")
    of_tensorflow = re.search(r"^pytestmark = (\[\s*)?pytest\.mark\.tf\b", text, re.MULTILINE)
    is_left_out = of_tensorflow is not None if "not tf" in chosen else "mark.exhaustive" not in text
    return is_left_out or None


# Begun first: where several processes test, each with files of its own, none waits long for the
# last one. In order of length.
LONG = (
    "cluster",
    "readme",
    "runs",
    "extending",
    "exporting",
    "signals",
    "loader",
    "phases",
    "benchmark",
    "prediction",
    "training",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps `exhaustive(only=True)` for `-m exhaustive`; puts the longest files first where several processes test."""
    if "exhaustive" not in config.option.markexpr:
        left_out = [item for item in items if any(mark.kwargs.get("only") for mark in item.iter_markers("exhaustive"))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture
def thinned(request: pytest.FixtureRequest) -> Callable[[Sequence[Any], int], Sequence[Any]]:
    """Returns the first, the last and some others of many cases; all of them with `-m exhaustive`."""
    every = re.search(r"\bexhaustive\b", request.config.option.markexpr) is not None

    def thin(cases: Sequence[Any], count: int) -> Sequence[Any]:
        if every or len(cases) <= count:
            return cases
        places = random.Random(request.node.nodeid).sample(range(1, len(cases) - 1), count - 2)
        return [cases[place] for place in (0, *sorted(places), len(cases) - 1)]

    return thin


def thin_out(cases: Iterable[tuple[Any, ...]], is_usual: Callable[..., bool]) -> list[Any]:
    """Cases of a parametrisation: those that are not usual show what others show, and are tried with `-m exhaustive` alone."""
    marks = pytest.mark.exhaustive(only=True)
    return [case if is_usual(*case) else pytest.param(*case, marks=marks) for case in cases]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("TensorFlow sees no GPU here")


@functools.cache
def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU; loads it."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def make_image(seed: int, size: tuple[int, int] = (24, 16), format: str = "JPEG", **options: object) -> bytes:  # noqa: A002
    """A small image of noise in a few colours: different for every seed."""
    drawn = random.Random(seed)
    coarse = Image.frombytes("RGB", (4, 4), drawn.randbytes(48))
    out = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(out, format, **options)
    return out.getvalue()


def cut_in_scan(jpeg: bytes) -> bytes:
    """A JPEG without the second half of its scan, and with an end: headers and structure are in order."""
    scan = jpeg.rindex(b"\xff\xda") + 14
    return jpeg[: (scan + len(jpeg)) // 2] + b"\xff\xd9"


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """folders layout: 12 cats, 8 dogs, and a class in Chinese with a space, one image in a folder below."""
    root = tmp_path / "photos"
    for index in range(12):
        write(root / "cat" / f"{index}.jpg", make_image(index))
    for index in range(8):
        write(root / "dog" / f"{index}.jpg", make_image(100 + index, (32, 20)))
    for index in range(5):
        write(root / "小 猫" / "深" / f"猫 {index}.jpg", make_image(200 + index))
    return root


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images; skips where there is none."""
    path = os.environ.get("TFPIPE_TEST_DATA")
    if not path:
        pytest.skip("TFPIPE_TEST_DATA is not set: no real images here")
    return Path(path)


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of tools/ as a file of the checkout: run_tool("build_tfrecords", "--input=...")."""

    def run(tool: str, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = [sys.executable, str(CHECKOUT / "tools" / f"{tool}.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT.parent, timeout=300)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)}\nexited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    return run


SIGNALLING = """
import importlib, os, sys
tool, module, name, last, *numbers = {parameters!r}
sys.argv[0] = tool
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), [0]
def signalled(*given, **options):
    calls[0] += 1
    for number in numbers if calls[0] == last else ():
        os.kill(os.getpid(), number)
    return real(*given, **options)
setattr(owner, name, signalled)
importlib.import_module("tools." + tool).command()
"""


def signalled(
    words: Sequence[str], module: str, name: str, last: int, *numbers: signal.Signals, ignoring: bool = False
) -> tuple[int, str]:
    """Runs a command that sends itself signals at the `last`th call of a function; returns its status and stderr.

    Who polls for its files may come too late on a busy machine.
    """
    code = SIGNALLING.format(parameters=(Path(words[1]).stem, module, name, last, *map(int, numbers)))
    command = [sys.executable, "-c", code, *words[2:]]
    if ignoring:
        command = ["sh", "-c", "trap '' TERM HUP; exec \"$@\"", "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, timeout=300)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr
