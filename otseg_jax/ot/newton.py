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
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from otseg_jax.ot.laplacian import TINY, solve_laplacian

LARGEST_COST = 2.0  # 1 − cosine
LARGEST_EXPONENT = 64.0  # kernel, scalings and their product stay normal numbers in float32 (e^±87)
WARM_STEPS = 2  # Sinkhorn updates before the first Newton step: cheap, and far off they do as well
BOLD_STEPS = 24  # later steps are shortened until descent is certain
PATIENCE = 6  # and so are those after as many rejected ones
MAX_STEPS = 200
LONGEST_STEP = 16.0  # range of a bold step: longer ones leave the range of float32
PART = 256  # pixels: in longer sums of terms all alike, rounding grows beyond 1e-6

Matrix: TypeAlias = Float[Array, "*batch n m"]
Pixels: TypeAlias = Float[Array, "*batch m"]
Prompts: TypeAlias = Float[Array, "*batch n"]
# of an array that is constant during a solve, and of the shifts of the potentials
Kernel = Callable[[Matrix, Prompts], Matrix]


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

    plan: Matrix
    potentials: Prompts
    steps: Int[Array, "*batch"]


class Aligned(NamedTuple):
    """Σₙ plan·values of every pixel, and the steps."""

    aligned: Pixels
    steps: Int[Array, "*batch"]


class Products(NamedTuple):
    """What of linear algebra a solve needs: `XLA` below, or what a kernel's compiler has."""

    rows: Callable[[Matrix, Prompts], Pixels]  # Σₙ matrix·weights, which is nowhere written out
    columns: Callable[[Matrix, Pixels], Prompts]  # Σₘ matrix·weights
    gram: Callable[[Matrix], Float[Array, "*batch n n"]]
    hold: Callable[[Matrix], Matrix]  # keeps an array from being made anew for each of its uses


def solve(
    similarity: Matrix,
    a: Pixels,
    b: Prompts,
    *,
    epsilon: float,
    tolerance: float,
    products: Products | None = None,
) -> Solved:
    """Solve to an L1 error of at most `tolerance` in b; a is met to rounding."""
    products = products or XLA
    start_of = _exponentiated if epsilon * LARGEST_EXPONENT >= LARGEST_COST else _log_domain
    kernel_of, constant, start = start_of(similarity, a, b, epsilon, products)
    state, constant = _newton(kernel_of, constant, start, a, b, tolerance, products)
    shift, scale = state.potentials
    kernel = kernel_of(constant, shift)
    plan = kernel * scale[..., None] * quotient(a, products.rows(kernel, scale))[..., None, :]
    return Solved(plan, shift + jnp.log(scale), state.steps)


def align(similarity: Matrix, values: Matrix, a: Pixels, b: Prompts, **options) -> Aligned:
    """Solve as `solve`, and add up plan·values; the plan is not stored."""
    solved = solve(similarity, a, b, **options)
    return Aligned(jnp.sum(solved.plan * values, axis=-2), solved.steps)


def _exponentiated(similarity, a, b, epsilon, products: Products):
    """Start for a kernel that is exponentiated once: an iteration is products and sums."""
    kernel = products.hold(jnp.exp((similarity - 1.0) / epsilon))
    # Columns first, as in the log domain below: no sum can underflow.
    columns = products.columns(kernel, a)
    return _keep, kernel, Potentials(jnp.zeros_like(b), quotient(b, columns))


def _log_domain(similarity, a, b, epsilon, products: Products):
    """Start for a kernel that follows the potentials: ε is too small to exponentiate once."""
    exponent = products.hold(similarity / epsilon)
    # Every prompt starts with a pixel of its own: no column sum underflows, however small ε is.
    best = jnp.max(jnp.where(a[..., None, :] > 0, exponent, -jnp.inf), axis=-1)
    shift = jnp.where(b > 0, -_whole(best), -jnp.inf)
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


def _newton(kernel_of: Kernel, constant, start: Potentials, a, b, tolerance, products: Products):
    """Newton's method on the potentials, each problem on its own and frozen once it is done.

    Returns the last state, and `constant` for the caller to use in place of its own: carried
    through the loop it needs no copy.
    """
    move = functools.partial(_move, absorb=kernel_of is _log_kernel)
    potentials = start
    for _ in range(WARM_STEPS):
        columns = _columns(kernel_of(constant, potentials.shift), potentials.scale, a, products)
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

    def unfinished(carry) -> Bool[Array, ""]:
        some = running(carry[0])
        return jnp.any(some) if some.ndim else some

    def advance(carry):
        state, constant = carry
        bold = (state.failures < PATIENCE) & (state.steps < BOLD_STEPS)
        potentials = move(state.potentials, _step(state, b, bold))
        kernel = kernel_of(constant, potentials.shift)
        edges, columns, error = _measure(kernel, potentials.scale, a, b, products)
        accepted = (error < state.error) | ~bold | (state.steps < 0)
        failed = jnp.maximum(8.0 * state.damping, 0.1 / jnp.minimum(state.error, 1.0))
        damping = jnp.where(accepted, state.damping / 4.0, failed)
        failures = state.failures + (~accepted).astype(jnp.int32)
        steps = state.steps + 1
        candidate = state._replace(potentials=potentials, edges=edges, columns=columns, error=error)
        point = jax.tree.map(functools.partial(_select, accepted), candidate, state)
        frozen = functools.partial(_select, running(state))
        # Without the barrier XLA sees that this is the same array, and then copies it.
        constant = products.hold(constant)
        point = point._replace(damping=damping, failures=failures, steps=steps)
        return jax.tree.map(frozen, point, state), constant

    return jax.lax.while_loop(unfinished, advance, (state, constant))


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


def _columns(kernel, scale, a, products: Products):
    """Column sums of kernel·scale once its rows are scaled to a."""
    return products.columns(kernel, quotient(a, products.rows(kernel, scale))) * scale


def _measure(kernel, scale, a, b, products: Products):
    """Edges of the Laplacian, column sums and their L1 error, once rows are scaled to a."""
    rows = quotient(jnp.sqrt(a), products.rows(kernel, scale))
    edges = products.gram(kernel * (scale[..., None] * rows[..., None, :]))
    columns = jnp.sum(edges, axis=-1)
    return edges, columns, jnp.sum(jnp.abs(columns - b), axis=-1)


def _move(potentials: Potentials, step, *, absorb: bool) -> Potentials:
    shift, scale = potentials
    if not absorb:
        # A product keeps the relative precision that the log of a large scale would lose.
        return Potentials(shift, scale * jnp.exp(step))
    active = scale > 0
    step = step + jnp.log(jnp.where(active, scale, 1.0))
    whole = _whole(step)
    return Potentials(shift + whole, jnp.where(active, jnp.exp(step - whole), 0.0))


def _whole(x):
    return jnp.floor(x + 0.5)  # a kernel's compiler may lack `round`


def _select(condition, x, y):
    missing = tuple(range(condition.ndim, x.ndim))
    return jnp.where(jnp.expand_dims(condition, missing) if missing else condition, x, y)


def quotient(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / y, and 0 where x is 0, whatever y is; the gradient is 0 there too."""
    zero = x == 0
    return jnp.where(zero, 0.0, x / jnp.where(zero, 1.0, y))


# marginals are sums of such products, and must be right to 1e-7
_dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def gram(x: Matrix) -> Float[Array, "*batch n n"]:
    """x·xᵀ, of many pixels in parts."""
    if x.shape[-1] <= 4 * PART:  # as good, and faster in one
        return _dot("...nm,...km->...nk", x, x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % PART)])
    x = x.reshape(*x.shape[:-1], -1, PART)
    parts = _dot("...npm,...kpm->...pnk", x, x)
    return jnp.sum(parts, axis=-3)


XLA = Products(
    rows=functools.partial(_dot, "...nm,...n->...m"),
    columns=functools.partial(_dot, "...nm,...m->...n"),
    gram=gram,
    hold=jax.lax.optimization_barrier,
)
