"""Features of frozen layers: computed once, kept on disk, compared with the layers.

    features = extract(Path("runs/features"), network, preprocessing, split_images, view=None)
    features.rows(np.array([5, 2, 7]))      # [3, h, w, D], in the dtype that the network computed in

A cache is found by its content: the name of its folder is the hash of everything that its numbers
depend on, and nothing in it ever changes. Shards are files that `numpy.load` opens (bfloat16 as
uint16), written one by one, whole or not at all: an extraction that was killed continues after its
last shard. A process that wants features which another one computes waits for it; complete ones are
read without a lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import keras
import ml_dtypes  # noqa: F401  # adds bfloat16 to NumPy
import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.common.files import clear_folder, load_json, open_regular, write_json, written_atomically
from tfpipe.common.locking import NO_LOCKS, locked
from tfpipe.common.progress import ProgressBar
from tfpipe.models.split_images import SplitImages, read
from tfpipe.networks import arithmetic
from tfpipe.networks.submodels import hash_network
from tfpipe.records.samples import Samples

FORMAT_VERSION = 1
FACTS_NAME = "features.json"
_SHARD_BYTES = 64 << 20
_NUM_COMPARED = 16  # images
# Largest relative difference, as root mean squares, of features computed twice in batches of other
# sizes: rounding alone gives 1e-6 in float32 and 5e-3 in bfloat16 (8 bits); dropout of 0.2 or live
# BatchNorm give over 0.1.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}

Array = np.ndarray[Any, Any]
Compute = Callable[[Any], Array]


@dataclass(frozen=True)
class Parts:
    """This process' part of an extraction that several processes share, by default all of it.

    Attributes:
        index: of this process.
        count: of processes.
        agree: calls a function in all of them, and raises in all what it raises in one.
        from_first: returns what process 0 passes, which JSON can hold.
    """

    index: int = 0
    count: int = 1
    agree: Callable[[Callable[[], Any]], Any] = lambda function: function()
    from_first: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Features:
    """The features of one view of a split, by position.

    Attributes:
        folder: of the cache.
        shape: of one image's, (h, w, D).
        dtype: "float32" or "bfloat16".
        rows_per_shard: of all shards but the last.
        crcs: CRC-32 of each shard's numbers.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: str
    rows_per_shard: int
    crcs: Sequence[int]

    def rows(self, positions: Array) -> Array:
        """Returns the features at some positions, [N, h, w, D], in their dtype."""
        shards, places = np.divmod(positions, self.rows_per_shard)
        found = np.empty((len(positions), *self.shape), _stored(self.dtype))
        for shard in np.unique(shards):
            chosen = shards == shard
            found[chosen] = self._shards[shard][places[chosen]]
        return found.view(self.dtype)

    @property
    def num_rows(self) -> int:
        """Images of the split."""
        return sum(map(len, self._shards))

    @cached_property
    def _shards(self) -> list[Array]:
        """The files, mapped into memory, each compared with its CRC once."""
        return [self._open(_shard_path(self.folder, index), crc) for index, crc in enumerate(self.crcs)]

    def _open(self, path: Path, crc: int) -> Array:
        try:
            values = _map(path)
        except Exception as error:  # of a damaged header, NumPy's parser raises anything
            raise DataError(f"cannot be read: {error}; {_remedy(self.folder)}", path=path) from None
        if values.dtype != _stored(self.dtype) or values.shape[1:] != self.shape or zlib.crc32(values.data) != crc:
            raise DataError(f"damaged: its numbers do not match their CRC; {_remedy(self.folder)}", path=path)
        return values


@dataclass(frozen=True)
class JoinedFeatures:
    """The features of splits that are read as one, by position; see `Features`."""

    parts: Sequence[Features | JoinedFeatures]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's features, (h, w, D)."""
        return self.parts[0].shape

    @property
    def dtype(self) -> str:
        """The dtype of all."""
        return self.parts[0].dtype

    @property
    def num_rows(self) -> int:
        """Images of all parts."""
        return sum(part.num_rows for part in self.parts)

    def rows(self, positions: Array) -> Array:
        """Returns the features at some positions, [N, h, w, D]."""
        starts = np.cumsum([0, *(part.num_rows for part in self.parts)])
        parts = np.searchsorted(starts, positions, side="right") - 1
        found = np.empty((len(positions), *self.shape), self.dtype)
        for index in np.unique(parts):
            chosen = parts == index
            found[chosen] = self.parts[index].rows(positions[chosen] - starts[index])
        return found


def extract(
    cache: Path,
    network: keras.Model,
    preprocessing: keras.layers.Layer,
    split_images: SplitImages,
    *,
    view: int | None,
    batch_size: int = 32,
    progress: bool = True,
    parts: Parts = Parts(),
) -> Features | JoinedFeatures:
    """Returns the features of a whole split, from the cache or computed and kept there.

    Args:
        cache: folder of all caches.
        network: frozen; float [B, H, W, C] -> [B, h, w, D]. The dtype of its output is the
            features'.
        preprocessing: the layer before it.
        split_images: its selection and order have no effect.
        view: None for images as in evaluation, else the epoch of training to augment them as.
        batch_size: of the computation.
        progress: show a bar.
        parts: of this process, where several share the work and the folder.

    Raises:
        DataError: a file of the cache is damaged.
        OSError: there is not enough space.
    """
    if len(each := split_images.manifest.parts(split_images.split)) > 1:  # each has its own cache, which runs share
        options: dict[str, Any] = {"view": view, "batch_size": batch_size, "progress": progress, "parts": parts}
        of_parts = (dataclasses.replace(split_images, split=part, selection=None) for part in each)
        return JoinedFeatures([extract(cache, network, preprocessing, part, **options) for part in of_parts])
    facts = describe(network, preprocessing, split_images, view)
    folder = cache / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    row_bytes, num_rows = bytes_per_image(network), split_images.num_records
    rows_per_shard = max(1, _SHARD_BYTES // row_bytes)
    num_shards = -(-num_rows // rows_per_shard)
    paths = [_shard_path(folder, index) for index in range(num_shards)]

    def compute() -> None:
        begin, end = (num_shards * index // parts.count for index in (parts.index, parts.index + 1))
        done = next((index for index in range(begin, end) if not paths[index].exists()), end)
        first, last = (min(index * rows_per_shard, num_rows) for index in (done, end))
        if first == last:
            return
        _check_space(cache, (last - first) * row_bytes)
        title = f"features of {split_images.split}{'' if view is None else f', view {view}'}"
        computed = computation(network, preprocessing, split_images.image_size)
        with ProgressBar(title, last - begin * rows_per_shard, initial=first - begin * rows_per_shard, enabled=progress) as bar:
            waiting: list[Array] = []
            for images, _ in read(split_images.whole(batch_size, first, view, last)):
                waiting.append(computed(images))
                bar.add(len(images), 0)
                while sum(map(len, waiting)) >= min(rows_per_shard, last - done * rows_per_shard) > 0:
                    values = np.concatenate(waiting)
                    _write(paths[done], values[:rows_per_shard], facts["dtype"])
                    waiting, done = [values[rows_per_shard:]], done + 1

    def conclude() -> None:
        _check_shared(paths)
        crcs = [zlib.crc32(_map(path).data) for path in paths]
        content = {"shape": network.output_shape[1:], "dtype": facts["dtype"], "rows_per_shard": rows_per_shard, "crcs": crcs}
        write_json(folder / FACTS_NAME, {"of": facts, **content})

    with contextlib.ExitStack() as held:  # only the first process looks for files that another one may be writing
        is_complete = parts.agree(lambda: parts.index == 0 and _is_complete(folder, held))
        if not parts.from_first(is_complete):
            parts.agree(compute)
            parts.agree(conclude if parts.index == 0 else lambda: None)
    if parts.count > 1:
        parts.agree(lambda: _check_shared([folder / FACTS_NAME]))
    found: Features = parts.agree(lambda: _load(folder))
    return found


def _check_shared(paths: Sequence[Path]) -> None:
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(
            f"{missing[0]}: another worker wrote it, not seen from here; cache must be a folder that all see"
        )


def _is_complete(folder: Path, held: contextlib.ExitStack) -> bool:
    """Returns whether there are features; if not, `held` has the lock of the folder."""
    if (folder / FACTS_NAME).exists():
        return True
    try:
        held.enter_context(locked(folder, "run", patience_seconds=math.inf))
    except OSError as error:  # without locks, two at once may get shards that do not match their CRC: reported
        if error.errno not in NO_LOCKS:
            raise
    if (folder / FACTS_NAME).exists():  # of the process that this one waited for
        return True
    clear_folder(folder)
    return False


def describe(
    network: keras.Model, preprocessing: keras.layers.Layer, split_images: SplitImages, view: int | None
) -> Mapping[str, Any]:
    """Returns everything that features depend on."""
    device = arithmetic.device()
    augmented: dict[str, Any] = {}
    if view is not None:
        augmented = {"augmentation": dataclasses.asdict(split_images.augmentation), "seed": split_images.seed, "view": view}
    return {
        "format_version": FORMAT_VERSION,
        "tensorflow": tf.__version__,
        "data": split_images.manifest.root_hash,
        "split": split_images.split,
        "network": hash_network(network),
        "preprocessing": getattr(preprocessing, "mode", preprocessing.name),
        "image_size": list(split_images.image_size),
        "resize": split_images.resize,
        **Samples.of(split_images.manifest.options).options(),
        "dtype": network.outputs[0].dtype,
        **({} if device == "CPU" else {"device": device}),  # without: caches of CPUs stay, those of GPUs were in TF32
        **augmented,
    }


def bytes_per_image(network: keras.Model) -> int:
    """Returns the size of one image's features on disk."""
    return int(np.prod(network.output_shape[1:])) * _stored(network.outputs[0].dtype).itemsize


def computation(network: keras.Model, preprocessing: keras.layers.Layer, image_size: tuple[int, int]) -> Compute:
    """Returns the function from uint8 images [B, H, W, 3] to features, in inference mode."""
    signature = [tf.TensorSpec([None, *image_size, 3], tf.uint8)]
    function = tf.function(
        lambda images: network(preprocessing(images), training=False), input_signature=signature, autograph=False
    )
    return in_parts(arithmetic.exact()(lambda images: function(images).numpy()))


def in_parts(compute: Compute) -> Compute:
    """Returns a function that computes the same in parts if a batch does not fit into memory.

    Args:
        compute: batch -> a row for each of its rows, which depends on that row alone.
    """
    largest = sys.maxsize

    def computed(batch: Any) -> Array:
        nonlocal largest
        while True:
            size = min(len(batch), largest)
            try:
                with arithmetic.within_memory(size):
                    return np.concatenate([compute(batch[first : first + size]) for first in range(0, len(batch), size)])
            except MemoryError:
                if size == 1:
                    raise
                largest = math.ceil(size / 2)

    return computed


def sample(split_images: SplitImages, view: int | None) -> tf.Tensor:
    """Returns the first images of a split, uint8 [B, H, W, 3], as `extract` reads them."""
    count = min(_NUM_COMPARED, split_images.num_records)
    # One by one: an iterator of batches takes four times as long until the first one comes.
    rows = (split_images.evaluation(count) if view is None else split_images.training(count)).rows
    return tf.constant(np.stack([rows.make(position, view or 0) for position in range(count)]))


def check_frozen(expected: Array, images: tf.Tensor, in_training: Callable[[tf.Tensor], tf.Tensor]) -> float:
    """Compares features with those in training; returns the relative difference.

    Args:
        expected: features of the images, [B, h, w, D], in the dtype that they were computed in.
        images: uint8 [B, H, W, 3].
        in_training: images -> features, as a training step computes them.

    Raises:
        DataError: they differ by more than rounding: a layer is not frozen, or images are prepared
            in another way. Training on the features would then be another training.
    """
    reference = expected.astype(np.float32)
    with arithmetic.exact():
        found = in_parts(lambda part: in_training(part).numpy().astype(np.float32))(images)
    if found.shape != reference.shape:
        difference = float("inf")
    elif not reference.any():
        raise DataError("all features are zero: nothing can be learned from them, nor can it be seen whether they are frozen")
    else:
        difference = float(np.sqrt(np.mean(np.square(found - reference)))) / float(np.sqrt(np.mean(np.square(reference))))
    allowed = TOLERANCES[expected.dtype.name]
    if not difference <= allowed:  # NaN is no match either
        raise DataError(
            f"frozen layers give other features in training than in inference: {difference:.2g} of their size apart,"
            f" {allowed:.2g} allowed. Dropout or BatchNorm is on in a frozen layer, or preprocessing differs"
        )
    return difference


class _Facts(TypedDict):
    shape: list[int]
    dtype: Literal["float32", "float16", "bfloat16"]
    rows_per_shard: int
    crcs: list[int]


def _load(folder: Path) -> Features:
    path = folder / FACTS_NAME
    try:
        facts = load_json(path, _Facts)
    except DataError as error:
        why = error.message.removeprefix("cannot be understood: ")
        raise DataError(f"cannot be understood ({why}); {_remedy(folder)}", path=path) from None
    return Features(folder, tuple(facts["shape"]), facts["dtype"], facts["rows_per_shard"], tuple(facts["crcs"]))


def _remedy(folder: Path) -> str:
    return f"delete {folder}, and it is computed again"


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"features-{index:05d}.npy"


def _write(path: Path, values: Array, dtype: str) -> None:
    with written_atomically(path) as file:
        np.save(file, np.ascontiguousarray(values).view(_stored(dtype)))


def _map(path: Path) -> Array:
    open_regular(path).close()  # NumPy would wait for a pipe
    values: Array = np.load(path, mmap_mode="r")
    return values


def _stored(dtype: str) -> np.dtype[Any]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def _check_space(cache: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(cache).free
    if needed_bytes > free:
        raise OSError(f"{cache}: {needed_bytes / 1e9:.1f} GB of features do not fit into the {free / 1e9:.1f} GB that are free")
