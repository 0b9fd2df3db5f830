"""The suspects of an evaluation, and what somebody decides about them, one by one.

    review = Review(Path("eval/"), Path("shards/"))
    review.image(1)                                       # "image/jpeg", and the file's own bytes
    review.decide(Answer(1, "label", "dog"))              # eval/decisions.csv, and nothing else
    review.undo()

The file has the decisions in the order in which they were made: `undo` takes the last one back, also
after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tfpipe.common.errors import DataError
from tfpipe.common.files import open_regular, read_json, size_of
from tfpipe.evaluation import suspects
from tfpipe.evaluation.suspects import Suspect
from tfpipe.models.predictions import RECEIPT_NAME
from tfpipe.records import decisions, schema, tfrecord
from tfpipe.records import manifest as manifests
from tfpipe.records.catalog import CatalogRow, read_split
from tfpipe.records.decisions import DROP, KEEP, LABEL, Decision


class _Place(NamedTuple):
    row: CatalogRow
    shard: Path
    offset: int


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """What the page sends: a decision about the suspect of a rank."""

    rank: int
    decision: str
    new_class: str = ""


class Review:
    """The suspects of an evaluation, and the decisions about them so far.

    Args:
        folder: of the evaluation, with suspects.csv and receipt.json.
        data: the data set that was evaluated.

    Raises:
        FileNotFoundError: there is no such evaluation or data set.
        ValueError: the evaluation is of another data set, or the decisions here are about others.
        DataError: a file is damaged.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self._path = folder / decisions.FILE_NAME
        if not (folder / suspects.FILE_NAME).is_file():
            why = "`tfpipe evaluate` writes it where an image has one class"
            raise FileNotFoundError(f"{folder}: no {suspects.FILE_NAME} here: {why}")
        self.suspects: Sequence[Suspect] = suspects.read(folder)
        manifest = manifests.load(data)
        self.name, self.class_names = manifest.name, list(manifest.class_names)
        receipt = read_json(folder / RECEIPT_NAME)
        root_hash = receipt.get("data_root_hash") if isinstance(receipt, dict) else None
        if root_hash != manifest.root_hash:
            message = f"the evaluation is of data set {str(root_hash)[:12]}, {data} is {manifest.root_hash[:12]}"
            raise ValueError(f"{folder}: {message}: give the data set that was evaluated, or evaluate this one")
        self._decided = {one.key: one for one in (decisions.read(self._path) if self._path.exists() else ())}
        shown = {key for one in self.suspects for key in (one.key, one.other)}
        self._places = _places(data, manifest, shown | self._decided.keys())
        for key, decision in self._decided.items():
            place = self._places.get(key)
            if place is None or (place.row.sha256, place.row.class_name) != (decision.sha256, decision.old_class):
                what = f"the decision about {key!r} is about another image or class than {data} has"
                advice = "build with it, and go on with an evaluation of that data set, or move it away"
                raise ValueError(f"{self._path}: {what}: {advice}")
        if missing := [one.key for one in self.suspects if one.key not in self._places]:
            raise DataError(f"not in the data set {data}: {missing[0]!r}", path=folder / suspects.FILE_NAME)

    def state(self) -> dict[str, Any]:
        """Returns all that the page shows, but the images."""
        decided = [(one.key, one.decision, one.new_class) for one in self._decided.values()]
        return {"classes": self.class_names, "suspects": [one._asdict() for one in self.suspects], "decided": decided}

    def decide(self, answer: Answer) -> None:
        """Stores a decision; the last one about an image counts. Raises ValueError if it is none."""
        row = self._places[self._suspect(answer.rank).key].row
        kind, new_class = answer.decision, answer.new_class
        if kind == LABEL and new_class == row.class_name:
            kind, new_class = KEEP, ""
        if kind == LABEL and new_class not in self.class_names:
            raise ValueError(f"there is no class {new_class!r}")
        if kind not in (LABEL, DROP, KEEP) or (kind != LABEL and new_class):
            raise ValueError(f"no decision: {kind!r}, {new_class!r}")
        others = {key: one for key, one in self._decided.items() if key != row.key}
        self._store({**others, row.key: Decision(row.key, row.sha256, row.class_name, kind, new_class)})

    def undo(self) -> str:
        """Takes the last decision back; returns its key, "" if there is none."""
        if not self._decided:
            return ""
        *others, last = self._decided.values()
        self._store({one.key: one for one in others})
        return last.key

    def _store(self, decided: Mapping[str, Decision]) -> None:
        decisions.write(self._path, decided.values())
        self._decided = dict(decided)

    def image(self, rank: int, *, other: bool = False) -> tuple[str, bytes]:
        """Returns media type and bytes of a suspect's image, or of the image that it is like.

        Raises:
            ValueError: there is none.
            DataError: its record is damaged.
        """
        suspect = self._suspect(rank)
        key = suspect.other if other else suspect.key
        if key not in self._places:
            raise ValueError("there is no such image")
        row, shard, offset = self._places[key]
        with open_regular(shard) as file:
            record = schema.decode(tfrecord.read_frame(file, offset, size_of(file), shard))
        # What is decided is decided about these bytes.
        if hashlib.sha256(record.encoded).hexdigest() != row.sha256:
            raise DataError("the image is not the one in the catalog", path=shard, offset=offset)
        return f"image/{row.format.lower()}", record.encoded

    def _suspect(self, rank: int) -> Suspect:
        if not 1 <= rank <= len(self.suspects):
            raise ValueError(f"there is no suspect {rank}")
        return self.suspects[rank - 1]


def _places(data: Path, manifest: manifests.Manifest, keys: set[str]) -> dict[str, _Place]:
    manifests.check_hashes(data, manifest)
    return {
        row.key: _Place(row, data / split.shards[row.shard].file, offset)
        for name, split in manifest.splits.items()
        for row, offset, _ in read_split(data, manifest, name)
        if row.key in keys
    }
