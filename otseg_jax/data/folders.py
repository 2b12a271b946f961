"""Index data sets in the folders that their authors ship, or in your own, and read examples.

Problems of the tree (a missing list, masks that are not there) are collected by `index` and raised
once; problems inside a file are raised when it is read.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import SupportsIndex, TypedDict

import numpy as np
from jaxtyping import Int16, UInt8

from otseg_jax.data import classes, decode
from otseg_jax.data.classes import VOCABULARIES, Vocabulary

LOGGER = logging.getLogger(__name__)

PUBLISHED = {
    "voc12": {"train": 10_582, "val": 1_449},
    "pascal_context": {"train": 4_996, "val": 5_104},
    "coco_stuff": {"train": 118_287, "val": 5_000},
    "ade20k": {"train": 20_210, "val": 2_000},
}
"""Images of each full split: results on another number of them compare with nothing published."""

Pair = tuple[Path, tuple[Path, ...]]
"""A photo, and where its mask may lie: the first that exists is taken."""


class Example(TypedDict):
    """A photo in RGB, its class ids (or `IGNORE`), and the file name without suffix."""

    image: UInt8[np.ndarray, "h w 3"]
    label: Int16[np.ndarray, "h w"]
    name: str


@dataclass(frozen=True)
class Folder:
    """An indexed split: `folder[i]` reads a photo, and the mask at the same place in `labels`."""

    vocabulary: Vocabulary
    images: tuple[Path, ...] = field(repr=False)
    labels: tuple[Path, ...] = field(repr=False)
    coding: decode.Coding = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: SupportsIndex) -> Example:
        image, label = decode.photo(self.images[i]), decode.mask(self.labels[i], self.coding)
        if image.shape[:2] != label.shape:
            raise ValueError(
                f"{self.labels[i]} is {label.shape[1]} x {label.shape[0]} pixels, its photo "
                f"{self.images[i]} {image.shape[1]} x {image.shape[0]}: save the mask in the size "
                "that the photo has after the rotation its EXIF data ask for"
            )
        return {"image": image, "label": label, "name": self.images[i].stem}


def index(
    dataset: str, root: str | Path, split: str, *, augmented: bool = True, raw_ids: bool = False
) -> Folder:
    """Find the photos and masks of one split, in the order of its list or of the file names.

    Args:
        dataset: "voc12", "pascal_context", "coco_stuff", "ade20k", or "folder" for your own data:
            images/{train,val}/*.{jpg,jpeg,png}, labels/{train,val}/*.png holding 0..K-1 or 255
            (more than 255 classes: 16-bit grey, 65535 instead of 255), and classes.csv: under the
            header `name,split` one line per class in id order, split being seen or unseen.
        root: the folder of the data set itself (VOC2012, VOC2010, coco_stuff164k or MSCOCO,
            ADEChallengeData2016), or one above it (VOCdevkit, or what holds that).
        augmented: VOC only: train on the images of `aug.txt` too, as every published result does.
        raw_ids: COCO-Stuff only: read the raw maps `ID.png` (0..181) and convert them to train ids,
            for trees where `ID_labelTrainIds.png` was never made.

    Raises:
        FileNotFoundError: the root, a folder, a list, photos or masks are missing.
        ValueError: an unknown data set or split, raw COCO ids without `raw_ids` or the reverse, a
            training image that is in the validation list as well, or a wrong `classes.csv`.
    """
    root = Path(root)
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r}: wanted 'train' or 'val'")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder: --config.data.root must name the one that holds {dataset}"
        )
    find: dict[str, Callable[[Path, str], Folder]] = {
        "voc12": partial(_voc12, augmented=augmented),
        "pascal_context": _pascal_context,
        "coco_stuff": partial(_coco_stuff, raw_ids=raw_ids),
        "ade20k": _ade20k,
        "folder": _own,
    }
    if dataset not in find:
        wanted = ", ".join(find)
        raise ValueError(f"data set {dataset!r} does not lie in folders: wanted {wanted}")
    folder = find[dataset](root, split)
    size, published = len(folder), PUBLISHED.get(dataset, {}).get(split)
    # Without `augmented` the VOC split is smaller by intention.
    if published and size != published and augmented:
        said = "%s %s: %d images, the published split has %d"
        LOGGER.warning(said, dataset, split, size, published)
    return folder


def _voc12(root: Path, split: str, augmented: bool) -> Folder:
    home = _home(root, ("VOC2012", "VOCdevkit/VOC2012"), ("JPEGImages",))
    lists = home / "ImageSets" / "Segmentation"
    names, further = _read_list(lists / f"{split}.txt"), list[str]()
    if split == "train" and augmented:
        hint = "--config.data.augmented=False trains on train.txt alone"
        source = _first(lists / "aug.txt", lists / "trainaug.txt", hint=hint)
        listed, counted = _read_list(source), set(names)
        # An augmented list that repeats train.txt (trainaug.txt does) would count images twice.
        further = [name for name in listed if name not in counted]
        if twice := len(listed) - len(further):
            total = len(names) + len(further)
            said = "%s repeats %d images of train.txt: each is used once, %d instead of %d images"
            LOGGER.warning(said, source, twice, total, total + twice)
    if split == "train":
        _check_held_out([*names, *further], lists / "val.txt")
    own, extra = "SegmentationClass", "SegmentationClassAug"
    pairs = [_voc_pair(home, name, own, extra) for name in names]
    pairs += [_voc_pair(home, name, extra, own) for name in further]
    hint = "replace it by the mask of the data set"
    coding = decode.reduced_coding(20, zero="background", hint=hint)
    return _collect(VOCABULARIES["voc12"], pairs, coding)


def _pascal_context(root: Path, split: str) -> Folder:
    masks = "SegmentationClassContext"
    home = _home(root, ("VOC2010", "VOCdevkit/VOC2010"), ("JPEGImages", masks))
    lists = home / "ImageSets" / "SegmentationContext"
    names = _read_list(_first(lists / f"{split}.txt", home / f"{split}.txt"))
    if split == "train":
        _check_held_out(names, lists / "val.txt", home / "val.txt")
    pairs = [_voc_pair(home, name, masks) for name in names]
    hint = "make the masks of the 59 classes, not those of all 459"
    coding = decode.reduced_coding(59, zero="background", hint=hint)
    return _collect(VOCABULARIES["pascal_context"], pairs, coding)


def _coco_stuff(root: Path, split: str, raw_ids: bool) -> Folder:
    part = f"{split}2017"
    home = _home(root, ("coco_stuff164k", "MSCOCO"), (f"annotations/{part}",))
    photos = _photos(_first(home / "images" / part, home / part), (".jpg",))
    maps = home / "annotations" / part
    if raw_ids:
        hint = "train ids belong into ID_labelTrainIds.png, read with --config.data.raw_ids=False"
        suffix, coding = "", decode.raw_coco_coding(hint=hint)
        instead = "--config.data.raw_ids=False reads them as they are"
        alone = f"train ids alone (ID_labelTrainIds.png), nothing raw to convert: {instead}"
    else:
        hint = "171..181 are raw ids; name such maps ID.png and set --config.data.raw_ids=True"
        suffix, coding = "_labelTrainIds", decode.plain_coding(171, hint=hint)
        instead = "--config.data.raw_ids=True converts them while reading"
        alone = f"raw ids alone (ID.png, 0..181), no ID_labelTrainIds.png: {instead}"
    # Raw ids taken for train ids give scores of 0 without a word, so that both ways are refused.
    if {path.stem.endswith("_labelTrainIds") for path in maps.glob("*.png")} == {raw_ids}:
        raise ValueError(f"{maps} holds {alone}")
    pairs = [(photo, (maps / f"{photo.stem}{suffix}.png",)) for photo in photos]
    return _collect(VOCABULARIES["coco_stuff"], pairs, coding)


def _ade20k(root: Path, split: str) -> Folder:
    part = {"train": "training", "val": "validation"}[split]
    inside = ("ADEChallengeData2016", "ade/ADEChallengeData2016")
    home = _home(root, inside, (f"images/{part}", f"annotations/{part}"))
    photos = _photos(home / "images" / part, (".jpg",))
    pairs = [(photo, (home / "annotations" / part / f"{photo.stem}.png",)) for photo in photos]
    hint = "take the masks of the scene parsing challenge (150 classes), not the full ADE20K"
    coding = decode.reduced_coding(150, zero="other", hint=hint)
    return _collect(VOCABULARIES["ade20k"], pairs, coding)


def _own(root: Path, split: str) -> Folder:
    hint = "write name,split into it, then one line NAME,seen or NAME,unseen per class"
    vocabulary = classes.read(_first(root / "classes.csv", hint=hint))
    home = _home(root, (), (f"images/{split}", f"labels/{split}"))
    folder, masks = home / "images" / split, home / "labels" / split
    photos = _photos(folder, (".jpg", ".jpeg", ".png"))
    if twins := [stem for stem, n in Counter(photo.stem for photo in photos).items() if n > 1]:
        raise ValueError(f"{folder}: photos that share a mask, rename one of each: {_some(twins)}")
    pairs = [(photo, (masks / f"{photo.stem}.png",)) for photo in photos]
    hint = "line up classes.csv with the masks; ids start at 0"
    return _collect(vocabulary, pairs, decode.plain_coding(len(vocabulary), hint=hint))


def _voc_pair(home: Path, name: str, *masks: str) -> Pair:
    return home / "JPEGImages" / f"{name}.jpg", tuple(home / m / f"{name}.png" for m in masks)


def _home(root: Path, inside: Sequence[str], wanted: Sequence[str]) -> Path:
    """The first of root and the folders inside it that has all wanted folders."""
    homes = [root, *(root / part for part in inside)]
    for home in homes:
        if all((home / part).is_dir() for part in wanted):
            return home
    raise FileNotFoundError(
        f"--config.data.root={root}: looked for {' and '.join(f'{w}/' for w in wanted)} in "
        f"{' and '.join(map(str, homes))}; name the folder that holds them"
    )


def _first(*paths: Path, hint: str = "put it there") -> Path:
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(f"found no {' or '.join(map(str, paths))}: {hint}")


def _photos(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    # Names that begin with a dot are what macOS leaves behind, not photos.
    files = (path for path in folder.iterdir() if not path.name.startswith("."))
    photos = sorted(path for path in files if path.suffix.lower() in suffixes)
    if not photos:
        raise FileNotFoundError(f"{folder} holds no photo ({', '.join(suffixes)})")
    return photos


def _read_list(path: Path) -> list[str]:
    names = _first(path).read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise ValueError(f"{path} is empty: wanted one image name (without suffix) per line")
    return list(dict.fromkeys(names))


def _check_held_out(names: Sequence[str], *lists: Path) -> None:
    for path in lists:
        if path.is_file() and (leaked := sorted(set(names) & set(_read_list(path)))):
            raise ValueError(f"images to train on that {path} holds out: {_some(leaked)}")


def _collect(vocabulary: Vocabulary, pairs: Sequence[Pair], coding: decode.Coding) -> Folder:
    # One listing per folder instead of a stat per file: minutes on a network disk for COCO.
    folders = {path.parent for photo, masks in pairs for path in (photo, *masks)}
    present = {path for folder in folders if folder.is_dir() for path in folder.iterdir()}
    missing, labels = [], []
    for photo, masks in pairs:
        found = [mask for mask in masks if mask in present]
        missing += [photo] * (photo not in present) + [masks[0]] * (not found)
        labels += found[:1]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {2 * len(pairs)} photos and masks are missing: {_some(missing)}; "
            "complete the download"
        )
    return Folder(vocabulary, tuple(photo for photo, _ in pairs), tuple(labels), coding)


def _some(problems: Sequence[object]) -> str:
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    return ", ".join([*map(str, problems[:5]), *more])
