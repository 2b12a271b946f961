"""What the pixels of a photo add to the figures, counted on the device: sums leave it, not maps."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Integer

from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation.words import Best

MOST = 1 << 20  # pairs of classes up to which all are counted, also those that do not occur


class Swept(NamedTuple):
    """Pixels by class and by the number of offsets at which the labelled one of two rivals wins.

    Rivals are the best class that was trained with labels, and the best of the others.
    """

    right: Integer[Array, "k n"]
    found: Integer[Array, "k n"]
    truth: Integer[Array, " k"]  # of each class, at any offset


class Counts(NamedTuple):
    """Of a photo by one output; still under way."""

    label: Int32[Array, "h w"]  # map of the canvas, for who wants to see it
    confusion: Int32[Array, "k k"] | None  # true class, predicted class; None: more than `MOST`
    swept: Swept | None  # where an offset is swept


@partial(jax.jit, static_argnames="classes")
def count(
    best: Mapping[str, Best],
    truth: Integer[Array, "h w"],
    thresholds: Float32[Array, " n"] | None = None,
    *,
    classes: int,
) -> dict[str, Counts]:
    """Count the pixels of a photo by every output, but for those of truth `IGNORE`.

    Args:
        best: of all classes; where an offset is swept, of those trained with labels and of others.
        truth: class of every pixel of the canvas.
        thresholds: as of `offsets.Sweep`.
    """
    of_output = partial(_count, truth.astype(jnp.int32), thresholds, classes)
    return {name: of_output(each) for name, each in best.items()}


def _count(
    truth: Int32[Array, "h w"],
    thresholds: Float32[Array, " n"] | None,
    classes: int,
    best: Best,
) -> Counts:
    label = best.label if thresholds is None else _winner(best)
    swept = None if thresholds is None else _swept(best, truth, thresholds, classes)
    if classes**2 > MOST:
        return Counts(label, None, swept)
    pairs = jnp.where(truth == IGNORE, classes, truth) * classes + label
    confusion = _histogram(pairs, classes**2).reshape(classes, classes)
    return Counts(label, confusion, swept)


def _winner(best: Best) -> Int32[Array, "h w"]:
    """The class of every pixel, from the best of two groups; of equals the first."""
    (one, other), (score, against) = best.label, best.score
    return jnp.where((score > against) | ((score == against) & (one < other)), one, other)


def _swept(
    best: Best, truth: Int32[Array, "h w"], thresholds: Float32[Array, " n"], classes: int
) -> Swept:
    lead, last = best.score[0] - best.score[1], len(thresholds)
    wins = jnp.searchsorted(thresholds, lead, method="scan_unrolled").astype(jnp.int32)
    level = (wins < last) & (thresholds[jnp.minimum(wins, last - 1)] == lead)
    wins = jnp.where(level & (best.label[0] < best.label[1]), wins + 1, wins)
    found = jnp.where(truth[None] == IGNORE, classes, best.label) * (last + 1) + wins[None]
    right = jnp.where(best.label == truth[None], found, classes * (last + 1))
    return Swept(
        _histogram(right, classes * (last + 1)).reshape(classes, last + 1),
        _histogram(found, classes * (last + 1)).reshape(classes, last + 1),
        _histogram(jnp.where(truth == IGNORE, classes, truth), classes),
    )


def _histogram(values: Int32[Array, "..."], length: int) -> Int32[Array, " {length}"]:
    """How often each of 0 .. length − 1 occurs; what is above is not counted."""
    return jnp.zeros(length, jnp.int32).at[values].add(1, mode="drop")
