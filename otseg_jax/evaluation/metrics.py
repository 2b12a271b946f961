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
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int64, Integer
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
            if unknown := np.unique(ids[(ids < 0) | (ids >= num_classes)])[:5].tolist():
                problems.append(f"{name} holds {unknown}, wanted 0 .. {num_classes - 1}")
    if problems:
        raise ValueError("cannot compare the label maps: " + "; ".join(problems))
    pairs = np.bincount(num_classes * truth + prediction, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


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
    right, truth = np.diagonal(confusion), confusion.sum(axis=1)
    union = confusion.sum(axis=0) + truth - right
    iou = [*map(_percent, right.tolist(), union.tolist())]

    def mean(ids: Sequence[int]) -> float | None:
        defined = [value for k in ids if (value := iou[k]) is not None]
        return math.fsum(defined) / len(defined) if defined else None

    def accuracy(ids: Sequence[int]) -> float | None:
        return _percent(right[ids].sum().item(), truth[ids].sum().item())

    every, held_out = list(range(len(names))), sorted(set(unseen))
    base = sorted(set(every) - set(unseen))
    miou_seen, miou_unseen = mean(base), mean(held_out)
    return {
        "miou_seen": miou_seen,
        "miou_unseen": miou_unseen,
        "hiou": _harmonic(miou_seen, miou_unseen),
        "miou": mean(every),
        "pixel_accuracy": accuracy(every),
        "pixel_accuracy_seen": accuracy(base),
        "pixel_accuracy_unseen": accuracy(held_out),
        "iou": dict(zip(names, iou, strict=True)),
    }


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
    cells: list[Sequence[str]] = [[title, *results], SEPARATING_LINE]
    for name in sorted(methods[0]["iou"], key=lambda name: name in held_out):
        label = name + " *" * (name in held_out)
        cells.append([label, *(_cell(method["iou"][name]) for method in methods)])
    cells.append(SEPARATING_LINE)
    for key, label in ROWS.items():
        if unseen or key in WHOLE:
            cells.append([label, *(_cell(method[key]) for method in methods)])
    # The header is a row like the others: `headers` would be set two characters wider.
    align = ["left", *("right" for _ in methods)]
    return tabulate(cells, tablefmt=_LAYOUT, colalign=align, disable_numparse=True)


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results as JSON that is the same, byte for byte, for the same results; whole or not.

    Keys are sorted, numpy's numbers and arrays are as Python's; NaN and infinity, which JSON
    lacks, become null.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    text = json.dumps(_plain(results), indent=2, sort_keys=True, allow_nan=False) + "\n"
    with paths.atomic(path) as part:
        part.write_text(text)


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


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _harmonic(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 2.0 * one * other / (one + other) if one + other > 0 else 0.0


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(value: Any) -> Any:
    """The same value in the types that `json` writes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
