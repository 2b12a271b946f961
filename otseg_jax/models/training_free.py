"""A CLIP alone as a segmenter: its last block is run with other attention, and nothing is trained.

image f32[b, H, W, 3] (normalised) and text f32[k, n, c] (L2-normalised, n templates of k words) →
{"cosine": f32[b, k, h, w]} on the patch grid, h = ⌊H / patch⌋. A word of zeros only fills up the
array: its cosine is 0 and no other word's changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import pydantic
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from otseg_jax import sharding
from otseg_jax.models import last_block, pearl, resclip, sc_clip
from otseg_jax.models.clip import VisionConfig, VisionTower, resize_positions_bicubic
from otseg_jax.models.decoder import Pixels, Transport, normalize
from otseg_jax.models.last_block import Tokens, Weights
from otseg_jax.models.linear import narrow
from otseg_jax.models.outputs import Outputs

Stages: TypeAlias = Mapping[int, Tokens]  # block → the tokens that enter it
Second: TypeAlias = tuple[Float[Array, "b H W 3"], Stages] | None
# method → whether its last block keeps the residual, and the MLP
METHODS: Mapping[str, tuple[bool, bool]] = {
    "naclip": (False, False),
    "maskclip": (False, False),
    "maskclip_original": (True, True),
    "sclip": (True, True),
    "clearclip": (False, False),
    "resclip": (False, False),
    "sc_clip": (False, False),
    "pearl": (False, False),
    "itaclip": (True, False),
    "clip": (True, True),
}
# method → blocks before the last that it looks into, of the 12 of a ViT-B; the first is 0
EARLIER: Mapping[str, tuple[int, ...]] = {
    "itaclip": (6, 7, 9),
    "resclip": (5, 6, 7, 8),
    "sc_clip": (3, 8),
}


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class TrainingFreeConfig:
    """What can be chosen about a CLIP as a segmenter.

    Raises:
        ValueError: a method that does not exist, or a number out of range, named by its field.
    """

    method: str = "naclip"
    scale: float = 40.0  # of cosines before the softmax over words
    sigma: float = 5.0  # of naclip's and resclip's Gaussian, patches
    pamr: bool = False  # refine scores by colours, at the size of the photo
    # resclip: temperature and share of earlier blocks' attention; of the second pass' mask; and the
    # probability below which its first pass calls a pixel word 0, where that is the background
    temperature: float = 2.0
    earlier_share: float = 0.3
    second_pass: bool = True
    mask_temperature: float = 2.2
    mask_share: float = 0.7
    first_threshold: float = 0.0
    grid: int = pearl.GRID  # of pearl: cells along a side that its scores are propagated on

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"model.method={self.method!r}: choose one of {', '.join(METHODS)}")
        for name in ("scale", "sigma", "temperature", "mask_temperature"):
            # a comparison with NaN is false too
            if not 0 < (value := getattr(self, name)) < float("inf"):
                problems.append(f"model.{name}={value}: wanted a number above 0")
        for name in ("earlier_share", "mask_share", "first_threshold"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                problems.append(f"model.{name}={value}: wanted 0 to 1")
        if self.grid < 1:
            problems.append(f"model.grid={self.grid}: wanted at least 1")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def one_prompt(self) -> bool:
        """Whether a class is described by one prompt; templates are averaged here."""
        return False

    def outputs(self, *, mps_weight: float = 0.0) -> Outputs:
        """What the method is scored on: its cosines; there is no MPS path to weigh."""
        return Outputs({self.method: {"cosine": 1.0}}, main=self.method)

    @property
    def joint(self) -> bool:
        """Whether cosines of a word depend on which others are asked for."""
        return self.method == "resclip" and self.second_pass

    def window_size(self, size: tuple[int, int], window: int, patch: int) -> tuple[int, int]:
        """Height and width of the windows of a photo, no larger than it is; 0: all of it."""
        height, width = (max(min(window or side, side), patch) for side in size)
        return height, width

    def margins(self, side: int, patch: int) -> tuple[int, int]:
        """Zeros before and behind a side that is no multiple of the patch.

        Without, the rest is dropped and the map stretched over the whole side.
        """
        missing = -side % patch
        if self.method == "clearclip":
            return missing // 2, missing - missing // 2
        return (0, missing) if self.method == "maskclip_original" else (0, 0)

    def build(
        self,
        vision: VisionConfig,
        *,
        transport: Transport | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> "TrainingFree":
        """The model around a tower of these sizes.

        Raises:
            ValueError: a tower of too few blocks for the method, or a `transport`.
        """
        if transport is not None:
            raise ValueError(f"{self.method} solves no transport problem: leave out transport")
        return TrainingFree(vision, self, dtype=dtype, rngs=rngs)


def average(text: Float[Array, "k n c"]) -> Float[Array, "k c"]:
    """One vector of unit length per word: the mean over its templates.

    Source: CLIP (arXiv 2103.00020), prompt ensembling.
    """
    return normalize(jnp.mean(text, axis=1))


class TrainingFree(nnx.Module):
    """CLIP whose patches are compared with words, after a last block as the method has it.

    Raises:
        ValueError: a tower of too few blocks for the method.

    Source: MaskCLIP (arXiv 2112.01071), SCLIP (2312.01597), ClearCLIP (2407.12442), NACLIP
    (2404.08181), ResCLIP (2411.15851), SC-CLIP (2411.15869), ITACLIP (2411.12044), PEARL.
    """

    def __init__(
        self,
        vision: VisionConfig,
        config: TrainingFreeConfig = TrainingFreeConfig(),
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        least = max(EARLIER.get(config.method, (0,))) + 2
        if vision.layers < least:
            raise ValueError(
                f"model.method={config.method!r} looks into block {least - 1} before the last, the "
                f"tower has {vision.layers} blocks: naclip works with any"
            )
        resize: Callable[..., Array] = resize_positions_bicubic
        if config.method == "maskclip_original":
            # what its authors' program does to a CLIP, at odds with how that was trained
            vision = replace(vision, activation="gelu", eps=1e-6)
            resize = partial(resize_positions_bicubic, offset=0.0)
        self.config, self.patch_size = config, vision.patch_size
        self.vision = VisionTower(
            vision, double_class_embedding=False, resize=resize, dtype=dtype, rngs=rngs
        )
        narrow(self.vision)

    def __call__(
        self, image: Float[Array, "b H W 3"], text: Float[Array, "k n c"]
    ) -> dict[str, Float[Array, "b k h w"]]:
        """Segment images: cosines of every patch with every word."""
        cosines = self.match(*self.embed(image), text)["cosine"]
        height = sum(self.config.margins(image.shape[1], self.patch_size), image.shape[1])
        return {"cosine": rearrange(cosines, "b k (h w) -> b k h w", h=height // self.patch_size)}

    def embed(self, image: Float[Array, "b H W 3"]) -> tuple[Pixels, Second]:
        """What words are compared with, and what a second pass needs once it has seen them."""
        sides = (self.config.margins(side, self.patch_size) for side in image.shape[1:3])
        image = jnp.pad(image, ((0, 0), *sides, (0, 0)))
        grid = image.shape[1] // self.patch_size, image.shape[2] // self.patch_size
        stages = self._stages(image)
        if self.config.method == "sc_clip":
            return self._pixels(self._sc_clip(stages, grid)), None
        pixels = self._pixels(self._last(stages, grid))
        if self.config.joint:
            return pixels, (image, {i: stages[i] for i in (*EARLIER["resclip"], len(stages) - 1)})
        return pixels, None

    def match(
        self, pixels: Pixels, second: Second, text: Float[Array, "k n c"]
    ) -> dict[str, Float[Array, "b k m"]]:
        """Cosines of what `embed` gave with every word."""
        words = average(text)
        cosines = last_block.einsum("bmc, kc -> bkm", pixels, words)
        if second is not None:
            image, stages = second
            grid = image.shape[1] // self.patch_size, image.shape[2] // self.patch_size
            label = partial(
                resclip.patch_words,
                patch=self.patch_size,
                scale=self.config.scale,
                threshold=self.config.first_threshold,
            )
            first = rearrange(cosines, "b k (h w) -> b k h w", h=grid[0])
            found = jax.vmap(label, (0, 0, None))(first, image, words)
            cosines = last_block.einsum(
                "bmc, kc -> bkm", self._pixels(self._last(stages, grid, found)), words
            )
        return {"cosine": cosines}

    def _stages(self, image: Float[Array, "b H W 3"]) -> Stages:
        stages = self.vision.stages(image)
        return {i: next(stages) for i in range(len(self.vision.blocks))}

    def _pixels(self, tokens: Float[Array, "b m d"]) -> Pixels:
        return normalize(self.vision.project(tokens))

    def _last(
        self, stages: Stages, grid: tuple[int, int], words: Array | None = None
    ) -> Float[Array, "b m d"]:
        """Patches after the last block; `words` [b, h, w], of the patches, for a second pass."""
        residual, mlp = METHODS[self.config.method]
        block, tokens = self.vision.blocks[-1], stages[len(self.vision.blocks) - 1]
        *_, value = last_block.heads(block, tokens)
        mixed = last_block.mix(block, self._weights(stages, grid, words), value)
        tokens = tokens + mixed if residual else mixed
        tokens = tokens + block.mlp(block.ln_2(tokens)) if mlp else tokens
        return tokens[:, 1:]

    def _weights(self, stages: Stages, grid: tuple[int, int], words: Array | None) -> Weights:
        config, blocks = self.config, self.vision.blocks
        query, key, _ = last_block.heads(blocks[-1], stages[len(blocks) - 1])
        earlier = [
            last_block.heads(blocks[i], stages[i])[:2] for i in EARLIER.get(config.method, ())
        ]
        match config.method:
            case "clip":
                return last_block.attend(query, key)
            case "maskclip" | "maskclip_original":
                tokens = query.shape[2]
                return jnp.broadcast_to(jnp.eye(tokens), (*query.shape[:2], tokens, tokens))
            case "sclip":
                return last_block.both(query, key)
            case "clearclip":
                return last_block.attend(query, query)
            case "pearl":
                return pearl.align(query, key)
            case "itaclip":
                before = sum(last_block.both(q, k) for q, k in earlier) / len(earlier)
                return 0.5 * (last_block.both(query, key) + before)
        logits = last_block.logits(key, key)
        if words is not None:
            mask = jax.vmap(partial(resclip.same_word_logits, share=config.mask_share))(words)
            logits = config.mask_temperature * ((1 - config.mask_share) * logits + mask[:, None])
        nearness = last_block.neighbours(grid, config.sigma)[None, None]
        weights = jax.nn.softmax(logits + nearness, axis=-1)
        if config.method == "naclip":
            return weights
        return resclip.blend(
            weights,
            [last_block.attend(q, k) for q, k in earlier],
            share=config.earlier_share,
            temperature=config.temperature,
        )

    def _sc_clip(self, stages: Stages, grid: tuple[int, int]) -> Float[Array, "b m d"]:
        sc_clip.check_grid(grid)
        block = self.vision.blocks[-1]
        early, middle = (stages[i + 1] for i in EARLIER["sc_clip"])
        last = stages[len(stages) - 1]
        outliers = sharding.own_rows(jax.vmap(sc_clip.find_outliers), last[:, 1:])
        repair = jax.vmap(lambda x, bad: sc_clip.repair(x, bad, grid))
        similarity = jax.vmap(sc_clip.likeness)(repair(middle[:, 1:], outliers))
        shallow = jax.vmap(sc_clip.likeness)(early[:, 1:])
        attention = jax.vmap(sc_clip.as_attention)(similarity)
        aggregate = jax.vmap(sc_clip.aggregate)

        def attend(patches: Array, first: Array) -> Array:
            _, key, value = last_block.heads(block, patches)
            weights = 0.5 * (attention[:, None] + last_block.attend(key, key))
            mixed = last_block.mix(block, weights, value)
            return aggregate(mixed + sc_clip.CLASS_SHARE * first, shallow)

        entering = aggregate(repair(last[:, 1:], outliers), similarity)
        first, *rest = (stages[i] for i in range(EARLIER["sc_clip"][0] + 1, len(stages) - 1))
        total = sum(rest, first)
        return attend(entering, last[:, :1]) + attend(total[:, 1:], total[:, :1])
