"""Entropic optimal transport between the pixels of an image and the prompts of a class.

Everything here is a pure function of arrays, written for one problem of m pixels and n prompts and
vmapped over whatever axes come before (images, classes). Arrays end in `[m, n]`: row = pixel,
column = prompt. All arithmetic is float32 in the log domain, whatever the input's dtype.
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float


def sinkhorn(
    similarity: Float[Array, "*batch m n"], *, epsilon: float = 0.05, iterations: int = 100
) -> Float[Array, "*batch m n"]:
    """Transport plan between uniform marginals that maximises similarity, smoothed by entropy.

    T* = argmin over T in Π(1/m, 1/n) of ⟨T, 1 − S⟩ − ε·H(T), by `iterations` Sinkhorn updates
    (rows, then columns, so that columns are met exactly and rows up to convergence).

    Args:
        similarity: f32[..., m, n], cosine in [-1, 1]; the cost is 1 − similarity in [0, 2].
        epsilon: weight of the entropy, in units of the cost; > 0.
        iterations: number of updates; fixed, so that one problem never depends on its batch-mates.

    Returns:
        f32[..., m, n], non-negative; rows sum to 1/m, columns to 1/n, everything to 1.

    Raises:
        ValueError: epsilon or iterations is not positive, or m or n is zero.

    Differs:
        The reference stops the whole batch together when its mean update falls below 1e-6 and adds
        1e-8 inside the log of the marginals. Its rows are then off by about 1e-4, and its plans by
        up to 4e-4 from converged ones; ours depend on nothing but the problem itself.

    Example:
        >>> plan = sinkhorn(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> print(plan.round(3))
        [[0.5 0. ]
         [0.  0.5]]

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn; Cuturi 2013.
    """
    m, n = similarity.shape[-2:]
    if epsilon <= 0 or iterations <= 0:
        raise ValueError(
            f"sinkhorn needs epsilon > 0 and iterations > 0, got {epsilon} and {iterations}"
        )
    if m == 0 or n == 0:
        raise ValueError(f"sinkhorn needs at least one pixel and one prompt, got m={m}, n={n}")
    solve = functools.partial(_solve, epsilon=epsilon, iterations=iterations)
    return jnp.vectorize(solve, signature="(m,n)->(m,n)")(similarity.astype(jnp.float32))


def mps(
    similarity: Float[Array, "*batch m n"], *, epsilon: float = 0.05, iterations: int = 100
) -> Float[Array, "*batch m"]:
    """Multi-Prompt Sinkhorn: how well each pixel matches a class that n prompts describe.

    S*[m] = M·N·Σₙ T*[m,n]·S[m,n], T* from `sinkhorn`. Rows of T* sum to 1/M, so this is N times
    a mean over prompts that weighs, for each pixel, the prompts that took it.

    Args:
        similarity: f32[..., m, n], cosine of pixel and prompt in [-1, 1].
        epsilon: weight of the entropy, in units of the cost; > 0.
        iterations: number of Sinkhorn updates.

    Returns:
        f32[..., m], refined alignment in [-n, n] once converged.

    Raises:
        ValueError: as `sinkhorn`.

    Example:
        >>> similarity = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]])
        >>> [round(score, 2) for score in mps(similarity).tolist()]
        [1.8, 1.6, 1.3]

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn.
    """
    plan = sinkhorn(similarity, epsilon=epsilon, iterations=iterations)
    m, n = similarity.shape[-2:]
    return m * n * jnp.sum(plan * similarity.astype(jnp.float32), axis=-1)


def _solve(
    similarity: Float[Array, "m n"], *, epsilon: float, iterations: int
) -> Float[Array, "m n"]:
    m, n = similarity.shape
    # Pixels are many and prompts few: with pixels last, the long axis fills the vector lanes.
    kernel = (similarity.T - 1.0) / epsilon

    def update(potentials, _):
        _, v = potentials
        u = -jnp.log(m) - logsumexp(kernel + v[:, None], axis=0)
        v = -jnp.log(n) - logsumexp(kernel + u[None, :], axis=1)
        return (u, v), None

    # Checkpointed: the backward pass keeps m + n numbers an iteration, not several m·n arrays.
    start = (jnp.zeros(m, jnp.float32), jnp.zeros(n, jnp.float32))
    (u, v), _ = jax.lax.scan(jax.checkpoint(update), start, length=iterations)
    return jnp.exp(kernel + u[None, :] + v[:, None]).T
