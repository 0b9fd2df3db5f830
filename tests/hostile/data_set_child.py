"""Runs attacks, each through every way in, in this process: python data_set_child.py ROOT KIND [NAME ...].

Prints a line of JSON for each: {"attack", "way", "outcome", "opened"}, where the outcome is what
was read, or the error. ROOT/base is the data set that is copied and attacked.
"""

import json
import os
import resource
import shutil
import signal
import sys
from hashlib import sha256
from pathlib import Path

import data_set_attacks as attacks

import tfpipe
from tfpipe.common.files import sha256_of
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import read_checked

_SECONDS = 60
opened: list[str] = []


def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        opened.append(os.fsdecode(arguments[0]))


def verify(folder, _):
    from tfpipe.verification.verification import verify

    report = verify(folder, workers=1, progress=False)
    if report.findings:
        raise report.findings[0]
    return report.num_records


def extract(folder, out):
    from tfpipe.verification.extraction import extract

    extract(folder, out / "extracted", progress=False)
    return sorted((path.name, sha256_of(path)) for path in (out / "extracted").rglob("*") if path.is_file())


def show(folder, out):
    from tfpipe.report.contact_sheet import show

    show(folder, out / "sheet.png", tile=32, per_class=2)
    return (out / "sheet.png").exists()  # what cannot be read is a crossed tile


def diff(folder, _):
    from tfpipe.verification.comparison import diff

    return list(diff(folder, folder.parent / "base"))


def info(folder, _):
    from tfpipe.records.summary import describe_manifest

    return describe_manifest(manifests.load(folder))[:100]


def evaluation(folder, _):
    """What an evaluation reads of a data set before and after its pass."""
    from tfpipe.evaluation.receipts import open_labelled
    from tfpipe.models.split_images import SplitImages

    open_labelled(folder, "train")
    images = SplitImages(folder, "train", (8, 8))
    images.evaluation(4)
    return [images.labels.tolist(), *(row.key for row in read_checked(folder, split="train"))]


def reader(folder, _):
    """What pipelines are made of."""
    from tfpipe.pipeline.reading import RecordReader

    found = RecordReader(folder, "train")
    return [sha256(found.read(position)).hexdigest() for position in range(found.num_records)]


def dataset(folder, _, **options):
    import numpy as np

    rows = []
    for batch in tfpipe.dataset(folder, "train", batch_size=4, image_size=8, as_dict=True, **options):
        sums = batch["image"].numpy().astype(np.int64).sum((1, 2, 3))
        rows += zip(batch["key"].numpy().tolist(), batch["label"].numpy().tolist(), sums.tolist(), strict=True)
    return sorted((key.decode(), label, total) for key, label, total in rows)


def training(folder, out):
    return dataset(folder, out, training=True, seed=0)


PIPELINES = (reader, dataset, training, evaluation)
WAYS = {"light": (info, verify, extract, show, diff), "tensorflow": PIPELINES, "every record": PIPELINES}
# By the attacks' names: building a graph takes a second.
TRIED = {
    "tensorflow": {
        dataset: ("none", "record: ", "record that is none", "a pipe as shard"),
        training: ("none", "record: label 7"),
    },
    "every record": {dataset: ("none", "record", "a pipe as shard"), training: ("none", "record: label")},
}


def run(root, name, attack, kind):
    folder, out = root / "attacked", root / "out"
    for path in (folder, out, root / attacks.OUTSIDE):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(root / "base", folder)
    out.mkdir()
    (root / attacks.OUTSIDE).mkdir()
    (root / attacks.OUTSIDE / "secret").write_text("secret\n")
    attack(folder)
    for way in WAYS[kind]:
        if not name.startswith(TRIED.get(kind, {}).get(way, "")):
            continue
        opened.clear()
        signal.alarm(_SECONDS)
        try:
            outcome = {"read": way(folder, out)}
        except Exception as error:
            outcome = {"error": type(error).__name__, "message": str(error)[:1000]}
        signal.alarm(0)
        inside = [path for path in opened if path.startswith((str(root), "/etc/passwd", "/dev/zero", "/proc/kmsg"))]
        line = {"attack": name, "way": way.__name__, "opened": inside, **outcome}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main():
    root, kind = Path(sys.argv[1]), sys.argv[2]
    limits = {resource.RLIMIT_AS: (4 if kind == "light" else 24) << 30, resource.RLIMIT_CPU: 120}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a process that hangs is ended, and its last line tells where
    every = {"none": lambda folder: None, **attacks.MANIFEST, **attacks.FILES}
    if kind != "light":
        import tensorflow  # noqa: F401 (what it opens is not of the first attack)
    sys.addaudithook(watch)
    for name in sys.argv[3:] or every:
        run(root, name, every[name], kind)


if __name__ == "__main__":
    main()
