"""Workdirs in buckets: a run works in a copy here, and the first process keeps the bucket like it.

It goes up at each save, at each evaluation and at the end, whatever ended it. Of several processes
all work in one copy: they are on one machine, or on several that share the disk it lies on.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from otseg_jax import buckets, processes
from otseg_jax.buckets import Copy, Unreachable
from otseg_jax.checkpoints.failure import SaveError
from otseg_jax.checkpoints.run import Checkpoints

LOGGER = logging.getLogger(__name__)


class Mirrored(Checkpoints):
    """Checkpoints of a run in a bucket: what is saved is there when the call returns."""

    def __init__(self, directory: Path, copy: Copy, **options: Any) -> None:
        """As of `Checkpoints`, in the copy of a workdir."""
        super().__init__(directory, **options)
        self._copy = copy

    def save(self, step: int, *given: Any, **options: Any) -> None:
        """As of `Checkpoints`."""
        super().save(step, *given, **options)
        self.wait()
        self._push()

    def judge(self, step: int, metrics: Mapping[str, Any]) -> None:
        """As of `Checkpoints`."""
        super().judge(step, metrics)
        self._push()

    def _push(self) -> None:
        if jax.process_index() == 0:
            try:
                self._copy.push()
            except Unreachable as error:
                raise SaveError(str(error)) from error


def checkpoints(directory: Path, **options: Any) -> Checkpoints:
    """The checkpoints in a workdir that is held; options of `Checkpoints`."""
    copy = buckets.of(directory.parent)
    return Mirrored(directory, copy, **options) if copy else Checkpoints(directory, **options)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """While it is open, a folder that is the copy of a workdir in a bucket is worked in.

    Raises:
        Unreachable: the bucket cannot be read or written.
        ValueError: processes of the run are on machines that do not share the folder.
    """
    copy = buckets.of(folder)
    if copy is None:
        yield
        return
    processes.together(_begin)(copy)
    processes.together(_check_shared)(copy)
    try:
        yield
    except SaveError:  # it was tried
        raise
    except BaseException:
        try:
            _end(copy)
        except Unreachable as error:
            LOGGER.warning("%s", error)
        raise
    _end(copy)


def _begin(copy: Copy) -> None:
    if jax.process_index() == 0:
        copy.check_writable()
        copy.meet()


def _end(copy: Copy) -> None:
    if jax.process_index() == 0:
        copy.push()
        LOGGER.info("%s has all of %s", copy.address, copy.folder)


def _check_shared(copy: Copy) -> None:
    if jax.process_count() == 1:
        return
    record = copy.folder / buckets.RECORD
    mine = record.stat().st_mtime_ns % 2**31 if record.is_file() else -1
    if len({*np.ravel(multihost_utils.process_allgather(np.array(mine, np.int32)))}) > 1:
        raise ValueError(
            f"--workdir={copy.address}: the processes of this run are on several machines, and "
            f"{copy.folder} is not the same folder on all of them: set {buckets.HOME} to a folder "
            "on a disk that they share, or name a --workdir on it"
        )
