"""Whether photos can be read, have the size of their masks, and are there once."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from otseg_jax.data import decode
from otseg_jax.data.folders import Folder
from otseg_jax.data.lists import some
from otseg_jax.doctor import mends
from otseg_jax.doctor.findings import Finding

ORIENTATION = 274  # tag of EXIF; from 5 on width and height change places
HEADERS = 2000  # photos of a split whose size is compared with their mask's, unless all are
PIECE = 4096  # bytes of a file that are read before the whole of it

Pair = tuple[Path, Path]
"""A photo and its mask."""


def readable(name: str, split: Folder, sample: int, threads: int) -> list[Finding]:
    """Decode photos, at most `sample` of them, evenly spaced; 0: all."""
    pairs = _spread(split, sample)
    with ThreadPoolExecutor(threads) as pool:
        told = pool.map(_problem, [photo for photo, _ in pairs])
        bar = tqdm(told, f"Photos of {name}", len(pairs), delay=2, unit="photo", leave=False)
        problems = dict(zip(pairs, bar, strict=True))
    bad = {pair: problem for pair, problem in problems.items() if problem}
    if not bad:
        return [Finding("ok", f"{name}: {len(pairs):,} photos decoded")]
    what = f"{name}: {some([*bad.values()], most=3, mark='; ')}"
    return [Finding("error", what, mends.leave_out(split, [*bad]))]


def _problem(photo: Path) -> str:
    try:
        decode.photo(photo)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def sizes(name: str, split: Folder, sample: int, threads: int) -> list[Finding]:
    """Compare the sizes that files of photos and masks state, of `sample` pairs; 0: all."""
    pairs = _spread(split, sample and max(sample, HEADERS))
    with ThreadPoolExecutor(threads) as pool:
        bar = tqdm(pool.map(_kind, pairs), f"Sizes of {name}", len(pairs), delay=2, leave=False)
        by_kind = defaultdict(list)
        for pair, kind in zip(pairs, bar, strict=True):
            by_kind[kind].append(pair)
    mended = {
        "turned": ("lie as the photo does before its EXIF data turn it", mends.turn),
        "scaled": ("are the whole photo in another size", mends.resize),
        "other": ("have another size and shape", lambda pairs: mends.leave_out(split, [*pairs])),
    }
    found = []
    for kind, (how, mend) in mended.items():
        if wrong := by_kind[kind]:
            shown = some([mask for _, mask in wrong], most=3)
            what = f"{name}: {len(wrong)} of {len(pairs):,} masks {how}{_again(wrong)}: {shown}"
            found.append(Finding("error", what, mend(wrong)))
    return found or [Finding("ok", f"{name}: {len(pairs):,} masks have the size of their photos")]


def _kind(pair: Pair) -> str:
    """How the size of a mask differs from its photo's; "" where it does not."""
    try:
        with Image.open(pair[0]) as photo, Image.open(pair[1]) as mask:
            turned = photo.getexif().get(ORIENTATION, 1) >= 5
            stored, size = photo.size, mask.size
    except Exception:  # told where it is decoded
        return ""
    upright = stored[::-1] if turned else stored
    if size == upright:
        return ""
    if size == stored:
        return "turned"
    # rounded to whole pixels, the sides of a copy keep their ratio to one pixel
    wide, high = size[0] * upright[1], size[1] * upright[0]
    return "scaled" if abs(wide - high) <= max(*upright, *size) else "other"


def _spread(split: Folder, sample: int) -> list[Pair]:
    every = max(1, -(-len(split) // sample)) if sample else 1
    return [*zip(split.images, split.labels, strict=True)][::every]


def doubled(splits: Mapping[str, Folder]) -> list[Finding]:
    """Photos that are there several times, byte for byte, in a split or in two."""
    place = {
        photo: (name, split, mask)
        for name, split in splits.items()
        for photo, mask in zip(split.images, split.labels, strict=True)
    }
    inside: dict[str, list[list[Path]]] = defaultdict(list)
    across: list[list[Path]] = []
    for group in equal(place):
        names = {place[photo][0] for photo in group}
        if len(names) > 1:
            across.append([photo for photo in group if place[photo][0] == "train"])
        for name in names:
            if len(same := [photo for photo in group if place[photo][0] == name]) > 1:
                inside[name].append(same)
    found = []
    if across:
        leaked = [photo for group in across for photo in group]
        what = (
            f"{len(leaked)} photos to train on are in val too, byte for byte, so that val is no "
            f"test{_again(leaked)}: {some(leaked, most=3)}"
        )
        found.append(Finding("error", what, _left_out(leaked, place)))
    for name, groups in inside.items():
        extra = [photo for group in groups for photo in group[1:]]
        masks = [{place[photo][2].read_bytes() for photo in group} for group in groups]
        example = f"{groups[0][1]} of {groups[0][0]}"
        what = f"{name}: {len(extra)} photos are copies of others{_again(extra)}: {example}"
        if differ := sum(len(kinds) > 1 for kinds in masks):
            what += f"; the masks of {differ} are not the same"
        found.append(Finding("warning", what, _left_out(extra, place)))
    return found or [Finding("ok", f"{len(place):,} photos, none there twice")]


def _again(files: Sequence[object]) -> str:
    """That a command names some of the files only."""
    return f" (the command is of {mends.MOST}: do all of this again)" * (len(files) > mends.MOST)


def _left_out(photos: Sequence[Path], place: Mapping[Path, tuple[str, Folder, Path]]) -> str:
    _, split, _ = place[photos[0]]
    return mends.leave_out(split, [(photo, place[photo][2]) for photo in photos])


def equal(files: Iterable[Path]) -> list[list[Path]]:
    """Groups of files of the same bytes.

    Few are read as a whole: those that agree in size, and then in a piece from their middle.
    """
    groups = [list(files)]
    for key in (_size, _middle, _digest):
        groups = [part for group in groups for part in _grouped(group, key)]
    return groups


def _grouped(files, key):
    parts = defaultdict(list)
    for file in files:
        parts[key(file)].append(file)
    return [part for part in parts.values() if len(part) > 1]


def _size(file: Path) -> int:
    return file.stat().st_size


def _middle(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(_size(file) // 2)
        return opened.read(PIECE)


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
