"""Words and what becomes of their scores: several words a class, and a background that is class 0.

Scores f32[c, h, w] of c words come in parts, in the order of the classes: what is kept of them is
the best of every pixel, so that neither many words nor a large photo fill the memory.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32


@dataclass(frozen=True, eq=False)
class Words:
    """What a photo is searched for; what only fills up the array is of class −1, and last."""

    text: Float[Array, "v n c"]  # unit length
    class_of: Int32[np.ndarray, " v"]  # ascending
    offset: Float32[np.ndarray, " v"]  # subtracted from a word's scores
    classes: int

    @classmethod
    def of_classes(cls, text: Float[Array, "k n c"], offset: Float[np.ndarray, " k"]) -> "Words":
        """One word for each class."""
        numbers = np.arange(len(text), dtype=np.int32)
        return cls(text, numbers, np.asarray(offset, np.float32), len(text))


class Best(NamedTuple):
    """Of every pixel: the best word so far, and what its probability is computed from.

    There may be several groups of words, with a best each.
    """

    score: Float[Array, "*g h w"]
    label: Int32[Array, "*g h w"]  # class of the best word
    peak: Float[Array, "h w"]  # the largest score of all words, also of those that may not win
    total: Float[Array, "h w"]  # Σ exp(score − peak) over all words


def nothing(height: int, width: int, *, groups: tuple[int, ...] = ()) -> Best:
    """Before any word."""
    size = height, width
    return Best(
        jnp.full((*groups, *size), -jnp.inf, jnp.float32),
        jnp.full((*groups, *size), 0, jnp.int32),
        jnp.full(size, -jnp.inf, jnp.float32),
        jnp.full(size, 0.0, jnp.float32),
    )


def compare(
    best: Best,
    scores: Float[Array, "h w"],
    label: Int32[Array, ""],
    wins: Bool[Array, "*g"],
    *,
    sums: bool = True,
) -> Best:
    """Go on with one more word; of equals the first wins.

    Args:
        label: its class; what is below 0 only fills up.
        wins: whether its class may win, in each group.
        sums: go on with `peak` and `total`, too; else they stay as they are.
    """
    if wins.ndim:  # else every group would compute the scores again
        scores = jax.lax.optimization_barrier(scores)
    each = jnp.broadcast_to(scores, best.score.shape)
    better = wins[..., None, None] & (each > best.score)
    score, found = jnp.where(better, each, best.score), jnp.where(better, label, best.label)
    if not sums:
        return best._replace(score=score, label=found)
    higher = scores - best.peak
    small = jnp.exp(-jnp.abs(higher))  # one of the two exponentials is 1
    total = jnp.where(higher > 0, best.total * small + 1, best.total + small)
    real = label >= 0
    peak = jnp.where(real, jnp.maximum(best.peak, scores), best.peak)
    return Best(score, found, peak, jnp.where(real, total, best.total))


def compare_all(
    best: Best,
    scores: Float[Array, "c h w"],
    labels: Int32[Array, " c"],
    wins: Bool[Array, "c *g"],
    *,
    sums: bool = True,
) -> Best:
    """As `compare` with one word after the other, all at once: a device with many cores is full."""
    groups = best.score.ndim - 2
    each = jnp.expand_dims(scores, tuple(range(1, 1 + groups)))
    each = jnp.where(wins[..., None, None], each, -jnp.inf)
    first, score = jnp.argmax(each, axis=0), jnp.max(each, axis=0)
    better = score > best.score
    label = jnp.where(better, labels[first], best.label)
    found = best._replace(score=jnp.where(better, score, best.score), label=label)
    if not sums:
        return found
    real = jnp.where((labels >= 0)[:, None, None], scores, -jnp.inf)
    peak = jnp.maximum(best.peak, jnp.max(real, axis=0))
    total = best.total * jnp.exp(best.peak - peak) + jnp.sum(jnp.exp(real - peak[None]), axis=0)
    return found._replace(peak=peak, total=total)


def probability(scores: Float[Array, "c h w"], best: Best) -> Float[Array, "c h w"]:
    """exp(score)/Σ exp(score) over all words that were compared."""
    return jnp.exp(scores - best.peak[None]) / best.total[None]


def large(
    label: Int32[np.ndarray, "h w"], *, classes: int, share: float
) -> Bool[np.ndarray, " classes"]:
    """Which classes have more than a share of the pixels that are not class 0; class 0 stays.

    Source: SCLIP (arXiv 2312.01597), on VOC with background.
    """
    counts = np.bincount(label.reshape(-1), minlength=classes)
    counts[0] = 0
    kept = counts > share * counts.sum()
    kept[0] = True
    return kept
