"""LayerNorm that keeps only its input for the backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_vecdot = partial(jnp.vecdot, precision=jax.lax.Precision.HIGHEST)


class LayerNorm(nnx.LayerNorm):
    """(x − mean)/√(variance + epsilon)·scale + bias over the channels of a token."""

    scale: nnx.Param[Array]
    bias: nnx.Param[Array]

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        # E[x²] − E[x]² would cancel in the few channels of large mean that CLIP is known for.
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(  # type: ignore[override]  # of flax's further arguments none is used
        self, x: Float[Array, "*b c"]
    ) -> Float[Array, "*b c"]:
        per_channel = (1,) * (x.ndim - 1) + (-1,)
        scale, bias = (each[...].reshape(per_channel) for each in (self.scale, self.bias))
        return normalized(x, scale, bias, self.epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalized(
    x: Float[Array, "*b c"],
    scale: Float[Array, "*ones c"],
    bias: Float[Array, "*ones c"],
    epsilon: float,
) -> Float[Array, "*b c"]:
    """What `LayerNorm` does. It has no forward mode (`jax.jvp`)."""
    centred, inverse = _standard(x, epsilon)
    return centred * (inverse * scale) + bias


def _standard(x, epsilon):
    """x − mean, and 1/standard deviation."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred, jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)


def _forward(x, scale, bias, epsilon):
    return normalized(x, scale, bias, epsilon), (x, scale)


def _backward(epsilon, saved, gradient):
    # Sums as inner products: XLA's CPU backend (jax 0.10) is many times slower at `sum(x * y, -1)`
    # where the batch is one image.
    x, scale = saved
    centred, inverse = _standard(x, epsilon)
    y, d_y = centred * inverse, gradient * scale
    mean, along = (z[..., None] / x.shape[-1] for z in (_vecdot(gradient, scale), _vecdot(d_y, y)))
    over = partial(jnp.sum, axis=range(x.ndim - 1), keepdims=True)
    return inverse * (d_y - mean - y * along), over(gradient * y), over(gradient)


normalized.defvjp(_forward, _backward)
