"""Training input of a data set behind a slow web server, against the same data set on the local disk.

python -m tfpipe.tools.benchmarks.remote_inputs SHARDS DELAY_MS ROUNDS SCRATCH
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfpipe.tools.benchmarks.contenders import alternate, environment

_BATCH_SIZE, _BLOCK = 64, 64
_FEW, _SINGLE = 1280, 64  # images of a pass that would take minutes


@contextmanager
def server(folder: str, delay_seconds: float) -> Iterator[str]:
    """Serves a folder in another process; yields its URL."""
    command = [sys.executable, "-m", "tfpipe.tools.benchmarks.range_server", folder, str(delay_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip() if process.stdout else ''}"
        finally:
            process.kill()


def measure(place: str, cache_bytes: str, read_block: int, num_images: int) -> tuple[float, float]:
    """Returns the seconds of an image, by the clock and of processors; read_block 0: one request at a time."""
    import numpy as np

    import tfpipe
    from tfpipe.pipeline.reading import RecordReader

    os.environ["TFPIPE_CACHE_BYTES"] = cache_bytes
    total = tfpipe.load_manifest(place).split("train").num_records
    if read_block:
        data: Any = tfpipe.dataset(
            place, "train", training=True, batch_size=_BATCH_SIZE, read_block=read_block, augment="light", seed=0
        ).take(-(-num_images // _BATCH_SIZE))
    else:
        reader = RecordReader(place, "train")
        data = ([reader.read(int(position))] for position in np.random.default_rng(0).integers(0, total, num_images))
    seen, begin, worked = 0, time.perf_counter(), time.process_time()
    for batch in data:
        seen += len(batch[0]) if read_block else 1
    return (time.perf_counter() - begin) / seen, (time.process_time() - worked) / seen


def main(shards: str, delay_ms: str, rounds: str, scratch: str) -> None:
    """Prints the speed of each way to read, and its share of the local one."""
    os.environ["TFPIPE_CACHE"] = str(Path(scratch) / "cache")
    import tfpipe

    total = tfpipe.load_manifest(shards).split("train").num_records
    with server(shards, float(delay_ms) / 1000) as url:
        ways = {
            f"local, read_block={_BLOCK}": (shards, "0", _BLOCK, total),
            f"remote, read_block={_BLOCK}": (url, "0", _BLOCK, total),
            f"remote, warm cache, read_block={_BLOCK}": (url, "1e12", _BLOCK, total),
            "remote, record by record, 32 requests at a time": (url, "0", 1, _FEW),
            "remote, record by record, one request at a time": (url, "0", 0, _SINGLE),
        }
        work: dict[str, list[float]] = {name: [] for name in ways}

        def timed(name: str) -> float:
            seconds, worked = measure(*ways[name])
            work[name].append(worked)
            return seconds

        seconds = alternate({name: name for name in ways}, timed, int(rounds))
    local = seconds[next(iter(ways))]
    for name, times in seconds.items():
        shares = [mine / theirs for mine, theirs in zip(local, times, strict=True)]
        share = f"{statistics.median(shares):.3f} of local ({min(shares):.3f} to {max(shares):.3f})"
        processor = f"{min(work[name]) * 1e6:,.0f} us of processors an image"
        print(f"{name:48} {1 / statistics.median(times):8,.0f} images/s   {share}   {processor}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(*sys.argv[1:])
