"""Linear layers: sums in float32 whatever the factors, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from otseg_jax.models.linear import Linear, matmul, narrow
from otseg_jax.models.otseg import OTSegConfig


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


def test_tensorfloat32_is_asked_for_by_name():
    x = jnp.ones((2, 4))
    layer = Linear(4, 3, dtype="tensorfloat32", rngs=nnx.Rngs(0))
    (found,) = {eqn.params["precision"] for eqn in products(jax.make_jaxpr(layer)(x))}
    assert found == (jax.lax.Precision.HIGH,) * 2


def test_frozen_kernels_are_stored_as_their_products_take_them():
    layer, x = Linear(64, 8, dtype=jnp.bfloat16, rngs=nnx.Rngs(1)), jnp.ones((4, 64))
    before = layer(x)
    narrow(layer)
    assert (layer.kernel.dtype, layer.bias.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(layer(x), before)


@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_no_float32_product_of_the_model_is_left_to_the_device(decoder):
    """A TPU would multiply in bfloat16 and a GPU in TF32, where none is asked for."""
    model = tiny.otseg(decoder=decoder) if decoder == "mpsa" else cross_attention()
    graphdef, state = nnx.split(model)
    text = jnp.ones((5, 1 if decoder == "cross_attention" else 2, 32)) / 32**0.5

    def loss(state, key):
        maps = nnx.merge(graphdef, state)(tiny.image(), text, key=key)
        return sum(jnp.sum(z) for z in maps.values())

    found = list(products(jax.make_jaxpr(jax.value_and_grad(loss))(state, jax.random.key(0))))
    assert len(found) > 100  # forward and backward, of all layers
    assert {eqn.params["precision"] for eqn in found} == {(jax.lax.Precision.HIGHEST,) * 2}
    # those of the attention, one for each kind of device, are among them


def cross_attention():
    config = OTSegConfig(prompt_tokens=5, decoder="cross_attention")
    return config.build(tiny.VISION, rngs=nnx.Rngs(0))


def products(jaxpr):
    """Every product and convolution of a program, inside of loops and branches too."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=has_equations):
            if has_equations(value):
                yield from products(value)


def has_equations(value):
    return hasattr(getattr(value, "jaxpr", value), "eqns")
