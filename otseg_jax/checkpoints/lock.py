"""A workdir belongs to one command at a time: two would mix their logs and checkpoints.

Two files lie there meanwhile. The system locks the first, and lets go of it where the process is
killed, be it on another machine. The second names the process, and holds where the first cannot:
it was removed by hand, or the file system locks no files.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from otseg_jax import buckets, paths, processes
from otseg_jax.checkpoints import mirror

NAME = "run.lock"
OWNER = "run.owner"  # of filelock's format: a dead process of this machine holds nothing by it
# what file systems say that lock no files
UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold a workdir until the block ends, or the process.

    Of several processes of one run the first holds it, and the others need not see it. Reading
    needs no hold. Of one in a bucket the copy is held, on this machine alone.

    Raises:
        ValueError: another process holds it, or it cannot be written; nothing was changed.
        OSError: errors as of `mirror.kept`.
    """
    folder = processes.together(buckets.here)(workdir)
    with contextlib.ExitStack() as held:
        processes.together(held.enter_context)(_held(folder))
        held.enter_context(mirror.kept(folder))
        yield folder


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    if not processes.is_first():
        yield
        return
    paths.check_writable(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    before = _owner(folder)
    with contextlib.ExitStack() as held:
        with paths.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_empty, made)  # what is refused leaves no empty folder
            locked = _lock(folder, held)
            _own(folder, held, locked=locked)
        if before:
            LOGGER.info("%s was in use by %s, which is gone", folder, before)
        yield


def _lock(folder: Path, held: contextlib.ExitStack) -> bool:
    """Have the system lock the first file; whether it can."""
    path = folder / NAME
    # filelock's own way out would be to keep the marker in this file, for one of these systems
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise _in_use(folder) from None
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        path.unlink(missing_ok=True)
        return False
    mine = path.stat()
    held.callback(lock.release)

    def remove() -> None:
        # while it is locked: who has it open already finds no name on it, and makes another
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), mine):
                path.unlink()

    held.callback(remove)
    return True


def _own(folder: Path, held: contextlib.ExitStack, *, locked: bool) -> None:
    """Put this process into the second file."""
    marker = filelock.SoftFileLock(folder / OWNER)
    try:
        marker.acquire(timeout=0)
    except filelock.Timeout as busy:
        # filelock names whom it cannot look for, on another machine: it would have the first file
        elsewhere = str(busy) != str(filelock.Timeout(busy.lock_file))
        if not (locked and elsewhere):
            raise _in_use(folder, locked=locked) from None
        marker.break_lock()
        marker.acquire(timeout=0)
    held.callback(marker.release)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _owner(folder: Path) -> str:
    """Who is in the second file, "" if nobody."""
    try:
        process, host, *_ = (folder / OWNER).read_text().splitlines()
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / OWNER).stat().st_mtime))
    except (OSError, ValueError):  # it is being written, or somebody else wrote it
        return ""
    return f"process {process} on {host.partition('?')[0]} since {since}"


def _in_use(folder: Path, *, locked: bool = True) -> ValueError:
    unsure = f", remove {folder / OWNER} if that is gone (the file system locks no files)"
    return ValueError(
        f"--workdir={folder} is in use by {_owner(folder) or 'another process'}: wait until it "
        f"ends{'' if locked else unsure}, or choose another --workdir (--mode=eval with "
        f"--config.init_from={folder} reads beside it)"
    )
