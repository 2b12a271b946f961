"""Write splits as shards of records, and compare what was written with what it was made of.

Records are those that `records` reads: the bytes of a photo, a PNG of class ids, and a name.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int16

from otseg_jax import paths
from otseg_jax.data import codings, decode, records
from otseg_jax.data.classes import IGNORE
from otseg_jax.data.file import Stored, stored
from otseg_jax.data.folders import Folder
from otseg_jax.data.records import About, Records

SIZE = 64 << 20
"""Bytes of files in a shard, about: what each thread begins again after a kill."""

_RAW = {key: tfds.decode.SkipDecoding() for key in ("image", "label")}


@dataclass(frozen=True, eq=False)
class Shard:
    """Consecutive examples of a split, and the file that is to hold them."""

    path: epath.Path
    split: Folder | Records
    indices: range


def cut(
    place: epath.Path, dataset: str, name: str, split: Folder | Records, count: int
) -> list[Shard]:
    """So many shards of a split."""
    files = _template(place, dataset, name).sharded_filepaths(count)
    ends = [len(split) * k // count for k in range(count + 1)]
    return [
        Shard(epath.Path(file), split, range(ends[k], ends[k + 1])) for k, file in enumerate(files)
    ]


def features(about: About) -> Any:
    """What an example is made of, as TFDS describes it."""
    names = list(about.vocabulary.names)
    depth = np.uint8 if _ignored(len(names)) == codings.IGNORE_8_BIT else np.uint16
    label = tfds.features.LabeledImage(
        labels=names, shape=(None, None, 1), dtype=depth, encoding_format="png"
    )
    image = tfds.features.Image(shape=(None, None, 3))
    return tfds.features.FeaturesDict(
        {"image": image, "label": label, "name": tfds.features.Text()}
    )


def write(shard: Shard, described: Any) -> list[str]:
    """Write a shard, unless something is wrong with its photos or masks: what that is.

    Raises:
        OSError: no space left, or no permission.
    """
    problems, ignored = list[str](), _ignored(len(shard.split.vocabulary))
    with contextlib.suppress(_Unusable), paths.writing(shard.path), _filled(shard.path) as part:
        writer = _Writer(part)
        for i in shard.indices:
            try:
                example = _encoded(shard.split, i, ignored)
            except (ValueError, FileNotFoundError) as error:
                problems.append(str(error))
                continue
            if not problems:
                writer.write(described.serialize_example(described.encode_example(example)))
        writer.close()
        if problems:
            raise _Unusable
    return problems


def differences(shard: Shard, described: Any) -> list[str]:
    """What of the records of a shard is not as in the files they were made of."""
    try:
        found = _read(shard.path)
    except (RuntimeError, IndexError, ValueError) as error:  # of the library: damaged bytes
        return [f"cannot be read ({error})"]
    if len(found) != len(shard.indices):
        return [f"{len(found)} records in place of {len(shard.indices)}"]
    problems, split = list[str](), shard.split
    labels = records.plain_labels(split.vocabulary)
    for i, record in zip(shard.indices, found, strict=True):
        (photo, mask), name = split.files(i), split.name(i)
        wanted, label = stored(photo).data, decode.mask(mask, split.coding)
        try:
            read = described.deserialize_example_np(record, decoders=_RAW)
            written = decode.mask(Stored(name, read["label"]), labels)
        except Exception as error:  # of the library, whatever damaged bytes make of it
            problems.append(f"{name} cannot be read ({error})")
            continue
        same = read["image"] == wanted and os.fsdecode(read["name"]) == name
        if not (same and np.array_equal(written, label)):
            problems.append(f"{name} is not as in {photo} and {mask}")
    return problems


def finish(
    place: epath.Path, about: About, described: Any, parts: Mapping[str, Sequence[Shard]]
) -> None:
    """Describe a folder whose shards are whole, so that TFDS and `records` read it."""
    infos = [
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=[len(shard.indices) for shard in part],
            num_bytes=sum(about.sizes[name]),
            filename_template=_template(place, place.parent.name, name),
        )
        for name, part in parts.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=place,
        features=described,
        split_infos=infos,
        check_data=False,  # needs TensorFlow
        description=f"{about.dataset}, written by python -m otseg_jax.prepare",
        disable_shuffling=True,  # the order is that of the files
        metadata=tfds.core.MetadataDict(about.to_json()),
    )


def _template(place: epath.Path, dataset: str, split: str) -> Any:
    """How TFDS names the shards of a split."""
    return tfds.core.ShardedFileTemplate(
        data_dir=place, dataset_name=dataset, split=split, filetype_suffix="array_record"
    )


class _Unusable(Exception):
    """A shard is not to be kept."""


class _Writer:
    """Writes records; what the system refuses is an OSError, not the library's own."""

    def __init__(self, path: Path) -> None:
        # photos and PNGs are compressed already
        self._writer = _refused(
            array_record_module.ArrayRecordWriter, str(path), "group_size:1,uncompressed"
        )

    def write(self, record: bytes) -> None:
        _refused(self._writer.write, record)

    def close(self) -> None:
        _refused(self._writer.close)


def _refused(call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _ignored(classes: int) -> int:
    """The value of no class, the largest of 8 or 16 bits."""
    return codings.IGNORE_8_BIT if classes <= codings.IGNORE_8_BIT else codings.IGNORE_16_BIT


def _encoded(split: Folder | Records, i: int, ignored: int) -> dict[str, Any]:
    """What a record is made of; errors as of `split[i]`."""
    photo, mask = split.files(i)
    # its bytes first, so that what is checked is what is written
    kept = stored(photo)
    example = decode.example(kept, mask, split.coding, split.name(i))
    return {
        "image": kept.data,
        "label": _png(example["label"], ignored),
        "name": os.fsencode(example["name"]),
    }


def _png(label: Int16[np.ndarray, "h w"], ignored: int) -> bytes:
    depth = np.uint8 if ignored == codings.IGNORE_8_BIT else np.uint16
    values = np.where(label == IGNORE, depth(ignored), label.astype(depth))
    done, data = cv2.imencode(".png", values)
    assert done
    return data.tobytes()


@contextlib.contextmanager
def _filled(dest: epath.Path) -> Iterator[Path]:
    """A path on this machine to write to; `dest` has it when all went well."""
    if not paths.in_bucket(dest):
        with paths.atomic(dest) as part:
            yield Path(part)
        return
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, dest.name)
        yield part
        epath.Path(part).copy(dest)  # an object of a bucket appears whole


def _read(path: epath.Path) -> list[bytes]:
    """All records of a shard."""
    with contextlib.ExitStack() as held:
        if paths.in_bucket(path):
            copy = Path(held.enter_context(tempfile.TemporaryDirectory()), path.name)
            path = path.copy(copy)
        reader = array_record_module.ArrayRecordReader(str(path))
        held.callback(reader.close)
        found: list[bytes] = reader.read_all()
        return found
