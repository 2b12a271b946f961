"""Find the photos, masks and lists of a data set, or say where they are instead."""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otseg_jax import cli, paths
from otseg_jax.data import folders, lists
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.data.folders import PUBLISHED, Folder
from otseg_jax.doctor import mends
from otseg_jax.doctor.findings import Finding

SPLITS = ("train", "val")
# what else a data set may be read with, and the flag that says so
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "coco_stuff": ({"raw_ids": True}, "--config.data.raw_ids=True"),
    "voc12": ({"augmented": False}, "--config.data.augmented=False"),
}
OTHERWISE |= {"coco_object": OTHERWISE["coco_stuff"], "voc21": OTHERWISE["voc12"]}

MOST_FOLDERS = 200  # that are tried in place of a root that holds nothing
ALSO = {
    "images": ("image", "imgs", "img", "photos", "jpegimages"),
    "labels": ("label", "masks", "mask", "annotations", "gt", "segmentationclass"),
    "train": ("training",),
    "val": ("valid", "validation", "test", "testing"),
}
"""What people call the folders of a data set of their own."""


def open_splits(dataset: str, root: str | Path) -> tuple[dict[str, Folder], list[Finding]]:
    """The splits that can be indexed, and what was said of them."""
    splits, found = {}, list[Finding]()
    for name in SPLITS:
        with heard() as said:
            split, told = _open(dataset, root, name)
        # what is wrong with the root itself is said once
        known = {finding.what.partition(": ")[2] for finding in found}
        found += [f for f in (*said, *told) if f.what.partition(": ")[2] not in known]
        if split is not None:
            splits[name] = split
            full = ", as published" * (len(split) == PUBLISHED.get(dataset, {}).get(name))
            what = f"{name}: {len(split):,} photos, each with its mask{full}{_lists(split)}"
            found.append(Finding("ok", what))
    return splits, found


def _open(dataset: str, root: str | Path, name: str) -> tuple[Folder | None, list[Finding]]:
    try:
        return folders.index(dataset, root, name), []
    except (ValueError, OSError) as error:
        if not cli.is_ours(error):
            raise
        refused = f"{name}: {error}"
    if dataset in OTHERWISE:
        options, flag = OTHERWISE[dataset]
        with contextlib.suppress(ValueError, OSError):
            split = folders.index(dataset, root, name, **options)
            return split, [Finding("warning", f"{refused} (read with it here)", flag)]
    mend = _mend(dataset, paths.local(root), name)
    if name == "train" and dataset in VOCABULARIES and not VOCABULARIES[dataset].unseen:
        # such data sets are there to be evaluated on
        return None, [Finding("warning", f"{refused} (of need for a training alone)", mend)]
    return None, [Finding("error", refused, mend)]


def _lists(split: Folder) -> str:
    if split.home.name != "JPEGImages":
        return ""
    found = sorted((split.home.parent / "ImageSets").glob("Segmentation*/*.txt"))
    return f"; lists: {lists.some([file.name for file in found])}" if found else ""


@contextlib.contextmanager
def heard() -> Iterator[list[Finding]]:
    """What the package logs, as findings in place of lines."""
    said: list[Finding] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned = record.levelno >= logging.WARNING
            said.append(Finding("warning" if warned else "note", record.getMessage()))

    logger = logging.getLogger("otseg_jax")
    kept = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Listener()], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = kept


def _mend(dataset: str, root: Path, name: str) -> str:
    """The command that lets a split be indexed, where one is known."""
    if not root.is_dir():
        return ""
    own = (_renamed(root) or _without_mask(root, name)) if dataset == "folder" else _held_out(root)
    return own or _elsewhere(dataset, root, name)


def _held_out(root: Path) -> str:
    """Take what the validation list holds off the lists to train on."""
    for home in (root, *root.glob("*/"), *root.glob("*/*/")):
        if not (home / "JPEGImages").is_dir():
            continue
        photos = [file.stem for file in (home / "JPEGImages").glob("*.jpg")]
        for held_out in (*sorted(home.glob("ImageSets/Segmentation*/val.txt")), home / "val.txt"):
            others = [held_out.with_name(f"{name}.txt") for name in ("train", "aug", "trainaug")]
            with contextlib.suppress(ValueError, OSError):
                val = {*lists.read_names(held_out, photos)}
                read = {file: lists.read_names(file, photos) for file in others if file.is_file()}
                if leaked := [file for file, names in read.items() if val & {*names}]:
                    names = sorted({name for file in leaked for name in read[file]} & val)
                    return mends.take_off(leaked, names[: mends.MOST])
    return ""


def _without_mask(root: Path, name: str) -> str:
    """Take away the photos of one's own that have no mask, where most have one."""
    folder, masks = root / "images" / name, root / "labels" / name
    if not (folder.is_dir() and masks.is_dir()):
        return ""
    photos = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in lists.PHOTOS]
    labelled = {lists.plain(path.stem) for path in masks.glob("*")}
    alone = [path for path in photos if lists.plain(path.stem) not in labelled]
    return mends.put_away(alone, folder) if alone and 2 * len(alone) < len(photos) else ""


def _renamed(root: Path) -> str:
    """Put the folders of a data set of one's own where they are looked for."""
    there = {
        (path.parent.name.lower(), path.name.lower()): path
        for path in sorted(root.glob("*/*"))
        if path.is_dir()
    }
    parts = []
    for kind, name in itertools.product(("images", "labels"), SPLITS):
        wanted = root / kind / name
        if wanted.is_dir():
            continue
        called = itertools.product((kind, *ALSO[kind]), (name, *ALSO[name]))
        found = [there.get(pair) or there.get(pair[::-1]) for pair in called]
        old = next(filter(None, found), None)
        if old is None:
            return ""
        parts.append(mends.move(old, wanted))
    return " && ".join(parts)


def _elsewhere(dataset: str, root: Path, name: str) -> str:
    """The root that was meant: above the one that was given, or in it."""
    inside = itertools.chain(root.glob("*/"), root.glob("*/*/"))
    near = itertools.chain(root.parents[:2], itertools.islice(inside, MOST_FOLDERS))
    for place in near:
        with heard(), contextlib.suppress(ValueError, OSError):
            folders.index(dataset, place, name)
            return f"--root={place}, and in a training --config.data.root={place}"
    return ""
