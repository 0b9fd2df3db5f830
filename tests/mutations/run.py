#!/usr/bin/env python3
"""Breaks each guarantee on purpose, five ways each or more, and shows whether its tests notice.

python tests/mutations/run.py                     # all 64, in a temporary copy of the checkout: an hour or so
python tests/mutations/run.py --only=G1,G9        # those of two guarantees
python tests/mutations/run.py --check             # only whether each replacement still applies: a second
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]
from mutations import MUTATIONS, TESTS, Mutation  # noqa: E402

CHECKOUT = Path(__file__).resolve().parents[2]
COPIED = ("tfpipe", "tools", "tests", "README.md", "pyproject.toml", "setup.cfg")


def find(checkout: Path, mutation: Mutation) -> Path:
    """Returns the one file of the package in which a mutation's text stands, once.

    Raises:
        ValueError: there is none, or more than one place.
    """
    files = sorted((checkout / "tfpipe").rglob("*.py"))
    places = {path: count for path in files if (count := path.read_text("utf-8").count(mutation.old))}
    if list(places.values()) != [1]:
        where = ", ".join(f"{path.relative_to(checkout)} ({count})" for path, count in places.items()) or "nowhere"
        raise ValueError(f"{mutation.guarantee}, {mutation.what}: {mutation.old!r:.80} stands {where}")
    (path,) = places
    compile(path.read_text("utf-8").replace(mutation.old, mutation.new), path, "exec")
    return path


def check(checkout: Path = CHECKOUT) -> list[str]:
    """Returns what is wrong with the list: a mutation that does not apply, or a guarantee with fewer than five."""
    problems = []
    for mutation in MUTATIONS:
        try:
            find(checkout, mutation)
        except (ValueError, SyntaxError) as error:
            problems.append(str(error))
    counts = {name: sum(mutation.guarantee == name for mutation in MUTATIONS) for name in TESTS}
    return problems + [f"{name}: {count} mutations, expected 5 or more" for name, count in counts.items() if count < 5]


def copy(to: Path) -> Path:
    """Copies what the tests need; the environment stays where it is, and finds the copy's package first."""
    for name in COPIED:
        source = CHECKOUT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, to / name, symlinks=True, ignore=ignored) if source.is_dir() else shutil.copy(source, to / name)
    return to


def run(checkout: Path, guarantee: str) -> tuple[bool, str]:
    """Returns whether the tests of a guarantee fail, and pytest's last words."""
    files, names = TESTS[guarantee]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-x", "-q", "-p", "no:cacheprovider", "-k", names, *(f"tests/{file}" for file in files)]
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # no test was run, or pytest itself failed
        raise RuntimeError(f"{guarantee}: pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    lines = done.stdout.strip().splitlines()
    failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return done.returncode == 1, (failed or lines)[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default=",".join(TESTS), help="guarantees, or single mutations of them, as in G1,G9.2 (default: all)"
    )
    parser.add_argument("--check", action="store_true", help="only check that each mutation applies")
    parser.add_argument("--nobaseline", action="store_true", help="take it that the tests pass where nothing is broken")
    given = parser.parse_args()
    if problems := check():
        print("\n".join(problems), file=sys.stderr)
        return 1
    if given.check:
        print(f"{len(MUTATIONS)} mutations apply")
        return 0
    chosen = dict.fromkeys(word.partition(".")[0] for word in given.only.split(","))
    missed = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        checkout = copy(Path(folder))
        for guarantee in chosen:
            caught, last = (False, "") if given.nobaseline else run(checkout, guarantee)
            if caught:
                raise RuntimeError(f"{guarantee}: its tests fail without any mutation: {last}")
            for number, mutation in enumerate((one for one in MUTATIONS if one.guarantee == guarantee), 1):
                if not {guarantee, f"{guarantee}.{number}"} & set(given.only.split(",")):
                    continue
                path, started = find(checkout, mutation), time.monotonic()
                text = path.read_text("utf-8")
                path.write_text(text.replace(mutation.old, mutation.new), "utf-8")
                try:
                    caught, last = run(checkout, guarantee)
                finally:
                    path.write_text(text, "utf-8")
                missed += not caught
                seconds = time.monotonic() - started
                print(
                    f"{guarantee}.{number:<2} {'caught' if caught else 'MISSED'} {seconds:4.0f} s  {mutation.what}: {last}",
                    flush=True,
                )
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
