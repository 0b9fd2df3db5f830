"""Heads by logistic regression: the optimum, its way into a Keras head, and the choice among them."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from tfpipe.common.errors import DataError
from tfpipe.networks import arithmetic
from tfpipe.networks.heads import Head
from tfpipe.training import regression
from tfpipe.training.logs import curves

pytestmark = pytest.mark.tf

POOLINGS = ("average", "max", "flatten")


class Maps:
    """Feature maps in memory, read as `Features` are."""

    def __init__(self, values):
        self.values, self.shape = values.astype(np.float32), values.shape[1:]

    def rows(self, positions):
        return self.values[positions]


def draw(seed, count, num_classes=3, shape=(2, 3, 4), size=5.0):
    """Maps of noise around one map per class, of any size, far from zero."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, *shape))
    labels = generator.permutation(np.arange(count) % num_classes)
    return (centres[labels] + generator.normal(0, 1.5, (count, *shape)) + 3) * size, labels


def rows(seed, count, views=1, weights=None, **options):
    drawn = [draw(seed, count, **options) for _ in range(views)]
    return regression.Rows([Maps(values) for values, _ in drawn], np.arange(count), drawn[0][1], weights)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("count", [15, 60])  # fewer rows than flat features, and more
def test_each_fit_is_scikit_learns_optimum_on_centred_rows_of_one_scale(pooling, count, num_classes):
    train = rows(1, count, num_classes=num_classes)
    features = train.pooled(pooling).astype(np.float64)
    centred = features - features.mean(0)
    scale = np.sqrt((centred**2).mean())
    path = regression._path(features.astype("f4"), train.labels, None)
    found = {strength: (kernel, bias) for strength, kernel, bias in path}
    assert tuple(found) == regression.STRENGTHS
    for strength, (kernel, bias) in found.items():
        expected = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8).fit(centred / scale, train.labels)
        logits = features @ kernel + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected.predict_proba(centred / scale), atol=2e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_keras_head_with_the_weights_gives_the_same_loss(pooling):
    val = rows(2, 21)
    found = regression.search(rows(1, 60), val, [pooling])
    layers = Head(pooling).layers(3, 0)
    model = keras.Sequential([keras.Input((2, 3, 4)), *layers])
    layers[-1].set_weights([found.kernel, found.bias])
    with arithmetic.exact():
        logits = model(val.views[0].values).numpy()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(val.labels, logits)
    assert float(loss) == pytest.approx(found.best.val_loss, rel=1e-4)
    assert (logits.argmax(1) == val.labels).mean() == pytest.approx(found.best.val_accuracy)


def test_the_best_is_the_strongest_decay_within_an_error_of_the_least_loss():
    seen = []
    found = regression.search(rows(1, 60), rows(2, 21), POOLINGS, seen.append)
    assert seen == list(found.candidates)
    assert [(one.pooling, one.strength) for one in seen] == [(name, c) for name in POOLINGS for c in regression.STRENGTHS]
    least = min(seen, key=lambda one: one.val_loss)
    as_good = [one for one in seen if one.pooling == least.pooling and one.val_loss <= least.val_loss + least.val_error]
    assert found.best == as_good[0] != least
    assert len({one.val_loss for one in seen}) > 10
    assert f"{found.best.pooling} pooling with C={found.best.strength:g}" in str(found)


def test_the_size_of_the_features_and_their_mean_change_nothing():
    small, large = (regression.search(rows(1, 60, size=size), rows(2, 21, size=size), POOLINGS) for size in (0.01, 100.0))
    assert (small.best.pooling, small.best.strength) == (large.best.pooling, large.best.strength)
    for one, other in zip(small.candidates, large.candidates, strict=True):
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-3)


def test_equal_rows_give_equal_bits():
    one, other = (regression.search(rows(1, 60), rows(2, 21), POOLINGS) for _ in range(2))
    assert one.kernel.tobytes() == other.kernel.tobytes()
    assert one.candidates == other.candidates


def test_few_rows_are_fitted_by_one_thread_and_many_by_those_of_the_caller(monkeypatch):
    seen, fit = [], LogisticRegression.fit

    def watched(self, *arguments, **options):
        seen.append({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
        return fit(self, *arguments, **options)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    with threadpool_limits(2, "blas"):
        regression.search(rows(1, 60), rows(2, 21), ["average"])
        monkeypatch.setattr(regression, "_SHARED_BYTES", 0)
        regression.search(rows(1, 60), rows(2, 21), ["average"])
    assert seen == [{1}] * 5 + [{2}] * 5


def test_weights_count_and_positions_choose():
    doubled = regression.Rows(rows(1, 30).views, np.r_[0:30, 0:10], np.r_[rows(1, 30).labels, rows(1, 30).labels[:10]])
    weighted = rows(1, 30, weights=np.r_[np.full(10, 2.0), np.ones(20)])
    # One scale, from the rows: that of doubled ones differs a little, and with it what a strength
    # means
    found = [next(iter(regression._path(some.pooled("average"), some.labels, some.weights)))[1] for some in (doubled, weighted)]
    plain = next(iter(regression._path(rows(1, 30).pooled("average"), rows(1, 30).labels, None)))[1]
    assert np.abs(found[0] - found[1]).max() < np.abs(found[0] - plain).max()


def test_views_are_more_rows():
    two = rows(1, 30, views=2)
    assert two.count == 60
    np.testing.assert_array_equal(two.pooled("max")[:30], two.pooled("max")[30:])
    np.testing.assert_array_equal(two.repeated(two.labels), np.tile(two.labels, 2))


def test_a_pooling_that_does_not_fit_is_left_out_but_never_the_first(monkeypatch):
    train = rows(1, 30)
    assert regression.fitting(train, POOLINGS) == list(POOLINGS)
    monkeypatch.setattr(regression, "_MOST_BYTES", 30 * 4 * 4)
    assert regression.fitting(train, POOLINGS) == ["average", "max"]
    assert regression.fitting(train, ["flatten"]) == ["flatten"]


def test_features_that_are_not_finite_are_an_error():
    train = rows(1, 30)
    train.views[0].values[3, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="not finite"):
        regression.search(train, rows(2, 21), POOLINGS)


def test_the_candidates_are_drawn(tmp_path):
    found = regression.search(rows(1, 60), rows(2, 21), POOLINGS)
    curves.draw_candidates(found.candidates, found.best, tmp_path / "head.png")
    assert (tmp_path / "head.png").read_bytes().startswith(b"\x89PNG")
