"""What is computed again: the same values and gradients, from less that is kept."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otseg_jax.models.recompute import recomputed
from otseg_jax.models.transformer import quick_gelu

LAYERS = {
    "function": quick_gelu,
    "module": nnx.LayerNorm(64, use_fast_variance=False, rngs=nnx.Rngs(0)),
}


def chain(apply, x):
    """Eight layers and what lies between them, so that each has an input of its own to keep."""
    for number in range(8):
        x = apply(x) * (1.0 + 0.1 * number) + 0.5 * x[:, ::-1]
    return jnp.sum(jnp.tanh(x))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_same_values_and_gradients_from_less(layer):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(512, 64)), jnp.float32)
    plain = jax.jit(jax.value_and_grad(partial(chain, layer)))
    again = jax.jit(jax.value_and_grad(partial(chain, partial(recomputed, layer))))
    (one, slope), (other, found) = plain(x), again(x)
    np.testing.assert_allclose(other, one, rtol=1e-6)
    np.testing.assert_allclose(found, slope, rtol=0, atol=1e-6 * float(jnp.abs(slope).max()))

    def held(function):
        return function.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert held(again) < held(plain)


def test_the_weights_of_a_module_learn():
    layer = LAYERS["module"]
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 64)), jnp.float32)

    def loss(apply, state):
        return jnp.sum(jnp.sin(apply(nnx.merge(graphdef, state), x)))

    want = jax.grad(partial(loss, lambda layer, x: layer(x)))(state)
    got = jax.grad(partial(loss, recomputed))(state)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
