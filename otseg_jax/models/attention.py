"""Softmax attention that keeps none of its t × t weights for the backward pass.

On a CPU one head at a time, so that its weights stay in the cache; on NVIDIA GPUs of the Ampere
generation and later cuDNN's kernel for bfloat16 factors, which never writes them down; elsewhere
all heads at once. q, k and v are [b, t, heads, c].
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from otseg_jax.models.linear import precision, storage

Heads: TypeAlias = Float[Array, "b t heads c"]
Tokens: TypeAlias = Float[Array, "*heads t c"]


def attention(
    query: Heads, key: Heads, value: Heads, *, causal: bool = False, dtype: DTypeLike = jnp.float32
) -> Heads:
    """softmax(q·kᵀ/√c)·v for every head, in the type of its inputs.

    Args:
        causal: a token sees itself and those before it.
        dtype: of the products, on accelerators; a CPU gains nothing from narrow factors here.
    """
    kernels = {}
    if storage(dtype) == jnp.bfloat16 and _cudnn_serves(query.shape[-1]):
        kernels["cuda"] = partial(_cudnn, causal=causal)
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cpu=partial(_by_head, causal=causal),
        default=partial(_at_once, causal=causal, dtype=dtype),
        **kernels,
    )


def _cudnn_serves(channels: int) -> bool:
    """Whether there is a GPU for it: JAX looks for one when it traces, whatever it lowers for."""
    if jax.default_backend() != "gpu" or channels % 8 or channels > 128:
        return False
    generation, *_ = getattr(jax.devices()[0], "compute_capability", "").split(".")  # AMD: "gfx…"
    return generation.isdecimal() and int(generation) >= 8


def _cudnn(query: Heads, key: Heads, value: Heads, *, causal: bool) -> Heads:
    batch, t, *_ = query.shape
    factors = (x.astype(jnp.bfloat16) for x in (query, key, value))
    lengths = None
    if t % 2:  # its gradient wants an even number of tokens: one more that none sees
        factors = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in factors)
        lengths = jnp.full(batch, t, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        *factors,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed[:, :t].astype(query.dtype)


def _at_once(query: Heads, key: Heads, value: Heads, *, causal: bool, dtype: DTypeLike) -> Heads:
    inputs = (rearrange(x, "b t heads c -> b heads t c") for x in (query, key, value))
    return rearrange(_attend(*inputs, causal, dtype), "b heads t c -> b t heads c")


def _by_head(query: Heads, key: Heads, value: Heads, *, causal: bool) -> Heads:
    inputs = [rearrange(x, "b t heads c -> (b heads) t c") for x in (query, key, value)]
    mixed = jax.lax.map(lambda qkv: _attend(*qkv, causal, jnp.float32), inputs)
    return rearrange(mixed, "(b heads) t c -> b t heads c", heads=query.shape[2])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(query: Tokens, key: Tokens, value: Tokens, causal: bool, dtype: DTypeLike) -> Tokens:
    return _forward(query, key, value, causal, dtype)[0]


def _product(
    x: Float[Array, "*heads m n"], y: Float[Array, "*heads n p"], dtype: DTypeLike
) -> Float[Array, "*heads m p"]:
    """x·y of such factors, summed in the type of x."""
    factors = (z.astype(jnp.bfloat16) if storage(dtype) == jnp.bfloat16 else z for z in (x, y))
    return jnp.matmul(*factors, precision=precision(dtype), preferred_element_type=x.dtype)


def _logits(query, key, causal, dtype) -> Float[Array, "*heads t t"]:
    logits = _product(query * query.shape[-1] ** -0.5, key.mT, dtype)
    seen = jnp.tri(query.shape[-2], dtype=bool)
    return jnp.where(seen, logits, -jnp.inf) if causal else logits


def _forward(query, key, value, causal, dtype):
    logits = _logits(query, key, causal, dtype)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = _product(weights, value, dtype) / total  # divided last: c columns instead of t
    return mixed, (query, key, value, mixed, top + jnp.log(total))


def _backward(causal, dtype, saved, gradient):
    query, key, value, mixed, normalizer = saved
    weights = jnp.exp(_logits(query, key, causal, dtype) - normalizer)
    # of softmax: w ⊙ (dw − Σ w·dw), and Σ w·dw = Σ mixed·gradient
    inner = jnp.sum(mixed * gradient, axis=-1, keepdims=True)
    d_logits = weights * (_product(gradient, value.mT, dtype) - inner) * query.shape[-1] ** -0.5
    return (
        _product(d_logits, key, dtype),
        _product(d_logits.mT, query, dtype),
        _product(weights.mT, gradient, dtype),
    )


_attend.defvjp(_forward, _backward)
