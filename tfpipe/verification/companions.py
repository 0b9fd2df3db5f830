"""The files beside the shards: those that must be there and agree with the manifest, and those that should not be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tfpipe.common.errors import DataError
from tfpipe.records import manifest as manifests
from tfpipe.records.manifest import Manifest
from tfpipe.verification.findings import Finding


def check_companions(directory: Path, manifest: Manifest) -> Iterator[DataError]:
    """Yields what is wrong with the files beside the shards and indexes, each of which the manifest knows by its hash."""
    for name, sha256 in manifest.companions.items():
        problem = manifests.hash_problem(directory / name, sha256)
        if problem:
            yield problem


def strangers(directory: Path, manifest: Manifest) -> tuple[list[DataError], list[str]]:
    """Returns files that a glob for shards would read by mistake, and notes on others that do not belong there."""
    shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
    known = {*shards, *manifest.companions, manifests.FILE_NAME}
    problems: list[DataError] = []
    notes = []
    for name in sorted(os.listdir(directory)):
        told = any(name.startswith(f"{manifest.name}-{split}.tfrecord-") for split in manifest.splits)
        if name in known or name == manifests.INDEX_FOLDER:
            continue
        if name == manifests.BUILD_FOLDER:
            notes.append(f"{name}/: left by a build that was stopped at its very end; the same build removes it")
        elif ".tfrecord" in name and not name.startswith("."):
            if not told:  # `manifest.file_problems` tells those of the data set's own splits
                problems.append(Finding("a TFRecord file that the manifest does not list", path=directory / name))
        else:
            notes.append(f"{name}: not part of the data set")
    indexes = {manifests.index_file(shard) for shard in shards}
    folder = directory / manifests.INDEX_FOLDER
    present = [f"{manifests.INDEX_FOLDER}/{name}" for name in sorted(os.listdir(folder))] if folder.is_dir() else []
    notes += [f"{path}: the index of no shard" for path in present if path not in indexes]
    return problems, notes
