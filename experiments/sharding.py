r"""What travels between devices in a training step, and what each of them holds: sharding.json.

    python -m experiments.sharding                              # 8, 32 and 256 virtual devices
    pip install libtpu                                          # the version that JAX asks for
    python -m experiments.sharding --topology v5e:2x4 v5e:8x8   # for TPUs, without having one

The step of PASCAL VOC 2012 at full size (ViT-B/16, 512 pixels), and that of a ViT-L/14 at 336
pixels, are compiled from shapes alone, nothing is computed. A row is a mesh: the collectives that
XLA put into the program of each device, with the axis of the mesh that they go along and the bytes
that each device brings in a step, and its memory: what is given and returned, and XLA's plan for
the rest. Virtual devices are CPUs: collectives are as they would be elsewhere, temporaries are not.
"""

import argparse
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from configs import voc12
from experiments.grid import table
from otseg_jax import build, sharding
from otseg_jax.data import regimes
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import TRAINABLE
from otseg_jax.settings import Settings
from otseg_jax.training import memory, optim
from otseg_jax.training.step import State, make_train_step

RESULT = Path(__file__).with_suffix(".json")
KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
COLLECTIVE = re.compile(rf"\s*(?:ROOT )?%?\S+ = (?P<result>.*?) (?P<kind>{KINDS})(?:-start)?\(")
COMPUTATION = re.compile(r"(?:ENTRY )?%?(\S+) \(.*\) -> .* \{$")
ARRAY = re.compile(r"\b(pred|[sufb]f?(\d+)\w*)\[([\d,]*)\]")
HEADERS = (
    "tower",
    "devices",
    "data × model",
    "batch",
    "along data",
    "along model",
    "held, GB",
    "own, GB",
)
SIZES = ("B/16@512", "L/14@336")
LARGE = {
    "patch_size": 14,
    "embed_dim": 768,
    "vision": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
    "text": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
}


class Collective(NamedTuple):
    """An exchange between devices."""

    kind: str
    axes: str  # of the mesh, that it goes along; "?" where it is none of their combinations
    entries: int  # that each device brings
    bytes: int
    looped: bool  # within a loop that runs more than once


def shaped(tree: Any, shardings: Any) -> Any:
    """Abstract arrays that lie as these shardings say, a tree or one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def arguments(options: Settings, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
    """The training step of a configuration, and its arguments as shapes; the CLIP is a random one.

    The batch is `options.train.batch_size` images over all devices.
    """
    sizes, data, batch = options.clip.random, options.data, options.train.batch_size
    vision = VisionConfig(
        image_size=data.crop,
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        **vars(sizes.vision),
    )

    def make() -> nnx.Module:
        return options.model.build(vision, dtype=options.dtype, rngs=nnx.Rngs(0))

    graphdef, trainable, frozen = nnx.split(nnx.eval_shape(make), TRAINABLE, ...)
    optimizer = optim.make_optimizer(options.train.learning_rate)
    vocabulary, outputs = VOCABULARIES[data.dataset], options.model.outputs()
    step = make_train_step(
        graphdef,
        optimizer,
        regimes.resolve(options.regime, num_classes=len(vocabulary), unseen=vocabulary.unseen),
        mesh=mesh,
        outputs=outputs,
        mean=data.mean,
        std=data.std,
        accumulate=options.train.accumulate,
        focal_weight=options.train.focal_weight,
        dice_weight=options.train.dice_weight,
    )
    whole, by_image = sharding.replicated(mesh), sharding.by_image(mesh)
    state = State(trainable, jax.eval_shape(optimizer.init, trainable))
    text = (len(vocabulary), len(options.templates), sizes.embed_dim)
    images = {
        "image": jax.ShapeDtypeStruct((batch, data.crop, data.crop, 4), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch, data.crop, data.crop), jnp.int16),
    }
    return step, (
        shaped(state, whole),
        shaped(frozen, sharding.of_tower(mesh, frozen, heads=vision.heads)),
        jax.ShapeDtypeStruct(text, jnp.float32, sharding=whole),
        shaped(images, by_image),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
    )


def collectives(program: str, mesh: Mesh) -> list[Collective]:
    """The exchanges of a compiled program, its text; a loop that XLA knows to run once is none."""
    found, looped = [], _looped(program)
    for name, line in _lines(program):
        if (match := COLLECTIVE.match(line)) is None:
            continue
        arrays = [
            (math.prod(map(int, filter(None, shape.split(",")))), int(bits or 8))
            for _, bits, shape in ARRAY.findall(match["result"])
        ]
        entries = sum(count for count, _ in arrays)
        size = sum(count * bits // 8 for count, bits in arrays)
        axes = _axes(line, mesh)
        found.append(Collective(match["kind"], axes, entries, size, name in looped))
    return found


def _lines(program: str) -> Iterator[tuple[str, str]]:
    """Every line with the name of its computation."""
    name = ""
    for line in program.splitlines():
        if match := COMPUTATION.match(line):
            name = match[1]
        yield name, line


def _looped(program: str) -> set[str]:
    """Computations that run within a loop."""
    called: dict[str, set[str]] = {}
    inside = set[str]()
    for name, line in _lines(program):
        # of the last list, the names of the branches of a conditional
        uses = re.findall(r"(?:calls|to_apply|body|condition|computation)=%?([\w.-]+)", line)
        for listed in re.findall(r"(?:branch_computations|called_computations)=\{(.*?)\}", line):
            uses += re.findall(r"%?([\w.-]+)", listed)
        called.setdefault(name, set()).update(uses)
        if " while(" in line and '"known_trip_count":{"n":"1"}' not in line:
            inside.update(re.findall(r"(?:body|condition)=%?([\w.-]+)", line))
    rest = [*inside]
    while rest:
        new = called.get(rest.pop(), set()) - inside
        inside |= new
        rest += new
    return inside


def _axes(line: str, mesh: Mesh) -> str:
    """Along which axes of the mesh a collective goes."""
    among = _groups(line, mesh.size)
    grid = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    names = list(mesh.shape)
    for chosen in (["data"], ["model"], names):
        last = [names.index(name) for name in chosen]
        moved = np.moveaxis(grid, last, range(-len(last), 0))
        groups = moved.reshape(-1, math.prod(mesh.shape[name] for name in chosen))
        if among == {frozenset(group) for group in groups.tolist()}:
            return "+".join(chosen)
    return "?"


def _groups(line: str, devices: int) -> set[frozenset[int]]:
    """Which devices exchange with which: XLA has three ways to write it."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in re.findall(r"\d+", text)]

    everyone = np.arange(devices)
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        axes = re.findall(r"'(\w+)'=(\d+)", match[1])
        names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
        last = [names.index(name) for name in re.findall(r"'(\w+)'", match[2])]
        if "device_ids" in match[1] or ":(" in match[2]:
            raise ValueError(f"replica groups that this script cannot read: {match[0]}")
        moved = np.moveaxis(everyone.reshape(sizes), last, range(-len(last), 0))
        groups = moved.reshape(-1, math.prod(sizes[i] for i in last)).tolist()
    elif match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        grid = everyone.reshape(numbers(match[2]))
        grid = grid.transpose(numbers(match[3])) if match[3] else grid
        groups = grid.reshape(numbers(match[1])).tolist()
    elif match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line):
        groups = [numbers(group) for group in re.findall(r"\{(.*?)\}", match[1])]
    else:
        raise ValueError(f"a collective without replica groups: {line.strip()}")
    return {frozenset(group) for group in groups or [everyone.tolist()]}


def inspect(options: Settings, mesh: Mesh) -> dict[str, Any]:
    """What one device exchanges and holds in a step of these settings."""
    step, given = arguments(options, mesh)
    with jax.set_mesh(mesh):
        compiled = step.lower(*given).compile()
    held, own = memory.needed(compiled)
    found = collectives(compiled.as_text(), mesh)
    return {
        "mesh": dict(mesh.shape),
        "batch": options.train.batch_size,
        "trainable": sum(x.size for x in jax.tree.leaves(given[0].trainable)),
        "frozen": sum(x.size for x in jax.tree.leaves(given[1])),
        "collectives": [{**one._asdict(), "times": times} for one, times in Counter(found).items()],
        "held_bytes": held,
        "own_bytes": own,
    }


def configuration(size: str) -> Settings:
    """PASCAL VOC 2012, inductive: "B/16@512" is its own, "L/14@336" a larger tower."""
    config = voc12.get_config("inductive")
    config.clip.source = "random"
    if size == "L/14@336":
        with config.unlocked():
            config.clip.random.update(LARGE)
        config.data.crop, config.eval.stride = 336, 280
    return build.settings_of(config)


def devices_of(topology: str) -> list[jax.Device]:
    """Devices that programs are compiled for: "8" virtual ones, or those of a slice of TPUs."""
    if topology.isdecimal():
        return jax.devices("cpu")[: int(topology)]
    from jax.experimental import topologies

    # what libtpu would ask the machine for that it runs on
    given = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in (given | {"TPU_ACCELERATOR_TYPE": "v5litepod-8"}).items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(topology, platform="tpu").devices)


def shown(row: Mapping[str, Any]) -> list[str]:
    """A row's cells of the table."""
    cells = []
    for axis in ("data", "model"):
        along = [one for one in row["collectives"] if axis in one["axes"].split("+")]
        kinds = Counter[str]()
        for one in along:
            kinds[one["kind"] + (" in a loop" if one["looped"] else "")] += one["times"]
        megabytes = sum(one["bytes"] * one["times"] for one in along) / 1e6
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        cells.append(f"{told}: {megabytes:.1f} MB" if along else "-")
    held, own = (f"{row[name] / 1e9:.2f}" for name in ("held_bytes", "own_bytes"))
    mesh = f"{row['mesh']['data']} × {row['mesh']['model']}"
    return [row["size"], row["on"], mesh, str(row["batch"]), *cells, held, own]


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", nargs="*", default=["8", "32", "256"])
    parser.add_argument("--size", nargs="*", choices=SIZES, default=[*SIZES])
    parser.add_argument("--model", type=int, nargs="*", default=[1, 2])
    asked = parser.parse_args()
    virtual = [int(name) for name in asked.topology if name.isdecimal()]
    jax.config.update("jax_num_cpu_devices", max(virtual, default=1))
    jax.config.update("jax_enable_compilation_cache", False)
    record = json.loads(RESULT.read_text()) if RESULT.is_file() else {"rows": []}
    for topology, size, model in product(asked.topology, asked.size, asked.model):
        mesh = sharding.make_mesh(model=model, devices=devices_of(topology))
        batch = max(16, mesh.shape["data"])
        options = configuration(size)
        options = replace(options, train=replace(options.train, batch_size=batch))
        kind = mesh.devices.flat[0].device_kind
        on = "virtual" if topology.isdecimal() else f"{topology} ({kind})"
        key = {"size": size, "on": on, "mesh": dict(mesh.shape)}
        row = {**key, **inspect(options, mesh)}
        record["rows"] = [r for r in record["rows"] if not key.items() <= r.items()] + [row]
        record["jax"] = jax.__version__
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(" | ".join(shown(row)), flush=True)
    print(table([shown(row) for row in record["rows"]], *HEADERS))


if __name__ == "__main__":
    main()
