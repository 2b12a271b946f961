"""PAMR: scores refined by the colours around each pixel, nothing learned.

A photo is f32[3, h, w], normalised; scores are f32[k, h, w] of the same size.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    weights = likeness(photo, dilations=dilations)
    return smooth(scores, weights, dilations=dilations, iterations=iterations)


def likeness(
    photo: Float[Array, "3 h w"], *, dilations: tuple[int, ...] = DILATIONS
) -> Float[Array, "m h w"]:
    """The weights of every pixel's neighbours, which sum to 1."""
    width = 1e-8 + 0.1 * _spread(photo, dilations)
    near = _neighbours(photo, dilations)
    differences = [-jnp.mean(jnp.abs(other - photo) / width, axis=0) for other in near]
    return jax.nn.softmax(jnp.stack(differences), axis=0)


def smooth(
    scores: Float[Array, "k h w"],
    weights: Float[Array, "m h w"],
    *,
    size: Int[Array, "2"] | None = None,
    dilations: tuple[int, ...] = DILATIONS,
    iterations: int = ITERATIONS,
) -> Float[Array, "k h w"]:
    """Replace scores by the weighted mean of their neighbours', several times.

    Args:
        size: true (height, width), where the arrays are filled up below and to the right.
    """

    def step(_: Array, scores: Array) -> Array:
        # a sum, not a stack: scores of all classes sixteen times over would not fit
        near = zip(weights[:, None], _neighbours(edged(scores, size), dilations), strict=True)
        return sum((weight * other for weight, other in near), jnp.zeros_like(scores))

    return jax.lax.fori_loop(0, iterations, step, scores.astype(jnp.float32))


def edged(image: Float[Array, "c h w"], size: Int[Array, "2"] | None) -> Float[Array, "c h w"]:
    """The same with its true edge repeated over what only fills it up."""
    if size is None:
        return image
    for axis in (1, 2):
        index = jnp.minimum(jnp.arange(image.shape[axis]), size[axis - 1] - 1)
        image = jnp.take(image, index, axis=axis, mode="clip")
    return image


def _neighbours(
    image: Float[Array, "c h w"], dilations: Sequence[int]
) -> Iterator[Float[Array, "c h w"]]:
    reach, (height, width) = max(dilations), image.shape[1:]
    padded = jnp.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    for dilation in dilations:
        for down, across in product((-1, 0, 1), repeat=2):
            if (down, across) != (0, 0):
                y, x = reach + dilation * down, reach + dilation * across
                yield padded[:, y : y + height, x : x + width]


def _spread(photo: Float[Array, "3 h w"], dilations: Sequence[int]) -> Float[Array, "3 h w"]:
    """Standard deviation (n − 1) over the 3 × 3 windows of all dilations, the centre in each."""
    # sums, not a stack, which of a large photo would not fit
    centres, count = [photo] * len(dilations), 9 * len(dilations)
    mean = sum((*centres, *_neighbours(photo, dilations)), jnp.zeros_like(photo)) / count
    around = (*centres, *_neighbours(photo, dilations))
    squares = sum(((value - mean) ** 2 for value in around), jnp.zeros_like(photo))
    return jnp.sqrt(squares / (count - 1))
