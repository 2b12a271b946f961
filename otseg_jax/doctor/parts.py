"""The parts that are looked at, each in a process of its own.

A broken installation may end the process that imports it, a large model the memory: the rest is
looked at and told all the same. Nothing heavy is imported here.
"""

import os
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from otseg_jax import cli
from otseg_jax.doctor import versions
from otseg_jax.doctor.findings import Finding

ABOVE = "the commands above, first"


def devices() -> list[Finding]:
    """What JAX computes on."""
    from otseg_jax.doctor import devices

    return devices.look(devices.hardware())


def dataset(name: str, root: str, every: bool, contact_sheet: str) -> list[Finding]:
    """A data set on disk."""
    from otseg_jax.doctor import dataset

    return dataset.look(name, root, every=every, contact_sheet=contact_sheet)


def model(source: str) -> list[Finding]:
    """A model, trained or a CLIP alone."""
    from otseg_jax import compile_cache
    from otseg_jax.doctor import model

    compile_cache.keep(compile_cache.FOLDER)
    return model.look(source)


def apart(look: Callable[..., list[Finding]], *given: Any, told: bool) -> list[Finding]:
    """What one of these found, or the error that it ended with.

    Args:
        given: its arguments.
        told: errors were found before, of which this one's may be a consequence.
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_survive, look, given, told).result()
    except BrokenProcessPool:
        what = (
            f"looking at the {look.__name__} ended its process, as a crash inside a library does, "
            "or too little memory; what it said last stands in the output"
        )
        if flags := os.environ.get("XLA_FLAGS"):
            return [Finding("error", f"{what}. XLA_FLAGS={flags} is set", "unset XLA_FLAGS")]
        return [Finding("error", what, ABOVE if told else "")]


def _survive(look: Callable[..., list[Finding]], given: tuple, told: bool) -> list[Finding]:
    cli.quiet_libraries()
    try:
        return look(*given)
    except Exception as error:  # a broken installation raises any type
        said = " ".join(str(error).split())
        if isinstance(error, ValueError | OSError) and cli.is_ours(error):
            return [Finding("error", said)]
        traceback.print_exc()
        mend = ABOVE if told else versions.reinstall(error)
        return [Finding("error", f"{type(error).__name__}: {said}", mend)]
