#!/usr/bin/env python3
"""Looks at a data set that build_tfrecords wrote: checks, shows, compares, extracts, rescues. TensorFlow is not needed.

  inspect_tfrecords info DIR                  the data set at a glance
  inspect_tfrecords verify DIR                every byte against what was written; exit code 1 if anything is wrong
  inspect_tfrecords extract DIR OUTPUT        the original files back, bit for bit
  inspect_tfrecords show DIR --output=PNG     a contact sheet: some pictures of each class, turned upright
  inspect_tfrecords diff A B                  what was added, removed, changed, relabelled, moved; exit code 1 if anything
  inspect_tfrecords salvage SHARD OUTPUT      every intact record of a damaged shard, to a new file

Each side of diff is a data set, or the folders it was made from, named as the build's --input and --unlabelled were:

  inspect_tfrecords diff shards/ photos/
  inspect_tfrecords diff shards/ train=signs/train,test=signs/test
  inspect_tfrecords diff shards/ cats_dogs/train,test1=cats_dogs/test1
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a file: the checkout's own tfpipe, and none of this folder's files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from absl import flags

from tfpipe import commands
from tfpipe.inspection import comparison, contact_sheet, extraction, rescue, verification
from tfpipe.records import manifest as manifests
from tfpipe.records.summary import describe_manifest, format_bytes, plural

_SPLIT = flags.DEFINE_string("split", None, "extract, show: this split only. Default: all.")
_OUTPUT = flags.DEFINE_string("output", None, "show: the PNG file to write.")
_PER_CLASS = flags.DEFINE_integer("per_class", 8, "show: pictures of each class.", 1)
_MAX_CLASSES = flags.DEFINE_integer("max_classes", 50, "show: classes at most; the header says when there are more.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "show: draws the pictures.")
_TILE = flags.DEFINE_integer("tile", 160, "show: side of a picture's place, in pixels.", 32)
_FONT = flags.DEFINE_string("font", None, "show: font file, for class names that the fonts found cannot write.")
_WORKERS = flags.DEFINE_integer("workers", None, "verify, diff: threads. Default: one per core.", 1)
_LIMIT = flags.DEFINE_integer("limit", 50, "verify, diff, salvage: lines to print of what was found.", 0)


def _info(directory: str) -> None:
    print(describe_manifest(manifests.load(directory)))


def _verify(directory: str) -> int:
    report = verification.verify(directory, workers=_WORKERS.value)
    for note in report.notes:
        print(f"note: {note}")
    if report.num_findings:
        _print_some([str(finding) for finding in report.findings], report.num_findings)
        intact = plural(report.num_records, "intact record")
        print(f"{directory}: NOT as it was written: {plural(report.num_findings, 'finding')}, {intact}")
        return 1
    size = f"{plural(report.num_records, 'record')}, {plural(report.num_shards, 'shard')}, {format_bytes(report.num_bytes)}"
    print(f"{directory}: every byte as it was written: {size}, root hash {report.root_hash}")
    return 0


def _extract(directory: str, output: str) -> None:
    count = extraction.extract(directory, output, split=_SPLIT.value)
    print(f"{output}: {plural(count, 'record')} extracted, every hash as recorded")


def _show(directory: str) -> None:
    if _OUTPUT.value is None:
        raise commands.UsageError("show needs --output, the PNG file to write")
    contact_sheet.show(
        directory,
        _OUTPUT.value,
        split=_SPLIT.value,
        per_class=_PER_CLASS.value,
        max_classes=_MAX_CLASSES.value,
        seed=_SEED.value,
        tile=_TILE.value,
        font=_FONT.value,
    )
    print(f"{_OUTPUT.value}: written")


def _diff(a: str, b: str) -> int:
    sides = _side(a), _side(b)
    counts: Counter[str] = Counter()
    for difference in comparison.diff(*sides, workers=_WORKERS.value):
        counts[difference.kind] += 1
        if counts.total() <= _LIMIT.value:
            change = f": {difference.before} -> {difference.after}" if difference.before and difference.after else ""
            print(f"{difference.kind} {difference.key}{change}")
    if counts.total() > _LIMIT.value:
        print(f"... and {counts.total() - _LIMIT.value:,} more (--limit)")
    scope = "" if all(map(comparison.is_data_set, sides)) else " (contents only: a folder has no labels and splits to compare)"
    print(f"{', '.join(f'{count:,} {kind}' for kind, count in counts.items()) or 'no difference'}{scope}")
    return 1 if counts else 0


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


def _salvage(shard: str, output: str) -> None:
    report = rescue.salvage(shard, output)
    for gap in report.gaps[: _LIMIT.value]:
        print(f"bytes {gap.start:,} to {gap.end:,}: no intact record in these {gap.end - gap.start:,} bytes")
    _print_some([f"lost: {filename}" for filename in report.lost], len(report.lost))
    expected = "" if report.num_expected is None else f" of {report.num_expected:,}"
    print(
        f"{output}: {report.num_records:,}{expected} records intact ({format_bytes(report.num_bytes)}),"
        f" {plural(len(report.gaps), 'damaged place')}, {format_bytes(sum(gap.end - gap.start for gap in report.gaps))} lost"
    )


def _print_some(lines: list[str], count: int) -> None:
    print(*lines[: _LIMIT.value], sep="\n", end="\n" if lines[: _LIMIT.value] else "")
    if count > _LIMIT.value:
        print(f"... and {count - _LIMIT.value:,} more (--limit)")


_COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "info": (_info, "DIR"),
    "verify": (_verify, "DIR"),
    "extract": (_extract, "DIR OUTPUT"),
    "show": (_show, "DIR --output=PNG"),
    "diff": (_diff, "A B"),
    "salvage": (_salvage, "SHARD OUTPUT"),
}


def main(arguments: list[str]) -> int | None:
    """Runs the sub-command."""
    name, *rest = arguments or [""]
    if name not in _COMMANDS:
        usage = "".join(f"\n  {command} {words}" for command, (_, words) in _COMMANDS.items())
        raise commands.UsageError(f"{f'no command {name!r}' if name else 'a command is missing'}; there are:{usage}")
    run, words = _COMMANDS[name]
    expected = [word for word in words.split() if not word.startswith("--")]
    if len(rest) != len(expected):
        raise commands.UsageError(f"usage: {name} {words} (got {len(rest)} arguments)")
    return run(*rest)


def command() -> None:
    """Runs the command; the console script's entry point."""
    commands.run(main, __name__)


if __name__ == "__main__":
    command()
