"""What the pixels of a photo add to the figures, counted on the device: sums leave it, not maps."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Integer

from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation import metrics, windows
from otseg_jax.evaluation.words import Best

MOST = 1 << 20  # pairs of classes up to which all are counted, also those that do not occur
LANES = 8  # pixels beside one another are counted apart: on a GPU equal ones wait for each other


class Swept(NamedTuple):
    """Pixels by class and by the number of offsets at which the labelled one of two rivals wins.

    Rivals are the best class that was trained with labels, and the best of the others.
    """

    right: Int32[np.ndarray, "k n"]
    found: Int32[np.ndarray, "k n"]
    truth: Int32[np.ndarray, " k"]  # of each class, at any offset


class Counts(NamedTuple):
    """Of a photo by one output; still under way until it is asked for."""

    label: Int32[Array, "h w"]  # map of the canvas, for who wants to see it
    table: Int32[Array, "k n"]  # all that follows, side by side: one transfer

    @property
    def confusion(self) -> Int32[np.ndarray, "k k"] | None:
        """Pixels by true and predicted class; None where these are more than `MOST` pairs."""
        pairs = _pairs(len(self.table))
        return np.asarray(self.table)[:, :pairs] if pairs else None

    @property
    def swept(self) -> Swept | None:
        """None where no offset is swept."""
        rest = np.asarray(self.table)[:, _pairs(len(self.table)) :]
        if not rest.size:
            return None
        right, found = np.split(rest[:, :-1], 2, axis=1)
        return Swept(right, found, rest[:, -1])


def _pairs(classes: int) -> int:
    """Columns of a table that hold pairs of classes."""
    return classes if classes**2 <= MOST else 0


def canvas(truth: Integer[np.ndarray, "H W"], *, classes: int) -> Integer[np.ndarray, "h w"]:
    """The label of a photo on the canvas that scores lie on; `IGNORE` fills it up.

    Raises:
        ValueError: an id that is no class and not `IGNORE`.
    """
    metrics.check_ids(truth, classes)
    found = np.full(windows.canvas(truth.shape), IGNORE, truth.dtype)
    found[: truth.shape[0], : truth.shape[1]] = truth
    return found


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
    tables = [jnp.zeros((classes, 0), jnp.int32)]
    if _pairs(classes):
        pairs = jnp.where(truth == IGNORE, classes, truth) * classes + label
        tables.append(_histogram(pairs, (classes, classes)))
    if thresholds is not None:
        tables += _swept(best, truth, thresholds, classes)
    return Counts(label, jnp.concatenate(tables, axis=1))


def _winner(best: Best) -> Int32[Array, "h w"]:
    """The class of every pixel, from the best of two groups; of equals the first."""
    (one, other), (score, against) = best.label, best.score
    return jnp.where((score > against) | ((score == against) & (one < other)), one, other)


def _swept(
    best: Best, truth: Int32[Array, "h w"], thresholds: Float32[Array, " n"], classes: int
) -> list[Int32[Array, "k _"]]:
    lead, last = best.score[0] - best.score[1], len(thresholds)
    wins = jnp.searchsorted(thresholds, lead, method="scan_unrolled").astype(jnp.int32)
    level = (wins < last) & (thresholds[jnp.minimum(wins, last - 1)] == lead)
    wins = jnp.where(level & (best.label[0] < best.label[1]), wins + 1, wins)
    found = jnp.where(truth[None] == IGNORE, classes, best.label) * (last + 1) + wins[None]
    right = jnp.where(best.label == truth[None], found, classes * (last + 1))
    return [
        _histogram(right, (classes, last + 1)),
        _histogram(found, (classes, last + 1)),
        _histogram(jnp.where(truth == IGNORE, classes, truth), (classes, 1)),
    ]


def _histogram(values: Int32[Array, "*g h w"], shape: tuple[int, int]) -> Int32[Array, "k n"]:
    """How often each flat index into this shape occurs; larger values are not counted."""
    size = shape[0] * shape[1]
    lane = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1) % LANES
    places = jnp.where(values < size, lane * size + values, LANES * size)
    counts = jnp.zeros(LANES * size, jnp.int32).at[places].add(1, mode="drop")
    return counts.reshape(LANES, *shape).sum(axis=0, dtype=jnp.int32)
