"""The photos that a command line names: files, folders, patterns, and lists on standard input."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from otseg_jax import paths
from otseg_jax.checkpoints.restore import CHECKPOINTS
from otseg_jax.data.lists import PHOTOS

SUFFIXES = (*PHOTOS, ".gif", ".jfif")


def find(arguments: Sequence[str], lines: Iterable[str]) -> list[Path]:
    """The photos of arguments in their order, none twice; what is not there is left in.

    Args:
        arguments: a folder stands for the photos in it, "-" for `lines`, and a pattern with * or ?
            for what it matches ("**" for folders in folders).

    Raises:
        ValueError: a folder without a photo, a pattern that matches nothing, an empty list.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for argument in arguments:
        some = [*_of_list(lines)] if argument == "-" else [*_of(argument)]
        if not some:
            problems.append(_nothing(argument))
        found.update(dict.fromkeys(some))
    if problems:
        raise ValueError("; ".join(problems))
    return list(found)


def _of(argument: str) -> Iterator[Path]:
    path = paths.local(argument)
    if path.is_dir():
        yield from sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    elif not path.exists() and glob.has_magic(argument):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute)
        yield from (Path(match) for match in matches if not Path(match).is_dir())
    else:
        yield path


def _of_list(lines: Iterable[str]) -> Iterator[Path]:
    for line in lines:
        if name := line.strip():
            yield paths.local(name)


def _nothing(argument: str) -> str:
    if argument == "-":
        return "standard input names no photo: wanted a path on each line"
    if glob.has_magic(argument):
        return f"{argument} matches no file"
    folder = paths.local(argument)
    if (folder / "config.json").is_file() or (folder / CHECKPOINTS).is_dir():
        return f"{argument} holds a model and no photo: give it as --model={argument}"
    return f"{argument} holds no photo ({', '.join(SUFFIXES)}); for folders in it: '{argument}/**'"


def stems(photos: Sequence[Path]) -> list[str]:
    """A name for the results of each photo, none twice, whatever the case of letters."""
    taken: set[str] = set()
    found = []
    for photo in photos:
        stem, number = photo.stem, 2
        while stem.casefold() in taken:
            stem, number = f"{photo.stem}_{number}", number + 1
        taken.add(stem.casefold())
        found.append(stem)
    return found
