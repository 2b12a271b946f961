"""Decoder: three layers in which the prompts of every class attend to the pixels of an image.

Two attentions share every weight name. Multi-Prompt Sinkhorn Attention (MPSA, OTSeg) replaces the
softmax by an optimal transport plan; multi-head cross-attention (ZegCLIP) is what it replaces.
Sinkhorn, cosines and LayerNorms are float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from otseg_jax import sharding
from otseg_jax.models.layer_norm import LayerNorm
from otseg_jax.models.linear import Linear
from otseg_jax.models.modules import Modules
from otseg_jax.ot.sinkhorn import sinkhorn

KINDS = ("mpsa", "cross_attention")

Queries: TypeAlias = Float[Array, "b k n c"]  # image, class, prompt, channel
Pixels: TypeAlias = Float[Array, "b m c"]  # in row-major order, L2-normalised
Pairs: TypeAlias = Float[Array, "b k m n"]  # of every pixel with every prompt of a class
Scores: TypeAlias = Float[Array, "b k m"]
Attended: TypeAlias = tuple[Queries, Scores]  # what prompts collect from the pixels, a score map

Transport: TypeAlias = Callable[[Pairs], Pairs]
"""Similarities to transport plans, rows summing to 1/m: the solver that is handed in."""

MaybeKey: TypeAlias = Key[Array, ""] | None
"""A key turns dropout on."""

Drop: TypeAlias = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""Dropout with its rate and key."""

Attend: TypeAlias = Callable[[Queries, Pixels, Pixels, Drop], Attended]
"""An attention between projected queries, keys and values, with dropout of its map."""


@dataclass(frozen=True)
class Sinkhorn:
    """`ot.sinkhorn` as a value: models that are built alike are one program to `jit`."""

    epsilon: float = 0.05
    iterations: int | None = None

    def __call__(self, similarity: Pairs) -> Pairs:
        """Transport plans."""
        return sinkhorn(similarity, epsilon=self.epsilon, iterations=self.iterations)


def alignment(plan: Pairs, similarity: Pairs) -> Scores:
    """Refined alignment of every pixel with every class, S*[m] = M·N·Σₙ T[m,n]·S[m,n].

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn.
    """
    m, n = similarity.shape[-2:]
    # no `sum` of the product: see `layer_norm`
    return m * n * _einsum("...n,...n->...", plan, similarity)


def normalize(x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """Scale vectors to unit length in float32; a zero vector stays zero, its gradient finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def cosine(queries: Queries, pixels: Pixels) -> Pairs:
    """Cosine similarity of every pixel with every prompt, f32 in [-1, 1]."""
    return _einsum("bknc,bmc->bkmn", normalize(queries), normalize(pixels))


# TPU and GPU would multiply in bf16 or TF32, an error that dividing a cosine by ε = 0.05 makes
# twenty times larger.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def dropout(x: Float[Array, "..."], rate: float, key: MaybeKey) -> Float[Array, "..."]:
    """Zero entries with probability `rate`, scale the rest by 1/(1 − rate); no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    # float32, for the same draws under any default of JAX
    keep = jax.random.bernoulli(key, jnp.float32(1.0 - rate), x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def torch_linear(
    inputs: int, outputs: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> Linear:
    """Linear layer with weight and bias drawn from U(±1/√inputs).

    The reference never calls its own initialiser for the decoder, so PyTorch's default is what
    published models were trained from.
    """
    uniform = _uniform(inputs**-0.5)
    return Linear(inputs, outputs, kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs)


@cache  # as that of the towers
def _uniform(bound: float) -> Callable[..., Array]:
    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


@dataclass(frozen=True)
class SinkhornAttention:
    """Multi-Prompt Sinkhorn Attention: the transport plan is the attention map.

    One head over all channels, whatever num_heads says in the reference's configs.

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn Attention.
    """

    transport: Transport

    def __call__(self, query: Queries, key: Pixels, value: Pixels, drop: Drop) -> Attended:
        """Attend by the plan between cosines."""
        similarity = cosine(query, key)
        plan = sharding.own_rows(self.transport, similarity)
        # The plan as it is: its columns sum to 1/n, and published weights expect that scale.
        return _einsum("bkmn,bmc->bknc", drop(plan), value), alignment(plan, similarity)


@dataclass(frozen=True)
class CrossAttention:
    """ZegCLIP's multi-head softmax attention, of one prompt per class (n = 1).

    Its score map is the mean over heads before the softmax.

    Source: ZegCLIP (arXiv 2212.03588).
    """

    heads: int

    def __call__(self, query: Queries, key: Pixels, value: Pixels, drop: Drop) -> Attended:
        """Attend by softmax(q·kᵀ/√(width of a head))."""
        q, k, v = (
            rearrange(x, "b t (heads c) -> b t heads c", heads=self.heads)
            for x in (query[:, :, 0], key, value)
        )
        logits = q.shape[-1] ** -0.5 * _einsum("bkhc,bmhc->bhkm", q, k)
        collected = _einsum("bhkm,bmhc->bkhc", drop(jax.nn.softmax(logits, axis=-1)), v)
        return rearrange(collected, "b k heads c -> b k 1 (heads c)"), jnp.mean(logits, axis=1)


class Attention(nnx.Module):
    """Projections around an attention: query, key, value and out, each Linear c → c."""

    def __init__(
        self, width: int, attend: Attend, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        linear = partial(torch_linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.attend, self.dropout = attend, dropout

    def __call__(self, queries: Queries, memory: Pixels, *, key: MaybeKey = None) -> Attended:
        """Project, attend, project back."""
        drop = partial(dropout, rate=self.dropout, key=key)
        collected, score_map = self.attend(
            self.query(queries), self.key(memory), self.value(memory), drop
        )
        return self.out(collected), score_map


class DecoderLayer(nnx.Module):
    """Attention, then a two-layer MLP, each added and normalised after; no self-attention."""

    def __init__(
        self, width: int, attend: Attend, *, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.attention = Attention(width, attend, dropout=dropout, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.norm3 = LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.linear1 = torch_linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.linear2 = torch_linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(self, queries: Queries, memory: Pixels, *, key: MaybeKey = None) -> Attended:
        """Refine the queries; they and the score map are float32."""
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        attended, score_map = self.attention(queries, memory, key=keys[0])
        queries = self.norm2(queries + dropout(attended, self.dropout, keys[1]).astype(jnp.float32))
        hidden = dropout(jax.nn.relu(self.linear1(queries)), self.dropout, keys[2])
        hidden = dropout(self.linear2(hidden), self.dropout, keys[3])
        return self.norm3(queries + hidden.astype(jnp.float32)), score_map


class Decoder(nnx.Module):
    """Stack of layers; its logits combine the layers' score maps.

    MPSA: A_L ⊙ Π_{ℓ<L} σ(A_ℓ)^{1/(L−1)}; cross-attention: A_L alone.

    Args:
        kind: "mpsa" (OTSeg) or "cross_attention" (ZegCLIP).
        heads: of cross-attention; MPSA has one, and `transport`.

    Raises:
        ValueError: another kind, no layers, or a width that the heads do not divide.

    Source: OTSeg (arXiv 2403.14183), decoder; ZegCLIP (arXiv 2212.03588).
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str,
        layers: int,
        heads: int,
        dropout: float,
        transport: Transport,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        if kind not in KINDS:
            raise ValueError(f"model.decoder={kind!r}: choose one of {', '.join(KINDS)}")
        if layers < 1:
            raise ValueError(f"model.decoder_layers={layers}: at least one layer is needed")
        if kind == "cross_attention" and (heads < 1 or width % heads):
            raise ValueError(f"model.decoder_heads={heads} must divide the embedding width {width}")
        self.kind = kind
        attend = SinkhornAttention(transport) if kind == "mpsa" else CrossAttention(heads)
        layer = partial(DecoderLayer, width, attend, dropout=dropout, dtype=dtype)
        # Every layer draws from the same key: the reference deep-copies one initialised layer.
        seed = rngs.params()
        self.layers = Modules(layer(rngs=nnx.Rngs(params=seed)) for _ in range(layers))

    def __call__(self, queries: Queries, memory: Pixels, *, key: MaybeKey = None) -> Scores:
        """Logits of every class at every pixel."""
        maps = []
        for i, layer in enumerate(self.layers):
            layer_key = None if key is None else jax.random.fold_in(key, i)
            queries, score_map = layer(queries, memory, key=layer_key)
            maps.append(score_map)
        *earlier, logits = maps
        if self.kind == "mpsa":
            for score_map in earlier:
                logits = logits * jax.nn.sigmoid(score_map) ** (1.0 / len(earlier))
        return logits
