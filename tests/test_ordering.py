"""Orders are permutations, index by index, new for each epoch and seed; schedules divide them among readers and steps."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfpipe.pipeline.ordering import (
    BLANK,
    BLOCKS_PER_WINDOW,
    BalancedOrder,
    BlockOrder,
    Order,
    Schedule,
    SelectedOrder,
    ShuffledOrder,
    StoredOrder,
)

pytestmark = pytest.mark.tf

SIZES = [1, 2, 3, 5, 7, 8, 31, 97, 256, 257, 1000, 1024, 1025]
BLOCKS = [1, 3, 16, 2000]
ORDERS = {
    "shuffled": ShuffledOrder,
    **{f"block {block}": functools.partial(BlockOrder, block=block) for block in BLOCKS},
    "balanced": lambda num_rows, seed: BalancedOrder(np.arange(num_rows) * 7 % 3, seed),  # 2 or more rows of each class
    "selected": lambda num_rows, seed: SelectedOrder(ShuffledOrder(num_rows, seed), tf.range(num_rows, dtype=tf.int64) * 5 + 2),
}


def epochs_of(order: Order, epochs: range | list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and passes, int64 [epochs, num_rows]."""
    shape = (len(epochs), order.num_rows)
    rows = np.broadcast_to(np.array(epochs)[:, None], shape), np.broadcast_to(np.arange(order.num_rows), shape)
    positions, passes = order.positions(*(tf.constant(part.ravel(), tf.int64) for part in rows))
    return positions.numpy().reshape(shape), passes.numpy().reshape(shape)


def epoch_of(order: Order, epoch: int) -> list[int]:
    return epochs_of(order, [epoch])[0][0].tolist()


@pytest.mark.parametrize("num_rows", SIZES)
@pytest.mark.parametrize("kind", ["shuffled", *(f"block {block}" for block in BLOCKS)])
def test_g6_every_epoch_is_a_permutation(kind: str, num_rows: int):
    positions, passes = epochs_of(ORDERS[kind](num_rows, 3), range(6))
    assert (np.sort(positions) == np.arange(num_rows)).all()
    assert (passes == np.arange(6)[:, None]).all()


def test_the_stored_order_is_none():
    positions, passes = epochs_of(StoredOrder(9), [0, 4])
    assert positions.tolist() == [list(range(9))] * 2
    assert passes.tolist() == [[0] * 9, [4] * 9]


@pytest.mark.parametrize("num_rows", [8, 31, 256, 257])
@pytest.mark.parametrize("kind", ORDERS)
def test_g6_orders_differ_between_epochs_and_seeds_and_in_nothing_else(kind: str, num_rows: int):
    make = ORDERS[kind]
    orders = [epochs_of(make(num_rows, seed), range(6))[0] for seed in (0, 1, 2**62)]
    assert (epochs_of(make(num_rows, 0), range(6))[0] == orders[0]).all()
    assert len({order.tobytes() for epochs in orders for order in epochs}) == 3 * 6  # seed 1, epoch 0 and seed 0, epoch 1, too


@pytest.mark.parametrize("num_rows", [3, 7, 31, 257])
@pytest.mark.parametrize("kind", ORDERS)
def test_g8_index_by_index_is_the_same_as_all_at_once(kind: str, num_rows: int):
    order = ORDERS[kind](num_rows, 0)
    positions, passes = epochs_of(order, [0, 90])
    steps = {order.num_rows // 2, *range(0, order.num_rows, max(1, order.num_rows // 12)), order.num_rows - 1}
    for row, epoch in enumerate((0, 90)):
        for index in steps:
            one = order.positions(tf.constant([epoch], tf.int64), tf.constant([index], tf.int64))
            assert [int(part[0]) for part in one] == [positions[row, index], passes[row, index]]


@settings(max_examples=40)
@given(data=st.data(), kind=st.sampled_from(sorted(ORDERS)), num_rows=st.integers(3, 200))
def test_g8_rows_of_several_epochs_may_stand_side_by_side(data: st.DataObject, kind: str, num_rows: int):
    order = ORDERS[kind](num_rows, 1)
    places = st.tuples(st.integers(0, 3), st.integers(0, order.num_rows - 1))
    chosen = np.array(data.draw(st.lists(places, min_size=1, max_size=9)))
    positions, passes = order.positions(*(tf.constant(column, tf.int64) for column in chosen.T))
    whole = epochs_of(order, range(4))
    assert positions.numpy().tolist() == whole[0][tuple(chosen.T)].tolist()
    assert passes.numpy().tolist() == whole[1][tuple(chosen.T)].tolist()


# How random


def bias(first: np.ndarray, second: np.ndarray, expected: float = 0.0) -> float:
    """How many standard deviations the correlation is away from what is expected."""
    return float(abs(np.corrcoef(first.ravel(), second.ravel())[0, 1] - expected) * np.sqrt(first.size))


@pytest.mark.parametrize("num_rows", [8, 31, 256, 1000])
def test_g6_a_shuffled_order_has_no_pattern(num_rows: int):
    count = 400
    orders, _ = epochs_of(ShuffledOrder(num_rows, 12345), range(count))
    indices = np.tile(np.arange(num_rows), (count, 1))
    five = 5 * np.sqrt(count)
    assert abs((orders == indices).sum() - count) < five  # fixed points: one a permutation
    assert abs((np.diff(orders) == 1).sum() - count) < five  # neighbours that stay neighbours: one, nearly
    without = -1 / (num_rows - 1)  # of two places drawn without replacement
    for distance in (1, 2, 4):
        assert bias(orders[:, :-distance], orders[:, distance:], without) < 5
    assert bias(orders[:-1], orders[1:]) < 5  # from epoch to epoch
    assert bias(orders, indices) < 5
    assert bias(orders, epochs_of(ShuffledOrder(num_rows, 12346), range(count))[0]) < 5
    cells = np.histogram2d(indices.ravel(), orders.ravel(), bins=(8, 8))[0]
    wanted = np.outer(cells.sum(1), cells.sum(0)) / cells.sum()
    assert ((cells - wanted) ** 2 / wanted).sum() < 49 + 5 * np.sqrt(2 * 49)


def test_the_measures_of_a_pattern_can_fail():
    stored, _ = epochs_of(StoredOrder(31), range(400))
    assert bias(stored[:, :-1], stored[:, 1:], -1 / 30) > 100
    assert bias(stored[:-1], stored[1:]) > 100


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_g6_every_order_of_few_records_occurs(num_rows: int):
    orders, _ = epochs_of(ShuffledOrder(num_rows, 1), range(900))
    assert len(np.unique(orders, axis=0)) == np.prod(range(1, num_rows + 1))


GOLDEN = {
    "shuffled": [[8, 5, 3, 4, 7, 1, 9, 0, 2, 6], [1, 8, 6, 5, 9, 7, 3, 2, 4, 0]],
    "block 3": [[2, 4, 3, 1, 0, 7, 6, 9, 8, 5], [3, 6, 0, 2, 7, 1, 9, 5, 4, 8]],
    "balanced": [[5, 5, 6, 4, 4, 1, 3, 9, 2, 0, 7, 8], [1, 7, 6, 8, 0, 4, 9, 2, 7, 3, 5, 8]],
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_orders(kind: str):
    # Changing one changes every run: resumed ones would not go on as they began.
    assert epochs_of(ORDERS[kind](10, 42), [0, 1])[0].tolist() == GOLDEN[kind]


# Blocks


def runs(positions: np.ndarray, num_rows: int) -> list[int]:
    """Where runs of neighbours begin, the last record being the neighbour of the first."""
    present = set(positions.tolist())
    return sorted(position for position in present if (position - 1) % num_rows not in present)


@pytest.mark.parametrize("num_rows", [31, 97, 257, 1000, 1024])
@pytest.mark.parametrize("block", [1, 3, 16])
def test_a_window_reads_few_blocks(num_rows: int, block: int):
    window = block * BLOCKS_PER_WINDOW
    for order in epochs_of(BlockOrder(num_rows, 0, block), range(6))[0]:
        for first in range(0, num_rows, window):
            part = order[first : first + window]
            assert len(runs(part, num_rows)) <= -(-len(part) // block)  # blocks that meet are one run


def test_blocks_begin_elsewhere_in_every_epoch():
    num_rows, block = 64 * 16, 16
    begins = []
    for order in epochs_of(BlockOrder(num_rows, 0, block), range(20))[0]:
        found = {begin % block for part in order.reshape(-1, block * BLOCKS_PER_WINDOW) for begin in runs(part, num_rows)}
        assert len(found) == 1  # the same for all blocks of an epoch
        begins.extend(found)
    assert len(set(begins)) > 8


def test_what_no_whole_block_holds_is_others_every_epoch():
    lasts = [frozenset(order[96:].tolist()) for order in epochs_of(BlockOrder(103, 0, 16), range(20))[0]]
    assert len(set(lasts)) > 10


def test_blocks_and_the_records_of_a_window_are_shuffled():
    block = 16
    orders, _ = epochs_of(BlockOrder(1024, 0, block), range(50))
    blocks = orders[:, :: block * BLOCKS_PER_WINDOW] // block
    assert bias(blocks[:, :-1], blocks[:, 1:], -1 / 7) < 5
    assert bias(orders[:-1], orders[1:]) < 5
    within = orders[:, :-1] % block
    assert bias(within, orders[:, 1:] % block) < 5
    same = (orders[:, 1:] - orders[:, :-1] == 1).mean()
    assert same < 2 / (block * BLOCKS_PER_WINDOW)  # neighbours in a window of 128 are so by chance


def test_a_block_as_large_as_the_set_is_a_shuffle():
    orders, _ = epochs_of(BlockOrder(31, 0, 2000), range(400))
    assert bias(orders[:, :-1], orders[:, 1:], -1 / 30) < 5
    assert abs((orders == np.arange(31)).sum() - 400) < 5 * np.sqrt(400)


# Balance

LABELS = {
    "uneven": [0] * 1 + [1] * 17 + [2] * 40 + [3] * 5,
    "even": [0, 1, 2] * 7,
    "one class": [0] * 11,
    "one each": [0, 1, 2, 3, 4],
    "mixed": [2, 0, 0, 1, 2, 2, 2, 0, 2, 2, 2],
}


@pytest.mark.parametrize("name", LABELS)
def test_every_class_comes_equally_often(name: str):
    labels = np.array(LABELS[name])
    order = BalancedOrder(labels, 0)
    num_classes = labels.max() + 1
    assert order.num_rows == num_classes * -(-len(labels) // num_classes)
    for positions in epochs_of(order, range(6))[0]:
        assert set(np.bincount(labels[positions])) == {order.num_rows // num_classes}


@pytest.mark.parametrize("name", LABELS)
def test_the_records_of_a_class_come_equally_often(name: str):
    labels = np.array(LABELS[name])
    positions, _ = epochs_of(BalancedOrder(labels, 0), range(30))
    for stop in range(1, 31):
        counts = np.bincount(positions[:stop].ravel(), minlength=len(labels))
        for label in range(labels.max() + 1):
            assert np.ptp(counts[labels == label]) <= 1


@pytest.mark.parametrize("name", LABELS)
def test_g7_no_record_comes_twice_in_a_pass(name: str):
    positions, passes = epochs_of(BalancedOrder(np.array(LABELS[name]), 0), range(30))
    for record in range(len(LABELS[name])):
        mine = positions == record
        assert sorted(passes[mine]) == list(range(mine.sum()))
        by_epoch = [numbers[numbers_of] for numbers, numbers_of in zip(passes, mine, strict=True)]
        assert (np.diff([number for numbers in by_epoch for number in sorted(numbers)]) == 1).all()  # on from epoch to epoch


def test_passes_and_classes_are_shuffled():
    labels = np.array([0] * 40 + [1] * 40)
    positions, _ = epochs_of(BalancedOrder(labels, 0), range(200))
    assert bias(positions[:, :-1], positions[:, 1:], -1 / 79) < 5
    assert bias(positions[:-1], positions[1:]) < 5


# Some of the records


def test_a_selection_is_a_permutation_of_what_is_selected():
    selection = np.array([2, 3, 5, 7, 11, 13])
    positions, passes = epochs_of(SelectedOrder(ShuffledOrder(6, 0), tf.constant(selection)), range(4))
    assert (np.sort(positions) == selection).all()
    assert (passes == np.arange(4)[:, None]).all()


# Readers and steps


def steps_of(schedule: Schedule, epochs: int = 1, first_row: int = 0) -> np.ndarray:
    """Indices of every step, int64 [steps, rows_per_step], epochs one after the other."""
    if not schedule.num_steps:
        return np.empty((0, schedule.rows_per_step), int)
    rows = tf.range(first_row, epochs * schedule.rows_per_epoch, dtype=tf.int64)
    found, indices = schedule.indices(rows)
    expected = np.arange(first_row, epochs * schedule.rows_per_epoch) // schedule.rows_per_epoch
    assert found.numpy().tolist() == expected.tolist()
    return indices.numpy().reshape(-1, schedule.rows_per_step)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("num_rows", [*range(21), 31, 64, 97])
def test_g5_readers_divide_an_epoch_exactly(num_rows: int, contiguous: bool):
    for count in range(1, 8):
        for batch_size in (1, 2, 3, 8):
            options = {"num_rows": num_rows, "batch_size": batch_size, "contiguous": contiguous}
            schedules = [Schedule(**options, shard=(index, count)) for index in range(count)]
            parts = [steps_of(schedule) for schedule in schedules]
            seen = np.concatenate([part.ravel() for part in parts])
            assert sorted(seen[seen != BLANK]) == list(range(num_rows))
            for schedule, part in zip(schedules, parts, strict=True):
                assert (part[:-1] != BLANK).all()
                assert (part != BLANK).any(axis=1).all()  # no step is all blank
                assert (np.diff(part[-1:] == BLANK) >= 0).all()  # blank rows are the last ones
                assert schedule.has_blanks or (part != BLANK).all()
            sizes = [(part != BLANK).sum() for part in parts]
            assert max(sizes) - min(sizes) <= (1 if contiguous else batch_size)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("num_rows", [*range(21), 31, 64, 97])
def test_g5_equal_steps_are_equal(num_rows: int, contiguous: bool):
    for count in range(1, 8):
        for batch_size in (1, 2, 3, 8):
            options = {"num_rows": num_rows, "batch_size": batch_size, "contiguous": contiguous, "equal_steps": True}
            schedules = [Schedule(**options, shard=(index, count)) for index in range(count)]
            parts = [steps_of(schedule) for schedule in schedules]
            seen = np.concatenate([part.ravel() for part in parts])
            assert sorted(seen[seen != BLANK]) == list(range(num_rows))
            assert {len(part) for part in parts} == {schedule.num_steps for schedule in schedules} == {parts[0].shape[0]}
            assert all((part[:-1] != BLANK).all() for part in parts)
            assert all(schedule.has_blanks or (part != BLANK).all() for schedule, part in zip(schedules, parts, strict=True))
            longest = max((part != BLANK).sum() for part in parts)
            assert len(parts[0]) == -(-longest // batch_size)  # and no more than needed


@pytest.mark.parametrize("num_rows", [1, 7, 20, 31, 64])
@pytest.mark.parametrize("count", range(2, 8))
def test_g5_a_step_of_all_readers_is_a_step_of_one_reader(num_rows: int, count: int):
    for batch_size in (1, 2, 3, 8):
        one = steps_of(Schedule(num_rows, batch_size * count), epochs=2)
        readers = [steps_of(Schedule(num_rows, batch_size, (i, count), equal_steps=True), epochs=2) for i in range(count)]
        for step, batch in enumerate(one):
            together = np.concatenate([reader[step] for reader in readers])
            assert together[together != BLANK].tolist() == batch[batch != BLANK].tolist()  # in order


def test_without_training_readers_have_contiguous_parts():
    parts = [steps_of(Schedule(20, 3, (index, 3), contiguous=True)).ravel() for index in range(3)]
    assert [part[part != BLANK].tolist() for part in parts] == [list(range(6)), list(range(6, 13)), list(range(13, 20))]


@given(
    num_rows=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    shard=st.integers(1, 7).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))),
    equal_steps=st.booleans(),
    partners=st.booleans(),
    data=st.data(),
)
def test_g8_any_step_may_be_the_first(num_rows, batch_size, shard, equal_steps, partners, data):
    schedule = Schedule(num_rows, batch_size, shard, equal_steps=equal_steps, partners=partners, seed=5)
    steps = 3 * schedule.num_steps
    first = data.draw(st.integers(0, steps))
    if not schedule.num_steps or first == steps:
        return
    whole = steps_of(schedule, epochs=3)
    row = first * schedule.rows_per_step
    assert steps_of(schedule, epochs=3, first_row=row).tolist() == whole[first:].tolist()
    assert [int(part) for part in schedule.step(tf.constant(row, tf.int64))] == list(divmod(first, schedule.num_steps))


@pytest.mark.parametrize(("num_rows", "batch_size", "count"), [(64, 8, 2), (31, 4, 2), (31, 3, 5), (7, 4, 3)])
def test_g7_partners_are_a_permutation_of_the_global_batch(num_rows: int, batch_size: int, count: int):
    options = {"num_rows": num_rows, "batch_size": batch_size, "equal_steps": True}
    own = [steps_of(Schedule(**options, shard=(i, count)), 2) for i in range(count)]
    mixed = {
        seed: [steps_of(Schedule(**options, shard=(i, count), partners=True, seed=seed), 2) for i in range(count)]
        for seed in (0, 1)
    }

    for readers in mixed.values():
        for step in range(len(own[0])):
            batches = np.array([reader[step].reshape(2, batch_size) for reader in readers])
            assert (batches[:, 0] == [reader[step] for reader in own]).all()  # with partners or without: the same rows
            assert ((batches[:, 0] == BLANK) == (batches[:, 1] == BLANK)).all()
            assert sorted(batches[:, 0].ravel()) == sorted(batches[:, 1].ravel())
    orders = [np.array([reader[:, batch_size:] for reader in readers]) for readers in mixed.values()]
    assert (orders[0] != orders[1]).any()
    whole = num_rows // (batch_size * count)
    places = {(tuple((np.array([r[s, batch_size:] for r in mixed[0]]) % (batch_size * count)).ravel())) for s in range(whole)}
    assert len(places) == whole  # other partners every step
