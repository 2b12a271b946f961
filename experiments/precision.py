"""What bfloat16 changes of the figures of trained models: precision.json.

    python -m experiments.precision --jobs=2      # 5 minutes on two cores

The inductive OTSeg runs of `table1.py`, float32 as trained, are evaluated in both types. (Training
in another type would show chance more than the type: a bit that rounds otherwise sends a run
elsewhere, as another seed does.)
"""

import json
from dataclasses import replace
from pathlib import Path

from configs import shapes
from experiments import grid, table1
from otseg_jax import build

RESULT = Path(__file__).with_suffix(".json")
DTYPES = ("float32", "bfloat16")


def evaluate(workdir: Path, dtype: str) -> dict[str, dict[str, float]]:
    """Percent by output and measure, as `main --mode=eval --config.dtype=…` finds them."""
    options = build.settings_of(shapes.get_config())
    options = replace(options, init_from=str(workdir), dtype=dtype)
    return grid.evaluate(options, digits=3)


def main() -> None:
    """Train what was not trained yet, evaluate, print, write."""
    options = grid.parse(__doc__ or "")
    cells = {seed: table1.cell("inductive", "otseg", seed) for seed in options.seeds}
    grid.run(list(cells.values()), options.runs, jobs=options.jobs)
    found = {
        seed: {dtype: evaluate(cell.folder(options.runs), dtype) for dtype in DTYPES}
        for seed, cell in cells.items()
    }
    changes = {
        f"{seed} {method}": [
            round(by_dtype["bfloat16"][method][m] - by_dtype["float32"][method][m], 3)
            for m in grid.MEASURES
        ]
        for seed, by_dtype in found.items()
        for method in by_dtype["float32"]
    }
    largest = max(abs(change) for row in changes.values() for change in row)
    rows = [[name, *map("{:+.2f}".format, row)] for name, row in changes.items()]
    print(grid.table(rows, "bfloat16 less float32", *grid.HEADERS))
    print(f"largest change: {largest} points")
    record = {"seeds": found, "largest_change": largest}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
