"""How sure the difference of two evaluations of the same photos is.

Photos are drawn again and again, with replacement, each with its pixels in both evaluations: what
makes a photo hard for both is no part of the difference (a paired bootstrap). Intervals are
percentiles of what the draws give. Pixels are i64[n, k], of n photos and k classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from otseg_jax.evaluation import metrics
from otseg_jax.evaluation.metrics import Pixels

LEVEL = 0.95
TOGETHER = 100  # draws at a time


class Difference(NamedTuple):
    """A figure in percent of both evaluations, and an interval of second − first; NaN undefined."""

    first: Float64[np.ndarray, "*n"]
    second: Float64[np.ndarray, "*n"]
    low: Float64[np.ndarray, "*n"]
    high: Float64[np.ndarray, "*n"]

    @property
    def difference(self) -> Float64[np.ndarray, "*n"]:
        """Second − first."""
        return np.asarray(self.second - self.first)


def differences(
    first: Pixels, second: Pixels, unseen: Sequence[int], *, draws: int, seed: int
) -> dict[str, Difference]:
    """The figures of `metrics.measures`, with the interval that holds `LEVEL` of the draws.

    A draw in which a figure is undefined, because a class is in none of its photos, is left out of
    the interval of that figure.
    """
    found: dict[str, list[np.ndarray]] = {}
    generator = np.random.default_rng(seed)
    parts = [[x.astype(np.float64) for x in pixels] for pixels in (first, second)]
    count = len(first.truth)
    for begin in range(0, draws, TOGETHER):
        rows = min(TOGETHER, draws - begin)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        # how often each photo is in each draw; sums of pixels are exact in float64
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        one, other = (
            metrics.measures(Pixels(*(times.astype(np.float64) @ x for x in pixels)), unseen)
            for pixels in parts
        )
        for name in one:
            found.setdefault(name, []).append(other[name] - one[name])
    whole = [metrics.measures(Pixels(*(x.sum(0) for x in p)), unseen) for p in (first, second)]
    return {
        name: Difference(whole[0][name], whole[1][name], *_interval(np.concatenate(drawn)))
        for name, drawn in found.items()
    }


def _interval(
    drawn: Float64[np.ndarray, "r *n"],
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    ends = np.full((2, *drawn.shape[1:]), np.nan)
    defined = ~np.isnan(drawn).all(axis=0)
    share = (1 - LEVEL) / 2
    ends[:, defined] = np.nanquantile(drawn[:, defined], [share, 1 - share], axis=0)
    return ends[0, ...], ends[1, ...]
