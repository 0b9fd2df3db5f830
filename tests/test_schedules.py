"""Schedules, early stopping and the range test: bounds, continuity, and the same tail from every state."""

import itertools
import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpipe.training.schedules import EarlyStopping, LearningRate, RangeTest, smooth

NAN = math.nan
RATES = st.floats(1e-8, 10.0)
VALUES = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, NAN, math.inf, -math.inf])  # few, so that there are ties


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


def cosine(peak, total, warmup, **options):
    return LearningRate("cosine", peak, warmup, total, **options)


def plateau(peak, **options):
    return LearningRate("plateau", peak, **options)


# cosine


@given(peak=RATES, steps=st.tuples(st.integers(0, 50), st.integers(0, 500)))
def test_cosine_stays_within_its_bounds_and_rises_once(peak, steps):
    warmup, total = steps[0], sum(steps)
    schedule = cosine(peak, total, warmup)
    rates = [schedule.rate(step) for step in range(total + 5)]
    assert all(0.0 < rate <= peak * (1 + 1e-12) for rate in rates[: total or 1])
    assert all(rate >= 0.0 for rate in rates[warmup:])
    assert all(a < b for a, b in itertools.pairwise(rates[: warmup + 1]) if total > warmup)
    assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
    assert rates[total + 1 :] == pytest.approx([0.0] * 4)


@given(peak=RATES, warmup=st.integers(0, 400))
def test_cosine_has_no_jump_at_the_end_of_the_warm_up(peak, warmup):
    schedule = cosine(peak, 1000, warmup)
    assert schedule.rate(warmup) == peak
    rates = [schedule.rate(step) for step in range(1001)]
    steepest = max(1 / (warmup + 1) if warmup else 0.0, math.pi / 2 / (1000 - warmup))
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= peak * steepest * (1 + 1e-9)


def test_cosine_is_half_way_down_in_the_middle():
    assert cosine(2.0, 110, 10).rate(60) == pytest.approx(1.0)
    assert cosine(1.0, 110, 10).rate(4) == pytest.approx(5 / 11)


def test_cosine_ignores_validation():
    schedule = cosine(1.0, 100, 10)
    before = [schedule.rate(step) for step in range(100)]
    schedule.observe(NAN)
    schedule.restore(through_json(schedule.state()))
    assert [schedule.rate(step) for step in range(100)] == before


@given(first=st.integers(0, 300), warmup=st.integers(0, 50))
def test_a_cosine_that_begins_anew_is_one_that_begins(first, warmup):
    anew, schedule = cosine(0.1, first + 100, warmup, first_step=first), cosine(0.1, 100, warmup)
    assert [anew.rate(first + step) for step in range(120)] == [schedule.rate(step) for step in range(120)]


# constant


@given(peak=RATES, warmup=st.integers(0, 50))
def test_constant_rises_as_others_do_and_stays(peak, warmup):
    schedule, falling = LearningRate("constant", peak, warmup), cosine(peak, 1000, warmup)
    schedule.observe(NAN)
    schedule.restore(through_json(schedule.state()))
    assert [schedule.rate(step) for step in range(warmup + 1)] == [falling.rate(step) for step in range(warmup + 1)]
    assert {schedule.rate(step) for step in range(warmup, warmup + 100)} == {peak}


# plateau


def test_plateau_falls_when_nothing_improves():
    schedule = plateau(1.0, factor=0.5, patience=2, floor=0.2, warmup_steps=3)
    assert [schedule.rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    rates = []
    for value in (0.5, 0.5, 0.6, 0.6, NAN, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7):
        schedule.observe(value)
        rates.append(schedule.rate(9))
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]


@given(values=st.lists(VALUES, max_size=40), patience=st.integers(1, 4), warmup=st.integers(0, 5))
def test_plateau_never_rises_after_the_warm_up_and_keeps_its_bounds(values, patience, warmup):
    schedule = plateau(0.1, patience=patience, floor=0.001, warmup_steps=warmup)
    rates = [schedule.rate(warmup)]
    for value in values:
        schedule.observe(value)
        rates.append(schedule.rate(warmup))
        assert 0.0 < schedule.rate(0) <= schedule.rate(warmup)
    assert rates[0] == 0.1
    assert all(0.001 <= b <= a for a, b in itertools.pairwise(rates))


# One interface, one promise: going on from any state gives the tail of the whole


def plateau_tail(schedule, values):
    rates = []
    for value in values:
        schedule.observe(value)
        rates += [schedule.rate(step) for step in (0, 2, 7)]
    return rates


@given(values=st.lists(VALUES, min_size=1, max_size=25), cut=st.integers(0, 25))
def test_plateau_goes_on_from_any_state(values, cut):
    def new():
        return plateau(0.37, factor=0.3, patience=2, warmup_steps=5)

    whole, first, second = new(), new(), new()
    plateau_tail(whole, values[:cut])
    plateau_tail(first, values[:cut])
    second.restore(through_json(first.state()))
    assert plateau_tail(second, values[cut:]) == plateau_tail(whole, values[cut:])
    assert second.state() == whole.state()


def test_plateau_without_its_state_goes_on_differently():
    whole, restored, forgetful = (plateau(1.0, patience=2) for _ in range(3))
    plateau_tail(whole, [0.9, 0.5])
    restored.restore(whole.state())
    assert plateau_tail(restored, [0.6]) == plateau_tail(whole, [0.6]) != plateau_tail(forgetful, [0.6])


# EarlyStopping


@given(epochs=st.lists(st.tuples(VALUES, VALUES), max_size=30))
def test_the_best_epoch_is_the_first_of_the_highest_accuracies_with_the_smallest_loss(epochs):
    stopping = EarlyStopping(5)
    improved = [stopping.observe(epoch, *values) for epoch, values in enumerate(epochs)]
    finite = {epoch: values for epoch, values in enumerate(epochs) if all(map(math.isfinite, values))}
    best = max(finite, key=lambda epoch: (finite[epoch][0], -finite[epoch][1], -epoch), default=None)
    assert stopping.best_epoch == best
    assert (stopping.best, stopping.best_loss) == finite.get(best, (None, None))
    assert max((epoch for epoch, better in enumerate(improved) if better), default=None) == best


@given(epochs=st.lists(st.tuples(VALUES, VALUES), max_size=30), patience=st.integers(1, 4))
def test_it_stops_after_patience_epochs_that_were_not_better(epochs, patience):
    stopping, waited = EarlyStopping(patience), 0
    for epoch, values in enumerate(epochs):
        waited = 0 if stopping.observe(epoch, *values) else waited + 1
        assert stopping.should_stop == (waited >= patience)


@pytest.mark.parametrize(
    ("accuracy", "loss", "better"),
    [
        (0.8, 0.5, False),
        (0.8, 0.49, True),
        (0.8, NAN, False),
        (0.9, NAN, False),
        (NAN, 0.1, False),
        (0.81, 9.0, True),
        (0.79, 0.1, False),
        (math.inf, 0.1, False),
    ],
)
def test_ties_and_nan(accuracy, loss, better):
    stopping = EarlyStopping(3)
    assert stopping.observe(0, 0.8, 0.5)
    assert stopping.observe(1, accuracy, loss) is better


@given(epochs=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20), cut=st.integers(0, 20))
def test_early_stopping_goes_on_from_any_state(epochs, cut):
    def tail(stopping):
        seen = [(stopping.observe(n, *values), stopping.should_stop) for n, values in list(enumerate(epochs))[cut:]]
        return seen, stopping.state()

    whole, restored = EarlyStopping(3), EarlyStopping(3)
    for epoch, values in list(enumerate(epochs))[:cut]:
        whole.observe(epoch, *values)
    restored.restore(through_json(whole.state()))
    assert (restored.best, restored.best_loss, restored.best_epoch) == (whole.best, whole.best_loss, whole.best_epoch)
    assert tail(restored) == tail(whole)


def test_early_stopping_without_its_state_goes_on_differently():
    whole, forgetful = EarlyStopping(2), EarlyStopping(2)
    whole.observe(0, 0.9, 0.1)
    assert whole.observe(1, 0.5, 0.1) != forgetful.observe(1, 0.5, 0.1)
    assert whole.state() != forgetful.state()


# RangeTest


def descend(curvature, seed, num_steps=100, noise=0.1, high=10.0):
    """SGD on curvature * |w|^2 / 2 in 8 dimensions, whose gradients and losses are noisy: 1 / curvature is the best rate."""
    drawn = random.Random(seed)
    weights = [drawn.gauss(0, 1) for _ in range(8)]
    test = RangeTest(1e-6, high, num_steps)
    for step in range(num_steps):
        loss = curvature * (sum(w * w for w in weights) / 2 + noise * (1 + abs(drawn.gauss(0, 1))))
        weights = [w - test.rate(step) * curvature * (w + drawn.gauss(0, noise)) for w in weights]
        if not test.observe(loss):
            break
    return test


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("num_steps", [25, 50, 100, 200])
def test_the_suggestion_suits_a_quadratic(curvature, num_steps):
    for seed in range(4):
        suggestion = descend(curvature, seed, num_steps).suggestion()
        assert 0.02 < suggestion * curvature < 0.5  # beyond 2, it would diverge


def test_the_suggestion_follows_the_problem():
    assert descend(100.0, 0).suggestion() < descend(1.0, 0).suggestion() / 30


def test_equal_factors_from_low_to_high():
    test = RangeTest(1e-5, 10.0, 7)
    assert [test.rate(step) for step in range(7)] == pytest.approx([10.0**power for power in range(-5, 2)])


@given(noise=st.floats(0.0, 0.2), seed=st.integers(0, 10**6))
def test_noise_does_not_move_the_suggestion_far(noise, seed):
    drawn, test = random.Random(seed), RangeTest(1e-6, 1.0, 100)
    for step in range(100):  # falls from 1.4 to 0.7 around 1e-3, rises beyond 0.1
        rate = test.rate(step)
        if not test.observe(0.7 + 0.7 / (1 + (rate / 1e-3) ** 2) + (rate / 0.1) ** 2 + drawn.gauss(0, noise)):
            break
    assert 3e-5 < test.suggestion() < 2e-2


def test_it_stops_at_a_loss_that_explodes_and_stays_well_below():
    test = RangeTest(1e-4, 1.0, 41)  # ten steps a factor of 10
    losses = [1.0 - 0.02 * step for step in range(30)] + [100.0] * 11
    assert [test.observe(loss) for loss in losses[:31]] == [True] * 30 + [False]
    assert test.suggestion() <= test.rate(31) / 10


@pytest.mark.parametrize("loss", [NAN, math.inf, -math.inf])
def test_it_stops_at_a_loss_that_is_not_finite(loss):
    test = RangeTest()
    assert test.observe(1.0)
    assert not test.observe(loss)
    assert (test.rates(), test.losses) == ([test.rate(0)], [1.0])
    assert test.suggestion() == pytest.approx(test.rate(1) / 10)
    assert not RangeTest().observe(loss)


def test_it_ends_after_its_steps():
    test = RangeTest(num_steps=3)
    assert [test.observe(1.0) for _ in range(3)] == [True, True, False]


def test_a_flat_curve_suggests_nothing():
    for num_losses in (0, 1, 6, 7, 50, 100):
        test = RangeTest(num_steps=100)
        for _ in range(num_losses):
            test.observe(0.7)
        assert test.suggestion() is None
    found = 0
    for seed in range(100):
        drawn, test = random.Random(seed), RangeTest(num_steps=100)
        while test.observe(1.0 + drawn.gauss(0, 0.2)):
            pass
        found += test.suggestion() is not None
    assert found <= 5


def test_smoothing_keeps_lines_and_levels_spikes():
    assert smooth([0.1] * 20) == pytest.approx([0.1] * 20)
    line = [float(x) for x in range(20)]
    assert smooth(line) == pytest.approx(line)
    assert max(smooth([0.0] * 10 + [7.0] + [0.0] * 10)) == pytest.approx(1.0)
    assert smooth([]) == []
