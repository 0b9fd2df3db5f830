"""Images of every kind, and a model whose answers are known, for the tests of prediction."""

from __future__ import annotations

import csv
import io
import os
import struct
import zlib

import numpy as np
from conftest import make_image, write
from PIL import Image

NAMES = ("cat", "dog")
AWKWARD = ("cat", 'b, "q"', "小 猫")


class Averages:
    """A predictor whose answer is a function of each image alone, so that it is the same in any batch; remembers them."""

    sha256 = "0" * 64

    def __init__(self, class_names=AWKWARD, image_size=(16, 24), resize="stretch"):
        self.class_names, self.image_size, self.resize = class_names, image_size, resize
        self.batches = []

    @property
    def images(self):
        return np.concatenate(self.batches)

    def predict(self, images):
        self.batches.append(np.asarray(images))
        sums = self.batches[-1].sum(axis=(1, 2), dtype=np.int64)[:, : len(self.class_names)] + 1
        return (sums / sums.sum(axis=1, keepdims=True)).astype(np.float32)


class Mixing(Averages):
    """Its answers depend on all images of a batch and on their order, as a real model's do in the last digits."""

    def predict(self, images):
        values = super().predict(images)
        places = np.arange(1, len(values) + 1)[:, np.newaxis]
        mixed = values + 1e-3 * (values * places).sum(axis=0)
        return (mixed / mixed.sum(axis=1, keepdims=True)).astype(np.float32)


def kinds():
    """An image of each kind that a decoder treats in its own way."""
    found = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"turned {orientation}.jpg"] = make_image(orientation, (40, 28), exif=exif)
    found["11.png"] = make_image(11, (30, 50), format="PNG")
    found["9.png.jpg"] = make_image(9, (30, 50), format="PNG")
    for mode, name in {"L": "grey.jpg", "CMYK": "cmyk.JPEG"}.items():
        file = io.BytesIO()
        Image.open(io.BytesIO(make_image(12, (33, 21)))).convert(mode).save(file, "JPEG")
        found[f"深 {mode}/{name}"] = file.getvalue()
    file = io.BytesIO()
    Image.open(io.BytesIO(make_image(13, (33, 21)))).convert("RGBA").save(file, "PNG")
    return {
        **found,
        "alpha.png": file.getvalue(),
        "10.jpg": make_image(10),
        "2.jpg": make_image(2),
        "tiny.jpg": make_image(3, (1, 1)),
    }


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def undecodable():
    """A PNG file whose checksums are right and whose data do not fill it: only the decoder can tell."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b"\0" * 50), b"IEND": b""}
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file


def bad_files(root):
    """Files that no decoder takes, by their ids."""
    write(root / "empty.jpg", b"")
    write(root / "cut.jpg", make_image(1, (300, 200))[:-500])
    write(root / "page.jpg", b"<html>not found</html>" * 1000)
    write(root / "NOTES", b"no suffix")
    os.symlink("nowhere", root / "broken.jpg")
    os.mkfifo(root / "pipe.jpg")
    write(root / os.fsdecode(b"caf\xe9.jpg"), make_image(1))
    return ["NOTES", "broken", "caf\\udce9", "cut", "empty", "page", "pipe"]
