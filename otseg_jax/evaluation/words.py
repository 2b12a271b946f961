"""From scores of words to a label map: several words a class, and a background that is class 0.

Scores are f32[w, h, w] of all words, scaled, at the size of the photo; classes are k.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32


def probabilities(
    logits: Float[Array, "n h w"], class_of: Int[Array, " n"], *, classes: int
) -> Float[Array, "k h w"]:
    """Softmax over all words, then the likeliest word of every class.

    Args:
        class_of: of each word; one that belongs to no class is `classes` or more, or negative: it
            only fills up the array.

    Source: the training-free protocol of SCLIP (arXiv 2312.01597) and what followed it.
    """
    real = (class_of >= 0) & (class_of < classes)
    chances = jax.nn.softmax(jnp.where(real[:, None, None], logits, -jnp.inf), axis=0)
    best = jax.ops.segment_max(chances, jnp.where(real, class_of, classes), classes + 1)
    # a class without a word
    return jnp.maximum(best[:classes], 0.0)


def drop_small(chances: Float[Array, "k h w"], *, share: float) -> Float[Array, "k h w"]:
    """Probability 0 for classes with at most this share of the pixels that are not background.

    Source: SCLIP (arXiv 2312.01597), on VOC with background.
    """
    labels = jnp.argmax(chances, axis=0).reshape(-1)
    counts = jnp.bincount(labels, length=len(chances)).at[0].set(0)
    kept: Bool[Array, " k"] = counts > share * jnp.sum(counts)
    return jnp.where(kept.at[0].set(True)[:, None, None], chances, 0.0)


def label_map(chances: Float[Array, "k h w"], *, threshold: float = 0.0) -> Int32[Array, "h w"]:
    """The likeliest class of every pixel; class 0 where its probability is below the threshold."""
    best = jnp.argmax(chances, axis=0)
    return jnp.where(jnp.max(chances, axis=0) < threshold, 0, best).astype(jnp.int32)
