"""What a person asks for: words, several of them for one class, and what is background.

A background is class 0, and the classes asked for follow; without, they begin at 0.
"""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from otseg_jax.data import templates
from otseg_jax.data.lists import some

# a list of words that nobody asks for, a number or "threshold": the least score
Background: TypeAlias = str | float | int | Iterable[str] | None

NAME = "background"


@dataclass(frozen=True)
class Asked:
    """Classes in the order of their labels, and the words of each."""

    classes: tuple[tuple[str, ...], ...]
    background: bool = False  # whether class 0 is one, whose words may be none
    threshold: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of each class its first word."""
        asked = self.classes[1:] if self.background else self.classes
        return (NAME,) * self.background + tuple(words[0] for words in asked)

    @property
    def words(self) -> tuple[str, ...]:
        """All words, in the order of the classes."""
        return tuple(word for words in self.classes for word in words)

    @property
    def class_of(self) -> np.ndarray:
        """Of each word, i32."""
        counts = [len(words) for words in self.classes]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def check_words(given: Any) -> tuple[tuple[str, ...], ...]:
    """The words of each class as a person gave them, blanks at their ends taken off.

    Raises:
        ValueError: no list, no word, words that are blank, repeated or not one text each.

    Example:
        >>> check_words(["sofa|couch", "cat "])
        (('sofa', 'couch'), ('cat',))
    """
    if isinstance(given, str):
        parts = [part.strip() for part in re.split("[,;\n]", given) if part.strip()]
        raise ValueError(f"words={given!r} is one text: give a list, {parts or ['cat']}")
    if isinstance(given, Set) or not isinstance(given, Iterable):
        raise ValueError(f"words is a {type(given).__name__}: give a list, ['cat', 'sky']")
    classes: list[tuple[str, ...]] = []
    first: dict[str, int] = {}
    problems = []
    for i, entry in enumerate(given):
        if not isinstance(entry, str):
            problems.append(f"words[{i}] is {entry!r}, wanted text")
            continue
        words = tuple(word.strip() for word in entry.split("|"))
        for word in words:
            if not word.strip(",;"):
                problems.append(f"words[{i}] is blank" if len(words) == 1 else _half(i, entry))
            elif word != word.strip(",;") or "\n" in word:
                problems.append(f"words[{i}] is {word!r}: give one name, without , ; at its ends")
            elif word in first:
                problems.append(f"words[{i}] repeats words[{first[word]}], {word!r}")
            first.setdefault(word, i)
        classes.append(words)
    problems += [] if classes or problems else ["words is empty: name at least one class"]
    if problems:
        raise ValueError(some(problems, mark="; "))
    return tuple(classes)


def _half(i: int, entry: str) -> str:
    return f"words[{i}] is {entry!r}: give words of one class as 'sofa|couch', none blank"


def with_background(
    classes: Sequence[tuple[str, ...]], background: Background, *, threshold: float
) -> Asked:
    """The classes asked for, and what competes with them or limits them.

    Args:
        background: as of `Segmenter.__call__`.
        threshold: the usual one.

    Raises:
        ValueError: another mode, a threshold outside of 0..1, or "background" twice.
    """
    if background is None:
        return Asked(tuple(classes))
    others: tuple[str, ...] = ()
    least = None
    if isinstance(background, bool) or not isinstance(background, str | float | int | Iterable):
        raise ValueError(_modes(background))
    if isinstance(background, str):
        if background not in ("words", "threshold"):
            raise ValueError(_modes(background))
        if background == "words":
            others = templates.BACKGROUND
        else:
            least = threshold
    elif isinstance(background, float | int):
        if not 0 <= background <= 1:
            raise ValueError(f"background={background}: wanted a least score of 0 to 1")
        least = float(background)
    else:
        try:
            others = tuple(word for words in check_words(background) for word in words)
        except ValueError as error:
            raise ValueError(f"background: {error}") from None
    known = {word.casefold() for words in classes for word in words}
    if NAME in known:
        raise ValueError(
            f"words hold {NAME!r}, and background={background!r} adds it: leave one of them out"
        )
    rest = tuple(word for word in others if word.casefold() not in known)
    # without words of its own, class 0 is what no word is sure enough of
    return Asked((rest, *classes), True, least)


def _modes(background: object) -> str:
    return (
        f"background={background!r}: wanted 'words' (things nobody asked for compete), a list of "
        "such words, 'threshold' or a number of 0 to 1 (the least score), or None"
    )
