"""Attention weights that training-free methods put into the last block of CLIP's vision tower.

Query, key and value are [b, heads, t, c] of one block, not scaled, class token first; weights are
[b, heads, t, t], a row per token that looks.
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from otseg_jax.models.transformer import Block

Tokens: TypeAlias = Float[Array, "b t d"]
Head: TypeAlias = Float[Array, "b heads t c"]
Weights: TypeAlias = Float[Array, "b heads t t"]

# what is compared here decides labels
einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def heads(block: Block, tokens: Tokens) -> tuple[Head, Head, Head]:
    """Query, key and value of a block for the tokens that enter it."""
    parts = block.attention.split(block.ln_1(tokens))
    query, key, value = (rearrange(x, "b t heads c -> b heads t c") for x in parts)
    return query, key, value


def mix(block: Block, weights: Weights, value: Head) -> Tokens:
    """What a block's attention adds to its tokens, with these weights in place of its own."""
    return block.attention.join(einsum("bhij, bhjc -> bihc", weights, value))


def logits(left: Head, right: Head) -> Weights:
    """Scaled products of every token with every other: left·rightᵀ/√c."""
    return einsum("bhic, bhjc -> bhij", left, right) * left.shape[-1] ** -0.5


def attend(left: Head, right: Head) -> Weights:
    """softmax(left·rightᵀ/√c)."""
    return jax.nn.softmax(logits(left, right), axis=-1)


def both(query: Head, key: Head) -> Weights:
    """softmax(q·qᵀ/√c) + softmax(k·kᵀ/√c), whose rows sum to 2.

    Source: SCLIP (arXiv 2312.01597), correlative self-attention.
    """
    return attend(query, query) + attend(key, key)


def patch_places(grid: tuple[int, ...]) -> Int[np.ndarray, "m 2"]:
    """Row and column of every patch of a grid."""
    return np.array(list(np.ndindex(grid)))


def neighbours(grid: tuple[int, int], sigma: float) -> Float[np.ndarray, "t t"]:
    """exp(−‖pᵢ − pⱼ‖²/2σ²) between patches of a grid; 0 where the class token is one of the two.

    Source: NACLIP (arXiv 2404.08181), neighbourhood patch attention.
    """
    places = patch_places(grid)
    squared = np.sum((places[:, None] - places[None]) ** 2, axis=-1)
    return np.pad(np.exp(-squared / (2 * sigma**2)), ((1, 0), (1, 0))).astype(np.float32)
