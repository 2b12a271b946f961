"""Intervals of a difference against SciPy's bootstrap, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from otseg_jax.evaluation import bootstrap, metrics
from otseg_jax.evaluation.metrics import Pixels

UNSEEN = (1, 3)


def pixels(rng, truth, skill) -> Pixels:
    """Pixels of photos that are found with some skill, others at random."""
    right = rng.binomial(truth, skill)
    wrong = (truth - right).sum(1)
    found = right + np.stack([rng.multinomial(n, np.full(truth.shape[1], 0.25)) for n in wrong])
    return Pixels(right, truth, found)


@pytest.fixture
def both():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 400, (30, 4)) * (rng.random((30, 4)) < 0.7)
    return pixels(rng, truth, 0.6), pixels(rng, truth, 0.7)


def test_intervals_are_those_of_scipy(both):
    found = bootstrap.differences(*both, UNSEEN, draws=4000, seed=0)

    def difference(name, place, chosen):
        one, other = (
            metrics.measures(Pixels(*(x[chosen].sum(-2) for x in side)), UNSEEN)[name][..., *place]
            for side in both
        )
        return other - one

    for name, place in (("miou", ()), ("hiou", ()), ("pixel_accuracy", ()), ("iou", (2,))):
        wanted = stats.bootstrap(
            (np.arange(30),),
            lambda chosen, axis, name=name, place=place: difference(name, place, chosen),
            n_resamples=4000,
            confidence_level=bootstrap.LEVEL,
            method="percentile",
            rng=np.random.default_rng(1),
        )
        low, high = wanted.confidence_interval
        got = found[name]
        assert got.difference[place] == pytest.approx(difference(name, place, np.arange(30)))
        # both draw at random: the ends of an interval vary by a few hundredths of its width
        assert got.low[place] == pytest.approx(low, abs=0.1 * (high - low))
        assert got.high[place] == pytest.approx(high, abs=0.1 * (high - low))


def test_draws_are_those_of_a_loop(both):
    """Photo by photo, with the matrices of each draw added up."""
    count, rng = 30, np.random.default_rng(3)
    drawn = rng.integers(count, size=(100, count))
    ious = []
    for photos in drawn:
        one, other = (
            metrics.measures(Pixels(*(sum(x[i] for i in photos) for x in side)), UNSEEN)
            for side in both
        )
        ious.append(other["miou_unseen"] - one["miou_unseen"])
    got = bootstrap.differences(*both, UNSEEN, draws=100, seed=3)["miou_unseen"]
    assert [got.low, got.high] == pytest.approx(np.quantile(ious, [0.025, 0.975]))


def test_95_of_100_intervals_hold_the_true_difference():
    """Each of 400 classes is an experiment of its own, whose true difference is known."""
    rng = np.random.default_rng(0)
    truth = rng.integers(50, 100, (80, 400))
    skill = rng.uniform(0.3, 0.8, truth.shape)  # photos are hard or easy for both
    sides = (Pixels(rng.binomial(truth, skill + more), truth, truth) for more in (0.0, 0.1))
    got = bootstrap.differences(*sides, UNSEEN, draws=500, seed=0)["iou"]
    true = 100 * (0.65 / (2 - 0.65) - 0.55 / (2 - 0.55))  # right / (truth + found - right)
    inside = np.mean((got.low <= true) & (true <= got.high))
    assert 0.92 <= inside <= 0.975


def test_a_class_of_no_photo_has_no_interval_and_a_rare_one_has():
    truth = np.zeros((8, 4), np.int64)
    truth[:, 0], truth[0, 1] = 10, 5
    one = Pixels(truth // 2, truth, truth // 2)
    got = bootstrap.differences(one, Pixels(truth, truth, truth), UNSEEN, draws=200, seed=0)["iou"]
    np.testing.assert_array_equal(np.isnan(got.low), [False, False, True, True])
    assert got.low[:2].tolist() == got.difference[:2].tolist() == got.high[:2].tolist()
