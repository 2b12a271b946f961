"""Compiled programs are kept between commands, so that the second start takes seconds.

JAX looks them up by program, options, versions and device; what it leaves out of the key, the
instructions of a CPU, is part of the folder's name here.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax
import jaxlib

from otseg_jax import paths

FOLDER = "~/.cache/otseg_jax/xla"  # where commands keep them
LARGEST = 2 * 2**30  # bytes; beyond it the programs that were not used for longest go
SLOW = 0.2  # seconds: what compiles faster is not worth a file


def keep(folder: str) -> None:
    """Keep compiled programs in a folder; "" keeps none.

    The environment variable JAX_COMPILATION_CACHE_DIR, JAX's own, comes first. A folder that cannot
    be written, or a damaged file in it, costs a warning of JAX's and the time to compile.
    """
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    place = paths.local(folder) / f"jaxlib-{jaxlib.__version__}-{_machine()}"
    for name, value in {
        "jax_compilation_cache_dir": str(place),
        "jax_compilation_cache_max_size": LARGEST,
        "jax_persistent_cache_min_compile_time_secs": SLOW,
    }.items():
        jax.config.update(name, value)


def _machine() -> str:
    about = [platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        about += sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:12]
