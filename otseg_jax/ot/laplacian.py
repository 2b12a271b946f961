"""Small systems of graph Laplacians, by elimination that never subtracts.

A pivot is the sum of the edges that are left, so that each keeps its relative precision however
close to singular the matrix is; a Cholesky that starts from rounded diagonal entries breaks down.
Steps are masks and sums, without an index or a slice that is known late: these are what compilers
of kernels lack.

Source: Grassmann, Taksar and Heyman 1985 (elimination without subtraction).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

TINY = 1e-30  # nodes whose edges weigh less count as disconnected


def solve_laplacian(
    edges: Float[Array, "*batch n n"],
    ground: Float[Array, "*batch n"],
    residual: Float[Array, "*batch n"],
    *,
    apart: float,
) -> Float[Array, "*batch n"]:
    """Solve (diag(ground + edges·1) − edges)·x = residual; without ground, the last x is 0.

    Args:
        edges: symmetric, ≥ 0; the diagonal is ignored.
        ground: ≥ 0; added to the diagonal.
        residual: sums to 0 where there is no ground.
        apart: x of a node that no edge ties to later ones, per unit of its residual.
    """
    n = edges.shape[-1]
    rows, columns = (
        jax.lax.broadcasted_iota(jnp.int32, edges.shape, edges.ndim - axis) for axis in (2, 1)
    )
    diagonal = rows == columns
    # Vectors stay rows [1, n]: kernels of a TPU are slow to turn them, or fail.
    index = jax.lax.broadcasted_iota(jnp.int32, (*edges.shape[:-2], 1, n), edges.ndim - 1)

    def eliminate(k, system):
        edges, ground, residual = system
        row = jnp.sum(jnp.where((rows == k) & (columns > k), edges, 0.0), axis=-2, keepdims=True)
        grounded, lacking = (
            jnp.sum(jnp.where(index == k, x, 0.0), axis=-1, keepdims=True)
            for x in (ground, residual)
        )
        pivot = jnp.sum(row, axis=-1, keepdims=True) + grounded
        tied = pivot > TINY
        safe = jnp.where(tied, pivot, 1.0)
        share = jnp.where(tied, row / safe, 0.0)
        # What rounding leaves of a residual must not drive disconnected parts from each other.
        alone = jnp.where((k < n - 1) & (jnp.abs(lacking) > 1e-6), lacking * apart, 0.0)
        lead = jnp.where(tied, lacking / safe, alone)
        edges = edges + jnp.where(diagonal, 0.0, jnp.swapaxes(row, -1, -2) * share)
        edges = jnp.where(rows == k, share, edges)
        ground = ground + jnp.where(tied, row * (grounded / safe), 0.0)
        return edges, ground, jnp.where(index == k, lead, residual + row * lead)

    def substitute(i, x):
        k = n - 1 - i
        share = jnp.sum(jnp.where(rows == k, shares, 0.0), axis=-2, keepdims=True)
        return jnp.where(index == k, lead + jnp.sum(share * x, axis=-1, keepdims=True), x)

    # Loops and not n copies of their bodies, which would run as fast and compile for seconds.
    start = (jnp.where(diagonal, 0.0, edges), ground[..., None, :], residual[..., None, :])
    shares, _, lead = jax.lax.fori_loop(0, n, eliminate, start)
    return jnp.squeeze(jax.lax.fori_loop(0, n, substitute, jnp.zeros_like(lead)), axis=-2)


def solve_flow(
    edges: Float[Array, "*batch n n"], flow: Float[Array, "*batch n n"]
) -> Float[Array, "*batch n"]:
    """Solve Σₖ edges[j, k]·(x[j] − x[k]) = Σₖ flow[j, k] for x, of which the last is 0.

    Elimination as in `solve_laplacian`, of each edge's flow beside its
    weight. Their quotient stays a mean of what cotangents differ by; summed per node, the flow of
    a weak edge would drown in the rounding of strong ones, and x is that flow over that weight.

    Args:
        edges: symmetric, ≥ 0; the diagonal is ignored.
        flow: antisymmetric, at most of the size of edges times the cotangents.
    """
    n = edges.shape[-1]
    index = jnp.arange(n).reshape((1,) * (edges.ndim - 2) + (n,))
    diagonal = jnp.eye(n, dtype=bool).reshape((1,) * (edges.ndim - 2) + (n, n))

    def eliminate(k, system):
        edges, flow, lead = system
        edge, along = (
            jnp.where(index > k, jax.lax.dynamic_index_in_dim(x, k, axis=-2, keepdims=False), 0.0)
            for x in (edges, flow)
        )
        pivot = jnp.sum(edge, axis=-1, keepdims=True)
        tied = pivot > TINY
        # Scaled by a constant, for the second derivative: it squares the pivot.
        scale = jax.lax.stop_gradient(jnp.where(tied, 1.0 / jnp.where(tied, pivot, 1.0), 0.0))
        pivot = jnp.where(tied, pivot * scale, 1.0)
        share = edge * scale / pivot
        ahead = jnp.sum(along, axis=-1, keepdims=True) * scale / pivot
        through = share[..., None] * along[..., None, :]
        edges = edges + jnp.where(diagonal, 0.0, share[..., None] * edge[..., None, :])
        flow = flow + through - jnp.swapaxes(through, -1, -2)
        edges = jax.lax.dynamic_update_index_in_dim(edges, share, k, axis=-2)
        return edges, flow, jnp.where(index == k, ahead, lead)

    def substitute(i, x):
        k = n - 1 - i
        share = jax.lax.dynamic_index_in_dim(shares, k, axis=-2, keepdims=False)
        value = jnp.sum(share * x, axis=-1, keepdims=True)
        return jnp.where(index == k, lead + value, x)

    start = (jnp.where(diagonal, 0.0, edges), flow, jnp.zeros_like(edges[..., 0]))
    shares, _, lead = jax.lax.fori_loop(0, n, eliminate, start)
    return jax.lax.fori_loop(0, n, substitute, jnp.zeros_like(lead))
