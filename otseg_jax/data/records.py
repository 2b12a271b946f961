"""Read data sets from few large files: folders of TensorFlow Datasets, as our `prepare` writes.

`python -m otseg_jax.prepare` writes ROOT/NAME/1.0.0: shards of ArrayRecord, and JSON that says what
is in them. An example is a photo (the bytes of its file), a label (a PNG of class ids, 8 bits, or
16 with more than 255 classes; its largest value is no class) and a name. What TFDS has no place for
stands in `metadata.json`, here `About`. Nothing that a folder names is imported but the features of
TFDS.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

from etils import epath

from otseg_jax.data import codings, decode, folders
from otseg_jax.data.classes import Vocabulary
from otseg_jax.data.file import File, Stored
from otseg_jax.data.lists import some

INFO, FEATURES, METADATA = "dataset_info.json", "features.json", "metadata.json"
PLAN = "unfinished.json"
"""What lies in a folder while `prepare` writes it."""

AGAIN = "copy it again, or let python -m otseg_jax.prepare write it again"


@dataclass(frozen=True, kw_only=True)
class About:
    """What records are made of.

    Attributes:
        dataset: name of the data set.
        vocabulary: its classes; label k is class k.
        augmented: whether VOC's training split has the images of `aug.txt`.
        photos: of each split, a hash of the names in their order.
        sizes: of each split, the bytes of its shards; none yet while they are written.
    """

    dataset: str
    vocabulary: Vocabulary
    augmented: bool
    photos: Mapping[str, str]
    sizes: Mapping[str, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same in plain values."""
        known = self.vocabulary
        return {
            "dataset": self.dataset,
            "classes": {
                "names": list(known.names),
                "unseen": list(known.unseen),
                "palette": ["{:02x}{:02x}{:02x}".format(*colour) for colour in known.palette],
            },
            "augmented": self.augmented,
            "photos": dict(self.photos),
            "sizes": dict(self.sizes),
        }

    @classmethod
    def from_json(cls, found: Any) -> "About":
        """Read it; where it is not of this form, an error of nearly any type."""
        known = found["classes"]
        vocabulary = Vocabulary(
            names=tuple(map(str, known["names"])),
            unseen=tuple(map(int, known["unseen"])),
            palette=tuple((c[0], c[1], c[2]) for c in map(bytes.fromhex, known["palette"])),
        )
        return cls(
            dataset=str(found["dataset"]),
            vocabulary=vocabulary,
            augmented=bool(found["augmented"]),
            photos={str(k): str(v) for k, v in found["photos"].items()},
            sizes={str(k): [*map(int, v)] for k, v in found["sizes"].items()},
        )


@dataclass(frozen=True)
class Records:
    """A split in records: as `folders.Folder`, from bytes in place of files."""

    vocabulary: Vocabulary
    coding: codings.Coding = field(repr=False)
    home: Path
    split: str
    source: Any = field(repr=False)  # of TFDS: dictionaries of bytes
    keys: tuple[str, str, str]  # of the photo, the mask and the name ("": it has none)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: SupportsIndex) -> decode.Example:
        photo, mask, name = self._read(i)
        return decode.example(photo, mask, self.coding, name)

    def files(self, i: SupportsIndex) -> tuple[File, File]:
        """A photo and its mask, as they are stored."""
        return self._read(i)[:2]

    def name(self, i: SupportsIndex) -> str:
        """The path that the photo had in its split, without suffix."""
        return self._read(i)[2]

    def _read(self, i: SupportsIndex) -> tuple[Stored, Stored, str]:
        place = range(len(self))[i]  # as of a list
        try:
            record = self.source[place]
            image, label = bytes(record[self.keys[0]]), bytes(record[self.keys[1]])
            name = os.fsdecode(record[self.keys[2]]) if self.keys[2] else f"{place:07}"
        except Exception as error:  # of the library, whatever damaged bytes make of it
            where = f"record {place} of {self.split} in {self.home}"
            raise ValueError(f"{where} cannot be read ({error}): {AGAIN}") from error
        where = f"{self.home}, {self.split}, {name}"
        return (
            Stored(f"{where} (photo)", image),
            Stored(f"{where} (mask)", label),
            name,
        )


def read_about(place: Path) -> About | None:
    """What the metadata of a folder say; None if our `prepare` did not write them."""
    found = read_json(place / METADATA) if (place / METADATA).is_file() else {}
    if not isinstance(found, dict) or "dataset" not in found:
        return None
    try:
        return About.from_json(found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place / METADATA} is damaged ({error!r}): {AGAIN}") from error


def plain_labels(vocabulary: Vocabulary) -> codings.Coding:
    """What the labels of our records mean."""
    return codings.plain_coding(len(vocabulary), hint=AGAIN)


def builder(place: Path) -> Any:
    """What TFDS reads of a folder; a ValueError where it is damaged or names what is not TFDS's."""
    import tensorflow_datasets as tfds  # a second, for those who use it

    strange = sorted(_classes_named(read_json(place / FEATURES)))
    if strange:
        raise ValueError(
            f"{place / FEATURES} names {some(strange)}, code that is not of TFDS: it is not run"
        )
    try:
        return tfds.builder_from_directory(place)
    except Exception as error:  # damaged JSON raises nearly any type
        raise ValueError(f"{place} is no whole folder of TFDS ({error}): {AGAIN}") from error


def check_whole(place: Path) -> None:
    """A ValueError where a folder is half-written."""
    if (place / PLAN).is_file():
        again = read_json(place / PLAN).get("command", "python -m otseg_jax.prepare")
        raise ValueError(f"{place} is half-written: run prepare again to go on: {again}")


def open_records(place: Path, about: About, split: str, *, augmented: bool) -> Records:
    """A split that our `prepare` wrote; errors as of `splits.open_split`."""
    built, dataset = builder(place), about.dataset
    if split not in about.sizes or split not in built.info.splits:
        raise FileNotFoundError(
            f"{place} holds no split {split!r}, only {some([*about.sizes])}: python -m "
            f"otseg_jax.prepare {dataset} --splits={','.join([*about.sizes, split])} adds it"
        )
    if split == "train" and dataset in ("voc12", "voc21") and about.augmented != augmented:
        raise ValueError(
            f"{place} was made with --config.data.augmented={about.augmented}: read it so, or "
            f"prepare another folder with --{'' if augmented else 'no'}augmented"
        )
    shards = [Path(name) for name in built.info.splits[split].filepaths]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in shards]
    if sizes != about.sizes[split]:
        wanted = [*about.sizes[split], *[-1] * (len(shards) - len(about.sizes[split]))]
        wrong = [p.name for p, a, b in zip(shards, sizes, wanted, strict=False) if a != b]
        raise FileNotFoundError(
            f"{place}: {len(wrong)} of {len(shards)} shards are missing or not whole, "
            f"{some(wrong)}: {AGAIN}"
        )
    if augmented:
        folders.tell_size(dataset, split, built.info.splits[split].num_examples)
    keys = ("image", "label", "name")
    coding, source = plain_labels(about.vocabulary), data_source(built, split, keys)
    return Records(about.vocabulary, coding, place, split, source, keys)


def data_source(built: Any, split: str, keys: tuple[str, str, str]) -> Any:
    """Examples of bytes by index."""
    import tensorflow_datasets as tfds

    raw = {key: tfds.decode.SkipDecoding() for key in keys[:2]}
    return built.as_data_source(split, decoders=raw)


def read_json(path: Path | epath.Path) -> Any:
    """What a file says; a ValueError where that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {AGAIN}") from error


def _classes_named(found: Any) -> set[str]:
    """Python classes that features are made with, but for those of TFDS."""
    if isinstance(found, str) and found.lstrip().startswith(("{", "[")):  # JSON within JSON
        with contextlib.suppress(ValueError):
            found = json.loads(found)
    if isinstance(found, list):
        return set().union(*map(_classes_named, found))
    if not isinstance(found, dict):
        return set()
    keys = ("pythonClassName", "python_class_name", "type")
    names = {v for k, v in found.items() if k in keys and isinstance(v, str)}
    strange = {n for n in names if not n.startswith("tensorflow_datasets.core.features.")}
    return strange.union(*map(_classes_named, found.values()))
