"""CLIP's two towers, a vision transformer with deep prompts and a causal text transformer.

Images are NHWC, already normalised. Tokens [b, t, d] are the class token, then the patches in
row-major order. `dtype` is the type of the products in patch embedding and blocks; all else, the
last projection included, is float32. Outputs are not normalised.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from otseg_jax.models.layer_norm import LayerNorm
from otseg_jax.models.linear import product
from otseg_jax.models.modules import Modules
from otseg_jax.models.recompute import recomputed
from otseg_jax.models.transformer import Block, TowerConfig, projection

Images: TypeAlias = Float[Array, "b height width 3"]
Prompts: TypeAlias = Float[Array, "l b p d"] | None  # for the first l blocks


@dataclass(frozen=True, kw_only=True)
class VisionConfig(TowerConfig):
    """Sizes of the vision tower, checked as `TowerConfig` says; its native image is square.

    Example:
        >>> VisionConfig(image_size=512, patch_size=16, width=768, layers=12, heads=12,
        ...              mlp_width=3072, embed_dim=512).grid
        32
    """

    image_size: int  # side in pixels that the position embedding was made for
    patch_size: int  # side in pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid < 1:
            raise ValueError(f"image_size {self.image_size} is below patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along one side at the native size."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class TextConfig(TowerConfig):
    """Sizes of the text tower, checked as `TowerConfig` says."""

    vocab_size: int
    context_length: int  # most tokens of one text


def resize_positions(
    embedding: Float[Array, "1+{grid}**2 d"], height: int, width: int, *, grid: int
) -> Float[Array, "1+{height}*{width} d"]:
    """Resize the grid part of a position embedding, side `grid`; the class token's row is kept.

    Bilinear, half-pixel centres, no antialias; the same array if nothing changes.

    Source: CLIP's position embedding at other sizes, DenseCLIP and ZegCLIP.
    """
    if (height, width) == (grid, grid):
        return embedding
    square = rearrange(embedding[1:], "(h w) d -> h w d", h=grid)
    shape = (height, width, embedding.shape[1])
    resized = jax.image.resize(square, shape, "bilinear", antialias=False)
    return jnp.concatenate([embedding[:1], rearrange(resized, "h w d -> (h w) d")])


def resize_positions_bicubic(
    embedding: Float[Array, "1+{grid}**2 d"],
    height: int,
    width: int,
    *,
    grid: int,
    offset: float = 0.1,
) -> Float[Array, "1+{height}*{width} d"]:
    """Resize as `resize_positions`, by PyTorch's bicubic kernel: a = −0.75, no antialias.

    Output i of n reads at (i + ½)·grid/(n + offset) − ½; the edge is repeated.

    Source: DINO (arXiv 2104.14294) and what was built on it, offset 0.1; MaskCLIP: none.
    Differs: any grid as wide and high as the native one is kept, not any with as many patches.
    """
    if (height, width) == (grid, grid):
        return embedding
    down, across = (_cubic_taps(n, grid, offset) for n in (height, width))
    square = rearrange(embedding[1:], "(h w) d -> h w d", h=grid)
    resized = jnp.einsum(
        "hg, gkd, wk -> hwd", down, square, across, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.concatenate([embedding[:1], rearrange(resized, "h w d -> (h w) d")])


def _cubic_taps(length: int, grid: int, offset: float) -> Float[np.ndarray, "n grid"]:
    """Weight of every entry of a row in every output; `jax.image.resize` has a = −0.5."""
    a, where = -0.75, (np.arange(length) + 0.5) * grid / (length + offset) - 0.5
    first, weights = np.floor(where).astype(int) - 1, np.zeros((length, grid), np.float32)
    for tap in range(4):
        x = np.abs(where - first - tap)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        weights[np.arange(length), np.clip(first + tap, 0, grid - 1)] += np.where(x < 1, near, far)
    return weights


class PatchEmbedding(nnx.Conv):
    """A convolution whose patches do not overlap, hence one product."""

    def __call__(self, image: Images) -> Float[Array, "b h w d"]:  # type: ignore[override]
        side = self.kernel.shape[0]
        height, width = (n // side * side for n in image.shape[1:3])
        patches = rearrange(
            image[:, :height, :width], "b (h p) (w q) c -> b h w (p q c)", p=side, q=side
        )
        return product(patches, self.kernel[...].reshape(patches.shape[-1], -1), self.dtype)


class VisionTower(nnx.Module):
    """CLIP ViT whose deep prompts are an argument.

    Args:
        double_class_embedding: add the class embedding a second time, as the reference does.
        resize: brings the position embedding to the grid of an image.
        remat: recompute each block in the backward pass instead of keeping its activations.

    Source: CLIP (arXiv 2103.00020); deep prompts: VPT (arXiv 2203.12119).
    """

    def __init__(
        self,
        config: VisionConfig,
        *,
        double_class_embedding: bool = True,
        resize: Callable[..., Array] = resize_positions,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config, self.remat, self.resize = config, remat, resize
        self.double_class_embedding = double_class_embedding
        width, patch = config.width, config.patch_size
        normal = nnx.initializers.normal(width**-0.5, jnp.float32)  # whatever JAX's default
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (1 + config.grid**2, width)))
        self.patch_embedding = PatchEmbedding(
            3, width, (patch, patch), strides=patch, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.ln_pre = LayerNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.blocks = Modules(
            [Block(config, causal=False, dtype=dtype, rngs=rngs) for _ in range(config.layers)]
        )
        self.ln_post = LayerNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.projection = projection(config, rngs=rngs)

    def encode(self, image: Images, prompts: Prompts = None) -> Float[Array, "b t d"]:
        """Tokens after the last block, before `ln_post`.

        Args:
            image: pixels beyond the last whole patch are dropped.
            prompts: tokens of layer i are looked at in block i; blocks from l on run without.

        Raises:
            ValueError: an image smaller than one patch, more prompt layers than blocks.

        Source: OTSeg (arXiv 2403.14183); VPT-deep.
        Differs: prompts go through no block; the original computes that, then replaces them.
        """
        *_, tokens = self.stages(image, prompts)
        return tokens

    def stages(self, image: Images, prompts: Prompts = None) -> Iterator[Float[Array, "b t d"]]:
        """The tokens that enter the first block, then those after each block; as `encode`."""
        patch, layers = self.config.patch_size, len(self.blocks)
        if min(image.shape[1:3]) < patch:
            raise ValueError(f"image is {image.shape[1:3]} pixels, wanted at least {patch} a side")
        prompted = 0 if prompts is None else len(prompts)
        if prompted > layers:
            raise ValueError(f"prompts hold {prompted} layers, the tower has {layers} blocks")

        tokens = self._embed(image)
        yield tokens
        for i, block in enumerate(self.blocks):
            own = [prompts[i].astype(tokens.dtype)] if prompts is not None and i < prompted else []
            tokens = recomputed(block, tokens, *own) if self.remat else block(tokens, *own)
            yield tokens

    def project(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t c"]:
        """Map every token to the space shared with text: projection(ln_post(tokens))."""
        return self.projection(self.ln_post(tokens))

    def _embed(self, image: Images) -> Float[Array, "b t d"]:
        patches = self.patch_embedding(image)
        batch, height, width, channels = patches.shape
        positions = self.resize(self.position_embedding[...], height, width, grid=self.config.grid)
        first = self.class_embedding[...] + positions[0]
        if self.double_class_embedding:
            # CLIP adds it once; the reference adds it to its position too, and trained so.
            first = first + self.class_embedding[...]
        patches = rearrange(patches, "b h w d -> b (h w) d") + positions[None, 1:]
        first = jnp.broadcast_to(first, (batch, 1, channels))
        return self.ln_pre(jnp.concatenate([first, patches], axis=1))


class TextTower(nnx.Module):
    """CLIP's causal text transformer, pooled at the end-of-text token.

    Source: CLIP (arXiv 2103.00020).
    """

    def __init__(self, config: TextConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config, width = config, config.width
        token, position = (nnx.initializers.normal(std, jnp.float32) for std in (0.02, 0.01))
        self.token_embedding = nnx.Param(token(rngs.params(), (config.vocab_size, width)))
        self.position_embedding = nnx.Param(position(rngs.params(), (config.context_length, width)))
        self.blocks = Modules(
            [Block(config, causal=True, dtype=dtype, rngs=rngs) for _ in range(config.layers)]
        )
        self.ln_final = LayerNorm(config.width, epsilon=config.eps, rngs=rngs)
        self.projection = projection(config, rngs=rngs)

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b c"]:
        """Embed texts; NaN where one holds an id outside 0..vocab_size-1.

        The largest id of a row ends its text; with CLIP's tokenizer that is "<|endoftext|>".

        Raises:
            ValueError: more tokens than the tower has positions.
        """
        batch, length = tokens.shape
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens, the tower takes {self.config.context_length}")
        # The default would read the last row of the table for an id from a foreign tokenizer.
        x = self.token_embedding[...].at[tokens].get(mode="fill", fill_value=jnp.nan)
        x = x + self.position_embedding[None, :length]
        for block in self.blocks:
            x = block(x)
        pooled = x[jnp.arange(batch), jnp.argmax(tokens, axis=-1)]
        return self.projection(self.ln_final(pooled))
