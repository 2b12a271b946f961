"""Softmax attention that keeps none of its t × s weights for the backward pass.

On a CPU one head at a time, so that its weights stay in the cache; on accelerators one of `kernels`
for bfloat16 factors, else all heads at once. q is [b, t, heads, c], k and v are [b, s, heads, c].
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from otseg_jax.models import kernels
from otseg_jax.models.kernels import Heads, Seen
from otseg_jax.models.linear import precision, storage
from otseg_jax.models.recompute import anew


def attention(
    query: Heads, key: Seen, value: Seen, *, causal: bool = False, dtype: DTypeLike = jnp.float32
) -> Heads:
    """softmax(q·kᵀ/√c)·v for every head, in the type of its inputs.

    Args:
        causal: a token sees itself and those before it; s is t.
        dtype: of the products, on accelerators; a CPU gains nothing from narrow factors here.
    """
    narrow = storage(dtype) == jnp.bfloat16
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cpu=partial(_by_head, causal=causal),
        default=partial(at_once, causal=causal, dtype=dtype),
        **(kernels.attention(query, causal=causal) if narrow else {}),
    )


def at_once(query: Heads, key: Seen, value: Seen, *, causal: bool, dtype: DTypeLike) -> Heads:
    """As `attention`, with all weights of all heads in memory, but not kept."""
    inputs = (rearrange(x, "b t heads c -> b heads t c") for x in (query, key, value))
    return rearrange(_attend(*inputs, causal, dtype), "b heads t c -> b t heads c")


def _by_head(query: Heads, key: Seen, value: Seen, *, causal: bool) -> Heads:
    inputs = [rearrange(x, "b t heads c -> (b heads) t c") for x in (query, key, value)]
    mixed = jax.lax.map(lambda qkv: _attend(*qkv, causal, jnp.float32), inputs)
    return rearrange(mixed, "(b heads) t c -> b t heads c", heads=query.shape[2])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(
    query: Float[Array, "*heads t c"],
    key: Float[Array, "*heads s c"],
    value: Float[Array, "*heads s c"],
    causal: bool,
    dtype: DTypeLike,
) -> Float[Array, "*heads t c"]:
    return _forward(query, key, value, causal, dtype)[0]


def _product(
    x: Float[Array, "*heads m n"], y: Float[Array, "*heads n p"], dtype: DTypeLike
) -> Float[Array, "*heads m p"]:
    """x·y of such factors, summed in the type of x."""
    factors = (z.astype(jnp.bfloat16) if storage(dtype) == jnp.bfloat16 else z for z in (x, y))
    return jnp.matmul(*factors, precision=precision(dtype), preferred_element_type=x.dtype)


def _logits(query, key, causal, dtype) -> Float[Array, "*heads t s"]:
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
    weights = jnp.exp(_logits(anew(query, gradient), key, causal, dtype) - normalizer)
    # of softmax: w ⊙ (dw − Σ w·dw), and Σ w·dw = Σ mixed·gradient
    inner = jnp.sum(mixed * gradient, axis=-1, keepdims=True)
    d_logits = weights * (_product(gradient, value.mT, dtype) - inner) * query.shape[-1] ** -0.5
    return (
        _product(d_logits, key, dtype),
        _product(d_logits.mT, query, dtype),
        _product(weights.mT, gradient, dtype),
    )


_attend.defvjp(_forward, _backward)
