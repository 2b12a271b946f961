"""What evaluation counts, photo by photo, in every process of a run, and what comes of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer

from otseg_jax import processes
from otseg_jax.data.classes import Vocabulary
from otseg_jax.evaluation import metrics
from otseg_jax.evaluation.confusions import Confusions
from otseg_jax.evaluation.counting import Counts, count
from otseg_jax.evaluation.labelling import label_map
from otseg_jax.evaluation.offsets import Sweep
from otseg_jax.evaluation.placed import placed
from otseg_jax.evaluation.words import Best


class Evaluation(NamedTuple):
    """What was counted on all photos."""

    confusions: Confusions
    sweeps: Mapping[str, Sweep]  # by method; none where no offset is swept
    unswept: str  # why not

    @property
    def results(self) -> dict[str, metrics.Summary]:
        """The figures of every method."""
        found = self.confusions
        return {
            method: metrics.summary(found.total(method), found.classes, found.unseen)
            for method in found.entries
        }


class Tally:
    """The counts of the photos that this process looks at."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        methods: Sequence[str],
        *,
        labelled: Bool[np.ndarray, " k"] | None = None,
        offset: float = 0.0,
    ) -> None:
        """Begin with no photo.

        Args:
            labelled: the classes that an offset is subtracted from, to be swept; None: not swept.
            offset: that of the evaluation.
        """
        self._vocabulary, self.labelled = vocabulary, labelled
        self._photos: list[str] = []
        self._entries = {method: [np.zeros((4, 0), np.int32)] for method in methods}
        self._sweeps: dict[str, Sweep] = {}
        if labelled is not None:
            self._sweeps = {method: Sweep(labelled, offset) for method in methods}

    def name(self, photo: str) -> None:
        """Begin the next photo, whichever process looks at it."""
        self._photos.append(photo)

    def count(
        self, canvas: Integer[np.ndarray, "h w"], best: Mapping[str, Best]
    ) -> dict[str, Counts]:
        """Begin to count a photo by every method.

        Args:
            canvas: its label, as of `counting.canvas`.
            best: of all classes, or where an offset is swept, of `labelled` and of the others.
        """
        thresholds = next((sweep.thresholds for sweep in self._sweeps.values()), None)  # all alike
        found = count(best, canvas, placed(thresholds), classes=len(self._vocabulary))
        for counts in found.values():
            counts.table.copy_to_host_async()
        return found

    def add(
        self, number: int, truth: Integer[np.ndarray, "H W"], counted: Mapping[str, Counts]
    ) -> None:
        """Take in a photo that was counted."""
        for method, counts in counted.items():
            confusion, swept = counts.confusion, counts.swept
            if confusion is None:
                label = label_map(counts.label, truth.shape)
                pairs = metrics.pairs(truth, label, len(self._vocabulary))
            else:
                pairs = metrics.occurring(confusion)
            photo = np.full((1, pairs.shape[1]), number, np.int32)
            self._entries[method].append(np.concatenate([photo, pairs]))
            if swept is not None:
                self._sweeps[method].add(swept)

    def finished(self, *, dataset: str, main: str, unswept: str = "") -> Evaluation:
        """All that all processes counted; arguments as of `Confusions` and `Evaluation`."""
        entries = {}
        for method, mine in self._entries.items():
            found = processes.joined(np.concatenate(mine, axis=1))
            entries[method] = found[:, np.argsort(found[0], kind="stable")]
        confusions = Confusions(
            dataset=dataset,
            classes=self._vocabulary.names,
            unseen=self._vocabulary.unseen,
            photos=tuple(self._photos),
            main=main,
            entries=entries,
        )
        sweeps = {method: sweep.joined() for method, sweep in self._sweeps.items()}
        return Evaluation(confusions, sweeps, unswept)
