"""What a run tells while it trains: `metrics.jsonl`, one JSON object a line, and its curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from otseg_jax.evaluation import figures

FILE = "metrics.jsonl"


class Log:
    """The log of a workdir; the first process writes, the others are silent."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / FILE

    def write(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Append a line."""
        if jax.process_index() == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # a killed run may have left a line without its end
            cut = self.path.is_file() and self.path.read_bytes()[-1:] not in (b"", b"\n")
            with self.path.open("a") as file:
                file.write("\n" * cut + json.dumps({"step": step, **numbers}) + "\n")

    def write_results(self, step: int, results: Mapping[str, Any]) -> None:
        """Append the means of an evaluation, as "output/measure"."""
        means = {
            f"{output}/{name}": value
            for output, summary in results.items()
            for name, value in summary.items()
            if name != "iou"
        }
        self.write(step, means)

    def draw(self) -> None:
        """Draw the curves beside it."""
        if jax.process_index() == 0:
            figures.curves(self.path.with_name("curves.png"), self.path)
