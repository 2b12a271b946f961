"""Newton's method for entropic transport between few prompts and many pixels.

With the rows (pixels) eliminated, what is left to minimise is a convex function of one potential
v[n] per prompt, the semi-dual. Its gradient is the error of the column sums, and its Hessian the
n×n Laplacian of a graph: edge (j, k) weighs what pixels share prompts j and k. Newton's method on
it usually takes 3 to 10 steps where Sinkhorn's updates take 40 to several hundred.

Arrays end in `[n, m]`, prompts then pixels, so that the long axis fills the vector lanes. Leading
axes are independent problems, and no problem's result depends on another. Weights a [..., m] and
b [..., n] are ≥ 0 and sum to 1, or are all 0. Everything works in its input's dtype.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LARGEST_COST = 2.0  # 1 − cosine
LARGEST_EXPONENT = 64.0  # kernel, scalings and their product stay normal numbers in float32 (e^±87)
WARM_STEPS = 2  # Sinkhorn updates before the first Newton step: cheap, and far off they do as well
BOLD_STEPS = 24  # later steps are shortened until descent is certain
PATIENCE = 6  # and so are those after as many rejected ones
MAX_STEPS = 200
LONGEST_STEP = 16.0  # range of a bold step: longer ones leave the range of float32
PART = 256  # pixels: in longer sums of terms all alike, rounding grows beyond 1e-6
TINY = 1e-30  # nodes whose edges weigh less count as disconnected

# of an array that is constant during a solve, and of the shifts of the potentials
Kernel = Callable[
    [Float[Array, "*batch n m"], Float[Array, "*batch n"]], Float[Array, "*batch n m"]
]


# marginals are sums of such products, and must be right to 1e-7
_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Potentials(NamedTuple):
    """v = shift + log(scale): the large part held apart, so that float32 resolves the small one."""

    shift: Float[Array, "*batch n"]
    scale: Float[Array, "*batch n"]


class State(NamedTuple):
    """Where each problem stands: its point, what was measured there, and the history of steps."""

    potentials: Potentials
    edges: Float[Array, "*batch n n"]  # of the Laplacian
    columns: Float[Array, "*batch n"]
    error: Float[Array, "*batch"]  # Σₙ|columns − b|
    damping: Float[Array, "*batch"]  # λ per unit of the error
    failures: Int[Array, "*batch"]
    steps: Int[Array, "*batch"]


class Solved(NamedTuple):
    """Plan, potentials v of the prompts (−inf where b is 0) and the Newton steps taken."""

    plan: Float[Array, "*batch n m"]
    potentials: Float[Array, "*batch n"]
    steps: Int[Array, "*batch"]


def solve(
    similarity: Float[Array, "*batch n m"],
    a: Float[Array, "*batch m"],
    b: Float[Array, "*batch n"],
    *,
    epsilon: float,
    tolerance: float,
) -> Solved:
    """Solve to an L1 error of at most `tolerance` in b; a is met to rounding."""
    start_of = _exponentiated if epsilon * LARGEST_EXPONENT >= LARGEST_COST else _log_domain
    kernel_of, constant, start = start_of(similarity, a, b, epsilon)
    state, constant = _newton(kernel_of, constant, start, a, b, tolerance=tolerance)
    shift, scale = state.potentials
    kernel = kernel_of(constant, shift)
    plan = kernel * scale[..., None] * quotient(a, _rows(kernel, scale))[..., None, :]
    return Solved(plan, shift + jnp.log(scale), state.steps)


def _exponentiated(similarity, a, b, epsilon):
    """Start for a kernel that is exponentiated once: an iteration is products and sums."""
    # Behind the barrier there is one kernel; XLA would transpose one for each of its uses.
    kernel = jax.lax.optimization_barrier(jnp.exp((similarity - 1.0) / epsilon))
    # Columns first, as in the log domain below: no sum can underflow.
    columns = _dot("...nm,...m->...n", kernel, a)
    return _keep, kernel, Potentials(jnp.zeros_like(b), quotient(b, columns))


def _log_domain(similarity, a, b, epsilon):
    """Start for a kernel that follows the potentials: ε is too small to exponentiate once."""
    exponent = jax.lax.optimization_barrier(similarity / epsilon)
    # Every prompt starts with a pixel of its own: no column sum underflows, however small ε is.
    best = jnp.max(jnp.where(a[..., None, :] > 0, exponent, -jnp.inf), axis=-1)
    shift = jnp.where(b > 0, -jnp.round(best), -jnp.inf)
    return _log_kernel, exponent, Potentials(shift, (b > 0).astype(b.dtype))


def _keep(kernel, shift):
    del shift  # always zero here
    return kernel


def _log_kernel(exponent, shift):
    """exp(exponent + shift), up to a factor per pixel that makes its largest entry 1."""
    x = exponent + shift[..., None]
    largest = jnp.max(x, axis=-2, keepdims=True)
    # without any prompt the largest is −inf, and the kernel 0
    return jnp.exp(x - jnp.where(largest == -jnp.inf, 0.0, largest))


def _newton(kernel_of: Kernel, constant, start: Potentials, a, b, *, tolerance):
    """Newton's method on the potentials, each problem on its own and frozen once it is done.

    Returns the last state, and `constant` for the caller to use in place of its own: carried
    through the loop it needs no copy.
    """
    move = functools.partial(_move, absorb=kernel_of is _log_kernel)
    potentials = start
    for _ in range(WARM_STEPS):
        columns = _columns(kernel_of(constant, potentials.shift), potentials.scale, a)
        potentials = move(potentials, jnp.log(jnp.where(b > 0, quotient(b, columns), 1.0)))

    # Nothing is measured yet, and columns = b: the first pass through the loop does not move, it
    # measures. Out here, the kernel could be compiled to other roundings than in there.
    none = jnp.zeros(b.shape[:-1], jnp.int32)
    infinite = jnp.full(none.shape, jnp.inf, b.dtype)
    edges = jnp.zeros((*b.shape, b.shape[-1]), b.dtype)
    damping = jnp.full_like(infinite, 2.0)
    state = State(potentials, edges, b, infinite, damping, none, none - 1)

    def running(state: State) -> Bool[Array, "*batch"]:
        # NaN compares false: a broken problem stops at once, alone, and stays NaN.
        return (state.error > tolerance) & (state.steps < MAX_STEPS)

    def advance(carry):
        state, constant = carry
        bold = (state.failures < PATIENCE) & (state.steps < BOLD_STEPS)
        potentials = move(state.potentials, _step(state, b, bold))
        kernel = kernel_of(constant, potentials.shift)
        edges, columns, error = _measure(kernel, potentials.scale, a, b)
        accepted = (error < state.error) | ~bold | (state.steps < 0)
        failed = jnp.maximum(8.0 * state.damping, 0.1 / jnp.minimum(state.error, 1.0))
        damping = jnp.where(accepted, state.damping / 4.0, failed)
        failures = state.failures + (~accepted).astype(jnp.int32)
        steps = state.steps + 1
        candidate = state._replace(potentials=potentials, edges=edges, columns=columns, error=error)
        point = jax.tree.map(functools.partial(_select, accepted), candidate, state)
        frozen = functools.partial(_select, running(state))
        # Without the barrier XLA sees that this is the same array, and then copies it.
        constant = jax.lax.optimization_barrier(constant)
        point = point._replace(damping=damping, failures=failures, steps=steps)
        return jax.tree.map(frozen, point, state), constant

    return jax.lax.while_loop(lambda carry: jnp.any(running(carry[0])), advance, (state, constant))


def _step(state: State, b, bold):
    """Step δ of the potentials: (L + λ·diag(c))·δ = b − c, L the Laplacian, c the column sums.

    Bold (Levenberg-Marquardt): λ follows the error, so that the last steps are quadratic; the
    caller checks that the error falls. Careful (damped Newton): λ = 0, and δ is shortened until
    descent is certain. Along δ of range ρ the curvature changes at most by e^±ρ (softmax is
    quasi-self-concordant), hence a range of log(1 + ρ) always descends, and so does ρ itself below
    1.79. It is this that crosses plateaus whose curvature is e^-40.
    """
    residual = b - state.columns
    # Rounding leaves a sum that no step can remove.
    residual = residual - state.columns * jnp.sum(residual, axis=-1, keepdims=True)
    damping = jnp.where(bold, state.damping * jnp.minimum(state.error, 1.0), 0.0)
    step = solve_laplacian(
        state.edges, damping[..., None] * state.columns, residual, apart=1.0 / TINY
    )
    extent = jnp.max(step, axis=-1) - jnp.min(step, axis=-1)
    careful = jnp.maximum(1.5, jnp.log1p(extent))
    length = jnp.minimum(extent, jnp.where(bold, LONGEST_STEP, careful))
    return step * quotient(length, extent)[..., None]


def _columns(kernel, scale, a):
    """Column sums of kernel·scale once its rows are scaled to a."""
    return _dot("...nm,...m->...n", kernel, quotient(a, _rows(kernel, scale))) * scale


def _rows(kernel, scale):
    """Row sums of kernel·scale, which is nowhere written out."""
    return _dot("...nm,...n->...m", kernel, scale)


def _measure(kernel, scale, a, b):
    """Edges of the Laplacian, column sums and their L1 error, once rows are scaled to a."""
    rows = quotient(jnp.sqrt(a), _rows(kernel, scale))
    edges = gram(kernel * (scale[..., None] * rows[..., None, :]))
    columns = jnp.sum(edges, axis=-1)
    return edges, columns, jnp.sum(jnp.abs(columns - b), axis=-1)


def _move(potentials: Potentials, step, *, absorb: bool) -> Potentials:
    shift, scale = potentials
    if not absorb:
        # A product keeps the relative precision that the log of a large scale would lose.
        return Potentials(shift, scale * jnp.exp(step))
    active = scale > 0
    step = step + jnp.log(jnp.where(active, scale, 1.0))
    whole = jnp.round(step)
    return Potentials(shift + whole, jnp.where(active, jnp.exp(step - whole), 0.0))


def _select(condition, x, y):
    return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)


def quotient(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / y, and 0 where x is 0, whatever y is; the gradient is 0 there too."""
    zero = x == 0
    return jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, y))


def gram(x: Float[Array, "*batch n m"]) -> Float[Array, "*batch n n"]:
    """x·xᵀ, of many pixels in parts."""
    if x.shape[-1] <= 4 * PART:  # as good, and faster in one
        return _dot("...nm,...km->...nk", x, x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % PART)])
    x = x.reshape(*x.shape[:-1], -1, PART)
    parts = _dot("...npm,...kpm->...pnk", x, x)
    return jnp.sum(parts, axis=-3)


def solve_laplacian(
    edges: Float[Array, "*batch n n"],
    ground: Float[Array, "*batch n"],
    residual: Float[Array, "*batch n"],
    *,
    apart: float,
) -> Float[Array, "*batch n"]:
    """Solve (diag(ground + edges·1) − edges)·x = residual; without ground, the last x is 0.

    Cholesky elimination that never subtracts: a pivot is the sum of the edges that are left. Each
    keeps its relative precision however close to singular the matrix is, where a Cholesky that
    starts from rounded diagonal entries breaks down.

    Args:
        edges: symmetric, ≥ 0; the diagonal is ignored.
        ground: ≥ 0; added to the diagonal.
        residual: sums to 0 where there is no ground.
        apart: x of a node that no edge ties to later ones, per unit of its residual.

    Source: Grassmann, Taksar and Heyman 1985 (elimination without subtraction).
    """
    n = edges.shape[-1]
    system = jnp.concatenate([edges, ground[..., None], residual[..., None]], axis=-1)
    rows, columns = (
        jax.lax.broadcasted_iota(jnp.int32, system.shape, system.ndim - axis) for axis in (2, 1)
    )
    off_diagonal, index = rows != columns, columns[..., 0, :]

    def eliminate(k, system):
        row = jax.lax.dynamic_index_in_dim(system, k, axis=-2, keepdims=False)
        row = jnp.where(index > k, row, 0.0)
        column = row[..., :n]  # of a symmetric matrix
        pivot = jnp.sum(row[..., : n + 1], axis=-1, keepdims=True)
        tied = pivot > TINY
        # What rounding leaves of a residual must not drive disconnected parts from each other.
        lacking = (index == n + 1) & (k < n - 1) & (jnp.abs(row) > 1e-6)
        alone = jnp.where(lacking, row * apart, 0.0)
        row = jnp.where(tied, row / jnp.where(tied, pivot, 1.0), alone)
        system = system + jnp.where(off_diagonal, column[..., None] * row[..., None, :], 0.0)
        return jax.lax.dynamic_update_index_in_dim(system, row, k, axis=-2)

    def substitute(i, x):
        k = n - 1 - i
        row = jax.lax.dynamic_index_in_dim(system, k, axis=-2, keepdims=False)
        value = row[..., n + 1] + jnp.sum(row[..., :n] * x, axis=-1)
        return jax.lax.dynamic_update_index_in_dim(x, value, k, axis=-1)

    # Loops and not n copies of their bodies, which would run as fast and compile for seconds.
    system = jax.lax.fori_loop(0, n, eliminate, jnp.where(off_diagonal, system, 0.0))
    return jax.lax.fori_loop(0, n, substitute, jnp.zeros_like(residual))
