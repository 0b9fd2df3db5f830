"""A few steps looked at closely: a trace for TensorBoard, and as text their memory, their time, and what it went into.

with profile.step() as watch:
    batch = next(batches)
    watch("input")             # the time since the step began, or since the last call, was waiting for input
    loss = float(train_step(batch))
    watch("device", 1)         # computing 1 step; what is left of the time is Python's
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
# What the time of a step is split into, and how each part is measured.
_PARTS = {
    "input": ("waiting for input", "the next batch was being read and no device had work"),
    "device": ("computing", "from the call of a step until its loss is there, TensorFlow's own work on the processor included"),
    "python": ("Python", "all the rest: log, bar, schedule"),
}


class Watch:
    """Splits the time of a stretch of steps."""

    def __init__(self) -> None:
        self.num_steps = 1
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        self._ahead = 0.0
        self._last = time.perf_counter()

    def __call__(self, part: str, num_steps: int = 1) -> None:
        """Counts the time since the last call as "input", as "device", as "python", or as "ahead".

        "ahead" is reading while the device computes: it is the device's if that is found at work
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
    """Measures and traces some steps, once.

    Args:
        trace_folder: TensorBoard's; the trace goes to plugins/profile in it, for its Profile page.
        report: the text file, written when all steps are done, or at `close` with those there were.
        num_steps: to look at; 0 for none. The first three of a run are passed over.
    """

    def __init__(self, trace_folder: Path, report: Path, num_steps: int) -> None:
        self._trace_folder, self._report, self._num_steps = trace_folder, report, num_steps
        self._num_skipped = 0
        self._watches: list[Watch] = []
        self._running = False
        self._peak_before = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[Watch]:
        """Surrounds a step of training, or several; has what splits its time, and has to have the results at its end."""
        if self._num_skipped < _SKIPPED_STEPS or self._num_measured >= self._num_steps:
            watch = Watch()
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
        """Ends a trace that is under way; a second time does nothing."""
        if not self._running:
            return
        import tensorflow as tf

        self._running, self._num_steps = False, self._num_measured
        tf.profiler.experimental.stop()
        if self._watches:
            with written_atomically(self._report) as file:
                file.write(self._text().encode())

    def _text(self) -> str:
        times = sorted(1000 * sum(watch.seconds.values()) / watch.num_steps for watch in self._watches)
        calls = f" in {exactly(len(times), 'call')}" if len(times) < self._num_measured else ""
        peak = peak_memory_bytes()
        lines = [
            f"steps looked at: {self._num_measured}{calls}, after {self._num_skipped} that were passed over",
            f"milliseconds per step, traced: median {statistics.median(times):.2f}, least {times[0]:.2f}, most {times[-1]:.2f}",
            *self._shares(),
            f"peak memory of the process: {format_bytes(peak)}, {format_bytes(peak - self._peak_before)} of it in these steps",
            *(f"peak memory of {name}: {format_bytes(size)}" for name, size in _gpu_peaks().items()),
            f"trace: tensorboard --logdir={self._trace_folder.name}, page Profile (needs tensorboard-plugin-profile)",
        ]
        return "\n".join(lines) + "\n"

    def _shares(self) -> list[str]:
        """Returns a line for each part of the time."""
        sums = {part: sum(watch.seconds[part] for watch in self._watches) for part in _PARTS}
        total = sum(sums.values())
        return [f"{name}: {100 * sums[part] / total:.1f} % of the time ({how})" for part, (name, how) in _PARTS.items()]


def peak_memory_bytes() -> int:
    """Returns the most memory that this process had in RAM at any time."""
    # Linux' getrusage counts what the parent had when it started this process, too; the file does
    # not.
    status = Path("/proc/self/status")
    lines = status.read_text("utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, others in kibibytes


def _gpu_peaks() -> dict[str, int]:
    import tensorflow as tf

    names = [f"GPU:{index}" for index in range(len(tf.config.list_physical_devices("GPU")))]
    return {name: tf.config.experimental.get_memory_info(name)["peak"] for name in names}
