"""The steps of a phase as compiled functions: one at a time, or many on features.

    steps = Steps(phase, strategy, num_workers=1)
    loss, correct = steps.take(batch, rows=32, rate=1e-3, decay=0.0)          # float32 []
    losses, corrects = steps.take_block(block, rates, decays)                 # float32 [steps], the same bits

A step that is computed in parts has the gradient of the whole batch, and needs memory for one part
at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfpipe.common.errors import DataError
from tfpipe.common.text import exactly
from tfpipe.networks.objectives import Objective
from tfpipe.training.batches import Batch, Batches, Block, FeatureBatches
from tfpipe.training.schedules import EarlyStopping, LearningRate

Array = np.ndarray[Any, Any]

_SEED_STRIDE = 1_000_003  # between the seeds of two replicas


@dataclass(frozen=True)
class RateGroup:
    """Variables with an optimiser of their own, at `multiplier` times the learning rate."""

    optimizer: keras.optimizers.Optimizer
    variables: Sequence[keras.Variable]
    multiplier: float


@dataclass
class Phase:
    """One stretch of training: a network, its trained variables, its data, and its length."""

    name: str  # in logs and files
    network: keras.Sequential  # batch inputs -> logits float32 [B, C]
    groups: Sequence[RateGroup]
    batches: Batches
    epochs: int  # at most; `stopping` may end before
    schedule: LearningRate
    stopping: EarlyStopping
    label_smoothing: float
    class_weights: Array | None  # float [C], in the loss
    objective: Objective
    ema: float  # decay of the moving average of the weights, used by validation and the result; 0: none
    continues: bool  # the weights are those of a phase before, and stay if no epoch makes them better
    tf32: bool  # float32 is multiplied in TF32, where the device can
    accumulate: int  # parts that the batch of a step is computed in, on each replica
    fits: bool  # compute a batch that does not fit into memory in more parts

    @property
    def trained(self) -> list[keras.Variable]:
        """All trained variables."""
        return [variable for group in self.groups for variable in group.variables]


class Steps:
    """The computations of a phase, and the variables that they change.

    Attributes:
        result: the trained variables, and BatchNorm's statistics, which belong to these weights.
        averages: their moving averages; none without `ema`.
        num_workers: processes that train together.
        parts: current parts of each batch.
    """

    def __init__(self, phase: Phase, strategy: tf.distribute.Strategy, num_workers: int) -> None:
        self._phase, self._strategy = phase, strategy
        with strategy.scope():
            for group in phase.groups:
                group.optimizer.build(group.variables)
        known = {id(variable) for variable in phase.trained}
        known |= {id(variable) for layer in phase.network.layers if layer.name == "frozen" for variable in layer.variables}
        # Seeds of dropout and statistics of BatchNorm change while training, too.
        self._others = [variable for variable in phase.network.variables if id(variable) not in known]
        self._statistics = [value for value in self._others if keras.backend.is_float_dtype(value.dtype)]
        self._seeds = [value for value in self._others if value.name == "seed_generator_state"]
        self.result = [*phase.trained, *self._statistics]
        self.averages = [tf.Variable(variable.numpy()) for variable in self.result] if phase.ema else []
        self.num_workers = num_workers
        self._replicas = int(strategy.num_replicas_in_sync) // num_workers
        self.divide(phase.accumulate)

    def divide(self, parts: int) -> None:
        """Computes each step from now on in so many parts."""
        self.parts = parts
        for name in ("_take", "_take_block", "validate_block"):
            self.__dict__.pop(name, None)

    @property
    def part_size(self) -> int:
        """Rows that are computed at once, on each replica."""
        return math.ceil(self._phase.batches.batch_size / self._replicas / self.parts)

    @property
    def validation_size(self) -> int:
        """Rows that are validated at once, on one device."""
        return math.ceil(self._phase.batches.batch_size / self.parts)

    @property
    def in_blocks(self) -> FeatureBatches | None:
        """The phase's batches, if many steps on them can be taken in one call."""
        batches, alone = self._phase.batches, self._strategy.num_replicas_in_sync == 1
        return batches if alone and isinstance(batches, FeatureBatches) else None

    # ---- training

    def take(self, batch: Batch, rows: int, rate: float, decay: float, requests: Sequence[float] = ()) -> tuple[Any, ...]:
        """Takes one step on this worker's batch; `rows` counts the images of all workers.

        Returns (sum of the losses, number of right answers) of the batch of all workers, and the
        sum of each request over all replicas, float32 [].
        """
        numbers = (tf.constant(value, tf.float32) for value in (rows, self._rates(rate), decay))
        found: tuple[Any, ...] = self._take(*self._distribute(batch), *numbers, [tf.constant(request) for request in requests])
        return found

    @cached_property
    def _take(self) -> Any:
        if self._strategy.num_replicas_in_sync > 1:  # batches are of one size, and of a type that no specification has
            return tf.function(self._step, autograph=False)
        numbers = [tf.TensorSpec(shape, tf.float32) for shape in ([], [len(self._phase.groups)], [])]
        return tf.function(self._step, input_signature=[*self._phase.batches.spec, *numbers, []], autograph=False)

    def take_block(self, block: Block, rates: Sequence[float], decays: Sequence[float]) -> tuple[Any, Any]:
        """Takes the steps of a block in one call; returns the results, float32 [steps]."""
        numbers = (tf.constant(values, tf.float32) for values in ([self._rates(rate) for rate in rates], decays))
        found: tuple[Any, Any] = self._take_block(*block, *numbers)
        return found

    def _rates(self, rate: float) -> list[float]:
        return [rate * group.multiplier for group in self._phase.groups]

    def _step(
        self, inputs: Any, targets: Any, weights: Any, rows: Any, rates: Any, decay: Any, requests: Sequence[Any] = ()
    ) -> tuple[Any, ...]:
        for group, rate in zip(self._phase.groups, tf.unstack(rates), strict=True):
            group.optimizer.learning_rate.assign(rate)
        found = self._strategy.run(self._replica_step, args=(inputs, targets, weights, rows, requests))
        for average, variable in zip(self.averages, self.result, strict=True) if self.averages else ():
            average.assign_sub((1 - decay) * (average - variable.value))
        return tuple(self._strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None) for value in found)

    def _replica_step(self, inputs: Any, targets: Any, weights: Any, rows: Any, requests: Sequence[Any]) -> tuple[Any, ...]:
        self._shift_seeds(1)
        loss, correct, *gradients = self._gradients_in_parts(inputs, targets, weights, rows)
        self._shift_seeds(-1)
        for group in self._phase.groups:
            size = len(group.variables)
            group.optimizer.apply(gradients[:size], group.variables)
            gradients = gradients[size:]
        if self._statistics and self._strategy.num_replicas_in_sync > 1:
            self._average_statistics(tf.math.count_nonzero(weights, dtype=tf.float32))
        return loss, correct, *requests

    def _shift_seeds(self, sign: int) -> None:
        """Gives dropout other masks on each replica, with 1; and back, with -1."""
        if self._strategy.num_replicas_in_sync > 1:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in self._seeds:  # far apart: the next seed's masks belong to another run
                state.assign_add(tf.cast([sign * number * _SEED_STRIDE, 0], state.dtype))

    def _average_statistics(self, count: Any) -> None:
        """Gives all replicas the mean of their statistics, weighted by their images."""
        sums = [variable.value * count for variable in self._statistics]
        *sums, total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [*sums, count])
        for variable, value in zip(self._statistics, sums, strict=True):
            variable.assign(value / total)

    def _gradients_in_parts(self, inputs: Any, targets: Any, weights: Any, rows: Any) -> Sequence[Any]:
        if self.parts == 1:
            return self._gradients(inputs, targets, weights, rows, 1.0)
        size, part = tf.shape(inputs)[0], self.part_size
        unused: set[int] = set()

        def add(first: Any, sums: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
            rest = slice(first, first + part)
            share = tf.cast(tf.minimum(part, size - first), tf.float32) / tf.cast(size, tf.float32)
            found = self._gradients(inputs[rest], targets[rest], weights[rest], rows, share)
            unused.update(index for index, value in enumerate(found) if value is None)
            pairs = zip(sums, found, strict=True)
            return first + part, [one if other is None else one + tf.convert_to_tensor(other) for one, other in pairs]

        zeros = [tf.zeros([]), tf.zeros([]), *[tf.zeros(variable.shape, variable.dtype) for variable in self._phase.trained]]
        # One part at a time: side by side they would need the memory of the whole batch.
        _, sums = tf.while_loop(lambda first, _: first < size, add, (0, zeros), parallel_iterations=1)
        return [None if index in unused else value for index, value in enumerate(sums)]  # the optimiser skips None

    def _gradients(self, inputs: Any, targets: Any, weights: Any, rows: Any, share: Any) -> list[Any]:
        """Returns the sum of losses, the number of right answers, and gradients of a part."""
        phase = self._phase
        variables = [variable.value for variable in phase.trained]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = phase.network(inputs, training=True)
            losses = phase.objective.losses(logits, targets, phase.label_smoothing, phase.class_weights)
            losses *= weights
            # Gradients are summed over parts and replicas: each has its share of the mean over the
            # global batch.
            penalty = tf.add_n(phase.network.losses) if phase.network.losses else tf.zeros([])
            loss = tf.reduce_sum(losses) / rows + penalty / self._strategy.num_replicas_in_sync * share
        gradients = tape.gradient(loss, variables)
        return [tf.reduce_sum(losses), self._count_correct(logits, targets, weights), *gradients]

    def _distribute(self, batch: Batch) -> tuple[Any, ...]:
        """Returns the batch's parts, one for each replica of this worker."""
        if self._strategy.num_replicas_in_sync == 1:
            return batch
        inputs, targets, weights = (tf.convert_to_tensor(values) for values in batch)
        # In place of blank rows, real images of the batch, still of weight 0: black ones would
        # count in BatchNorm's statistics.
        real = tf.where(weights > 0)[:, 0]
        if len(real):
            places = tf.range(len(weights), dtype=tf.int64)
            inputs = tf.gather(inputs, tf.where(weights > 0, places, tf.gather(real, places % len(real))))

        if self._replicas == 1:
            return inputs, targets, weights

        def part(values: Any) -> Any:
            size = len(values) // self._replicas
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: values[context.replica_id_in_sync_group % self._replicas * size :][:size]
            )

        return part(inputs), part(targets), part(weights)

    # ---- validation

    @cached_property
    def validate(self) -> Any:
        """The function: batch -> (sum of losses, number of right answers, images), float32 []."""
        return tf.function(self._validate, input_signature=self._phase.batches.spec, autograph=False)

    def _validate(self, inputs: Any, targets: Any, weights: Any) -> tuple[Any, Any, Any]:
        logits = self._phase.network(inputs, training=False)
        losses = self._phase.objective.validation_losses(logits, targets, self._phase.class_weights) * weights
        return tf.reduce_sum(losses), self._count_correct(logits, targets, weights), tf.reduce_sum(weights)

    def _count_correct(self, logits: Any, targets: Any, weights: Any) -> Any:
        return tf.reduce_sum(self._phase.objective.right(logits, targets) * tf.sign(weights))

    # ---- many steps in one call

    @cached_property
    def _take_block(self) -> Any:
        def take(features: Any, places: Any, labels: Any, rates: Any, decays: Any) -> tuple[Any, ...]:
            def step(number: Any, batch: Batch) -> tuple[Any, Any]:
                rows = tf.cast(tf.shape(batch[0])[0], tf.float32)
                return self._step(*batch, rows, rates[number], decays[number])

            return self._over_batches(
                step, 2, self._phase.batches.num_rows, self._phase.batches.batch_size, features, places, labels
            )

        return self._compiled(take, [None, len(self._phase.groups)], [None])

    @cached_property
    def validate_block(self) -> Any:
        """The function that computes for each batch of a block what `validate` does for one."""

        def validate(features: Any, places: Any, labels: Any) -> tuple[Any, ...]:
            size = self.validation_size
            num_rows = len(self._phase.batches.val.positions)
            return self._over_batches(lambda _, batch: self._validate(*batch), 3, num_rows, size, features, places, labels)

        return self._compiled(validate)

    def _compiled(self, function: Any, *shapes: Sequence[int | None]) -> Any:
        """Returns the concrete function of a block and more numbers."""
        batches: Any = self.in_blocks
        places = tf.TensorSpec([None], tf.int64)
        signature = [batches.inputs_spec, places, places, *(tf.TensorSpec(shape, tf.float32) for shape in shapes)]
        # Of a tf.function, TensorFlow would warn that it is traced too often: a short phase calls
        # it a few times.
        return tf.function(function, input_signature=signature, autograph=False).get_concrete_function()

    def _over_batches(
        self, function: Any, num_outputs: int, num_of_all: int, size: int, features: Any, places: Any, labels: Any
    ) -> tuple[Any, ...]:
        """Returns the outputs of function(number, batch) for all batches, float32 [batches].

        `num_of_all` counts the rows of all blocks.
        """
        num_rows = tf.shape(places)[0]
        num_full, rest = num_rows // size, num_rows % size

        def found(number: Any, count: Any) -> Any:
            chosen, of_rows = (tf.slice(values, [number * size], [count]) for values in (places, labels))
            targets = self._phase.batches.targets_of(of_rows)
            return function(number, (tf.gather(features, chosen), targets, tf.ones([count])))

        def body(number: Any, *outputs: tf.TensorArray) -> tuple[Any, ...]:
            # Of a size that is known in advance: a third of the time.
            return number + 1, *map(lambda output, value: output.write(number, value), outputs, found(number, size))

        outputs = [tf.TensorArray(tf.float32, num_full) for _ in range(num_outputs)]
        # One after the other, whatever TensorFlow thinks of variables in loops.
        _, *outputs = tf.while_loop(lambda number, *_: number < num_full, body, (0, *outputs), parallel_iterations=1)
        whole = tuple(output.stack() for output in outputs)
        if num_of_all % size == 0 and self._phase.batches.batch_size % size == 0:  # no block has a smaller batch
            return whole

        def with_rest() -> tuple[Any, ...]:
            return tuple(tf.concat([values, [value]], 0) for values, value in zip(whole, found(num_full, rest), strict=True))

        return tuple(tf.cond(rest > 0, with_rest, lambda: whole))

    # ---- variables

    def values(self) -> dict[str, list[Array]]:
        """Returns the value of each variable that a step changes."""
        return {name: [variable.numpy() for variable in group] for name, group in self._variables().items()}

    def restore(self, values: dict[str, list[Array]]) -> None:
        """Assigns the `values` to the variables."""
        for name, variables in self._variables().items():
            assign(variables, values[name])

    def _variables(self) -> dict[str, list[Any]]:
        optimizers = [variable for group in self._phase.groups for variable in group.optimizer.variables]
        return {"trained": self._phase.trained, "others": self._others, "optimizers": optimizers, "averages": self.averages}


def assign(variables: Sequence[Any], values: Sequence[Array]) -> None:
    """Assigns values to variables."""
    if len(variables) != len(values):
        raise DataError(f"the saved state has {exactly(len(values), 'array')} where {len(variables)} are needed")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
