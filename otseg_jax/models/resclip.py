"""ResCLIP: attention of earlier blocks, and of patches that a first pass gave the same word.

Per image: patches are m = h·w in row-major order, words are k. Weights as in `last_block`.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int32

from otseg_jax.models.last_block import Weights, einsum, patch_places
from otseg_jax.models.pamr import pamr

SMOOTHING = (5.0, 15)  # σ and radius of the smoothing along the flattened index, patches


def blend(
    weights: Weights, earlier: Sequence[Weights], *, share: float, temperature: float
) -> Weights:
    """τ·((1 − λ)·A + λ·mean of earlier blocks' attention); `share` is λ.

    Source: ResCLIP (arXiv 2411.15851), residual cross-correlation self-attention.
    """
    mean = sum(earlier[1:], earlier[0]) / len(earlier)
    return temperature * ((1 - share) * weights + share * mean)


def patch_words(
    cosines: Float[Array, "k h w"],
    photo: Float[Array, "H W 3"],
    words: Float[Array, "k c"],
    *,
    patch: int,
    scale: float,
    threshold: float,
) -> Int32[Array, "h w"]:
    """The word that most pixels of a patch are given, the first where several have as many.

    Cosines are stretched over the photo, whose rest beyond the last whole patch is not counted.
    Pixels are refined by PAMR; one whose best probability is below the threshold is given word 0.
    """
    size = photo.shape[:2]
    count, *grid = cosines.shape
    fine = jax.image.resize(cosines, (count, *size), "bilinear", antialias=False)
    fine = scale * pamr(fine, jnp.moveaxis(photo, -1, 0))
    # a word without an embedding only fills up the array
    real = jnp.any(words != 0, axis=1)[:, None, None]
    chances = jax.nn.softmax(jnp.where(real, fine, -jnp.inf), axis=0)
    best = jnp.where(jnp.max(chances, axis=0) < threshold, 0, jnp.argmax(chances, axis=0))
    cut = best[: grid[0] * patch, : grid[1] * patch]
    cells = rearrange(cut, "(h y) (w x) -> h w (y x)", y=patch, x=patch)
    votes = jnp.sum(cells[..., :, None] == cells[..., None, :], axis=-1)
    most = votes == jnp.max(votes, axis=-1, keepdims=True)
    return jnp.min(jnp.where(most, cells, count), axis=-1).astype(jnp.int32)


def same_word(words: Int32[Array, "h w"]) -> Float[Array, "h*w h*w"]:
    """How much every patch looks at those of its own word; rows sum to 1.

    Less with the distance, unless all that lies between has that word too; then smoothed along the
    row.

    Source: ResCLIP (arXiv 2411.15851), semantic feedback refinement.
    """
    grid = words.shape
    places = patch_places(grid)
    distance = np.abs(places[:, None] - places[None]).max(axis=-1)
    farthest = max(int(distance.max()), 1)
    own = words.reshape(-1)
    step = (places[None] - places[:, None]) / farthest

    def walk(connected: Array, m: Array) -> tuple[Array, None]:
        # the path is cut into as many steps as the longest has, and left after as many as it needs
        point = jnp.round(places[:, None] + step * m).astype(jnp.int32)
        same = words[point[..., 0], point[..., 1]] == own[:, None]
        return connected & (same | (m > distance)), None

    connected, _ = jax.lax.scan(walk, jnp.ones(distance.shape, bool), jnp.arange(farthest + 1))
    decay = jnp.asarray(np.exp(-distance / farthest), jnp.float32)
    mask = jnp.where(own[:, None] == own[None], jnp.where(connected, 1.0, decay), 0.0)
    smooth = einsum("ij, jk -> ik", mask, _smoothing(len(own)))
    return smooth / (jnp.sum(smooth, axis=-1, keepdims=True) + 1e-8)


def same_word_logits(words: Int32[Array, "h w"], *, share: float) -> Float[Array, "t t"]:
    """λ·`same_word` over its largest entry, 0 for the class token; `share` is λ.

    Rounded twice to float16's 11 bits, as the reference does: without, cosines move by 5e-5.
    """
    mask = same_word(words)
    half = partial(jax.lax.reduce_precision, exponent_bits=5, mantissa_bits=10)
    return jnp.pad(half(share * half(mask / jnp.max(mask))), ((1, 0), (1, 0)))


def _smoothing(length: int) -> Float[np.ndarray, "m m"]:
    """A Gaussian along an axis, zeros outside, as a matrix."""
    sigma, radius = SMOOTHING
    radius = min(radius, length // 2)  # no more taps than patches
    offset = np.arange(length)[:, None] - np.arange(length)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = np.exp(-0.5 * (offset / sigma) ** 2) / kernel.sum()
    return np.where(np.abs(offset) <= radius, weights, 0.0).astype(np.float32)
