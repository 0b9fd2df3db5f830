"""What rows of tables lack or contradict: each such row becomes a rejected input, named with its line like any other."""

from __future__ import annotations

import os
import sqlite3

_SHOWN = 5  # rows in the message of each
_ROWS = "row != '' AND kind != ''"  # of tables, and not rejected yet


def reject_rows(database: sqlite3.Connection, table: str) -> None:
    """Rejects rows that give a key twice, name no split beside rows that do, or have no label beside rows that have one.

    Of rows that say the same of one file, the first stays; of rows that contradict each other none can be believed.

    Args:
        database: the state of a build.
        table: of it, just listed.
    """
    if not database.execute(f"SELECT 1 FROM {table} WHERE {_ROWS} LIMIT 1").fetchone():
        return
    twice = f"SELECT key FROM {table} WHERE kind != '' GROUP BY key HAVING count(*) > 1 AND min(row) != ''"
    groups: dict[str, list[tuple[int, str, str | None, str | None, str]]] = {}
    columns = "key, rowid, row, class_name, given_split, path"
    for key, *row in database.execute(f"SELECT {columns} FROM {table} WHERE {_ROWS} AND key IN ({twice}) ORDER BY rowid"):
        groups.setdefault(key, []).append(tuple(row))
    changes = [change for key, rows in groups.items() for change in _of_one_key(key, rows)]
    update = f"UPDATE {table} SET kind = '', reason = 'bad_row', path = row, message = ?, key = ? WHERE rowid = ?"
    database.executemany(update, changes)
    no_split = "the row names no split, and other rows do: name one"
    _reject(database, table, no_split, "given_split IS NULL", f"SELECT 1 FROM {table} WHERE {_ROWS} AND given_split NOT NULL")
    for (split,) in database.execute(f"SELECT DISTINCT given_split FROM {table} WHERE {_ROWS}").fetchall():
        others = f"SELECT 1 FROM {table} WHERE {_ROWS} AND class_name NOT NULL AND given_split IS :split"
        where = f"split {split!r}" if split else "the table"
        message = f"others of {where} have a label, this one has none: fill it in, or give those without a split of their own"
        _reject(database, table, message, "class_name IS NULL AND given_split IS :split", others, split)


def _reject(
    database: sqlite3.Connection, table: str, message: str, condition: str, others: str, split: str | None = None
) -> None:
    database.execute(
        f"UPDATE {table} SET kind = '', reason = 'bad_row', path = row, message = key || ': ' || :message"
        f" WHERE {_ROWS} AND {condition} AND EXISTS ({others})",
        {"message": message, "split": split},
    )


def _of_one_key(key: str, rows: list[tuple[int, str, str | None, str | None, str]]) -> list[tuple[str, str, int]]:
    """Returns (message, new key, row id) of each row of a key that is to be rejected."""
    says = {(*row[2:4], os.path.normpath(row[4])) for row in rows}
    labels = list(dict.fromkeys(row[2] or "no label" for row in rows))
    shown = [f"{_place(row[1])} ({row[2] or 'no label'}{f', {row[3]}' if row[3] else ''})" for row in rows[:_SHOWN]]
    lines = ", ".join(shown) + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")
    if len(says) == 1:
        what = "say the same: remove all but one"
    elif len(labels) > 1:
        what = f"contradict each other, {' or '.join(labels[:_SHOWN])}: keep the right one"
    elif len({path for *_, path in says}) > 1:
        what = "name different files: give them ids that differ"
    else:
        what = "name different splits: keep one"
    message = f"{key}: given more than once, rows that {what}: {lines}"
    return [
        (message, f"{os.path.basename(place).replace(': line ', '#line')}", rowid)
        for rowid, place, *_ in (rows[1:] if len(says) == 1 else rows)
    ]


def _place(row: str) -> str:
    name, _, line = os.path.basename(row).rpartition(": line ")
    return f"line {line} of {name}"
