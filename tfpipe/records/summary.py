"""A data set at a glance, as text: printed after a build, and by `tfpipe info`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tfpipe.common.text import display_width, format_bytes, plural, shortened
from tfpipe.records.manifest import ORDINAL, REJECTED_NAME, Manifest, Targets
from tfpipe.records.samples import USUAL, Samples

_MAX_CLASSES = 20  # more rows than this are shortened
_SHOWN_CLASSES = 10
_MAX_NAME = 32  # columns of a class name

_PROPERTIES = {  # words for `Manifest.properties`, in this order; a name that is not here is shown as it is
    "turned": "turned by EXIF",
    "grey": "grey",
    "cmyk": "CMYK",
    "png": "PNG",
    "webp": "WebP",
    "bmp": "BMP",
    "png_named_jpeg": "PNG named .jpg",
    "duplicates": "byte duplicates",
    "png16": "16-bit PNG",
    "dim16": "high bytes hold < 5 bits",
    "transparent": "alpha channel",
    "profiles": "colour profile",
    "first_of_several": "first image of several",
}


def describe_manifest(manifest: Manifest) -> str:
    """Returns the data set in some lines: splits, classes, oddities, the root hash."""
    total = sum(split.num_records for split in manifest.splits.values())
    nouns = ("class", "classes") if manifest.targets is None else ("target", "targets")
    head = (
        f"{manifest.name}: {plural(total, 'record')} in {plural(len(manifest.splits), 'split')},"
        f" {plural(len(manifest.class_names), *nouns)}{' in this order' if manifest.task == ORDINAL else ''}"
    )
    described = _classes(manifest) if manifest.targets is None else _targets(manifest, manifest.targets)
    blocks = [[head], _splits(manifest), described, _cut_groups(manifest), _oddities(manifest)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _splits(manifest: Manifest) -> list[str]:
    splits = manifest.splits.values()
    counts = [(split.num_records, split.image_bytes, split.num_bytes, len(split.shards)) for split in splits]
    names = [(name, "yes" if split.labelled else "no") for name, split in manifest.splits.items()]
    if len(counts) > 1:
        records, images, shards, files = map(sum, zip(*counts, strict=True))
        counts.append((records, images, shards, files))
        names.append(("total", ""))
    rows: list[tuple[str, ...]] = [("split", "records", "labelled", "images", "in shards", "shards")]
    for (name, labelled), (records, images, shards, files) in zip(names, counts, strict=True):
        rows.append((name, f"{records:,}", labelled, format_bytes(images), format_bytes(shards), f"{files:,}"))
    return list(aligned(rows, left=(0,)))


def _classes(manifest: Manifest) -> list[str]:
    names, count = manifest.class_names, len(manifest.class_names)
    if not names:
        return []
    splits = {name: split for name, split in manifest.splits.items() if split.labelled}
    totals = {name: sum(split.class_counts.get(name, 0) for split in splits.values()) for name in names}
    shown = range(count) if count <= _MAX_CLASSES else range(_SHOWN_CLASSES)
    several = manifest.combinations is not None
    rows: list[tuple[str, ...]] = [("label", "class", *splits, *(["total"] if len(splits) > 1 else []))]
    for label in shown:
        name = names[label]
        counts = [f"{split.class_counts.get(name, 0):,}" for split in splits.values()]
        rows.append((str(label), _shortened(name), *counts, *([f"{totals[name]:,}"] if len(splits) > 1 else [])))
    lines = list(aligned(rows, left=(1,)))
    if several and (unknown := sum(sum((split.unknown_counts or {}).values()) for split in splits.values())):
        lines.append(f"an image may have several labels, {unknown:,} of which are unknown")
    elif several:
        lines.append("an image may have several labels, or none")
    if count > len(shown):
        least, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
        lines.append(
            f"and {count - len(shown):,} more classes; all have between {totals[least]:,} ({_shortened(least)})"
            f" and {totals[most]:,} ({_shortened(most)}) records"
        )
    return lines


def _targets(manifest: Manifest, targets: Targets) -> list[str]:
    rows: list[tuple[str, ...]] = [("target", "unit", "split", "records", "mean", "deviation", "least", "most")]
    for name in manifest.class_names:
        for split_name, split in manifest.splits.items():
            if split.statistics is not None:
                found = split.statistics[name]
                numbers = (f"{number:.6g}" for number in (found.mean, found.deviation, found.least, found.most))
                first = _shortened(name), _shortened(targets.units[name])
                rows.append((*first, split_name, f"{split.class_counts[name]:,}", *numbers))
    return list(aligned(rows, left=(0, 1, 2)))


def _cut_groups(manifest: Manifest) -> list[str]:
    """Returns how far splits that were cut by groups are from their fractions."""
    found = {name: split.farthest for name, split in (manifest.groups.splits if manifest.groups else {}).items()}
    rows: list[tuple[str, ...]] = [("split", "groups", "farthest class", "wanted", "records", "difference")]
    for name in manifest.splits:
        if manifest.groups and (one := found[name]):
            total = sum(split.class_counts.get(one.class_name, 0) for split in manifest.splits.values())
            share = f"{(one.num_records - one.wanted) / total:+.1%}" if total else ""
            numbers = (f"{one.wanted:,.1f}", f"{one.num_records:,}", share)
            rows.append((name, f"{manifest.groups.splits[name].num_groups:,}", _shortened(one.class_name), *numbers))
    return list(aligned(rows, left=(0, 2))) if len(rows) > 1 else []


def _oddities(manifest: Manifest) -> list[str]:
    named = [name for name in _PROPERTIES if name in manifest.properties]
    others = [name for name in manifest.properties if name not in _PROPERTIES]
    samples = Samples.of(manifest.options)
    background = "dropped" if samples.background == USUAL.background else f"on {samples.background}"
    notes = {"png16": f" (read by {samples.png16})", "transparent": f" ({background})", "profiles": " (not applied)"}
    counts = {name: manifest.properties[name] for name in (*named, *others)}
    facts = [
        (_PROPERTIES.get(name) or _shortened(name), f"{count:,}{notes.get(name, '') if count else ''}")
        for name, count in counts.items()
    ]
    facts.append(("conflicting labels", _groups(manifest.conflicts)))
    facts.append(("leaks across splits", _groups(manifest.leaks)))
    if manifest.groups is not None:
        joined = f" ({manifest.groups.num_joined:,} joined with others by equal bytes)" if manifest.groups.num_joined else ""
        facts.append(("groups", f"{manifest.groups.num_groups:,}{joined}"))
        facts.append(("groups across splits", f"{len(manifest.groups.torn):,}"))
    rejected = f"{sum(manifest.rejected.values()):,}"
    if manifest.rejected:
        reasons = sorted(manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        rejected += f" ({', '.join(f'{_shortened(reason)} {number:,}' for reason, number in reasons)}; see {REJECTED_NAME})"
    facts.append(("rejected inputs", rejected))
    if manifest.options.get("check") == "decode":
        facts.append(("checked", "every image decoded"))
    facts.append(("root hash", manifest.root_hash))
    return list(aligned(facts, left=(0, 1)))


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return f"{plural(len(groups), 'group')} of equal bytes, {plural(sum(map(len, groups)), 'record')}" if groups else "0"


def _shortened(name: str) -> str:
    return shortened("".join(character if character.isprintable() else "?" for character in name), _MAX_NAME, "...")


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> Iterator[str]:
    """Yields rows as lines of a table, right-aligned but for the columns at `left`."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (width - display_width(cell))
            cells.append(cell + padding if place in left else padding + cell)
        yield "  ".join(cells).rstrip()
