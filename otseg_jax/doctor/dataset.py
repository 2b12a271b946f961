"""What is wrong with a data set on disk, before a run."""

import os
from dataclasses import replace
from pathlib import Path

from otseg_jax import cli
from otseg_jax.data import inspect, regimes, splits
from otseg_jax.data.folders import Folder
from otseg_jax.doctor import layout, masks, photos, sheet
from otseg_jax.doctor.findings import Finding


def look(
    dataset: str, root: str | Path, *, every: bool, contact_sheet: str | Path = ""
) -> list[Finding]:
    """Look at lists, masks and photos of a data set.

    Args:
        every: read all of them; else a sample.
        contact_sheet: picture to write, "" for none.

    Raises:
        ValueError: the picture cannot be written there.
    """
    if contact_sheet:
        sheet.check_writable(contact_sheet)
    sample, threads = 0 if every else inspect.SAMPLE, os.cpu_count() or 1
    if splits.find(root, dataset):
        if contact_sheet:
            raise ValueError(
                f"{root} holds records, and --contact_sheet is of files: name the folder that they "
                "were made of"
            )
        return _records(dataset, root, sample, threads)
    opened, found = layout.open_splits(dataset, root)
    for name, split in opened.items():
        size, unseen = len(split.vocabulary), split.vocabulary.unseen
        # every class is asked for its pixels, whatever regime is to come
        regime = regimes.resolve("supervised", num_classes=size, unseen=unseen)
        parts = _parts(name, split)
        learnt = regime if name == "train" and len(parts) == 1 else None
        counted = []
        for called, part in parts:
            counted.append(inspect.inspect(part, learnt, sample=sample, threads=threads))
            found += masks.judge(dataset, called, part, counted[-1])
        if learnt is None or counted[0].masks < counted[0].total:  # else it was told by `inspect`
            found += masks.absent(name, split, counted)
        found += photos.readable(name, split, sample, threads)
        found += photos.sizes(name, split, sample, threads)
    if opened:
        found += photos.doubled(opened)
    if contact_sheet:
        found.append(sheet.write(contact_sheet, opened.values()))
    return _once(found)


def _records(dataset: str, root: str | Path, sample: int, threads: int) -> list[Finding]:
    """What labels in records teach; their files are looked at where they were made of them."""
    found = []
    for name in layout.SPLITS:
        try:
            split = splits.open_split(dataset, root, name)
        except (ValueError, OSError) as error:
            if not cli.is_ours(error):
                raise
            found.append(Finding("error", f"{name}: {error}"))
            continue
        size, unseen = len(split.vocabulary), split.vocabulary.unseen
        regime = regimes.resolve("supervised", num_classes=size, unseen=unseen)
        learnt = regime if name == "train" else None
        counted = inspect.inspect(split, learnt, sample=sample, threads=threads)
        what = f"{name}: {len(split):,} photos in records, {counted.masks:,} masks read"
        found.append(Finding("ok", what))
        found += [Finding("error", f"{name}: {problem}") for problem in counted.problems]
        found += [Finding("warning", f"{name}: {doubt}") for doubt in counted.doubts]
    return found


def _parts(name: str, split: Folder) -> list[tuple[str, Folder]]:
    """The masks of each of VOC's folders alone: those of one may be of another coding."""
    folders = dict.fromkeys(mask.parent for mask in split.labels)
    if split.home.name != "JPEGImages" or len(folders) == 1:
        return [(name, split)]
    parts = []
    for folder in folders:
        pairs = zip(split.images, split.labels, strict=True)
        images, labels = zip(*(pair for pair in pairs if pair[1].parent == folder), strict=True)
        part = replace(split, images=images, labels=labels)
        parts.append((f"{name}, {folder.name}", part))
    return parts


def _once(found: list[Finding]) -> list[Finding]:
    """The same with each command given once: done twice, it would do harm."""
    given, told = set[str](), []
    for finding in found:
        again = bool(finding.mend) and finding.mend in given
        given.add(finding.mend)
        told.append(finding._replace(mend="the command above") if again else finding)
    return told
