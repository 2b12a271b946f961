"""Attention: against the formula in float64, forward and backward; what it holds in memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from oracles import x64

from otseg_jax.models.attention import at_once, attention


def heads(t, *, seed=0, scale=1.0, count=3, batch=2, channels=8, dtype=jnp.float32):
    """Query, key and value, and weights of the result."""
    rng = np.random.default_rng(seed)
    shape = (4, batch, t, count, channels)
    return (scale * rng.standard_normal(shape)).astype(dtype)


def by_formula(query, key, value, causal):
    """softmax(q·kᵀ/√c)·v, as it is written."""
    logits = jnp.einsum("bqhc,bkhc->bhqk", query, key) / query.shape[-1] ** 0.5
    if causal:
        logits = jnp.where(np.tri(logits.shape[-1], dtype=bool), logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(logits, axis=-1), value)


def loss(attend, weight, *qkv):
    return jnp.sum(attend(*qkv) * weight)


def exact(inputs, weight, causal):
    """The result of the formula in float64, and its gradients."""
    attend = partial(by_formula, causal=causal)
    with x64():
        double = [np.asarray(x, np.float64) for x in inputs]
        gradients = jax.grad(partial(loss, attend, weight), argnums=(0, 1, 2))(*double)
        return np.asarray(attend(*double)), gradients


def gradients_of(attend, inputs, weight):
    return jax.jit(jax.grad(partial(loss, attend, weight), argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize(("causal", "more"), [(False, 0), (True, 0), (False, 5)])
# logits of 1e4 have themselves an error of 1e-3 in float32
@pytest.mark.parametrize(
    ("t", "scale", "error"), [(1, 1.0, 2e-6), (37, 1.0, 2e-6), (37, 30.0, 3e-3)]
)
def test_forward_and_backward_are_those_of_the_formula(t, scale, error, causal, more):
    """Also where more tokens are looked at than look."""
    query, *seen, weight = heads(t + more, scale=scale)
    inputs, weight = [query[:, :t], *seen], weight[:, :t]
    attend = partial(attention, causal=causal)
    expected, gradients = exact(inputs, weight, causal)
    np.testing.assert_allclose(jax.jit(attend)(*inputs), expected, atol=error, rtol=0)
    for one, other in zip(gradients_of(attend, inputs, weight), gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2 * error * max(1, np.abs(other).max()), rtol=0)


@pytest.mark.parametrize(("t", "causal"), [(1, False), (36, True), (37, True), (37, False)])
@pytest.mark.parametrize("way", [attention, at_once])
def test_bfloat16_changes_no_more_than_its_rounding(way, t, causal):
    """Against the formula of factors that are bfloat16 already; of 16 channels √c is exact."""
    *inputs, weight = heads(t, channels=16, dtype=jnp.bfloat16).astype(np.float32)
    attend = partial(way, causal=causal, dtype=jnp.bfloat16)
    expected, gradients = exact(inputs, weight, causal)
    found = jax.jit(attend)(*inputs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2**-8 * np.abs(inputs[2]).max(), rtol=0)
    for one, other in zip(gradients_of(attend, inputs, weight), gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2**-7 * np.abs(other).max() + 1e-6, rtol=0)


def test_rounded_weights_still_sum_to_one():
    query, key, value, _ = heads(37)
    mixed = jax.jit(partial(attention, dtype=jnp.bfloat16))(query, key, np.ones_like(value))
    np.testing.assert_allclose(mixed, 1, atol=1e-6)


DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
ON_CPU = jax.default_backend() == "cpu"


@pytest.mark.skipif(not ON_CPU, reason="the libraries of a GPU choose a kernel by the batch")
@DTYPES
def test_an_item_has_the_same_bits_in_any_batch(dtype):
    *inputs, _ = heads(65, batch=3)
    attend = jax.jit(partial(attention, dtype=dtype))
    whole = attend(*inputs)
    alone = attend(*(x[1:2] for x in inputs))
    np.testing.assert_array_equal(whole[1:2], alone)


@pytest.mark.skipif(not ON_CPU, reason="an accelerator takes all heads of a layer at once")
@DTYPES
def test_no_more_than_a_few_heads_of_weights_are_held(dtype):
    """12 heads of 400 × 400 would be 7.7 MB; forward and backward hold less than half of it."""
    t, count = 400, 12
    *inputs, weight = heads(t, count=count, batch=1)

    def loss(*qkv):
        return jnp.sum(attention(*qkv, dtype=dtype) * weight)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * count * t * t / 2


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_accelerators(platform):
    *inputs, _ = heads(16)
    assert export.export(jax.jit(attention), platforms=[platform])(*inputs).platforms == (platform,)


def test_all_heads_at_once_keep_no_weights():
    """As an accelerator takes them: four more layers hold less than two of them would keep."""
    t, count = 200, 4
    query, key, value, weight = heads(t, count=count, batch=1)

    def planned(layers):
        def loss(*qkv):
            x, key, value = qkv
            for _ in range(layers):
                x = at_once(x, key, value, causal=False, dtype=jnp.float32)
            return jnp.sum(x * weight)

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
        return run.lower(query, key, value).compile().memory_analysis().temp_size_in_bytes

    assert planned(6) - planned(2) < 2 * 4 * count * t * t
