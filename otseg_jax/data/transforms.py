"""Augment examples as mmsegmentation does, every draw from an explicit generator.

Images are RGB in 0..255, with a fourth channel where they come out: 1 where a photo is, 0 beside
it. `models.pixels` normalises them on the device. Labels hold class ids or `IGNORE`. Resizing and
HSV go through OpenCV because published models were trained on its pixels: bilinear with half-pixel
centres and no antialiasing for images, nearest for labels. A `scale` is (long, short) in pixels, in
either order: the sides that an image is made to fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from jaxtyping import Float, Int16, UInt8

from otseg_jax.data.classes import IGNORE

Scale = tuple[int | float, int | float]
Photo: TypeAlias = UInt8[np.ndarray, "h w 4"] | Float[np.ndarray, "h w 3"]
"""Bytes, or what is normalised already; as of `models.pixels`."""

# per channel, of the photos that CLIP (arXiv 2103.00020) was trained with
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


def for_train(
    example: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    crop: int,
    scale: Scale,
    ratio: tuple[float, float] = (0.5, 2.0),
    max_class_fraction: float = 0.75,
    hue: int = 18,
) -> dict[str, np.ndarray]:
    """Resize by a random ratio, crop, flip, distort colours, pad.

    "image" and "label" of a `decode.Example` become u8[crop, crop, 4] and i16[crop, crop].

    Args:
        scale: what a ratio of 1 fits the image into.
        ratio: bounds of the factor on `scale`, drawn uniformly.
        max_class_fraction: as in `random_crop`.
        hue: as in `photometric`.

    Source: the authors' training pipeline (mmsegmentation).
    """
    factor = rng.uniform(*ratio)
    drawn = (int(scale[0] * factor), int(scale[1] * factor))
    image, label = resize(example["image"], example["label"], scale=drawn)
    image, label = random_crop(image, label, rng, size=crop, max_class_fraction=max_class_fraction)
    image, label = flip(image, label, rng)
    image, label = pad(photometric(image, rng, hue=hue), label, size=crop)
    return {"image": image, "label": label}


def for_eval(image: UInt8[np.ndarray, "h w 3"], *, scale: Scale) -> UInt8[np.ndarray, "H W 4"]:
    """Fit a photo into a scale, of which (math.inf, short) fixes one side alone."""
    height, width = fit(*image.shape[:2], scale=scale)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.dstack([resized, np.ones((height, width), np.uint8)])


class View(NamedTuple):
    """A photo as a network sees it: resized, perhaps mirrored."""

    image: Photo
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]


def views(
    image: UInt8[np.ndarray, "h w 3"], *, scales: Sequence[int | float], flip: bool, scale: Scale
) -> tuple[View, ...]:
    """A photo as test-time augmentation looks at it: fitted into multiples of a scale.

    Args:
        scales: factors of `scale`; each view is resized from the photo itself.
        flip: each also mirrored left and right, after it was resized.

    Source: mmsegmentation, `Resize` and `RandomFlip` of test-time augmentation.
    """
    found = []
    for factor in scales:
        fitted = for_eval(image, scale=(factor * scale[0], factor * scale[1]))
        found += [View(fitted), View(fitted[:, ::-1], mirrored=True)][: 1 + flip]
    return tuple(found)


def fit(height: int, width: int, *, scale: Scale) -> tuple[int, int]:
    """The largest (height, width) of the same shape within a scale, in pixels.

    factor = min(long / max(h, w), short / min(h, w)); new = floor(factor · old + ½), at least 1

    Example:
        >>> fit(375, 500, scale=(2048, 512)), fit(100, 500, scale=(2048, 512))
        ((512, 683), (410, 2048))

    Source: mmcv `rescale_size`.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize(
    image: UInt8[np.ndarray, "h w 3"], label: Int16[np.ndarray, "h w"], *, scale: Scale
) -> tuple[UInt8[np.ndarray, "H W 3"], Int16[np.ndarray, "H W"]]:
    """Fit an image (bilinear) and its label (nearest) into a scale."""
    height, width = fit(*label.shape, scale=scale)
    return (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def random_crop(
    image: UInt8[np.ndarray, "h w 3"],
    label: Int16[np.ndarray, "h w"],
    rng: np.random.Generator,
    *,
    size: int,
    max_class_fraction: float = 1.0,
) -> tuple[UInt8[np.ndarray, "H W 3"], Int16[np.ndarray, "H W"]]:
    """Cut a square at random, again up to 10 times while one class dominates it.

    Args:
        size: side of the square; a shorter side of the image is kept whole.
        max_class_fraction: the share of the non-ignored pixels that no class may reach; 1 accepts
            the first crop.
    """
    spare = [max(side - size, 0) for side in label.shape]
    for attempt in range(11):
        y, x = (int(rng.integers(s + 1)) for s in spare)
        window = slice(y, y + size), slice(x, x + size)
        if max_class_fraction >= 1 or attempt == 10:
            break
        # as unsigned numbers, in which what is negative lies beyond every class
        ids, classes = label[window].view(np.uint16), max(int(label.max()) + 1, 1)
        counts = cv2.calcHist([ids], [0], None, [classes], [0, classes])
        # (!) A crop of one class, or all ignored, is drawn again too: its share is not below.
        if counts.max() < max_class_fraction * counts.sum():
            break
    return image[window], label[window]


def flip(
    image: UInt8[np.ndarray, "h w 3"], label: Int16[np.ndarray, "h w"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], Int16[np.ndarray, "h w"]]:
    """Mirror left and right with probability ½."""
    if rng.random() < 0.5:
        return cv2.flip(image, 1), cv2.flip(label, 1)
    return image, label


def photometric(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, *, hue: int = 18
) -> UInt8[np.ndarray, "h w 3"]:
    """Distort brightness, contrast, saturation and hue, each with probability ½.

    Contrast comes second or last, at random. Every step rounds down to 8 bits.

    Args:
        hue: bound of the turn of all hues in OpenCV's steps of 2°, -hue..hue-1; 0 for none.

    Source: mmsegmentation `PhotoMetricDistortion`, with its defaults for all else.
    """
    bright, contrasted, contrast_first, saturated, turned = rng.random(5) < 0.5
    if bright:
        image = _affine(image, 1.0, rng.uniform(-32.0, 32.0))
    if contrasted and contrast_first:
        image = _affine(image, rng.uniform(0.5, 1.5), 0.0)
    # Two trips through HSV where both are chosen: the reference rounds to 8 bits in between.
    if saturated:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _affine(hsv[..., 1], rng.uniform(0.5, 1.5), 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if turned and hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        # (!) A step of 8-bit hue is 2°: the reference's 18 steps turn colours by up to 36°.
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rng.integers(-hue, hue)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrasted and not contrast_first:
        image = _affine(image, rng.uniform(0.5, 1.5), 0.0)
    return image


def pad(
    image: UInt8[np.ndarray, "h w 3"], label: Int16[np.ndarray, "h w"], *, size: int
) -> tuple[UInt8[np.ndarray, "{size} {size} 4"], Int16[np.ndarray, "{size} {size}"]]:
    """Extend below and to the right to a square, with nothing and `IGNORE`; no side is longer."""
    height, width = label.shape
    padded = np.zeros((size, size, 4), np.uint8)
    padded[:height, :width, :3], padded[:height, :width, 3] = image, 1
    below = ((0, size - height), (0, size - width))
    return padded, np.pad(label, below, constant_values=IGNORE)


def _affine(image: np.ndarray, factor: float, shift: float) -> np.ndarray:
    """clip(factor · image + shift) to 0..255, rounded down, through a table of the 256 values."""
    table = np.clip(np.arange(256, dtype=np.float32) * factor + shift, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
