"""Linear layers: sums in float32 whatever the factors, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from otseg_jax.models.linear import Linear, matmul


def test_float32_is_that_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7))
    ours, flax = (kind(7, 3, rngs=nnx.Rngs(1)) for kind in (Linear, nnx.Linear))
    np.testing.assert_allclose(ours(x), flax(x), rtol=1e-6)


def test_narrow_factors_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for shape in ((3, 400), (400, 6), (3, 6))
    )
    exact = [np.asarray(a, np.float64) for a in (x, kernel, weight)]
    found = jax.jit(matmul)(x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact[0] @ exact[1], atol=1e-4)
    # sums in bfloat16 would be off by 0.1

    def loss(x, kernel):
        return jnp.sum(matmul(x, kernel) * weight)

    d_x, d_kernel = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)
    assert d_x.dtype == d_kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(d_x.astype(jnp.float32), exact[2] @ exact[1].T, rtol=5e-3, atol=1e-2)
    np.testing.assert_allclose(
        d_kernel.astype(jnp.float32), exact[0].T @ exact[2], rtol=5e-3, atol=1e-2
    )


def test_the_result_is_float32_whatever_the_dtype():
    x = jax.random.normal(jax.random.key(0), (4, 64))
    wide, narrow = (Linear(64, 8, dtype=d, rngs=nnx.Rngs(1)) for d in (jnp.float32, jnp.bfloat16))
    assert narrow(x).dtype == jnp.float32
    np.testing.assert_allclose(narrow(x), wide(x), atol=2e-2)
