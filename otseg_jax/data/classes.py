"""Class names, unseen ids and palettes of every data set: lists in `vocabularies/`, one reader.

A class id is the index into `Vocabulary.names`, 0..K-1. Label maps on the host are int16 [h, w] of
ids or `IGNORE`, whatever a file holds (`decode` turns one into the other). Colours are 8-bit RGB.
Names keep the spelling of the reference, down to the trailing space of ADE20K's "bed ", because
published text embeddings were computed from it; its palettes repeat some colours, so a colour does
not identify a class.
"""

import csv
import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from otseg_jax.data import lists

IGNORE = -1
"""The label of a pixel that belongs to no class: negative, so that it is the id of none."""

HEADER = ["name", "split", "colour"]
SPLITS = ("seen", "unseen", "ignore")
MOST_CLASSES = 2**15
"""Size of the largest vocabulary: an int16 holds the ids 0..32,767 besides negative markers."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a data set, in the order of their ids.

    Args:
        names: distinct; `names[k]` is what the text tower is asked about.
        unseen: ids whose pixels training never shows in the zero-shot regimes.
        palette: 8-bit RGB for each name; left out, `default_palette`.

    Raises:
        ValueError: no names or more than `MOST_CLASSES`, names repeat, an unseen id has no name, or
            the palette has another length; all problems in one message.

    Example:
        >>> pets = Vocabulary(("cat", "dog", "newt"), unseen=(2,))
        >>> pets.seen, pets.palette[0]
        ((0, 1), (128, 0, 0))
    """

    names: tuple[str, ...]
    unseen: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(len(self.names)))
        problems = []
        if not 0 < len(self.names) <= MOST_CLASSES:
            problems.append(f"{len(self.names)} names: wanted 1 to {MOST_CLASSES}")
        if repeated := sorted(name for name, n in Counter(self.names).items() if n > 1):
            problems.append(f"names repeat: {repeated}")
        if outside := [k for k in self.unseen if not 0 <= k < len(self.names)]:
            problems.append(f"unseen ids {outside} lie outside 0..{len(self.names) - 1}")
        if len(set(self.unseen)) < len(self.unseen):
            problems.append(f"unseen ids repeat: {sorted(self.unseen)}")
        if len(self.palette) != len(self.names):
            problems.append(f"{len(self.palette)} colours for {len(self.names)} names")
        if problems:
            raise ValueError("Vocabulary: " + "; ".join(problems))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> tuple[int, ...]:
        """The ids that are not unseen, ascending."""
        unseen = set(self.unseen)
        return tuple(k for k in range(len(self.names)) if k not in unseen)


@dataclass(frozen=True)
class Listing:
    """What a file of classes says: the vocabulary, and how masks write it.

    Line k below the header is about the value k of a mask: a class, or no class ("ignore"), in
    which case the classes after it move up. `colours` has one for each value, or none at all.
    """

    vocabulary: Vocabulary
    ignored: tuple[int, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)


def read(path: Path, *, exact: bool = False) -> Vocabulary:
    """The classes of a file; as `read_listing`."""
    return read_listing(path, exact=exact).vocabulary


def read_listing(path: Path, *, exact: bool = False) -> Listing:
    """Read a list of classes: a CSV file with one class per line, in id order.

    Args:
        path: text under the header `name,split` or `name,split,colour`, split being seen, unseen or
            ignore, colour six hexadecimal digits, red first; or with semicolons or tabs.
        exact: keep blanks at the ends of names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another header, a line that is not understood, repeated names or too many.
    """
    header, lines = _cells(path, exact)
    end = ",RRGGBB" * (len(header) == len(HEADER))
    wanted = f"NAME,seen{end} or NAME,unseen{end}"
    if header not in (HEADER, HEADER[:2]):
        wrong = "the first line must be: name,split (or name,split,colour)"
        raise ValueError(f"{path}: {wrong}, not {','.join(header)!r}")
    problems = []
    if all(cells[1:2] == ["ignore"] for _, cells in lines):
        problems.append(f"no class below the header: write one line each, {wanted}")
    for i, cells in lines:
        name, split, *colour = cells if len(cells) > 1 else ("", "")
        fits = len(cells) == len(header) and all(re.fullmatch("[0-9a-fA-F]{6}", c) for c in colour)
        # "# cat,seen" is a class that somebody took out
        if not fits or not name or name.startswith("#") or split not in SPLITS:
            problems.append(f"line {i} is {','.join(cells)!r}, wanted {wanted}")
    classes = [cells for _, cells in lines if cells[1:2] != ["ignore"]]
    if not exact and not problems:
        # the text tower reads names in lower case, so that both would be one class to it
        times = Counter(spelt(cells[0]) for cells in classes)
        if alike := {cells[0]: 0 for cells in classes if times[spelt(cells[0])] > 1}:
            problems.append(f"names repeat, capitals and blanks aside: {lists.some([*alike])}")
    if problems:
        raise ValueError(f"{path}: {lists.some(problems, mark='; ')}")
    ignored = tuple(k for k, (_, cells) in enumerate(lines) if cells[1] == "ignore")
    hexadecimal = (bytes.fromhex(cells[2]) for _, cells in lines if len(cells) > 2)
    colours = [(red, green, blue) for red, green, blue in hexadecimal]
    try:
        vocabulary = Vocabulary(
            names=tuple(cells[0] for cells in classes),
            unseen=tuple(k for k, cells in enumerate(classes) if cells[1] == "unseen"),
            palette=tuple(c for k, c in enumerate(colours) if k not in ignored),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Listing(vocabulary, ignored, tuple(colours))


def _cells(path: Path, exact: bool) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the number and the cells of every line below it."""
    lines = lists.read_text(path).splitlines()
    first = next(filter(str.strip, lines), "")
    # Excel writes semicolons where a comma is in decimal numbers, and may say so in a first line.
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from error
    if first.strip().lower() == f"sep={delimiter}":
        rows[lines.index(first)] = []
    strip = (lambda cell: cell) if exact else str.strip
    cells = [(i, [*map(strip, row)]) for i, row in enumerate(rows, 1) if any(map(str.strip, row))]
    header = [cell.lower() for cell in cells[0][1]] if cells else []
    while header and not header[-1]:  # a comma at the end of every line
        header.pop()
    below = []
    for i, row in cells[1:]:
        while len(row) > len(header) and not row[-1]:
            row.pop()
        below.append((i, [*row[:1], *map(str.lower, row[1:])]))
    return header, below


def spelt(name: str) -> str:
    """A name as the text tower reads it: names that agree in this are one class to it.

    Example:
        >>> spelt("Bed ") == spelt("bed")
        True
    """
    return " ".join(name.lower().split())


def in_words(
    names: Sequence[str], entries: Sequence[str]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """What is asked for classes, and the class of each word, ascending.

    That is the name of a class, or the words that an entry "NAME=WORD|WORD" has for it.

    Raises:
        ValueError: entries of names that are no class, or two of one; all in one message.

    Example:
        >>> in_words(("cat", "sofa"), ("sofa=sofa|couch",))
        (('cat', 'sofa', 'couch'), (0, 1, 1))
    """
    by_name = {name.strip(): name for name in names}
    pairs = [(name.strip(), words) for name, _, words in (e.partition("=") for e in entries)]
    counts = Counter(name for name, _ in pairs)
    problems = [f"{name!r} has {n} entries" for name, n in counts.items() if n > 1]
    for name in sorted(counts.keys() - by_name.keys()):
        near = difflib.get_close_matches(name, by_name, n=1)
        problems.append(f"{name!r} is no class" + "".join(f": did you mean {n!r}?" for n in near))
    if problems:
        some = lists.some(list(names))
        raise ValueError(f"text.words: {'; '.join(problems)} (the classes are {some})")
    instead = {by_name[name]: [*map(str.strip, words.split("|"))] for name, words in pairs}
    found = [(word, k) for k, name in enumerate(names) for word in instead.get(name, [name])]
    return tuple(word for word, _ in found), tuple(k for _, k in found)


def default_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """PASCAL VOC's colours for ids 1..classes (0 is black there): distinct, neighbours far apart.

    Bit 7 - j of (red, green, blue) is bit (3j, 3j + 1, 3j + 2) of the id, j = 0..7.

    Example:
        >>> default_palette(3)
        ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    ids = np.arange(1, classes + 1)[:, None, None]
    j, channel = np.arange(8)[:, None], np.arange(3)
    colours = ((ids >> (3 * j + channel) & 1) << (7 - j)).sum(1)
    return tuple((red, green, blue) for red, green, blue in colours.tolist())


VOCABULARIES: dict[str, Vocabulary] = {
    path.stem: read(path, exact=True)
    for path in sorted((Path(__file__).parent / "vocabularies").glob("*.csv"))
}
"""Every vocabulary by the name that `--config.data.dataset` uses.

- voc12: PASCAL VOC 2012 without background, 5 of 20 classes unseen; its colours are the default.
- pascal_context: the 59 most frequent classes of PASCAL Context, 10 unseen.
- coco_stuff: COCO-Stuff 164k in train-id order, 171 classes, 15 unseen.
- ade20k, cityscapes: 150 and 19 classes, for evaluation across data sets: nothing is held out.
- voc21, context60, coco_object: PASCAL VOC and Context, and the 80 things of COCO, after a
  background that is class 0, as training-free methods are evaluated: nothing is held out.
- shapes: the built-in world, every pattern with every colour once, the shapes along a Latin square.
  The 5 unseen of 20 classes are new combinations of attributes that seen classes show one by one:
  each pattern, colour and shape of theirs occurs in at least two seen ones.
- shapes_synonyms: the same classes in other words, one for one.
- shapes_colours: the colours of shapes alone; class k is its classes k, k + 5, k + 10 and k + 15.
"""
