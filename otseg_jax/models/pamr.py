"""PAMR: scores refined by the colours around each pixel, nothing learned.

A photo is f32[3, h, w], normalised; scores are f32[k, h, w] of the same size.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DILATIONS = (8, 16)
ITERATIONS = 10


@partial(jax.jit, static_argnames=("dilations", "iterations"))
def pamr(
    scores: Float[Array, "k h w"],
    photo: Float[Array, "3 h w"],
    *,
    dilations: tuple[int, ...] = DILATIONS,
    iterations: int = ITERATIONS,
) -> Float[Array, "k h w"]:
    """Replace every pixel's scores by the mean of its neighbours', weighted by likeness; repeat.

    Args:
        dilations: pixels to the eight neighbours; beyond the edge lies the edge.

    Source: Araslanov and Roth 2020, pixel-adaptive mask refinement, as NACLIP runs it.
    """
    reach, size = max(dilations), scores.shape[1:]
    offsets = [
        (dilation * y, dilation * x)
        for dilation in dilations
        for y, x in product((-1, 0, 1), repeat=2)
        if (y, x) != (0, 0)
    ]

    def neighbours(image: Float[Array, "c h w"]) -> Iterator[Float[Array, "c h w"]]:
        padded = jnp.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
        for y, x in offsets:
            yield padded[:, reach + y : reach + y + size[0], reach + x : reach + x + size[1]]

    width = 1e-8 + 0.1 * _spread(photo, dilations)
    likeness = [-jnp.mean(jnp.abs(other - photo) / width, axis=0) for other in neighbours(photo)]
    weights = jax.nn.softmax(jnp.stack(likeness), axis=0)

    def refine(_: Array, scores: Array) -> Array:
        # a sum, not a stack: scores of all classes sixteen times over would not fit
        return sum(
            (
                weight * other
                for weight, other in zip(weights[:, None], neighbours(scores), strict=True)
            ),
            jnp.zeros_like(scores),
        )

    return jax.lax.fori_loop(0, iterations, refine, scores.astype(jnp.float32))


def _spread(photo: Float[Array, "3 h w"], dilations: Sequence[int]) -> Float[Array, "3 h w"]:
    """Standard deviation (n − 1) over the 3 × 3 windows of all dilations, the centre in each."""
    height, width = photo.shape[1:]
    values = []
    for dilation in dilations:
        padded = jnp.pad(photo, ((0, 0), *[(dilation, dilation)] * 2), mode="edge")
        values += [
            padded[:, y : y + height, x : x + width]
            for y, x in product((0, dilation, 2 * dilation), repeat=2)
        ]
    return jnp.std(jnp.stack(values), axis=0, ddof=1)
