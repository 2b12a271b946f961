"""Whether a training step fits into the memory of its device, and what makes it fit."""

import ctypes
import logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered, Wrapped

from otseg_jax.settings import Train

GIB = 2**30

LOGGER = logging.getLogger(__name__)


def compile_step(step: Wrapped, given: tuple[Any, ...], options: Train, mesh: Mesh) -> Compiled:
    """Compile a training step; warn if it takes more than there is on a device of a mesh."""
    program = compile_and_trim(step.lower(*given))
    told = doubt(
        program,
        images=options.batch_size // mesh.shape["data"],
        accumulate=options.accumulate,
        available=limit(mesh.local_devices[0]),
    )
    if told:
        LOGGER.warning(told)
    return program


def limit(device: jax.Device) -> int:
    """Bytes that a device may take: its own; of a CPU the machine's, or what the container may."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit", 0)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = Path("/sys/fs/cgroup/memory.max")
    if allowed.exists() and (text := allowed.read_text().strip()).isdecimal():
        found = min(found, int(text))
    return found


def frugal(platform: str) -> dict[str, str]:
    """Options of the compiler for an order of work that holds little, where XLA's is another.

    On a CPU it orders for what could run side by side; the results are the same to the last bit.
    """
    # jax 0.10 is the oldest that was seen to know the option; an unknown one is an error
    if platform != "cpu" or jax.__version_info__ < (0, 10):
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


def compile_and_trim(lowered: Lowered) -> Compiled:
    """A program, compiled or from the cache, in a process that holds little beside it."""
    _give_back()
    program = lowered.compile()
    _give_back()
    return program


def _give_back() -> None:
    """Give what is free to the system: the C library would keep what tracing and compiling took."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # not musl
        libc.malloc_trim(0)


def needed(compiled: Compiled) -> tuple[int, int]:
    """Bytes of a compiled function on each device: what it is given and returns, and its own.

    Both are 0 where a backend does not tell.
    """
    found: Any = compiled.memory_analysis()
    _give_back()  # what the analysis took
    if found is None:
        return 0, 0
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held, found.temp_size_in_bytes


def doubt(compiled: Compiled, *, images: int, accumulate: int, available: int) -> str:
    """What to change where a training step does not fit, "" where it does.

    Args:
        images: of a batch on each device.
        accumulate: parts that the batch is worked through in now.
        available: bytes; 0: not known.
    """
    held, own = needed(compiled)
    if not available or held + own <= available:
        return ""
    parts = [n for n in range(accumulate + 1, images + 1) if images % n == 0]
    enough = [n for n in parts if held + own * accumulate / n <= available]
    told = (
        f"a training step takes {(held + own) / GIB:.1f} GiB on a device of {available / GIB:.1f}"
    )
    n = enough[0] if enough else images
    then = f"about {(held + own * accumulate / n) / GIB:.1f} GiB"
    if enough:
        return f"{told}: --config.train.accumulate={n} takes {then}, with the same gradient"
    return (
        f"{told}, and {then} one image at a time (--config.train.accumulate={n}): take that and a "
        "smaller --config.data.crop, or --config.model.remat=True"
    )
