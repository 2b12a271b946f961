"""A few photos of a data set beside their masks, as a picture to look at."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from otseg_jax import paths
from otseg_jax.data.folders import Folder
from otseg_jax.doctor.findings import Finding
from otseg_jax.evaluation import figures

ROWS = 4  # of each split
SIDE = 512  # pixels: a column of the sheet has fewer


def check_writable(path: str | Path) -> None:
    """Refuse, with a ValueError, a place where no picture can be written."""
    place = paths.local(path)
    if place.is_dir():
        raise ValueError(f"--contact_sheet={path} is a folder; name a file in it, as {path}/a.png")
    paths.check_writable(place.parent, flag="--contact_sheet")


def write(path: str | Path, splits: Iterable[Folder]) -> Finding:
    """Write photos and masks, evenly spaced; those that cannot be read are left out."""
    rows, vocabulary = [], None
    for split in splits:
        vocabulary = split.vocabulary
        for i in range(0, len(split), max(1, len(split) // ROWS))[:ROWS]:
            with contextlib.suppress(ValueError, OSError):
                example = split[i]
                step = -(-max(example["label"].shape) // SIDE)
                rows.append((example["image"][::step, ::step], example["label"][::step, ::step]))
    if vocabulary is None or not rows:
        return Finding("note", f"{path} was not written: there is no photo with a mask to show")
    figures.panel(path, rows, vocabulary)
    return Finding("ok", f"{path}: {len(rows)} photos and masks; look whether they fit together")
