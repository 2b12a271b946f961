"""Workdirs in buckets: a run works in a copy here, and the first process keeps the bucket like it.

It goes up at each save, at each evaluation and at the end, whatever ended it. Of several processes
the first alone has a copy.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

    @processes.by_first
    def save(self, step: int, *given: Any, **options: Any) -> None:
        """As of `Checkpoints`."""
        super().save(step, *given, **options)
        self.wait()
        self._push()

    @processes.by_first
    def judge(self, step: int, metrics: Mapping[str, Any]) -> None:
        """As of `Checkpoints`."""
        super().judge(step, metrics)
        self._push()

    def _push(self) -> None:
        try:
            self._copy.push()
        except Unreachable as error:
            raise SaveError(str(error)) from error


def checkpoints(directory: Path, **options: Any) -> Checkpoints:
    """The checkpoints in a workdir that is held; options of `Checkpoints`."""
    copy = _copy(directory.parent)
    return Mirrored(directory, copy, **options) if copy else Checkpoints(directory, **options)


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """While it is open, a folder that is the copy of a workdir in a bucket is worked in.

    Raises:
        Unreachable: the bucket cannot be read or written.
    """
    copy = _copy(folder)
    processes.together(_begin)(copy)
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
    processes.together(_end)(copy)


def _copy(folder: Path) -> Copy | None:
    return buckets.of(folder) if processes.is_first() else None


def _begin(copy: Copy | None) -> None:
    if copy:
        copy.check_writable()
        copy.meet()


def _end(copy: Copy | None) -> None:
    if copy:
        copy.push()
        LOGGER.info("%s has all of %s", copy.address, copy.folder)
