"""The small trained model that the package ships, `otseg_jax/data/shapes_model`: shapes_model.json.

    python -m experiments.shapes_model

It is the first run of `table1.py`, inductive OTSeg at seed 0, as a model directory that leaves out
the packaged CLIP it was trained around. The figures are of the shipped files, read and evaluated as
anybody's.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

from configs import shapes
from experiments import grid, table1
from otseg_jax import build
from otseg_jax.checkpoints import pretrained
from otseg_jax.convert import read
from otseg_jax.weights import hub

SHIPPED = hub.find(hub.BUILT_IN, ()).with_name("shapes_model")
RESULT = Path(__file__).with_suffix(".json")


def write(workdir: Path) -> None:
    """Put the model of a finished run in place of the shipped one."""
    model = read.load(workdir).model
    # the name says where it can be made again, not in what folder it once was
    origin = replace(model.origin, name="experiments/shapes_model.py")
    shutil.rmtree(SHIPPED, ignore_errors=True)
    SHIPPED.mkdir()
    pretrained.write_into(SHIPPED, replace(model, origin=origin), clip_source=hub.BUILT_IN)


def evaluate() -> dict[str, dict[str, float]]:
    """Percent by output and measure, of the shipped files."""
    options = replace(build.settings_of(shapes.get_config()), init_from=str(SHIPPED))
    return grid.evaluate(options)


def main() -> None:
    """Train if that was not done, write, evaluate."""
    cell = table1.cell("inductive", "otseg", 0)
    grid.run([cell], grid.RUNS, jobs=1)
    write(cell.folder(grid.RUNS))
    files = sorted(SHIPPED.iterdir())
    result = {
        "command": ["otseg_jax.main", f"--config=configs/shapes.py:{cell.regime}", *cell.flags],
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "percent": evaluate(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
