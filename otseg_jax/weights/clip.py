"""A loaded CLIP: both towers' sizes and weights, its tokenizer, and the identity of its content.

Pretrained, packaged, random and "inside a trained model" all give the one type `Clip`. Weights are
flat dicts of float32 numpy arrays by leaf name (`weights.names`).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from otseg_jax import text
from otseg_jax.models.clip import (
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    resize_positions,
)
from otseg_jax.weights import hub, names
from otseg_jax.weights.files import check_finite
from otseg_jax.weights.normalisation import Normalisation
from otseg_jax.weights.rules import Rule, fill

LOGGER = logging.getLogger(__name__)

# Rows of a token table beyond its tokenizer's ids: padding to a round number, tokens added since.
SPARE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """A CLIP in memory, independent of the format it came in."""

    name: str  # where it came from, for messages
    vision_config: VisionConfig
    vision: Mapping[str, np.ndarray]  # leaves of `VisionTower`
    text_config: TextConfig | None = None  # None, and `text` empty: that tower is not at hand
    text: Mapping[str, np.ndarray] = field(default_factory=dict)  # leaves of `TextTower`
    fingerprint: str  # SHA-256 of both towers as stored, before positions are resized
    text_fingerprint: str = ""  # of the text tower, which decides a vocabulary's embeddings
    tokenizer: str | Path | None = None  # folder or hub name that holds it
    logit_scale: float | None = None  # learned log-temperature, for the way back to other formats
    normalisation: Normalisation | None = None  # of the photos it was trained on; None: not told

    @property
    def size(self) -> str:
        """What the vision tower is called by its sizes: "ViT-B/16"."""
        vision = self.vision_config
        sizes = {(384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}
        sizes |= {(1408, 40): "g", (1664, 48): "bigG"}
        letter = sizes.get((vision.width, vision.layers), f"{vision.layers}×{vision.width}")
        return f"ViT-{letter}/{vision.patch_size}"

    def build_vision(self) -> VisionTower:
        """The vision tower as CLIP runs it (OTSeg adds the class embedding twice)."""

        def make() -> VisionTower:
            return VisionTower(self.vision_config, double_class_embedding=False, rngs=nnx.Rngs(0))

        return names.build(make, self.vision)

    def build_text(self) -> TextTower:
        """The text tower; a ValueError where it is not at hand."""
        config = self.text_config
        if config is None:
            raise ValueError(
                f"the model from {self.name} holds no text tower, only the embeddings of its own "
                "classes: other classes need theirs, made elsewhere, which a training or an "
                "evaluation takes (--config.text.embeddings=FILE.npy)"
            )
        return names.build(lambda: TextTower(config, rngs=nnx.Rngs(0)), self.text)

    def tokenise(self, texts: Sequence[str]) -> Int[np.ndarray, "t l"]:
        """Token ids of texts; a ValueError where there is no tokenizer, or not the tower's."""
        if self.tokenizer is None:
            raise ValueError(
                f"no tokenizer beside {self.name}: put its tokenizer.json there, or name a folder "
                "or hub name that holds one, as in --tokenizer=openai/clip-vit-base-patch16 "
                "(otseg_jax.convert) or --config.clip.tokenizer=… (a training)"
            )
        self.check_tokenizer()
        length = self.text_config.context_length if self.text_config else 77
        return text.tokenise(texts, self.tokenizer, context_length=length)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Of what decides the token ids of any text; "" where there is no tokenizer."""
        return text.tokenizer_fingerprint(self.tokenizer) if self.tokenizer else ""

    def check_tokenizer(self) -> None:
        """Refuse, with a ValueError, a tokenizer that is not that of the text tower."""
        if self.tokenizer is None or self.text_config is None:
            return
        ids, rows = text.vocabulary_size(self.tokenizer), self.text_config.vocab_size
        if not rows - SPARE <= ids <= rows:
            raise ValueError(
                f"{self.tokenizer} has {ids} token ids, the text tower of {self.name} {rows}: it "
                "is not the tokenizer of these weights; name theirs with --tokenizer "
                "(otseg_jax.convert) or --config.clip.tokenizer (a training)"
            )
        if ids < rows:
            LOGGER.warning(
                "%s has %d token ids, %d fewer than the text tower of %s: the last are not used",
                self.tokenizer,
                ids,
                rows - ids,
                self.name,
            )

    def embed(
        self, classes: Sequence[str], templates: Sequence[str], *, cache: str | Path | None = None
    ) -> Float[np.ndarray, "k n c"]:
        """Text embeddings of classes in templates, unit length; `cache` is a folder of such.

        Raises:
            ValueError: no text tower or tokenizer, a blank name, embeddings that are not finite.
        """
        texts, shape = text.fill(classes, templates), (len(classes), len(templates))

        def make() -> np.ndarray:
            tower, tokens = self.build_text(), self.tokenise(texts)
            text.warn_of_twins(classes, tokens)
            return text.embed(tower, tokens, shape=shape)

        if not cache:
            return make()
        tokens = {"tokens": self.tokenise(texts)}  # not the names: tokenizers differ
        key = names.fingerprint(tokens, config=self.text_fingerprint)
        return text.cached(cache, key, (*shape, self.vision_config.embed_dim), make)

    def resized(self, image_size: int | None) -> "Clip":
        """The same CLIP, fingerprints and all, for images of another side in pixels."""
        if image_size is None or image_size == self.vision_config.image_size:
            return self
        config = replace(self.vision_config, image_size=image_size)
        positions = resize_position_embedding(self.vision["position_embedding"], config.grid)
        vision = {**self.vision, "position_embedding": positions}
        return replace(self, vision_config=config, vision=vision)

    def leaves(self) -> dict[str, np.ndarray]:
        """Both towers' leaves, as "vision/…" and "text/…"."""
        return {**names.under("vision/", self.vision), **names.under("text/", self.text)}


def identified(
    leaves: Mapping[str, np.ndarray],
    vision: VisionConfig,
    text: TextConfig | None,
    *,
    name: str,
    tokenizer: str | Path | None = None,
    logit_scale: float | None = None,
) -> Clip:
    """A CLIP of these leaves with the fingerprints of its content, whatever file it came from."""
    seen, words = names.below("vision/", leaves), names.below("text/", leaves)
    if text is None:
        fingerprint, text_fingerprint = names.fingerprint(seen, config=vision), ""
    else:
        fingerprint = names.fingerprint(leaves, config=(vision, text))
        text_fingerprint = names.fingerprint(words, config=text)
    return Clip(
        name=name,
        vision_config=vision,
        vision=seen,
        text_config=text,
        text=words,
        fingerprint=fingerprint,
        text_fingerprint=text_fingerprint,
        tokenizer=tokenizer,
        logit_scale=logit_scale,
    )


def shapes(vision: VisionConfig, text: TextConfig | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes of the leaves, "vision/…" and "text/…", of towers of these sizes."""
    return jax.eval_shape(lambda: _drawn(vision, text, 0))


def _drawn(vision: VisionConfig, text: TextConfig | None, seed: int) -> dict[str, Any]:
    rngs = nnx.Rngs(seed)
    towers: dict[str, nnx.Module] = {"vision": VisionTower(vision, rngs=rngs)}
    if text is not None:
        towers["text"] = TextTower(text, rngs=rngs)
    return names.flatten({name: nnx.state(tower) for name, tower in towers.items()})


def assemble(
    rules: Sequence[Rule],
    arrays: Mapping[str, np.ndarray],
    vision: VisionConfig,
    text: TextConfig,
    *,
    unused: Sequence[str],
    where: str,
    name: str,
    tokenizer: str | Path | None,
) -> Clip:
    """Fill both towers from a foreign file, called `where` in messages and `name` afterwards.

    Raises:
        ValueError: names or shapes that do not fit (`rules.fill`), numbers that are not finite.
    """
    try:
        leaves = fill(rules, arrays, shapes(vision, text), unused=unused)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    check_finite(leaves, where)
    scale = float(arrays["logit_scale"]) if "logit_scale" in arrays else None
    return identified(leaves, vision, text, name=name, tokenizer=tokenizer, logit_scale=scale)


def draw(sizes: Mapping[str, Any], *, image_size: int, seed: int) -> Clip:
    """A CLIP without training, announced loudly: for machines without weights.

    Args:
        sizes: "patch_size", "embed_dim", and what else the towers' sizes are under "vision" and
            "text".
    """
    LOGGER.warning(
        "CLIP IS RANDOM: neither tower has ever seen a picture or a word, so scores on unseen "
        "classes mean nothing. Set --config.clip.source to a CLIP directory or hub name."
    )
    tokenizer, dim = hub.find(hub.BUILT_IN, ()), sizes["embed_dim"]
    vision = VisionConfig(
        image_size=image_size, patch_size=sizes["patch_size"], embed_dim=dim, **sizes["vision"]
    )
    vocabulary = text.vocabulary_size(tokenizer)
    words = TextConfig(vocab_size=vocabulary, context_length=77, embed_dim=dim, **sizes["text"])
    with jax.default_device(_cpu()):
        leaves = jax.tree.map(np.asarray, jax.jit(lambda: _drawn(vision, words, seed))())
    return identified(leaves, vision, words, name="random", tokenizer=tokenizer)


def _cpu() -> jax.Device | None:
    """The CPU, where weights are drawn whatever device they are for; None where JAX has none.

    Accelerators draw other last digits, and so other fingerprints.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return None


def resize_position_embedding(
    embedding: Float[np.ndarray, "t d"], grid: int
) -> Float[np.ndarray, "1+{grid}**2 d"]:
    """Resize a square position embedding, class token first, to another square grid.

    The first of two steps (!): a 14×14 checkpoint for a 512 input is brought to 32×32 here; the
    tower resizes that to the grid of the actual image. Bilinear twice is not bilinear once, and
    published models had twice.

    Raises:
        ValueError: the embedding is not 1 + a square number of rows.
    """
    rows = len(embedding) - 1
    side = round(max(rows, 0) ** 0.5)
    if side < 1 or side * side != rows:
        raise ValueError(
            f"position embedding has {len(embedding)} rows, wanted 1 + a square number"
        )
    return np.asarray(resize_positions(jnp.asarray(embedding), grid, grid, grid=side))
