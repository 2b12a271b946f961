"""Paths: one name for one place, here or in a bucket; files that appear whole or not at all."""

import contextlib
import importlib.util
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # the package that etils.epath reads each kind with


def resolve(path: str | os.PathLike[str]) -> epath.Path:
    """The absolute path that a name stands for, "~" expanded; a bucket ("gs://…") as it is.

    Raises:
        ValueError: no name, an address of another kind, or a bucket whose package is missing.
    """
    name = os.fspath(path)
    # `Path` makes one slash of two: "gs:/bucket" would be a folder "gs:" here
    scheme = re.match(r"(\w[\w+.-]*):([/\\]{1,2})", name)
    if scheme is None or (os.name == "nt" and len(scheme[1]) == 1):
        if not name.strip() or "\0" in name:
            raise ValueError(f"{name!r} is no path: wanted the name of a file or folder")
        try:
            return epath.Path(Path(name).expanduser().absolute())
        except RuntimeError:  # pathlib's own type
            raise ValueError(f"{name}: there is no such user here; give the whole path") from None
    kind, package = scheme[1], BUCKETS.get(scheme[1])
    if len(kind) == 1:
        raise ValueError(f"{name} is a path of Windows; wanted one of this machine")
    if package is None or scheme[2] != "//":
        known = ", ".join(f"{bucket}://" for bucket in BUCKETS)
        raise ValueError(
            f"{name} is an address, and {kind}:{scheme[2]} is not read: fetch it and name the file "
            f"or folder here (buckets are {known})"
        )
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{name} is a bucket, and {package} is not installed: pip install {package}"
        )
    return epath.Path(name)


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a name is an address in a bucket ("gs://…") rather than a place here."""
    return re.match(rf"({'|'.join(BUCKETS)}):/", os.fspath(path)) is not None


def local(path: str | os.PathLike[str]) -> Path:
    """As `resolve`, for what is read or written by libraries that know this machine alone."""
    if in_bucket(path):
        raise ValueError(
            f"{path} is a bucket, and no place for this: name one on this machine, and copy to or "
            "from the bucket (gcloud storage cp -r, aws s3 cp --recursive)"
        )
    return Path(resolve(path))


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
        try:
            part.mkdir()
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(f"{dest} cannot be written ({reason}): choose another name") from error
        yield Path(part)


def check_free(dest: str | os.PathLike[str], *, file: bool = False) -> None:
    """Refuse a destination that is taken (ValueError) or below none (FileNotFoundError).

    An empty folder is free, unless a `file` is to be written.
    """
    path = local(dest)
    if file and path.is_dir():
        raise ValueError(f"{dest} is a folder, and one file is written: name it, {path}/model.pth")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{dest} is there already: remove it, or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there: make the folder first")


def check_writable(folder: str | os.PathLike[str], *, flag: str = "--workdir") -> Path:
    """The folder that a flag names; a ValueError before the work if it cannot be written to."""
    path = local(folder)
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"{flag}={folder} cannot be written: {existing} is "
            f"{'not writable' if existing.is_dir() else 'a file'}; choose another folder"
        )
    return path
