"""Converged entropic transport as one differentiable operation on any batch of problems.

Wraps the solver of `newton` with the implicit function theorem, so that a gradient costs one small
linear system however many steps the solution took. Arrays end in `[n, m]`, prompts then pixels;
weights a [..., m] and b [..., n] are ≥ 0 and sum to 1, or are all 0.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from otseg_jax.ot import newton
from otseg_jax.ot.newton import TINY, Solved, gram, quotient

CHUNK = 2**17  # entries of the similarities that a CPU works on at a time
MOST_PROBLEMS = 64  # at a time on a CPU: more small ones gain nothing


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def solve(
    similarity: Float[Array, "*batch n m"],
    a: Float[Array, "*batch m"],
    b: Float[Array, "*batch n"],
    epsilon: float,
    tolerance: float,
) -> Solved:
    """Solve to an L1 error of at most `tolerance` in b; a is met to rounding.

    The plan is differentiable in similarity, a and b by the implicit function theorem, in reverse
    mode and any number of times; the gradient of a weight that is 0 is 0, and so is that of mass
    moved between prompts that share less than 1e-30 of it. Potentials and steps are constants.
    """
    return by_chunks(
        functools.partial(newton.solve, epsilon=epsilon, tolerance=tolerance), similarity, a, b
    )


def by_chunks(function, *arrays):
    """Apply `function` to problems [..., n, m] with arrays [..., m] or [..., n] beside them.

    On a CPU a fixed number of problems at a time: they fit the cache, and as every problem goes
    through the same program, its result has the same bits alone and in any batch. Other devices
    take all problems at once.
    """

    @jax.custom_batching.custom_vmap
    def apply(*arrays):
        chunked = functools.partial(_chunked, function)
        return jax.lax.platform_dependent(*arrays, cpu=chunked, default=function)

    @apply.def_vmap
    def apply_to_all(axis_size, batched, *arrays):
        # One batch of everything: chunks of each problem's own would be padding for the most part.
        whole = (
            x if has else jnp.broadcast_to(x, (axis_size, *x.shape))
            for x, has in zip(arrays, batched, strict=True)
        )
        results = by_chunks(function, *whole)
        return results, jax.tree.map(lambda _: True, results)

    return apply(*arrays)


def _chunked(function, *arrays):
    *batch, n, m = arrays[0].shape
    size = math.prod(batch)
    chunk = max(1, min(MOST_PROBLEMS, CHUNK // (n * m)))
    # Never exactly one chunk, see below; `max_dim`, as an exported program may leave `size` open.
    total = jax.core.max_dim(size, chunk + 1)
    flat = [x.reshape(size, *x.shape[len(batch) :]) for x in arrays]
    flat = [jnp.pad(x, [(0, total - size)] + [(0, 0)] * (x.ndim - 1)) for x in flat]
    shapes = jax.eval_shape(function, *(x[:chunk] for x in flat))
    # A 0 that the compiler cannot know, and a slice that is never the whole: else it would fuse a
    # single chunk with what is around it, and that changes bits. (One chunk more would do no harm.)
    unknown = jnp.any(jnp.abs(flat[0][:1, :1, :1]) > 1e30).astype(jnp.int32)
    # Written over, so any values do; these are not shared with another call, hence not copied.
    results = jax.tree.map(lambda x: jnp.full((total, *x.shape[1:]), unknown, x.dtype), shapes)

    def work(i, results):
        # The last chunk reaches back over the one before it: the same bits are written twice.
        start = jnp.minimum(i * chunk, total - chunk)
        part = [jax.lax.dynamic_slice_in_dim(x, start, chunk) for x in flat]
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=0),
            results,
            function(*part),
        )

    results = jax.lax.fori_loop(0, -(-size // chunk) + unknown, work, results)
    return jax.tree.map(lambda x: x[:size].reshape(*batch, *x.shape[1:]), results)


def _forward(similarity, a, b, epsilon, tolerance):
    # `solve` itself and not its body: a second derivative then meets the implicit rule again.
    solved = solve(similarity, a, b, epsilon, tolerance)
    return solved, (solved.plan, a)


def _backward(epsilon, tolerance, residuals, cotangents):
    del tolerance
    return adjoint(cotangents.plan, *residuals, epsilon)


solve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def align(
    similarity: Float[Array, "*batch n m"],
    values: Float[Array, "*batch n m"],
    a: Float[Array, "*batch m"],
    b: Float[Array, "*batch n"],
    epsilon: float,
    tolerance: float,
) -> tuple[Float[Array, "*batch m"], Int[Array, "*batch"]]:
    """Σₙ plan·values of every pixel, and the steps, as `solve`; the plan is not stored."""

    def work(similarity, values, a, b):
        solved = newton.solve(similarity, a, b, epsilon=epsilon, tolerance=tolerance)
        return jnp.sum(solved.plan * values, axis=-2), solved.steps

    return by_chunks(work, similarity, values, a, b)


def _align_forward(similarity, values, a, b, epsilon, tolerance):
    # with the plan, which the backward pass needs
    solved = solve(similarity, a, b, epsilon, tolerance)
    aligned = jnp.sum(solved.plan * values, axis=-2)
    return (aligned, solved.steps), (values, solved.plan, a)


def _align_backward(epsilon, tolerance, residuals, cotangents):
    del tolerance
    values, plan, a = residuals
    aligned = cotangents[0][..., None, :]
    d_similarity, d_a, d_b = adjoint(aligned * values, plan, a, epsilon)
    return d_similarity, aligned * plan, d_a, d_b


align.defvjp(_align_forward, _align_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def adjoint(
    cotangent: Float[Array, "*batch n m"],
    plan: Float[Array, "*batch n m"],
    a: Float[Array, "*batch m"],
    epsilon: float,
) -> tuple[Float[Array, "*batch n m"], Float[Array, "*batch m"], Float[Array, "*batch n"]]:
    """Gradients with respect to similarity, a and b, given the plan T and its cotangent G.

    The adjoint of the marginal constraints, with the m rows eliminated:
    [diag(a) T; Tᵀ diag(b)]·[α; β] = [T∘G·1; (T∘G)ᵀ·1], then dS = T∘(G − α − β)/ε, da = α, db = β
    (up to a constant that normalised weights do not see).
    """
    return by_chunks(functools.partial(_adjoint, epsilon=epsilon), cotangent, plan, a)


def _adjoint(cotangent, plan, a, *, epsilon):
    inverse = quotient((a > 0).astype(a.dtype), a)
    mean = jnp.sum(plan * cotangent, axis=-2) * inverse
    # Centred per pixel: a constant moves nothing, and would round off what prompts differ by.
    weighted = plan * (cotangent - mean[..., None, :])
    edges = gram(plan * jnp.sqrt(inverse)[..., None, :])
    flow = jnp.einsum(
        "...nm,...km->...nk",
        weighted * inverse[..., None, :],
        plan,
        precision=jax.lax.Precision.HIGHEST,
    )
    beta = solve_flow(edges, flow - jnp.swapaxes(flow, -1, -2))
    shared = jnp.sum(plan * beta[..., None], axis=-2) * inverse
    gradient = (weighted - plan * (beta[..., None] - shared[..., None, :])) / epsilon
    return gradient, mean - shared, beta


def _adjoint_forward(cotangent, plan, a, epsilon):
    return adjoint(cotangent, plan, a, epsilon), (cotangent, plan, a)


def _adjoint_backward(epsilon, residuals, cotangents):
    # A loop over chunks has no reverse mode; the same sums over all problems at once have.
    return jax.vjp(functools.partial(_adjoint, epsilon=epsilon), *residuals)[1](cotangents)


adjoint.defvjp(_adjoint_forward, _adjoint_backward)


def solve_flow(
    edges: Float[Array, "*batch n n"], flow: Float[Array, "*batch n n"]
) -> Float[Array, "*batch n"]:
    """Solve Σₖ edges[j, k]·(x[j] − x[k]) = Σₖ flow[j, k] for x, of which the last is 0.

    Elimination without subtraction, as in `newton.solve_laplacian`, of each edge's flow beside its
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
