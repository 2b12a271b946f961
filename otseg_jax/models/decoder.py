"""Decoder: three layers in which the prompts of every class attend to the pixels of an image.

Two attentions share every weight name. Multi-Prompt Sinkhorn Attention (MPSA, OTSeg) replaces the
softmax by an optimal transport plan; multi-head cross-attention (ZegCLIP) is what it replaces.
Arrays: queries [b, k, n, c] (image, class, prompt, channel), memory [b, m, c] (pixels in row-major
order, L2-normalised), score maps [b, k, m]. Sinkhorn, cosines and LayerNorms are float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from otseg_jax.ot.sinkhorn import sinkhorn

KINDS = ("mpsa", "cross_attention")

Transport: TypeAlias = Callable[[Float[Array, "b k m n"]], Float[Array, "b k m n"]]
"""Similarities to transport plans, rows summing to 1/m: the solver that is handed in."""


@dataclass(frozen=True)
class Sinkhorn:
    """`ot.sinkhorn` as a value: models that are built alike are one program to `jit`."""

    epsilon: float = 0.05
    iterations: int | None = None

    def __call__(self, similarity: Float[Array, "b k m n"]) -> Float[Array, "b k m n"]:
        """Transport plans."""
        return sinkhorn(similarity, epsilon=self.epsilon, iterations=self.iterations)


def alignment(
    plan: Float[Array, "b k m n"], similarity: Float[Array, "b k m n"]
) -> Float[Array, "b k m"]:
    """Refined alignment of every pixel with every class, S*[m] = M·N·Σₙ T[m,n]·S[m,n].

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn.
    """
    m, n = similarity.shape[-2:]
    return m * n * jnp.sum(plan * similarity, axis=-1)


def normalize(x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
    """Scale vectors to unit length in float32; a zero vector stays zero, its gradient finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def cosine(
    queries: Float[Array, "b k n c"], pixels: Float[Array, "b m c"]
) -> Float[Array, "b k m n"]:
    """Cosine similarity of every pixel with every prompt, f32 in [-1, 1].

    HIGHEST precision: TPU and GPU would otherwise multiply in bf16 or TF32, an error that the
    division by ε = 0.05 makes twenty times larger.
    """
    return jnp.einsum(
        "bknc,bmc->bkmn", normalize(queries), normalize(pixels), precision=jax.lax.Precision.HIGHEST
    )


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zero entries with probability `rate`, scale the rest by 1/(1 − rate); no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def torch_linear(
    inputs: int, outputs: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Linear:
    """Linear layer with weight and bias drawn from U(±1/√inputs).

    The reference never calls its own initialiser for the decoder, so PyTorch's default is what
    published models were trained from.
    """
    bound = inputs**-0.5

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        inputs, outputs, kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs
    )


class Attention(nnx.Module):
    """Projections that both attentions have: query, key, value, out, each Linear c → c."""

    def __init__(
        self, width: int, *, dropout: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.query = torch_linear(width, width, dtype=dtype, rngs=rngs)
        self.key = torch_linear(width, width, dtype=dtype, rngs=rngs)
        self.value = torch_linear(width, width, dtype=dtype, rngs=rngs)
        self.out = torch_linear(width, width, dtype=dtype, rngs=rngs)
        self.dropout = dropout


class SinkhornAttention(Attention):
    """Multi-Prompt Sinkhorn Attention: the transport plan is the attention map.

    One head over all channels, whatever num_heads says in the reference's configs.

    Source: OTSeg (arXiv 2403.14183), Multi-Prompt Sinkhorn Attention.
    """

    def __init__(
        self,
        width: int,
        *,
        transport: Transport,
        dropout: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, dropout=dropout, dtype=dtype, rngs=rngs)
        self.transport = transport

    def __call__(
        self,
        queries: Float[Array, "b k n c"],
        memory: Float[Array, "b m c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b k n c"], Float[Array, "b k m"]]:
        """Return what the prompts collect from the pixels, and the layer's score map."""
        similarity = cosine(self.query(queries), self.key(memory))
        plan = self.transport(similarity)
        # The plan as it is: its columns sum to 1/n, and published weights expect that scale.
        collected = jnp.einsum(
            "bkmn,bmc->bknc", dropout(plan, self.dropout, key), self.value(memory)
        )
        return self.out(collected), alignment(plan, similarity)


class CrossAttention(Attention):
    """ZegCLIP's multi-head softmax attention; its score map is the mean over heads before softmax.

    Source: ZegCLIP (arXiv 2212.03588).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        dropout: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(width, dropout=dropout, dtype=dtype, rngs=rngs)
        self.heads = heads

    def __call__(
        self,
        queries: Float[Array, "b k n c"],
        memory: Float[Array, "b m c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b k n c"], Float[Array, "b k m"]]:
        """Return the attended values and the score map; one prompt per class (n = 1)."""
        b, k, _, c = queries.shape
        split = (self.heads, c // self.heads)
        q = self.query(queries[:, :, 0]).reshape(b, k, *split)
        x, v = (
            layer(memory).reshape(b, memory.shape[1], *split) for layer in (self.key, self.value)
        )
        scale = split[1] ** -0.5
        logits = scale * jnp.einsum(
            "bkhc,bmhc->bhkm",
            q.astype(jnp.float32),
            x.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        weights = dropout(jax.nn.softmax(logits, axis=-1), self.dropout, key)
        attended = jnp.einsum("bhkm,bmhc->bkhc", weights, v)
        return self.out(attended.reshape(b, k, 1, c)), jnp.mean(logits, axis=1)


class DecoderLayer(nnx.Module):
    """Attention, then a two-layer MLP, each added and normalised after; no self-attention."""

    def __init__(
        self,
        attention: Attention,
        width: int,
        *,
        dropout: float,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.attention = attention
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.norm3 = nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.linear1 = torch_linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.linear2 = torch_linear(4 * width, width, dtype=dtype, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self,
        queries: Float[Array, "b k n c"],
        memory: Float[Array, "b m c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b k n c"], Float[Array, "b k m"]]:
        """Return refined queries (f32) and the layer's score map (f32)."""
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
        heads: of cross-attention; MPSA has one.
        transport: of MPSA.

    Raises:
        ValueError: unknown kind, no layers, or a width that the heads do not divide.

    Source: OTSeg (arXiv 2403.14183), decoder; ZegCLIP (arXiv 2212.03588).
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str = "mpsa",
        layers: int = 3,
        heads: int = 8,
        dropout: float = 0.1,
        transport: Transport = Sinkhorn(),
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if layers < 1:
            raise ValueError(f"model.decoder_layers={layers}: at least one layer is needed")
        if kind == "cross_attention" and (heads < 1 or width % heads):
            raise ValueError(f"model.decoder_heads={heads} must divide the embedding width {width}")
        self.kind = kind
        seed = rngs.params()

        def layer() -> DecoderLayer:
            # Every layer draws from the same key: the reference deep-copies one initialised layer.
            rngs = nnx.Rngs(params=seed)
            attention: Attention
            if kind == "mpsa":
                attention = SinkhornAttention(
                    width, transport=transport, dropout=dropout, dtype=dtype, rngs=rngs
                )
            else:
                attention = CrossAttention(
                    width, heads=heads, dropout=dropout, dtype=dtype, rngs=rngs
                )
            return DecoderLayer(attention, width, dropout=dropout, dtype=dtype, rngs=rngs)

        self.layers = nnx.List([layer() for _ in range(layers)])

    def __call__(
        self,
        queries: Float[Array, "b k n c"],
        memory: Float[Array, "b m c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b k m"]:
        """Return logits f32[b, k, m]; `key` turns dropout on."""
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
