"""Open a split of a data set, wherever it lies: in folders, in records, or nowhere but in code."""

import re
from collections.abc import Callable
from pathlib import Path

from otseg_jax import buckets, paths
from otseg_jax.data import folders, records, tfds_sets
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.data.folders import Folder
from otseg_jax.data.lists import some
from otseg_jax.data.records import FEATURES, PLAN, Records
from otseg_jax.data.shapes import Shapes

Split = Folder | Records | Shapes

DATASETS = (*VOCABULARIES, "folder")
"""The data sets that have a name of their own; those of TFDS have that of TFDS, "tfds:NAME"."""


def check_name(dataset: str) -> str:
    """The name of a data set as it is; a ValueError where it is that of none."""
    if dataset not in DATASETS and not re.fullmatch(rf"{tfds_sets.PREFIX}\w+(/\w+)?", dataset):
        raise ValueError(f"wanted {', '.join(DATASETS)} or {tfds_sets.PREFIX}NAME")
    return dataset


def open_split(
    dataset: str, root: str | Path, split: str, *, augmented: bool = True, raw_ids: bool = False
) -> Folder | Records:
    """One split of a data set that lies in records or in folders; errors as of `folders.index`.

    Raises:
        FileNotFoundError: no such records, split or shards; a bucket without records.
        ValueError: records of another data set, half-written, damaged, or made otherwise.
    """
    if place := find(root, dataset, split):
        return _open(place, dataset, split, augmented)
    if not dataset.startswith(tfds_sets.PREFIX):
        try:
            return folders.index(dataset, root, split, augmented=augmented, raw_ids=raw_ids)
        except FileNotFoundError as error:
            if others := _others(paths.local(root)):
                raise FileNotFoundError(
                    f"{root} holds records of {some(others)}, none of {dataset}: python -m "
                    f"otseg_jax.prepare {dataset} --root=… --output={root} writes them"
                ) from error
            raise
    name = dataset.removeprefix(tfds_sets.PREFIX)
    there = some(_others(paths.local(root))) or "no data set of TFDS"
    raise FileNotFoundError(
        f"--config.data.root={root} holds {there}, no {name}: name the folder that TFDS "
        f"prepared it in, {root}/{name}/VERSION/{FEATURES}"
    )


def find(root: str | Path, dataset: str, split: str = "") -> Path | None:
    """The folder with the records of a data set, ROOT/NAME/VERSION or the root itself, if any.

    Of those in a bucket it is a copy here, with the shards of that split alone; errors as of
    `open_split` and `buckets`.
    """
    if paths.in_bucket(root):
        return _copied(buckets.Copy(root), dataset, split)
    root = paths.local(root)

    def names(under: str) -> list[str]:
        return [path.name for path in (root / under).iterdir()] if (root / under).is_dir() else []

    place = _find(names, dataset)
    return None if place is None else root / place


def _find(names: Callable[[str], list[str]], dataset: str) -> str | None:
    """As `find`, below a root, of which `names` tells what lies in a folder."""
    places = [""]
    for above in (dataset.removeprefix(tfds_sets.PREFIX), ""):
        named = [name for name in names(above) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
        named.sort(key=lambda name: [*map(int, name.split("."))], reverse=True)
        places += [f"{above}/{name}".lstrip("/") for name in named]
    return next((place for place in places if {FEATURES, PLAN} & {*names(place)}), None)


def _copied(root: buckets.Copy, dataset: str, split: str) -> Path:
    place = _find(root.names, dataset)
    if place is None:
        raise FileNotFoundError(
            f"{root.address} holds {some(root.names()) or 'nothing'}, and no records of {dataset}; "
            f"files are not read from a bucket: on a machine that has them, python -m "
            f"otseg_jax.prepare {dataset} --root=DIR --output={root.address} writes records"
        )

    def wanted(name: str) -> bool:
        # what TFDS wrote may have other names
        shard = re.fullmatch(r".+-(\w+)\.array_record-\d+-of-\d+", name)
        return shard is None or shard[1] == split or dataset.startswith(tfds_sets.PREFIX)

    return buckets.Copy(f"{root.address}/{place}").pull(wanted)


def _open(place: Path, dataset: str, split: str, augmented: bool) -> Records:
    records.check_whole(place)
    about, foreign = records.read_about(place), dataset.startswith(tfds_sets.PREFIX)
    if about is None and foreign:
        return tfds_sets.open_records(place, split)
    if about is None:
        raise ValueError(
            f"{place} was not written by python -m otseg_jax.prepare: --config.data.dataset="
            f"{tfds_sets.PREFIX}NAME reads what TFDS wrote, with its classes in {place}/classes.csv"
        )
    if about.dataset != dataset:
        raise ValueError(
            f"{place} holds records of {about.dataset}: --config.data.dataset={about.dataset} "
            f"reads them, and python -m otseg_jax.prepare {dataset} makes such of {dataset}"
        )
    return records.open_records(place, about, split, augmented=augmented)


def _others(root: Path) -> list[str]:
    """Data sets of which records lie in a root."""
    if not root.is_dir():
        return []
    return sorted({info.parent.parent.name for info in root.glob(f"*/[0-9]*/{FEATURES}")})
