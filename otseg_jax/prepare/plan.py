"""What is to be written, whether it belongs to what is there, and whether there is room for it."""

import contextlib
import fnmatch
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import filelock
from etils import epath

from otseg_jax import paths
from otseg_jax.data import records
from otseg_jax.data.file import Stored
from otseg_jax.data.folders import Folder
from otseg_jax.data.lists import some
from otseg_jax.data.records import About, Records
from otseg_jax.prepare import shards
from otseg_jax.prepare.shards import Shard

LOCK = ".lock"
PART = ".*.part"  # what `paths.atomic` writes to

Split = Folder | Records


def describe(dataset: str, found: Mapping[str, Split], augmented: bool) -> About:
    """What the records are to be."""
    known = next(iter(found.values())).vocabulary
    photos = {name: _hash(split) for name, split in found.items()}
    return About(dataset=dataset, vocabulary=known, augmented=augmented, photos=photos)


def _hash(split: Split) -> str:
    names = hashlib.sha256()
    for i in range(len(split)):
        names.update(os.fsencode(split.name(i)) + b"\0")
    return names.hexdigest()


def before(place: epath.Path, about: About) -> dict[str, int]:
    """The number of shards of each split that is there, whole or not; none where nothing is.

    Raises:
        ValueError: something else is there.
    """
    there = sorted(path.name for path in place.iterdir()) if place.exists() else []
    # a lock, and what a writer was killed over
    there = [name for name in there if name != LOCK and not fnmatch.fnmatch(name, PART)]
    kept = [file for name in (records.PLAN, records.METADATA) if (file := place / name).exists()]
    if there and not kept:
        raise ValueError(f"{place} holds {some(there)}, and no records: choose another --output")
    if not there:
        return {}
    told = records.read_json(kept[0])
    if kept[0].name == records.METADATA:
        told = {"about": told}
    try:
        old = About.from_json(told["about"])
        counts = told.get("shards", {name: len(sizes) for name, sizes in old.sizes.items()})
        counts = {name: int(counts[name]) for name in old.photos}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{kept[0]} is not of ours ({error!r}): choose another --output"
        ) from error
    if problems := _changes(old, about):
        raise ValueError(
            f"{place} holds other records: {'; '.join(problems)}. Repeat their flags, choose "
            f"another --output, or begin again after rm -r {shlex.quote(str(place))}"
        )
    return counts


def _changes(there: About, about: About) -> list[str]:
    """Why shards that are there do not belong to what is to be written."""
    problems = []
    if there.dataset != about.dataset:
        problems.append(f"the data set was {there.dataset} and is {about.dataset}")
    elif there.vocabulary != about.vocabulary:
        problems.append("the classes were others")
    if there.augmented != about.augmented:
        problems.append(f"--augmented was {there.augmented} and is {about.augmented}")
    if gone := sorted(there.photos.keys() - about.photos.keys()):
        problems.append(
            f"--splits were {','.join(there.photos)}, and {','.join(gone)} is not named"
        )
    other = [n for n, photos in there.photos.items() if about.photos.get(n, photos) != photos]
    if other and not problems:
        problems.append(f"the photos of {' and '.join(other)} were others")
    return problems


def counts(found: Mapping[str, Split], known: Mapping[str, int]) -> dict[str, int]:
    """How many shards each split is cut into: as before, or by its size."""
    return {name: known.get(name) or _count(split) for name, split in found.items()}


def _count(split: Split) -> int:
    size = sum(_size(split, i) for i in range(len(split)))
    return min(max(1, round(size / shards.SIZE)), len(split))


def _size(split: Split, i: int) -> int:
    """Bytes of a photo and its mask."""
    files = split.files(i)
    return sum(len(f.data) if isinstance(f, Stored) else f.stat().st_size for f in files)


def check_space(place: epath.Path, missing: Sequence[Shard]) -> None:
    """An OSError where the disk has no room for these shards."""
    if paths.in_bucket(place):
        return
    need = sum(_size(shard.split, i) for shard in missing for i in shard.indices)
    there = next(path for path in Path(place).parents if path.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise OSError(
            f"{place} needs about {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there: "
            "make room, or choose another --output"
        )


@contextlib.contextmanager
def held(place: epath.Path) -> Iterator[None]:
    """Hold a folder: what writers that were killed have left goes, and others are kept out."""
    if paths.in_bucket(place):
        yield
        return
    with paths.writing(place):
        place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(f"{place} is being written by another process: wait for it") from None
    try:
        for part in place.glob(PART):
            part.unlink()
        yield
    finally:
        lock.release()
        Path(place, LOCK).unlink(missing_ok=True)


def write(place: epath.Path, about: About, counts: Mapping[str, int], command: str) -> None:
    """Note what is under way, and by which command; until that is gone, the folder is not read."""
    plan = {"command": command, "about": about.to_json(), "shards": counts}
    with paths.writing(place), paths.atomic(place / records.PLAN) as part:
        part.write_text(json.dumps(plan, indent=1))
