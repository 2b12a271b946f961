"""Folders in buckets, by their copies on this machine: all else reads and writes files here.

A copy lies in ~/.cache/otseg_jax/buckets, or where OTSEG_JAX_BUCKETS says. `.bucket.json` in it
remembers, of each file that both have, what tells that the one in the bucket was changed, and size
and time of the one here. A file arrives whole or not at all. A checkpoint is in a bucket once the
list of its files is: that comes last, and goes first.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import filelock
import fsspec
from tqdm import tqdm

from otseg_jax import paths

HOME: Final = "OTSEG_JAX_BUCKETS"
"""The environment variable that says where copies lie."""

FOLDER = "~/.cache/otseg_jax/buckets"
READ = "read"  # in it: copies beside those that somebody may work in
RECORD, LOCK = ".bucket.json", ".bucket.lock"
WAITS = (1, 2, 4, 8, 16, 32, 64)
"""Seconds between tries."""

THREADS = 8
LIST = "files.json"  # of the files of a checkpoint
# of this machine alone: records and locks, and what is being written
_MINE = re.compile(
    r"\.bucket\.\w+$|run\.(lock|owner)$|(.*/)?\.[^/]+\.part(/|$)|.*\.orbax-checkpoint-tmp"
)
_TAGS = ("etag", "ETag", "generation", "mtime", "LastModified", "created")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

LOGGER = logging.getLogger(__name__)


class Unreachable(OSError):
    """A bucket that was tried for a while, or that refuses."""


def here(name: str | os.PathLike[str], tree: str = "") -> Path:
    """The folder that a name stands for; of a bucket, that of its copy on this machine."""
    if not paths.in_bucket(name):
        return paths.local(name)
    kind, _, rest = os.fspath(paths.resolve(name)).partition("://")
    parts = [part for part in rest.split("/") if part]
    if not parts or {".", ".."} & {*parts}:
        raise ValueError(f"{name} is no place in a bucket: wanted {kind}://BUCKET/FOLDER")
    return paths.local(os.environ.get(HOME) or FOLDER).joinpath(tree, kind, *parts)


def of(folder: Path) -> "Copy | None":
    """The copy that a folder here is, if it is one; the reverse of `here`."""
    home = paths.local(os.environ.get(HOME) or FOLDER)
    kind, *rest = folder.relative_to(home).parts if folder.is_relative_to(home) else ("",)
    return Copy(f"{kind}://{'/'.join(rest)}") if kind in paths.BUCKETS and rest else None


def fetched(
    name: str | os.PathLike[str], wanted: Callable[[str], bool] = lambda name: True
) -> Path:
    """The folder that a name stands for; of a bucket, a copy to read, as of `Copy.pull`."""
    return Copy(name, READ).pull(wanted) if paths.in_bucket(name) else paths.local(name)


class Copy:
    """A folder in a bucket, and its copy here; what the bucket refuses is an `Unreachable`."""

    def __init__(self, address: str | os.PathLike[str], tree: str = "") -> None:
        """Errors as of `paths.resolve`; nothing is read or written."""
        self.folder, self.address = here(address, tree), os.fspath(address).rstrip("/")
        kind, _, self._root = self.address.partition("://")
        self._bucket = fsspec.filesystem(kind, use_listings_cache=False)
        self._ended, self._told = threading.Event(), 0

    def names(self, under: str = "") -> list[str]:
        """What lies in a folder in the bucket, files and folders; none where there is none."""
        with contextlib.suppress(FileNotFoundError):
            found = self._try(self._bucket.ls, self._path(under).rstrip("/"), detail=False)
            return [name.rstrip("/").rpartition("/")[2] for name in found]
        return []

    def check_writable(self) -> None:
        """Write a file to the bucket and remove it, before any work."""
        try:
            self._try(self._bucket.pipe_file, self._path(".writable"), b"\n")
            self._try(self._bucket.rm_file, self._path(".writable"))
        except FileNotFoundError:
            raise Unreachable(f"{self.address}: there is no such bucket; make it first") from None

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> Path:
        """Copy what is wanted and not here, or was changed, by names; returns the folder here."""
        with paths.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / LOCK):  # other processes of this machine wait
            self._pull(self._there(), wanted)
        return self.folder

    def meet(self) -> None:
        """Make the copy that of a run: as the bucket, or newer where that was not changed since."""
        there = self._there()
        known = self._known()
        if {n: old[0] for n, old in known.items()} == {n: file[0] for n, file in there.items()}:
            self._remember(known)
        else:
            self._pull(there, lambda name: True)

    def push(self) -> None:
        """Make the bucket as the copy; what cannot go up is left for the next time."""
        known, local = self._known(), self._local()
        changed = {name: now[0] for name, now in local.items() if known.get(name, [])[1:] != now}

        def put(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                self._try(self._bucket.put_file, str(self.folder / name), self._path(name))
                found = self._try(self._bucket.info, self._path(name))
                known[name] = [_tag(found), *local[name]]

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._try(self._bucket.rm_file, self._path(name))
            del known[name]

        lists, gone = [name for name in changed if _is_list(name)], known.keys() - local.keys()
        try:
            self._each(put, {name: changed[name] for name in changed.keys() - {*lists}})
            self._each(put, {name: changed[name] for name in lists})
            self._each(remove, {name: 0 for name in gone if _is_list(name)})
            self._each(remove, {name: 0 for name in gone if not _is_list(name)})
        finally:
            self._remember(known)

    def _pull(self, there: Mapping[str, tuple[str, int]], wanted: Callable[[str], bool]) -> None:
        local = self._local()
        # a file that was changed here is another
        known = {n: old for n, old in self._known().items() if local.get(n) == old[1:]}
        whole = {name for name in there if _is_whole(name, there)}
        for name in local.keys() - whole:
            _remove(self.folder, name)
        missing = {
            name: there[name][1]
            for name in filter(wanted, whole)
            if name not in local or known.get(name, [""])[0] != there[name][0]
        }
        known = {name: old for name, old in known.items() if name in whole and name not in missing}
        known |= {name: [there[name][0]] for name in there.keys() - whole}  # a `push` removes them
        self._check_space(sum(missing.values()))

        def get(name: str) -> None:
            with paths.atomic(self.folder / name) as part:
                try:
                    self._try(self._bucket.get_file, self._path(name), str(part))
                    as_told = part.stat().length == missing[name]
                except FileNotFoundError:
                    as_told = False
                if not as_told:
                    changed = f"{self.address}/{name} was changed while it was copied"
                    raise Unreachable(f"{changed}: the same command copies it again")
            known[name] = [there[name][0], *_size_and_time(self.folder / name)]

        try:
            self._each(get, missing)
        finally:
            self._remember(known)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _there(self) -> dict[str, tuple[str, int]]:
        """Files of the bucket by name: what is another after a change, and bytes."""
        try:
            found = self._try(self._bucket.find, self._root, detail=True)
        except FileNotFoundError:
            return {}
        named = {path.removeprefix(self._path("")): info for path, info in found.items()}
        inside = {n: x for n, x in named.items() if not {"", ".", ".."} & {*n.split("/")}}
        return {n: (_tag(x), int(x["size"])) for n, x in inside.items() if not _MINE.match(n)}

    def _local(self) -> dict[str, list[int]]:
        """Files here by name: bytes and time."""
        found = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*")}
        local = dict[str, list[int]]()
        for name, path in found.items():
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                if path.is_file() and not _MINE.match(name):
                    local[name] = _size_and_time(path)
        return local

    def _known(self) -> dict[str, list[Any]]:
        """What the bucket and the copy have in common: what is as of `_there`, bytes and time."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads((self.folder / RECORD).read_text())
            return {str(name): [*old] for name, old in known.items() if len(old) in (1, 3)}
        return {}

    def _remember(self, known: Mapping[str, list[Any]]) -> None:
        with paths.writing(self.folder), paths.atomic(self.folder / RECORD) as part:
            part.write_text(json.dumps(known, indent=0, sort_keys=True))

    def _check_space(self, need: int) -> None:
        if need > (free := shutil.disk_usage(self.folder).free):
            raise OSError(
                f"{self.folder} needs {need / 1e9:,.1f} GB for its copy of {self.address}, and "
                f"{free / 1e9:,.1f} GB are free there: make room, or set {HOME} to another folder"
            )

    def _each(self, work: Callable[[str], None], sizes: Mapping[str, int]) -> None:
        """Do something to files, several at the same time; after an error, to no further ones."""
        pool, total = ThreadPoolExecutor(THREADS), sum(sizes.values())
        try:
            running = {pool.submit(work, name): size for name, size in sizes.items()}
            scale = {"unit": "B", "unit_scale": True}
            with tqdm(desc=self.address, total=total, **scale, leave=False, delay=1) as bar:  # type: ignore
                for done in as_completed(running):
                    done.result()
                    bar.update(running[done])
        finally:
            self._ended.set()
            pool.shutdown(cancel_futures=True)
            self._ended.clear()

    def _try(self, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Call until it works, or there is no hope; a FileNotFoundError is an answer."""
        for wait in (*WAITS, None):
            try:
                found = work(*given, **options)
            except FileNotFoundError:
                raise
            except Exception as error:  # each library has its own types
                reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
                if isinstance(error, OSError) and error.errno in _DISK:
                    with paths.writing(self.folder):
                        raise
                if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
                    raise Unreachable(
                        f"{self.address} refuses ({reason}): check its name, your login (gcloud "
                        "auth application-default login, aws configure) and your rights there"
                    ) from error
                if wait is None or self._ended.is_set():
                    raise Unreachable(
                        f"{self.address} cannot be reached ({reason}; tried for {sum(WAITS)} s): "
                        "the same command goes on from what is there"
                    ) from error
                if self._told != wait:
                    LOGGER.warning("%s: %s; again in %s s", self.address, reason, wait)
                self._told = wait
                self._ended.wait(wait)
            else:
                self._told = 0
                return found
        raise AssertionError


def _is_list(name: str) -> bool:
    return name.endswith(f"/{LIST}")


def _is_whole(name: str, there: Collection[str]) -> bool:
    """Whether a file is of no checkpoint, or of one that is whole."""
    step = re.match(r"checkpoints/\d+/", name)
    return step is None or step[0] + LIST in there


def _tag(info: Mapping[str, Any]) -> str:
    return f"{info['size']} {next((str(info[key]) for key in _TAGS if info.get(key)), '')}"


def _size_and_time(path: Path) -> list[int]:
    told = path.stat()
    return [told.st_size, told.st_mtime_ns]


def _remove(folder: Path, name: str) -> None:
    """Remove a file, and the folders that are empty then."""
    (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for parent in (folder / name).parents:
            if parent == folder:
                break
            parent.rmdir()
