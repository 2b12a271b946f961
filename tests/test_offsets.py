"""The curve of the seen-class offset: every point is an evaluation at that offset."""

import numpy as np
import pytest

from otseg_jax.data.classes import IGNORE, Vocabulary
from otseg_jax.evaluation import counting, metrics, offsets
from otseg_jax.evaluation.counting import count
from otseg_jax.evaluation.offsets import Sweep
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Best

LABELLED = np.array([True, False, True, True, False])
NAMES = [f"c{k}" for k in range(5)]


def best(scores, kept):
    """The best class of some, of equals the first, and its score."""
    held = np.where(kept[:, None, None], scores, -np.inf)
    return held.argmax(0).astype(np.int32), held.max(0)


@pytest.mark.parametrize("levels", [3, 1000])
def test_every_point_of_the_curve_is_an_evaluation_at_that_offset(levels):
    """Of 3 levels many scores are equal, where the first class wins."""
    rng, base = np.random.default_rng(levels), 0.125
    sweep, photos = Sweep(LABELLED, base), []
    for shape in ((9, 14), (6, 5), (8, 8)):
        truth = rng.integers(-1, 5, shape).astype(np.int16)
        # in 256ths, so that no difference is rounded
        scores = (rng.integers(0, levels, (5, *shape)) * 256 // levels / 256).astype(np.float32)
        photos.append((truth, scores))
        shifted = scores - np.float32(base) * LABELLED[:, None, None]
        label, score = zip(*(best(shifted, kept) for kept in (LABELLED, ~LABELLED)), strict=True)
        rivals = Best(np.stack(score), np.stack(label), None, None)
        found = count({"": rivals}, truth, sweep.thresholds, classes=5)[""]
        np.testing.assert_array_equal(found.label, shifted.argmax(0))
        wanted = metrics.confusion(truth, shifted.argmax(0), 5)
        np.testing.assert_array_equal(found.confusion, wanted)
        sweep.add(found.swept)
    curve = sweep.curve([1, 4])
    assert base in curve.offsets
    assert (curve.offsets[0], curve.offsets[-1]) == (-1.0, 1.0)
    for place, offset in enumerate(curve.offsets):
        counts = np.zeros((5, 5), np.int64)
        for truth, scores in photos:
            moved = scores.astype(np.float64) - offset * LABELLED[:, None, None]
            counts += metrics.confusion(truth, moved.argmax(0), 5)
        found = metrics.summary(counts, NAMES, [1, 4])
        figures = (curve.seen[place], curve.unseen[place], curve.harmonic[place])
        wanted = (found["miou_seen"], found["miou_unseen"], found["hiou"])
        assert figures == pytest.approx(wanted, abs=1e-9), offset


@pytest.mark.parametrize("classes", [5, 1100])
def test_a_tally_counts_as_the_metrics_do(classes):
    """Of 1,100 classes there are more pairs than are counted one by one."""
    rng, shape = np.random.default_rng(0), (30, 40)
    truth = rng.integers(IGNORE, classes, shape).astype(np.int16)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    tally = Tally(Vocabulary(tuple(f"c{k}" for k in range(classes))), ["one"])
    tally.name("a photo")
    canvas = counting.canvas(truth, classes=classes)
    spare = [(0, more - side) for more, side in zip(canvas.shape, shape, strict=True)]
    best = {"one": Best(None, np.pad(labels, spare), None, None)}
    tally.add(0, truth, tally.count(canvas, best))
    found = tally.finished(dataset="", main="one").confusions
    np.testing.assert_array_equal(found.total("one"), metrics.confusion(truth, labels, classes))
    truth[0, 0] = classes
    with pytest.raises(ValueError, match=rf"truth holds \[{classes}\], wanted 0 .. {classes - 1}"):
        counting.canvas(truth, classes=classes)


def test_area_under_seen_over_unseen():
    """A curve of constant seen mIoU is a rectangle, a straight trade-off a triangle."""

    def area(curve):
        return offsets.area(offsets.front(curve))

    assert area([[50.0, 80.0, 0.0], [20.0, 80.0, 0.0]]) == 40.0
    straight = [[x, 100.0 - x, 0.0] for x in (0.0, 30.0, 60.0, 100.0)]
    assert area(straight) == 50.0
    # worse in both than another offset: not part of the trade-off
    assert area([*straight, [10.0, 20.0, 0.0], [55.0, 45.0, 0.0]]) == 50.0
    assert area([*straight, [40.0, 10.0, 0.0]]) == 50.0


def test_nothing_scored_leaves_the_curve_undefined():
    sweep = Sweep(LABELLED, 0.0)
    rivals = Best(np.zeros((2, 2, 2), "f"), np.zeros((2, 2, 2), "i"), None, None)
    nothing = np.full((2, 2), IGNORE, np.int16)
    sweep.add(count({"": rivals}, nothing, sweep.thresholds, classes=5)[""].swept)
    assert np.isnan(sweep.curve([1, 4]).harmonic).all()
