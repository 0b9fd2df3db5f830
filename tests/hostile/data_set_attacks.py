"""What an attacker may do to a data set: each changes a folder, and recomputes every hash that she can.

`MANIFEST` are refused before any other file is opened, `FILES` by whoever reads the file concerned.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os

from tfpipe.records import schema, tfrecord
from tfpipe.records.catalog import FRAME

OUTSIDE = "outside"  # a folder beside the data set


def change_manifest(folder, change, **options):
    """Rewrites `manifest.json`, with hashes and sizes of what is on disk, then `change(content)`, then its own hashes."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    for name in content["companions"]:
        content["companions"][name] = sha256(folder / name)
    for name, split in content["splits"].items():
        split["frames"]["sha256"] = sha256(frames_of(folder, name))
        for shard in split["shards"]:
            shard["sha256"], shard["num_bytes"] = sha256(folder / shard["file"]), (folder / shard["file"]).stat().st_size
            shard["index_sha256"] = sha256(index_of(folder, shard["file"]))
    change(content)
    content.pop("content_sha256")
    try:
        shards = [shard for split in content["splits"].values() for shard in split["shards"]]
        lines = sorted(f"{s['file']}\t{s['num_records']}\t{s['num_bytes']}\t{s['sha256']}\n" for s in shards)
        content["root_hash"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    except (TypeError, KeyError, AttributeError):  # there is nothing that could be hashed
        pass
    text = json.dumps(content, sort_keys=True)
    content["content_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content, **{"indent": 1, "ensure_ascii": False, **options}) + "\n", "utf-8")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def index_of(folder, shard):
    return folder / "index" / f"{shard.replace('.tfrecord-', '-')}.idx"


def frames_of(folder, split):
    return folder / "index" / f"pets-{split}.frames"


def first_shard(folder):
    return sorted(folder.glob("*.tfrecord-*"))[-1]  # of train


def setting(*path, to):
    """An attack that sets one field of the manifest; a function gets what was there."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to(content[path[-1]]) if callable(to) else to

    return lambda folder: change_manifest(folder, change)


def text(change):
    """An attack that rewrites the manifest's text."""

    def attack(folder):
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return attack


SHARD = "splits", "train", "shards", 0
MANIFEST = {
    **{
        f"file {name!r:.30}": setting(*SHARD, "file", to=name)
        for name in (
            "/etc/passwd",
            "/dev/zero",
            f"../{OUTSIDE}/secret",
            f"{OUTSIDE}/../pets-train.tfrecord-00000-of-00002",
            "manifest.json",
            "catalog.csv",
            "pets-test.tfrecord-00000-of-00001",
            "x" * 5000,
            "",
            ".",
            "a\0b",
            7,
            None,
            ["pets-train.tfrecord-00000-of-00002"],
        )
    },
    "a shard twice": setting("splits", "train", "shards", to=lambda shards: [*shards, shards[0]]),
    "the same shard in each place": setting("splits", "train", "shards", to=lambda shards: [shards[0], shards[0]]),
    "shards reversed": setting("splits", "train", "shards", to=lambda shards: shards[::-1]),
    **{
        f"{field} {value!r:.20}": setting(*SHARD, field, to=value)
        for field in ("num_records", "num_bytes")
        for value in ("2", -1, 2**63, 10**19, True, 2.0, None, [], 1e300)
    },
    "more records than bytes": setting(*SHARD, "num_records", to=10**18),
    **{
        f"{field} {value!r:.20}": setting(*SHARD, field, to=value)
        for field in ("sha256", "index_sha256")
        for value in ("", "0" * 63, "G" * 64, 0)
    },
    **{
        f"companions {value!r:.40}": setting("companions", to=value)
        for value in ({}, None, [], {"catalog.csv": "0" * 64}, {"../outside/secret": "0" * 64})
    },
    "one companion the more": setting("companions", to=lambda known: {**known, f"../{OUTSIDE}/secret": "0" * 64}),
    "one companion the less": setting("companions", to=lambda known: dict(list(known.items())[1:])),
    **{
        f"class_counts {value!r:.20}": setting("splits", "train", "class_counts", to=value)
        for value in ([1, 2], {}, None, {"<b>&amp;": 4, "=1+1": -4}, {"=1+1": 2})
    },
    **{
        f"class_names {value!r:.20}": setting("class_names", to=value)
        for value in ("ab", [], None, ["=1+1", "=1+1"], ["=1+1", 5], ["=1+1", "a\nb"], ["=1+1", "<b>&amp;", "c"], {})
    },
    "a class name of a megabyte": setting("class_names", 0, to="x" * (1 << 20)),
    **{
        f"splits {value!r:.20}": setting("splits", to=value)
        for value in ([], None, "train", {"train": 5}, {"train": None}, {"../x": {}})
    },
    "a split elsewhere": setting("splits", to=lambda splits: {"../x": splits["train"], **splits}),
    **{f"name {value!r:.20}": setting("name", to=value) for value in ("../x", "", "a" * 65, 5, None, "a\nb")},
    **{f"labelled {value!r}": setting("splits", "train", "labelled", to=value) for value in (0, "true", None, False)},
    **{f"image_bytes {value!r}": setting("splits", "train", "image_bytes", to=value) for value in (-1, 2**63, "9", None)},
    **{
        f"format_version {value!r:.20}": setting("format_version", to=value) for value in (1, 3, "2", True, 2.0, None, "x" * 99)
    },
    "seed as a text": setting("seed", to="0"),
    "half of a character": lambda folder: change_manifest(
        folder, lambda content: content["options"].update(name="\ud800"), ensure_ascii=True
    ),
    "conflicts of text": setting("conflicts", to=["ab"]),
    "a field the more": lambda folder: change_manifest(folder, lambda content: content.update(extra=1)),
    "a field the less": lambda folder: change_manifest(folder, lambda content: content.pop("leaks")),
    "other spacing": lambda folder: change_manifest(folder, lambda content: None, indent=2),
    "fields in another order": lambda folder: change_manifest(folder, lambda content: content.update(name=content.pop("name"))),
    "a key twice": text(lambda data: data.replace(b'{\n "format', b'{\n "name": "other",\n "format', 1)),
    "the same key twice": text(lambda data: data.replace(b'\n "name"', b'\n "name": "pets",\n "name"', 1)),
    "another root hash": text(lambda data: data.replace(b'"root_hash": "', b'"root_hash": "0', 1)),
    "a stale hash": text(lambda data: data.replace(b'"seed": 0', b'"seed": 1', 1)),
    "no line break at the end": text(lambda data: data.rstrip()),
    "deep": text(lambda _: b"[" * 200_000 + b"]" * 200_000),
    "deep inside": text(lambda data: data.replace(b'"options": {', b'"options": {"x": ' + b'{"x":' * 100_000 + b"1", 1)),
    "5,000 digits": text(lambda data: data.replace(b'"seed": 0', b'"seed": ' + b"9" * 5000, 1)),
    "not a number": text(lambda data: data.replace(b'"seed": 0', b'"seed": NaN', 1)),
    "infinite": text(lambda data: data.replace(b'"seed": 0', b'"seed": 1e999', 1)),
    "empty": text(lambda _: b""),
    "zeros": text(lambda data: bytes(len(data))),
    "a list": text(lambda _: b"[]"),
    "a number": text(lambda _: b"7"),
    "not UTF-8": text(lambda data: data.replace(b"=1+1", b"=\xff+1")),
    "256 MiB of nothing": lambda folder: os.truncate(folder / "manifest.json", 1 << 28),
    "a pipe": lambda folder: replaced(folder / "manifest.json", os.mkfifo),
    "a folder": lambda folder: replaced(folder / "manifest.json", os.mkdir),
    "a link to a device": lambda folder: replaced(folder / "manifest.json", functools.partial(os.symlink, "/dev/zero")),
    "a link to /proc": lambda folder: replaced(folder / "manifest.json", functools.partial(os.symlink, "/proc/kmsg")),
}


def replaced(path, make):
    path.unlink()
    make(path)


def sealed(change):
    """An attack that changes files and then seals the manifest."""

    def attack(folder):
        change(folder)
        change_manifest(folder, lambda content: None)

    return attack


def index(data):
    return sealed(lambda folder: index_of(folder, first_shard(folder).name).write_bytes(data))


def frames_bytes(change):
    """An attack that changes the frames of a split."""

    def attack(folder):
        path = frames_of(folder, "train")
        path.write_bytes(change(path.read_bytes()))

    return sealed(attack)


def frame(place, value):
    """An attack that changes a number of the first frame."""

    def change(data):
        first = list(FRAME.unpack_from(data))
        first[place] = value
        return FRAME.pack(*first) + data[20:]

    return frames_bytes(change)


def catalog(column, value):
    """An attack that changes a field of the first row of a split, or the whole text of the catalog."""

    def change(folder):
        path = folder / "catalog.csv"
        rows = list(csv.reader(io.StringIO(path.read_text("utf-8"), newline="")))
        row = next(row for row in rows if row[2] == "train")
        row[rows[0].index(column)] = value
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        path.write_text(out.getvalue(), "utf-8", newline="")

    return sealed(change)


def catalog_text(data):
    return sealed(lambda folder: (folder / "catalog.csv").write_bytes(data))


def record(change, *, row=None):
    """An attack that changes the first record of a shard, and its CRC in index and catalog.

    Args:
        change: of bytes of an Example.
        row: columns of the catalog to change with it.
    """

    def attack(folder):
        path = first_shard(folder)
        data = [frame.data for frame in tfrecord.read_frames(path)]
        data[0] = change(data[0])
        frames = [b"".join(tfrecord.frame(one)) for one in data]
        offsets = [sum(map(len, frames[:place])) for place in range(len(frames))]
        path.write_bytes(b"".join(frames))
        listed = [list(frame) for frame in FRAME.iter_unpack(frames_of(folder, "train").read_bytes())]
        for mine, offset, frame in zip(listed[-len(frames) :], offsets, frames, strict=True):
            mine[:3] = offset, len(frame), int.from_bytes(frame[-4:], "little")
        frames_of(folder, "train").write_bytes(b"".join(FRAME.pack(*frame) for frame in listed))
        lines = "".join(f"{offset} {len(frame)}\n" for offset, frame in zip(offsets, frames, strict=True))
        index_of(folder, path.name).write_text(lines)
        place = "train", path.name.split("-")[2].lstrip("0") or "0"
        catalog_path = folder / "catalog.csv"
        rows = list(csv.reader(io.StringIO(catalog_path.read_text("utf-8"), newline="")))
        (mine,) = [one for one in rows if (one[2], one[3], one[4]) == (*place, "0")]
        for column, value in {"crc32c": int.from_bytes(frames[0][-4:], "little"), **(row or {})}.items():
            mine[rows[0].index(column)] = str(value)
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        catalog_path.write_text(out.getvalue(), "utf-8", newline="")
        change_manifest(folder, lambda content: None)

    return attack


def with_fields(**changes):
    return record(lambda data: schema.encode(dataclasses.replace(schema.decode(data), **changes)))


def named(name):
    return record(lambda data: schema.encode(dataclasses.replace(schema.decode(data), filename=name)), row={"filename": name})


def in_place(kind):
    """Attacks that put something else in the place of each kind of file."""
    places = {
        "shard": first_shard,
        "index": lambda folder: index_of(folder, first_shard(folder).name),
        "catalog": lambda folder: folder / "catalog.csv",
        "frames": lambda folder: frames_of(folder, "train"),
        "companion": lambda folder: folder / "rejected.jsonl",
    }

    def attack(folder, place):
        path = places[place](folder)
        data = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "link to itself":
            path.symlink_to(path)
        elif kind == "link to the same bytes elsewhere":
            (folder.parent / OUTSIDE / "moved").write_bytes(data)
            path.symlink_to(folder.parent / OUTSIDE / "moved")
        elif kind != "nothing":
            path.symlink_to({"link to a device": "/dev/zero", "link to /proc": "/proc/kmsg"}.get(kind, "/etc/passwd"))

    return {f"a {kind} as {place}": functools.partial(attack, place=place) for place in places}


FILES = {
    **in_place("pipe"),
    **in_place("folder"),
    **in_place("nothing"),
    **in_place("link to a device"),
    **in_place("link to /proc"),
    **in_place("link to itself"),
    **in_place("link to another file"),
    **in_place("link to the same bytes elsewhere"),
    **{
        f"frames: {field} {value}": frame(place, value)
        for place, field in enumerate(("offset", "length", "crc32c", "label"))
        for value in (0, 1, 7, (1 << 31) - 1)
    },
    "a frame the less": frames_bytes(lambda data: data[:-20]),
    "a frame the more": frames_bytes(lambda data: data + data[:20]),
    "frames in another order": frames_bytes(lambda data: data[20:40] + data[:20] + data[40:]),
    "empty frames": frames_bytes(lambda data: b""),
    "index of zeros": index(bytes(40)),
    "index of empty records": index(b"0 0\n0 0\n"),
    "empty index": index(b""),
    "index of 3 bytes": index(b"0 9"),
    "index of lengths from 4 GiB": index(b"0 4294967296\n4294967296 9\n"),
    "index of huge numbers": index(b"0 " + b"9" * 5000 + b"\n"),
    "index of one long line": index(b"0" * (4 << 20)),
    "index of too little": index(b"0 100\n100 100\n"),
    **{
        f"catalog: {column} {value!r:.20}": catalog(column, value)
        for column, values in {
            "label": ("1", "5", "-2", "2147483648", "9" * 30, "9" * 5000, "", "1.5", "\N{DEVANAGARI DIGIT ONE}x"),
            "crc32c": ("4294967296", "-1", "0"),
            "height": ("0", "-1", "2147483648"),
            "orientation": ("0", "9"),
            "position": ("-1", "7", "9" * 25),
            "shard": ("-1", "7"),
            "split": ("other", ""),
            "class_name": ("other", "", "a\nb"),
            "filename": ("\x1b[2J", "a\nb", "a\0b", "x" * 20_000, "x" * 200_000),
            "format": ("GIF", ""),
            "sha256": ("", "0" * 64),
        }.items()
        for value in values
    },
    "empty catalog": catalog_text(b""),
    "catalog of zeros": catalog_text(bytes(1000)),
    "catalog of one long line": catalog_text(b"x" * (4 << 20)),
    "catalog of a quote": catalog_text(b'"'),
    "catalog that is not UTF-8": catalog_text(b"\xff\xfe\n"),
    **{
        f"record: {next(iter(changes))} {next(iter(changes.values()))!r:.20}": with_fields(**changes)
        for changes in (
            {"label": 2**40},
            {"label": -(2**63)},
            {"label": 7},
            {"label": -1},
            {"key": "other"},
            {"encoded": b"no image", "sha256": hashlib.sha256(b"no image").hexdigest()},
            {"encoded": b""},
        )
    },
    **{
        f"record named {name!r:.20}": named(name)
        for name in ("../x", "/etc/x", "x/../../y", "x" * 4000, "x/" * 2000 + "y", ".")
    },
    "record without features": record(lambda _: b""),
    "record that is none": record(lambda _: b"\xff" * 100),
    "record with a feature twice": record(lambda data: data + data),
    "record with a field the more": record(lambda data: data + b"\x78\x01"),
}
