"""What an offset does that is subtracted from the scores of classes trained with labels.

Such classes score too high, because training never showed the others. One pass over the photos
gives the figures at every offset: of each pixel it takes the best class trained with labels, the
best of the others, and how far the first leads.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from otseg_jax import processes
from otseg_jax.evaluation import metrics
from otseg_jax.evaluation.counting import Swept
from otseg_jax.evaluation.inference import Inference
from otseg_jax.models.training_free import TrainingFreeConfig

STEP = 0.02
ENDS = 1.0  # scores are in 0..1: from -1, where labelled classes always win, to 1, where they never


class Curve(NamedTuple):
    """Figures of a method in percent at rising offsets, NaN where undefined."""

    offsets: Float64[np.ndarray, " n"]
    seen: Float64[np.ndarray, " n"]
    unseen: Float64[np.ndarray, " n"]
    harmonic: Float64[np.ndarray, " n"]
    base: float  # the offset of the evaluation

    @property
    def best(self) -> int:
        """Where the harmonic mean is largest."""
        return int(np.nanargmax(self.harmonic))

    @property
    def front(self) -> list[tuple[float, float]]:
        """As `front`."""
        defined = ~np.isnan(self.harmonic)
        return front(np.stack([self.unseen, self.seen], axis=1)[defined].tolist())


class Sweep:
    """Counts at all offsets, photo by photo."""

    def __init__(self, labelled: Bool[np.ndarray, " k"], base: float) -> None:
        """Begin with no photo.

        Args:
            labelled: the classes that the offset is subtracted from.
            base: the offset of the evaluation, in [0, 1].
        """
        self.labelled, self.base = labelled, base
        steps = round(ENDS / STEP)
        regular = (np.arange(-steps, steps + 1) * STEP).round(6)
        self.offsets = np.unique([*regular, round(base, 6)])  # it may be a float32
        shape = len(labelled), len(self.offsets) + 1
        self._right, self._found = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._truth = np.zeros(len(labelled), np.int64)

    @property
    def thresholds(self) -> Float32[np.ndarray, " n"]:
        """By more than which a class must lead to win at each offset, ascending."""
        exact = self.offsets - self.base
        near = exact.astype(np.float32)
        # rounded down: no float32 lies between
        return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)

    def add(self, photo: Swept) -> None:
        """Count one more photo."""
        for counts, more in zip((self._right, self._found, self._truth), photo, strict=True):
            counts += more

    def joined(self) -> "Sweep":
        """That of the photos of all processes."""
        whole = Sweep(self.labelled, self.base)
        for name in ("_right", "_found", "_truth"):
            setattr(whole, name, processes.total(getattr(self, name)))
        return whole

    def curve(self, unseen: Sequence[int]) -> Curve:
        """The figures at every offset, by the classes that are unseen."""
        right, found = self._at_offsets(self._right), self._at_offsets(self._found)
        truth = np.broadcast_to(self._truth, right.shape)
        at = metrics.measures(metrics.Pixels(right, truth, found), unseen)
        return Curve(self.offsets, at["miou_seen"], at["miou_unseen"], at["hiou"], self.base)

    def _at_offsets(self, counts: np.ndarray) -> np.ndarray:
        """Pixels by offset and class, from those by class and bin."""
        fewer = counts.cumsum(axis=1)
        wins = np.where(self.labelled[:, None], fewer[:, -1:] - fewer, fewer)
        return wins[:, :-1].T


def reason_against(how: Inference, labelled: Bool[np.ndarray, " k"]) -> str:
    """Why there is no curve, "" if there is.

    Args:
        labelled: the classes that the offset is subtracted from.
    """
    if isinstance(how.method, TrainingFreeConfig):
        return "A CLIP alone was trained with labels of no class, so that none scores too high."
    if labelled.all():
        return "Every class was trained with labels: an offset of all of them changes nothing."
    if not labelled.any():
        return "None of these classes was trained with labels: there is nothing to subtract from."
    if how.threshold is not None or how.least_share:
        return "With eval.threshold or eval.least_share it is not the best class alone that counts."
    return ""


def front(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """mIoU(U) and mIoU(S) at the offsets that none beats in both, by rising mIoU(U).

    Args:
        curve: both, and whatever follows, at some offsets.
    """
    found: list[tuple[float, float]] = []
    for unseen, seen in sorted(((u, s) for u, s, *_ in curve), reverse=True):
        if not found or seen > found[-1][1]:
            found.append((unseen, seen))
    return found[::-1]


def area(front: Sequence[tuple[float, float]]) -> float:
    """Area in percent under mIoU(S) over mIoU(U) on a front.

    Source: Chao et al. 2016 (arXiv 1605.04253), there of accuracies.
    """
    unseen, seen = front[0]
    corners = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(front))
    return round((unseen * seen + corners) / 100.0, 2)
