"""Where arrays live: one mesh of devices with the axes `data` and `model`.

Batches are split over `data`. What is trained is small and lies whole on every device. The frozen
tower is large and never updated: its blocks can be split over `model`, a share of the heads and of
the hidden channels to each device, which then sum twice a block what leaves it (Megatron-LM,
arXiv 1909.08053). XLA puts the sums in; `own_rows` keeps it from gathering images. `jax.set_mesh`
has the mesh in place where a step or a prediction is called.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# leaves of a block by what they are split along: what they make, or what they take
MAKES = re.compile(r"blocks/\d+/(attention/(query|key|value)|mlp/up)/(kernel|bias)")
TAKES = re.compile(r"blocks/\d+/(attention/out|mlp/down)/kernel")


def make_mesh(
    *, data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arrange devices in a grid with the axes ("data", "model").

    Args:
        data: devices that share a batch; -1 takes all that `model` leaves.
        model: devices that share one copy of the frozen weights; ≥ 1.
        devices: those to use; None for all.

    Raises:
        ValueError: the grid does not use every device exactly once.

    Example:
        >>> make_mesh().axis_names
        ('data', 'model')
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if model < 1 or count % model or (data != -1 and data * model != count):
        raise ValueError(
            f"mesh.data={data} × mesh.model={model} does not use {count} device(s) exactly once: "
            f"set --config.mesh.model to a divisor of {count} and --config.mesh.data=-1"
        )
    # Else one copy of the weights would span processes.
    if jax.process_count() > 1 and jax.local_device_count() % model:
        raise ValueError(
            f"mesh.model={model} must divide the {jax.local_device_count()} devices of a process"
        )
    # Auto: XLA places what is not annotated. With Explicit, JAX refuses what does not say where its
    # result lies: patches cut from images, prompts and words beside them, dropout, look-ups,
    # carries of loops, gradients of kernels; along `model`, products that sum over channels.
    return jax.make_mesh(
        (count // model, model),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def by_image(mesh: Mesh) -> NamedSharding:
    """First axis (images) split over `data`."""
    return NamedSharding(mesh, P("data"))


def of_tower(mesh: Mesh, frozen: Any, *, heads: int) -> Any:
    """Of every weight of a tower, arrays or abstract: its blocks are split over `model`.

    Raises:
        ValueError: devices that cannot share its heads equally.
    """
    parts = mesh.shape["model"]
    if heads % parts:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ValueError(
            f"--config.mesh.model={parts} does not divide the tower's {heads} attention heads: "
            f"choose one of {fitting}"
        )

    def of_weight(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in ((MAKES, leaf.ndim - 1), (TAKES, 0)):
            if parts > 1 and pattern.search(name) and leaf.shape[axis] % parts == 0:
                return NamedSharding(mesh, P(*[None] * axis, "model"))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of_weight, frozen)


def several_devices() -> bool:
    """Whether the mesh in place has more than one device."""
    return jax.sharding.get_abstract_mesh().size > 1


def own_rows(function: Callable[..., Any], *arrays: jax.Array, heads: int | None = None) -> Any:
    """function(*arrays), which has images along its arrays' first axis, of each device's own.

    A loop over images, or one that waits for the last of them, would make XLA gather them. Outside
    of `jax.set_mesh`, where nothing is split, it is the function itself.

    Args:
        heads: axis that is split over `model`, as no element needs another along it either.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = dict(mesh.shape) if not mesh.empty else {}
    axes = {0: "data"} | ({} if heads is None else {heads: "model"})
    axes = {i: name for i, name in axes.items() if size.get(name, 1) > 1}
    if not axes or any(arrays[0].shape[i] % size[name] for i, name in axes.items()):
        return function(*arrays)
    spec = P(*(axes.get(i) for i in range(max(axes) + 1)))
    return jax.shard_map(
        function, in_specs=spec, out_specs=spec, axis_names={*axes.values()}, check_vma=False
    )(*arrays)
