"""Multi-Prompt Sinkhorn: optimal transport between the pixels of an image and prompts of a class.

A class is described by n prompts, an image by m pixels, and every (image, class) pair is a small
transport problem of its own: which pixels does each prompt take, if every prompt must take an equal
share? Plain attention lets one prompt take everything; the plan spreads the prompts over the image.
Arrays end in `[m, n]`: row = pixel, column = prompt; axes before these are independent problems.

`iterations=None` (the default) runs a Newton method to convergence and differentiates its result
implicitly; `iterations=100` runs that many of the paper's updates and differentiates through them.
Arithmetic is float32, or float64 where the input is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, xlogy
from jaxtyping import Array, Bool, Float, Int

from otseg_jax.ot import implicit, newton, unrolled
from otseg_jax.ot.implicit import Solver
from otseg_jax.ot.problem import OnError, Problem, prepare, tell

ANY_EPSILON = 2.0**-6  # a power of 2, and in the log domain, which bears any similarities


class Solution(NamedTuple):
    """A plan and how good it is.

    Attributes:
        plan: as `sinkhorn`; the only field with a gradient.
        steps: Newton steps taken, or `iterations`.
        marginal_error: Σₘ|row sum − a| + Σₙ|column sum − b|, in [0, 2]; more than `tolerance` and
            rounding means that the problem was given up on.
        entropy: H(T) = −Σ T·log T, in nats.
        dual_value: ε·(⟨a, u⟩ + ⟨b, v⟩) with T = exp(u + v − (1 − S)/ε); once solved it equals
            ⟨T, 1 − S⟩ − ε·H(T), and it is never more.
    """

    plan: Float[Array, "*batch m n"]
    steps: Int[Array, "*batch"]
    marginal_error: Float[Array, "*batch"]
    entropy: Float[Array, "*batch"]
    dual_value: Float[Array, "*batch"]


def sinkhorn(
    similarity: Float[Array, "*batch m n"],
    *,
    epsilon: float | Float[Array, "*#batch"] = 0.05,
    iterations: int | None = None,
    tolerance: float = 1e-6,
    pixel_weights: Float[Array, "*#batch m"] | Bool[Array, "*#batch m"] | None = None,
    prompt_weights: Float[Array, "*#batch n"] | Bool[Array, "*#batch n"] | None = None,
    on_error: OnError = "warn",
    solver: Solver = newton,
) -> Float[Array, "*batch m n"]:
    """Transport plan that maximises similarity, smoothed by entropy.

    T* = argmin over T in Π(a, b) of ⟨T, 1 − S⟩ − ε·H(T), with H(T) = −Σ T·log T and Π(a, b) the
    plans T ≥ 0 whose rows sum to a (pixels, 1/m each) and columns to b (prompts, 1/n each).

    Args:
        similarity: cosine in [-1, 1]; of what is c times as large, take c times the epsilon. bf16,
            f16 and integers are solved in f32.
        epsilon: weight of the entropy, in units of the cost 1 − S; > 0, tested from 0.5 to 0.005.
            A number is compiled into the program, which is fastest. An array, traced or not, is an
            argument: one for all problems or one for each, with a gradient, and NaN where it is
            not > 0. (Several for one problem: `jax.vmap(lambda e: sinkhorn(s, epsilon=e))`.)
        iterations: None solves to `tolerance`, each problem on its own; the gradient is implicit
            and its memory does not grow with the steps. A number runs exactly that many updates
            (rows, then columns, so that columns are met exactly) and differentiates through them.
        tolerance: largest Σₙ|column sum − b| of a solved problem, without `iterations`; rows are
            then met to rounding. (Rows and columns change places where m < n.) Less than about
            2e-7 is out of reach in float32: such a problem is given up on after 200 steps.
        pixel_weights: ≥ 0, a up to scale; None: all alike. False or 0 (or less) masks a pixel: its
            row is exactly 0, whatever its similarities are, NaN included.
        prompt_weights: b, likewise. Where no pixel or no prompt is left, the plan is 0.
        on_error: what to do about a problem that was given up on after 200 steps, or whose
            similarities are no cosines. "warn": such a plan is returned as it is, its columns not
            met, with a RuntimeWarning; so are those of similarities above 1 and 30·epsilon, and
            above 200·epsilon they are a ValueError. "raise": a ValueError for all of these, and for
            NaN in what was given. "nan": NaN, as is the gradient. "ignore": nothing; this
            is also what "warn" does under jit, vmap and grad, where there are no values to look at
            (and "raise" is refused). To look costs a wait for the result.
        solver: of a converged plan. `pallas.Newton()` of `otseg_jax.ot` is one kernel for GPU and
            TPU, not yet run on either; it differs in rounding.

    Returns:
        Non-negative; rows sum to a, columns to b, everything to 1. A problem that holds a NaN,
        among its weights too, returns NaN, and only that one.

    Raises:
        ValueError: arguments that are no numbers, do not fit or are out of range; see `on_error`.
        TypeError: forward-mode differentiation of a converged plan; use reverse mode, which may be
            repeated, or a fixed number of iterations. (In JAX's words where a jit is around it.)

    Differs:
        The reference runs up to 100 updates, stops the whole batch together when its mean update
        falls below 1e-6 and adds 1e-8 inside the log of the marginals. Its rows are then off by
        about 1e-4, its plans by up to 4e-4; ours depend on nothing but the problem itself.

    Example:
        >>> plan = sinkhorn(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> print(plan.round(3))
        [[0.5 0. ]
         [0.  0.5]]

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn; Cuturi 2013; the semi-dual Newton
        method, `otseg_jax.ot.newton`.
    """
    problem = prepare(
        similarity,
        epsilon=epsilon,
        iterations=iterations,
        tolerance=tolerance,
        pixel_weights=pixel_weights,
        prompt_weights=prompt_weights,
        on_error=on_error,
        solver=solver,
    )
    solved, gave_up = _answer(_solve, problem, iterations, tolerance, on_error, solver)
    plan = jnp.swapaxes(solved.plan, -1, -2)
    tell(problem, plan, gave_up, on_error)
    return plan


def mps(
    similarity: Float[Array, "*batch m n"],
    *,
    epsilon: float | Float[Array, "*#batch"] = 0.05,
    iterations: int | None = None,
    tolerance: float = 1e-6,
    pixel_weights: Float[Array, "*#batch m"] | Bool[Array, "*#batch m"] | None = None,
    prompt_weights: Float[Array, "*#batch n"] | Bool[Array, "*#batch n"] | None = None,
    on_error: OnError = "warn",
    solver: Solver = newton,
) -> Float[Array, "*batch m"]:
    """Multi-Prompt Sinkhorn: how well each pixel matches a class that n prompts describe.

    S*[m] = M·N·Σₙ T*[m,n]·S[m,n], T* from `sinkhorn`. Rows of T* sum to 1/M, so this is N times a
    mean over prompts that weighs, for each pixel, the prompts that took it. With weights, M is
    1/a[m] and N the number of prompts whose weight is not 0, so that padding changes nothing.
    Options and errors as `sinkhorn`.

    Returns:
        Refined alignment in [-N, N]; 0 for a masked pixel.

    Example:
        >>> similarity = jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]])
        >>> [round(score, 2) for score in mps(similarity).tolist()]
        [1.8, 1.6, 1.3]

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn.
    """
    problem = prepare(
        similarity,
        epsilon=epsilon,
        iterations=iterations,
        tolerance=tolerance,
        pixel_weights=pixel_weights,
        prompt_weights=prompt_weights,
        on_error=on_error,
        solver=solver,
    )
    align = functools.partial(_align, values=problem.similarity)
    (aligned, _), gave_up = _answer(align, problem, iterations, tolerance, on_error, solver)
    prompts = jnp.sum(problem.b > 0, axis=-1, keepdims=True).astype(aligned.dtype)
    scores = newton.quotient(prompts * aligned, problem.a)
    tell(problem, scores, gave_up, on_error)
    return scores


def solve(
    similarity: Float[Array, "*batch m n"],
    *,
    epsilon: float | Float[Array, "*#batch"] = 0.05,
    iterations: int | None = None,
    tolerance: float = 1e-6,
    pixel_weights: Float[Array, "*#batch m"] | Bool[Array, "*#batch m"] | None = None,
    prompt_weights: Float[Array, "*#batch n"] | Bool[Array, "*#batch n"] | None = None,
    on_error: OnError = "warn",
    solver: Solver = newton,
) -> Solution:
    """Solve as `sinkhorn` does, and say how it went; options and errors as `sinkhorn`.

    Example:
        >>> solution = solve(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]]))
        >>> print(solution.marginal_error < 2e-6, solution.entropy.round(3))
        True 1.33

    Source: Cuturi and Peyré 2016 (the semi-dual).
    """
    problem = prepare(
        similarity,
        epsilon=epsilon,
        iterations=iterations,
        tolerance=tolerance,
        pixel_weights=pixel_weights,
        prompt_weights=prompt_weights,
        on_error=on_error,
        solver=solver,
    )
    solved, gave_up = _answer(_solve, problem, iterations, tolerance, on_error, solver)
    tell(problem, solved.plan, gave_up, on_error)
    kernel, a, b, each = problem
    plan, v, a, b = jax.lax.stop_gradient((solved.plan, solved.potentials, a, b))
    row_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=-2) - a), axis=-1)
    column_error = jnp.sum(jnp.abs(jnp.sum(plan, axis=-1) - b), axis=-1)
    exponent = jax.lax.stop_gradient(_over(kernel - 1.0, each)) + v[..., None]
    # u is the one that meets the rows for this v: the dual is a lower bound then, solved or not.
    pixels = jnp.where(a == 0, 0.0, xlogy(a, a) - a * logsumexp(exponent, axis=-2))
    prompts = jnp.where(b == 0, 0.0, b * v)
    dual = jax.lax.stop_gradient(each) * (jnp.sum(pixels, axis=-1) + jnp.sum(prompts, axis=-1))
    return Solution(
        plan=jnp.swapaxes(solved.plan, -1, -2),
        steps=solved.steps,
        marginal_error=row_error + column_error,
        entropy=-jnp.sum(xlogy(plan, plan), axis=(-2, -1)),
        dual_value=dual,
    )


def _over(x, epsilon):
    return x / (epsilon[..., None, None] if isinstance(epsilon, jax.Array) else epsilon)


def _answer(function, problem: Problem, iterations, tolerance, on_error, solver: Solver):
    """What a function of problems returns, and which problems were given up on.

    Its first result has the gradient, and is NaN of those problems if that is asked for; its last
    one is the number of steps.
    """
    similarity, a, b, epsilon = problem
    if isinstance(epsilon, jax.Array):
        # The plan depends on S/ε alone. Scaled to a constant ε, it is differentiated through S.
        similarity, epsilon = _over(similarity, epsilon) * ANY_EPSILON, ANY_EPSILON
    try:
        options = {"epsilon": epsilon, "iterations": iterations, "tolerance": tolerance}
        found = function(similarity, a, b, solver=solver, **options)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "a converged plan has no forward-mode derivative (jvp, jacfwd, hessian): take grad, "
            "vjp or jacrev, which may be repeated (jacrev(jacrev(f))), or iterations=100"
        ) from None
    result, steps = found[0], found[-1]
    gave_up = jnp.zeros_like(steps, bool)
    if iterations is None and on_error != "ignore":
        gave_up = steps >= newton.MAX_STEPS
    if on_error == "nan":
        # a factor, for the gradient to be NaN as well
        factor = jnp.where(gave_up, jnp.nan, 1.0)
        result = result * jnp.expand_dims(factor, tuple(range(factor.ndim, result.ndim)))
    return type(found)._make((result, *found[1:])), gave_up


@functools.partial(jax.jit, static_argnames=("epsilon", "iterations", "tolerance", "solver"))
def _solve(similarity, a, b, *, epsilon, iterations, tolerance, solver) -> newton.Solved:
    if iterations is not None:
        return unrolled.solve(similarity, a, b, epsilon=epsilon, iterations=iterations)
    if similarity.shape[-2] <= similarity.shape[-1]:
        return implicit.solve(similarity, a, b, epsilon, tolerance, solver)
    # More prompts than pixels: the solver eliminates the longer side, so the two change places.
    solved = implicit.solve(jnp.swapaxes(similarity, -1, -2), b, a, epsilon, tolerance, solver)
    exponent = (similarity - 1.0) / epsilon + solved.potentials[..., None, :]
    v = jnp.where(b == 0, -jnp.inf, jnp.log(b) - logsumexp(exponent, axis=-1))
    v = jax.lax.stop_gradient(v)
    return newton.Solved(jnp.swapaxes(solved.plan, -1, -2), v, solved.steps)


@functools.partial(jax.jit, static_argnames=("epsilon", "iterations", "tolerance", "solver"))
def _align(similarity, a, b, values, *, epsilon, iterations, tolerance, solver) -> newton.Aligned:
    """Σₙ plan·values of every pixel."""
    if iterations is None and similarity.shape[-2] <= similarity.shape[-1]:
        return implicit.align(similarity, values, a, b, epsilon, tolerance, solver)
    options = {"epsilon": epsilon, "iterations": iterations, "tolerance": tolerance}
    solved = _solve(similarity, a, b, solver=solver, **options)
    return newton.Aligned(jnp.sum(solved.plan * values, axis=-2), solved.steps)
