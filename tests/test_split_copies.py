"""Near-duplicates across splits without a model: re-encoded, moved and turned copies are found, and nothing else is."""

import io

import numpy as np
from conftest import cut_in_scan, write
from PIL import Image

import tfpipe
from tfpipe.verification.near_duplicates import find_near_duplicates


def textured(seed, side=96):
    """An image with detail at several scales, as photographs have."""
    random = np.random.default_rng(seed)
    parts = [Image.fromarray(random.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), 3) for n in (3, 7, 15)]
    return Image.fromarray(np.uint8(np.average([np.asarray(part) for part in parts], axis=0, weights=(5, 3, 2))))


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **{"format": "JPEG", "quality": 95, **options})
    return out.getvalue()


def build(root, **options):
    return tfpipe.build_tfrecords(root / "in", root / "out", layout="folders", workers=1, progress=False, **options)


def test_copies_in_other_splits_are_found_however_they_are_stored(tmp_path):
    images = [textured(seed) for seed in range(12)]
    for index, image in enumerate(images):
        write(tmp_path / f"in/train/a/{index}.jpg", encoded(image))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    deep = Image.fromarray(np.asarray(images[4].convert("L"), np.uint16) * 200)
    copies = {
        "0 smaller": encoded(images[0].resize((70, 70), 3), quality=60),
        "1 brighter": encoded(images[1].point(lambda value: value // 2 + 60)),
        "2 moved": encoded(images[2].transform((96, 96), Image.Transform.AFFINE, (1, 0, 2, 0, 1, -1))),
        "3 turned": encoded(images[3].rotate(90), exif=exif),
        "4 deep": encoded(deep, format="PNG"),
        "5 large": encoded(images[5].resize((1500, 1500), 3)),
        "6 same": encoded(images[6]),
    }
    for name, data in copies.items():
        write(tmp_path / f"in/test/a/{name}.{'png' if 'deep' in name else 'jpg'}", data)
    for seed in range(100, 104):
        write(tmp_path / f"in/val/a/{seed}.jpg", encoded(textured(seed)))
    write(tmp_path / "in/val/a/plain.png", encoded(Image.new("RGB", (20, 20)), format="PNG"))
    write(tmp_path / "in/test/a/plain.png", encoded(Image.new("RGB", (30, 30)), format="PNG"))
    build(tmp_path, allow_leaks=True)
    found = find_near_duplicates(tmp_path / "out", workers=2, progress=False)
    expected = {f"test/a/{name}.{'png' if 'deep' in name else 'jpg'}": f"train/a/{name[0]}.jpg" for name in copies}
    assert {pair.key: pair.other for pair in found} == expected
    assert [pair.key for pair in found if pair.identical] == ["test/a/6 same.jpg"]
    assert all((pair.split, pair.other_split) == ("test", "train") for pair in found)


def test_the_command_lists_pairs_and_passes_over_what_is_damaged(tmp_path, run_tool):
    write(tmp_path / "in/train/a/0.jpg", encoded(textured(0)))
    write(tmp_path / "in/train/a/1.jpg", encoded(textured(1)))
    write(tmp_path / "in/test/a/my copy.jpg", encoded(textured(0), quality=50))
    write(tmp_path / "in/test/a/cut.jpg", cut_in_scan(encoded(textured(1))))
    build(tmp_path)
    shown = run_tool("inspect_tfrecords", "verify", tmp_path / "out", "--near_duplicates").stdout
    assert '"test/a/my copy.jpg" (test) train/a/0.jpg (train)' in shown
    assert "1 image has a near-duplicate in another split, 0 of them byte-identical" in shown
    shard = next((tmp_path / "out").glob("*train*"))
    data = shard.read_bytes()
    shard.write_bytes(data[:100] + b"x" + data[101:])
    broken = run_tool("inspect_tfrecords", "verify", tmp_path / "out", "--near_duplicates", check=False)
    assert broken.returncode == 1
    assert "near-duplicates were not looked for" in broken.stdout


def test_signs_has_the_pairs_that_its_readme_counts(test_data, tmp_path):
    inputs = {split: test_data / "signs" / f"{split}_signs" for split in ("train", "val", "test")}
    options = {"layout": "filename", "workers": 1, "progress": False, "allow_leaks": True}
    tfpipe.build_tfrecords(inputs, tmp_path / "out", group_pattern=r"_IMG_(\d+)", **options)
    found = find_near_duplicates(tmp_path / "out", workers=2, progress=False)
    assert sum(pair.identical for pair in found) == 27
    assert len([pair for pair in found if pair.split == "test"]) == 14
    assert ("test/0_IMG_6238.jpg", "test", "train/0_IMG_6239.jpg", "train") in [pair[:4] for pair in found]
    assert len(tfpipe.load_manifest(tmp_path / "out").groups.torn) == 26  # of 1,145 numbers; one copy has another
