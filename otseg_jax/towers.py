"""The CLIP towers an experiment starts from: pretrained, or random where there are no weights.

Weights are numpy leaves by name.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from otseg_jax import text
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig
from otseg_jax.weights import hugging_face, table

LOGGER = logging.getLogger(__name__)


class Towers(NamedTuple):
    """A CLIP, as far as an experiment needs it.

    Attributes:
        vision_config: sizes of the vision tower, at the size of the windows.
        vision: its leaves, or None where they are to be drawn at random.
        fingerprint: identity of both towers.
        text_fingerprint: identity of the text tower.
        make_text_tower: builds the text tower.
        tokenizer: texts to token ids i32[t, l].
    """

    vision_config: VisionConfig
    vision: dict[str, np.ndarray] | None
    fingerprint: str
    text_fingerprint: str
    make_text_tower: Callable[[], TextTower]
    tokenizer: Callable[[list[str]], np.ndarray]


def pretrained(source: str, *, image_size: int) -> Towers:
    """Load a CLIP.

    Args:
        source: Hugging Face directory or hub name.
        image_size: side of a window, pixels.

    Returns:
        The towers.

    Raises:
        FileNotFoundError, ValueError: as `weights.hugging_face.load`.
    """
    clip = hugging_face.load(source, image_size=image_size)

    def make_text_tower() -> TextTower:
        abstract = nnx.eval_shape(lambda: TextTower(clip.text_config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, table.assign(state, clip.text))

    return Towers(
        vision_config=clip.vision_config,
        vision=clip.vision,
        fingerprint=clip.fingerprint,
        text_fingerprint=clip.text_fingerprint,
        make_text_tower=make_text_tower,
        tokenizer=lambda texts: text.tokenise(
            texts, source, context_length=clip.text_config.context_length
        ),
    )


def random(sizes: Mapping[str, Any], *, image_size: int, seed: int) -> Towers:
    """Towers without training, announced loudly: for machines without weights.

    Args:
        sizes: "patch_size", "embed_dim", and "vision" and "text" with "width", "layers", "heads"
            and "mlp_width".
        image_size: side of a window, pixels.
        seed: of all weights.

    Returns:
        The towers; the text tower reads bytes.
    """
    LOGGER.warning(
        "CLIP IS RANDOM: neither tower has ever seen a picture or a word, so scores on unseen "
        "classes mean nothing. Set --config.clip.source to a CLIP directory or hub name."
    )
    vision = VisionConfig(
        image_size=image_size,
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        **sizes["vision"],
    )
    text_config = TextConfig(
        vocab_size=text.BYTE_VOCABULARY,
        context_length=77,
        embed_dim=sizes["embed_dim"],
        **sizes["text"],
    )

    def fingerprint(*parts: Any) -> str:
        return hashlib.sha256(repr(("random", seed, *parts)).encode()).hexdigest()

    return Towers(
        vision_config=vision,
        vision=None,
        fingerprint=fingerprint(vision, text_config),
        text_fingerprint=fingerprint(text_config),
        make_text_tower=lambda: TextTower(text_config, rngs=nnx.Rngs(seed)),
        tokenizer=partial(text.tokenise_bytes, context_length=text_config.context_length),
    )
