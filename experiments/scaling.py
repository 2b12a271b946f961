r"""What the runs of the paper's table cost on devices that have a data sheet: scaling.json, .md.

    python -m experiments.scaling                                   # 15 minutes, two busy CPU cores
    python -m experiments.scaling --check                           # two; that of this machine only
    python -m experiments.scaling --only=coco_stuff --device="NVIDIA H100 80GB HBM3" --devices=8 \
        --price=3.0                                                 # nothing is written

A run's multiply-adds, bytes and elements are counted off its traced training step; nothing is
trained. The time of a step is a roofline, so a bound from below, made with these assumptions:

- A product takes the longer of its multiply-adds at the device's rate for its factors, and of
  reading its factors and writing its result once.
- Other equations come in fused chains of eight: one element in eight is read and one written.
- A device reaches half of its data sheet's operations, and four fifths of its bandwidth
  (--reached): large products do better, small ones worse.
- A batch is shared equally; gradients are summed while the next batch is placed, in no time.
- A converged transport plan costs as much as 20 of Sinkhorn's updates.

Input is what one CPU core reads and prepares (benchmark_input.json): a device needs as many cores
as keep it fed. Memory is XLA's plan for a CPU; sharding.json has the plan for a TPU, which is more.
The roofline is checked on the machine of benchmark_model.json: at the rate that its products had in
a forward pass of the tower, with caches and a chain of elements measured now, it must foretell the
steps that were measured there.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from configs import coco_stuff, pascal_context, voc12
from experiments import cost
from experiments.grid import table
from experiments.sharding import arguments
from otseg_jax import build, devices, sharding
from otseg_jax.models.clip import VisionTower
from otseg_jax.settings import Settings
from otseg_jax.training import memory

HERE = Path(__file__).parent
RESULT = Path(__file__).with_suffix(".json")
DATASETS = {"voc12": voc12, "pascal_context": pascal_context, "coco_stuff": coco_stuff}
REGIMES = ("inductive", "transductive", "supervised")
DECODERS = {"OTSeg": "mpsa", "ZegCLIP": "cross_attention"}
TYPES = ("bfloat16", "tensorfloat32", "float32")  # of factors
CHAIN = 8  # equations in a fused one
UPDATES = 20  # of Sinkhorn, that a converged plan costs as much as
# equations that move no data, or are part of what reads it
FREE = {
    *("broadcast_in_dim", "convert_element_type", "copy", "iota", "reshape", "rev", "slice"),
    *("squeeze", "stop_gradient", "transpose", "optimization_barrier", "name"),
}
BATCH = 16  # images, of the published runs
ABOUT = """\
Batches of 16 images in bfloat16. GMAC, GB moved: multiply-adds and bytes of a step, for each of its
images. GB held: on a device, whatever the batch, and for each image. By device: hours of the whole
run at best, and in brackets the CPU cores that prepare enough images for one of them. The
assumptions are in `scaling.py`; none of these devices was at hand."""
SETUPS = (
    ("Tesla T4", 1),
    ("NVIDIA L4", 1),
    ("NVIDIA A100-SXM4-80GB", 1),
    ("NVIDIA H100 80GB HBM3", 1),
    ("NVIDIA H100 80GB HBM3", 8),
    ("TPU v5 lite", 8),
    ("TPU v6 lite", 8),
)


class Work(NamedTuple):
    """What a step does for one image."""

    products: dict[tuple[str, int, int], int]  # how many of (factors' type, multiply-adds, bytes)
    elements: int  # that other equations make

    @property
    def multiply_adds(self) -> int:
        """Of all products."""
        return sum(times * count for (_, count, _), times in self.products.items())

    @property
    def bytes(self) -> int:
        """Read and written by products, and by chains of elements."""
        moved = sum(times * size for (_, _, size), times in self.products.items())
        return moved + self.elements * 2 * 4 // CHAIN


class Setup(NamedTuple):
    """Devices that a run is predicted for."""

    kind: str
    devices: int
    price: float  # of a device, an hour
    reached: tuple[float, float]  # of its operations and its bandwidth


class Machine(NamedTuple):
    """What a device was measured to do, or reaches of its data sheet."""

    rates: Mapping[str, float]  # multiply-adds a second by type of their factors
    bandwidth: float  # bytes a second
    elements: float  # of chains a second, where it is not the bandwidth that limits them


def settings(dataset: str, regime: str, method: str, dtype: str) -> Settings:
    """A run of the table as it is counted: one image, plans that cost a known number of updates."""
    config = DATASETS[dataset].get_config("inductive" if regime == "transductive" else regime)
    config.clip.source, config.dtype = "random", dtype
    config.model.decoder = DECODERS[method]
    config.model.sinkhorn, config.model.iterations = "unrolled", UPDATES
    config.train.batch_size = 1
    found = build.settings_of(config)
    steps = DATASETS[dataset].get_config(regime).train.steps
    return replace(found, regime=regime, train=replace(found.train, steps=steps))


def work(options: Settings) -> Work:
    """Count what a training step does."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, given = arguments(options, mesh)
    products, elements = Counter[tuple[str, int, int]](), 0
    with jax.set_mesh(mesh):
        program = step.trace(*given).jaxpr.jaxpr
    for equation, times, _ in cost.walk(program, {}, needed=True):
        if equation.primitive.name in cost.PRODUCTS:
            arrays: list[Any] = [x.aval for x in (*equation.invars, *equation.outvars)]
            size = sum(x.size * x.dtype.itemsize for x in arrays)
            products[_factors(equation), cost.multiply_adds(equation), size] += times
        elif equation.primitive.name not in FREE:
            made: list[Any] = [x.aval for x in equation.outvars]
            elements += times * sum(getattr(x, "size", 0) for x in made)
    return Work(dict(products), elements)


def _factors(equation: core.JaxprEqn) -> str:
    """The type that a product's factors have on an accelerator."""
    types: list[Any] = [x.aval for x in equation.invars]
    if all(x.dtype == jnp.bfloat16 for x in types):
        return "bfloat16"
    asked = str(equation.params["precision"])
    return "tensorfloat32" if "TF32" in asked.upper() or "Precision.HIGH," in asked else "float32"


def seconds(done: Work, machine: Machine, images: float) -> float:
    """The least time of a step of so many images on one device."""
    total = sum(
        times * max(count / machine.rates[kind], size / machine.bandwidth)
        for (kind, count, size), times in done.products.items()
    )
    made = max(done.elements / machine.elements, done.elements * 8 / CHAIN / machine.bandwidth)
    return images * (total + made)


def of_sheet(kind: str, reached: tuple[float, float]) -> Machine:
    """What a device reaches of its data sheet's operations and bandwidth."""
    peak = devices.PEAKS[kind]
    # of whose operations a multiply-add is two
    rates = {name: reached[0] * peak.rate(name) / 2 for name in TYPES}
    return Machine(rates, reached[1] * peak.bandwidth, float("inf"))


def measured(**case: Any) -> float:
    """Seconds that a case of benchmark_model.json took here, in float32 with one image."""
    rows = json.loads((HERE / "benchmark_model.json").read_text())["rows"]
    wanted = {**case, "batch": 1, "dtype": "float32"}
    (found,) = [row["ours"] for row in rows if row["case"] == wanted]
    return float(found["quartiles_s"][1])


def of_this(rounds: int = 200) -> Machine:
    """What this machine's products do in a forward pass of the tower, and its chains at best."""

    def best(function: Callable[..., Any], *given: jax.Array) -> float:
        compiled, found = jax.jit(function), float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*given))
            found = min(found, time.perf_counter() - start)
        return found

    tower, state = nnx.split(nnx.eval_shape(lambda: VisionTower(cost.VIT_B16, rngs=nnx.Rngs(0))))
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    counted = cost.products(lambda state, x: nnx.merge(tower, state).encode(x), state, image)
    rate = sum(one.multiply_adds for one in counted) / measured(sizes="tower", work="forward")
    few = jnp.ones((8, 2**18))  # 8 MB: between caches and memory, as the arrays of a step
    copied = best(lambda x: x + 1.0, few)

    def chain(x: jax.Array) -> jax.Array:
        return (jnp.exp(-jnp.abs(x)) * x + 0.5) * (1.0 - x) + x  # eight equations

    rates = dict.fromkeys(TYPES, rate)
    return Machine(rates, 2 * few.nbytes / copied, CHAIN * few.size / best(chain, few))


def memory_of(options: Settings) -> dict[str, int]:
    """Bytes on a device: whatever the batch, and for each image, by the plan for two."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step, given = arguments(replace(options, train=replace(options.train, batch_size=2)), mesh)
    with jax.set_mesh(mesh):
        held, own = memory.needed(step.lower(*given).compile())
    return {"held": held, "image": own // 2}


def images_per_core() -> float:
    """Training images a second that a CPU core reads and prepares."""
    found = json.loads((HERE / "benchmark_input.json").read_text())
    return float(found["images_per_second"][1] / found["machine"]["cores"])


def predicted(row: Mapping[str, Any], done: Work, setup: Setup) -> dict[str, Any]:
    """A run of the table on some devices."""
    step = seconds(done, of_sheet(setup.kind, setup.reached), row["batch"] / setup.devices)
    hours, rate = row["steps"] * step / 3600, row["batch"] / step / setup.devices
    operations = 2 * done.multiply_adds * row["batch"] / setup.devices
    needed = row["memory"]["held"] + row["memory"]["image"] * row["batch"] / setup.devices
    return {
        "device": setup.kind,
        "devices": setup.devices,
        "step_seconds": step,
        "hours": hours,
        "peak_fraction": operations / step / devices.PEAKS[setup.kind].bfloat16,
        "images_per_second": rate,  # of a device
        "cores": rate / images_per_core(),  # of a device
        "gigabytes": needed / 1e9,
        "fits": needed < devices.PEAKS[setup.kind].memory,
        "cost": hours * setup.devices * setup.price,
    }


def checked() -> dict[str, Any]:
    """The roofline of this machine against the steps that were measured on it."""
    machine, rows = of_this(), []
    for sizes, dataset in (("VOC", "voc12"), ("COCO", "coco_stuff")):
        took = measured(sizes=sizes, work="step")
        step = seconds(work(settings(dataset, "supervised", "OTSeg", "float32")), machine, 1)
        told = {"dataset": dataset, "measured": took, "predicted": step}
        rows.append({**told, "error": step / took - 1})
    return {"machine": cost.machine(), **machine._asdict(), "steps": rows}


def rows(only: str) -> list[tuple[dict[str, Any], Work]]:
    """The runs of the table, and what an image of each takes."""
    found = []
    for dataset, method in product([only] if only else DATASETS, DECODERS):
        kept = memory_of(settings(dataset, "supervised", method, "bfloat16"))
        for regime in REGIMES:
            options = settings(dataset, regime, method, "bfloat16")
            done = work(options)
            row = {
                "dataset": dataset,
                "method": method,
                "regime": regime,
                "steps": options.train.steps,
                "batch": BATCH,
                "multiply_adds": done.multiply_adds,  # of an image in a step, as what follows
                "bytes": done.bytes,
                "elements": done.elements,
                "memory": kept,  # bytes, of the regime that needs most
            }
            found.append((row, done))
    return found


def main() -> None:
    """Count, predict, check, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", choices=["", *DATASETS])
    parser.add_argument("--device", default="", choices=["", *devices.PEAKS], help="one kind only")
    parser.add_argument("--devices", type=int, default=1, choices=(1, 2, 4, 8, 16), help="of it")
    parser.add_argument("--price", type=float, default=0.0, help="of a device, an hour")
    parser.add_argument("--check", action="store_true", help="measure and check this machine anew")
    parser.add_argument("--reached", type=float, nargs=2, default=(0.5, 0.8), help="of both peaks")
    asked = parser.parse_args()
    named = ((asked.device, asked.devices),) if asked.device else SETUPS
    setups = [Setup(*one, asked.price, tuple(asked.reached)) for one in named]
    if asked.check:
        record = json.loads(RESULT.read_text())
    else:
        record = {
            "jax": jax.__version__,
            "reached": asked.reached,
            "images_per_core": images_per_core(),
            "rows": [
                {**row, "runs": [predicted(row, done, setup) for setup in setups]}
                for row, done in rows(asked.only)
            ],
        }
    told = report(record)
    if asked.check or not (asked.only or asked.device):
        record["check"] = checked()
        told += "\n" + report_check(record["check"])
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        RESULT.with_suffix(".md").write_text(f"# What the table's runs take\n\n{told}")
    print(told)


def report(record: Mapping[str, Any]) -> str:
    """A table of the runs: hours on several devices, or all that is known of one."""
    names = ("dataset", "method", "regime")
    cells, headers = [], [*names, "steps", "GMAC", "GB moved", "GB held"]
    single = len(record["rows"][0]["runs"]) == 1
    for row in record["rows"]:
        size = [f"{row['multiply_adds'] / 1e9:.0f}", f"{row['bytes'] / 1e9:.1f}"]
        held, image = (f"{row['memory'][name] / 1e9:.2f}" for name in ("held", "image"))
        hours = [f"{run['hours']:.2f} ({run['cores']:.1f})" for run in row["runs"]]
        known = [*(row[name] for name in names), str(row["steps"]), *size]
        cells.append([*known, f"{held} + {image}", *hours])
        if single:
            (run,) = row["runs"]
            cells[-1] += [
                f"{1e3 * run['step_seconds']:.0f}",
                f"{run['peak_fraction']:.0%}",
                f"{run['gigabytes']:.1f}" + ("" if run["fits"] else " (!)"),
                f"{run['cost']:.2f}",
            ]
    headers += [f"{run['devices']} × {run['device']}" for run in record["rows"][0]["runs"]]
    headers += ["step, ms", "of peak", "GB a device", "cost"] if single else []
    return f"{ABOUT}\n\n{table(cells, *headers)}\n"


def report_check(check: Mapping[str, Any]) -> str:
    """What was predicted for this machine, and what was measured."""
    cells = [
        [
            row["dataset"],
            f"{row['predicted']:.2f}",
            f"{row['measured']:.2f}",
            f"{row['error']:+.0%}",
        ]
        for row in check["steps"]
    ]
    told = table(cells, "step of one image", "roofline, s", "measured, s", "difference")
    where = f"{check['machine']['cpu']}, {check['machine']['cores']} cores"
    return f"The same roofline of {where}, at the rate of its forward pass:\n\n{told}\n"


if __name__ == "__main__":
    main()
