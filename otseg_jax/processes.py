"""Several processes of one run, one per machine or accelerator: they start, go on and end together.

What one of them cannot do, none can: the others would wait for it in the next exchange of arrays.
"""

import functools
import signal
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int32, Int64, Integer

from otseg_jax.interrupt import StopOnSignal

Given = ParamSpec("Given")
Result = TypeVar("Result")


def start(coordinator: str = "", count: int = 0, index: int = -1) -> None:
    """Join the other processes of a run; a ValueError if it is alone, or they are not all told.

    Args:
        coordinator: HOST:PORT that process 0 can be reached at; "": as a TPU pod, SLURM, Open MPI
            or Kubernetes say.
        count: processes; where there is a coordinator.
        index: which this one is, 0 ≤ index < count.
    """
    stated: dict[str, Any] = {}
    if (coordinator, count, index) != ("", 0, -1):
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 <= index < count):
            raise ValueError(
                f"--coordinator={coordinator} --processes={count} --process={index}: all three are "
                "needed, as in --coordinator=10.0.0.1:1234 --processes=2 --process=0, and "
                "processes are counted from 0"
            )
        stated = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    try:
        jax.distributed.initialize(**stated)
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        if stated:
            raise ValueError(
                f"--coordinator={coordinator}: the processes did not meet: {why}"
            ) from error
        raise ValueError(
            f"--multihost: no other process was found ({why}); it is for TPU pods, SLURM, Open MPI "
            "and Kubernetes: leave it out on one machine, or name the processes with "
            "--coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    # JAX has made SIGTERM a notice for those who ask for it; it is to end the process as before
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class _Ended(SystemExit):
    """Another process tells why."""


def together(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make every process end where one fails: the first of those raises, the others say nothing.

    Args:
        work: is called by all processes in the same order.
    """

    @functools.wraps(work)
    def agreed(*args: Given.args, **options: Given.kwargs) -> Result:
        # asked this way, as the devices may be busy with a run that is already there
        if not jax.distributed.is_initialized():
            return work(*args, **options)
        failure = None
        try:
            result = work(*args, **options)
        except BaseException as error:  # a request to stop too
            failure = error
        told = isinstance(failure, _Ended)  # by another process, within
        mine = np.array([failure is not None, failure is not None and not told])
        failed, tells = np.atleast_2d(multihost_utils.process_allgather(mine)).T
        if failure is not None and tells.any() and np.argmax(tells) == jax.process_index():
            raise failure
        if failed.any():
            raise _Ended(1)
        return result

    return agreed


def any_asked(stop: StopOnSignal, number: int, *, every: int = 8) -> bool:
    """Whether to stop at a step or photo; several processes agree, at multiples of `every`."""
    if jax.process_count() == 1:
        return stop.asked
    if number % every:
        return False
    return bool(np.any(multihost_utils.process_allgather(np.array(stop.asked))))


def total(counts: Integer[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    """The sum of counts over processes, which all have them in one shape; each gets it."""
    if jax.process_count() == 1:
        return counts.astype(np.int64)
    # halves, because JAX would cut 64-bit counts to 32
    halves = np.stack([counts & 0xFFFFFF, counts >> 24]).astype(np.int32)
    low, high = np.asarray(multihost_utils.process_allgather(halves), np.int64).sum(0)
    return low + (high << 24)


def joined(columns: Int32[np.ndarray, "r n"]) -> Int32[np.ndarray, "r m"]:
    """The columns of all processes, of each as many as it has; each gets them."""
    if jax.process_count() == 1:
        return columns
    gather = multihost_utils.process_allgather
    lengths = np.ravel(gather(np.array(columns.shape[1], np.int32)))
    spare = ((0, 0), (0, int(lengths.max()) - columns.shape[1]))
    parts = np.asarray(gather(np.pad(columns, spare)))
    return np.concatenate([part[:, :n] for part, n in zip(parts, lengths, strict=True)], axis=1)
