"""Memory and disk that a build's planner takes, by the number of rows: few images, each named by many rows."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

_MIB = 1 << 20
_CLASSES = 20
_BUILD = """
import sys, tfpipe
tfpipe.build_tfrecords(sys.argv[1], sys.argv[2], layout="csv", workers=int(sys.argv[3]), progress=False)
"""


def make_table(path: Path, images: list[Path], num_rows: int) -> None:
    """Writes a table of rows with an id, a path and a label, which a build makes into one record each."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("id,path,label\n")
        for row in range(num_rows):
            image_index = row % len(images)
            file.write(f"row {row:09d},{images[image_index]},class {image_index % _CLASSES}\n")


def report(folder: Path, images: list[Path], num_rows: int, workers: int) -> None:
    """Builds from a table, and prints what the planner took."""
    make_table(folder / "rows.csv", images, num_rows)
    start = time.perf_counter()
    command = [sys.executable, "-c", _BUILD, str(folder / "rows.csv"), str(folder / "out"), str(workers)]
    process = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2])
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    most_bytes = 0
    while process.poll() is None:
        most_bytes = max(most_bytes, sum(path.stat().st_size for path in (folder / "out/.build").glob("state.sqlite*")))
        time.sleep(0.2)
    watcher.join()
    seconds = time.perf_counter() - start
    print(f"{num_rows} rows of {len(images)} images packed in {seconds:.1f} s, exit code {process.returncode}")
    print(f"planner: peak {peaks.pop(process.pid) / 1024:.0f} MiB resident; its database {most_bytes / _MIB:.0f} MiB,", end=" ")
    print(f"{most_bytes / num_rows:.0f} bytes a row")
    print("workers: peak " + ", ".join(f"{peak / 1024:.0f}" for peak in peaks.values()) + " MiB resident")


def watch(process: subprocess.Popen[bytes], peaks: dict[int, int]) -> None:
    """Keeps the highest VmHWM, in KiB, of a process and its children until it ends (Linux)."""
    while process.poll() is None:
        for pid in (process.pid, *children(process.pid)):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            high = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
            peaks[pid] = max([peaks.get(pid, 0), *high])
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Returns the process ids of a process's children (Linux)."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
