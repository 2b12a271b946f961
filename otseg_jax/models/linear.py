"""The Linear layer of all models: what its `dtype` promises holds on every device.

float32 products are float32 ones, where accelerators would round the factors to TF32 or bfloat16
unasked; bfloat16 products are summed in float32, forward and backward.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Linear(nnx.Linear):
    """x·kernel + bias: factors in `dtype`, sums, bias and result in float32."""

    def __call__(  # type: ignore[override]  # of flax's further arguments none is used
        self, inputs: Float[Array, "*b c"]
    ) -> Float[Array, "*b d"]:
        dtype = inputs.dtype if self.dtype is None else self.dtype
        outputs = matmul(inputs.astype(dtype), self.kernel[...].astype(dtype))
        if self.bias is None:
            return outputs
        return outputs + jnp.expand_dims(self.bias[...], range(outputs.ndim - 1))


@jax.custom_vjp
def matmul(x: Float[Array, "*b c"], kernel: Float[Array, "c d"]) -> Float[Array, "*b d"]:
    """x·kernel of factors in one dtype, summed and returned in float32 (float64 as it is)."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    result = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, precision=precision, preferred_element_type=result)


def _forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _backward(saved, gradient):
    # automatic differentiation would multiply float32 by bfloat16, which no device is fast at
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    d_kernel = matmul(rows.T, gradient.reshape(len(rows), -1))
    return matmul(gradient, kernel.T).astype(x.dtype), d_kernel.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)
