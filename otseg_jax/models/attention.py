"""Softmax attention that never holds all of its t × t weights.

On a CPU one head at a time, so that its weights stay in the cache, and recomputed in the backward
pass; on accelerators XLA's own, which fuses the whole. q, k and v are [b, t, heads, c].
"""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

Heads: TypeAlias = Float[Array, "b t heads c"]
Head: TypeAlias = Float[Array, "t c"]


def attention(query: Heads, key: Heads, value: Heads, *, causal: bool = False) -> Heads:
    """softmax(q·kᵀ/√c)·v for every head; causal: a token sees itself and those before it."""
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cpu=partial(_by_head, causal=causal),
        default=partial(jax.nn.dot_product_attention, is_causal=causal),
    )


def _by_head(query: Heads, key: Heads, value: Heads, *, causal: bool) -> Heads:
    heads = query.shape[2]
    inputs = [rearrange(x, "b t heads c -> (b heads) t c") for x in (query, key, value)]
    mixed = jax.lax.map(lambda qkv: _attend(*qkv, causal), inputs)
    return rearrange(mixed, "(b heads) t c -> b t heads c", heads=heads)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query: Head, key: Head, value: Head, causal: bool) -> Head:
    return _forward(query, key, value, causal)[0]


def _logits(query: Head, key: Head, causal: bool) -> Float[Array, "t t"]:
    scale = query.shape[-1] ** -0.5
    logits = jnp.matmul(query, key.T, preferred_element_type=jnp.float32) * scale
    if causal:
        logits = jnp.where(jnp.tri(len(query), dtype=bool), logits, -jnp.inf)
    return logits


def _forward(query: Head, key: Head, value: Head, causal: bool):
    logits = _logits(query, key, causal)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # divided last: c columns instead of t
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (mixed / total).astype(value.dtype)
    return mixed, (query, key, value, mixed, top + jnp.log(total))


def _backward(causal, saved, gradient):
    query, key, value, mixed, normalizer = saved
    scale = query.shape[-1] ** -0.5
    matmul = partial(jnp.matmul, preferred_element_type=jnp.float32)
    weights = jnp.exp(_logits(query, key, causal) - normalizer)
    narrow = weights.astype(value.dtype)
    d_value = matmul(narrow.T, gradient)
    # of softmax: w ⊙ (dw − Σ w·dw), and Σ w·dw = Σ mixed·gradient
    d_weights = matmul(gradient, value.T)
    inner = jnp.sum((mixed * gradient).astype(jnp.float32), axis=-1, keepdims=True)
    d_logits = (weights * (d_weights - inner) * scale).astype(query.dtype)
    d_query, d_key = matmul(d_logits, key), matmul(d_logits.T, query)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


_attend.defvjp(_forward, _backward)
