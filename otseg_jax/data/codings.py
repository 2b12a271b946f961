"""What the values of mask files mean: codings turn them into class ids and `IGNORE`.

Values differ by data set (0 may be background, ids may have gaps) and by depth; one table, the
`Coding`, holds all of that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int16, Integer

from otseg_jax.data.classes import IGNORE, Listing

IGNORE_8_BIT, IGNORE_16_BIT = 255, 65_535
"""What files hold where a pixel belongs to no class; 16-bit ones also 255, if it is no class."""

MEANINGLESS = -3
"""Entry of a `Coding` for a value that means nothing (-2 is `regimes.HIDDEN`)."""

COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw COCO-Stuff ids in 0..181 that no image uses; train ids close these gaps."""

CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Id in `labelIds.png` of each class that is evaluated; the other ids up to 33 are ignored."""


@dataclass(frozen=True, eq=False)
class Coding:
    """What the values of a mask file mean: class id, `IGNORE` or `MEANINGLESS`.

    An error names the values that are `wanted`, and gives a `hint` what to do about others. `own`
    is the file of classes that it was made from, if any: masks may be in its colours.
    """

    table: Int16[np.ndarray, "65536"]
    wanted: str
    hint: str
    own: Listing | None = None


def plain_coding(classes: int, *, hint: str) -> Coding:
    """Values are class ids.

    Example:
        >>> plain_coding(3, hint="fix it").table[[0, 2, 3, 255, 65535]].tolist()
        [0, 2, -3, -1, -1]
    """
    return _coding(np.arange(classes), f"0..{classes - 1}", hint)


def own_coding(own: Listing, *, hint: str) -> Coding:
    """Values are the lines of a file of classes, of which some may be ignored.

    Example:
        >>> from otseg_jax.data.classes import VOCABULARIES
        >>> pets = Listing(VOCABULARIES["voc12"], ignored=(1,))
        >>> own_coding(pets, hint="fix it").table[[0, 1, 2, 20, 21, 255]].tolist()
        [0, -1, 1, 19, -3, -1]
    """
    lines = np.arange(len(own.vocabulary) + len(own.ignored))
    values = np.setdiff1d(lines, own.ignored)
    coding = _coding(values, f"0..{len(lines) - 1}", hint, ignored=own.ignored)
    return replace(coding, own=own)


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


def coco_object_coding(*, raw: bool, hint: str) -> Coding:
    """Values are raw COCO-Stuff ids or train ids; what is no thing is class 0, unlabelled too.

    Example:
        >>> coding = coco_object_coding(raw=True, hint="fix it")
        >>> coding.table[[0, 11, 12, 89, 91, 181, 255]].tolist()
        [1, -3, 12, 80, 0, 0, 0]

    Source: COCO-Object, as GroupViT (arXiv 2202.11094) made it of COCO-Stuff.
    """
    whole = raw_coco_coding(hint=hint) if raw else plain_coding(171, hint=hint)
    table = whole.table + 1
    table[(table > 80) | (whole.table == IGNORE)] = 0
    table[whole.table == MEANINGLESS] = MEANINGLESS
    return replace(whole, table=table)


def cityscapes_coding(*, hint: str) -> Coding:
    """Values are the ids 0..33 of Cityscapes, of which 19 are classes.

    Example:
        >>> cityscapes_coding(hint="fix it").table[[0, 7, 8, 9, 33, 34, 255]].tolist()
        [-1, 0, 1, -1, 18, -3, -1]

    Source: cityscapesScripts, the table of labels.
    """
    ignored = np.setdiff1d(np.arange(34), CITYSCAPES).tolist()
    return _coding(np.array(CITYSCAPES), "ids 0..33", hint, ignored=ignored)


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
