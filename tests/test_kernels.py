"""Attention kernels of accelerators: the TPU's interpreted, the GPU's where there is one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu
from jax.sharding import Mesh, PartitionSpec

from otseg_jax.models import attention, kernels


def heads(t, *, unseeing=0, batch=1, count=2, channels=64):
    """Query, key and value, and weights of the result; some tokens are only looked at."""
    rng = np.random.default_rng(0)
    arrays = jnp.asarray(rng.standard_normal((4, batch, t, count, channels)), jnp.float32)
    query, key, value, weight = arrays
    return query[:, unseeing:], key, value, weight[:, unseeing:]


def value_and_gradients(attend, arrays):
    @jax.jit
    def both(query, key, value, weight):
        mixed, back = jax.vjp(attend, query, key, value)
        return mixed, *back(weight)

    return both(*arrays)


def compare(kernel, arrays, causal):
    """With float32 products: bfloat16 rounds factors to 8 bits, and these have values up to 5."""
    exact = partial(attention.at_once, causal=causal, dtype=jnp.float32)
    found = value_and_gradients(partial(kernel, causal=causal), arrays)
    for one, other in zip(found, value_and_gradients(exact, arrays), strict=True):
        assert one.dtype == jnp.float32
        assert np.abs(one - other).max() < 0.02 * max(1, np.abs(other).max())


@pytest.mark.parametrize("unseeing", [0, 25])
def test_the_kernel_of_a_tpu_is_attention(unseeing):
    with tpu.force_tpu_interpret_mode():
        compare(kernels.pallas, heads(150, unseeing=unseeing), causal=False)


@pytest.mark.parametrize(("t", "unseeing"), [(1035, 10), (1125, 100), (577, 0)])
def test_the_kernel_of_a_tpu_is_lowered(t, unseeing):
    *inputs, _ = heads(t, unseeing=unseeing)
    attend = jax.jit(partial(kernels.pallas, causal=False))
    assert "tpu_custom_call" in export.export(attend, platforms=["tpu"])(*inputs).mlir_module()


@pytest.mark.parametrize("t", [600, 601])
@pytest.mark.parametrize(("causal", "unseeing"), [(False, 0), (True, 0), (False, 5), (False, 6)])
def test_the_kernel_of_a_gpu_is_attention(t, causal, unseeing):
    arrays = heads(t, unseeing=unseeing)
    if "cuda" not in kernels.attention(arrays[0], causal=causal):
        pytest.skip("cuDNN's kernel needs an NVIDIA GPU of the Ampere generation or later")
    compare(kernels.cudnn, arrays, causal)


ON_CPU = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="of a CPU, and of the four virtual devices it can be"
)


@ON_CPU
def test_a_cpu_has_none_of_them():
    assert kernels.attention(jnp.zeros((1, 1035, 12, 64)), causal=False) == {}


@ON_CPU
def test_a_tpu_has_its_kernel_where_its_arrays_are_whole(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    query, spec = jnp.zeros((4, 600, 2, 64)), PartitionSpec("data")
    found = []

    def attend(query):
        found.append({*kernels.attention(query, causal=False)})
        return query

    attend(query)  # nobody says how four devices share it
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    jax.jit(jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec))(query)
    attend(query[:, :77])
    assert found == [set(), {"tpu"}, set()]
