"""Sets that TFDS itself wrote: a photo, a mask, and what its values mean."""

import io
from pathlib import Path

import numpy as np
import pytest
import small
import tensorflow_datasets as tfds
from PIL import Image

from otseg_jax import build
from otseg_jax.convert import published
from otseg_jax.data import splits
from otseg_jax.prepare import prepare

NAMES = ["sky", "tree", "cat"]


def masks(count):
    rng = np.random.default_rng(count)
    return [rng.integers(0, 3, (8, 9), dtype=np.uint8) for _ in range(count)]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class Pets(tfds.core.GeneratorBasedBuilder):
    """As those of TFDS are written."""

    VERSION = tfds.core.Version("2.1.0")
    FEATURES = {  # noqa: RUF012 (never changed)
        "image": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(names=["a", "b"]),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(dict(self.FEATURES))
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i, mask in enumerate(masks(count)):
            photo = png(np.full((8, 9, 3), i, np.uint8))
            example = {"image": photo, "kind": i % 2, "segmentation_mask": png(mask)}
            yield i, {key: example.get(key, photo) for key in self.FEATURES}


class Scenes(Pets):
    """A set whose classes TFDS knows."""

    FEATURES = Pets.FEATURES | {
        "segmentation_mask": tfds.features.LabeledImage(labels=NAMES, shape=(None, None, 1))
    }


class Twice(Pets):
    """A set of two photos."""

    FEATURES = Pets.FEATURES | {"again": tfds.features.Image(shape=(None, None, 3))}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What TFDS prepared, without TensorFlow."""
    root = tmp_path_factory.mktemp("tfds")
    for builder in (Pets, Scenes, Twice):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    lines = ["name,split", "background,ignore", "dog,seen", "fish,unseen"]
    (root / "pets" / "2.1.0" / "classes.csv").write_text("\n".join(lines) + "\n")
    return root


def by_value(count):
    """Masks by the grey of their photos: TFDS shuffles what it writes."""
    return dict(enumerate(masks(count)))


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("val", 3)])
def test_classes_that_tfds_knows(root, split, count):
    found = splits.open_split("tfds:scenes", root, split)
    assert len(found) == count
    assert (found.vocabulary.names, found.vocabulary.unseen) == (tuple(NAMES), ())
    wanted = by_value(count)
    for example in found:
        np.testing.assert_array_equal(example["label"], wanted.pop(int(example["image"][0, 0, 0])))
    assert not wanted


def test_classes_of_a_file(root):
    options = small.settings(**{"data.dataset": "tfds:pets", "data.root": str(root)})
    found = build.open_split(options, "train")
    assert (found.vocabulary.names, found.vocabulary.unseen) == (("dog", "fish"), (1,))
    assert published.vocabulary_of(options) == found.vocabulary
    build.check_labels(options, train=found, val=build.open_split(options, "val"))
    wanted = by_value(6)
    for example in found:
        mask = wanted[int(example["image"][0, 0, 0])].astype(int)
        np.testing.assert_array_equal(example["label"], mask - 1)
    assert len({example["name"] for example in found}) == 6


def test_they_are_prepared_as_others_are(root, tmp_path):
    prepare("tfds:pets", root, str(tmp_path))
    assert splits.find(tmp_path, "tfds:pets") == tmp_path / "pets" / "1.0.0"
    for split in ("train", "val"):
        ours, theirs = (splits.open_split("tfds:pets", at, split) for at in (tmp_path, root))
        assert ours.vocabulary == theirs.vocabulary
        for one, other in zip(ours, theirs, strict=True):
            assert one["name"] == other["name"]
            np.testing.assert_array_equal(one["image"], other["image"])
            np.testing.assert_array_equal(one["label"], other["label"])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("dogs", r"holds pets, scenes, twice, no dogs: name the folder that TFDS prepared it in"),
        ("twice", r"has the features again \(Image\), image .*: wanted one picture of three chann"),
    ],
)
def test_what_cannot_be_read_is_told(root, name, line):
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        splits.open_split(f"tfds:{name}", root, "train")


def test_values_that_nobody_explains(root):
    listing = root / "pets" / "2.1.0" / "classes.csv"
    kept = listing.read_text()
    listing.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no .*classes\.csv, and TFDS does not know .*write"
    ):
        splits.open_split("tfds:pets", root, "train")
    listing.write_text(kept)


def test_the_name_of_tfds_is_needed(root):
    with pytest.raises(
        ValueError, match=r"not written by .*prepare: --config\.data\.dataset=tfds:"
    ):
        splits.open_split("folder", Path(root, "pets"), "train")


def test_tfrecords_are_of_tensorflow_alone(root, tmp_path):
    place = tmp_path / "pets" / "2.1.0"
    place.mkdir(parents=True)
    for file in (root / "pets" / "2.1.0").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    info = place / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(
        ValueError, match=r"written as tfrecord, which .*file_format='array_record'"
    ):
        splits.open_split("tfds:pets", tmp_path, "train")
