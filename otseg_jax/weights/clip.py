"""A CLIP out of whatever file: both towers' sizes and leaves, with the identity of their content.

Leaves are flat dicts of float32 numpy arrays, named as in `weights.table`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower
from otseg_jax.weights.files import check_finite
from otseg_jax.weights.table import Rule, fill, fingerprint, flatten, resize_position_embedding


class Clip(NamedTuple):
    """A CLIP ready to be assigned to the two towers.

    Args:
        vision_config: sizes, with the image size asked for.
        text_config: sizes.
        vision: leaf name → f32 array of `VisionTower`.
        text: leaf name → f32 array of `TextTower`.
        fingerprint: SHA-256 of both towers as stored, before the position embedding is resized.
        text_fingerprint: SHA-256 of the text tower alone, which decides a vocabulary's embeddings.
    """

    vision_config: VisionConfig
    text_config: TextConfig
    vision: dict[str, np.ndarray]
    text: dict[str, np.ndarray]
    fingerprint: str
    text_fingerprint: str


def assemble(
    rules: Sequence[Rule],
    arrays: Mapping[str, np.ndarray],
    vision_config: VisionConfig,
    text_config: TextConfig,
    *,
    unused: Sequence[str],
    where: str,
) -> Clip:
    """Fill both towers from a foreign file.

    Args:
        rules: for leaves "vision/…" and "text/…".
        arrays: name → array of the file.
        vision_config: sizes.
        text_config: sizes.
        unused: names of the file that are known and not needed.
        where: the file, for messages.

    Returns:
        The CLIP at its stored image size.

    Raises:
        ValueError: names or shapes that do not fit, numbers that are not finite.
    """
    target = {
        **_below(lambda: VisionTower(vision_config, rngs=nnx.Rngs(0)), "vision/"),
        **_below(lambda: TextTower(text_config, rngs=nnx.Rngs(0)), "text/"),
    }
    try:
        leaves = fill(rules, arrays, target, unused=unused)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    check_finite(leaves, where)
    return identified(vision_config, text_config, below("vision/", leaves), below("text/", leaves))


def identified(
    vision_config: VisionConfig,
    text_config: TextConfig,
    vision: Mapping[str, np.ndarray],
    text: Mapping[str, np.ndarray],
) -> Clip:
    """A CLIP with the fingerprints of its content, the same whatever file it came from."""
    leaves = {f"vision/{name}": leaf for name, leaf in vision.items()}
    leaves |= {f"text/{name}": leaf for name, leaf in text.items()}
    return Clip(
        vision_config,
        text_config,
        dict(vision),
        dict(text),
        fingerprint(leaves, config=(vision_config, text_config)),
        fingerprint(text, config=text_config),
    )


def resized(clip: Clip, image_size: int | None) -> Clip:
    """The CLIP for images of another size: the first of the two resizings of its positions.

    Args:
        clip: as stored.
        image_size: side in pixels; None changes nothing.

    Returns:
        The CLIP; its fingerprints stay, for it is still the same one.

    Raises:
        ValueError: an image smaller than a patch.
    """
    if image_size is None or image_size == clip.vision_config.image_size:
        return clip
    config = replace(clip.vision_config, image_size=image_size)
    positions = resize_position_embedding(clip.vision["position_embedding"], config.grid)
    vision = {**clip.vision, "position_embedding": positions}
    return clip._replace(vision_config=config, vision=vision)


def below(prefix: str, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leaves whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): leaf for n, leaf in leaves.items() if n.startswith(prefix)}


def _below(make, prefix: str) -> dict[str, jax.ShapeDtypeStruct]:
    state = nnx.state(nnx.eval_shape(make))
    return {f"{prefix}{leaf}": shape for leaf, shape in flatten(state).items()}
