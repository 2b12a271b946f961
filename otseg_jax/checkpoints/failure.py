"""A save that failed: its one line, and what it left half-written; a step that was deleted."""

import errno
import os
import re
import shutil
from collections.abc import Iterable
from typing import Any

# tensorstore tells these in its own words, among paths and addresses
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)


class SaveError(OSError):
    """A checkpoint could not be written; those before it are untouched."""


class Deleted(ValueError):
    """A step was there, and was deleted while it was read."""

    def __init__(self, directory: str, step: int, steps: Iterable[int]) -> None:
        """`steps` are those that are there now."""
        super().__init__(
            f"step {step} of {directory} was deleted while it was read, as the training there goes "
            f"on (now there: {listing(steps)}); best, half and latest are kept"
        )


def reason(error: Exception) -> str:
    """Why, in a few words: Orbax and tensorstore put pages of context behind it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if known := re.search("|".join(map(os.strerror, _REFUSALS)), str(error)):
        return known[0]
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def remove_unfinished(directory: Any) -> None:
    """Remove what saves that failed, or were killed, left there; none may be running."""
    for folder in directory.iterdir():
        step, temporary, _ = folder.name.partition(".orbax-checkpoint-tmp")
        if temporary and step.isdecimal():
            shutil.rmtree(folder, ignore_errors=True)


def listing(steps: Iterable[int]) -> str:
    """Steps as a message names them."""
    return ", ".join(f"step {s}" for s in sorted(steps)) or "none"
