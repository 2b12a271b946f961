"""OTSeg: frozen CLIP with visual prompts, relationship descriptor, MPS path and decoder.

image f32[b, H, W, 3] (normalised) and text f32[k, n, c] (L2-normalised) → logit maps by name,
f32[b, k, h, w] on the patch grid, h = H / patch: "decoder", and "mps" where the decoder is MPSA.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final

import jax
import jax.numpy as jnp
import pydantic
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import Field

from otseg_jax import sharding
from otseg_jax.fields import Few, Fraction, Switch, within
from otseg_jax.models.clip import VisionConfig, VisionTower
from otseg_jax.models.decoder import (
    KINDS,
    Decoder,
    MaybeKey,
    Pairs,
    Pixels,
    Queries,
    Scores,
    Sinkhorn,
    Transport,
    alignment,
    cosine,
    dropout,
    normalize,
    torch_linear,
)
from otseg_jax.models.layer_norm import LayerNorm
from otseg_jax.models.linear import narrow
from otseg_jax.models.outputs import Outputs

SINKHORNS = ("implicit", "unrolled")

FROZEN: Final = "vision"
"""Name of the submodule that never learns."""


def _outside_the_tower(path: tuple[Any, ...], value: Any) -> bool:
    # The first name decides: a decoder may call a layer of its own "vision" and still learn.
    return path[0] != FROZEN


TRAINABLE: Final = nnx.All(nnx.Param, _outside_the_tower)
"""Filter of the learning parameters, for `nnx.split(model, TRAINABLE, ...)`: every `nnx.Param`
except those of `FROZEN`. A variable of another type (a counter, a key) never learns.

Source: OTSeg (arXiv 2403.14183): prompts, their projection and norm, and the decoder learn.
"""


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class OTSegConfig:
    """What can be chosen about the model around a CLIP tower; `configs/common.py`, `model`.

    Raises:
        ValueError: a choice that does not exist, or a size below 1, named by its config field.
    """

    decoder: str = "mpsa"  # OTSeg; "cross_attention": ZegCLIP, no MPS path, one prompt per class
    decoder_layers: Few = 3
    decoder_heads: Few = 8  # of cross-attention; MPSA has one
    prompt_tokens: Few = 10  # visual prompts per block
    prompt_blocks: Annotated[int, within(0, 4096)] = 0  # blocks with prompts of their own; 0: all
    dropout: Annotated[Fraction, Field(lt=1)] = 0.1  # rate for prompts and decoder
    # weight of the entropy in Sinkhorn, which does not converge below the bound
    epsilon: Annotated[float, within(1e-4, 100)] = 0.05
    # "implicit" solves every transport problem to convergence and differentiates the result
    # implicitly; "unrolled" runs `iterations` updates, the reference's way
    sinkhorn: str = "implicit"
    iterations: Annotated[int, within(1, 100_000)] = 100
    remat: Switch = False  # recompute each block in the backward pass, store no activations

    def __post_init__(self) -> None:
        problems = [
            f"model.{name}={value!r}: choose one of {', '.join(choices)}"
            for name, value, choices in (
                ("decoder", self.decoder, KINDS),
                ("sinkhorn", self.sinkhorn, SINKHORNS),
            )
            if value not in choices
        ]
        if self.prompt_tokens < 1:
            problems.append(
                f"model.prompt_tokens={self.prompt_tokens}: at least one token is needed"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def transport(self) -> Transport:
        """The solver of transport plans that is asked for."""
        return Sinkhorn(self.epsilon, self.iterations if self.sinkhorn == "unrolled" else None)

    @property
    def one_prompt(self) -> bool:
        """Whether a class is described by one prompt only."""
        return self.decoder == "cross_attention"

    def outputs(self, *, mps_weight: float = 0.5) -> Outputs:
        """What the method is scored on: OTSeg (the decoder alone) and OTSeg+, or ZegCLIP.

        OTSeg+ is z = (1 − w)·z_decoder + w·z_mps with w = mps_weight.

        Source: OTSeg (arXiv 2403.14183), inference.
        """
        if self.one_prompt:
            return Outputs({"zegclip": {"decoder": 1.0}}, main="zegclip")
        plus = {"decoder": 1.0 - mps_weight, "mps": mps_weight}
        return Outputs({"otseg": {"decoder": 1.0}, "otseg_plus": plus}, main="otseg_plus")

    @property
    def scale(self) -> float | None:
        """Of scores before a softmax over words; None: each is scored by itself, σ(logit)."""
        return None

    @property
    def joint(self) -> bool:
        """Whether logits of a word depend on which others are asked for; these do not."""
        return False

    def window_size(self, size: tuple[int, int], window: int, patch: int) -> tuple[int, int]:
        """Height and width of the windows of a photo; one that is smaller is filled up with 0."""
        return window, window

    def margins(self, side: int, patch: int) -> tuple[int, int]:
        """Zeros before and behind a side of a window, in pixels."""
        return 0, 0

    def build(
        self,
        vision: VisionConfig,
        *,
        transport: Transport | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "OTSeg":
        """The model around a tower of these sizes; arguments and errors as of `OTSeg`."""
        return OTSeg(vision, self, transport=transport, dtype=dtype, rngs=rngs)


class VisualPrompts(nnx.Module):
    """Deep visual prompts (VPT): learned tokens that a block of the frozen tower looks at.

    Source: OTSeg (arXiv 2403.14183); Jia et al. 2022 (VPT-deep); ZegCLIP (arXiv 2212.03588).
    """

    def __init__(self, vision: VisionConfig, config: OTSegConfig, *, rngs: nnx.Rngs):
        width, blocks = vision.width, config.prompt_blocks or vision.layers
        if not 1 <= blocks <= vision.layers:
            raise ValueError(
                f"model.prompt_blocks={config.prompt_blocks}: the tower has {vision.layers} blocks"
            )
        bound = (6.0 / (3 * vision.patch_size**2 + width)) ** 0.5

        def uniform(count):
            shape = (count, config.prompt_tokens, width)
            return jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)

        self.first = nnx.Param(uniform(1))
        self.deep = nnx.Param(uniform(blocks - 1)) if blocks > 1 else None
        self.proj = torch_linear(width, width, rngs=rngs)
        # The reference draws this weight from He's normal (fan out); its bias keeps the default.
        self.proj.kernel[...] = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(
            rngs.params(), (width, width), jnp.float32
        )
        self.norm = LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.dropout = config.dropout

    def __call__(self, batch: Any, *, key: MaybeKey = None) -> Float[Array, "l b p d"]:
        """Project the tokens for `batch` images (a symbol under jax.export); own dropout each."""
        deep = [] if self.deep is None else [self.deep[...]]
        tokens = self.proj(jnp.concatenate([self.first[...], *deep]))
        tokens = jnp.broadcast_to(tokens[:, None], (len(tokens), batch, *tokens.shape[1:]))
        return dropout(tokens, self.dropout, key)


class OTSeg(nnx.Module):
    """Text-driven segmentation by optimal transport; with cross-attention it is ZegCLIP.

    Args:
        vision: sizes of the CLIP tower.
        transport: solver of transport plans; None: the one that `config` asks for.
        dtype: of products, as in `linear`.

    Raises:
        ValueError: sizes that do not fit together, named by their config field.

    Source: OTSeg (arXiv 2403.14183), overall framework.
    """

    def __init__(
        self,
        vision: VisionConfig,
        config: OTSegConfig = OTSegConfig(),
        *,
        transport: Transport | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = vision.patch_size
        self.transport = config.transport if transport is None else transport
        self.vision = VisionTower(vision, dtype=dtype, remat=config.remat, rngs=rngs)
        narrow(self.vision)
        self.prompts = VisualPrompts(vision, config, rngs=rngs)
        self.q_proj = torch_linear(2 * vision.embed_dim, vision.embed_dim, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            vision.embed_dim,
            kind=config.decoder,
            layers=config.decoder_layers,
            heads=config.decoder_heads,
            dropout=config.dropout,
            transport=self.transport,
            dtype=dtype,
            rngs=rngs,
        )

    def embed(
        self, image: Float[Array, "b H W 3"], *, key: MaybeKey = None
    ) -> tuple[Float[Array, "b c"], Pixels]:
        """Embed images: as a whole (g) and by pixel (F), both L2-normalised."""
        tokens = self.vision.encode(image, self.prompts(image.shape[0], key=key))
        # prompt_norm, then CLIP's own ln_post and projection, over all tokens: both norms, in that
        # order, is what the reference trains with.
        tokens = self.vision.project(self.prompts.norm(tokens))
        return normalize(tokens[:, 0]), normalize(tokens[:, 1:])

    def match(
        self,
        global_embedding: Float[Array, "b c"],
        pixels: Pixels,
        text: Float[Array, "k n c"],
        *,
        key: MaybeKey = None,
    ) -> dict[str, Scores]:
        """Match pixels with classes: logits of the decoder and of the MPS path, by name."""
        queries = self.describe(global_embedding, text)
        maps = {"decoder": self.decoder(queries, pixels, key=key)}
        if self.decoder.kind == "mpsa":
            maps["mps"] = alignment(*self.plan(queries, pixels))
        return maps

    def plan(self, queries: Queries, pixels: Pixels) -> tuple[Pairs, Pairs]:
        """The transport plan of the MPS path between the prompts of every class and the pixels.

        Next to it the cosines that it was solved for; `queries` are of `describe`.
        """
        similarity = cosine(queries, pixels)
        return sharding.own_rows(self.transport, similarity), similarity

    def describe(
        self, global_embedding: Float[Array, "b c"], text: Float[Array, "k n c"]
    ) -> Queries:
        """Relationship descriptor: the image's own reading of each prompt, beside the prompt."""
        product = global_embedding[:, None, None] * text[None]
        beside = jnp.broadcast_to(text[None], product.shape)
        return self.q_proj(jnp.concatenate([product, beside], axis=-1))

    def __call__(
        self, image: Float[Array, "b H W 3"], text: Float[Array, "k n c"], *, key: MaybeKey = None
    ) -> dict[str, Float[Array, "b k h w"]]:
        """Segment images: logits by name of the map; `key` turns dropout on.

        Args:
            image: normalised, RGB; H and W divisible by the patch.
            text: L2-normalised prompt embeddings; n = 1 for cross-attention.

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
        maps = self.match(global_embedding, pixels, text, key=decoder_key)
        h = image.shape[1] // self.patch_size
        return {name: rearrange(x, "b k (h w) -> b k h w", h=h) for name, x in maps.items()}
