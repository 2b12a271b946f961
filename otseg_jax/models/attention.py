"""Softmax attention that keeps none of its t × s weights for the backward pass.

On a CPU one head at a time, so that its weights stay in the cache; on accelerators one of `kernels`
for bfloat16 factors, else all heads at once. q is [b, t, heads, c], k and v are [b, s, heads, c].
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from otseg_jax.models import kernels
from otseg_jax.models.kernels import Heads, Seen
from otseg_jax.models.linear import precision, storage
from otseg_jax.models.recompute import anew

# calls a function with arrays of all heads, or again and again with those of one
Each = Callable[[Callable[..., Any], Sequence[Array]], Any]


def attention(
    query: Heads, key: Seen, value: Seen, *, causal: bool = False, dtype: DTypeLike = jnp.float32
) -> Heads:
    """softmax(q·kᵀ/√c)·v for every head, in the type of its inputs.

    Args:
        causal: a token sees itself and those before it; s is t.
        dtype: of the products.
    """
    narrow = storage(dtype) == jnp.bfloat16
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cpu=partial(_every_head, causal=causal, dtype=dtype, each=_in_turn),
        default=partial(at_once, causal=causal, dtype=dtype),
        **(kernels.attention(query, causal=causal) if narrow else {}),
    )


def at_once(query: Heads, key: Seen, value: Seen, *, causal: bool, dtype: DTypeLike) -> Heads:
    """As `attention`, with all weights of all heads in memory, but not kept."""
    return _every_head(query, key, value, causal=causal, dtype=dtype, each=_together)


def _together(function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    return function(*arrays)


def _in_turn(function: Callable[..., Any], arrays: Sequence[Array]) -> Any:
    heads = arrays[0].shape[:2]
    flat = [x.reshape(-1, *x.shape[2:]) for x in arrays]
    results = jax.lax.map(lambda one: function(*one), flat)
    return jax.tree.map(lambda x: x.reshape(*heads, *x.shape[1:]), results)


def _every_head(
    query: Heads, key: Seen, value: Seen, *, causal: bool, dtype: DTypeLike, each: Each
) -> Heads:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    mixed = _attend(
        rearrange(query.astype(wide) * query.shape[-1] ** -0.5, "b t heads c -> b heads t c"),
        *(rearrange(x.astype(wide), "b s heads c -> b heads s c") for x in (key, value)),
        *(causal, dtype, each),
    )
    return rearrange(mixed, "b heads t c -> b t heads c").astype(query.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(
    query: Float[Array, "b heads t c"],
    key: Float[Array, "b heads s c"],
    value: Float[Array, "b heads s c"],
    causal: bool,
    dtype: DTypeLike,
    each: Each,
) -> Float[Array, "b heads t c"]:
    return _forward(query, key, value, causal, dtype, each)[0]


def _narrow(dtype: DTypeLike, *arrays: Float[Array, "..."]) -> list[Float[Array, "..."]]:
    """As factors of products."""
    narrow = storage(dtype) == jnp.bfloat16
    return [x.astype(jnp.bfloat16) if narrow else x for x in arrays]


def _product(
    x: Float[Array, "*heads m n"], y: Float[Array, "*heads n p"], dtype: DTypeLike
) -> Float[Array, "*heads m p"]:
    """x·y, summed and returned in float32 (float64 as it is)."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, y, precision=precision(dtype), preferred_element_type=wide)


def _logits(
    x: Float[Array, "*heads m c"], y: Float[Array, "*heads c n"], seen: Any, dtype: DTypeLike
) -> Float[Array, "*heads m n"]:
    return jnp.where(seen, _product(x, y, dtype), -jnp.inf)


def _seen(query: Float[Array, "b heads t c"], causal: bool, more: int = 0) -> Any:
    """Which token looks at which: [t, s], or all at all."""
    tokens = query.shape[-2]
    return jnp.tri(tokens, tokens + more, dtype=bool) if causal else np.ones((1, 1), bool)


def _forward(query, key, value, causal, dtype, each):
    narrow = storage(dtype) == jnp.bfloat16
    factors = [query, *(_for_bfloat16(key, value) if narrow else (key, value))]
    seen = _seen(query, causal, more=factors[2].shape[-2] - value.shape[-2])

    def head(query, key, value):
        logits = _logits(query, key if narrow else key.mT, seen, dtype)
        top = jnp.max(logits, axis=-1, keepdims=True)
        (weights,) = _narrow(dtype, jnp.exp(logits - top))
        mixed = _product(weights, value, dtype)
        if narrow:
            mixed, total = mixed[..., :-1], mixed[..., -1:]
        else:
            total = jnp.sum(weights, axis=-1, keepdims=True)
        return mixed / total, top + jnp.log(total)  # divided last: c columns instead of s

    mixed, normalizer = each(head, _narrow(dtype, *factors))
    return mixed, (query, key, value, mixed, normalizer)


def _for_bfloat16(
    key: Float[Array, "b heads s c"], value: Float[Array, "b heads s c"]
) -> tuple[Float[Array, "b heads c n"], Float[Array, "b heads n c+1"]]:
    """The key transposed, and the value with a column of ones, which sums weights as a product.

    Of an odd number of tokens the last one is there twice, and counts once: without visual prompts
    512 × 512 pixels are 1025 tokens, of which XLA's CPU backend (jax 0.10) takes several times as
    long as of 1026.
    """
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    odd, rest = key.shape[-2] % 2, ((0, 0), (0, 0))
    return (
        jnp.pad(key.mT, (*rest, (0, 0), (0, odd)), mode="edge"),
        jnp.pad(value, (*rest, (0, odd), (0, 0))),
    )


def _backward(causal, dtype, each, saved, gradient):
    query, key, value, mixed, normalizer = saved
    seen = _seen(query, causal).T

    # Weights stand as [s, t]: so no product has a transposed factor, for which XLA's CPU backend is
    # slow, in bfloat16 above all.
    def head(query, query_t, key, key_t, value, gradient, gradient_t, normalizer, inner):
        logits = _logits(key, query_t, seen, dtype)
        (weights,) = _narrow(dtype, jnp.exp(logits - normalizer))
        (d_logits,) = _narrow(dtype, weights * (_product(value, gradient_t, dtype) - inner))
        return (
            _product(key_t, d_logits, dtype),
            _product(d_logits, query, dtype),
            _product(weights, gradient, dtype),
        )

    # of softmax: w ⊙ (dw − Σ w·dw), and Σ w·dw = Σ mixed·gradient
    inner = jnp.vecdot(mixed, gradient, precision=jax.lax.Precision.HIGHEST)[..., None]
    query = anew(query, gradient)
    factors = query, query.mT, key, key.mT, value, gradient, gradient.mT
    d_query, d_key, d_value = each(head, [*_narrow(dtype, *factors), normalizer.mT, inner.mT])
    return d_query.mT, d_key, d_value


_attend.defvjp(_forward, _backward)
