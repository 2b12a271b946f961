"""Decode one photo or one mask, refusing what would be misread.

Arrays: photo u8[h, w, 3], RGB; mask u8[h, w], class id 0..K-1 of a vocabulary, or 255 where the
pixel belongs to no class. Ids on disk differ by data set (0 may be background, ids may have gaps);
one table of 256 entries, the `Coding`, turns them into these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image, ImageFile, ImageOps

from otseg_jax.data.classes import IGNORE

MAX_PIXELS = 80_000_000
"""Largest file that is decoded: a few bytes can declare a size that fills the memory."""

COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw COCO-Stuff ids in 0..181 that no image uses; train ids close these gaps."""


@dataclass(frozen=True, eq=False)
class Coding:
    """What the values of a mask file mean.

    Args:
      table: i16[256], class id (or 255) of each value on disk, -1 where a value means nothing.
      wanted: the allowed values in words, for the error message.
      mend: what to do about a value that means nothing.
    """

    table: Int16[np.ndarray, "256"]
    wanted: str
    mend: str


def plain_coding(classes: int, *, mend: str) -> Coding:
    """Values are class ids: 0..classes-1, 255 ignored.

    Args:
      classes: K, 1 to 254.
      mend: what to do about another value.

    Returns:
      The coding.

    Example:
      >>> plain_coding(3, mend="fix it").table[[0, 2, 3, 255]].tolist()
      [0, 2, -1, 255]
    """
    table = np.full(256, -1, np.int16)
    table[:classes] = np.arange(classes)
    table[IGNORE] = IGNORE
    return Coding(table, f"0..{classes - 1} or {IGNORE}", mend)


def reduced_coding(classes: int, *, zero: str, mend: str) -> Coding:
    """Values are class ids plus one: 0 and 255 ignored ("reduce zero label" in mmsegmentation).

    Args:
      classes: K, 1 to 254.
      zero: what 0 stands for, in a word.
      mend: what to do about another value.

    Returns:
      The coding.

    Example:
      >>> reduced_coding(3, zero="background", mend="fix it").table[[0, 1, 3, 4, 255]].tolist()
      [255, 0, 2, -1, 255]
    """
    table = np.full(256, -1, np.int16)
    table[1 : classes + 1] = np.arange(classes)
    table[[0, IGNORE]] = IGNORE
    return Coding(table, f"0 ({zero}), 1..{classes} or {IGNORE}", mend)


def raw_coco_coding(*, mend: str) -> Coding:
    """Values are raw COCO-Stuff ids, 0..181 with 11 gaps; 255 ignored.

    Args:
      mend: what to do about another value.

    Returns:
      The coding onto the 171 train ids.

    Example:
      >>> raw_coco_coding(mend="fix it").table[[0, 10, 11, 12, 181, 255]].tolist()
      [0, 10, -1, 11, 170, 255]
    """
    raw = np.setdiff1d(np.arange(182), COCO_GAPS)
    table = np.full(256, -1, np.int16)
    table[raw] = np.arange(len(raw))
    table[IGNORE] = IGNORE
    gaps = ", ".join(map(str, COCO_GAPS))
    return Coding(table, f"raw ids 0..181 but for {gaps}, or {IGNORE}", mend)


def photo(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a photo to RGB, upright as its EXIF orientation says (as OpenCV does).

    Args:
      path: JPEG, PNG or whatever else Pillow reads.

    Returns:
      u8[h, w, 3], RGB in 0..255.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is corrupt, truncated, not 8-bit, or larger than `MAX_PIXELS`.
    """
    return _decode(path, _upright)


def mask(path: Path, coding: Coding) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask and turn its values into class ids.

    Args:
      path: 8-bit PNG with one channel, grey or palette (the colours of the palette do not matter).
      coding: what its values mean.

    Returns:
      u8[h, w], class ids 0..K-1, or 255 for ignored pixels.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is corrupt, truncated or too large, has colour channels or another depth,
        or holds values that mean nothing.
    """
    values = _decode(path, _one_channel).astype(np.uint8)
    ids = coding.table[values]
    if (ids < 0).any():
        wrong = np.unique(values[ids < 0]).tolist()
        raise ValueError(f"{path} holds the values {wrong}, wanted {coding.wanted}: {coding.mend}")
    return ids.astype(np.uint8)


def _upright(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel; save it as 8-bit")
    ImageOps.exif_transpose(image, in_place=True)
    return image.convert("RGB")


def _one_channel(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode not in ("1", "L", "P"):
        raise ValueError(
            f"mode {image.mode}, but a mask is an 8-bit PNG whose one channel holds class ids"
        )
    # Pillow stretches 2- and 4-bit grey to 0..255, which turns ids into other valid ids.
    if any(tile[3] in ("L;2", "L;4") for tile in image.tile):
        raise ValueError("2- or 4-bit grey; save the mask as 8-bit grey or as a palette PNG")
    return image


def _decode(path: Path, prepare: Callable[[ImageFile.ImageFile], Image.Image]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            # Opening reads the header alone: this comes before any memory is taken.
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height} pixels"
                raise ValueError(f"{size}, more than the {MAX_PIXELS:,} that are decoded")
            return np.array(prepare(image))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # on corrupt bytes Pillow's decoders raise nearly any type
        raise ValueError(f"{path} cannot be used: {error}. Replace it or leave it out") from error
