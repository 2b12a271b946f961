"""What the labels of a split have to teach, counted before a run: nothing, little, or enough.

Masks are read as files hold them, so that values without a meaning are counted like all others,
with the files that they are in. A sample finds what is wrong with the whole of a data set, not what
is wrong with one file; where a file is found that is wrong, then or later, all are read.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from otseg_jax.data import codings, decode
from otseg_jax.data.classes import IGNORE, Vocabulary
from otseg_jax.data.lists import some
from otseg_jax.data.regimes import HIDDEN, Regime
from otseg_jax.data.shapes import Shapes
from otseg_jax.data.splits import Split

Example = TypeVar("Example")

SAMPLE = 64
"""Masks that are looked at before a run: a second or two."""


@dataclass
class Findings:
    """What was found in the masks of a split.

    Attributes:
        total: masks of the split, of which `masks` were looked at.
        pixels: of each class.
        ignored: pixels of no class.
        values: pixels of each value in the files.
        wrong: pixels of each value that means nothing.
        files: masks that hold such values.
        unreadable: masks that cannot be read, or whose photo cannot, or has another size.
        problems: why a run would fail or learn nothing, so that it should stop.
        doubts: what looks like a mistake, so that a person should be told.
    """

    total: int
    pixels: Int64[np.ndarray, " k"]
    masks: int = 0
    ignored: int = 0
    values: Counter[int] = field(default_factory=Counter)
    wrong: Counter[int] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def inspect(
    split: Split, regime: Regime | None, *, sample: int = SAMPLE, threads: int = 1
) -> Findings:
    """Look at the masks of a split.

    Args:
        regime: what is learnt from it; None: nothing, it is for evaluation.
        sample: at most so many masks, evenly spaced; 0 for all. Up to 16 times as many are looked
            at while they hold nothing to learn from, and all where one is wrong.
        threads: that read all of them.
    """
    found = _sample(split, regime, sample) if sample else None
    if found is None or ((found.problems or found.wrong) and found.masks < found.total):
        found = _all(split, threads)  # whoever mends one wants to know of all
    found.problems = [some(found.problems, mark="; ")] if found.problems else []
    if not isinstance(split, Shapes) and found.files:
        found.problems.append(_wrong(split.coding, found))
    if regime and not found.problems:
        _judge(found, split.vocabulary, regime)
    if not regime and not found.problems and not found.pixels.any():
        found.doubts.append(f"{_all_ignored(found)}: predictions are made, but no figures")
    return found


def tell_all(examples: Iterator[Example], split: Split, *, threads: int) -> Iterator[Example]:
    """Examples of a split; at a mask that is wrong, all that are wrong are told of at once.

    Raises:
        ValueError: what is wrong with the masks of the split.
    """
    try:
        yield from examples
    except decode.MaskError as error:
        found = inspect(split, None, sample=0, threads=threads)
        # none: it was mended in the meantime
        raise ValueError("; ".join(found.problems) or str(error)) from error


def _nothing(split: Split) -> Findings:
    return Findings(len(split), np.zeros(len(split.vocabulary), np.int64))


def _sample(split: Split, regime: Regime | None, sample: int) -> Findings:
    found, every = _nothing(split), -(-len(split) // sample)
    for i in range(0, len(split), every):
        _add(found, _read(split, i))
    for i in range(0, len(split), -(-every // 16)):
        if not regime or found.problems or found.wrong or _teaches(found, regime):
            break
        if i % every:
            _add(found, _read(split, i))
    return found


def _all(split: Split, threads: int) -> Findings:
    found = _nothing(split)
    with ThreadPoolExecutor(threads) as pool:
        masks = pool.map(partial(_read, split), range(len(split)))
        for mask in tqdm(masks, "All masks", len(split), delay=2, unit="mask", leave=False):
            _add(found, mask)
    return found


class _Mask(NamedTuple):
    """The counts of one mask, or what is wrong with its file."""

    pixels: Int64[np.ndarray, " k"]
    ignored: int = 0
    values: dict[int, int] = {}  # noqa: RUF012 (never changed)
    wrong: dict[int, int] = {}  # noqa: RUF012
    file: str = ""
    problem: str = ""


def _read(split: Split, i: int) -> _Mask:
    classes = len(split.vocabulary)
    if isinstance(split, Shapes):
        ids = split[i]["label"]
        return _Mask(np.bincount(ids[ids >= 0], minlength=classes), int((ids == IGNORE).sum()))
    table, (photo, file) = split.coding.table, split.files(i)
    try:
        values = decode.read_values(file, split.coding)
        decode.check_sizes(file, values.shape, photo, decode.size(photo))
    except (ValueError, OSError) as error:
        return _Mask(np.zeros(classes, np.int64), file=str(file), problem=str(error))
    ids, counts = table[values], np.bincount(values.ravel(), minlength=len(table))
    held = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
    wrong = {value: n for value, n in held.items() if table[value] == codings.MEANINGLESS}
    pixels = np.bincount(ids[ids >= 0], minlength=classes)
    return _Mask(pixels, int((ids == IGNORE).sum()), held, wrong, str(file))


def _add(found: Findings, mask: _Mask) -> None:
    found.masks += 1
    found.pixels += mask.pixels
    found.ignored += mask.ignored
    found.values.update(mask.values)
    found.wrong.update(mask.wrong)
    found.files += [mask.file] * bool(mask.wrong)
    found.unreadable += [mask.file] * bool(mask.problem)
    found.problems += [mask.problem] * bool(mask.problem)


def _teaches(found: Findings, regime: Regime) -> bool:
    """Whether there are pixels to learn from, labelled and (where some are) hidden ones."""
    table = regime.label_table[:-1]
    kinds = [table != IGNORE] + [table == HIDDEN] * bool(regime.unseen)
    return all(found.pixels[kind].any() for kind in kinds)


def _judge(found: Findings, vocabulary: Vocabulary, regime: Regime) -> None:
    """Say what training by a regime would make of the classes that were found."""
    table, names = regime.label_table[:-1], vocabulary.names
    labelled = np.flatnonzero(table >= 0)
    present = [int(k) for k in labelled if found.pixels[k]]
    absent = [names[k] for k in labelled if not found.pixels[k]]
    if not found.pixels.any():
        mend = "write class ids into the masks"
        found.problems.append(f"{_all_ignored(found)}, so there is nothing to learn: {mend}")
        return
    if not found.pixels[table != IGNORE].any():
        found.problems.append(
            f"in {_of(found)} all labelled pixels are of {some(_names(vocabulary, found))}, "
            f"which {regime.name} training ignores: there is nothing to learn from them. Label "
            "pixels of the seen classes too, or make these seen"
        )
        return
    if len(vocabulary) == 1:
        found.doubts.append(
            f"{names[0]!r} is the only class: every pixel will be of it, with a score of 100. Give "
            "the rest a class too, such as background,seen"
        )
    elif len(present) == 1:
        found.doubts.append(
            f"in {_of(found)} {names[present[0]]!r} is the only class with labelled pixels: there "
            f"is nothing to tell it apart from{_foreground(found)}"
        )
    # In a sample rare classes may be missing by chance, but not most of them.
    if absent and len(present) > 1 and (found.masks == found.total or len(absent) > len(present)):
        found.doubts.append(f"in {_of(found)} there is no pixel of {some(absent)}")
    if regime.unseen and not found.pixels[table == HIDDEN].any():
        hidden = some([names[k] for k in vocabulary.unseen])
        found.doubts.append(
            f"in {_of(found)} there is no pixel of the unseen {hidden}: {regime.name} training "
            "labels their pixels itself, and finds none (255 stays ignored)"
        )


def _wrong(coding: codings.Coding, found: Findings) -> str:
    counts = [f"{value} ({n:,} pixels)" for value, n in sorted(found.wrong.items())]
    return (
        f"{len(found.files)} of {_of(found)} hold values that no class has, {some(counts)}, in "
        f"{some(found.files)}; wanted {coding.wanted}: {_mend(coding, found)}"
    )


def _mend(coding: codings.Coding, found: Findings) -> str:
    """What to do about wrong values, by what they look like."""
    used = sorted(found.values.keys() - {codings.IGNORE_8_BIT, codings.IGNORE_16_BIT})
    if coding.own is None:
        return coding.hint
    lines = len(coding.own.vocabulary) + len(coding.own.ignored)
    if [*found.wrong] == [lines]:
        first = "if 0 is the background, begin classes.csv with the line background,ignore"
        last = f"; if {lines} stands for unlabelled, end it with the line unlabelled,ignore"
        return f"{coding.hint}; {first}{last if 0 in used else ''}"
    if len(used) <= lines + 1 and min(np.diff(used), default=1) > 1:
        numbered = ", ".join(f"{k} for {value}" for k, value in enumerate(used[:lines]))
        return f"these are grey levels, no ids: number the classes in the masks, {numbered}"
    return f"{coding.hint}; a line NAME,ignore stands for an id that is no class"


def _foreground(found: Findings) -> str:
    only = found.values.keys() == {0, codings.IGNORE_8_BIT}
    return ". The values are 0 and 255, and 255 stands for no class: write 1 for it" * only


def _all_ignored(found: Findings) -> str:
    return f"in {_of(found)} all {found.ignored:,} pixels are of no class"


def _names(vocabulary: Vocabulary, found: Findings) -> list[str]:
    return [vocabulary.names[k] for k in np.flatnonzero(found.pixels)]


def _of(found: Findings) -> str:
    looked_at = "" if found.masks == found.total else f" looked at (of {found.total:,})"
    return f"the {found.masks:,} masks{looked_at}"
