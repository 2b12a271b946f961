"""A loaded CLIP: both towers' sizes and weights, its tokenizer, and the identity of its content.

Pretrained, packaged, random and "inside a trained model" all give the one type `Clip`. Weights are
flat dicts of float32 numpy arrays by leaf name (`weights.names`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

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
from otseg_jax.weights.rules import Rule, fill

LOGGER = logging.getLogger(__name__)

Tower = TypeVar("Tower", VisionTower, TextTower)


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """A CLIP in memory, independent of the format it came in.

    Attributes:
        name: where it came from, for messages.
        vision: leaves of `VisionTower`.
        text: leaves of `TextTower`; empty, and `text_config` None, if that tower is not at hand.
        fingerprint: SHA-256 of both towers as stored, before positions are resized.
        text_fingerprint: SHA-256 of the text tower, which decides a vocabulary's embeddings.
        tokenizer: folder or hub name that holds it; None if there is none.
        logit_scale: learned log-temperature, which segmentation does not use; kept for the way
            back to other formats.
    """

    name: str
    vision_config: VisionConfig
    vision: Mapping[str, np.ndarray]
    text_config: TextConfig | None = None
    text: Mapping[str, np.ndarray] = field(default_factory=dict)
    fingerprint: str
    text_fingerprint: str = ""
    tokenizer: str | Path | None = None
    logit_scale: float | None = None

    def build_vision(self) -> VisionTower:
        """The vision tower as CLIP runs it (OTSeg adds the class embedding twice)."""
        config = self.vision_config
        return _build(
            lambda: VisionTower(config, double_class_embedding=False, rngs=nnx.Rngs(0)), self.vision
        )

    def build_text(self) -> TextTower:
        """The text tower.

        Raises:
            ValueError: it is not at hand.
        """
        config = self.text_config
        if config is None:
            raise ValueError(
                f"the model from {self.name} holds no text tower, only the embeddings of its own "
                "classes: give those of other classes with --config.text.embeddings"
            )
        return _build(lambda: TextTower(config, rngs=nnx.Rngs(0)), self.text)

    def tokenise(self, texts: Sequence[str]) -> Int[np.ndarray, "t l"]:
        """Token ids of texts.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"the model from {self.name} holds no tokenizer: convert it again with "
                "--tokenizer=openai/clip-vit-base-patch16, or a folder that holds one"
            )
        length = self.text_config.context_length if self.text_config else 77
        return text.tokenise(texts, self.tokenizer, context_length=length)

    def embed(
        self,
        classes: Sequence[str],
        templates: Sequence[str],
        *,
        cache: str | Path | None = None,
    ) -> Float[np.ndarray, "k n c"]:
        """Text embeddings of classes in templates, unit length.

        Args:
            cache: folder of vocabularies that were embedded before, made if need be.

        Raises:
            ValueError: no text tower or tokenizer, a blank name, embeddings that are not finite.
        """
        texts, shape = text.fill(classes, templates), (len(classes), len(templates))

        def make() -> np.ndarray:
            return text.embed(self.build_text(), self.tokenise(texts), shape=shape)

        if not cache:
            return make()
        key = text.vocabulary_hash(classes, templates, self.text_fingerprint)
        return text.cached(cache, key, (*shape, self.vision_config.embed_dim), make)

    def resized(self, image_size: int | None) -> "Clip":
        """The CLIP for images of another side in pixels: the first of the two resizings of its
        positions. Its fingerprints stay, for it is still the same one.
        """
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
    """A CLIP with the fingerprints of its content, the same whatever file it came from.

    Args:
        leaves: "vision/…" and, with a text tower, "text/…".
    """
    towers = {prefix: names.below(f"{prefix}/", leaves) for prefix in ("vision", "text")}
    return Clip(
        name=name,
        vision_config=vision,
        vision=towers["vision"],
        text_config=text,
        text=towers["text"],
        fingerprint=names.fingerprint(leaves, config=(vision, text))
        if text
        else names.fingerprint(towers["vision"], config=vision),
        text_fingerprint=names.fingerprint(towers["text"], config=text) if text else "",
        tokenizer=tokenizer,
        logit_scale=logit_scale,
    )


def shapes(vision: VisionConfig, text: TextConfig | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Names and shapes of the leaves, "vision/…" and "text/…", of towers of these sizes."""
    towers: dict[str, nnx.Module] = {
        "vision": nnx.eval_shape(lambda: VisionTower(vision, rngs=nnx.Rngs(0)))
    }
    if text is not None:
        towers["text"] = nnx.eval_shape(lambda: TextTower(text, rngs=nnx.Rngs(0)))
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
    """Fill both towers from a foreign file.

    Args:
        unused: names of the file that are known and not needed.
        where: the file, for messages.
        name: of the source.

    Raises:
        ValueError: names or shapes that do not fit, numbers that are not finite.
    """
    try:
        leaves = fill(rules, arrays, shapes(vision, text), unused=unused)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    check_finite(leaves, where)
    scale = arrays.get("logit_scale")
    return identified(
        leaves,
        vision,
        text,
        name=name,
        tokenizer=tokenizer,
        logit_scale=None if scale is None else float(scale),
    )


def draw(sizes: Mapping[str, Any], *, image_size: int, seed: int) -> Clip:
    """A CLIP without training, announced loudly: for machines without weights.

    Args:
        sizes: "patch_size", "embed_dim", and "vision" and "text" with "width", "layers", "heads"
            and "mlp_width".
    """
    LOGGER.warning(
        "CLIP IS RANDOM: neither tower has ever seen a picture or a word, so scores on unseen "
        "classes mean nothing. Set --config.clip.source to a CLIP directory or hub name."
    )
    tokenizer = hub.find(hub.BUILT_IN, ())
    shared = {"embed_dim": sizes["embed_dim"]}
    vision = VisionConfig(
        image_size=image_size, patch_size=sizes["patch_size"], **sizes["vision"], **shared
    )
    config = TextConfig(
        vocab_size=text.vocabulary_size(tokenizer), context_length=77, **sizes["text"], **shared
    )

    @jax.jit
    def make() -> dict[str, Any]:
        rngs = nnx.Rngs(seed)
        towers = {
            "vision": nnx.state(VisionTower(vision, rngs=rngs)),
            "text": nnx.state(TextTower(config, rngs=rngs)),
        }
        return names.flatten(towers)

    # on a CPU wherever it is to run: accelerators draw other last digits, and so other fingerprints
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        leaves = {name: np.asarray(leaf) for name, leaf in make().items()}
    return identified(leaves, vision, config, name="random", tokenizer=tokenizer)


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


def _build(make: Callable[[], Tower], leaves: Mapping[str, np.ndarray]) -> Tower:
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, names.assign(state, leaves))
