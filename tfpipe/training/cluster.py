"""Several workers that train together: who they are, their strategy, and what they send each other.

    cluster = find_cluster("a:2222,b:2222", 0)    # None: this process trains alone
    strategy = connect(cluster, print)            # waits for the others
    workers = Workers(strategy)
    workers.gather(b"...")                        # [of worker 0, of worker 1]

All send and receive in the same order: what one of them does, all do. Worker 0 is the chief: it
alone writes the run's folder. Each of the others has a copy of its files in a private folder that
goes with the process, so that it decides as the chief does, whatever it sees of the chief's disk.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tfpipe.common.errors import DataError, lines_of
from tfpipe.common.text import exactly

if TYPE_CHECKING:
    import tensorflow as tf

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")

_TF_CONFIG = "TF_CONFIG"
_SLURM = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000  # below those that Linux gives to outgoing connections
_PIECE_BYTES = 16 << 20
_TYPES: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, TypeError, FileNotFoundError)}


@dataclass(frozen=True)
class Cluster:
    """The addresses of all workers, HOST:PORT, and the index of this one."""

    addresses: tuple[str, ...]
    index: int


def find_cluster(
    workers: str | None, worker: int | None, cluster: str | None, environment: Mapping[str, str]
) -> Cluster | None:
    """Returns the cluster that flags, SLURM's variables or TF_CONFIG name; None for one worker.

    Args:
        workers: addresses as in "a:2222,b:2222"; the first is the chief.
        worker: index of this one.
        cluster: "slurm" to read the variables that srun sets.
        environment: the variables of the process. TF_CONFIG counts if no flag is given.

    Raises:
        ValueError: they contradict each other, or are incomplete.
    """
    if cluster is not None and cluster != "slurm":
        raise ValueError(f"cluster={cluster}: slurm is the only one that must be named; TF_CONFIG is read without")
    if (workers is None) != (worker is None) or (workers and cluster):
        raise ValueError("workers and worker must be given together, and without cluster")
    if workers is not None and worker is not None:
        found, where = Cluster(tuple(word.strip() for word in workers.split(",")), worker), f"workers={workers}"
    elif cluster:
        found, where = _of_slurm(environment), "cluster=slurm"
    elif environment.get(_TF_CONFIG):
        found, where = _of_tf_config(environment[_TF_CONFIG]), _TF_CONFIG
    else:
        return None
    wrong = [address for address in found.addresses if not re.fullmatch(r"[^\s,/]+:\d{1,5}", address)]
    if wrong or len(set(found.addresses)) < len(found.addresses):
        raise ValueError(f"{where}: must be different addresses HOST:PORT (got {', '.join(wrong or found.addresses)})")
    if not 0 <= found.index < len(found.addresses):
        raise ValueError(f"{where}: there is no worker {found.index} of {len(found.addresses)}; the first one is 0")
    return found if len(found.addresses) > 1 else None


def _of_tf_config(text: str) -> Cluster:
    try:
        content = json.loads(text)
        jobs: dict[str, list[str]] = content.get("cluster", {})
        if not jobs:
            return Cluster(("localhost:0",), 0)
        kind, index = content["task"]["type"], int(content["task"]["index"])
        before = len(jobs.get("chief", ())) if kind == "worker" else 0
        if others := {kind, *jobs} - {"chief", "worker"}:
            raise ValueError(f"{_TF_CONFIG}: the tasks of a training are chief and worker (got {', '.join(sorted(others))})")
        return Cluster((*jobs.get("chief", ()), *jobs.get("worker", ())), before + index)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{_TF_CONFIG}: not as TensorFlow defines it ({type(error).__name__}: {error})") from None


def _of_slurm(environment: Mapping[str, str]) -> Cluster:
    if missing := [name for name in _SLURM if name not in environment]:
        raise ValueError(f"cluster=slurm: {', '.join(missing)} not set; start the command with srun, once for each worker")
    job, index, nodes, tasks = (environment[name] for name in _SLURM)
    hosts = [host for part in re.findall(r"(?:[^\[,]|\[[^\]]*\])+", nodes) for host in _expand(part)]
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    if len(hosts) != len(counts):
        raise ValueError(f"cluster=slurm: {_SLURM[2]}={nodes} and {_SLURM[3]}={tasks} are of different numbers of nodes")
    port = _FIRST_PORT + int(job) % _NUM_PORTS
    tasks_of = zip(hosts, counts, strict=True)
    return Cluster(tuple(f"{host}:{port + task}" for host, count in tasks_of for task in range(count)), int(index))


def _expand(nodes: str) -> list[str]:
    """Returns the hosts of one of SLURM's expressions: node[01-03,7] or login1."""
    prefix, bracket, ranges = nodes.partition("[")
    if not bracket:
        return [nodes]
    if not re.fullmatch(r"(\d+(-\d+)?,)*\d+(-\d+)?\]", ranges):
        raise ValueError(f"cluster=slurm: {nodes} in {_SLURM[2]} is not understood; give --workers and --worker")
    found = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ranges):
        found += [f"{prefix}{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return found


def connect(cluster: Cluster, report: Callable[[str], None]) -> Any:
    """Returns the strategy of a cluster, once all of its workers have come.

    Must be called before TensorFlow computes anything.
    """
    import tensorflow as tf

    address, count = cluster.addresses[cluster.index], len(cluster.addresses)
    report(f"worker {cluster.index} of {count} ({address}): waits for the others; the first, {cluster.addresses[0]}, reports")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}), task_type="worker", task_id=cluster.index, rpc_layer="grpc"
    )
    # While TensorFlow waits, no handler of Python's is called; later, TensorFlow's own swallows SIGTERM.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        for name, size in self.gather_json([[str(name), (folder / name).stat().st_size] for name in names])[0]:
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
        """Raises DataError that names the lost worker, if one ends or is not heard of for 10 s."""
        import tensorflow as tf

        lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)
        try:
            yield
        except lost as error:
            if self.count == 1:
                raise
            named = {int(number) for number in re.findall(r"/job:worker\S*/task:(\d+)", error.message)} - {self.index}
            silent = [index for index in range(self.count) if index != self.index and not _listens(self._addresses[index])]
            names = " and ".join(map(self.name, silent or sorted(named))) or exactly(self.count - 1, "other worker")
            reason = error.message.rpartition("aborted by: ")[2].splitlines()[0]
            raise DataError(
                f"{self.name(self.index)}: lost {names} ({reason}); see its output. The run is saved up to the last checkpoint:"
                " start the same command on all workers again"
            ) from None


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True
