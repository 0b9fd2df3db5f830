"""The files beside the shards: those that must be there and agree with the manifest, and those that should not be there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tfpipe.inspection.findings import Finding
from tfpipe.records import manifest as manifests
from tfpipe.records import schema
from tfpipe.records.errors import DataError
from tfpipe.records.manifest import Manifest


def check_manifest(directory: Path, manifest: Manifest) -> Iterator[DataError]:
    """Yields what contradicts itself within the manifest: names of shards, counts, classes."""
    path = directory / manifests.FILE_NAME
    if len(set(manifest.class_names)) != len(manifest.class_names):
        yield DataError("a class is listed twice", path=path)
    for name, split in manifest.splits.items():
        expected = [manifests.shard_file(manifest.name, name, index, len(split.shards)) for index in range(len(split.shards))]
        if [shard.file for shard in split.shards] != expected:
            yield DataError(f"the shards of split {name!r} do not have the names that its position gives them", path=path)
        if list(split.class_counts) != list(manifest.class_names):
            yield DataError(f"split {name!r} counts other classes than the data set has", path=path)
        labelled = sum(split.class_counts.values())
        if labelled != (split.num_records if split.labelled else 0):
            yield DataError(f"the classes of split {name!r} add up to {labelled}, its shards to {split.num_records}", path=path)
    for fact in ("name", "seed"):
        value = getattr(manifest, fact)
        if manifest.options.get(fact, value) != value:
            yield DataError(f"{fact} is {value!r}, the options say {manifest.options[fact]!r}", path=path)


def check_companions(directory: Path, manifest: Manifest) -> Iterator[DataError]:
    """Yields what is wrong with the list of rejected inputs and the files for tensorflow-datasets."""
    checks = {
        manifests.REJECTED_NAME: _rejected_problem,
        manifests.INFO_NAME: _info_problem,
        manifests.FEATURES_NAME: _features_problem,
        manifests.LABELS_NAME: _labels_problem,
    }
    for name, problem_of in checks.items():
        path = directory / name
        try:
            problem = problem_of(path.read_bytes(), manifest)
        except OSError as error:
            problem = error.strerror or str(error)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"not as tfpipe writes it ({error})"
        if problem:
            yield DataError(problem, path=path)


def _rejected_problem(content: bytes, manifest: Manifest) -> str | None:
    found = Counter(json.loads(line)["reason"] for line in content.splitlines())
    return None if found == manifest.rejected else f"reasons {dict(found)}, the manifest says {dict(manifest.rejected)}"


def _info_problem(content: bytes, manifest: Manifest) -> str | None:
    info = json.loads(content)
    found = {split["name"]: [int(length) for length in split["shardLengths"]] for split in info["splits"]}
    expected = {name: [shard.num_records for shard in split.shards] for name, split in manifest.splits.items()}
    return None if (info["name"], found) == (manifest.name, expected) else "name or records per shard differ from the manifest"


def _features_problem(content: bytes, manifest: Manifest) -> str | None:
    features = json.loads(content)["featuresDict"]["features"]
    classes = int(features[schema.LABEL]["classLabel"]["numClasses"])
    return None if classes == len(manifest.class_names) else f"{classes} classes, the manifest has {len(manifest.class_names)}"


def _labels_problem(content: bytes, manifest: Manifest) -> str | None:
    expected = "".join(f"{name}\n" for name in manifest.class_names).encode()
    return None if content == expected else "the class names differ from the manifest's"


def strangers(directory: Path, manifest: Manifest) -> tuple[list[DataError], list[str]]:
    """Returns files that a glob for shards would read by mistake, and notes on others that do not belong there."""
    shards = {shard.file for split in manifest.splits.values() for shard in split.shards}
    known = {
        *shards,
        manifests.FILE_NAME,
        manifests.CATALOG_NAME,
        manifests.REJECTED_NAME,
        manifests.INFO_NAME,
        manifests.FEATURES_NAME,
        manifests.LABELS_NAME,
    }
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
