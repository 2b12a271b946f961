"""What is computed again in the backward pass, because that costs less than to keep it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def recomputed(
    layer: nnx.Module | Callable[..., Array], x: Float[Array, "*shape"], *others: Array
) -> Float[Array, "*shape"]:
    """layer(x, *others), of which only these are kept for the backward pass.

    It has no forward mode (`jax.jvp`).

    Args:
        layer: one whose result has the shape of x, pure.
    """
    graphdef, state = nnx.split(layer) if isinstance(layer, nnx.Module) else (None, ())

    def run(state: Any, x: Array, *others: Array) -> Array:
        return (nnx.merge(graphdef, state) if graphdef else layer)(x, *others)

    def forward(state: Any, x: Array, *others: Array) -> tuple[Array, Any]:
        return run(state, x, *others), (state, x, *others)

    def backward(saved: Any, gradient: Array) -> Any:
        state, x, *others = saved
        return jax.vjp(run, state, anew(x, gradient), *others)[1](gradient)

    kept = jax.custom_vjp(run)
    kept.defvjp(forward, backward)
    return kept(state, x, *others)


def anew(x: Float[Array, "*shape"], gradient: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x, but to XLA a value of its own: what the backward pass makes of it is computed again.

    Else XLA finds that it was computed already, and keeps it. `jax.checkpoint` does not help on a
    CPU, where XLA drops its barrier. Here a 0 is added that depends on the gradient.
    """
    return x + (jnp.abs(gradient) > 1e30).astype(x.dtype)
