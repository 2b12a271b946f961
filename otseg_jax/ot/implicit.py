"""Converged entropic transport as one differentiable operation on any batch of problems.

Wraps the solver of `newton` with the implicit function theorem, so that a gradient costs one small
linear system however many steps the solution took. Arrays end in `[n, m]`, prompts then pixels;
weights a [..., m] and b [..., n] are ≥ 0 and sum to 1, or are all 0.
"""

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from otseg_jax.ot.laplacian import solve_flow
from otseg_jax.ot.newton import Aligned, Matrix, Pixels, Prompts, Solved, gram, quotient

CHUNK = 2**17  # entries of the similarities that a CPU works on at a time
MOST_PROBLEMS = 64  # at a time on a CPU: more small ones gain nothing


@runtime_checkable
class Solver(Protocol):
    """What solves problems, gradients aside: the module `newton`, or `pallas.Newton()`."""

    def solve(
        self, similarity: Matrix, a: Pixels, b: Prompts, *, epsilon: float, tolerance: float
    ) -> Solved:
        """Solve to an L1 error of at most `tolerance` in b; a is met to rounding."""

    def align(
        self,
        similarity: Matrix,
        values: Matrix,
        a: Pixels,
        b: Prompts,
        *,
        epsilon: float,
        tolerance: float,
    ) -> Aligned:
        """Σₙ plan·values of every pixel; the plan need not be stored."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def solve(
    similarity: Matrix,
    a: Pixels,
    b: Prompts,
    epsilon: float,
    tolerance: float,
    solver: Solver,
) -> Solved:
    """Solve to an L1 error of at most `tolerance` in b; a is met to rounding.

    The plan is differentiable in similarity, a and b by the implicit function theorem, in reverse
    mode and any number of times; the gradient of a weight that is 0 is 0, and so is that of mass
    moved between prompts that share less than 1e-30 of it. Potentials and steps are constants.
    """
    work = functools.partial(solver.solve, epsilon=epsilon, tolerance=tolerance)
    return by_chunks(work, similarity, a, b)


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


def _forward(similarity, a, b, *options):
    # `solve` itself and not its body: a second derivative then meets the implicit rule again.
    solved = solve(similarity, a, b, *options)
    return solved, (solved.plan, a)


def _backward(epsilon, tolerance, solver, residuals, cotangents):
    del tolerance, solver
    return adjoint(cotangents.plan, *residuals, epsilon)


solve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def align(
    similarity: Matrix,
    values: Matrix,
    a: Pixels,
    b: Prompts,
    epsilon: float,
    tolerance: float,
    solver: Solver,
) -> Aligned:
    """Σₙ plan·values of every pixel, and the steps, as `solve`; the plan is not stored."""
    work = functools.partial(solver.align, epsilon=epsilon, tolerance=tolerance)
    return by_chunks(work, similarity, values, a, b)


def _align_forward(similarity, values, a, b, *options):
    # with the plan, which the backward pass needs
    solved = solve(similarity, a, b, *options)
    aligned = jnp.sum(solved.plan * values, axis=-2)
    return Aligned(aligned, solved.steps), (values, solved.plan, a)


def _align_backward(epsilon, tolerance, solver, residuals, cotangents):
    del tolerance, solver
    values, plan, a = residuals
    aligned = cotangents.aligned[..., None, :]
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
