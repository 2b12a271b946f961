"""Named logit maps, and how a method mixes them into what is scored.

A model returns `{map name: f32[b, k, h, w]}` on the patch grid. Inference, pseudo-labels, export
and tables go by an `Outputs`, and nobody needs to know how many maps there are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float64, Int32

Maps: TypeAlias = Mapping[str, Float[Array, "b k h w"]]
Mixture: TypeAlias = Mapping[str, float | Float[Array, ""]]
"""Map name → weight. Upsampling is linear: mixing before it is exact."""
Best: TypeAlias = tuple[Float[Array, "b H W"], Int32[Array, "b H W"]]
"""Of every pixel: the largest logit so far, and its class."""


@dataclass(frozen=True)
class Outputs:
    """What a method is scored on; a `main` that is none of the mixtures is a ValueError."""

    mixtures: Mapping[str, Mapping[str, float]]  # output name → mixture of the model's maps
    main: str  # what predictions, pseudo-labels and the best checkpoint go by

    def __post_init__(self) -> None:
        if self.main not in self.mixtures:
            raise ValueError(f"main output {self.main!r} is none of {', '.join(self.mixtures)}")


def mix(maps: Maps, mixture: Mixture) -> Float[Array, "b k h w"]:
    """Σ weight·map over the maps that a mixture names.

    Example:
        >>> import jax.numpy as jnp
        >>> maps = {"decoder": jnp.full((1, 1, 1, 1), 4.0), "mps": jnp.full((1, 1, 1, 1), 2.0)}
        >>> mix(maps, {"decoder": 0.5, "mps": 0.5}).item()
        3.0
    """
    return reduce(add, (weight * maps[name] for name, weight in mixture.items()))


def upsample(logits: Float[Array, "b k h w"], size: tuple[int, int]) -> Float[Array, "b k H W"]:
    """Resize logit maps to `size` = (H, W) pixels, as `bilinear` says.

    `jax.image.resize` gives the same, but leaves the order of the two products open, and a CPU
    (jax 0.10) is slow at what comes of it in a loop over the classes of several windows.
    """
    einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    down, across = (
        bilinear(cells, pixels).astype(logits.dtype)
        for cells, pixels in zip(logits.shape[2:], size, strict=True)
    )
    rows = einsum("Hh, bkhw -> bkHw", down, logits)
    return einsum("bkHw, Ww -> bkHW", rows, across)


def bilinear(cells: int, pixels: int) -> Float64[np.ndarray, "{pixels} {cells}"]:
    """Weight of every cell in every pixel along an axis; half-pixel centres, no antialias."""
    # twice the numerator of (i + ½)·cells/pixels − ½, exact
    numerator = (2 * np.arange(pixels) + 1) * cells - pixels
    lower = numerator // (2 * pixels)
    share = (numerator - lower * 2 * pixels) / (2 * pixels)
    rows, found = np.arange(pixels), np.zeros((pixels, cells))
    np.add.at(found, (rows, np.clip(lower, 0, cells - 1)), 1 - share)
    np.add.at(found, (rows, np.clip(lower + 1, 0, cells - 1)), share)
    return found


def upsampled_argmax(
    logits: Float[Array, "b k h w"], size: tuple[int, int]
) -> Int32[Array, "b H W"]:
    """The class of the largest logit of `upsample`, of equals the first.

    One class at a time: all of them at the size of a photo would fill the memory.
    """

    def one_more(best, entry):
        k, z = entry
        return compare(best, upsample(z[:, None], size)[:, 0], k), None

    classes = (jnp.arange(logits.shape[1], dtype=jnp.int32), jnp.moveaxis(logits, 1, 0))
    (_, index), _ = jax.lax.scan(one_more, nothing((len(logits), *size), logits.dtype), classes)
    return index


def nothing(shape: tuple[int, int, int], dtype: DTypeLike) -> Best:
    """Before any class: what the logits of a first one are compared with."""
    return jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, jnp.int32)


def compare(best: Best, logits: Float[Array, "b H W"], k: Int32[Array, ""]) -> Best:
    """Go on with the logits of class k; of equals the first wins."""
    return jnp.maximum(best[0], logits), jnp.where(logits > best[0], k, best[1])
