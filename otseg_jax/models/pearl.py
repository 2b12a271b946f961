"""PEARL: keys turned towards queries before attention, scores propagated along text and colour.

Alignment: query and key are [b, heads, t, c] as in `last_block`. Propagation: scores are cosines
f32[k, h, w], not scaled, and the photo f32[3, h, w], normalised, at the same size.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Float

from otseg_jax.models.last_block import Head, Weights, einsum, logits

POLAR_STEPS = 5  # of Newton–Schulz: not converged, and so meant
KEY_SHARE = 0.08  # of k·kᵀ in the logits
Float64: TypeAlias = np.ndarray

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue
GRID = 80  # cells along a side that scores are propagated on
STEPS = 25  # of conjugate gradients


def align(query: Head, key: Head) -> Weights:
    """softmax(q·(kR)ᵀ/√c + 0.08·k_c·k_cᵀ/√c), R the rotation that brings keys nearest to queries.

    Source: PEARL, Procrustes alignment.
    """
    lengths = jnp.linalg.norm(query, axis=-1).at[..., 0].set(0.0)
    share = lengths / (jnp.sum(lengths, axis=-1, keepdims=True) + 1e-6)
    centred_query, centred_key = (
        x - einsum("bht, bhtc -> bhc", share, x)[..., None, :] for x in (query, key)
    )
    rotation = _polar(einsum("bhti, bhtj -> bhij", centred_key, centred_query))
    turned = einsum("bhtc, bhcd -> bhtd", key, rotation)
    centred = logits(centred_key, centred_key)
    return jax.nn.softmax(logits(query, turned) + KEY_SHARE * centred, axis=-1)


def _polar(m: Float[Array, "b heads c c"]) -> Float[Array, "b heads c c"]:
    """M·(MᵀM)^−½, the square root by Newton–Schulz."""
    gram = einsum("bhki, bhkj -> bhij", m, m)
    size = jnp.linalg.norm(gram, axis=(-2, -1), keepdims=True)
    unit = jnp.broadcast_to(jnp.eye(m.shape[-1]), gram.shape)
    y, z = gram / size + 1e-6 * unit, unit
    for _ in range(POLAR_STEPS):
        t = 0.5 * (3 * unit - z @ y)
        y, z = y @ t, t @ z
    return m @ z / jnp.sqrt(size)


def cells(size: tuple[int, ...], grid: int) -> list[int]:
    """Pixels of a cell along each side."""
    return [max(1, round(side / grid)) for side in size]


def pool(x: Float[Array | np.ndarray, "c h w"], cell: list[int]) -> Float64:
    """Means of whole cells."""
    height, width = (side // c * c for side, c in zip(x.shape[1:], cell, strict=True))
    whole = np.asarray(x, np.float64)[:, :height, :width]
    return reduce(whole, "c (h y) (w x) -> c h w", "mean", y=cell[0], x=cell[1])


def solve(
    scores: Float64, photo: Float64, words: Float[Array | np.ndarray, "k c"], *, steps: int = STEPS
) -> Float64:
    """Carry sure pixels' scores to unsure ones of like colour: (diag(C) + L)·X = C·scores.

    It runs on the host in float64, not under `jit`, on the grid that scores and photo were pooled
    to.

    Args:
        words: unit length; one of zeros only fills up the array.
        steps: of conjugate gradients, from the scores.

    Source: PEARL, text-aware Laplacian propagation.
    Differs: the reference solves in float32, where 25 steps amplify rounding to 1e-3.
    """
    words = np.asarray(words, np.float64)
    real = np.any(words != 0, axis=1)
    chances = _softmax(np.where(real[:, None, None], scores, -np.inf), axis=0)
    kinship = _self_weight(words, real)[:, None, None]

    def boosted(value: Float64, left: Float64, right: Float64) -> Float64:
        return value * (1 + np.clip(np.sum(kinship * left * right, axis=0), 0, 1))

    sure = np.maximum(np.max(chances, axis=0), 0.05) ** 2
    confidence = boosted(sure, chances, chances)
    grey = np.tensordot(GREY, photo, 1)

    def edges(axis: int) -> Float64:
        step = np.abs(np.diff(grey, axis=axis))
        # one column, or one colour, has no edge
        like = np.exp(-5 * step / max(step.mean(), 1e-6)) if step.size else step
        first, second = (np.take(chances, i, axis + 1) for i in _neighbours(grey.shape[axis]))
        return np.clip(boosted(like, first, second), 0, 1)

    down, across = edges(0), edges(1)

    def system(x: Float64) -> Float64:
        flow, side = down * np.diff(x, axis=1), across * np.diff(x, axis=2)
        out = confidence * x
        out[:, :-1] -= flow
        out[:, 1:] += flow
        out[:, :, :-1] -= side
        out[:, :, 1:] += side
        return out

    return _conjugate_gradients(system, confidence * scores, scores, steps)


def _neighbours(length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(length - 1), np.arange(1, length)


def _softmax(x: Float64, axis: int) -> Float64:
    weights = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return weights / np.sum(weights, axis=axis, keepdims=True)


def _self_weight(words: Float64, real: np.ndarray) -> Float64:
    """How much a word is itself and no other: the diagonal of their row-normalised likeness."""
    unit = words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-12)
    rows = _softmax(np.where(real, unit @ unit.T / 0.5, -np.inf), axis=1) + 10 * np.eye(len(words))
    return np.diagonal(rows) / (np.sum(rows, axis=1) + 1e-6)


def _conjugate_gradients(
    system: Callable[[Float64], Float64], right: Float64, start: Float64, steps: int
) -> Float64:
    """One step length for all classes, as the reference has it."""
    x, residual = start, right - system(start)
    direction, square = residual, np.sum(residual * residual)
    for _ in range(steps):
        if square == 0:
            break
        moved = system(direction)
        length = square / np.sum(direction * moved)
        x, residual = x + length * direction, residual - length * moved
        before, square = square, np.sum(residual * residual)
        direction = residual + square / before * direction
    return x
