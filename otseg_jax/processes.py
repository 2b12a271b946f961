"""Several processes of one run, one per machine or accelerator: they start, go on and end together.

What one of them cannot do, none can: the others would wait for it in the next exchange of arrays.
JAX finds that one is gone by its connection or its heartbeat, and then raises, or aborts the others
in the middle of whatever they do. What a person is to do is told by a shell that outlives them.
"""

import atexit
import contextlib
import contextvars
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np
from flax import serialization
from jax.experimental import multihost_utils
from jaxtyping import Int32, Int64, Integer

from otseg_jax.interrupt import StopOnSignal

Given = ParamSpec("Given")
Result = TypeVar("Result")

HEARTBEAT = 40  # seconds without one until JAX ends the other processes
PATIENCE = 10  # seconds that a process which ends waits for the others to end as well
BLOCK = 4096  # bytes that are sent at least: each length is compiled for

# whether the first process is doing what it does alone, in which it asks nobody
_ALONE = contextvars.ContextVar("alone", default=False)
# what JAX raises where another process is gone: a status, and who says so
_LOSS = re.compile(r"[A-Z_]+: .*\b(?i:gloo|nccl|coordination|heartbeat|barrier)", re.DOTALL)
# at the end of its input it tells the last line
_OUTLIVING = """
trap "" INT TERM HUP
while IFS= read -r line; do last=$line; done
[ -z "$last" ] || printf "%s\\n" "$last" >&2
"""


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
        jax.distributed.initialize(**stated, heartbeat_timeout_seconds=HEARTBEAT)
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
    if_one_ends("start all of them again with the same command")
    atexit.register(if_one_ends, "")  # it has told by itself


@functools.cache
def _outliving() -> "subprocess.Popen[str]":
    return subprocess.Popen(["sh", "-c", _OUTLIVING], stdin=subprocess.PIPE, text=True)


def if_one_ends(then: str) -> None:
    """Set what is told to do where this process is killed, or another one ends; "": nothing."""
    if jax.distributed.is_initialized():
        why = "error: a process of this run ended too early (its own output may say why)"
        with contextlib.suppress(OSError):  # somebody killed the shell
            print(then and f"{why}: {then}", file=_outliving().stdin, flush=True)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around the whole work of a process: where one fails, it ends, and the others soon after.

    At the end of a program that failed JAX would wait, for minutes, until all others end too.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        end_if_lost(error)
        code = error.code if isinstance(error, SystemExit) else 1
        if isinstance(code, str):
            print(code, file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
        if_one_ends("")
        # where all end, and not this one alone, they wait for one another
        closing = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        _leave(1 if isinstance(code, str) else code or 0)


def end_if_lost(error: BaseException | None) -> None:
    """End at once where an error tells that another process is gone: nobody can wait for it."""
    while error is not None and jax.distributed.is_initialized():
        if _LOSS.match(str(error)):
            print(*str(error).splitlines()[:1], file=sys.stderr)
            _leave(1)
        error = error.__cause__ or error.__context__


def end_soon(error: BaseException) -> None:
    """Make sure that an error of this process alone ends it, whatever on its way out waits.

    A save that is under way may wait for a process that waits for this one.
    """

    def end() -> None:
        time.sleep(3 * PATIENCE)
        print(f"error: {error}", file=sys.stderr)
        if_one_ends("")
        _leave(1)

    if jax.distributed.is_initialized():
        threading.Thread(target=end, daemon=True).start()


def _leave(code: int) -> NoReturn:
    # neither threads nor handlers are waited for: they may wait for the process that is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the first of its run, or alone."""
    # asked this way, as the devices may be busy with a run that is already there
    return not (jax.distributed.is_initialized() and jax.process_index())


def _several() -> bool:
    return jax.distributed.is_initialized() and not _ALONE.get()


class _Ended(SystemExit):
    """Another process tells why."""


def together(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Make every process end where one fails: the first of those raises, the others say nothing.

    Args:
        work: is called by all processes in the same order.
    """

    @functools.wraps(work)
    def agreed(*args: Given.args, **options: Given.kwargs) -> Result:
        if not _several():
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


def by_first(work: Callable[Given, Result]) -> Callable[Given, Result]:
    """Have the first process do something alone, and every process get what it returned.

    What it cannot do ends all of them, as of `together`.

    Args:
        work: is called for by all processes in the same order; returns what `tell` takes.
    """

    @functools.wraps(work)
    def asked(*args: Given.args, **options: Given.kwargs) -> Result:
        if not _several():
            return work(*args, **options)

        @together
        def alone() -> bytes:
            if not is_first():
                return b""
            token = _ALONE.set(True)
            try:
                return serialization.msgpack_serialize(work(*args, **options))
            finally:
                _ALONE.reset(token)

        return serialization.msgpack_restore(_sent(alone(), by=0))

    return asked


def tell(mine: Any, *, by: int) -> Any:
    """Send what one process has to all; each gets it bit for bit.

    Args:
        mine: JSON with numpy arrays and bytes in it, less than 2 GB; that of others is not sent.
        by: which process sends.
    """
    data = serialization.msgpack_serialize(mine)
    return serialization.msgpack_restore(_sent(data, by=by) if _several() else data)


def _sent(data: bytes, *, by: int) -> bytes:
    sends = jax.process_index() == by
    send = functools.partial(multihost_utils.broadcast_one_to_all, is_source=sends)
    length = int(send(np.array(len(data), np.int32)))
    # as whole numbers, because the devices add what the processes have: a -0.0 would lose its sign
    block = np.zeros(-(-length // BLOCK) * BLOCK, np.uint8)
    if sends:
        block[:length] = np.frombuffer(data, np.uint8)
    return np.asarray(send(block.view(np.uint32))).tobytes()[:length]


class StopTogether(StopOnSignal):
    """As `StopOnSignal`; several processes stop at the same step or photo, whichever was asked."""

    _asks = itertools.count(1)

    def __init__(self) -> None:
        """A process that is alone is asked by SIGTERM itself; of several JAX is, and tells all."""
        self._alone = not jax.distributed.is_initialized()
        super().__init__(signal.SIGINT, *[signal.SIGTERM] * self._alone)

    def __enter__(self) -> "StopTogether":
        super().__enter__()
        return self

    def reached(self) -> bool:
        """Whether to stop here; is called at each step or photo, in every process."""
        if self._alone:
            return self.asked
        if self.asked:
            os.kill(os.getpid(), signal.SIGTERM)
        return multihost_utils.reached_preemption_sync_point(next(self._asks))


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
