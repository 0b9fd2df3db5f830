"""The state of a build, on disk: a killed run continues from it, and memory stays flat for any number of pictures.

One SQLite table holds a row per input, filled in three steps: listed (sources), audited (workers), planned (splits, labels,
order). Everything that needs the whole set at once (duplicates, leaks, fractions, order) is a query.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfpipe.building import row_checks
from tfpipe.building.items import Item, Rejection, Source
from tfpipe.building.tasks import Audited
from tfpipe.common import seeds

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE inputs (
    key TEXT, filename TEXT, given_split TEXT, class_name TEXT, kind TEXT, path TEXT, place INTEGER,
    file_bytes INTEGER, mtime_ns INTEGER, fatal INTEGER DEFAULT 1, row TEXT DEFAULT '',
    sha256 TEXT, crc32c INTEGER, image_bytes INTEGER, format TEXT, height INTEGER, width INTEGER, channels INTEGER,
    orientation INTEGER, color TEXT, reason TEXT, message TEXT,
    split TEXT, label INTEGER, rank BLOB, traits TEXT
);
"""
_LISTED = "key, filename, given_split, class_name, kind, path, place, file_bytes, mtime_ns, fatal, reason, message, row"
_MAX_SHOWN = 1000  # differences; nobody reads on after these
_MIN_SQLITE = (3, 35)  # UPDATE ... FROM, RETURNING
_COMPARED = ("filename", "given_split", "class_name", "kind", "place", "file_bytes")
_TOUCHED = """
FROM inputs JOIN now USING (key)
WHERE (inputs.path, inputs.mtime_ns) != (now.path, now.mtime_ns) AND inputs.sha256 NOT NULL"""


class State:
    """The rows of one build, in a file.

    Args:
        path: of the SQLite file; made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise OSError(f"this Python has SQLite {sqlite3.sqlite_version}; 3.35 or newer is needed")
        self.path = path
        self._database = sqlite3.connect(path)
        # Survives kill -9 of this process at any point; a power cut costs at most the last commits, never order.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute("PRAGMA temp_store = FILE")
        if not self.value("SELECT count(*) FROM sqlite_master WHERE name = 'inputs'"):
            self._database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        elif not self.value("SELECT count(*) FROM pragma_table_info('inputs') WHERE name = 'row'"):
            self.write("ALTER TABLE inputs ADD COLUMN row TEXT DEFAULT ''")  # of an unfinished build by an earlier version
        if not self.value("SELECT count(*) FROM pragma_table_info('inputs') WHERE name = 'traits'"):
            self.write("ALTER TABLE inputs ADD COLUMN traits TEXT")  # of a build that an older version began

    def close(self) -> None:
        """Closes the file; what was written since the last `commit` or `note` is forgotten."""
        self._database.close()

    def commit(self) -> None:
        """Makes what was written survive a kill."""
        self._database.commit()

    def rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yields the rows of a query."""
        return self._database.execute(query, parameters)

    def value(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """Returns the first column of a query's first row, or None."""
        row = self._database.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def write(self, statement: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> None:
        """Runs one statement."""
        self._database.execute(statement, parameters)

    def write_many(self, statement: str, parameters: Iterable[Sequence[Any]]) -> None:
        """Runs one statement per item, read lazily."""
        self._database.executemany(statement, parameters)

    def register(self, name: str, seed: int, purpose: str) -> None:
        """Makes `name(text)` in queries a hash of (seed, purpose, text)."""
        self._database.create_function(name, 1, lambda text: seeds.digest(seed, purpose, text)[:16], deterministic=True)

    def fact(self, name: str) -> Any:
        """Returns what `note` stored, or None."""
        text = self.value("SELECT value FROM facts WHERE name = ?", (name,))
        return None if text is None else json.loads(text)

    def note(self, name: str, value: Any) -> None:
        """Stores a fact, and commits it together with all that was written before."""
        self.write("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))
        self.commit()

    def list_inputs(self, items: Iterable[Item]) -> None:
        """Replaces all rows by what the sources list."""
        self.write("DELETE FROM inputs")
        self._insert("inputs", items)

    def _insert(self, table: str, items: Iterable[Item]) -> None:
        columns = _LISTED.count(",") + 1
        self.write_many(f"INSERT INTO {table} ({_LISTED}) VALUES ({', '.join('?' * columns)})", map(_listed, items))
        row_checks.reject_rows(self._database, table)

    def pending(self, max_rows: int, max_bytes: int) -> Iterator[list[tuple[int, str, str, int]]]:
        """Yields batches of (row id, kind, path, place) that are not audited yet."""
        after = 0
        while True:
            query = """
                SELECT rowid, kind, path, place, file_bytes FROM inputs
                WHERE rowid > ? AND sha256 IS NULL AND reason IS NULL ORDER BY rowid LIMIT ?"""
            rows = self._database.execute(query, (after, max_rows)).fetchall()
            if not rows:
                return
            total = itertools.accumulate(row[4] if row[1] == "file" else 0 for row in rows)
            count = max(1, sum(1 for size in total if size <= max_bytes))
            after = rows[count - 1][0]
            yield [row[:4] for row in rows[:count]]

    def store_audit(self, found: Sequence[tuple[int, Audited]]) -> None:
        """Fills in what workers found."""
        assignments = ", ".join(f"{field} = ?" for field in Audited._fields)
        statement = f"UPDATE inputs SET {assignments} WHERE rowid = ?"
        self.write_many(statement, [(*audited, row) for row, audited in found])

    def relist(self, items: Iterable[Item]) -> list[str]:
        """Holds a new listing against the rows; returns the differences in words, the first ones if there are many.

        Files that were only touched or moved are no difference yet: `touched` yields them, their content will tell, and
        `accept` takes over where they lie now.
        """
        self.write(f"CREATE TEMP TABLE now AS SELECT {_LISTED} FROM inputs WHERE false")
        self._insert("now", items)
        self.write("CREATE INDEX temp.now_key ON now (key)")
        self.write("CREATE INDEX IF NOT EXISTS inputs_key ON inputs (key)")
        same = " AND ".join(f"inputs.{column} IS now.{column}" for column in _COMPARED)
        return self.differences(
            removed="SELECT key FROM inputs WHERE key NOT IN (SELECT key FROM now)",
            added="SELECT key FROM now WHERE key NOT IN (SELECT key FROM inputs)",
            changed=f"SELECT key FROM inputs JOIN now USING (key) WHERE NOT ({same})",
        )

    def differences(self, **queries: str) -> list[str]:
        """Returns "WORD: key" for every key that the query of that word selects, the first ones if there are many."""
        return [
            f"{word}: {key}"
            for word, query in queries.items()
            for (key,) in self.rows(f"{query} ORDER BY key LIMIT {_MAX_SHOWN}")
        ]

    def num_touched(self) -> int:
        """Returns how many pictures `touched` yields."""
        return int(self.value(f"SELECT count(*) {_TOUCHED}"))

    def touched(self, max_rows: int) -> Iterator[list[tuple[int, str, str, int]]]:
        """Yields batches, as `pending` does, of audited pictures whose file is another or newer one since `relist`."""
        cursor = self._database.execute(f"SELECT inputs.rowid, now.kind, now.path, now.place {_TOUCHED}")
        while batch := cursor.fetchmany(max_rows):
            yield batch

    def accept(self, *, reopen: bool) -> None:
        """Takes over from the new listing where the inputs lie and when they were modified, and commits.

        Args:
            reopen: let inputs that could not be read be audited again; not where a plan was made without them.
        """
        self.write("UPDATE inputs SET path = now.path, mtime_ns = now.mtime_ns FROM now WHERE now.key = inputs.key")
        if reopen:
            self.write("UPDATE inputs SET reason = NULL, message = NULL WHERE kind != '' AND sha256 IS NULL")
        self.write("DROP TABLE now")
        self.commit()


def _listed(item: Source | Rejection) -> tuple[Any, ...]:
    if isinstance(item, Rejection):
        return (item.key, "", None, None, "", item.path, 0, 0, 0, item.fatal, item.reason, item.message, "")
    return (
        item.key,
        item.filename,
        item.split,
        item.class_name,
        item.kind,
        item.path,
        item.place,
        item.num_bytes,
        item.mtime_ns,
        True,
        None,
        None,
        item.row,
    )
