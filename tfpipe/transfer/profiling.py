"""A few steps looked at closely: a trace for TensorBoard, and their time and memory as text."""

from __future__ import annotations

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tfpipe.records.files import written_atomically
from tfpipe.records.summary import format_bytes

_SKIPPED_STEPS = 3  # the first ones trace the graph and fill caches


class Profile:
    """Measures and traces some steps, once.

    Args:
        trace_folder: TensorBoard's; the trace goes to plugins/profile in it, for its Profile page.
        report: the text file, written when all steps are done, or at `close` with those there were.
        num_steps: to look at; 0 for none. The first three of a run are passed over.
    """

    def __init__(self, trace_folder: Path, report: Path, num_steps: int) -> None:
        self._trace_folder, self._report, self._num_steps = trace_folder, report, num_steps
        self._num_seen = 0
        self._seconds: list[float] = []
        self._running = False
        self._peak_before = 0

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Surrounds a step of training, which has to have its results at its end: devices compute behind Python's back."""
        self._num_seen += 1
        if self._num_seen <= _SKIPPED_STEPS or len(self._seconds) >= self._num_steps:
            yield
            return
        import tensorflow as tf

        if not self._running:
            self._running, self._peak_before = True, peak_memory_bytes()
            tf.profiler.experimental.start(str(self._trace_folder))
        begun = time.perf_counter()
        with tf.profiler.experimental.Trace("step", step_num=self._num_seen, _r=1):
            yield
        self._seconds.append(time.perf_counter() - begun)
        if len(self._seconds) == self._num_steps:
            self.close()

    def close(self) -> None:
        """Ends a trace that is under way; a second time does nothing."""
        if not self._running:
            return
        import tensorflow as tf

        self._running, self._num_steps = False, len(self._seconds)
        tf.profiler.experimental.stop()
        if self._seconds:
            with written_atomically(self._report) as file:
                file.write(self._text().encode())

    def _text(self) -> str:
        times = sorted(1000 * seconds for seconds in self._seconds)
        peak = peak_memory_bytes()
        lines = [
            f"steps looked at: {len(times)}, after {_SKIPPED_STEPS} that were passed over",
            f"milliseconds per step: median {statistics.median(times):.1f}, least {times[0]:.1f}, most {times[-1]:.1f}",
            f"peak memory of the process: {format_bytes(peak)}, {format_bytes(peak - self._peak_before)} of it in these steps",
            *(f"peak memory of {name}: {format_bytes(size)}" for name, size in _gpu_peaks().items()),
            f"trace: tensorboard --logdir={self._trace_folder.name}, page Profile (needs tensorboard-plugin-profile)",
        ]
        return "\n".join(lines) + "\n"


def peak_memory_bytes() -> int:
    """Returns the most memory that this process had in RAM at any time."""
    # Linux' getrusage counts what the parent had when it started this process, too; the file does not.
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
