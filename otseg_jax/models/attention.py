"""Softmax attention that never holds all of its t × t weights.

On a CPU one head at a time, so that its weights stay in the cache, and recomputed in the backward
pass; on accelerators XLA's own, which fuses the whole. q, k and v are [b, t, heads, c].
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
Head: TypeAlias = Float[Array, "t c"]

_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def attention(
    query: Heads, key: Heads, value: Heads, *, causal: bool = False, dtype: DTypeLike = jnp.float32
) -> Heads:
    """softmax(q·kᵀ/√c)·v for every head, in the type of its inputs.

    Args:
        causal: a token sees itself and those before it.
        dtype: of the products, on accelerators; a CPU gains nothing from narrow factors here.
    """

    def fused(*inputs: Heads) -> Heads:
        factors = (x.astype(storage(dtype)) for x in inputs)
        with jax.default_matmul_precision(precision(dtype)):
            mixed = jax.nn.dot_product_attention(*factors, is_causal=causal)
        return mixed.astype(query.dtype)

    by_head = partial(_by_head, causal=causal)
    return jax.lax.platform_dependent(query, key, value, cpu=by_head, default=fused)


def _by_head(query: Heads, key: Heads, value: Heads, *, causal: bool) -> Heads:
    inputs = [rearrange(x, "b t heads c -> (b heads) t c") for x in (query, key, value)]
    mixed = jax.lax.map(lambda qkv: _attend(*qkv, causal), inputs)
    return rearrange(mixed, "(b heads) t c -> b t heads c", heads=query.shape[2])


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query: Head, key: Head, value: Head, causal: bool) -> Head:
    return _forward(query, key, value, causal)[0]


def _logits(query: Head, key: Head, causal: bool) -> Float[Array, "t t"]:
    logits = _product(query * query.shape[-1] ** -0.5, key.T)
    return jnp.where(jnp.tri(len(query), dtype=bool), logits, -jnp.inf) if causal else logits


def _forward(query: Head, key: Head, value: Head, causal: bool):
    logits = _logits(query, key, causal)
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = _product(weights, value) / total  # divided last: c columns instead of t
    return mixed, (query, key, value, mixed, top + jnp.log(total))


def _backward(causal, saved, gradient):
    query, key, value, mixed, normalizer = saved
    weights = jnp.exp(_logits(query, key, causal) - normalizer)
    # of softmax: w ⊙ (dw − Σ w·dw), and Σ w·dw = Σ mixed·gradient
    inner = jnp.sum(mixed * gradient, axis=-1, keepdims=True)
    d_logits = weights * (_product(gradient, value.T) - inner) * query.shape[-1] ** -0.5
    return _product(d_logits, key), _product(d_logits.T, query), _product(weights.T, gradient)


_attend.defvjp(_forward, _backward)
