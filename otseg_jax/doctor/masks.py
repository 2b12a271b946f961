"""What the masks of a split hold, and the command where their values are of another coding.

`data.inspect` counts them and finds what no class has. Values that are all of classes may still be
those of other classes; what is told here of such is by how often each value occurs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from otseg_jax.data import codings, inspect
from otseg_jax.data.folders import Folder
from otseg_jax.data.lists import some
from otseg_jax.doctor import mends
from otseg_jax.doctor.findings import Finding

IGNORED = codings.IGNORE_8_BIT
BORDER = (224, 224, 192)  # of objects in the colours of PASCAL VOC, value 255

# Share of 255 from which on it cannot be what it should: the border of objects in PASCAL VOC
# (5 %), and nothing in the others, whose 0 is of no class.
TOO_MUCH = {"voc12": 0.4, "voc21": 0.4, "pascal_context": 0.01, "context60": 0.01, "ade20k": 0.01}
COCO = ("coco_stuff", "coco_object")
NO_BACKGROUND = ("other", "void", "none", "nothing", "rest", "unlabelled", "unlabeled", "bg")


def judge(dataset: str, name: str, split: Folder, found: inspect.Findings) -> list[Finding]:
    """Tell what was counted in the masks of a split."""
    looked = "all" if found.masks == found.total else f"{found.masks:,} of {found.total:,}"
    told = [Finding("error", f"{name}: {problem}") for problem in found.problems]
    if told and found.unreadable:
        told[0] = told[0]._replace(mend=_readable(split, found))
    if told and found.wrong:
        told[-1] = told[-1]._replace(mend=_valid(dataset, split, found))
    told += [
        Finding("warning", f"{name}: {doubt}", _doubted(split, found)) for doubt in found.doubts
    ]
    if not found.problems:
        told += [_replace_what(each, name) for each in _shifted(dataset, split, found)]
        told += _sums(name, split, found)
    values = sorted(found.values)
    span = f"{len(values)} values, {values[0]}..{values[-1]}" if values else "no value"
    return [Finding("note" if told else "ok", f"{name}: {looked} masks read, {span}"), *told]


def absent(name: str, split: Folder, counted: Sequence[inspect.Findings]) -> list[Finding]:
    """The classes that no mask of a split holds, where none is wrong."""
    pixels = sum((found.pixels for found in counted), np.zeros(len(split.vocabulary), np.int64))
    if any(found.problems or found.doubts for found in counted) or not pixels.any():
        return []
    if not (names := [split.vocabulary.names[k] for k in np.flatnonzero(pixels == 0)]):
        return []
    if any(found.masks < found.total for found in counted):
        what = f"{name}: in what was read there is no pixel of {some(names)}; --all reads all"
        return [Finding("note", what)]
    if name == "train":
        return [Finding("warning", f"{name}: in the masks there is no pixel of {some(names)}")]
    return [Finding("note", f"{name}: no pixel of {some(names)}: tables have no IoU for them")]


def _replace_what(finding: Finding, name: str) -> Finding:
    return finding._replace(what=f"{name}: {finding.what}")


def _sums(name: str, split: Folder, found: inspect.Findings) -> list[Finding]:
    told, pixels = [], int(found.pixels.sum()) + found.ignored
    if pixels and 0.95 < found.ignored / pixels < 1:
        what = f"{name}: {found.ignored / pixels:.1%} of the pixels are of no class"
        told.append(Finding("warning", f"{what}: is the rest meant to be a class?"))
    return told


def _readable(split: Folder, found: inspect.Findings) -> str:
    """What makes masks readable: by what the first is that is not."""
    first = Path(found.unreadable[0])
    try:
        with Image.open(first) as image:
            if image.mode not in ("RGB", "RGBA", "LA"):
                raise ValueError("not in colours")
            pixels = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    except Exception:  # on corrupt bytes Pillow's decoders raise nearly any type
        pixels = np.zeros((0, 3), np.uint8)
    if len(pixels) and (pixels == pixels[:, :1]).all():
        return mends.one_channel(split.labels)
    palette = _palette(split)
    if len(pixels) and {*map(tuple, pixels.tolist())} <= {*palette}:
        return mends.from_colours(split.labels, bytes(part for rgb in palette for part in rgb))
    bad = {*found.unreadable}
    if len(pixels) or 2 * len(bad) > found.masks:
        return ""  # of most masks, what is said of them all
    pairs = zip(split.images, split.labels, strict=True)
    away = [(photo, mask) for photo, mask in pairs if str(mask) in bad]
    return mends.leave_out(split, away)


def _palette(split: Folder) -> list[tuple[int, int, int]]:
    """The colour of each value 0..255 in the data set's own palette; black where there is none."""
    colours = [(0, 0, 0)] * 256
    if split.coding.own is not None:
        return colours[:1]
    for value, k in enumerate(split.coding.table[:256].tolist()):
        if k >= 0:
            colours[value] = split.vocabulary.palette[k]
    return [*colours[:IGNORED], BORDER]


def _valid(dataset: str, split: Folder, found: inspect.Findings) -> str:
    """What gives meaning to values that have none."""
    used = sorted(found.values.keys() - {IGNORED, codings.IGNORE_16_BIT})
    if dataset in COCO and [*found.wrong] == [171] and not found.values[IGNORED]:
        return mends.revalue(split.labels, "255 if v == 0 else v - 1")
    if dataset in COCO and split.labels[0].stem.endswith("_labelTrainIds"):
        renamed = mends.rename(split.labels, "_labelTrainIds.png", ".png")
        return f"{renamed}  # and then: --config.data.raw_ids=True"
    own = split.coding.own
    if own is None or max(used, default=0) > IGNORED:
        return ""
    lines = len(own.vocabulary) + len(own.ignored)
    if [*found.wrong] == [lines]:
        return mends.background(split.home.parent.parent / "classes.csv")
    if len(used) <= lines and min(np.diff(used), default=1) > 1:
        numbered = {value: k for k, value in enumerate(used)}
        return mends.revalue(split.labels, f"{numbered}.get(v, v)")
    return ""


def _doubted(split: Folder, found: inspect.Findings) -> str:
    if found.values.keys() == {0, IGNORED} and len(split.vocabulary) > 1:
        return mends.revalue(split.labels, "v // 255")
    return ""


def _shifted(dataset: str, split: Folder, found: inspect.Findings) -> list[Finding]:
    """Values that are all of classes, and probably of the class before or after."""
    values, total = found.values, max(1, sum(found.values.values()))
    last = int(np.flatnonzero(split.coding.table >= 0)[-1])
    ignored, zeros = values[IGNORED] / total, values[0] / total
    if ignored > TOO_MUCH.get(dataset, 1) and not values[last] and zeros < 0.4:
        what = (
            f"255 is {ignored:.0%} of the pixels, as 0 should be, and {last} occurs nowhere: "
            "'reduce zero' was done to the files, and every class is read as the one before it"
        )
        mend = mends.revalue(split.labels, "0 if v == 255 else v + 1")
        return [Finding("warning", what, mend)]
    if dataset in COCO and not split.labels[0].stem.isdigit() and zeros and not ignored:
        if found.masks < 8:
            return []
        what = (
            "no pixel is 255, and every photo of COCO has some of no class: 0 stands for these "
            "and every class is read as the one after it"
        )
        return [Finding("warning", what, mends.revalue(split.labels, "255 if v == 0 else v - 1"))]
    largest = max(values.keys() - {IGNORED}, default=0)
    if dataset == "cityscapes" and split.coding.table[7] == 0 and ignored > 0.01 and largest < 19:
        what = "the values are train ids, 0..18 and 255, in files that are named labelIds"
        mend = mends.rename(split.labels, "_labelIds.png", "_labelTrainIds.png")
        return [Finding("warning", what, mend)]
    return _background(split, found) if dataset == "folder" else []


def _background(split: Folder, found: inspect.Findings) -> list[Finding]:
    values, names = found.values, split.vocabulary.names
    zeros = values[0] / max(1, sum(values.values()))
    last = len(names) - 1
    if split.coding.own is None or split.coding.own.ignored or last < 2 or values[IGNORED]:
        return []
    first = names[0].lower()
    if zeros < 0.5 or values[last] or "background" in first or first in NO_BACKGROUND:
        return []
    what = (
        f"0 is {zeros:.0%} of the pixels and {last} ({names[last]!r}) occurs nowhere: if 0 is the "
        f"background, {names[0]!r} and all after it are read one too early"
    )
    mend = mends.background(split.home.parent.parent / "classes.csv")
    return [Finding("warning", what, mend)]
