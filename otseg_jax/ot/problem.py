"""What the operator is asked, checked and brought into the solver's form; how failures are told.

Similarities arrive as `[..., m, n]`, pixels then prompts, and are solved as `[..., n, m]`. What is
wrong with shapes and options is known while tracing. Whether similarities are cosines, and whether
a problem was solved, is known outside of jit, vmap and grad only, where there are values.
"""

import functools
import math
import warnings
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from otseg_jax.ot import newton
from otseg_jax.ot.implicit import Solver

OnError: TypeAlias = Literal["warn", "raise", "nan", "ignore"]

LARGEST_COSINE = 1.01  # as bfloat16 rounds it
LARGEST_RATIO = 200.0  # of similarity to ε: that of a cosine with ε = 0.005
ODD_RATIO = 30.0  # half as much again as that of a cosine with ε = 0.05


class Problem(NamedTuple):
    """Similarity with 0 where masked, the marginals, and ε: a float, or one for each problem."""

    similarity: Float[Array, "*batch n m"]
    a: Float[Array, "*batch m"]
    b: Float[Array, "*batch n"]
    epsilon: float | Float[Array, "*batch"]


def prepare(
    similarity: Any,
    *,
    epsilon: Any,
    iterations: Any,
    tolerance: Any,
    pixel_weights: Any,
    prompt_weights: Any,
    on_error: Any,
    solver: Any,
) -> Problem:
    """Bring the arguments into the solver's form.

    Raises:
        ValueError: what is not numbers, or does not fit, or is out of range; all of it at once.
    """
    wrong: list[str] = []
    similarity = _array("similarity", similarity, wrong)
    if similarity.ndim < 2 or 0 in similarity.shape[-2:]:
        shape = ", ".join(f"{k}={x}" for k, x in zip("mn", similarity.shape[-2:], strict=False))
        wrong.append(
            f"similarity must be [..., m, n], pixels and prompts, m > 0 and n > 0, got {shape} "
            "(of one prompt it is similarity[:, None])"
        )
        raise ValueError("; ".join(wrong))  # what the rest must fit is not known
    *batch, m, n = similarity.shape
    a, b = (
        None if given is None else _fit(name, given, (*batch, size), wrong)
        for name, given, size in (
            ("pixel_weights", pixel_weights, m),
            ("prompt_weights", prompt_weights, n),
        )
    )
    if isinstance(epsilon, jax.Array | list | tuple) or getattr(epsilon, "ndim", 0) > 0:
        epsilon = _fit("epsilon", epsilon, tuple(batch), wrong)
        known = (
            [] if isinstance(epsilon, jax.core.Tracer) else jax.device_get(epsilon).ravel().tolist()
        )
    else:
        known = [_number(epsilon)]
        epsilon = epsilon if math.isnan(known[0]) else known[0]
    if not all(0 < value < math.inf for value in known):
        wrong.append(f"epsilon must be > 0 and finite, got epsilon={epsilon!r}")
    # these two are compiled in: an array would have to be known before
    if not (isinstance(tolerance, Hashable) and _number(tolerance) > 0):
        wrong.append(f"tolerance must be a number > 0, got tolerance={tolerance!r}")
    counted = _number(iterations) if isinstance(iterations, Hashable) else math.nan
    if iterations is not None and not (counted >= 1 and counted.is_integer()):
        wrong.append(f"iterations must be an integer > 0 or None, got iterations={iterations!r}")
    if on_error not in get_args(OnError):
        wrong.append(f"on_error must be one of {get_args(OnError)}, got on_error={on_error!r}")
    wrong += _wrong_solver(solver, iterations)
    if wrong:
        raise ValueError("; ".join(wrong))
    return _masked(similarity, a, b, epsilon)


def _wrong_solver(solver: Any, iterations: Any) -> list[str]:
    wanted = "the module otseg_jax.ot.newton, or otseg_jax.ot.pallas.Newton()"
    made = isinstance(solver, Solver) and not isinstance(solver, type)
    if not (made and isinstance(solver, Hashable)):
        return [f"solver must be hashable and have solve and align, as {wanted}, got {solver!r}"]
    if iterations is not None and solver is not newton:
        return [f"solver={solver!r} is of a converged plan: leave out iterations={iterations!r}"]
    return []


def _masked(similarity: Array, a: Array | None, b: Array | None, epsilon: Any) -> Problem:
    # integers and halves are exact in float32, as far as they are cosines
    dtype = jnp.float64 if similarity.dtype == jnp.float64 else jnp.float32
    similarity = similarity.astype(dtype)
    # Pixels are many and prompts few: with pixels last, the long axis fills the vector lanes.
    # Behind the barrier it is transposed once, and not for each use.
    kernel = jax.lax.optimization_barrier(jnp.swapaxes(similarity, -1, -2))
    given = a is not None or b is not None
    *batch, m, n = similarity.shape
    a = jnp.full((*batch, m), 1.0, dtype) if a is None else a.astype(dtype)
    b = jnp.full((*batch, n), 1.0, dtype) if b is None else b.astype(dtype)
    if given:
        # A zero among zeros has no direction to grow in: its gradient is 0 by definition.
        # (`<=`, and not its opposite: a NaN is no mask, it has to reach the plan.)
        a, b = jnp.where(a <= 0, 0.0, a), jnp.where(b <= 0, 0.0, b)
        none = jnp.all(a == 0, axis=-1) | jnp.all(b == 0, axis=-1)
        a, b = jnp.where(none[..., None], 0.0, a), jnp.where(none[..., None], 0.0, b)
        kernel = jnp.where((a[..., None, :] > 0) & (b[..., None] > 0), kernel, 0.0)
    a = newton.quotient(a, jnp.sum(a, axis=-1, keepdims=True))
    b = newton.quotient(b, jnp.sum(b, axis=-1, keepdims=True))
    if isinstance(epsilon, jax.Array):
        epsilon = epsilon.astype(dtype)
        epsilon = jnp.where(epsilon > 0, epsilon, jnp.nan)  # a traced one could not be refused
    return Problem(kernel, a, b, epsilon)


def tell(
    problem: Problem,
    result: Float[Array, "..."],
    gave_up: Bool[Array, "*batch"],
    on_error: OnError,
) -> None:
    """Say what went wrong, where `on_error` asks for it and there are values to look at.

    Raises:
        ValueError: similarities that are no cosines, or a failure under "raise".
    """
    if on_error in ("nan", "ignore"):
        return
    if isinstance(result, jax.core.Tracer):
        if on_error == "raise":
            raise ValueError(
                "on_error='raise' is not possible under jit, vmap or grad, where there are no "
                "values yet: use on_error='nan', or look at ot.sinkhorn.solve(...).marginal_error"
            )
        return
    if not result.is_fully_addressable:
        return  # on another host
    found = jax.device_get(_findings(problem, result, gave_up))
    if found["infinite"]:
        raise ValueError(
            "similarity holds infinite values: leave pixels out by pixel_weights=mask and prompts "
            "by prompt_weights=mask"
        )
    if found["reach"] > 0:
        message = (
            f"similarity reaches {found['reach']:.3g}, and epsilon={found['epsilon']:.3g} is for "
            "cosines in [-1, 1]: divide it by its scale (CLIP's logits by 100), or multiply "
            f"epsilon by that scale (epsilon={found['fits']:.2g} would fit)"
        )
        if found["useless"] or on_error == "raise":
            raise ValueError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    problems = math.prod(gave_up.shape)
    if found["unknown"] and on_error == "raise":
        raise ValueError(f"{found['unknown']} of {problems} transport problems hold a NaN")
    if found["failed"]:
        message = (
            f"gave up on {found['failed']} of {problems} transport problems, whose columns are not "
            f"met: raise epsilon ({found['least']:.3g}) or tolerance, or pass float64 "
            '(jax.config.update("jax_enable_x64", True))'
        )
        if on_error == "raise":
            raise ValueError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


@jax.jit
def _findings(problem: Problem, result, gave_up):
    """What `tell` tells: how many problems are of each kind, and the numbers of the message."""
    similarity, a, b, epsilon = problem
    batch = gave_up.shape
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, b.dtype), batch)
    size = jnp.max(jnp.where(jnp.isfinite(similarity), jnp.abs(similarity), 0.0), axis=(-2, -1))

    def holds(kind, *arrays):
        found = (jnp.any(kind(x.reshape(*batch, -1)), axis=-1) for x in arrays)
        return functools.reduce(jnp.logical_or, found)

    unknown = holds(jnp.isnan, similarity, a, b)
    broken = holds(jnp.isnan, result) & ~unknown
    # no cosines, at an ε that is for cosines: no solution, or none that is worth something
    odd = (size > LARGEST_COSINE) & (broken | (size > ODD_RATIO * epsilon))
    return {
        "infinite": jnp.any(broken & holds(jnp.isinf, similarity)),
        "useless": jnp.any(odd & (broken | (size > LARGEST_RATIO * epsilon))),
        "reach": jnp.max(size, where=odd, initial=0.0),
        "epsilon": jnp.min(epsilon, where=odd, initial=jnp.inf),
        "fits": jnp.max(size * epsilon, where=odd, initial=0.0),
        "unknown": jnp.sum(unknown),
        "failed": jnp.sum(broken | gave_up),
        "least": jnp.min(epsilon, where=broken | gave_up, initial=jnp.inf),
    }


def _number(given: Any) -> float:
    """A number of Python or NumPy as a float, anything else as NaN."""
    try:
        return float("nan") if isinstance(given, str) else float(given)
    except (TypeError, ValueError):
        return float("nan")


def _array(name: str, given: Any, wrong: list[str]) -> Array:
    try:
        array = jnp.asarray(given)  # a float64 of NumPy becomes float32, without x64
        real = [jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool)]
    except (TypeError, ValueError, OverflowError):
        real = []
    if any(real):
        return array
    kind = getattr(given, "dtype", type(given).__name__)
    wrong.append(f"{name} must be an array of real numbers with rows of one length, got {kind}")
    return jnp.zeros(())


def _fit(name: str, given: Any, shape: tuple, wrong: list[str]) -> Array:
    """The array broadcast to a shape, to which it may not add axes."""
    array = _array(name, given, wrong)
    try:
        return jnp.broadcast_to(array, shape)
    except ValueError:
        each = "a number or one for each problem" if name == "epsilon" else "weights"
        wrong.append(
            f"{name} of shape {array.shape} does not fit similarity: wanted {each}, {shape}"
            + " (several values for one problem: jax.vmap)" * (name == "epsilon")
        )
        return array
