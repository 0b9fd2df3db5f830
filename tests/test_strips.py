"""Images of one pixel's height or width: small files, and as little memory wherever they are read."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, make_image, write
from PIL import Image
from prediction_fixtures import Averages, read
from test_headers import chunk, encode, ihdr, make_png

pytestmark = pytest.mark.tf

SIZE = (224, 224)
LIMIT_MB = 100  # 9 bytes for each of 4,000,000 pixels in two threads, and what varies between runs
VALUES = bytes(range(1, 251))


def png(width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0) -> bytes:
    """A periodic image in few bytes; interlaced, one of a single row or column."""
    bits = depth * {0: 1, 2: 3, 6: 4}[color]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    packer = zlib.compressobj(9)
    packed = b""
    for left, top, across, down in passes if interlace else ((0, 0, 1, 1),):
        row_bytes = -(-(width - left) // across) * bits // 8
        row = (VALUES * (row_bytes // 250 + 1))[:row_bytes]
        rows = -(-(height - top) // down) if row_bytes > 0 else 0
        packed += b"".join(packer.compress(b"\0" + row) for _ in range(rows))
    return make_png(ihdr(width, height, depth, color, interlace), chunk(b"IDAT", packed + packer.flush()))


def strips() -> dict[str, bytes]:
    """Of each kind of file, one that is long and one that is high."""
    found = {}
    for name, size in {"long": (400_000, 1), "high": (1, 400_000)}.items():
        found[f"{name}.png"] = png(*size)
        found[f"{name}_16.png"] = png(*size, depth=16)
        found[f"{name}_alpha.png"] = png(*size, color=6)
        found[f"{name}_interlaced.png"] = png(*size, interlace=1)
        image = Image.new("RGB", tuple(min(side, 65_500) for side in size), (200, 100, 50))
        found[f"{name}.jpg"] = encode(image)
        found[f"{name}_progressive.jpg"] = encode(image, progressive=True)
    return {**found, "large.png": png(100_000, 40)}


def memory(name: str) -> int:
    """This process' "VmRSS", or its peak, "VmHWM", in MB; `ru_maxrss` would begin at that of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) >> 10


def read_everywhere(folder: Path) -> None:
    """Builds a data set, reads it in both ways, and sends the files through the exported graph, `predict` and the page."""
    import tensorflow as tf

    import tfpipe
    from tfpipe.images import decoding
    from tfpipe.page.answers import Answers

    graph = tf.function(lambda files: decoding.decode_batch(files, SIZE, "stretch", 10**8), autograph=False)
    model = Averages(image_size=SIZE)

    def build(photos: Path, shards: Path) -> None:
        tfpipe.build_tfrecords(photos, shards, name="x", layout="flat", splits={"train": 1.0}, check="decode")

    def read(photos: Path, shards: Path, *, training: bool = False) -> None:
        count = len(os.listdir(photos))
        data = tfpipe.dataset(shards, "train", batch_size=count, image_size=SIZE, training=training)
        assert next(iter(data))[0].shape == (count, *SIZE, 3)

    def train(photos: Path, shards: Path) -> None:
        read(photos, shards, training=True)

    def decode(photos: Path, _: Path) -> None:
        assert graph(tf.constant([file.read_bytes() for file in photos.iterdir()]))[1].numpy().all()

    def predict(photos: Path, shards: Path) -> None:
        tfpipe.predict(model, photos, shards.with_suffix(".csv"), progress=False)

    def answer(photos: Path, _: Path) -> None:
        for file in photos.iterdir():
            assert Answers(model).answer(str(file)).seen.shape == (*SIZE, 3)

    for name in ("warm", "strips"):
        for stage in (build, read, train, decode, predict, answer):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = memory("VmRSS")
            stage(folder / name, folder / f"of {name}")
            more = memory("VmHWM") - before
            assert name == "warm" or more < LIMIT_MB, f"{stage.__name__} took {more} MB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_strips_take_memory_in_proportion_to_their_pixels(tmp_path):
    for name, data in strips().items():
        assert len(data) < 600_000
        write(tmp_path / "strips" / name, data)
    for kind in ("JPEG", "PNG"):
        for index in range(6):
            write(tmp_path / "warm" / f"{index}.{kind.lower()}", make_image(index, (300, 200), kind))
    code = "import sys, pathlib, test_strips; test_strips.read_everywhere(pathlib.Path(sys.argv[1]))"
    paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(read(tmp_path / "of strips.csv")) == 1 + len(strips())


@pytest.mark.parametrize("source", [(1, 9001), (3, 7000), (40, 90_000), (9001, 1)])
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_strips_have_the_pixels_of_the_whole_at_once(source, mode):
    import tensorflow as tf

    from tfpipe.images import resizing

    image = np.random.default_rng(1).integers(0, 256, (*source, 3), np.uint8)
    scaled = resizing.scaled_size(tf.constant(source), tf.constant(SIZE), mode)
    scale = tf.cast(scaled / source, tf.float32)
    translation = tf.cast(tf.truncatediv(tf.constant(SIZE) - scaled, 2), tf.float32)
    options = {"scale": scale, "translation": translation, "kernel_type": "triangle", "antialias": True}
    expected = tf.raw_ops.ScaleAndTranslate(images=image[np.newaxis], size=SIZE, **options)[0]
    found = resizing.sample_image(tf.constant(image), SIZE, scale, translation)
    assert np.abs(found.numpy() - expected.numpy()).max() < 1e-3
