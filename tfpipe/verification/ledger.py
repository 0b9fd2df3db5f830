"""What must hold over the whole data set: keys are unique, and equal bytes stand in two splits only where noted.

Design: of every key and every picture 8 bytes of a hash are kept, in arrays, spread over 256 buckets, 16 bytes a record:
16 MB for a million records where a set of keys would take 150 MB. One bucket at a time becomes a set. Keys whose hashes
meet are looked up again and compared in full, so that a chance meeting (1 in 40 million for a million records) is no
finding. An on-disk table (SQLite) would need less memory, and takes longer than hashing the pictures.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

from tfpipe.verification.shards import ShardReport

_BUCKETS = 256


class Ledger:
    """Hashes of the keys and contents of all records.

    Attributes:
        num_records: how many were entered.
    """

    def __init__(self) -> None:
        self.num_records = 0
        self._keys = [array("Q") for _ in range(_BUCKETS)]
        self._contents: dict[str, list[array[int]]] = {}

    def enter(self, split: str, report: ShardReport) -> None:
        """Adds the records of one shard."""
        self.num_records += report.num_records
        _spread(report.key_hashes, self._keys)
        contents = self._contents.setdefault(split, [array("Q") for _ in range(_BUCKETS)])
        _spread(report.content_hashes, contents)

    def repeated_keys(self) -> set[int]:
        """Returns the hashes that more than one key has."""
        return {value for bucket in self._keys if len(set(bucket)) < len(bucket) for value in _repeated(bucket)}

    def num_duplicates(self) -> int:
        """Returns how many records would go if each picture were kept once."""
        splits = self._contents.values()
        distinct = sum(len({value for split in splits for value in split[bucket]}) for bucket in range(_BUCKETS))
        return self.num_records - distinct

    def num_leaks(self) -> int:
        """Returns how many pictures stand in more than one split."""
        leaks = 0
        for bucket in range(_BUCKETS):
            splits = Counter(value for split in self._contents.values() for value in set(split[bucket]))
            leaks += sum(count > 1 for count in splits.values())
        return leaks


def _spread(values: Iterable[int], buckets: list[array[int]]) -> None:
    for value in values:
        buckets[value % _BUCKETS].append(value)


def _repeated(values: Iterable[int]) -> list[int]:
    return [value for value, count in Counter(values).items() if count > 1]
