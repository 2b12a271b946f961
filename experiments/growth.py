r"""How time and memory grow with classes, resolution, prompts and batch: growth.json and .png.

    python -m experiments.growth                 # about 9 minutes on two cores
    python -m experiments.growth --only=classes --rounds=1

ViT-B/16, 20 classes of 6 prompts, 512 pixels and one image a batch; one of the four varies. Timed
are the forward pass, from pixels to both logit maps, and a training step, float32. Memory is XLA's
plan for one device: what a function is given, what it returns, and its temporaries.

What explains the curves is fitted and drawn with them: classes, prompts and batch add a constant
each, and T tokens of the tower cost a·T + b·T² beside it (products with weights, and attention).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from tqdm import tqdm

from experiments.benchmark_model import VISION
from experiments.cost import machine
from experiments.grid import table
from otseg_jax import sharding
from otseg_jax.data import regimes
from otseg_jax.models.otseg import TRAINABLE, OTSegConfig
from otseg_jax.training import memory, optim
from otseg_jax.training.step import State, make_train_step

RESULT = Path(__file__).with_suffix(".json")
WORK = ("forward", "step")


class Size(NamedTuple):
    """What is run."""

    classes: int = 20
    prompts: int = 6  # of a class
    side: int = 512  # of an image, pixels
    batch: int = 1


VALUES = {
    "classes": (20, 171, 400, 847),
    "side": (224, 336, 512, 1024),
    "prompts": (1, 6, 16),
    "batch": (1, 2, 4),
}


def compiled(size: Size, work: str) -> tuple[Any, Callable[[], Any]]:
    """The compiled function, and one run of it, which waits for its result."""
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (size.batch, size.side, size.side, 3))
    text = jax.random.normal(keys[1], (size.classes, 1, VISION.embed_dim))
    # a class's prompts lie close together, as CLIP's
    text = text + 0.3 * jax.random.normal(keys[2], (size.classes, size.prompts, VISION.embed_dim))
    config = OTSegConfig(prompt_tokens=10)

    def make() -> nnx.Module:
        return config.build(replace(VISION, image_size=size.side), rngs=nnx.Rngs(0))

    graphdef, *_ = nnx.split(nnx.eval_shape(make), TRAINABLE, ...)
    trainable, frozen = nnx.split(make(), TRAINABLE, ...)[1:]  # to compile it takes longer
    if work == "forward":
        run = jax.jit(lambda t, f, image, text: nnx.merge(graphdef, t, f)(image, text))
        function = run.lower(trainable, frozen, image, text).compile()
        return function, lambda: jax.block_until_ready(function(trainable, frozen, image, text))
    optimizer, mesh = optim.make_optimizer(2e-4), sharding.make_mesh(devices=jax.devices()[:1])
    step = make_train_step(
        graphdef,
        optimizer,
        regimes.resolve("supervised", num_classes=size.classes, unseen=()),
        mesh=mesh,
        outputs=config.outputs(),
        mean=(0.0,) * 3,  # images are normalised
        std=(1.0,) * 3,
    )
    state = [State(trainable, jax.jit(optimizer.init)(trainable))]
    rng, cells = np.random.default_rng(0), size.side // 32
    label = rng.integers(0, size.classes, (size.batch, cells, cells)).repeat(32, 1).repeat(32, 2)
    batch = {"image": image, "label": jnp.asarray(label, jnp.int16)}
    with jax.set_mesh(mesh):
        function = step.lower(state[0], frozen, text, batch, np.int32(0)).compile()

    def train() -> Any:
        state[0], scalars = function(state[0], frozen, text, batch, np.int32(0))
        return jax.block_until_ready(scalars)

    return function, train


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Seconds (median) and GB of both functions."""
    found: dict[str, Any] = {"size": size._asdict()}
    for work in WORK:
        function, run = compiled(size, work)
        run()
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        gb = sum(memory.needed(function)) / 1e9
        found[work] = {"seconds": round(float(np.median(seconds)), 4), "gb": round(gb, 3)}
        jax.clear_caches()
    return found


def terms(what: str, values: np.ndarray) -> np.ndarray:
    """What a curve is a sum of, a column each."""
    if what != "side":
        return np.stack([np.ones_like(values), values], 1)
    tokens = (values / VISION.patch_size) ** 2 + 11  # the class's and 10 prompts besides
    return np.stack([np.ones_like(values), tokens, tokens**2], 1)


def fit(what: str, rows: list[dict[str, Any]], work: str, measure: str) -> dict[str, Any]:
    """Weights ≥ 0 of the terms, and the largest relative error of what they explain."""
    from scipy.optimize import nnls

    values = np.array([row["size"][what] for row in rows], float)
    found = np.array([row[work][measure] for row in rows])
    columns = terms(what, values)
    weights, _ = nnls(columns / found[:, None], np.ones_like(found))
    error = float(np.abs(columns @ weights / found - 1).max())
    return {"weights": weights.tolist(), "relative_error": round(error, 3)}


def draw(record: dict[str, Any], path: Path) -> None:
    """A panel for each of what varies: dots are measured, lines are explained."""
    figure, axes = plt.subplots(2, len(record["curves"]), figsize=(14, 6), layout="constrained")
    for column, (what, curve) in zip(axes.T, record["curves"].items(), strict=True):
        values = np.array([row["size"][what] for row in curve["rows"]], float)
        dense = np.linspace(values[0], values[-1], 100)
        for axis, (quantity, unit) in zip(column, (("seconds", "s"), ("gb", "GB")), strict=True):
            for colour, work in zip(("tab:blue", "tab:orange"), WORK, strict=True):
                found = [row[work][quantity] for row in curve["rows"]]
                axis.plot(values, found, "o", color=colour, label=work)
                weights = curve["explained"][work][quantity]["weights"]
                axis.plot(dense, terms(what, dense) @ weights, color=colour, linewidth=1)
            axis.set(xlabel=what, ylabel=unit, ylim=(0, None))
    axes[0, 0].legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, explain, print, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=VALUES, help="vary this one, and write nothing")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "curves": {}}
    chosen = [options.only] if options.only else list(VALUES)
    known: dict[Size, dict[str, Any]] = {}  # the curves meet in one point
    with tqdm(total=sum(len(VALUES[what]) for what in chosen)) as progress:
        for what in chosen:
            rows = []
            for value in VALUES[what]:
                size = Size()._replace(**{what: value})
                if size not in known:
                    known[size] = measure(size, options.rounds)
                rows.append(known[size])
                progress.update()
            explained = {
                work: {quantity: fit(what, rows, work, quantity) for quantity in ("seconds", "gb")}
                for work in WORK
            }
            record["curves"][what] = {"rows": rows, "explained": explained}
    cells = [
        [what, str(row["size"][what])]
        + [f"{row[work]['seconds']:.2f} ({row[work]['gb']:.2f})" for work in WORK]
        for what, curve in record["curves"].items()
        for row in curve["rows"]
    ]
    print(table(cells, "varied", "value", *(f"{work}, s (GB)" for work in WORK)))
    if not options.only:
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        draw(record, RESULT.with_suffix(".png"))


if __name__ == "__main__":
    main()
