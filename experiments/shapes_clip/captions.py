"""Captioned pictures of the shapes world: what a small CLIP learns words from.

A picture shows one to four things out of all 100 combinations of pattern, colour and shape, the
20 classes among them. A caption is true of its picture and says nothing of where things are. It may
name some of them only, leave attributes open ("striped object"), and use any of the words that
`WORDS` has for an attribute, in the paper's templates or in others.

Arrays: images u8[i, s, s, 3], RGB. Things are i8[i, 4, 3]: per picture up to four times the
positions of (pattern, colour, shape) in `WORDS`, filled up with ABSENT. What a caption says has the
same form, with OPEN for an attribute that it does not name.
"""

import itertools
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from tqdm import tqdm

from otseg_jax.data import shapes

WORDS: tuple[Mapping[str, Sequence[str]], ...] = (
    {
        "plain": ("plain", "solid", "uniform"),
        "striped": ("striped", "stripy", "lined"),
        "dotted": ("dotted", "spotted", "speckled"),
        "checked": ("checked", "chequered", "checkered"),
    },
    {
        "red": ("red", "scarlet"),
        "yellow": ("yellow", "golden"),
        "green": ("green", "emerald"),
        "blue": ("blue", "azure"),
        "purple": ("purple", "violet"),
    },
    {
        "disc": ("disc", "circle"),
        "square": ("square", "box"),
        "triangle": ("triangle", "wedge"),
        "star": ("star", "pentagram"),
        "cross": ("cross", "plus"),
    },
)
"""Per attribute its values, and the words for each, the name of the classes first."""

NOUNS = ("thing", "object", "shape")  # for a thing whose shape is left open
TEMPLATES = (
    # the paper's
    "a photo of a {}.",
    "a portrait of a {}.",
    "a part of a {}.",
    "a segment of a {}.",
    "a photo of small {}.",
    "a photo of medium {}.",
    "a photo of large {}.",
    "a background of a {}.",
    # free ones
    "{}",
    "a {}",
    "the {}.",
    "we see a {}.",
    "there is a {} here.",
    "a picture of a {}.",
    "an image with a {}.",
)
THINGS = tuple(itertools.product(*(range(len(values)) for values in WORDS)))
MOST_THINGS = 4  # in a picture
OPEN, ABSENT = -1, -2

_OTHER_WORD = 0.4  # how often any word of an attribute is drawn, rather than its first
_LEFT_OPEN = 0.12  # how often an attribute is
_SOME_ONLY = 0.3  # how often a caption may leave things out

_VALUES = tuple(tuple(values) for values in WORDS)


class Pictures(NamedTuple):
    """Images u8[i, s, s, 3] and the things they show, i8[i, 4, 3]."""

    images: UInt8[np.ndarray, "i s s 3"]
    things: Int8[np.ndarray, "i 4 3"]


class Caption(NamedTuple):
    """A sentence, and what it says, i8[4, 3]."""

    text: str
    said: Int8[np.ndarray, "4 3"]


def draw(
    count: int, *, most: int, image_size: int, seed: int, processes: int | None = None
) -> Pictures:
    """Draw pictures at the scale of a 96-pixel image of the data set, whatever their size.

    Args:
        count: of pictures.
        most: things in one, 1..4.
        image_size: s, pixels.
        seed: another one shares no picture.
        processes: that draw (any value, same pictures); None: one per core.

    Returns:
        The pictures, a pure function of (count, most, image_size, seed).
    """
    tasks = ((seed, index, most, image_size) for index in range(count))
    # spawned: a fork of a process with threads of JAX may hang
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        drawn = pool.imap(_picture, tasks, chunksize=64)
        bar = tqdm(drawn, total=count, unit="picture", desc="draw", leave=False)
        images, things = zip(*bar, strict=True)
    return Pictures(np.stack(images), np.stack(things))


def _picture(task: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, index, most, image_size = task
    rng = np.random.default_rng([seed, index])
    count = 1 + int(rng.random() * most)
    chosen = [THINGS[int(rng.random() * len(THINGS))] for _ in range(count)]
    named = [(_VALUES[0][a], _VALUES[1][b], _VALUES[2][c]) for a, b, c in chosen]
    image, which = shapes.draw(rng, named, image_size=image_size, unit=1.0)
    things = np.full((MOST_THINGS, len(WORDS)), ABSENT, np.int8)
    # one that found no place, or is covered, is not there
    seen = [thing for position, thing in enumerate(chosen) if (which == position).any()]
    things[: len(seen)] = seen
    return image, things


def name(thing: Iterable[SupportsIndex]) -> str:
    """The words of a class for a thing: "striped red disc"."""
    return " ".join(names[k] for names, k in zip(_VALUES, thing, strict=True))


def describe(rng: np.random.Generator, things: Int8[np.ndarray, "4 3"]) -> Caption:
    """Draw a caption that is true of a picture.

    Args:
        rng: source of every draw.
        things: of the picture.

    Returns:
        The caption.

    Example:
        >>> disc = np.array([[1, 0, 0]] + [[ABSENT] * 3] * 3, np.int8)
        >>> describe(np.random.default_rng(3), disc).text
        'a portrait of a striped circle.'
    """
    present = things[things[:, 0] != ABSENT]
    count = len(present)
    if rng.random() < _SOME_ONLY:
        count = 1 + int(rng.random() * count)
    parts, said = [], np.full_like(things, ABSENT)
    for position, thing in enumerate(rng.permutation(present)[:count]):
        words, said[position] = _phrase(rng, thing)
        parts.append(words)
    return Caption(TEMPLATES[int(rng.random() * len(TEMPLATES))].format(_list(parts)), said)


def state(things: Int8[np.ndarray, "4 3"]) -> Caption:
    """The plainest caption: all things by the names of the classes, in the first template.

    Args:
        things: of the picture.

    Returns:
        The caption.
    """
    parts = [name(thing) for thing in things if thing[0] != ABSENT]
    return Caption(TEMPLATES[0].format(_list(parts)), things)


def _phrase(rng: np.random.Generator, thing: Iterable[SupportsIndex]) -> tuple[str, list[int]]:
    """Words for a thing, and the attributes that they name."""
    words, named = [], []
    for values, names, k in zip(WORDS, _VALUES, thing, strict=True):
        choice = values[names[k]]
        left_open = rng.random() < _LEFT_OPEN
        word = choice[int(rng.random() * len(choice)) if rng.random() < _OTHER_WORD else 0]
        if left_open:
            # a sentence needs a noun, no adjective
            word = NOUNS[int(rng.random() * len(NOUNS))] if values is WORDS[-1] else ""
        words.append(word)
        named.append(OPEN if left_open else int(k))
    return " ".join(filter(None, words)), named


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", a ".join(parts[:-1]) + " and a " + parts[-1]


def is_true(
    things: Int8[np.ndarray, "i 4 3"], said: Int8[np.ndarray, "j 4 3"]
) -> Bool[np.ndarray, "i j"]:
    """Which captions are true of which pictures.

    Args:
        things: of pictures.
        said: by captions.

    Returns:
        bool[i, j]: each thing that caption j speaks of is seen in picture i.
    """
    shown, spoken = things[:, None, :, None], said[None, :, None]  # [i, j, thing, mention, 3]
    agrees = ((shown == spoken) | (spoken == OPEN)) & (shown != ABSENT)
    silent = said[None, :, :, 0] == ABSENT
    return (agrees.all(-1).any(2) | silent).all(-1)
