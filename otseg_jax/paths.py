"""Paths: one name for one place, here or in a bucket; files that appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath


def resolve(path: str | os.PathLike[str]) -> epath.Path:
    """The absolute path that a name stands for, "~" expanded; a bucket ("gs://…") as it is."""
    name = epath.Path(path)
    return name if "://" in os.fspath(path) else epath.Path(Path(name).expanduser().absolute())


@contextlib.contextmanager
def atomic(dest: str | os.PathLike[str]) -> Iterator[epath.Path]:
    """A path next to `dest` to write to; it takes that name when all went well, else it is removed.

    A reader, and a program that was killed, sees the old file, the new one, or none. The folder
    above is made where missing.
    """
    final = resolve(dest)
    part = final.parent / f".{final.name}.{uuid.uuid4().hex}.part"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_dir() and final.is_dir():
            final.rmdir()  # an empty folder gives way to a new one, another does not
        part.replace(final)
    finally:
        if part.is_dir():
            part.rmtree()
        else:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(dest: str | os.PathLike[str]) -> Iterator[None]:
    """What the system refuses while `dest` is written (a full disk) becomes a line of ours."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{dest} cannot be written ({error.strerror or error}): check free space and "
            "permissions; the same command goes on from what was saved"
        ) from error


@contextlib.contextmanager
def new_folder(dest: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, that takes the free name `dest` when all went well; as `atomic`."""
    check_free(dest)
    with atomic(dest) as part:
        part.mkdir()
        yield Path(part)


def check_free(dest: str | os.PathLike[str]) -> None:
    """Refuse a destination that is taken (ValueError) or below none (FileNotFoundError)."""
    path = resolve(dest)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{dest} is there already: remove it, or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there: make the folder first")


def check_writable(workdir: str | os.PathLike[str]) -> Path:
    """The folder that a run writes to; a ValueError before the work if it cannot be written."""
    path = Path(resolve(workdir))
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"--workdir={workdir} cannot be written: {existing} is "
            f"{'not writable' if existing.is_dir() else 'a file'}; choose another folder"
        )
    return path
