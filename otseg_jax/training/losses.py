"""Training losses on one map of class logits: sigmoid focal, dice, and their weighted pair.

Every loss is a float32 sum, whatever the logits are, not yet divided by max(1, `count_pairs`): the
divisor belongs to the global batch, so a step that accumulates gradients over several small batches
divides their sum once, at the end.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from otseg_jax.data.classes import IGNORE

Logits: TypeAlias = Float[Array, "b k h w"]  # raw, before the sigmoid
Labels: TypeAlias = Int[Array, "b h w"]  # positions on the axis k of the logits, or `IGNORE`


def sigmoid_focal(
    logits: Logits, labels: Labels, *, alpha: float = 0.25, gamma: float = 2.0
) -> Float32[Array, ""]:
    """Focal loss of K independent sigmoids, averaged over pixels, summed over images and classes.

    Σ_{b,k} mean_{h,w} α_t · BCE(z, t) · (1 − p_t)^γ, with p_t = σ(z) and α_t = alpha where t = 1,
    1 − σ(z) and 1 − alpha elsewhere; alpha in [0, 1], γ = gamma ≥ 0, which fades easy pixels. An
    ignored pixel is a negative of every class.

    Source: the segmentation loss of OTSeg; focal loss of Lin et al. 2017.
    """
    # (!) Ignored pixels are not masked out: published weights were trained with them as negatives.
    target = _one_hot(labels, logits.shape[1])
    logits = logits.astype(jnp.float32)
    margin = jnp.where(target, logits, -logits)
    entropy = jax.nn.softplus(-margin)
    # 1 − p_t = σ(−margin) = exp(−margin − softplus(−margin)): taken to its power in the log domain,
    # neither it nor its derivative overflows, whatever gamma is.
    fade = jnp.exp(-gamma * (margin + entropy))
    weight = jnp.where(target, alpha, 1.0 - alpha)
    return jnp.sum(jnp.mean(weight * entropy * fade, axis=(2, 3)))


def dice(logits: Logits, labels: Labels, *, smooth: float = 1.0) -> Float32[Array, ""]:
    """Dice loss summed over the (image, class) pairs whose class is present in the image.

    Σ_{(b,k) present} 1 − (2 Σ_{h,w} p·t + s) / (Σ_{h,w} p + Σ_{h,w} t + s), with p = σ(z) and
    s = smooth > 0. Ignored pixels still count in Σ p.

    Source: the segmentation loss of OTSeg; dice loss of Milletari et al. 2016, without squares.
    """
    target = _one_hot(labels, logits.shape[1])
    score = jax.nn.sigmoid(logits.astype(jnp.float32))
    overlap = jnp.sum(jnp.where(target, score, 0.0), axis=(2, 3))
    area = jnp.sum(target, axis=(2, 3), dtype=jnp.float32)
    ratio = (2.0 * overlap + smooth) / (jnp.sum(score, axis=(2, 3)) + area + smooth)
    return jnp.sum(jnp.where(area > 0, 1.0 - ratio, 0.0))


def count_pairs(labels: Labels, num_classes: int) -> Float32[Array, ""]:
    """Number of (image, class) pairs whose class fills at least one pixel of the image.

    Example:
        >>> print(count_pairs(jnp.array([[[0, 0], [2, -1]], [[-1, -1], [-1, 1]]]), 3))
        3.0
    """
    return jnp.sum(jnp.any(_one_hot(labels, num_classes), axis=(2, 3)), dtype=jnp.float32)


def segmentation(
    logits: Logits, labels: Labels, *, focal_weight: float = 100.0, dice_weight: float = 1.0
) -> dict[str, Float32[Array, ""]]:
    """Weighted "focal" and "dice" losses of one logit map, both still sums.

    Source: the segmentation loss of OTSeg; the default weights trained the published checkpoints.
    """
    return {
        "focal": focal_weight * sigmoid_focal(logits, labels),
        "dice": dice_weight * dice(logits, labels),
    }


def pixel_accuracy(guess: Labels, labels: Labels) -> Float32[Array, ""]:
    """Fraction of the pixels not ignored that are guessed right; 0 if there are none."""
    counted = labels != IGNORE
    right = jnp.sum(counted & (guess == labels))
    return (right / jnp.maximum(jnp.sum(counted), 1)).astype(jnp.float32)


def _one_hot(labels: Labels, num_classes: int) -> Bool[Array, "b k h w"]:
    """All False where the label is none of the classes."""
    classes = jnp.arange(num_classes, dtype=jnp.int32)
    return labels[:, None] == classes[None, :, None, None]
