"""Find photos in folders, and the mask that belongs to each.

A mask has the name of its photo. What differs from that without a doubt (the case of a suffix, TIFF
in place of PNG, the two Unicode forms of an "ö") is found; of the rest, what lies there is named.
"""

import logging
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from otseg_jax.data.decode import LOSSY
from otseg_jax.data.lists import PHOTOS, plain, some

LOGGER = logging.getLogger(__name__)

MASKS = (".png", ".tif", ".tiff", ".bmp")
"""Suffixes of masks, in lower case: formats that keep every value."""

Pair = tuple[Path, tuple[Path, ...]]
"""A photo, and where its mask may lie: the first that exists is taken."""


def photos(folder: Path, suffixes: Sequence[str] = PHOTOS) -> list[Path]:
    """All photos in a folder and the folders in it, sorted; says which pictures are left out.

    Raises:
        FileNotFoundError: none there.
    """
    found, left_out = [], []
    for path in _files(folder):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            found.append(path)
        elif suffix in _PICTURES:
            left_out.append(path.relative_to(folder))
    if left_out:
        wanted = f"{len(left_out)} pictures that are not {', '.join(suffixes)}"
        said = f"{wanted}: {some(sorted(left_out))}: save them as .png or .jpg"
        if not found:
            raise FileNotFoundError(f"{folder} holds no photo but {said}")
        LOGGER.warning("%s: left out %s", folder, said)
    if not found:
        raise FileNotFoundError(f"{folder} holds no photo ({', '.join(suffixes)})")
    return sorted(found)


def match(pairs: Sequence[Pair], *, mend: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The photos and masks that are there for these names.

    Args:
        mend: what to do about files that are missing where nothing similar lies.

    Raises:
        FileNotFoundError: photos or masks that are missing, all in one message, with what lies
            there in place of the first.
    """
    # One listing per folder instead of a stat per file: minutes on a network disk for COCO.
    present = {path.parent: None for photo, masks in pairs for path in (photo, *masks)}
    listed = {folder: _by_stem(folder) for folder in present}
    found, missing = [], []
    for photo, masks in pairs:
        image = _like(photo, PHOTOS, listed)
        mask = next((m for path in masks if (m := _like(path, MASKS, listed))), None)
        missing += [(photo, PHOTOS)] * (image is None) + [(masks[0], MASKS)] * (mask is None)
        if image and mask:
            found.append((image, mask))
    if missing:
        paths = [path for path, _ in missing]
        taken = {path for pair in found for path in pair}
        hints = (_instead(path, suffixes, taken) for path, suffixes in missing[:5])
        raise FileNotFoundError(
            f"{len(missing)} of {2 * len(pairs)} photos and masks are missing: {some(paths)}; "
            f"{next(filter(None, hints), mend)}"
        )
    return tuple(photo for photo, _ in found), tuple(mask for _, mask in found)


_JOINTS = {"_", "-", ".", " "}

# What Pillow and phones call a picture, to tell a photo that is left out from other files.
Image.init()
_PICTURES = {*Image.EXTENSION, ".heic", ".heif", ".avif", ".jxl", ".dng"} - {
    ".pdf",
    ".mpg",
    ".mpeg",
}


def _files(folder: Path) -> list[Path]:
    """Every file below a folder, through links too."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        # Names that begin with a dot are what macOS leaves behind, not photos.
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Names of the files in a folder by their stems; strings, as there may be 100,000."""
    listed = defaultdict(list)
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and not entry.is_dir():
                    stem = entry.name.rpartition(".")[0] or entry.name
                    listed[plain(stem)].append(entry.name)
    return listed


def _like(
    path: Path, suffixes: Sequence[str], listed: dict[Path, dict[str, list[str]]]
) -> Path | None:
    """The file of that name, else the only one that differs in suffix or Unicode form."""
    candidates = listed[path.parent].get(plain(path.stem), [])
    if path.name in candidates:
        return path
    others = [name for name in candidates if Path(name).suffix.lower() in suffixes]
    return path.with_name(others[0]) if len(others) == 1 else None


def _instead(path: Path, suffixes: Sequence[str], taken: set[Path]) -> str:
    """What lies where a file is missing, and how to mend that; "" if nothing does."""
    folder = next(parent for parent in path.parents if parent.is_dir())
    there = {other for other in folder.iterdir() if not other.name.startswith(".")}
    # the shortest first: 0_1_mask.png belongs to 0_1 rather than to 0
    stem, free = plain(path.stem), sorted(there - taken, key=lambda p: (len(p.name), p.name))
    for other in (p for p in free if folder == path.parent and not p.is_dir()):
        name, kept, suffix = other.name, plain(other.stem), other.suffix
        if kept == stem and suffixes is MASKS and suffix.lower() in (".jpg", ".jpeg", ".webp"):
            return f"found {name} there: {LOSSY}"
        if kept == stem:
            return f"found {name} there: save it as {path.name}, and keep one of that name"
        if suffix.lower() not in suffixes:
            continue
        if kept.lower() == stem.lower():
            return f"found {name} there: rename it to {path.stem}{suffix}"
        before, its, after = kept.rpartition(stem)
        if (
            suffixes is MASKS
            and its
            and (after[:1] in _JOINTS if not before else not after and before[-1] in _JOINTS)
        ):
            which = f"*'{after}{suffix}'" if after else f"'{before}'*"
            cut = f"%{after}{suffix}}}{suffix}" if after else f"#{before}}}"
            return (
                f"found {name} there, but a mask has its photo's name: (cd "
                f'{shlex.quote(str(folder))} && for f in {which}; do mv "$f" "${{f{cut}"; done)'
            )
    if not free or taken:
        return ""  # the rest is in order
    names = some([other.name + "/" * other.is_dir() for other in free])
    rule = "a mask has the name of its photo, in folders of the same names"
    return f"{folder} holds {names}, but {rule}" if suffixes is MASKS else ""
