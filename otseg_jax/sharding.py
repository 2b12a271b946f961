"""Where arrays live: one mesh of devices with the axes `data` and `model`.

Batches are split over `data`. What is trained is small and lies whole on every device. The frozen
tower is large and never updated: its big matrices can be split over `model`, and XLA gathers or
multiplies them in place as it sees fit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

SPLIT_FROM = 2**16  # entries; a smaller weight costs less to keep everywhere than to gather


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
    # Auto: XLA places what is not annotated.
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


def by_weight(mesh: Mesh, leaf: Any) -> NamedSharding:
    """Longest axis that `model` divides, for a large weight; small ones are kept whole.

    `leaf` may be abstract (`jax.ShapeDtypeStruct`).
    """
    parts = mesh.shape["model"]
    axes = [i for i in np.argsort(leaf.shape)[::-1] if leaf.shape[i] % parts == 0]
    if parts == 1 or leaf.size < SPLIT_FROM or not axes:
        return replicated(mesh)
    spec: list[str | None] = [None] * leaf.ndim
    spec[axes[0]] = "model"
    return NamedSharding(mesh, P(*spec))
