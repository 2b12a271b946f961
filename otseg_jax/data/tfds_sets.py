"""Sets of TensorFlow Datasets itself, "tfds:NAME", whose examples hold a photo and a mask.

Both are found by their types; what the values of masks mean is told by a file `classes.csv` beside
the records, or by TFDS where it knows.
"""

from pathlib import Path
from typing import Any

from otseg_jax.data import classes, codings
from otseg_jax.data.classes import Listing, Vocabulary
from otseg_jax.data.lists import some
from otseg_jax.data.records import Records, builder, data_source

PREFIX = "tfds:"
"""What the name of such a data set begins with."""

SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}
"""What TFDS calls a split of ours: the first that is there."""


def open_records(place: Path, split: str) -> Records:
    """A split that TFDS, or somebody with it, wrote; errors as of `splits.open_split`."""
    built = builder(place)
    if (kind := built.info.file_format.value) != "array_record":
        raise ValueError(
            f"{place} is written as {kind}, which only TensorFlow reads: prepare it with "
            f"tfds.builder({built.info.name!r}, data_dir=…, file_format='array_record')"
            ".download_and_prepare()"
        )
    features, named = built.info.features, SPLITS[split]
    found = next((name for name in named if name in built.info.splits), None)
    if found is None:
        raise FileNotFoundError(
            f"{place} holds the splits {some([*built.info.splits])}: wanted {some(named)}"
        )
    kinds = {key: type(features[key]).__name__ for key in sorted(features)}
    pictures = [key for key in kinds if kinds[key] in ("Image", "LabeledImage")]
    photos = [key for key in pictures if features[key].shape[-1] == 3]
    masks = [key for key in pictures if features[key].shape[-1] == 1]
    if len(photos) != 1 or len(masks) != 1:
        raise ValueError(
            f"{place} has the features {some([f'{k} ({v})' for k, v in kinds.items()], most=20)}: "
            "wanted one picture of three channels, the photo, and one of one channel, the mask"
        )
    listing = _listing(place, features[masks[0]])
    coding = codings.own_coding(listing, hint=f"line up {place}/classes.csv with the masks")
    keys = (photos[0], masks[0], "")
    source = data_source(built, found, keys)
    return Records(listing.vocabulary, coding, place, found, source, keys)


def _listing(place: Path, mask: Any) -> Listing:
    """What the values of a mask stand for: what a file says, else what TFDS knows."""
    if (file := place / "classes.csv").is_file():
        return classes.read_listing(file)
    try:
        return Listing(Vocabulary(tuple(mask.names)))
    except (AttributeError, TypeError, ValueError):  # no names, or not told apart
        raise FileNotFoundError(
            f"found no {file}, and TFDS does not know what the masks of {place} show: write "
            "name,split into it, then for each value from 0 on one line NAME,seen or NAME,unseen, "
            "or NAME,ignore where it is no class"
        ) from None
