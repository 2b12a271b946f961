"""OTSeg: frozen CLIP with visual prompts, relationship descriptor, MPS path and decoder.

image f32[b, H, W, 3] (normalised) and text f32[k, n, c] (L2-normalised) → two logit maps
f32[b, k, h, w] on the patch grid, h = H / patch. Both are upsampled by `upsample`; since that is
linear, mixtures of the two may be taken before it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from otseg_jax.models.clip import VisionConfig, VisionTower
from otseg_jax.models.decoder import (
    Decoder,
    cosine,
    dropout,
    normalize,
    torch_linear,
)
from otseg_jax.sinkhorn import mps

SINKHORNS = ("implicit", "unrolled")


class Logits(NamedTuple):
    """The two logit maps on the patch grid; `mps` is None where the decoder has no MPS path."""

    decoder: Float[Array, "b k h w"]
    mps: Float[Array, "b k h w"] | None


class VisualPrompts(nnx.Module):
    """Deep visual prompts (VPT): learned tokens in front of every block of the frozen tower.

    Args:
        tokens: prompt tokens p per block.
        blocks: blocks that get prompts of their own, the first one included.
        width: width d of the tower.
        patch_size: pixels; sets the range of the initial values.
        dropout: rate in [0, 1).
        rngs: source of the initial weights.

    Source: OTSeg (arXiv 2403.14183); Jia et al. 2022 (VPT-deep); ZegCLIP (arXiv 2212.03588).
    """

    def __init__(
        self,
        *,
        tokens: int,
        blocks: int,
        width: int,
        patch_size: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        bound = (6.0 / (3 * patch_size**2 + width)) ** 0.5

        def uniform(shape):
            return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)

        self.first = nnx.Param(uniform((1, tokens, width)))
        self.deep = nnx.Param(uniform((blocks - 1, tokens, width))) if blocks > 1 else None
        self.proj = torch_linear(width, width, rngs=rngs)
        # The reference draws this weight from He's normal (fan out); its bias keeps the default.
        self.proj.kernel[...] = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(
            rngs.params(), (width, width)
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, rngs=rngs)
        self.dropout = dropout

    def __call__(self, batch: Any, *, key: Key[Array, ""] | None = None) -> Float[Array, "l b p d"]:
        """Project the tokens for `batch` images (a symbol under jax.export); own dropout each."""
        deep = [] if self.deep is None else [self.deep[...]]
        tokens = self.proj(jnp.concatenate([self.first[...], *deep]))
        blocks, count, width = tokens.shape
        tokens = jnp.broadcast_to(tokens[:, None], (blocks, batch, count, width))
        return dropout(tokens, self.dropout, key)


class OTSeg(nnx.Module):
    """Text-driven segmentation by optimal transport; with cross-attention it is ZegCLIP.

    Only the submodule `vision` is frozen; everything else is trained.

    Args:
        vision: shape of the CLIP tower.
        decoder: "mpsa" (OTSeg) or "cross_attention" (ZegCLIP: no MPS path, one prompt per class).
        decoder_layers: layers of the decoder.
        decoder_heads: heads of cross-attention.
        prompt_tokens: visual prompt tokens p per block.
        prompt_blocks: blocks with prompts of their own; 0 means all.
        dropout: rate for prompts and decoder, in [0, 1).
        epsilon: weight of the entropy in Sinkhorn.
        sinkhorn: "implicit" solves every transport problem to convergence and differentiates the
            result implicitly; "unrolled" runs `iterations` updates, the reference's way.
        iterations: number of Sinkhorn updates of "unrolled".
        dtype: compute dtype of the Linear layers.
        remat: recompute each block in the backward pass instead of storing its activations.
        rngs: source of the initial weights.

    Raises:
        ValueError: a choice or size that does not fit, named by its config field.

    Source: OTSeg (arXiv 2403.14183), overall framework.
    """

    def __init__(
        self,
        vision: VisionConfig,
        *,
        decoder: str = "mpsa",
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        prompt_tokens: int = 10,
        prompt_blocks: int = 0,
        dropout: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn: str = "implicit",
        iterations: int = 100,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        blocks = prompt_blocks or vision.layers
        if not 1 <= blocks <= vision.layers:
            raise ValueError(
                f"model.prompt_blocks={prompt_blocks}: the tower has {vision.layers} blocks"
            )
        if prompt_tokens < 1:
            raise ValueError(f"model.prompt_tokens={prompt_tokens}: at least one token is needed")
        if sinkhorn not in SINKHORNS:
            raise ValueError(f"model.sinkhorn={sinkhorn!r}: choose one of {', '.join(SINKHORNS)}")
        updates = iterations if sinkhorn == "unrolled" else None
        self.vision = VisionTower(vision, dtype=dtype, remat=remat, rngs=rngs)
        self.prompts = VisualPrompts(
            tokens=prompt_tokens,
            blocks=blocks,
            width=vision.width,
            patch_size=vision.patch_size,
            dropout=dropout,
            rngs=rngs,
        )
        self.q_proj = torch_linear(2 * vision.embed_dim, vision.embed_dim, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            vision.embed_dim,
            kind=decoder,
            layers=decoder_layers,
            heads=decoder_heads,
            dropout=dropout,
            epsilon=epsilon,
            iterations=updates,
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_size = vision.patch_size
        self.epsilon, self.iterations = epsilon, updates

    def embed(
        self, image: Float[Array, "b H W 3"], *, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b c"], Float[Array, "b m c"]]:
        """Embed images: global g f32[b, c] and pixels F f32[b, m, c], both L2-normalised."""
        tokens = self.vision.encode(image, self.prompts(image.shape[0], key=key))
        # prompt_norm, then CLIP's own ln_post and projection, over all tokens: both norms, in that
        # order, is what the reference trains with.
        tokens = self.vision.project(self.prompts.norm(tokens))
        m = (image.shape[1] // self.patch_size) * (image.shape[2] // self.patch_size)
        return normalize(tokens[:, 0]), normalize(tokens[:, -m:])

    def match(
        self,
        global_embedding: Float[Array, "b c"],
        pixels: Float[Array, "b m c"],
        text: Float[Array, "k n c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b k m"], Float[Array, "b k m"] | None]:
        """Match pixels with classes: logits of the decoder and of the MPS path."""
        # Relationship descriptor: the image's own reading of each prompt, beside the prompt.
        product = global_embedding[:, None, None] * text[None]
        queries = jnp.concatenate([product, jnp.broadcast_to(text[None], product.shape)], axis=-1)
        queries = self.q_proj(queries)
        logits = self.decoder(queries, pixels, key=key)
        if self.decoder.kind == "cross_attention":
            return logits, None
        similarity = cosine(queries, pixels)
        return logits, mps(similarity, epsilon=self.epsilon, iterations=self.iterations)

    def __call__(
        self,
        image: Float[Array, "b H W 3"],
        text: Float[Array, "k n c"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        """Segment images.

        Args:
            image: f32[b, H, W, 3], normalised, RGB; H and W divisible by the patch.
            text: f32[k, n, c], L2-normalised prompt embeddings; n = 1 for cross-attention.
            key: turns dropout on.

        Returns:
            Logits, f32[b, k, h, w] each.

        Raises:
            ValueError: several prompts per class for cross-attention.
        """
        if self.decoder.kind == "cross_attention" and text.shape[1] != 1:
            raise ValueError(
                f"cross-attention takes one prompt per class, text has {text.shape[1]}: "
                "keep the first template, text[:, :1]"
            )
        prompt_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        global_embedding, pixels = self.embed(image, key=prompt_key)
        logits, mps_logits = self.match(global_embedding, pixels, text, key=decoder_key)
        h = image.shape[1] // self.patch_size

        def grid(x):
            return rearrange(x, "b k (h w) -> b k h w", h=h)

        return Logits(grid(logits), None if mps_logits is None else grid(mps_logits))


def upsample(logits: Float[Array, "b k h w"], size: tuple[int, int]) -> Float[Array, "b k H W"]:
    """Resize logit maps bilinearly to `size` = (H, W) pixels; half-pixel centres, no antialias."""
    return jax.image.resize(logits, (*logits.shape[:2], *size), method="bilinear", antialias=False)
