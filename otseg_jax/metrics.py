"""Segmentation metrics: confusion matrix, IoU per class, its seen / unseen / harmonic means.

Arrays are numpy. Label maps: i[h, w] with ids 0 .. k-1 and, in the truth, 255 = not counted.
Confusion matrices: i64[k, k] pixel counts, rows = truth, columns = prediction; those of several
images or processes add up. Every figure is in percent; one with nothing to count is None, never
NaN.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Int64, Integer

IGNORE = 255
ROWS = {
    "miou_seen": "mIoU(S)",
    "miou_unseen": "mIoU(U)",
    "hiou": "hIoU",
    "miou": "mIoU",
    "pixel_accuracy": "pAcc",
    "pixel_accuracy_seen": "pAcc(S)",
    "pixel_accuracy_unseen": "pAcc(U)",
}


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
    """Count the pixels of each (true class, predicted class).

    Args:
        truth: i[h, w], 0 .. num_classes-1, or 255 where the pixel is not counted.
        prediction: i[h, w] as truth, 0 .. num_classes-1 wherever the pixel is counted.
        num_classes: K, 1 .. 255.

    Returns:
        i64[k, k], pixels; rows truth, columns prediction.

    Raises:
        ValueError: sizes differ, or an id is no class.

    Example:
        >>> confusion(np.array([[0, 1, 255]]), np.array([[0, 0, 1]]), 2).tolist()
        [[1, 0], [1, 0]]
    """
    problems = []
    if not 1 <= num_classes <= IGNORE:
        problems.append(f"num_classes is {num_classes}, wanted 1 .. {IGNORE}")
    if truth.shape != prediction.shape:
        problems.append(
            f"truth is {truth.shape} and prediction {prediction.shape}, wanted one size"
        )
    else:
        counted = truth != IGNORE
        truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, ids in (("truth", truth), ("prediction", prediction)):
            alien = np.unique(ids[(ids < 0) | (ids >= num_classes)])
            if alien.size:
                problems.append(f"{name} holds {alien[:5].tolist()}, wanted 0 .. {num_classes - 1}")
    if problems:
        raise ValueError("cannot compare the label maps: " + "; ".join(problems))
    pairs = np.bincount(num_classes * truth + prediction, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64)


def summary(
    confusion: Int64[np.ndarray, "k k"], names: Sequence[str], unseen: Sequence[int]
) -> Summary:
    """Turn pixel counts into IoU per class and its seen, unseen and harmonic means.

    IoU_k = intersection / union over the whole data set; hIoU = 2·S·U / (S + U) of
    S = mIoU(seen) and U = mIoU(unseen). A class that neither the truth nor the prediction holds
    has no IoU and is left out of the means; one that is only predicted has IoU 0.

    Args:
        confusion: i64[k, k], pixels; rows truth, columns prediction, over all classes.
        names: K distinct class names, in the order of the ids.
        unseen: ids of the unseen classes; may be empty, then the unseen figures and hIoU are None.

    Returns:
        Percent floats. `pixel_accuracy_seen` and `pixel_accuracy_unseen` are the fractions of
        the pixels that are truly of a seen (unseen) class and got their own class.

    Raises:
        ValueError: names or ids that do not fit the matrix.

    Source: OTSeg, evaluation metrics (generalised zero-shot segmentation).
    Differs: the reference prints the overall pixel accuracy for both halves.
    """
    size = len(confusion)
    _check_classes(size, names, unseen)
    counts = np.asarray(confusion, dtype=np.int64)
    right = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    iou = [_percent(int(hit), int(total)) for hit, total in zip(right, union, strict=True)]

    held_out = sorted(set(unseen))
    base = [index for index in range(size) if index not in held_out]
    miou_seen = _mean([iou[index] for index in base])
    miou_unseen = _mean([iou[index] for index in held_out])
    return {
        "miou_seen": miou_seen,
        "miou_unseen": miou_unseen,
        "hiou": _harmonic(miou_seen, miou_unseen),
        "miou": _mean(iou),
        "pixel_accuracy": _percent(int(right.sum()), int(counts.sum())),
        "pixel_accuracy_seen": _percent(int(right[base].sum()), int(counts[base].sum())),
        "pixel_accuracy_unseen": _percent(int(right[held_out].sum()), int(counts[held_out].sum())),
        "iou": dict(zip(names, iou, strict=True)),
    }


def table(results: Mapping[str, Summary], unseen: Sequence[str]) -> str:
    """Lay out IoU per class and the means of several methods as text.

    Args:
        results: method → what `summary` returned; every method over the same class names.
        unseen: names of the unseen classes: they are marked * and come after the seen ones.

    Returns:
        Lines of equal width: a header of methods, a row per class, a row per mean; percent with
        two decimals, "-" where undefined.

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
    names = _shared_names(results, unseen)
    held_out = set(unseen)
    ordered = [n for n in names if n not in held_out] + [n for n in names if n in held_out]
    classes = [
        [f"{name} *" if name in held_out else name]
        + [_cell(result["iou"][name]) for result in results.values()]
        for name in ordered
    ]
    figures: list[Mapping[str, Any]] = list(results.values())
    means = [[label] + [_cell(figure[key]) for figure in figures] for key, label in ROWS.items()]
    header = ["IoU, * unseen", *results]
    widths = [max(map(len, column)) for column in zip(header, *classes, *means, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_line(header, widths), rule, *(_line(row, widths) for row in classes)]
    return "\n".join([*lines, rule, *(_line(row, widths) for row in means)])


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results as JSON that is the same, byte for byte, for the same results.

    The file appears whole or not at all: it is written beside its place and renamed into it.

    Args:
        path: file to create or replace; its folder is made where missing.
        results: nested mappings with string keys, sequences, strings, numbers (numpy's too) and
            None. Keys are sorted; NaN and infinity, which JSON lacks, become null.

    Raises:
        TypeError: a value that JSON has no form for.
    """
    path = Path(path)
    text = json.dumps(_plain(results), indent=2, sort_keys=True, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _check_classes(size: int, names: Sequence[str], unseen: Sequence[int]) -> None:
    problems = []
    if len(names) != size:
        problems.append(f"names has {len(names)} entries for a {size} × {size} confusion matrix")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        problems.append(f"names holds {twice[:5]} more than once")
    alien = [index for index in unseen if not 0 <= index < size]
    if alien:
        problems.append(f"unseen holds {alien[:5]}, wanted 0 .. {size - 1}")
    if problems:
        raise ValueError("cannot summarise: " + "; ".join(problems))


def _shared_names(results: Mapping[str, Summary], unseen: Sequence[str]) -> list[str]:
    if not results:
        raise ValueError("results is empty, wanted at least one method")
    first, *others = results
    names = list(results[first]["iou"])
    problems = [
        f"{other!r} and {first!r} are over different classes"
        for other in others
        if list(results[other]["iou"]) != names
    ]
    alien = [name for name in unseen if name not in names]
    if alien:
        problems.append(f"unseen holds {alien[:5]}, which are no classes of the results")
    if problems:
        raise ValueError("cannot lay out the table: " + "; ".join(problems))
    return names


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None


def _harmonic(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return None
    return 2.0 * one * other / (one + other) if one + other > 0 else 0.0


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([name, *numbers])


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
