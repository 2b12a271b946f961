"""The CLIP towers an experiment starts from: pretrained, or random where there are no weights.

Weights are numpy leaves by name.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from otseg_jax import model_dir, text
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig
from otseg_jax.weights import detect, table
from otseg_jax.weights.clip import below, resized

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
        tokenizer_files: folder or hub name of the tokenizer, "bytes", or "" where there is none.
        stored: text embeddings f32[k, n, c] that came with the towers, and their vocabulary's hash.
    """

    vision_config: VisionConfig
    vision: dict[str, np.ndarray] | None
    fingerprint: str
    text_fingerprint: str
    make_text_tower: Callable[[], TextTower]
    tokenizer: Callable[[list[str]], np.ndarray]
    tokenizer_files: str
    stored: tuple[np.ndarray, str] | None = None


def pretrained(source: str, *, image_size: int) -> Towers:
    """Load a CLIP.

    Args:
        source: model directory, Hugging Face or open_clip folder, file of OpenAI's, or hub name.
        image_size: side of a window, pixels.

    Returns:
        The towers.

    Raises:
        FileNotFoundError, ValueError: as `weights.detect.find` and `model_dir.read`.
    """
    found = detect.find(source)
    if found.kind == "model":
        return of_model(model_dir.read(found.path), image_size=image_size)
    if found.clip is None:
        raise ValueError(
            f"{source} is a trained run or checkpoint, no CLIP: python -m otseg_jax.convert "
            f"{source} DEST makes a model directory of it, for --config.init_from=DEST"
        )
    whole = resized(found.clip, image_size)

    def make_text_tower() -> TextTower:
        abstract = nnx.eval_shape(lambda: TextTower(whole.text_config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, table.assign(state, whole.text))

    files = str(found.tokenizer or "")
    return Towers(
        vision_config=whole.vision_config,
        vision=whole.vision,
        fingerprint=whole.fingerprint,
        text_fingerprint=whole.text_fingerprint,
        make_text_tower=make_text_tower,
        tokenizer=lambda texts: text.tokenise(
            texts, files or source, context_length=whole.text_config.context_length
        ),
        tokenizer_files=files,
    )


def of_model(model: model_dir.Model, *, image_size: int) -> Towers:
    """The towers inside a model directory.

    Args:
        model: as read.
        image_size: side of a window, pixels.

    Returns:
        The towers.
    """
    config, vision = model.vision_config, below("vision/", model.leaves)
    if image_size != config.image_size:
        config = replace(config, image_size=image_size)
        positions = table.resize_position_embedding(vision["position_embedding"], config.grid)
        vision["position_embedding"] = positions
    fingerprint, stored = model.config["text_fingerprint"], None
    if model.embeddings is not None:
        stored = (model.embeddings, model.config["vocabulary_hash"])
    return Towers(
        vision_config=config,
        vision=vision,
        fingerprint=model.config["clip_fingerprint"],
        text_fingerprint=fingerprint,
        make_text_tower=model.build_text_tower,
        tokenizer=model.tokenise,
        tokenizer_files=str(model.tokenizer or model.config["tokenizer"] or ""),
        stored=stored,
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
        tokenizer_files="bytes",
    )
