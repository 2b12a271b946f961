"""LayerNorm against PyTorch's in float64, and what it keeps for its backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import torch

from otseg_jax.models.layer_norm import LayerNorm


@pytest.mark.parametrize("shape", [(1, 9, 24), (2, 3, 4, 24), (24,)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_value_and_gradients_are_pytorchs(shape, offset):
    rng = np.random.default_rng(0)
    x, gradient = rng.standard_normal((2, *shape)).astype(np.float32)
    x[..., 3] += offset  # CLIP has a few channels of large mean
    scale, bias = rng.standard_normal((2, 24)).astype(np.float32)
    theirs = [torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (x, scale, bias)]
    wanted = torch.nn.functional.layer_norm(theirs[0], (24,), *theirs[1:], 1e-5)
    wanted.backward(torch.tensor(gradient, dtype=torch.float64))

    layer = LayerNorm(24, epsilon=1e-5, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    graphdef, state = nnx.split(layer)
    found, back = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, jnp.asarray(x))
    d_state, d_x = back(jnp.asarray(gradient))

    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-5, atol=1e-5)
    for ours, each in zip((d_x, d_state["scale"], d_state["bias"]), theirs, strict=True):
        np.testing.assert_allclose(ours[...], each.grad, rtol=1e-5, atol=2e-5)


def test_only_the_input_and_the_scale_are_kept():
    layer = LayerNorm(24, epsilon=1e-5, rngs=nnx.Rngs(0))
    _, back = jax.vjp(layer, jnp.ones((1, 9, 24)))
    assert sum(kept.size for kept in jax.tree.leaves(back)) <= 9 * 24 + 24
