"""Decode one photo or one mask, refusing what would be misread.

The values of mask files differ by data set (0 may be background, ids may have gaps) and by depth;
one table, the `Coding`, turns all of them into class ids and `IGNORE`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Integer, UInt8
from PIL import Image, ImageFile, ImageOps

from otseg_jax.data.classes import IGNORE

MAX_PIXELS = 80_000_000
"""Largest file that is decoded: a few bytes can declare a size that fills the memory."""

IGNORE_8_BIT, IGNORE_16_BIT = 255, 65_535
"""What files hold where a pixel belongs to no class; 16-bit ones also 255, if it is no class."""

MEANINGLESS = -3
"""Entry of a `Coding` for a value that means nothing (-2 is `regimes.HIDDEN`)."""

COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw COCO-Stuff ids in 0..181 that no image uses; train ids close these gaps."""


@dataclass(frozen=True, eq=False)
class Coding:
    """What the values of a mask file mean: class id, `IGNORE` or `MEANINGLESS`.

    An error names the values that are `wanted`, and gives a `hint` what to do about others.
    """

    table: Int16[np.ndarray, "65536"]
    wanted: str
    hint: str


def plain_coding(classes: int, *, hint: str) -> Coding:
    """Values are class ids.

    Example:
        >>> plain_coding(3, hint="fix it").table[[0, 2, 3, 255, 65535]].tolist()
        [0, 2, -3, -1, -1]
    """
    return _coding(np.arange(classes), f"0..{classes - 1}", hint)


def reduced_coding(classes: int, *, zero: str, hint: str) -> Coding:
    """Values are class ids plus one; 0 (`zero` in a word) is ignored.

    Example:
        >>> reduced_coding(3, zero="background", hint="fix it").table[[0, 1, 3, 4, 255]].tolist()
        [-1, 0, 2, -3, -1]

    Source: mmsegmentation `reduce_zero_label`.
    """
    return _coding(np.arange(1, classes + 1), f"0 ({zero}), 1..{classes}", hint, ignored=[0])


def raw_coco_coding(*, hint: str) -> Coding:
    """Values are raw COCO-Stuff ids, 0..181 with 11 gaps, for the 171 train ids.

    Example:
        >>> raw_coco_coding(hint="fix it").table[[0, 10, 11, 12, 181, 255]].tolist()
        [0, 10, -3, 11, 170, -1]
    """
    gaps = ", ".join(map(str, COCO_GAPS))
    raw = np.setdiff1d(np.arange(182), COCO_GAPS)
    return _coding(raw, f"raw ids 0..181 but for {gaps},", hint)


def photo(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Decode what Pillow reads to RGB, upright as its EXIF orientation says (as OpenCV does).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt, truncated, not 8-bit, or larger than `MAX_PIXELS`.
    """
    return _decode(path, _upright)


def rgb(photo: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A photo in memory as RGB: Pillow's image, or an array of bytes, grey, RGB or RGBA.

    Alpha is dropped.

    Raises:
        ValueError: another type, shape or range, with the expression that mends it.
    """
    if isinstance(photo, Image.Image):
        try:
            _check_size(photo)
            return np.array(_upright(photo))
        except Exception as error:  # a lazy image is decoded only now
            raise ValueError(f"the photo cannot be used: {error}") from error
    if not hasattr(photo, "__array__"):
        one = ": one at a time, [segmenter(photo) for photo in photos]" * isinstance(
            photo, list | tuple
        )
        raise ValueError(
            f"the photo is a {type(photo).__name__}{one}; wanted a path, an image of Pillow, or an "
            "array uint8[height, width, 3]"
        )
    array = np.asarray(photo)
    if mend := _mend(array):
        got = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"the photo is {got}, wanted uint8[height, width, 3]: {mend}")
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _mend(array: np.ndarray) -> str:
    """What to do about an array that is no photo, "" about one that is."""
    if array.ndim == 4:
        return "give one photo at a time, photo[0] and so on"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            return "its channels come first; give photo.transpose(1, 2, 0)"
        return "give height, width and 1, 3 or 4 channels"
    if array.size == 0:
        return "it has no pixel"
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        return f"more than the {MAX_PIXELS:,} pixels that are taken; give a smaller copy"
    if array.dtype == np.uint8:
        return ""
    if array.dtype.kind not in "fiu":
        return "give one byte a channel, 0..255"
    low, high = float(array.min()), float(array.max())
    if not 0 <= low <= high < np.inf:
        return f"its values are {low:g}..{high:g}; give it as it was before it was normalised"
    if array.dtype.kind == "f" and high <= 1:
        return "its values are in 0..1; give (photo * 255).round().astype(np.uint8)"
    if high <= 255:
        return "give photo.astype(np.uint8)"
    if array.dtype == np.uint16:
        return "give (photo // 257).astype(np.uint8)"
    return f"its values reach {high:g}; give them in 0..255 as np.uint8"


def mask(path: Path, coding: Coding) -> Int16[np.ndarray, "h w"]:
    """Decode a mask and turn its values into class ids and `IGNORE`.

    It is a PNG with one channel: 16-bit grey, or, where the coding leaves 255 free, 8-bit grey or
    a palette, whose colours do not matter.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as for a photo, or the file has colour channels, another depth or too few bits
            for the coding, or holds values that mean nothing.
    """
    values = _decode(path, lambda image: _one_channel(image, coding)).astype(np.uint16)
    ids = coding.table[values]
    if (meaningless := ids == MEANINGLESS).any():
        wrong = np.unique(values[meaningless]).tolist()
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(
            f"{path} holds the values {wrong[:10]}{more}, wanted {coding.wanted}: {coding.hint}"
        )
    return ids


def _coding(
    values: Integer[np.ndarray, " k"], wanted: str, hint: str, *, ignored: Iterable[int] = ()
) -> Coding:
    """Class k is written as `values[k]`."""
    table = np.full(2**16, MEANINGLESS, np.int16)
    table[[*ignored, IGNORE_8_BIT, IGNORE_16_BIT]] = IGNORE
    # After the line above: where 255 is a class, it does not stand for `IGNORE`.
    table[values] = np.arange(len(values))
    free = IGNORE_8_BIT if table[IGNORE_8_BIT] == IGNORE else IGNORE_16_BIT
    return Coding(table, f"{wanted} or {free}", hint)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"{size}, more than the {MAX_PIXELS:,} that are decoded")


def _upright(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel; save it as 8-bit")
    return ImageOps.exif_transpose(image).convert("RGB")


def _one_channel(image: ImageFile.ImageFile, coding: Coding) -> Image.Image:
    if image.mode not in ("1", "L", "P", "I;16"):
        raise ValueError(
            f"mode {image.mode}, but a mask is a PNG of 8 or 16 bits whose one channel holds "
            "class ids"
        )
    # Pillow stretches 2- and 4-bit grey to 0..255, which turns ids into other valid ids.
    if any(tile[3] in ("L;2", "L;4") for tile in image.tile):
        raise ValueError("2- or 4-bit grey; save the mask as 8-bit grey or as a palette PNG")
    if image.mode != "I;16" and coding.table[IGNORE_8_BIT] != IGNORE:
        raise ValueError(
            f"mode {image.mode} has 8 bits, in which {IGNORE_8_BIT} could be a class or no class; "
            f"save the mask as a 16-bit grey PNG of {coding.wanted}"
        )
    return image


def _decode(path: Path, prepare: Callable[[ImageFile.ImageFile], Image.Image]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            # Opening reads the header alone: this comes before any memory is taken.
            _check_size(image)
            return np.array(prepare(image))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # on corrupt bytes Pillow's decoders raise nearly any type
        raise ValueError(f"{path} cannot be used: {error}. Replace it or leave it out") from error
