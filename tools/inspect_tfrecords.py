#!/usr/bin/env python3
"""Inspects a data set of TFRecords: checks, shows, compares, extracts, salvages.

  inspect_tfrecords info DIR                  the data set at a glance
  inspect_tfrecords verify DIR [--decode]     every byte against what was written; exit code 1 if anything is wrong.
                                              --decode: also each image's compressed data, for older damage;
                                              --near_duplicates: images of different splits that look the same
  inspect_tfrecords extract DIR OUTPUT        the original files back, bit for bit (of converted ones the PNG)
  inspect_tfrecords show DIR [OUTPUT]         a contact sheet: some images of each class, turned upright; a PNG file,
                                              default contact_sheet.png in the current folder
  inspect_tfrecords show DIR [OUTPUT] --augment=standard
                                              what training sees: a row per image, as evaluation sees it and as epochs
                                              0 to 9 do; default augmentation_sheet.png
  inspect_tfrecords diff A B                  what was added, removed, changed, relabelled, moved; exit code 1 if anything
  inspect_tfrecords salvage SHARD OUTPUT      every intact record of a damaged shard, to a new file; exit code 1 if
                                              anything was lost

Each side of diff is a data set, or the folders it was made from, named as the build's --input and
--unlabelled were:

  inspect_tfrecords diff shards/ photos/
  inspect_tfrecords diff shards/ train=signs/train,test=signs/test
  inspect_tfrecords diff shards/ cats_dogs/train,test1=cats_dogs/test1

Lines of diff are KIND KEY, or KIND KEY BEFORE -> AFTER. Against a folder, KEY is the file name. A
name that is empty or has spaces, quotes, backslashes or unprintable characters is a JSON string:
removed "my cat.jpg".
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.common.text import format_bytes, plural
from tfpipe.common.workers import count_cores
from tfpipe.records import manifest as manifests
from tfpipe.records.summary import describe_manifest
from tfpipe.report import contact_sheet
from tfpipe.verification import comparison, extraction, near_duplicates, salvage, verification

_SPLIT = flags.DEFINE_string("split", None, "extract, show: this split only. Default: all; with --augment, the first.")
_PER_CLASS = flags.DEFINE_integer("per_class", 8, "show: images of each class.", 1)
_MAX_CLASSES = flags.DEFINE_integer("max_classes", 50, "show: classes at most; the header mentions when there are more.", 1)
_AUGMENT = flags.DEFINE_string(
    "augment", None, "show: draw augmentations by this preset: none, light, standard or strong. Default: a contact sheet."
)
_IMAGES = flags.DEFINE_integer("images", 8, "show: with --augment, images, a row each; the classes take turns.", 1)
flags.DEFINE_integer("seed", 0, "show: draws the images, and their augmentation as in a run with this seed.")
flags.DEFINE_integer("tile", 160, "show: side of an image's tile, in pixels.", 32)
flags.DEFINE_string("font", None, "show: font file, for class names. Default: the first font found that can write them.")
_DECODE = flags.DEFINE_bool("decode", False, "verify: also check each image's compressed data; some 5 to 20 ms for a photo.")
_NEAR_DUPLICATES = flags.DEFINE_bool(
    "near_duplicates", False, "verify: also report images of different splits that look the same; decodes every image."
)
_WORKERS = flags.DEFINE_integer("workers", None, "verify, diff: threads, and processes that decode. Default: one per core.", 1)
_LIMIT = flags.DEFINE_integer("limit", 50, "verify, diff, salvage: lines of findings to print.", 0)


def _info(directory: str) -> None:
    print(describe_manifest(manifests.load(directory)))


def _verify(directory: str) -> int:
    report = verification.verify(directory, workers=_WORKERS.value, decode=_DECODE.value)
    for note in report.notes:
        print(f"note: {note}")
    _print_some([str(finding) for finding in report.findings], report.num_findings)
    if altered := report.num_findings - report.num_damaged:
        intact = plural(report.num_records, "intact record")
        print(f"{directory}: NOT as it was written: {plural(altered, 'finding')}, {intact}")
    else:
        size = f"{plural(report.num_records, 'record')}, {plural(report.num_shards, 'shard')}, {format_bytes(report.num_bytes)}"
        print(f"{directory}: every byte as it was written: {size}, root hash {report.root_hash}")
    if _DECODE.value:
        speed = report.num_decoded / max(report.decode_seconds, 1e-9)
        damaged = "none" if not report.num_damaged else f"{report.num_damaged:,}"
        print(f"{directory}: {plural(report.num_decoded, 'image')} decoded, {damaged} damaged, {speed:,.0f} images/s")
    if _NEAR_DUPLICATES.value:
        _report_near_duplicates(directory, is_damaged=bool(report.num_findings - report.num_damaged))
    return 1 if report.num_findings else 0


def _report_near_duplicates(directory: str, *, is_damaged: bool) -> None:
    if is_damaged:
        print(f"{directory}: near-duplicates were not looked for: the data set is damaged")
        return
    pairs = near_duplicates.find_near_duplicates(directory, workers=_WORKERS.value or count_cores())
    lines = [
        f"{'identical' if pair.identical else f'{pair.similarity:.4f}'}"
        f" {_quoted(pair.key)} ({pair.split}) {_quoted(pair.other)} ({pair.other_split})"
        for pair in sorted(pairs, key=lambda pair: -pair.similarity)
    ]
    _print_some(lines, len(lines))
    has = "has a near-duplicate" if len(pairs) == 1 else "have a near-duplicate"
    identical = sum(pair.identical for pair in pairs)
    print(f"{directory}: {plural(len(pairs), 'image')} {has} in another split, {identical:,} of them byte-identical")


def _extract(directory: str, output: str) -> None:
    count = extraction.extract(directory, output, split=_SPLIT.value)
    print(f"{output}: {plural(count, 'record')} extracted, every hash as recorded")


def _show(directory: str, output: str | None = None) -> None:
    shared = {name: flags.FLAGS[name].value for name in ("split", "seed", "tile", "font")}
    if _AUGMENT.value is None:
        _refuse("show without --augment", "images")
        output = output or "contact_sheet.png"
        counts = {"per_class": _PER_CLASS.value, "max_classes": _MAX_CLASSES.value}
        contact_sheet.show(directory, output, **counts, **shared)
    else:
        from tfpipe.report import augmentation_sheet  # takes seconds, and none of the other commands need TensorFlow

        _refuse("show --augment", "per_class", "max_classes")
        output = output or "augmentation_sheet.png"
        augmentation_sheet.show(directory, output, augment=_AUGMENT.value, images=_IMAGES.value, **shared)
    print(f"{output}: written")


def _refuse(command: str, *names: str) -> None:
    for name in names:
        if flags.FLAGS[name].present:
            raise commands.UsageError(f"--{name} is not a flag of {command}")


def _diff(a: str, b: str) -> int:
    sides = _side(a), _side(b)
    counts: Counter[str] = Counter()
    for difference in comparison.diff(*sides, workers=_WORKERS.value):
        counts[difference.kind] += 1
        if counts.total() <= _LIMIT.value:
            key, before, after = map(_quoted, difference[1:])
            print(difference.kind, key, *([before, "->", after] if difference.before and difference.after else []))
    if counts.total() > _LIMIT.value:
        print(f"... and {counts.total() - _LIMIT.value:,} more (--limit)")
    scope = "" if all(map(comparison.is_data_set, sides)) else " (contents only: a folder has no labels and splits to compare)"
    print(f"{', '.join(f'{count:,} {kind}' for kind, count in counts.items()) or 'no difference'}{scope}")
    return 1 if counts else 0


def _quoted(name: str) -> str:
    """Returns a name that is one word of a line: as it is where possible, else as a JSON string."""
    if name and name.isprintable() and not any(character in " \"'\\" for character in name):
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


def _side(value: str) -> comparison.Side:
    if ("=" not in value and "," not in value) or Path(value).exists():  # a path may hold an equals sign or a comma
        return value
    sides: dict[str, str] = {}
    for item in value.split(","):
        prefix, _, folder = item.strip().rpartition("=")
        if not folder or prefix in sides:
            raise commands.UsageError(f"a side of diff must be DIR or NAME=DIR,NAME=DIR with different names (got {value!r})")
        sides[prefix] = folder
    return sides


def _salvage(shard: str, output: str) -> int:
    report = salvage.salvage(shard, output)
    for gap in report.gaps[: _LIMIT.value]:
        print(f"bytes {gap.start:,} to {gap.end:,}: no intact record in {plural(gap.end - gap.start, 'byte')}")
    _print_some([f"lost: {filename}" for filename in report.lost], len(report.lost))
    intact = f"{plural(report.num_records, 'record')} intact"
    if report.num_expected is not None:
        intact = f"{report.num_records:,} of {plural(report.num_expected, 'record')} intact"
    print(
        f"{output}: {intact} ({format_bytes(report.num_bytes)}),"
        f" {plural(len(report.gaps), 'damaged place')}, {format_bytes(sum(gap.end - gap.start for gap in report.gaps))} lost"
    )
    return 1 if report.gaps or report.lost else 0


def _print_some(lines: list[str], count: int) -> None:
    print(*lines[: _LIMIT.value], sep="\n", end="\n" if lines[: _LIMIT.value] else "")
    if count > _LIMIT.value:
        print(f"... and {count - _LIMIT.value:,} more (--limit)")


class _Command(NamedTuple):
    run: Callable[..., int | None]
    words: str  # those in brackets may be left out
    flags: tuple[str, ...] = ()


SUBCOMMANDS = {
    "info": _Command(_info, "DIR"),
    "verify": _Command(_verify, "DIR", ("decode", "near_duplicates", "workers", "limit")),
    "extract": _Command(_extract, "DIR OUTPUT", ("split",)),
    "show": _Command(_show, "DIR [OUTPUT]", ("split", "per_class", "max_classes", "augment", "images", "seed", "tile", "font")),
    "diff": _Command(_diff, "A B", ("workers", "limit")),
    "salvage": _Command(_salvage, "SHARD OUTPUT", ("limit",)),
}
_FLAGS = sorted({flag for described in SUBCOMMANDS.values() for flag in described.flags})


def main(arguments: list[str]) -> int | None:
    """Runs the sub-command."""
    name, *rest = arguments or [""]
    if name not in SUBCOMMANDS:
        usage = "".join(f"\n  {known} {described.words}" for known, described in SUBCOMMANDS.items())
        raise commands.UsageError(f"{f'no command {name!r}' if name else 'a command is missing'}; there are:{usage}")
    chosen = SUBCOMMANDS[name]
    words = chosen.words.split()
    needed = sum(not word.startswith("[") for word in words)
    if not needed <= len(rest) <= len(words):
        raise commands.UsageError(f"usage: {name} {chosen.words} (got {plural(len(rest), 'argument')})")
    _refuse(name, *(flag for flag in _FLAGS if flag not in chosen.flags))
    return chosen.run(*rest)


def command() -> None:
    """Runs the command; the console script's entry point."""
    chosen = SUBCOMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    commands.run(main, __name__, key_flags=chosen and chosen.flags)


if __name__ == "__main__":
    command()
