"""The paper's algorithm: a fixed number of Sinkhorn updates, and the gradient through them.

Arrays end in `[n, m]`, prompts then pixels, as in `newton`.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from otseg_jax.ot.newton import Matrix, Pixels, Prompts, Solved


def solve(similarity: Matrix, a: Pixels, b: Prompts, *, epsilon: float, iterations: int) -> Solved:
    """Update rows, then columns, in the log domain; columns are met exactly."""
    kernel = (similarity - 1.0) / epsilon

    def potential(weights, exponent, axis):
        absent = weights == 0
        log = jnp.log(jnp.where(absent, 1.0, weights))
        return jnp.where(absent, -jnp.inf, log - logsumexp(exponent, axis=axis))

    def update(potentials, _):
        _, v = potentials
        u = potential(a, kernel + v[..., None], -2)
        v = potential(b, kernel + u[..., None, :], -1)
        return (u, v), None

    # Checkpointed: the backward pass keeps m + n numbers an iteration, not several m·n arrays.
    start = (jnp.zeros_like(a), jnp.where(b == 0, -jnp.inf, jnp.zeros_like(b)))
    (u, v), _ = jax.lax.scan(jax.checkpoint(update), start, length=iterations)
    plan = jnp.exp(kernel + u[..., None, :] + v[..., None])
    steps = jnp.full(a.shape[:-1], iterations, jnp.int32)
    return Solved(plan, v, steps)
