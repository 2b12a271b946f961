"""What JAX computes on, how fast, and whether it overlooks an accelerator that is there."""

import contextlib
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from otseg_jax.doctor.findings import Finding

GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v2 to 7x
LARGEST = 8192  # side of the matrices that are multiplied


class Hardware(NamedTuple):
    """Accelerators of the machine, whatever JAX sees; "" where there is none."""

    nvidia: str = ""
    tpu: str = ""


def hardware(system: Path = Path("/")) -> Hardware:
    """Ask the machine itself."""
    nvidia = next((f"/dev/{n}" for n in ("nvidia0", "dxg") if (system / "dev" / n).exists()), "")
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            nvidia = done.stdout.strip().replace("\n", "; ") or nvidia
    tpu = next((f"/dev/{found.name}" for found in sorted((system / "dev").glob("accel*"))), "")
    for vendor in (system / "sys/bus/pci/devices").glob("*/vendor"):
        with contextlib.suppress(OSError):
            kind = vendor.with_name("device").read_text().strip()
            if vendor.read_text().strip() == GOOGLE and kind in TPUS:
                tpu = f"PCI device {kind} of Google"
    return Hardware(nvidia, tpu)


def look(there: Hardware, *, seconds: float = 2.0) -> list[Finding]:
    """The devices that JAX sees, and products of matrices on the first of them."""
    with _warnings_of_jax() as said:
        try:
            devices = jax.devices()
        except RuntimeError as error:
            return [Finding("error", " ".join(str(error).split()), _start())]
    found = [Finding("warning", line) for line in said]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kinds = [f"{device.device_kind}{_memory(device)}" for device in devices]
    shown = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    about = f"{devices[0].platform}: {shown}; {cores} CPU cores{_host_memory()}"
    found.append(Finding("ok", about))
    found += overlooked(there, {device.platform for device in devices}, os.environ)
    try:
        return [*found, *multiplied(seconds / 2)]
    except RuntimeError as error:  # XLA's own type
        what = f"a product of matrices failed: {' '.join(str(error).split())[:300]}"
        return [*found, Finding("error", what, "nvidia-smi  # lists who holds the memory")]


def _start() -> str:
    """What lets JAX start where none of the devices that were asked for can be had."""
    if "JAX_PLATFORMS" in os.environ:
        return "unset JAX_PLATFORMS"
    # one process at a time has a TPU
    return "lsof -w /dev/accel* /dev/vfio/*  # lists who holds the device; end that first"


def overlooked(there: Hardware, seen: set[str], environ: Mapping[str, str]) -> list[Finding]:
    """The accelerators that are there and that JAX does not use, and why."""
    found, version = [], metadata.version("jax")
    wanted = (
        (there.nvidia, {"gpu", "cuda"}, _cuda_extra(), "CUDA_VISIBLE_DEVICES"),
        (there.tpu, {"tpu"}, "tpu", "TPU_VISIBLE_CHIPS"),
    )
    for name, platforms, extra, hidden_by in wanted:
        if not name or seen & platforms:
            continue
        what = f"JAX sees only {' and '.join(sorted(seen))}, and this machine has {name}"
        asked = environ.get("JAX_PLATFORMS", "")
        if asked and not platforms & {*asked.lower().split(",")}:
            mend = "unset JAX_PLATFORMS"
            found.append(Finding("warning", f"{what}: JAX_PLATFORMS={asked} is set", mend))
        elif environ.get(hidden_by, "unset") in ("", "-1"):
            what = f"{what}: {hidden_by}={environ[hidden_by]} hides it"
            found.append(Finding("warning", what, f"unset {hidden_by}"))
        else:
            mend = f'pip install --upgrade "jax[{extra}]=={version}"'
            found.append(Finding("warning", what, mend))
    return found


def _cuda_extra() -> str:
    """The extra of the installed jax that brings CUDA; of two the one for older drivers."""
    offered = metadata.metadata("jax").get_all("Provides-Extra") or []
    return next((extra for extra in ("cuda12", "cuda13") if extra in offered), "cuda")


def multiplied(seconds: float) -> list[Finding]:
    """Whether products are right, and how many operations a second they make."""
    found, speeds = [], dict[str, float]()
    ones = np.random.default_rng(0).integers(-1, 2, (2, 256, 256))  # exact in either type
    for dtype in (jnp.float32, jnp.bfloat16):
        name = jnp.dtype(dtype).name
        product = _multiply(jnp.asarray(ones[0], dtype), jnp.asarray(ones[1], dtype))
        if (np.asarray(product) != ones[0] @ ones[1]).any():
            mend = "try another machine, or another version of jax and of the driver"
            found.append(Finding("error", f"products in {name} are wrong on this device: {mend}"))
        side, speeds[name] = _speed(dtype, seconds)
        what = f"{name}: {speeds[name] / 1e9:,.0f} GFLOP/s in products of {side} x {side}"
        found.append(Finding("ok", what))
    if speeds["bfloat16"] < 0.9 * speeds["float32"]:
        what = "bfloat16 is slower than float32 here: stay with --config.dtype=float32, the default"
        found.append(Finding("note", what))
    return found


@jax.jit
def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    # as the models do: float32 means float32, and bfloat16 sums in it
    exact = jax.lax.Precision.HIGHEST
    return jnp.matmul(a, b, precision=exact, preferred_element_type=jnp.float32)


def _speed(dtype: DTypeLike, seconds: float) -> tuple[int, float]:
    """Side of the matrices, and operations a second."""
    side, took = 512, 0.0
    while took < 5e-3 and side < LARGEST:  # beyond what it takes to start one
        side *= 2
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
        took = min(_seconds(lambda: _multiply(a, b), 1) for _ in range(3))  # noqa: B023
    times = max(1, round(seconds / max(took, 1e-4)))
    return side, 2 * side**3 * times / _seconds(lambda: _multiply(a, b), times)


def _seconds(work: Callable[[], jax.Array], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        last = work()
    last.block_until_ready()
    return time.perf_counter() - started


def _memory(device: jax.Device) -> str:
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0)
    return f" ({free / 2**30:.1f} GiB for JAX)" if free else ""


def _host_memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return ""
    return f", {total / 2**30:.0f} GiB of memory"


@contextlib.contextmanager
def _warnings_of_jax() -> Iterator[list[str]]:
    """What JAX logs while it starts: a plugin that it leaves out, a driver that is too old."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split()))

    listener = Listener(logging.WARNING)
    logging.getLogger("jax").addHandler(listener)
    try:
        yield said
    finally:
        logging.getLogger("jax").removeHandler(listener)
