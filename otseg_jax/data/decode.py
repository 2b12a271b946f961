"""Decode one photo or one mask, refusing what would be misread."""

import io
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

import numpy as np
from jaxtyping import Int16, UInt8, UInt16
from PIL import ExifTags, Image, ImageFile, ImageOps

from otseg_jax.data.codings import IGNORE_8_BIT, MEANINGLESS, Coding
from otseg_jax.data.file import File, Stored
from otseg_jax.data.lists import some

MAX_PIXELS = 80_000_000
"""Largest file that is decoded: a few bytes can declare a size that fills the memory."""

LOSSY = (
    "JPEG changes values, and an id that is off by one is another class: make the masks again and "
    "save them as PNG"
)
COLOURS = (
    "Give classes.csv a third column `colour`, six hexadecimal digits for each class and a line "
    "NAME,ignore,COLOUR for a colour of none: the masks are then read by it"
)
ONE_CHANNEL = (
    'python -c "import sys; from PIL import Image; '
    '[Image.open(p).getchannel(0).save(p) for p in sys.argv[1:]]" MASK.png …'
)


def photo(path: File) -> UInt8[np.ndarray, "h w 3"]:
    """Decode what Pillow reads to RGB, upright as its EXIF orientation says (as OpenCV does).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is corrupt, truncated, not 8-bit, or larger than `MAX_PIXELS`.
    """
    return _opened(path, lambda image: np.array(_upright(image)))


def size(path: File) -> tuple[int, int]:
    """Height and width of what `photo` returns, mostly from the header; errors as there."""

    def upright(image: ImageFile.ImageFile) -> tuple[int, int]:
        turns = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        turned = turns and image.format != "TIFF"  # Pillow turns the size of one as it opens it
        return (image.width, image.height) if turned else (image.height, image.width)

    return _opened(path, upright)


def rgb(photo: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A photo in memory as RGB: Pillow's image, or an array, grey, RGB or RGBA.

    An array holds 0..255, or fractions of 0..1. Alpha is dropped.

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
        raise ValueError(
            f"the photo is a {type(photo).__name__}; wanted a path, an image of Pillow, or an "
            "array uint8[height, width, 3]"
        )
    array = np.asarray(photo)
    if mend := _mend(array):
        got = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"the photo is {got}, wanted uint8[height, width, 3]: {mend}")
    if array.dtype != np.uint8:
        fractions = array.dtype.kind == "f" and array.max() <= 1
        array = np.rint(array * 255 if fractions else array).astype(np.uint8)
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def _mend(array: np.ndarray) -> str:
    """What to do about an array that is no photo, "" about one that is."""
    if array.ndim == 4:
        return "give one photo, photo[0], or a list of them, list(photo)"
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
    if high <= 255:
        return ""
    if array.dtype == np.uint16:
        return "give (photo // 257).astype(np.uint8)"
    return f"its values reach {high:g}; give them in 0..255 as np.uint8"


def mask(path: File, coding: Coding) -> Int16[np.ndarray, "h w"]:
    """Decode a mask and turn its values into class ids and `IGNORE`.

    It is a PNG, TIFF or BMP with one channel: 16-bit grey, or, where the coding leaves 255 free,
    8-bit grey or a palette, whose colours do not matter. Where the coding has colours, they are
    read too.

    Raises:
        FileNotFoundError: no such file.
        MaskError: as for a photo, or the file has been through JPEG, has channels that mean
            nothing, another depth or too few bits for the coding, or values that mean nothing.
    """
    try:
        values = read_values(path, coding)
    except ValueError as error:
        raise MaskError(str(error)) from error
    ids = coding.table[values]
    if (meaningless := ids == MEANINGLESS).any():
        wrong = np.unique(values[meaningless]).tolist()
        raise MaskError(
            f"{path} holds the values [{some(wrong, most=10)}], wanted {coding.wanted}: "
            f"{coding.hint}"
        )
    return ids


def read_values(path: File, coding: Coding) -> UInt16[np.ndarray, "h w"]:
    """Decode a mask to the values that a coding is about; errors as of `mask`."""

    def values(image: ImageFile.ImageFile) -> np.ndarray:
        _check_lossless(image)
        if image.mode in ("RGB", "RGBA", "LA"):
            return _from_colours(image, coding)
        return np.array(_one_channel(image, coding))

    return _opened(path, values).astype(np.uint16)


class MaskError(ValueError):
    """What is wrong with one mask; where one is wrong, others often are."""


class Example(TypedDict):
    """A photo in RGB, its class ids (or `IGNORE`), and its path in the split, without suffix."""

    image: UInt8[np.ndarray, "h w 3"]
    label: Int16[np.ndarray, "h w"]
    name: str


def example(photo_file: File, mask_file: File, coding: Coding, name: str) -> Example:
    """Decode a photo and its mask; errors as of both, and a `MaskError` where sizes differ."""
    image, label = photo(photo_file), mask(mask_file, coding)
    check_sizes(mask_file, label.shape, photo_file, image.shape)
    return {"image": image, "label": label, "name": name}


def check_sizes(
    mask: File, mask_shape: tuple[int, ...], photo: File, photo_shape: tuple[int, ...]
) -> None:
    """Refuse, with a `MaskError`, a mask that is not of its photo's size, (height, width, …)."""
    if mask_shape[:2] != photo_shape[:2]:
        raise MaskError(
            f"{mask} is {mask_shape[1]} x {mask_shape[0]} pixels, its photo {photo} "
            f"{photo_shape[1]} x {photo_shape[0]}: save the mask in the size that the photo has "
            "after the rotation its EXIF data ask for"
        )


class _Refused(ValueError):
    """Our own refusal, which says what to do."""


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise _Refused(f"{size}, more than the {MAX_PIXELS:,} that are decoded")


def _upright(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise _Refused(f"mode {image.mode} has more than 8 bits a channel; save it as 8-bit")
    if image.format == "TIFF" and (pages := getattr(image, "n_frames", 1)) > 1:
        raise _Refused(f"it has {pages} pages; save the one that is meant as PNG")
    return ImageOps.exif_transpose(image).convert("RGB")


def _check_lossless(image: ImageFile.ImageFile) -> None:
    if image.format not in ("PNG", "TIFF", "BMP"):
        why = LOSSY if image.format != "GIF" else "Make the masks again and save them as PNG"
        raise _Refused(f"it is a {image.format}, whatever its name says, and no PNG. {why}")
    if image.format == "TIFF":
        if "jpeg" in (how := str(image.info.get("compression"))) or how == "webp":
            raise _Refused(f"it is a TIFF compressed as {how}. {LOSSY}")
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise _Refused(f"it has {pages} pages; save the one that is meant as PNG")


def _one_channel(image: ImageFile.ImageFile, coding: Coding) -> Image.Image:
    if image.mode not in ("1", "L", "P", "I;16", "I;16B"):
        raise _Refused(
            f"mode {image.mode}, but a mask is a PNG of 8 or 16 bits whose one channel holds "
            "class ids: save it so"
        )
    # Pillow stretches 2- and 4-bit grey to 0..255, and turns round a TIFF in which 0 is white:
    # ids would become other valid ids.
    raw = {tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in image.tile}
    if raw & {"L;2", "L;4", "L;2I", "L;4I", "L;2R", "L;4R", "L;2IR", "L;4IR"}:
        raise _Refused("2- or 4-bit grey; save the mask as 8-bit grey or as a palette PNG")
    if raw & {"L;I", "L;IR", "1;I", "1;IR"}:
        raise _Refused("a TIFF in which 0 is white; save the mask as PNG")
    # class 0 may be what nobody labelled, as in COCO-Object
    if not image.mode.startswith("I;16") and coding.table[IGNORE_8_BIT] > 0:
        raise _Refused(
            f"mode {image.mode} has 8 bits, in which {IGNORE_8_BIT} could be a class or no class; "
            f"save the mask as a 16-bit grey PNG of {coding.wanted}"
        )
    return image


def _from_colours(image: ImageFile.ImageFile, coding: Coding) -> UInt16[np.ndarray, "h w"]:
    """The values that the colours of a mask stand for."""
    pixels = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]
    palette = coding.own.colours if coding.own else ()
    known = np.array([r | g << 8 | b << 16 | 255 << 24 for r, g, b in palette], np.uint32)
    order = np.argsort(known)
    if palette and len(set(palette)) == len(palette):
        places = np.searchsorted(known, pixels, sorter=order)
        values = order[np.minimum(places, len(order) - 1)]
        if (known[values] == pixels).all():
            return values.astype(np.uint16)
    raise _Refused(_about_colours(np.unique(pixels), known, f"mode {image.mode}", coding))


def _about_colours(found: np.ndarray, known: np.ndarray, mode: str, coding: Coding) -> str:
    """Why the colours of a mask are not read, and what to do; both as 0xAABBGGRR."""
    channels = found.view(np.uint8).reshape(-1, 4)
    said = f"{mode}, but a mask has one channel of class ids"
    if (channels[:, 3] < 255).any():
        return f"{said}, and nothing transparent: save it as 8-bit grey"
    if len(known) > len({*known.tolist()}):
        return "colours repeat in classes.csv: give each line one of its own"
    new = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in channels[~np.isin(found, known)].tolist()]
    if len(known):
        return f"its colours {some(sorted(new))} are not in classes.csv: add or mend them"
    if (channels[:, :3] == channels[:, :1]).all():
        return f"{said}; its channels are equal, and {ONE_CHANNEL} keeps one of them"
    hint = COLOURS if coding.own else coding.hint[:1].upper() + coding.hint[1:]
    return f"{said}: this is a colour mask of {len(new)} colours ({some(sorted(new))}). {hint}"


Result = TypeVar("Result")


def _opened(path: File, read: Callable[[ImageFile.ImageFile], Result]) -> Result:
    try:
        with Image.open(io.BytesIO(path.data) if isinstance(path, Stored) else path) as image:
            # Opening reads the header alone: this comes before any memory is taken.
            _check_size(image)
            return read(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except _Refused as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    except Exception as error:  # on corrupt bytes Pillow's decoders raise nearly any type
        raise ValueError(f"{path} cannot be used: {error}. Replace it or leave it out") from error
