"""What a device can do at best, by its maker's data sheet (dense, not sparse).

Fractions of these figures compare a run with the device that it runs on. A device that is not in
the table has none: its kind is what JAX says in `device.device_kind`.
"""

from types import MappingProxyType
from typing import NamedTuple

import jax


class Peak(NamedTuple):
    """Of one device as JAX counts them: of a TPU v2 or v3 a core, else a chip."""

    bfloat16: float  # multiply-adds of such factors, two operations each; operations a second
    tensorfloat32: float  # as above
    float32: float  # as above
    bandwidth: float  # of its memory, bytes a second
    memory: float  # bytes

    def rate(self, dtype: str) -> float:
        """Operations a second of products in this `dtype`, one of the fields' names."""
        return float(getattr(self, dtype))


def _tpu(bfloat16: float, bandwidth: float, memory: float) -> Peak:
    # six products of bfloat16 parts make one of float32; TF32 is not known there
    return Peak(bfloat16, bfloat16 / 6, bfloat16 / 6, bandwidth, memory)


PEAKS = MappingProxyType(
    {
        "Tesla T4": Peak(8.1e12, 8.1e12, 8.1e12, 0.32e12, 16e9),  # no bfloat16 of its own
        "NVIDIA L4": Peak(121e12, 60e12, 30.3e12, 0.3e12, 24e9),
        "NVIDIA A100-SXM4-40GB": Peak(312e12, 156e12, 19.5e12, 1.555e12, 40e9),
        "NVIDIA A100-SXM4-80GB": Peak(312e12, 156e12, 19.5e12, 2.039e12, 80e9),
        "NVIDIA H100 80GB HBM3": Peak(989e12, 495e12, 67e12, 3.35e12, 80e9),
        "NVIDIA H200": Peak(989e12, 495e12, 67e12, 4.8e12, 141e9),
        "TPU v2": _tpu(22.5e12, 0.35e12, 8e9),
        "TPU v3": _tpu(61.5e12, 0.45e12, 16e9),
        "TPU v4": _tpu(275e12, 1.228e12, 32e9),
        "TPU v5 lite": _tpu(197e12, 0.819e12, 16e9),  # v5e
        "TPU v5": _tpu(459e12, 2.765e12, 95e9),  # v5p
        "TPU v6 lite": _tpu(918e12, 1.64e12, 32e9),  # v6e
    }
)


def peak(device: jax.Device) -> Peak | None:
    """Of this device; None where the table has no such kind."""
    return PEAKS.get(device.device_kind)
