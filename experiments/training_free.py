"""What a CLIP alone segments on the shapes world, nothing trained: training_free.json.

    python -m experiments.training_free

Every method that a tower of four blocks can run, as `configs/training_free/shapes.py` has it: the
validation split and the packaged CLIP. PAMR is tried on top of the default.
"""

import json
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from configs.training_free import shapes
from experiments import grid
from otseg_jax import build
from otseg_jax.models.training_free import EARLIER, METHODS

RESULT = Path(__file__).with_suffix(".json")


def evaluate(method: str, *, pamr: bool = False) -> dict[str, float]:
    """Percent by measure, as `main --mode=eval` finds them."""
    options = build.settings_of(shapes.get_config(method))
    options = replace(options, model=replace(options.model, pamr=pamr))
    (found,) = grid.evaluate(options).values()
    return found


def main() -> None:
    """Run all methods, print the table, write the result."""
    runs = [name for name in METHODS if name not in EARLIER]
    results = {name: evaluate(name) for name in tqdm(runs, unit="method", leave=False)}
    results["naclip + pamr"] = evaluate("naclip", pamr=True)
    rows = [[name, *map(str, row.values())] for name, row in results.items()]
    print(grid.table(rows, "method", "mIoU", *grid.HEADERS))
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
