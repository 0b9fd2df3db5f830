"""Where the time of the training pipeline goes: `benchmark.py stages`, in a process of its own.

  stages.py SHARDS CORES IMAGES

A pipeline is opened up to each stage in turn, endless, and drawn from after a warm-up. An iterator
starts a pool of as many threads as there are cores, which do the work of all stages, and then one
for each parallel stage, which hands its work out.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfpipe.common.workers import count_cores
from tfpipe.tools.benchmarks.worker import restrict

BATCH_SIZE, SIDE = 64, 224
_FOREVER = 1 << 40  # rows
_WARM_UP = 20  # elements


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a pipeline up to a stage takes, in microseconds an image.

    Attributes:
        wall: time between two images.
        cpu: of all threads.
        own: of each thread of a stage's own, the busiest first.
    """

    wall: float
    cpu: float
    own: tuple[float, ...]


def measure(data: Any, images_each: int, num_images: int) -> Speed:
    """Draws from a dataset whose elements stand for some images each."""
    known = set(_thread_times())
    iterator = iter(data)
    _draw(iterator, _WARM_UP * BATCH_SIZE // images_each)
    count = -(-num_images // images_each)
    before, wall, cpu = _thread_times(), time.perf_counter(), time.process_time()
    _draw(iterator, count)
    wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, _thread_times()
    scale = 1e6 / (count * images_each)
    threads = sorted(after.keys() - known, key=int)[count_cores() :]  # after the pool's
    own = sorted((after[thread] - before.get(thread, 0.0) for thread in threads), reverse=True)
    return Speed(wall * scale, cpu * scale, tuple(seconds * scale for seconds in own))


def _draw(iterator: Iterator[Any], count: int) -> None:
    for _ in itertools.islice(iterator, count):
        pass


def _thread_times() -> dict[str, float]:
    """Returns the processor seconds of each thread of this process (Linux)."""
    times = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            times[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it has ended
            continue
    return times


def start(data: Any, num_images: int) -> tuple[float, float, float]:
    """Returns seconds to the first batch, and images/s in the first second and after it."""
    begin, times = time.perf_counter(), []
    for _ in data:
        times.append(time.perf_counter() - begin)
        if times[-1] > 1.0 and len(times) * BATCH_SIZE >= num_images:
            break
    early = sum(when <= 1.0 for when in times)
    if early + 1 >= len(times):
        sys.exit("a pass is over within its first second: ask for more --num_images")
    return times[0], early * BATCH_SIZE, (len(times) - early - 1) * BATCH_SIZE / (times[-1] - times[early])


def main(shards: str, cores: str, images: str) -> None:
    """Prints a line per stage, and what follows from them."""
    restrict(int(cores))
    import numpy as np

    from tfpipe.pipeline.loader import Loader
    from tfpipe.pipeline.options import Options

    before = _peak()
    loader = Loader(shards, "train", Options(training=True, batch_size=BATCH_SIZE, image_size=(SIDE, SIDE), repeat=True))
    measure(loader.dataset(), BATCH_SIZE, 1)  # the first one starts the pool
    print(f"{'up to and including':20} {'images/s':>9} {'CPU us':>8} {'own threads, us an image':>26}")
    last = 0.0
    rows = loader.rows
    for name, data in loader.stages(rows.numbered(0, _FOREVER // BATCH_SIZE * BATCH_SIZE)):
        each = rows.read_size if name == "read" and rows.is_read_apart else rows.piece_size
        speed = measure(data, BATCH_SIZE if name in ("join", "complete") else each, int(images))
        own = "  ".join(f"{thread:.1f}" for thread in speed.own[:4])
        print(f"{name:20} {1e6 / speed.wall:9,.0f} {speed.cpu:8.0f} (+{speed.cpu - last:.0f}) {own:>20}", flush=True)
        last = speed.cpu
    busiest, total = max(speed.own, default=0.0), sum(speed.own)
    positions = [np.random.default_rng(seed).integers(0, rows.reader.num_records, 64) for seed in range(50)]
    begin = time.thread_time()
    for some in positions:
        rows.reader.read_batch(some)
    lock = (time.thread_time() - begin) * 1e6 / (64 * len(positions))
    print(f"own threads: {total:.1f} us an image in all; the busiest, {busiest:.1f}, allows for {1e6 / busiest:,.0f} images/s")
    print(f"reading in Python: {lock:.1f} us of CPU a record, copying and CRC included, which leave its lock alone")
    first, early, steady = start(loader.dataset(), 2 * int(images))
    print(
        f"first batch after {first:.3f} s; first second {early:,.0f} images, {early / steady:.2f} of {steady:,.0f}/s after it"
    )
    print(f"peak memory {_peak() / 1024:.0f} MiB, {(_peak() - before) / 1024:.0f} MiB more than after importing TensorFlow")


def _peak() -> int:
    """Returns the highest resident memory of this process so far, in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(*sys.argv[1:])
