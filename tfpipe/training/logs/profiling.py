"""Measurements of a few steps: a trace for TensorBoard, and their memory and time as text.

with profile.step() as watch:
batch = next(batches)
watch("input")             # the time since the last call was waiting for input
loss = float(train_step(batch))
watch("device", 1)         # computing 1 step; the rest of the time is Python's
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tfpipe.common.files import written_atomically
from tfpipe.common.text import exactly, format_bytes

_SKIPPED_STEPS = 3  # at least: the first ones trace the graph and fill caches
_NO_WAIT_SECONDS = 2e-4  # to fetch a value that is already there
# Parts of the time of a step, and what each is.
_PARTS = {
    "input": ("waiting for input", "the next batch was being read and no device had work"),
    "device": ("computing", "from the call of a step until its loss is there, TensorFlow's own work on the processor included"),
    "python": ("Python", "all the rest: log, bar, schedule"),
}


class Watch:
    """Splits the time of one or more steps."""

    def __init__(self) -> None:
        self.num_steps = 1
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self._ahead = 0.0
        self._last = time.perf_counter()

    def __call__(self, part: str, num_steps: int = 1) -> None:
        """Counts the time since the last call as "input", "device", "python", or "ahead".

        "ahead" is reading while the device computes: the device's time if it still computes
        afterwards, else input's.
        """
        now = time.perf_counter()
        elapsed, self._last, self.num_steps = now - self._last, now, num_steps
        if part == "ahead":
            self._ahead = elapsed
            return
        self.seconds["device" if part == "device" and elapsed > _NO_WAIT_SECONDS else "input"] += self._ahead
        self._ahead = 0.0
        self.seconds[part] += elapsed


class Profile:
    """Measures and traces some steps after the first three; then writes a report."""

    def __init__(self, trace_folder: Path, report: Path, num_steps: int) -> None:
        self._trace_folder, self._report, self._num_steps = trace_folder, report, num_steps
        self._num_skipped = 0
        self._watches: list[Watch] = []
        self._running = False
        self._peak_before = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[Watch]:
        """Measures the steps in its block; yields the watch that splits their time."""
        watch = Watch()
        if self._num_skipped < _SKIPPED_STEPS or self._num_measured >= self._num_steps:
            yield watch
            self._num_skipped += watch.num_steps
            return
        import tensorflow as tf

        if not self._running:
            self._running, self._peak_before = True, peak_memory_bytes()
            tf.profiler.experimental.start(str(self._trace_folder))
        with tf.profiler.experimental.Trace("step", step_num=self._num_skipped + self._num_measured, _r=1):
            watch = Watch()
            yield watch
            watch("python", watch.num_steps)
        self._watches.append(watch)
        if self._num_measured >= self._num_steps:
            self.close()

    @property
    def _num_measured(self) -> int:
        return sum(watch.num_steps for watch in self._watches)

    def close(self) -> None:
        """Ends a running trace; a second call does nothing."""
        if not self._running:
            return
        import tensorflow as tf

        self._running, self._num_steps = False, self._num_measured
        tf.profiler.experimental.stop()
        if self._watches:
            with written_atomically(self._report) as file:
                file.write(self._text().encode())

    def _text(self) -> str:
        import tensorflow as tf

        times = sorted(1000 * sum(watch.seconds.values()) / watch.num_steps for watch in self._watches)
        sums = {part: sum(watch.seconds[part] for watch in self._watches) for part in _PARTS}
        shares = {part: 100 * seconds / sum(sums.values()) for part, seconds in sums.items()}
        calls = f" in {exactly(len(times), 'call')}" if len(times) < self._num_measured else ""
        peak = peak_memory_bytes()
        gpus = [f"GPU:{index}" for index in range(len(tf.config.list_physical_devices("GPU")))]
        gpu_peaks = {name: format_bytes(tf.config.experimental.get_memory_info(name)["peak"]) for name in gpus}
        lines = [
            f"measured steps: {self._num_measured}{calls}, after {self._num_skipped} that were skipped",
            f"milliseconds per step, traced: median {statistics.median(times):.2f}, least {times[0]:.2f}, most {times[-1]:.2f}",
            *(f"{name}: {shares[part]:.1f} % of the time ({how})" for part, (name, how) in _PARTS.items()),
            f"peak memory of the process: {format_bytes(peak)}, {format_bytes(peak - self._peak_before)} of it in these steps",
            *(f"peak memory of {name}: {size}" for name, size in gpu_peaks.items()),
            f"trace: tensorboard --logdir={self._trace_folder.name}, page Profile (needs tensorboard-plugin-profile)",
        ]
        return "\n".join(lines) + "\n"


def peak_memory_bytes() -> int:
    """Returns the largest memory of this process in RAM so far."""
    # Not Linux' getrusage, which counts the memory that the parent had when it started this
    # process.
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, others in kibibytes
