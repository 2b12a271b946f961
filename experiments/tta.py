"""Whether test-time augmentation gains on the shapes world: tta.json.

    python -m experiments.tta

The shipped trained model and the packaged CLIP alone (naclip) on the validation split, as
`main --mode=eval` with `--config.eval.scales` and `--config.eval.flip` finds them.
"""

import json
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from configs import shapes
from configs.training_free import shapes as alone
from experiments import grid
from experiments.shapes_model import SHIPPED
from otseg_jax import build

RESULT = Path(__file__).with_suffix(".json")
VIEWS = {
    "one view": {},
    "flip": {"flip": True},
    "scales 0.75, 1, 1.25": {"scales": (0.75, 1.0, 1.25)},
    "scales 0.75, 1, 1.25, flip": {"scales": (0.75, 1.0, 1.25), "flip": True},
    "scales 1, 1.25, 1.5": {"scales": (1.0, 1.25, 1.5)},
    "scales 1, 1.25, 1.5, flip": {"scales": (1.0, 1.25, 1.5), "flip": True},
}


def main() -> None:
    """Run all views of both, print the table, write the result."""
    models = (
        replace(build.settings_of(shapes.get_config()), init_from=str(SHIPPED)),
        build.settings_of(alone.get_config("naclip")),
    )
    runs = [(options, name) for options in models for name in VIEWS]
    results: dict[str, dict[str, dict[str, float]]] = {}
    for options, name in tqdm(runs, unit="run", leave=False):
        looked = replace(options, eval=replace(options.eval, **VIEWS[name]))
        for method, figures in grid.evaluate(looked).items():
            results.setdefault(method, {})[name] = figures
    rows = [
        [method, name, *map(str, figures.values())]
        for method, found in results.items()
        for name, figures in found.items()
    ]
    print(grid.table(rows, "method", "views", "mIoU", *grid.HEADERS))
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
