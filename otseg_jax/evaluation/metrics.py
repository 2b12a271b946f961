"""Segmentation metrics: confusion matrix, IoU per class, its seen / unseen / harmonic means.

A confusion matrix counts pixels, rows = truth, columns = prediction, over all classes; those of
several images or processes add up. Figures are in percent; one with nothing to count is None, never
NaN.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float64, Int32, Int64, Integer, Shaped
from tabulate import SEPARATING_LINE, Line, simple_separated_format, tabulate

from otseg_jax import paths
from otseg_jax.data.classes import IGNORE, MOST_CLASSES

ROWS = {
    "miou_seen": "mIoU(S)",
    "miou_unseen": "mIoU(U)",
    "hiou": "hIoU",
    "miou": "mIoU",
    "pixel_accuracy": "pAcc",
    "pixel_accuracy_seen": "pAcc(S)",
    "pixel_accuracy_unseen": "pAcc(U)",
}
WHOLE = ("miou", "pixel_accuracy")  # over all classes, without a split of them

# Two blanks between columns; rules run right across, through the blanks as well.
_LAYOUT = simple_separated_format("  ")._replace(linebelowheader=Line("", "-", "--", ""))


class Summary(TypedDict):
    """Figures of one method on one data set: percent in [0, 100], None where undefined."""

    miou_seen: float | None
    miou_unseen: float | None
    hiou: float | None
    miou: float | None
    pixel_accuracy: float | None
    pixel_accuracy_seen: float | None
    pixel_accuracy_unseen: float | None
    iou: dict[str, float | None]


def confusion(
    truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "_ _"], num_classes: int
) -> Int64[np.ndarray, "k k"]:
    """Count the pixels of each (true class, predicted class), but for those of truth `IGNORE`.

    Raises:
        ValueError: sizes differ, an id is no class, or there are not 1..`MOST_CLASSES` classes.

    Example:
        >>> confusion(np.array([[0, 1, -1]]), np.array([[0, 0, 1]]), 2).tolist()
        [[1, 0], [1, 0]]
    """
    counts = np.bincount(_codes(truth, prediction, num_classes), minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def pairs(
    truth: Integer[np.ndarray, "h w"], prediction: Integer[np.ndarray, "_ _"], num_classes: int
) -> Int32[np.ndarray, "3 n"]:
    """The same without its zeros: true class, predicted class and pixels of what occurs.

    Example:
        >>> pairs(np.array([[0, 1, -1]]), np.array([[0, 0, 1]]), 2).tolist()
        [[0, 1], [0, 0], [1, 1]]
    """
    codes = _codes(truth, prediction, num_classes)
    found, counts = np.unique(codes, return_counts=True)
    return np.stack([*np.divmod(found, num_classes), counts]).astype(np.int32)


def occurring(confusion: Integer[np.ndarray, "k k"]) -> Int32[np.ndarray, "3 n"]:
    """As `pairs`, from all counts."""
    places = np.nonzero(confusion)
    return np.stack([*places, confusion[places]]).astype(np.int32)


class Pixels(NamedTuple):
    """Pixels by class, over any leading axes: all that the figures are made of."""

    right: Shaped[np.ndarray, "*n k"]  # of the class, and predicted so
    truth: Shaped[np.ndarray, "*n k"]  # of the class
    found: Shaped[np.ndarray, "*n k"]  # predicted to be of it

    @classmethod
    def of(cls, confusion: Int64[np.ndarray, "k k"]) -> "Pixels":
        """Those of a confusion matrix."""
        return cls(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def measures(pixels: Pixels, unseen: Sequence[int]) -> dict[str, Float64[np.ndarray, "..."]]:
    """The figures of `summary` over all leading axes at once, NaN where undefined.

    Classes are the last axis of "iou".
    """
    right, truth, found = pixels
    iou = _percent(right, truth + found - right)
    every, held_out = list(range(right.shape[-1])), sorted(set(unseen))
    base = sorted(set(every) - set(unseen))

    def mean(ids: list[int]) -> np.ndarray:
        defined = ~np.isnan(iou[..., ids])
        return _ratio(np.where(defined, iou[..., ids], 0.0).sum(axis=-1), defined.sum(axis=-1))

    def accuracy(ids: list[int]) -> np.ndarray:
        return _percent(right[..., ids].sum(axis=-1), truth[..., ids].sum(axis=-1))

    seen, hidden = mean(base), mean(held_out)
    return {
        "miou_seen": seen,
        "miou_unseen": hidden,
        "hiou": np.where(seen + hidden == 0.0, 0.0, _ratio(2.0 * seen * hidden, seen + hidden)),
        "miou": mean(every),
        "pixel_accuracy": accuracy(every),
        "pixel_accuracy_seen": accuracy(base),
        "pixel_accuracy_unseen": accuracy(held_out),
        "iou": iou,
    }


def summary(
    confusion: Int64[np.ndarray, "k k"], names: Sequence[str], unseen: Sequence[int]
) -> Summary:
    """Turn pixel counts into IoU per class and its seen, unseen and harmonic means.

    IoU_k = intersection / union over the whole data set; hIoU = 2·S·U / (S + U) of
    S = mIoU(seen) and U = mIoU(unseen). A class that neither the truth nor the prediction holds
    has no IoU and is left out of the means; one that is only predicted has IoU 0. The pixel
    accuracy of a half is the share of the pixels truly of its classes that got their own. Without
    unseen ids, the unseen figures and hIoU are None.

    Raises:
        ValueError: names that repeat, or names or ids that do not fit the matrix.

    Source: OTSeg, evaluation metrics (generalised zero-shot segmentation).
    Differs: the reference prints the overall pixel accuracy for both halves.
    """
    _check_classes(len(confusion), names, unseen)
    found = plain(measures(Pixels.of(confusion), unseen))
    return found | {"iou": dict(zip(names, found["iou"], strict=True))}


def table(results: Mapping[str, Summary], unseen: Sequence[str]) -> str:
    """Lay out IoU per class and the means of each method as lines of text of equal width.

    The classes named in `unseen` are marked * and come last; where there are none, nor are there
    means of halves. "-" stands for what is undefined.

    Raises:
        ValueError: no method, methods over different classes, or an unseen name that is no class.

    Example:
        >>> counts = np.array([[3, 1], [1, 4]])
        >>> text = table({"OTSeg": summary(counts, ["cat", "dog"], [1])}, ["dog"])
        >>> print("\\n".join(text.splitlines()[:4]))
        IoU, * unseen  OTSeg
        --------------------
        cat            60.00
        dog *          66.67
    """
    _check_results(results, unseen)
    held_out = set(unseen)
    methods: list[Mapping[str, Any]] = list(results.values())
    title = "IoU, * unseen" if unseen else "IoU"
    classes, means = [], []
    for name in sorted(methods[0]["iou"], key=lambda name: name in held_out):
        label = name + " *" * (name in held_out)
        classes.append([label, *(_cell(method["iou"][name]) for method in methods)])
    for key, label in ROWS.items():
        if unseen or key in WHOLE:
            means.append([label, *(_cell(method[key]) for method in methods)])
    return lay_out([[[title, *results]], classes, means])


def lay_out(blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """Lines of text of equal width from blocks of rows, with rules between the blocks."""
    cells: list[Any] = []
    for block in blocks:
        cells += [SEPARATING_LINE, *block] if cells else block
    # The header is a row like the others: `headers` would be set two characters wider.
    align = ["left", *("right" for _ in cells[0][1:])]
    return tabulate(cells, tablefmt=_LAYOUT, colalign=align, disable_numparse=True)


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results as JSON that is the same, byte for byte, for the same results; whole or not.

    Keys are sorted, numpy's numbers and arrays are as Python's; NaN and infinity, which JSON
    lacks, become null.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    text = json.dumps(plain(results), indent=2, sort_keys=True, allow_nan=False) + "\n"
    with paths.atomic(path) as part:
        part.write_text(text)


def plain(value: Any) -> Any:
    """The same value in the types that `json` writes; what is not finite is None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _codes(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """A number for the (true class, predicted class) of every pixel that counts."""
    problems = []
    if not 1 <= num_classes <= MOST_CLASSES:
        problems.append(f"num_classes is {num_classes}, wanted 1 .. {MOST_CLASSES}")
    if truth.shape != prediction.shape:
        problems.append(
            f"truth is {truth.shape} and prediction {prediction.shape}, wanted one size"
        )
    else:
        counted = truth != IGNORE
        truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, ids in (("truth", truth), ("prediction", prediction)):
            problems += _unknown(name, ids, num_classes)
    _refuse(problems)
    return num_classes * truth + prediction


def check_ids(truth: Integer[np.ndarray, "h w"], num_classes: int) -> None:
    """That a label holds ids of classes and `IGNORE` alone; else a ValueError."""
    _refuse(_unknown("truth", truth[truth != IGNORE], num_classes))


def _unknown(name: str, ids: Integer[np.ndarray, " n"], num_classes: int) -> list[str]:
    found = np.unique(ids[(ids < 0) | (ids >= num_classes)])[:5].tolist()
    return [f"{name} holds {found}, wanted 0 .. {num_classes - 1}"] if found else []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("cannot compare the label maps: " + "; ".join(problems))


def _check_classes(size: int, names: Sequence[str], unseen: Sequence[int]) -> None:
    problems = []
    if len(names) != size:
        problems.append(f"names has {len(names)} entries for a {size} × {size} confusion matrix")
    if twice := sorted(name for name, n in Counter(names).items() if n > 1):
        problems.append(f"names holds {twice[:5]} more than once")
    if outside := [index for index in unseen if not 0 <= index < size]:
        problems.append(f"unseen holds {outside[:5]}, wanted 0 .. {size - 1}")
    if problems:
        raise ValueError("cannot summarise: " + "; ".join(problems))


def _check_results(results: Mapping[str, Summary], unseen: Sequence[str]) -> None:
    if not results:
        raise ValueError("results is empty, wanted at least one method")
    first, *others = results
    iou = results[first]["iou"]
    problems = [
        f"{other!r} and {first!r} are over different classes"
        for other in others
        if list(results[other]["iou"]) != list(iou)
    ]
    if unknown := [name for name in unseen if name not in iou]:
        problems.append(f"unseen holds {unknown[:5]}, which are no classes of the results")
    if problems:
        raise ValueError("cannot lay out the table: " + "; ".join(problems))


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """Part / whole of arrays or numbers, NaN where there is no whole."""
    nothing = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.divide(part, whole, out=nothing, where=whole != 0)


def _percent(part: Any, whole: Any) -> np.ndarray:
    return _ratio(100.0 * part, whole)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
