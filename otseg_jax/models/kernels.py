"""Attention as one kernel that never writes its t × t weights down, for bfloat16 factors.

cuDNN's on NVIDIA GPUs of the Ampere generation and later: on an H200 it takes a sixth of the time
of all heads at once (experiments/benchmark_attention_nvidia_h200.json). JAX's Pallas kernel on
TPUs: compiled for a v5e and interpreted in the tests, but no TPU has run it yet. JAX asks for a GPU
when it traces, so that a kernel is offered only where the default device would run it.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import AxisType
from jaxtyping import Array, Float

Heads: TypeAlias = Float[Array, "b t heads c"]
Seen: TypeAlias = Float[Array, "b s heads c"]  # keys and values of the tokens that are looked at

BLOCKS = (  # of queries, of keys and values
    ("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq"),
    (
        *("block_k_major", "block_k", "block_k_major_dkv"),
        *("block_k_dkv", "block_k_major_dq", "block_k_dq"),
    ),
)
LANES = 128  # of a TPU: what it pads the tokens to
LONG = 512  # tokens from which a kernel is worth it: with 77 an H200's takes twice the time


def attention(query: Heads, *, causal: bool) -> dict[str, Callable[..., Heads]]:
    """A function of query, key and value by the platform that runs it; none: {}."""
    _, t, _, channels = query.shape
    device, backend = jax.devices()[0], jax.default_backend()
    if t < LONG:
        return {}
    if backend == "gpu" and channels % 8 == 0 and channels <= 128:
        generation, *_ = getattr(device, "compute_capability", "").split(".")  # AMD's are "gfx…"
        if generation.isdecimal() and int(generation) >= 8:
            return {"cuda": partial(cudnn, causal=causal)}
    if backend == "tpu" and _whole():
        return {"tpu": partial(pallas, causal=causal)}
    return {}


def _whole() -> bool:
    """Whether this device has all of the arrays: XLA does not split a kernel of Pallas."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    split = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return all(size == 1 or kind == AxisType.Manual for size, kind in split)


def cudnn(query: Heads, key: Seen, value: Seen, *, causal: bool) -> Heads:
    """cuDNN's, which an error of JAX refuses where there is no such GPU."""
    batch, t, *_ = query.shape
    # its gradient wants even numbers of tokens: one more that none sees
    lengths = [jnp.full(batch, n, jnp.int32) if n % 2 else None for n in (t, key.shape[1])]
    factors = [
        jnp.pad(x.astype(jnp.bfloat16), ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
        for x in (query, key, value)
    ]
    mixed = jax.nn.dot_product_attention(
        *factors,
        is_causal=causal,
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        implementation="cudnn",
    )
    return mixed[:, :t].astype(query.dtype)


def pallas(query: Heads, key: Seen, value: Seen, *, causal: bool) -> Heads:
    """JAX's for TPUs."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    batch, t, _, channels = query.shape
    lengths = [t, key.shape[1]]
    sizes = [-(-n // LANES) * LANES for n in lengths]
    # tokens see those of their own segment
    segments = [
        jnp.broadcast_to(jnp.arange(size) < n, (batch, size)).astype(jnp.int32)
        for n, size in zip(lengths, sizes, strict=True)
    ]
    blocks = {
        name: max(n for n in range(LANES, LONG + 1, LANES) if sizes[i] % n == 0)
        for i, names in enumerate(BLOCKS)
        for name in names
    }
    mixed = flash.flash_attention(
        *(
            jnp.pad(
                rearrange(x.astype(jnp.bfloat16), "b t heads c -> b heads t c"),
                ((0, 0), (0, 0), (0, size - x.shape[1]), (0, 0)),
            )
            for x, size in zip((query, key, value), (*sizes, sizes[1]), strict=True)
        ),
        segment_ids=flash.SegmentIds(*segments),
        causal=causal,
        sm_scale=channels**-0.5,
        block_sizes=flash.BlockSizes(block_b=1, **blocks),
    )
    return rearrange(mixed[:, :, :t], "b heads t c -> b t heads c").astype(query.dtype)
