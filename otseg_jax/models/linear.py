"""The products of all models: what their `dtype` promises holds on every device.

"float32" products are float32 ones, where accelerators would round the factors to TF32 or bfloat16
unasked; "tensorfloat32" allows them 11 bits of mantissa where that is faster (on a CPU it is
float32); "bfloat16" rounds the factors to 8 bits. Sums are float32, forward and backward.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

TENSORFLOAT32 = "tensorfloat32"


class Linear(nnx.Linear):
    """x·kernel + bias: factors as `dtype` says, sums, bias and result in float32."""

    def __call__(  # type: ignore[override]  # of flax's further arguments none is used
        self, inputs: Float[Array, "*b c"]
    ) -> Float[Array, "*b d"]:
        outputs = product(inputs, self.kernel[...], self.dtype)
        if self.bias is None:
            return outputs
        return outputs + jnp.expand_dims(self.bias[...], range(outputs.ndim - 1))


def product(
    x: Float[Array, "*b c"], kernel: Float[Array, "c d"], dtype: DTypeLike | None
) -> Float[Array, "*b d"]:
    """x·kernel, its factors as `dtype` says; None: as they are."""
    stored = x.dtype if dtype is None else storage(dtype)
    return matmul(x.astype(stored), kernel.astype(stored), precision(dtype or stored))


def storage(dtype: DTypeLike) -> jnp.dtype:
    """The type that factors of such a product are stored in."""
    return jnp.dtype(jnp.float32 if dtype == TENSORFLOAT32 else dtype)


def precision(dtype: DTypeLike) -> str | None:
    """The name that JAX has for such products; None for narrow factors and for float64."""
    if dtype == TENSORFLOAT32:
        return TENSORFLOAT32
    return "float32" if storage(dtype) == jnp.float32 else None


def narrow(module: nnx.Module) -> None:
    """Store kernels as their products take them, once: for weights that never learn."""
    for _, layer in [*nnx.iter_graph(module)]:
        if isinstance(layer, nnx.Linear | nnx.Conv):
            layer.kernel = nnx.Param(layer.kernel[...].astype(storage(layer.dtype or jnp.float32)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    x: Float[Array, "*b c"],
    kernel: Float[Array, "c d"],
    precision: str | None = "float32",
) -> Float[Array, "*b d"]:
    """x·kernel of factors in one dtype, summed and returned in float32 (float64 as it is)."""
    result = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, precision=precision, preferred_element_type=result)


def _forward(x, kernel, precision):
    return matmul(x, kernel, precision), (x, kernel)


def _backward(precision, saved, gradient):
    # automatic differentiation would multiply float32 by bfloat16, which no device is fast at
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    d_kernel = matmul(rows.T, gradient.reshape(len(rows), -1), precision)
    d_x = matmul(gradient, kernel.T, precision)
    return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)
