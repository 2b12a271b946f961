"""What a run tells while it trains: `metrics.jsonl`, one JSON object a line, its curves, and more.

The more are the places of `metric_writers`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from otseg_jax import paths
from otseg_jax.evaluation import charts
from otseg_jax.training.metric_writers import VALIDATION, Writers

LOGGER = logging.getLogger(__name__)


class Log:
    """The log of a workdir; the first process writes, the others are silent."""

    def __init__(self, workdir: Path, writers: Writers | None = None) -> None:
        self.path, self.writers = workdir / charts.LOG, writers or Writers()

    def write(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Append a line, of a step."""
        self._append(step, numbers, "train/")

    def _append(self, step: int, numbers: Mapping[str, float | None], group: str) -> None:
        if jax.process_index() == 0:
            with paths.writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # a killed run may have left a line without its end
                cut = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
                with self.path.open("a") as file:
                    file.write("\n" * cut + json.dumps({"step": step, **numbers}) + "\n")
            told = {group + name: x for name, x in numbers.items() if x is not None}
            self.writers.scalars(step, told)

    def write_results(self, step: int, results: Mapping[str, Any], *, main: str) -> None:
        """Append the means of an evaluation, as "output/measure"; warn where `main` looks wrong."""
        means = {
            f"{output}/{name}": value
            for output, summary in results.items()
            for name, value in summary.items()
            if name != "iou"
        }
        self._append(step, means, VALIDATION)
        seen, unseen = (results[main][f"miou_{half}"] for half in ("seen", "unseen"))
        if seen is not None and unseen is not None and unseen < 1.0 < 20.0 < seen:
            LOGGER.warning(
                "step %d: seen classes reach %.1f mIoU, unseen ones %.1f: the text embeddings may "
                "not fit the tower (--config.text.embeddings, --config.clip.source)",
                step,
                seen,
                unseen,
            )

    def write_picture(self, step: int, draw: Callable[[Path], object]) -> None:
        """Send predictions of an evaluation to the writers; `draw` makes the PNG."""
        if jax.process_index() == 0:
            self.writers.picture(step, f"{VALIDATION}predictions", draw)

    def write_batch(self, step: int, batch: Mapping[str, jax.Array]) -> Path:
        """Write the batch of a step, of all processes, to `batch_<step>.npz` beside it."""
        path = self.path.with_name(f"batch_{step}.npz")
        gather = partial(multihost_utils.process_allgather, tiled=True)
        whole = {name: gather(array) for name, array in batch.items()}
        if jax.process_index() == 0:
            with paths.writing(path), paths.atomic(path) as part, part.open("wb") as file:
                np.savez_compressed(file, **whole)
        return path

    def draw(self) -> None:
        """Draw the curves beside it."""
        if jax.process_index() == 0:
            with paths.writing(self.path.parent):
                charts.curves(self.path.with_name(charts.CURVES), self.path)
