"""What several workers that train together send each other.

    workers = Workers(strategy)
    workers.gather(b"...")      # [of worker 0, of worker 1]

All send and receive in the same order: what one of them does, all do. Worker 0 is the chief: it
alone writes the run's folder. Each of the others has a copy of its files in a private folder that
goes with the process, so that it decides as the chief does, whatever it sees of the chief's disk.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tfpipe.common.errors import lines_of
from tfpipe.common.text import exactly
from tfpipe.training.preflight import listens

if TYPE_CHECKING:
    import tensorflow as tf

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

_PIECE_BYTES = 16 << 20
_TYPES: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, TypeError, FileNotFoundError)}


class Workers:
    """The processes of a strategy: one, or those of MultiWorkerMirroredStrategy.

    Attributes:
        count: how many there are.
        index: of this one.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        resolver = strategy.cluster_resolver
        jobs: dict[str, list[str]] = resolver.cluster_spec().as_dict() if resolver is not None else {}
        self._addresses = [*jobs.get("chief", ()), *jobs.get("worker", ())]
        self.count = max(1, len(self._addresses))
        self.index = 0
        if resolver is not None and self.count > 1:
            self.index = resolver.task_id + (len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0)

    @property
    def is_chief(self) -> bool:
        """Whether this one writes the run's folder."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Returns a worker's index and address."""
        return f"worker {index} ({self._addresses[index]})"

    # ---- messages

    def gather(self, data: bytes) -> list[bytes]:
        """Returns the bytes that each worker passes, by worker; waits until all have."""
        if self.count == 1:
            return [data]
        sizes = self._gather(np.array([len(data)])).numpy()
        every = self._gather(np.frombuffer(data + bytes(-len(data) % 8), np.int64)).numpy().tobytes()
        ends = np.cumsum(sizes + -sizes % 8)
        return [every[end - size - -size % 8 :][:size] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]

    @cached_property
    def _gather(self) -> Any:
        """The function from int64 [N] to those of all workers, one after the other."""
        import tensorflow as tf

        replicas = int(self._strategy.num_replicas_in_sync) // self.count

        def of_replica(values: Any) -> Any:
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group % replicas == 0
            return context.all_gather(values[: tf.where(is_first, tf.shape(values)[0], 0)], axis=0)

        def of_all(values: Any) -> Any:
            return self._strategy.experimental_local_results(self._strategy.run(of_replica, args=(values,)))[0]

        return tf.function(of_all, input_signature=[tf.TensorSpec([None], tf.int64)], autograph=False)

    def gather_json(self, value: Any) -> list[Any]:
        """Returns the values that each worker passes, as JSON holds them."""
        return [json.loads(data) for data in self.gather(json.dumps(value).encode())] if self.count > 1 else [value]

    def from_chief(self, value: Any) -> Any:
        """Returns the value that the chief passes, as JSON holds it."""
        return self.gather_json(value if self.is_chief else None)[0]

    def array_of_chief(self, values: Array) -> Array:
        """Returns the chief's array, of the same shape and dtype."""
        data = self.gather(values.tobytes() if self.is_chief else b"")[0]
        return np.frombuffer(data, values.dtype).reshape(values.shape)

    def agree(self, function: Callable[[], Result]) -> Result:
        """Calls a function on every worker, which must not send; what one raises, all raise."""
        if self.count == 1:
            return function()
        found, error = None, None
        try:
            found = function()
        except Exception as raised:
            error = raised
        texts = self.gather_json(None if error is None else [type(error).__name__, "; ".join(lines_of(error))])
        if error is not None:
            raise error
        for index, text in enumerate(texts):
            if text is not None:
                raise _TYPES.get(text[0], RuntimeError)(f"{self.name(index)}: {text[1]}")
        return found  # type: ignore[return-value]

    def compare(self, facts: Mapping[str, Any], remedy: str) -> None:
        """Raises ValueError on all workers if one has other facts than the chief; names both."""
        if self.count == 1:
            return
        first, *others = self.gather_json(facts)
        for index, other in enumerate(others, 1):
            for name, value in first.items():
                if other.get(name) != value:
                    found = f"{self.name(index)} has {name}={other.get(name)!r}, {self.name(0)} {value!r}"
                    raise ValueError(f"{found}: {remedy}")

    def share(self, folder: Path, names: list[Path]) -> None:
        """Copies files of the chief's folder, by their paths in it, into the folders of the others."""
        if self.count == 1:
            return
        for name, size in self.from_chief([[str(name), (folder / name).stat().st_size] for name in names if self.is_chief]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "rb" if self.is_chief else "wb") as file:
                for _ in range(-(-size // _PIECE_BYTES)):
                    piece = self.gather(file.read(_PIECE_BYTES) if self.is_chief else b"")[0]
                    if not self.is_chief:
                        file.write(piece)

    @contextlib.contextmanager
    def private(self, folder: Path) -> Iterator[Path]:
        """Yields the folder for the chief, and for each other worker a private one."""
        if self.is_chief:
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="tfpipe-worker-") as name:
            yield Path(name)

    # ---- failures

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Raises ConnectionError that names the lost worker, if one ends or is not heard of for 10 s."""
        import tensorflow as tf

        lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)
        try:
            yield
        except lost as error:
            if self.count == 1:
                raise
            named = {int(number) for number in re.findall(r"/job:worker\S*/task:(\d+)", error.message)} - {self.index}
            silent = [index for index in range(self.count) if index != self.index and not listens(self._addresses[index])]
            names = " and ".join(map(self.name, silent or sorted(named))) or exactly(self.count - 1, "other worker")
            reason = re.split(r"\\n|\n", error.message.rpartition("aborted by: ")[2])[0]
            raise ConnectionError(
                f"{self.name(self.index)}: lost {names} ({reason}); see its output. The run is saved up to the last checkpoint:"
                " start the same command on all workers again"
            ) from None
