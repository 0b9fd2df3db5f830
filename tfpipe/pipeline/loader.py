"""`tfpipe.dataset()`: a split as a `tf.data.Dataset`, each record exactly once, or an error.

    for images, labels in dataset("shards/", "test", batch_size=64, image_size=(224, 224)): ...
    model.fit(dataset("shards/", "train", training=True, batch_size=64, seed=0), epochs=10)

Rows are numbered through all epochs. From a row's number follow its epoch, its record and its
augmentation (see `tfpipe.pipeline.ordering` and `augmentation`), so that a run can begin anywhere
and any thread can make any row.

How a missing record is detected, whatever went wrong with it: rows that fail to be read, parsed or
decoded are dropped with their piece of a step, and the numbers of the remaining rows are compared
with those of the step. The first difference is the culprit: only then is that record read and
decoded again, in Python, for a precise error. The graph alone could not give one: a decoder does
not know which file its bytes came from.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.common import arguments, seeds
from tfpipe.common.text import exactly, plural
from tfpipe.common.workers import count_cores
from tfpipe.images import decoding, sampling
from tfpipe.pipeline.augmentation import Augmentation
from tfpipe.pipeline.elements import Rows
from tfpipe.pipeline.imaging import Imaging, shared
from tfpipe.pipeline.options import Options
from tfpipe.pipeline.ordering import (
    BLOCKS_PER_WINDOW,
    BalancedOrder,
    BlockOrder,
    Order,
    Schedule,
    SelectedOrder,
    ShuffledOrder,
    StoredOrder,
)
from tfpipe.pipeline.reading import Compiled, RecordReader, for_graphs
from tfpipe.records.samples import USUAL, Samples

_log = logging.getLogger("tfpipe")

_FOREVER = 1 << 31  # epochs
_READING = 4  # calls; slow storage serves several at a time
_AHEAD = 32  # images per core that are decoded or wait for it: 16 cores need 8 pieces of 64
_COMPLETING = 4  # calls, at most


@arguments.renamed(directory="data")
def dataset(
    data: str | os.PathLike[str],
    split: str,
    *,
    batch_size: int | None = 32,
    image_size: tuple[int, int] = (224, 224),
    resize: decoding.Resize = "stretch",
    class_names: Sequence[str] | None = None,
    training: bool = False,
    augment: Augmentation | str | None = None,
    seed: int = 0,
    balanced: bool = False,
    read_block: int | None = None,
    repeat: bool = False,
    first_epoch: int = 0,
    first_step: int = 0,
    scaled_decode: bool | None = None,
    as_dict: bool = False,
    shard: tuple[int, int] | None = None,
    equal_steps: bool = False,
    num_parallel_calls: int | None = None,
) -> tf.data.Dataset:
    """Reads a split: once in stored order, or shuffled and augmented anew every epoch.

    Every record comes exactly once, an epoch, or an error is raised. Equal arguments give equal
    elements, bit for bit, for any number of threads. `len()` of the result is the number of steps
    of an epoch; the last batch may be smaller.

    In training every iterator is the next epoch, whoever opens it: `fit` opens one per epoch, and
    `next(iter(data))` is one, too. `first_epoch` and `first_step` define where the first iterator
    begins: from there on, the elements are those of an uninterrupted run.

    Args:
        data: folder of a data set that `build_tfrecords` wrote; also in a store, as
            s3://bucket/pets (extra "remote").
        split: its name.
        batch_size: records per element, or None for single records without a batch axis.
        image_size: (height, width), or the side of a square.
        resize: "stretch", "crop" or "pad", see `resize_image`; of no effect where the augmentation
            crops.
        class_names: only records of these classes, labelled by their place in this list. Default:
            all, as in the manifest.
        training: shuffle and augment.
        augment: an `Augmentation` or the name of a preset ("none", "light", "standard", "strong");
            in training only, default "standard".
        seed: of order and augmentation, 0 or more.
        balanced: every class equally often, see `BalancedOrder`; in training only.
        read_block: records that are read together, for slow storage, see `BlockOrder` for what that
            costs in randomness; in training only. Default: of data in a store, 64 or as many as
            have 4 MiB, unless `balanced`; else none.
        repeat: without end, epoch after epoch; every iterator begins where the first does. In
            training only.
        first_epoch: where to begin, 0 or more; in training only.
        first_step: step of `first_epoch` to begin with, less than `len()`; in training only.
        scaled_decode: large JPEG files are decoded to 1/2, 1/4 or 1/8 of their size where that is
            large enough. Faster; levels differ by 0.6, 0.9 and 1.2 on average in evaluation, by 3
            to 5 in a training crop, whose window moves by up to half a pixel of the smaller image.
            Default: in training only.
        as_dict: elements are dictionaries instead of tuples.
        shard: (index, count): only the part of reader `index` of `count`, 0-based. The parts are
            disjoint and together the split, whatever the number of files. In training, step s of
            all readers is step s of one reader whose batches are `count` times as large; without,
            the parts are contiguous and differ in size by one record at most.
        equal_steps: fill up with blank rows: all batches are full and all readers have the same
            number of steps.
        num_parallel_calls: pieces of a batch, of 64 images or less, that are decoded ahead; a
            thread of each core takes part in each. Default (None or tf.data.AUTOTUNE): what keeps
            all cores busy. Changes nothing but speed.

    Returns:
        Elements (image, label), or (image, label, weight) with `equal_steps`: uint8 [B, height,
        width, 3], RGB, 0..255; int64 [B], -1 in an unlabelled split, or, where the augmentation
        mixes images, float32 [B, C], probabilities; float32 [B], 0 for blank rows and 1 for the
        others, Keras' sample_weight.

        Of several labels an image, labels are float32 [B, C]: 1 where the class is there, 0 where
        it is not, -1 where that is unknown (so are blank rows, and all of an unlabelled split).
        `label >= 0` is the mask of a loss. `class_names` chooses columns, and no records.

        Of numbers, labels are float32 [B, D], NaN in an unlabelled split; blank rows are NaN in a
        dictionary, and 0 in a tuple. `class_names` chooses targets.

        With `as_dict`, {"image", "label", "key", "filename", "mask"} and, in training, "epoch": key
        and filename string [B]; mask bool [B], False for blank rows; epoch int64 [B], the epoch to
        `replay` the image with. Blank rows are zeros with key and filename ""; their label is -1 in
        a dictionary, and 0 in a tuple, where Keras' losses refuse a negative one whatever its
        weight. Keras' `weighted_metrics` are then those of the records; its `loss` is divided by
        the number of rows, blank ones included.

        The attribute `class_names` is a list: the name of label i is at i. `map`, `take` and the
        like return a new dataset without it: TensorFlow copies no attributes.

    Raises:
        ValueError: an argument is wrong.
        FileNotFoundError: there is no data set.
        DataError: on opening, a shard is missing, truncated, longer or one too many, or the manifest, the
            catalog or an index was changed or cannot be read.
        tf.errors.InvalidArgumentError: while iterating, a record differs from the catalog or
            cannot be decoded; the message names shard, offset and source file.

    TensorFlow does not survive a fork of the process: start readers in processes of their own
    before using it.
    """
    given = locals()  # in a function that AutoGraph converts, other names too
    options = {field.name: given[field.name] for field in dataclasses.fields(Options) if field.name in given}
    return Loader(data, split, Options(**options)).dataset()


@arguments.renamed(directory="data")
def describe(data: str | os.PathLike[str], split: str, **options: Any) -> str:
    """Describes what `dataset` does with the same arguments, in one line per stage.

    Raises:
        ValueError, FileNotFoundError, DataError: as `dataset` does on opening.
    """
    return Loader(data, split, Options(**options)).describe()


class Loader:
    """One way to read a split: a `tf.data.Dataset` and its stages.

    Attributes:
        split: its name.
        options: see `Options`.
        class_names: the name of label i is at i.
        rows: the stages' functions.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str, options: Options) -> None:
        """Opens the split and chooses the order; errors as of `dataset`."""
        directory = arguments.path("data", directory)
        reader = RecordReader(directory, split)
        labelled = reader.manifest.split(split).labelled
        self.split, self.options = split, options
        self.class_names, new_labels = _labels(reader.manifest.class_names, options.class_names, labelled)
        targets = None
        if reader.label_rows is not None:
            with tf.init_scope(), tf.device("CPU"):  # of no graph: none holds a copy of it
                targets, new_labels = tf.constant(targets_of(reader.label_rows, new_labels)), None
        mixes = options.augmentation is not None and options.augmentation.mixes
        if mixes and not (labelled and options.batch_size):
            raise ValueError("mixup and cutmix need labels and batches (batch_size is None, or the split has no labels)")
        if options.balanced and not labelled:
            raise ValueError(f"balanced: split {split!r} has no labels")
        if options.balanced and targets is not None:
            advice = ": with several, take class_weights" if reader.targets is None else ", and here each has numbers"
            raise ValueError(f"balanced is for one class an image{advice}")
        labels, selection = reader.labels, options.selection
        if new_labels is not None:
            labels = new_labels[labels]
            if bool((labels < 0).any()):
                kept = np.flatnonzero(labels >= 0)
                selection = kept if selection is None else np.intersect1d(selection, kept)
        block = options.read_block or self._remote_block(reader)
        block = min(block, max(1, len(labels))) if block else None
        order = self._order(labels, selection, block)
        index, count = options.shard or (0, 1)
        # A batch larger than a reader's part would be filled up with blank rows, only to be cut
        # again.
        batch_size, largest = options.batch_size or 1, max(1, -(-order.num_rows // count))
        schedule = Schedule(
            num_rows=order.num_rows,
            batch_size=batch_size if options.equal_steps else min(batch_size, largest),
            shard=(index, count),
            equal_steps=options.equal_steps,
            contiguous=not options.training,
            partners=mixes and count > 1,
            seed=seeds.derive(options.seed, "partners"),
        )
        if options.first_step and options.first_step >= schedule.num_steps:
            steps = exactly(schedule.num_steps, "step")
            raise ValueError(f"first_step must be less than the {steps} of an epoch (got {options.first_step})")
        self._first_row = options.first_epoch * schedule.rows_per_epoch + options.first_step * schedule.rows_per_step
        self._stages: list[Compiled] = []
        per_epoch = schedule.rows_per_epoch or 1
        next_epoch = self._first_row - self._first_row % per_epoch + per_epoch
        self._starts = itertools.chain([self._first_row], itertools.count(next_epoch, per_epoch))
        self._starts_lock = threading.Lock()
        self.rows = Rows(
            reader=reader,
            order=order,
            schedule=schedule,
            imaging=self._imaging(reader),
            new_labels=new_labels,
            targets=targets,
            num_classes=len(self.class_names),
            # What is read in one call must be requested in one call.
            read_size=max(1, min(block * BLOCKS_PER_WINDOW, len(labels))) if block else reader.read_size,
        )

    def _remote_block(self, reader: RecordReader) -> int | None:
        """Returns how many records a shuffled epoch reads together, where each request takes long."""
        if not (reader.is_remote and self.options.training and self.options.shuffle) or self.options.balanced:
            return None
        _log.info("read_block=%d: the data set is in a store, where each request takes long", reader.read_size)
        return reader.read_size

    def _imaging(self, reader: RecordReader) -> Imaging:
        options, traits, smaller = self.options, reader.traits, min(self.options.image_size)
        samples = options.samples or Samples.of(reader.manifest.options)
        return shared(
            image_size=options.image_size,
            resize=options.resize,
            scaled=options.scaled,
            augmentation=options.augmentation,
            seed=options.seed if options.training else 0,
            samples=samples,
            names=options.as_dict,
            label=reader.label_feature,
            png=traits.png,
            turned=traits.turned,
            # An image with a longer side of less than twice the result is never made smaller,
            # whatever the mode.
            reduced=options.scaled and traits.longer >= 2 * smaller,
            large=traits.longer > sampling.MOST_REDUCED * smaller,
            # The audit counts those of 16 bits where there is any PNG.
            rare=traits.png and (samples != USUAL or reader.manifest.properties.get("png16", 1) > 0),
            others=bool(traits.others),
        )

    def _order(self, labels: np.ndarray[Any, Any], selection: np.ndarray[Any, Any] | None, read_block: int | None) -> Order:
        labels = labels if selection is None else labels[selection]
        seed = seeds.derive(self.options.seed, "order")
        order: Order
        if self.options.balanced:
            counts = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
            missing = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
            if missing:
                raise ValueError(f"balanced needs records of every class; there are none of: {', '.join(missing)}")
            order = BalancedOrder(labels, seed)
        elif not self.options.training or not self.options.shuffle:
            order = StoredOrder(len(labels))
        elif read_block:
            order = BlockOrder(len(labels), seed, read_block)
        else:
            order = ShuffledOrder(len(labels), seed)
        if selection is None:
            return order
        with tf.init_scope():  # of no graph, so that every graph and every error can use it
            return SelectedOrder(order, tf.constant(selection, tf.int64))

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]  # nothing to convert; looking takes long
    def dataset(self) -> tf.data.Dataset:
        """Returns the dataset; see the function of that name."""
        schedule = self.rows.schedule
        rows_per_epoch = schedule.rows_per_epoch
        if self.options.repeat:
            data = self._batches(self.rows.numbered(self._first_row, self._first_row + _FOREVER * rows_per_epoch))
            endless = tf.data.INFINITE_CARDINALITY if rows_per_epoch else 0
            data = data.apply(tf.data.experimental.assert_cardinality(endless))
        elif self.options.training and rows_per_epoch:
            next_start = for_graphs(self._next_start)
            # Called when an iterator's first element is requested.
            data = tf.data.Dataset.from_tensors(0).map(
                lambda _: tf.ensure_shape(tf.numpy_function(next_start, [], tf.int64, stateful=True), [])
            )
            data = _counted(
                self._batches(data.flat_map(self.rows.epoch)), schedule.num_steps, whole=self.options.first_step == 0
            )
        else:
            data = self._batches(self.rows.epoch(0) if rows_per_epoch else self.rows.numbered(0, 0))
            data = data.apply(tf.data.experimental.assert_cardinality(schedule.num_steps))
        data = data.prefetch(2)
        if not tf.executing_eagerly():  # in a function or another dataset's: its graph outlives this call, and needs us
            setattr(tf.compat.v1.get_default_graph(), f"_tfpipe_loader_{id(self)}", self)
        data = data.with_options(self._options())
        data.class_names = list(self.class_names)  # an attribute, as of Keras' `image_dataset_from_directory`
        return data

    def _next_start(self) -> np.int64:
        """Returns the first row of a new iterator: the chosen one, then each next epoch's."""
        with self._starts_lock:
            return np.int64(next(self._starts))

    def positions(self, epoch: int) -> np.ndarray[Any, Any]:
        """Returns the position of each row of an epoch, int64 [rows], -1 for blank rows."""
        schedule = self.rows.schedule
        first = epoch * schedule.rows_per_epoch
        rows = tf.range(first, first + schedule.rows_per_epoch, dtype=tf.int64)
        positions: np.ndarray[Any, Any] = self.rows.locate({"row": rows})["position"].numpy()
        return positions

    def describe(self) -> str:
        """Returns one line per stage."""
        rows = self.rows
        reader, schedule = rows.reader, rows.schedule
        index, count = schedule.shard
        labels = "as in the manifest" if rows.new_labels is None else "0 to " + str(rows.num_classes - 1)
        chosen = "" if rows.new_labels is None else f", {schedule.num_rows:,} of them of {', '.join(self.class_names)}"
        height, width = rows.imaging.image_size
        crops = rows.imaging.augmentation is not None and rows.imaging.augmentation.crop > 0
        how = "the crop, bilinear" if crops else f"antialiased bilinear, {rows.imaging.resize}"
        batch = f"of {schedule.batch_size}, {exactly(schedule.num_steps, 'step')} an epoch"
        stages = {
            "read": f"{plural(reader.num_records, 'record')} of {self.split!r}, {rows.read_size} at a"
            f" time, CRC compared{chosen}",
            "order": f"{rows.order}{f', seed {rows.imaging.seed}' if self.options.training else ''}",
            "reader": f"{index} of {count}, {'blank rows for equal steps' if schedule.equal_steps else 'no blank rows'}",
            "decode": f"RGB, upright{', large JPEG files to 1/2, 1/4 or 1/8' if rows.imaging.scaled else ''}",
            "augment": str(rows.imaging.augmentation) if rows.imaging.augmentation else "no",
            "resize": f"to {height} x {width}, {how}",
            "batch": batch if self.options.batch_size else "no",
            "elements": f"{'dictionaries' if self.options.as_dict else 'tuples'} with uint8 images, labels {labels}",
        }
        if self.options.training:
            epochs = "without end" if self.options.repeat else "one per iterator"
            stages["epochs"] = f"from epoch {self.options.first_epoch}, step {self.options.first_step}, {epochs}"
        return "\n".join(f"{name:9} {text}" for name, text in stages.items())

    def _options(self) -> tf.data.Options:
        options = tf.data.Options()
        if self.options.shard is not None:
            # A strategy with several workers would take every n-th record of this reader's part,
            # and lose the others.
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return options

    def _batches(self, numbers: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the elements of rows."""
        return list(self.stages(numbers))[-1][1]

    def stages(self, numbers: tf.data.Dataset) -> Iterator[tuple[str, tf.data.Dataset]]:
        """Yields the name of each stage and the dataset that ends with it.

        Each stage runs in a fixed number of calls: those that tf.data tunes begin small, and an
        epoch is over meanwhile.
        """
        rows, cores = self.rows, count_cores()
        decoding = self.options.num_parallel_calls or max(2, min(2 * cores, _AHEAD * cores // rows.piece_size))
        data = numbers.map(rows.prepare, num_parallel_calls=_READING, deterministic=True)
        data = data.take_while(lambda rows: tf.size(rows["encoded"]) > 0)  # nothing comes when Python is about to exit
        yield "read", data
        if rows.is_read_apart:
            data = data.unbatch().batch(rows.piece_size, drop_remainder=True)
            yield "divide", data
        piece = {name: tf.TensorSpec([rows.piece_size, *one.shape[1:]], one.dtype) for name, one in data.element_spec.items()}
        data = data.map(self._compiled(rows.decode, piece), num_parallel_calls=decoding, deterministic=True)
        data = data.ignore_errors()  # until `check`
        yield "decode", data
        if rows.num_pieces > 1:
            data = data.batch(rows.num_pieces, drop_remainder=True, num_parallel_calls=2, deterministic=True)
            yield "join", data
        data = data.enumerate()
        if not self.options.repeat:
            data = data.take_while(rows.is_before_end)
        data = data.map(self._compiled(rows.check, *data.element_spec), num_parallel_calls=2, deterministic=True)
        data = data.map(_intact)
        complete = self._compiled(lambda step: self._element(rows.complete(step)), data.element_spec)
        data = data.map(complete, num_parallel_calls=min(cores, _COMPLETING), deterministic=True)
        yield "complete", data
        if not self.options.batch_size:
            data = data.unbatch()
            yield "unbatch", data

    def _compiled(self, stage: Callable[..., Any], *specs: Any) -> Compiled:
        """Returns a stage that lives as long as this loader, which graphs keep: see `dataset`."""
        self._stages.append(Compiled(stage, *specs))
        return self._stages[-1]

    def _element(self, row: dict[str, tf.Tensor]) -> Any:
        """Returns the row or batch as the caller wants it."""
        schedule = self.rows.schedule
        if not schedule.equal_steps and self.options.batch_size:
            count = tf.math.count_nonzero(row["mask"])
            row = {name: value[:count] for name, value in row.items()}
        if self.options.as_dict:
            return row
        if not schedule.equal_steps:
            return row["image"], row["label"]
        label = row["label"]
        if self.rows.targets is None:
            label = tf.maximum(label, tf.zeros([], label.dtype))
        elif self.rows.reader.targets is not None:
            label = tf.where(row["mask"][:, tf.newaxis], label, tf.zeros([], label.dtype))
        return row["image"], label, tf.cast(row["mask"], tf.float32)


def _counted(data: tf.data.Dataset, num_steps: int, *, whole: bool) -> tf.data.Dataset:
    """Returns the dataset with its length known; unless `whole`, its first pass may be shorter."""
    if whole:
        return data.apply(tf.data.experimental.assert_cardinality(num_steps))
    # An empty dataset that tf.data takes for an endless one makes the whole endless before `take`
    # gives it its length.
    none = tf.data.Dataset.range(1).filter(lambda _: False)
    empty = tf.nest.map_structure(lambda spec: tf.zeros([side or 0 for side in spec.shape], spec.dtype), data.element_spec)
    return data.concatenate(none.map(lambda _: empty).repeat()).take(num_steps)


def targets_of(rows: np.ndarray[Any, Any], places: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """Returns the targets of each label, float32 [K + 1, C]; the last row, of the label -1, is unknown: -1, or NaN of numbers.

    `places` int64 are the new columns of the classes or numbers, -1 to leave one out.
    """
    columns = np.arange(rows.shape[1])
    if places is not None:
        columns = np.argsort(places, kind="stable")[(places < 0).sum() :]
    table = np.full((len(rows) + 1, len(columns)), np.nan if rows.dtype == np.float32 else -1, np.float32)
    table[:-1] = rows[:, columns]
    return table


def _labels(
    known: Sequence[str], chosen: Sequence[str] | None, labelled: bool
) -> tuple[Sequence[str], np.ndarray[Any, Any] | None]:
    """Returns class names and the new label of each old one: -1 to leave out; None: the same."""
    if chosen is None:
        return known, None
    chosen = arguments.class_places(chosen, known)
    if not labelled:
        raise ValueError("class_names: the split has no labels")
    places = {name: place for place, name in enumerate(chosen)}
    return chosen, np.array([places.get(name, -1) for name in known])


def _intact(rows: dict[str, tf.Tensor], reason: tf.Tensor) -> dict[str, tf.Tensor]:
    # The text of Assert reaches the user whole, of an exception in a call into Python with two
    # tracebacks around it.
    with tf.control_dependencies([tf.debugging.Assert(tf.equal(reason, ""), [reason])]):
        return {name: tf.identity(value) for name, value in rows.items()}
