"""The state of a build, on disk: a killed run continues from it, and memory stays flat.

One SQLite table holds a row per input, filled in three steps: listed (sources), audited (workers),
planned (splits, labels, order). Whatever needs the whole set at once (duplicates, leaks, fractions,
order) is a query.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfpipe.building.inputs.items import Source
from tfpipe.building.tasks import Audited
from tfpipe.common import seeds

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE inputs (
    key TEXT, filename TEXT, given_split TEXT, class_name TEXT, kind TEXT, path TEXT, place INTEGER,
    file_bytes INTEGER, mtime_ns INTEGER, fatal INTEGER DEFAULT 1, row TEXT DEFAULT '',
    sha256 TEXT, crc32c INTEGER, image_bytes INTEGER, format TEXT, height INTEGER, width INTEGER, channels INTEGER,
    orientation INTEGER, color TEXT, reason TEXT, message TEXT,
    split TEXT, label INTEGER, rank BLOB, traits TEXT, group_name TEXT, history TEXT DEFAULT '',
    source_format TEXT, source_sha256 TEXT
);
"""
# The fields of a `Source`, in their order.
_LISTED = (
    "key, filename, given_split, class_name, kind, path, place, file_bytes, mtime_ns, row, reason, message, fatal, group_name"
)
# Columns that builds started by older versions lack.
_LATER = {
    "row": "TEXT DEFAULT ''",
    "traits": "TEXT",
    "group_name": "TEXT",
    "history": "TEXT DEFAULT ''",
    "source_format": "TEXT",
    "source_sha256": "TEXT",
}
# The class that the input gives: `class_name` is the one after decisions, `history` those before.
LISTED_CLASS = (
    "iif(inputs.history = '', inputs.class_name, substr(inputs.history, 1, instr(inputs.history || char(10), char(10)) - 1))"
)
_MAX_SHOWN = 1000  # differences; nobody reads on after these
_MIN_SQLITE = (3, 35)  # UPDATE ... FROM, RETURNING
_COMPARED = ("filename", "given_split", "kind", "place", "file_bytes", "group_name")
_TOUCHED = """
FROM inputs JOIN now USING (key)
WHERE (inputs.path, inputs.mtime_ns) != (now.path, now.mtime_ns) AND inputs.sha256 NOT NULL"""

_FROM_TABLES = "row != '' AND kind != ''"  # rows of tables that are not rejected yet
_SHOWN = 5  # rows of a table in one message

Parameters = Sequence[Any] | Mapping[str, Any]


class State(sqlite3.Connection):
    """The rows of one build, in an SQLite file, created if missing."""

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise OSError(f"this Python has SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed")
        super().__init__(path)
        self.path = path
        # Survives kill -9 of this process at any point; a power cut costs at most the last commits,
        # never order.
        self.execute("PRAGMA synchronous = NORMAL")
        self.execute("PRAGMA temp_store = FILE")
        columns = {name for (name,) in self.execute("SELECT name FROM pragma_table_info('inputs')")}
        if not columns:
            self.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        for name in _LATER.keys() - columns if columns else ():
            self.execute(f"ALTER TABLE inputs ADD COLUMN {name} {_LATER[name]}")

    def value(self, query: str, parameters: Parameters = ()) -> Any:
        """Returns the first column of a query's first row, or None."""
        row = self.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def register(self, name: str, seed: int, purpose: str) -> None:
        """Makes `name(text)` in queries a hash of (seed, purpose, text)."""
        self.create_function(name, 1, lambda text: seeds.digest(seed, purpose, text)[:16], deterministic=True)

    def fact(self, name: str) -> Any:
        """Returns what `note` stored, or None."""
        text = self.value("SELECT value FROM facts WHERE name = ?", (name,))
        return None if text is None else json.loads(text)

    def note(self, name: str, value: Any) -> None:
        """Stores a fact, and commits it together with all that was written before."""
        self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))
        self.commit()

    def has_groups(self) -> bool:
        """True where a listing has groups."""
        return self.value("SELECT 1 FROM inputs WHERE group_name NOT NULL LIMIT 1") is not None

    def set_splits(self, rows: Iterable[tuple[str, str]]) -> None:
        """Sets the split of every image without one, by the hash of its bytes."""
        self.execute("CREATE TABLE IF NOT EXISTS cut (sha256 TEXT PRIMARY KEY, split TEXT)")
        self.execute("DELETE FROM cut")
        self.executemany("INSERT INTO cut VALUES (?, ?)", rows)
        self.execute(
            "UPDATE inputs SET split = cut.split FROM cut WHERE cut.sha256 = inputs.sha256"
            " AND inputs.reason IS NULL AND inputs.split IS NULL"
        )

    def optional_columns(self) -> tuple[str, ...]:
        """Returns which of `catalog.OPTIONAL` a data set has."""
        is_converted = self.value("SELECT 1 FROM inputs WHERE source_sha256 NOT NULL AND reason IS NULL LIMIT 1") is not None
        return ("group",) * self.has_groups() + ("source_sha256",) * is_converted

    def list_inputs(self, items: Iterable[Source]) -> None:
        """Replaces all rows by a listing."""
        self.execute("DELETE FROM inputs")
        self._insert("inputs", items)

    def sort(self) -> None:
        """Numbers the rows of a listing in the order of their keys, on any machine alike."""
        self.executescript(f"""
            BEGIN;
            CREATE TEMP TABLE listed AS SELECT {_LISTED} FROM inputs;
            DELETE FROM inputs;
            INSERT INTO inputs ({_LISTED}) SELECT {_LISTED} FROM listed ORDER BY key, path, row;
            DROP TABLE listed;
            COMMIT;""")

    def digest(self) -> str:
        """Returns the SHA-256 of a listing, in the order of the rows."""
        digest = hashlib.sha256()
        for row in self.execute(f"SELECT {_LISTED} FROM inputs ORDER BY rowid"):
            digest.update(repr(row).encode())
        return digest.hexdigest()

    def _insert(self, table: str, items: Iterable[Source]) -> None:
        places = ", ".join("?" * len(Source._fields))
        self.executemany(f"INSERT INTO {table} ({_LISTED}) VALUES ({places})", items)
        if self.value(f"SELECT 1 FROM {table} WHERE {_FROM_TABLES} LIMIT 1"):
            self._reject_rows(table)

    def _reject_rows(self, table: str) -> None:
        """Rejects rows that repeat a key, or lack a split or label that other rows have.

        Of rows that agree about one file the first stays; of rows that contradict each other none
        can be believed.
        """
        twice = f"SELECT key FROM {table} WHERE kind != '' GROUP BY key HAVING count(*) > 1 AND min(row) != ''"
        columns = "key, rowid, row, class_name, given_split, path, group_name"
        groups: dict[str, list[tuple[Any, ...]]] = {}
        for key, *row in self.execute(
            f"SELECT {columns} FROM {table} WHERE {_FROM_TABLES} AND key IN ({twice}) ORDER BY rowid"
        ):
            groups.setdefault(key, []).append(tuple(row))
        changes = [change for key, rows in groups.items() for change in _repeated(key, rows)]
        reject = f"UPDATE {table} SET kind = '', reason = 'bad_row', path = row"
        self.executemany(f"{reject}, message = ?, key = ? WHERE rowid = ?", changes)

        def reject_where(condition: str, others: str, message: str, split: str | None = None) -> None:
            exists = f"EXISTS (SELECT 1 FROM {table} WHERE {_FROM_TABLES} AND {others})"
            statement = f"{reject}, message = key || ': ' || :message WHERE {_FROM_TABLES} AND {condition} AND {exists}"
            self.execute(statement, {"message": message, "split": split})

        message = "the row names no split, and other rows do: name one"
        reject_where("given_split IS NULL", "given_split NOT NULL", message)
        for (split,) in list(self.execute(f"SELECT DISTINCT given_split FROM {table} WHERE {_FROM_TABLES}")):
            where, same = f"split {split!r}" if split else "the table", "given_split IS :split"
            advice = "fill it in, or give those without a split of their own"
            message = f"others of {where} have a label, this one has none: {advice}"
            reject_where(f"class_name IS NULL AND {same}", f"class_name NOT NULL AND {same}", message, split)

    def pending(self, max_rows: int, max_bytes: int) -> Iterator[list[tuple[int, str, str, int]]]:
        """Yields batches of (row id, kind, path, place) that are not audited yet."""
        after = 0
        query = """
            SELECT rowid, kind, path, place, file_bytes FROM inputs
            WHERE rowid > ? AND sha256 IS NULL AND reason IS NULL ORDER BY rowid LIMIT ?"""
        while rows := self.execute(query, (after, max_rows)).fetchall():
            total = itertools.accumulate(row[4] if row[1] == "file" else 0 for row in rows)
            count = max(1, sum(1 for size in total if size <= max_bytes))
            after = rows[count - 1][0]
            yield [row[:4] for row in rows[:count]]

    def store_audit(self, found: Sequence[tuple[int, Audited]]) -> None:
        """Stores what workers found, by row id."""
        assignments = ", ".join(f"{field} = ?" for field in Audited._fields)
        self.executemany(f"UPDATE inputs SET {assignments} WHERE rowid = ?", [(*audited, row) for row, audited in found])

    def relist(self, items: Iterable[Source]) -> list[str]:
        """Compares a new listing with the rows; returns the first differences in words.

        Files that were only touched or moved do not count as different yet: `touched` yields them,
        their content decides, and `accept` stores their new places.
        """
        self.execute(f"CREATE TEMP TABLE now AS SELECT {_LISTED} FROM inputs WHERE false")
        self._insert("now", items)
        self.execute("CREATE INDEX temp.now_key ON now (key)")
        self.execute("CREATE INDEX IF NOT EXISTS inputs_key ON inputs (key)")
        same = " AND ".join([f"{LISTED_CLASS} IS now.class_name", *(f"inputs.{name} IS now.{name}" for name in _COMPARED)])
        return self.differences(
            removed="SELECT key FROM inputs WHERE key NOT IN (SELECT key FROM now)",
            added="SELECT key FROM now WHERE key NOT IN (SELECT key FROM inputs)",
            changed=f"SELECT key FROM inputs JOIN now USING (key) WHERE NOT ({same})",
        )

    def differences(self, **queries: str) -> list[str]:
        """Returns "WORD: key" for the keys that each word's query selects, up to a limit."""
        return [
            f"{word}: {key}"
            for word, query in queries.items()
            for (key,) in self.execute(f"{query} ORDER BY key LIMIT {_MAX_SHOWN}")
        ]

    def num_touched(self) -> int:
        """Returns the number of images that `touched` yields."""
        return int(self.value(f"SELECT count(*) {_TOUCHED}"))

    def touched(self, max_rows: int) -> Iterator[list[tuple[int, str, str, int]]]:
        """Yields batches, as `pending`, of audited images with another or newer file."""
        cursor = self.execute(f"SELECT inputs.rowid, now.kind, now.path, now.place {_TOUCHED}")
        while batch := cursor.fetchmany(max_rows):
            yield batch

    def accept(self, *, reopen: bool) -> None:
        """Takes over paths and times of modification from the new listing, and commits.

        With `reopen`, unreadable inputs are audited again; not where a plan was made without them.
        """
        self.execute("UPDATE inputs SET path = now.path, mtime_ns = now.mtime_ns FROM now WHERE now.key = inputs.key")
        if reopen:
            self.execute("UPDATE inputs SET reason = NULL, message = NULL WHERE kind != '' AND sha256 IS NULL")
        self.execute("DROP TABLE now")
        self.commit()


def _repeated(key: str, rows: list[tuple[Any, ...]]) -> list[tuple[str, str, int]]:
    """Returns (message, new key, row id) of the rows of one key that must be rejected."""
    meant = {(*row[2:4], os.path.normpath(row[4]), row[5]) for row in rows}
    labels = list(dict.fromkeys(row[2] or "no label" for row in rows))
    lines = [os.path.basename(row[1]).rpartition(": line ") for row in rows[:_SHOWN]]
    shown = ", ".join(
        f"line {line} of {name} ({row[2] or 'no label'}{f', {row[3]}' if row[3] else ''})"
        for (name, _, line), row in zip(lines, rows, strict=False)
    )
    shown += f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    if len(meant) == 1:
        what = "are equal: remove all but one"
    elif len(labels) > 1:
        what = f"contradict each other, {' or '.join(labels[:_SHOWN])}: keep the right one"
    elif len({path for *_, path, _ in meant}) > 1:
        what = "name different files: give them ids that differ"
    elif len({group for *_, group in meant}) > 1:
        what = "name different groups: keep the right one"
    else:
        what = "name different splits: keep one"
    message = f"{key}: given more than once, rows that {what}: {shown}"
    wrong = rows[1:] if len(meant) == 1 else rows
    return [(message, os.path.basename(row[1]).replace(": line ", "#line"), row[0]) for row in wrong]
