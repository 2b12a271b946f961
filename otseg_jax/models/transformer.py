"""The residual block that both of CLIP's towers are stacks of.

Parameters, the residual stream, LayerNorm and softmax are float32; `dtype` is that of the matrix
products. Weights start with OpenAI's standard deviations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from otseg_jax import sharding
from otseg_jax.models.attention import Heads, Seen, attention
from otseg_jax.models.layer_norm import LayerNorm
from otseg_jax.models.linear import Linear
from otseg_jax.models.recompute import recomputed


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid approximation of GELU that OpenAI's CLIP was trained with: x·σ(1.702·x).

    Example:
        >>> float(quick_gelu(jnp.array(0.0)))
        0.0
    """
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),  # torch's default; JAX's is the tanh formula
}


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Sizes that both towers have; those that do not fit together are one ValueError."""

    width: int  # channels of a token
    layers: int
    heads: int  # must divide `width`
    mlp_width: int  # hidden channels of a block's MLP
    embed_dim: int  # channels of the space shared by image and text
    activation: str = "quick_gelu"  # OpenAI's; "gelu" is the exact one
    eps: float = 1e-5  # of LayerNorm

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, wanted at least 1"
            for name, value in vars(self).items()
            if isinstance(value, int) and value < 1
        ]
        if not problems and self.width % self.heads:
            problems.append(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            problems.append(f"activation is {self.activation!r}, wanted {sorted(ACTIVATIONS)}")
        if problems:
            raise ValueError(f"{type(self).__name__}: " + "; ".join(problems))


LARGE = 2**20
"""Hidden channels of an image's tokens, together (4 MiB in float32), from which on a block takes
images one after the other on a CPU: what it makes of several would not fit into the cache."""


class Attention(nnx.Module):
    """Multi-head self-attention, softmax(q·kᵀ/√(width of a head))·v, with biases."""

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.heads, self.causal, self.dtype = config.heads, causal, dtype
        std = config.width**-0.5
        linear = partial(_linear, config.width, config.width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = linear(std=std), linear(std=std), linear(std=std)
        # The residual stream is a sum of 2·layers branches: each starts smaller, as in GPT-2.
        self.out = linear(std=std * (2 * config.layers) ** -0.5)

    def __call__(
        self, x: Float[Array, "b t d"], seen: Float[Array, "b s d"] | None = None
    ) -> Float[Array, "b t d"]:
        """Every token of x looks at those of `seen`; None: at those of x."""
        attend = partial(attention, causal=self.causal, dtype=self.dtype)
        return self.join(sharding.own_rows(attend, *self.split(x, seen), heads=2))

    def split(
        self, x: Float[Array, "b t d"], seen: Float[Array, "b s d"] | None = None
    ) -> tuple[Heads, Seen, Seen]:
        """Query, key and value of every head, the query not scaled."""
        seen = x if seen is None else seen
        query, key, value = (
            rearrange(linear(tokens), "b t (heads c) -> b t heads c", heads=self.heads)
            for linear, tokens in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        return query, key, value

    def join(self, mixed: Heads) -> Float[Array, "b t d"]:
        """Bring the mixed values of all heads together: the last Linear."""
        return self.out(rearrange(mixed, "b t heads c -> b t (heads c)"))


class MLP(nnx.Module):
    """Two Linear layers with the activation between them."""

    def __init__(self, config: TowerConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = config.activation
        inner, outer = (2 * config.width) ** -0.5, (2 * config.width * config.layers) ** -0.5
        linear = partial(_linear, dtype=dtype, rngs=rngs)
        self.up = linear(config.width, config.mlp_width, std=inner)
        self.down = linear(config.mlp_width, config.width, std=outer)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.down(recomputed(ACTIVATIONS[self.activation], self.up(x)))


class Block(nnx.Module):
    """Pre-norm transformer block: x += attention(ln_1(x)); x += mlp(ln_2(x)).

    Prompts are tokens that those of x look at. What a block would make of them is not computed.
    """

    def __init__(self, config: TowerConfig, *, causal: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        self.ln_1 = LayerNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.attention = Attention(config, causal=causal, dtype=dtype, rngs=rngs)
        self.ln_2 = LayerNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], prompts: Float[Array, "b p d"] | None = None
    ) -> Float[Array, "b t d"]:
        arrays = (x,) if prompts is None else (x, prompts)
        small = x.shape[1] * self.mlp.up.out_features < LARGE
        # for a loop over images that several devices share, XLA would gather them
        if small or x.shape[0] == 1 or sharding.several_devices():
            return self._at_once(*arrays)
        return jax.lax.platform_dependent(
            *arrays, cpu=partial(_one_by_one, self._at_once), default=self._at_once
        )

    def _at_once(
        self, x: Float[Array, "b t d"], prompts: Float[Array, "b p d"] | None = None
    ) -> Float[Array, "b t d"]:
        tokens, seen = self.ln_1(x), None
        if prompts is not None:
            seen = jnp.concatenate([tokens, self.ln_1(prompts)], axis=1)
        x = x + self.attention(tokens, seen)
        return x + self.mlp(self.ln_2(x))


def _one_by_one(function: Callable[..., Array], *arrays: Float[Array, "b ..."]) -> Array:
    return jax.lax.map(lambda one: function(*(x[None] for x in one))[0], arrays)


# flax 0.11 keeps initialisers in its modules: towers that are built alike are one program to `jit`
_normal = cache(nnx.initializers.normal)


def _linear(inputs: int, outputs: int, *, std: float, **options: Any) -> Linear:
    return Linear(inputs, outputs, kernel_init=_normal(std), **options)


def projection(config: TowerConfig, *, rngs: nnx.Rngs) -> Linear:
    """The Linear without bias from a tower's width to the shared space, always float32."""
    width, std = config.width, config.width**-0.5
    return _linear(width, config.embed_dim, std=std, use_bias=False, dtype=jnp.float32, rngs=rngs)
