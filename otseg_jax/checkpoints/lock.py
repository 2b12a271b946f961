"""A workdir belongs to one command at a time: two would mix their logs and checkpoints."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax

from otseg_jax import paths

NAME = "run.lock"  # lies in the workdir while a command writes there, and says which one


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[Path]:
    """Hold a workdir until the block ends; the system lets go of it where the process is killed.

    Of several processes of one run the first holds it. Works between the processes of a machine,
    and as far as a network's file system locks files. Reading needs no hold.

    Raises:
        ValueError: another process holds it, or it cannot be written; nothing was changed.
    """
    folder = paths.check_writable(workdir)
    # asked this way, as the devices may be busy with the run that holds the workdir
    if jax.distributed.is_initialized() and jax.process_index():
        yield folder
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with paths.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(folder / NAME)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            raise _in_use(folder) from None
        (folder / NAME).write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone, and it is no longer needed
            (folder / NAME).unlink()
        held.release()
        with contextlib.suppress(OSError):  # what was refused leaves no empty folder
            for path in made:
                path.rmdir()


def _in_use(folder: Path) -> ValueError:
    holder = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        holder = (folder / NAME).read_text()
    return ValueError(
        f"--workdir={folder} is in use by {holder or 'another process'}: wait until it ends, or "
        f"choose another --workdir (--mode=eval with --config.init_from={folder} reads beside it)"
    )
