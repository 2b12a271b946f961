"""Index data sets in the folders that their authors ship, or in your own, and read examples.

Problems of the tree (a missing list, masks that are not there) are collected by `index` and raised
once; problems inside a file are raised when it is read.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import SupportsIndex

from otseg_jax import paths
from otseg_jax.data import classes, codings, decode, lists, pairs
from otseg_jax.data.classes import VOCABULARIES, Vocabulary
from otseg_jax.data.file import File
from otseg_jax.data.lists import some
from otseg_jax.data.pairs import Pair

LOGGER = logging.getLogger(__name__)

PUBLISHED = {
    "voc12": {"train": 10_582, "val": 1_449},
    "pascal_context": {"train": 4_996, "val": 5_104},
    "coco_stuff": {"train": 118_287, "val": 5_000},
    "ade20k": {"train": 20_210, "val": 2_000},
    "cityscapes": {"train": 2_975, "val": 500},
}
PUBLISHED |= {
    "voc21": PUBLISHED["voc12"],
    "context60": PUBLISHED["pascal_context"],
    "coco_object": PUBLISHED["coco_stuff"],
}
"""Images of each full split: results on another number of them compare with nothing published."""

NO_MASKS = (
    "Photos alone are labelled by python -m otseg_jax.predict PHOTO… --model=WORKDIR, or in Python "
    "by otseg_jax.load(WORKDIR)(PHOTO), WORKDIR being that of a finished run"
)
"""The way of who only wants predictions."""


@dataclass(frozen=True)
class Folder:
    """An indexed split: `folder[i]` reads a photo, and the mask at the same place in `labels`."""

    vocabulary: Vocabulary
    images: tuple[Path, ...] = field(repr=False)
    labels: tuple[Path, ...] = field(repr=False)
    coding: codings.Coding = field(repr=False)
    home: Path  # what the photos lie in, in folders or not

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: SupportsIndex) -> decode.Example:
        return decode.example(*self.files(i), self.coding, self.name(i))

    def files(self, i: SupportsIndex) -> tuple[File, File]:
        """A photo and its mask, as they are stored."""
        return self.images[i], self.labels[i]

    def name(self, i: SupportsIndex) -> str:
        """The path of a photo in the split, without suffix."""
        return self.images[i].relative_to(self.home).with_suffix("").as_posix()


def index(
    dataset: str, root: str | Path, split: str, *, augmented: bool = True, raw_ids: bool = False
) -> Folder:
    """Find the photos and masks of one split, in the order of its list or of the file names.

    Args:
        dataset: one of `classes.VOCABULARIES` that lies in folders, or "folder" for your own data,
            as in `configs/folder.py`.
        root: the folder of the data set itself (VOC2012, VOC2010, coco_stuff164k or MSCOCO,
            ADEChallengeData2016, cityscapes), or one above it (VOCdevkit, or what holds that).
        augmented: VOC only: train on the images of `aug.txt` too, as every published result does.
        raw_ids: COCO only: read the raw maps `ID.png` (0..181) and convert them to train ids,
            for trees where `ID_labelTrainIds.png` was never made.

    Raises:
        FileNotFoundError: the root, a folder, a list, photos or masks are missing.
        ValueError: an unknown data set or split, raw COCO ids without `raw_ids` or the reverse, a
            training image that is in the validation list as well, or a wrong `classes.csv`.
    """
    root = paths.local(root)
    if split not in ("train", "val"):
        raise ValueError(f"split {split!r}: wanted 'train' or 'val'")
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder: --config.data.root must name the one that holds {dataset}"
        )
    find: dict[str, Callable[[Path, str], Folder]] = {
        "voc12": partial(_voc12, augmented=augmented),
        "voc21": partial(_voc12, augmented=augmented, background=True),
        "pascal_context": _pascal_context,
        "context60": partial(_pascal_context, background=True),
        "coco_stuff": partial(_coco_stuff, raw_ids=raw_ids),
        "coco_object": partial(_coco_object, raw_ids=raw_ids),
        "ade20k": _ade20k,
        "cityscapes": _cityscapes,
        "folder": _own,
    }
    if dataset not in find:
        wanted = ", ".join(find)
        raise ValueError(f"data set {dataset!r} does not lie in folders: wanted {wanted}")
    folder = find[dataset](root, split)
    if augmented:  # without, the VOC split is smaller by intention
        tell_size(dataset, split, len(folder))
    return folder


def tell_size(dataset: str, split: str, size: int) -> None:
    """Warn where a split has not as many images as the published one."""
    published = PUBLISHED.get(dataset, {}).get(split)
    if published and size != published:
        said = "%s %s: %d images, the published split has %d"
        LOGGER.warning(said, dataset, split, size, published)


def _voc12(root: Path, split: str, augmented: bool, background: bool = False) -> Folder:
    home = _home(root, ("VOC2012", "VOCdevkit/VOC2012"), ("JPEGImages",))
    where = home / "ImageSets" / "Segmentation"
    photos = _listed(home)
    names, further = lists.read_names(_first(where / f"{split}.txt"), photos), list[str]()
    if split == "train" and augmented:
        hint = "--config.data.augmented=False trains on train.txt alone"
        source = _first(where / "aug.txt", where / "trainaug.txt", hint=hint)
        listed, counted = lists.read_names(source, photos), set(names)
        # An augmented list that repeats train.txt (trainaug.txt does) would count images twice.
        further = [name for name in listed if name not in counted]
        if twice := len(listed) - len(further):
            total = len(names) + len(further)
            said = "%s repeats %d images of train.txt: each is used once, %d instead of %d images"
            LOGGER.warning(said, source, twice, total, total + twice)
    if split == "train":
        _check_held_out([*names, *further], photos, where / "val.txt")
    own, extra = "SegmentationClass", "SegmentationClassAug"
    found = [_voc_pair(home, name, own, extra) for name in names]
    found += [_voc_pair(home, name, extra, own) for name in further]
    hint = "replace it by the mask of the data set"
    vocabulary = VOCABULARIES["voc21" if background else "voc12"]
    coding = _after_background(vocabulary, background, hint)
    return _collect(vocabulary, found, coding, home / "JPEGImages")


def _pascal_context(root: Path, split: str, background: bool = False) -> Folder:
    masks = "SegmentationClassContext"
    home = _home(root, ("VOC2010", "VOCdevkit/VOC2010"), ("JPEGImages", masks))
    where, photos = home / "ImageSets" / "SegmentationContext", _listed(home)
    names = lists.read_names(_first(where / f"{split}.txt", home / f"{split}.txt"), photos)
    if split == "train":
        _check_held_out(names, photos, where / "val.txt", home / "val.txt")
    found = [_voc_pair(home, name, masks) for name in names]
    hint = "make the masks of the 59 classes, not those of all 459"
    vocabulary = VOCABULARIES["context60" if background else "pascal_context"]
    coding = _after_background(vocabulary, background, hint)
    return _collect(vocabulary, found, coding, home / "JPEGImages")


def _after_background(vocabulary: Vocabulary, background: bool, hint: str) -> codings.Coding:
    """Masks whose value 0 is the background: a class, or none."""
    if background:
        return codings.plain_coding(len(vocabulary), hint=hint)
    return codings.reduced_coding(len(vocabulary), zero="background", hint=hint)


def _coco_stuff(root: Path, split: str, raw_ids: bool) -> Folder:
    part = f"{split}2017"
    home = _home(root, ("coco_stuff164k", "MSCOCO"), (f"annotations/{part}",))
    folder = _first(home / "images" / part, home / part)
    maps = home / "annotations" / part
    if raw_ids:
        hint = "train ids belong into ID_labelTrainIds.png, read with --config.data.raw_ids=False"
        suffix, coding = "", codings.raw_coco_coding(hint=hint)
        instead = "--config.data.raw_ids=False reads them as they are"
        alone = f"train ids alone (ID_labelTrainIds.png), nothing raw to convert: {instead}"
    else:
        hint = "171..181 are raw ids; name such maps ID.png and set --config.data.raw_ids=True"
        suffix, coding = "_labelTrainIds", codings.plain_coding(171, hint=hint)
        instead = "--config.data.raw_ids=True converts them while reading"
        alone = f"raw ids alone (ID.png, 0..181), no ID_labelTrainIds.png: {instead}"
    # Raw ids taken for train ids give scores of 0 without a word, so that both ways are refused.
    if {path.stem.endswith("_labelTrainIds") for path in maps.glob("*.png")} == {raw_ids}:
        raise ValueError(f"{maps} holds {alone}")
    photos = pairs.photos(folder, (".jpg",))
    found = [(photo, (maps / f"{photo.stem}{suffix}.png",)) for photo in photos]
    return _collect(VOCABULARIES["coco_stuff"], found, coding, folder)


def _coco_object(root: Path, split: str, raw_ids: bool) -> Folder:
    stuff = _coco_stuff(root, split, raw_ids)
    coding = codings.coco_object_coding(raw=raw_ids, hint=stuff.coding.hint)
    return replace(stuff, vocabulary=VOCABULARIES["coco_object"], coding=coding)


def _ade20k(root: Path, split: str) -> Folder:
    part = {"train": "training", "val": "validation"}[split]
    inside = ("ADEChallengeData2016", "ade/ADEChallengeData2016")
    home = _home(root, inside, (f"images/{part}", f"annotations/{part}"))
    folder = home / "images" / part
    photos = pairs.photos(folder, (".jpg",))
    found = [(photo, (home / "annotations" / part / f"{photo.stem}.png",)) for photo in photos]
    hint = "take the masks of the scene parsing challenge (150 classes), not the full ADE20K"
    coding = codings.reduced_coding(150, zero="other", hint=hint)
    return _collect(VOCABULARIES["ade20k"], found, coding, folder)


def _cityscapes(root: Path, split: str) -> Folder:
    home = _home(root, ("cityscapes",), (f"leftImg8bit/{split}", f"gtFine/{split}"))
    folder, maps = home / "leftImg8bit" / split, home / "gtFine" / split
    # train ids are made by cityscapesScripts; what is downloaded has the ids alone
    made = next(maps.glob("*/*_gtFine_labelTrainIds.png"), None) is not None
    hint = "take the files of gtFine, as downloaded or as cityscapesScripts made them"
    coding = codings.cityscapes_coding(hint=hint)
    if made:
        coding = codings.plain_coding(19, hint=hint)
    end = f"_gtFine_{'labelTrainIds' if made else 'labelIds'}.png"
    found: list[Pair] = []
    for photo in pairs.photos(folder, (".png",)):
        name = photo.stem.removesuffix("_leftImg8bit") + end
        found.append((photo, ((maps / photo.relative_to(folder)).with_name(name),)))
    return _collect(VOCABULARIES["cityscapes"], found, coding, folder)


def _own(root: Path, split: str) -> Folder:
    hint = "write name,split into it, then one line NAME,seen or NAME,unseen per class"
    if alike := [p.name for p in root.iterdir() if p.name.lower().startswith("classes.")]:
        hint = f"{some(sorted(alike))} is there: rename it, or {hint}"
    listing = classes.read_listing(_first(root / "classes.csv", hint=hint))
    if listing.ignored and split == "val":  # once: that split is read by every command
        said = "%s: ids %s stand for no class; the others are classes 0..%d, in predictions too"
        LOGGER.info(said, root / "classes.csv", [*listing.ignored], len(listing.vocabulary) - 1)
    folder, masks = root / "images" / split, root / "labels" / split
    if folder.is_dir() and not (masks.is_dir() and any(masks.iterdir())):
        raise FileNotFoundError(f"{masks} holds no masks, of the photos in {folder}. {NO_MASKS}")
    _home(root, (), (f"images/{split}", f"labels/{split}"))
    photos = pairs.photos(folder)
    stems = Counter(photo.relative_to(folder).with_suffix("") for photo in photos)
    if twins := [stem for stem, n in stems.items() if n > 1]:
        raise ValueError(f"{folder}: photos that share a mask, rename one of each: {some(twins)}")
    found = [(photo, (masks / f"{stem}.png",)) for photo, stem in zip(photos, stems, strict=True)]
    coding = codings.own_coding(listing, hint="line up classes.csv with the masks; ids start at 0")
    mend = "a mask has the name and the folder of its photo: add those, or take the photos away"
    return _collect(listing.vocabulary, found, coding, folder, mend)


def _voc_pair(home: Path, name: str, *masks: str) -> Pair:
    return home / "JPEGImages" / f"{name}.jpg", tuple(home / m / f"{name}.png" for m in masks)


def _listed(home: Path) -> list[str]:
    """Names of the photos of VOC, whatever lists say."""
    files = (path for path in (home / "JPEGImages").iterdir() if not path.name.startswith("."))
    return [file.stem for file in files if file.suffix.lower() in lists.PHOTOS]


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


def _collect(
    vocabulary: Vocabulary,
    found: Sequence[Pair],
    coding: codings.Coding,
    home: Path,
    mend: str = "complete the download",
) -> Folder:
    return Folder(vocabulary, *pairs.match(found, mend=mend), coding, home)


def _check_held_out(names: Sequence[str], photos: Collection[str], *paths: Path) -> None:
    for path in paths:
        if path.is_file() and (leaked := sorted(set(names) & set(lists.read_names(path, photos)))):
            raise ValueError(f"images to train on that {path} holds out: {some(leaked)}")
