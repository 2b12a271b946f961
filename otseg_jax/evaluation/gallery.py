"""The photos of an evaluation that are worth looking at: the best, the median and the worst.

They are ordered by the share of their scored pixels that are right, and kept small. Which is the
median is known only in the end: it is looked for among photos spread over the split.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from PIL import Image

from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation.figures import Image3, LabelMap

EACH = 3  # photos of each kind
SPREAD = 24  # photos among which the median is looked for
SIDE = 480  # pixels, the most of a kept photo


@dataclass(frozen=True, eq=False)
class Shot:
    """A photo that was kept."""

    name: str
    right: float  # share of its scored pixels
    photo: Image3
    truth: LabelMap
    prediction: LabelMap


class _Entry(NamedTuple):
    right: float
    number: int  # that no two shots are compared
    shot: Shot


class Gallery:
    """The photos that this process looked at."""

    def __init__(self, total: int) -> None:
        """Begin with no photo, of so many."""
        self._every = max(1, -(-total // SPREAD))
        self._best: list[_Entry] = []
        self._worst: list[_Entry] = []  # by what is wrong
        self._spread: list[_Entry] = []
        self._shares: list[float] = []

    def see(
        self, number: int, example: Mapping[str, Any], prediction: Int32[np.ndarray, "H W"]
    ) -> None:
        """Look at a photo, whose scores do not matter where nothing is scored."""
        truth = example["label"]
        if not (scored := np.count_nonzero(truth != IGNORE)):
            return
        right = np.count_nonzero(truth == prediction) / scored
        self._shares.append(right)
        best = len(self._best) < EACH or right > self._best[0].right
        worst = len(self._worst) < EACH or -right > self._worst[0].right
        spread = number % self._every == 0
        if not (best or worst or spread):
            return
        shot = Shot(example["name"], right, *_small(example["image"], truth, prediction))
        for wanted, entries, value in ((best, self._best, right), (worst, self._worst, -right)):
            if wanted:
                heapq.heappush(entries, _Entry(value, -number, shot))
                if len(entries) > EACH:
                    heapq.heappop(entries)
        if spread:
            self._spread.append(_Entry(right, number, shot))

    def chosen(self) -> dict[str, list[Shot]]:
        """Photos of each kind, none of them twice."""
        if not self._shares:
            return {}
        middle = float(np.median(self._shares))
        near = sorted(self._spread, key=lambda entry: (abs(entry.right - middle), entry.number))
        kinds = {
            "best": sorted(self._best, reverse=True),
            "worst": sorted(self._worst, reverse=True),
            "median": near,
        }
        taken: set[str] = set()
        found = {}
        for kind, entries in kinds.items():
            shots = [entry.shot for entry in entries if entry.shot.name not in taken][:EACH]
            taken |= {shot.name for shot in shots}
            found[kind] = shots
        return {kind: found[kind] for kind in ("best", "median", "worst") if found[kind]}


def _small(
    image: Image3, truth: LabelMap, prediction: LabelMap
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photo and its labels at most `SIDE` pixels wide and high."""
    height, width = image.shape[:2]
    share = min(1.0, SIDE / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    photo = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    places = [np.arange(new) * old // new for new, old in zip(size, (height, width), strict=True)]
    return photo, truth[np.ix_(*places)], prediction[np.ix_(*places)]
