"""SC-CLIP: outlying patches repaired, patches averaged with those that an earlier block finds like.

All arrays are of one image: patches [m, d] in row-major order of a grid, without the class token.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from otseg_jax.models.decoder import normalize
from otseg_jax.models.last_block import einsum

NEIGHBOURS = 30  # in feature space, of the local outlier factor
QUANTILE = 0.95  # of the factors; a patch above it is an outlier
LEAST_LIKENESS = 0.4  # cosine below which a patch is not averaged in
CLASS_SHARE = 0.3  # of the class token, added to every patch
SHARPNESS = 3.0  # of the similarity as attention

Patches = Float[Array, "m d"]
Pairs = Float[Array, "m m"]


def outlier_factors(patches: Patches) -> Float[Array, " m"]:
    """How much farther every patch lies from its neighbours in feature space than those do."""
    # differences, not ‖a‖² + ‖b‖² − 2ab, which would cancel where patches are alike
    squared = jax.lax.map(lambda x: jnp.sum((patches - x[None]) ** 2, axis=-1), patches)
    near, index = jax.lax.top_k(-squared, NEIGHBOURS + 1)  # the first is the patch itself
    radius = -near[:, -1]
    return radius * jnp.mean(1 / radius[index[:, 1:]], axis=-1)


def find_outliers(patches: Patches) -> Bool[Array, " m"]:
    """Patches whose factor is above the quantile."""
    factors = outlier_factors(patches)
    return factors > jnp.quantile(factors, QUANTILE)


def repair(patches: Patches, outliers: Bool[Array, " m"], grid: tuple[int, int]) -> Patches:
    """Replace outliers by the mean of those of their 8 neighbours that are none.

    Source: SC-CLIP (arXiv 2411.15869), which on grids that are not square repairs other places.
    """
    height, width = grid
    sound = jnp.where(outliers, 0.0, 1.0).reshape(*grid, 1)
    values = sound * patches.reshape(*grid, -1)
    pad = ((1, 1), (1, 1), (0, 0))
    values, counts = jnp.pad(values, pad), jnp.pad(sound, pad)
    around = [(y, x) for y, x in product(range(3), repeat=2) if (y, x) != (1, 1)]
    total, count = (
        sum(a[y : y + height, x : x + width] for y, x in around) for a in (values, counts)
    )
    mean = (total / jnp.maximum(count, 1.0)).reshape(patches.shape)
    # where all around are outliers too, nothing is known that is better
    lone = jnp.equal(count, 0).reshape(-1)
    return jnp.where((outliers & ~lone)[:, None], mean, patches)


def likeness(patches: Patches) -> Pairs:
    """Cosines between patches."""
    unit = normalize(patches)
    return einsum("id, jd -> ij", unit, unit)


def aggregate(patches: Patches, likeness: Pairs) -> Patches:
    """Average every patch with those that are like it."""
    near = jnp.where(likeness < LEAST_LIKENESS, 0.0, likeness)
    weights = near / (jnp.sum(near, axis=-1, keepdims=True) + 1e-6)
    return einsum("ij, jd -> id", weights, patches)


def as_attention(likeness: Pairs) -> Pairs:
    """softmax(3·(S − mean S)) over what is above the mean."""
    centred = SHARPNESS * (likeness - jnp.mean(likeness))
    # a patch is like itself, whatever the mean of an image of one colour is rounded to
    below = (centred < 0) & ~jnp.eye(len(centred), dtype=bool)
    return jax.nn.softmax(jnp.where(below, -jnp.inf, centred), axis=-1)


def check_grid(grid: tuple[int, int]) -> None:
    """Refuse an image with too few patches for an outlier factor."""
    if (count := int(np.prod(grid))) <= NEIGHBOURS:
        raise ValueError(
            f"sc_clip looks at the {NEIGHBOURS} nearest of other patches, an image has {count} "
            f"({grid[0]} × {grid[1]}): give larger images, windows or scales, or another method"
        )
