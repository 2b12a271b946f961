"""The confusions of every photo, sparse: what runs are compared by, and where they are kept.

Of each method i32[4, n]: photo, true class, predicted class and pixels of all that occurs, in the
order of the photos.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from otseg_jax import paths
from otseg_jax.evaluation.metrics import Pixels

FILE = "confusions.npz"
MOST_BYTES = 1 << 32  # of a file's arrays, so that a stranger's does not fill the memory
_COUNTS = "pixels/"  # before the name of a method
_DAMAGE = (
    *(ValueError, KeyError, TypeError, OSError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)

Entries = Int32[np.ndarray, "4 _"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Confusions:
    """Of all photos of an evaluation, by every method."""

    dataset: str
    classes: tuple[str, ...]
    unseen: tuple[int, ...]
    photos: tuple[str, ...]  # their names
    main: str  # the method that pictures show
    entries: Mapping[str, Entries]

    def total(self, method: str) -> Int64[np.ndarray, "k k"]:
        """The confusion matrix over all photos."""
        _, truth, found, count = self.entries[method]
        counts = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(counts, (truth, found), count)
        return counts

    def by_photo(self, method: str) -> Pixels:
        """Pixels by class i64[photos, k]."""
        photo, truth, found, count = self.entries[method]
        right = truth == found
        shape = len(self.photos), len(self.classes)

        def added(classes: np.ndarray, chosen: np.ndarray | slice) -> np.ndarray:
            counts = np.zeros(shape, np.int64)
            np.add.at(counts, (photo[chosen], classes[chosen]), count[chosen])
            return counts

        every = slice(None)
        return Pixels(added(truth, right), added(truth, every), added(found, every))


def write(path: Path, confusions: Confusions) -> None:
    """Write them as a compressed NumPy archive, whole or not at all."""
    arrays = {
        "dataset": np.array(confusions.dataset),
        "classes": np.array(confusions.classes),
        "unseen": np.array(confusions.unseen, np.int32),
        "photos": np.array(confusions.photos),
        "main": np.array(confusions.main),
    }
    arrays |= {_COUNTS + name: entries for name, entries in confusions.entries.items()}
    with paths.atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read(place: str | Path) -> Confusions:
    """Read those of a workdir, or a file.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or something else.
    """
    path = paths.local(place)
    path = path / FILE if path.is_dir() else path
    again = "evaluate that run again: python -m otseg_jax.main --mode=eval --config=… --workdir=…"
    if not path.is_file():
        there = f"{place} holds no {FILE}" if paths.local(place).is_dir() else f"{path} is no file"
        raise FileNotFoundError(
            f"{there}, the confusions of each photo that an evaluation writes: {again}"
        )
    try:
        found = _read(path)
        _check(found)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not a whole {FILE} ({error}): {again}") from error
    return found


def _read(path: Path) -> Confusions:
    with zipfile.ZipFile(path) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > MOST_BYTES:
            raise ValueError(f"its arrays are {size:,} bytes, wanted at most {MOST_BYTES:,}")
    with np.load(path, allow_pickle=False) as arrays:
        return Confusions(
            dataset=str(arrays["dataset"]),
            classes=tuple(arrays["classes"].tolist()),
            unseen=tuple(arrays["unseen"].tolist()),
            photos=tuple(arrays["photos"].tolist()),
            main=str(arrays["main"]),
            entries={
                name.removeprefix(_COUNTS): arrays[name]
                for name in arrays.files
                if name.startswith(_COUNTS)
            },
        )


def _check(found: Confusions) -> None:
    limits = (len(found.photos), len(found.classes), len(found.classes))
    problems = [] if found.main in found.entries else [f"it lacks {found.main!r}"]
    if not all(isinstance(name, str) for name in (*found.classes, *found.photos)):
        problems.append("names that are no text")
    if not all(isinstance(k, int) for k in found.unseen):
        problems.append("unseen classes that are no whole numbers")
    elif any(not 0 <= k < len(found.classes) for k in found.unseen):
        problems.append("an unseen class that is none")
    for name, entries in found.entries.items():
        if entries.dtype != np.int32 or entries.ndim != 2 or len(entries) != 4:
            problems.append(f"{name} is {entries.dtype}{list(entries.shape)}, wanted int32[4, n]")
        elif entries.size and (
            entries.min() < 0
            or any(row.max() >= most for row, most in zip(entries, limits, strict=False))
        ):
            problems.append(f"{name} names photos or classes that are none")
    if problems:
        raise ValueError("; ".join(problems))
