"""Records give what files give, to us and to TensorFlow Datasets; what is damaged is refused."""

import itertools
import shutil
import sys

import numpy as np
import own_data
import pytest
import small
import tensorflow_datasets as tfds
from PIL import ExifTags, Image

from otseg_jax import build
from otseg_jax.convert import published
from otseg_jax.data import decode, folders, inspect, pipeline, regimes, splits
from otseg_jax.data.file import Stored
from otseg_jax.doctor import dataset
from otseg_jax.prepare import prepare
from otseg_jax.training import start

SIZES = ((40, 52), (33, 64), (48, 48))


def drawn(root, classes=own_data.CLASSES, depth=np.uint8, sizes=SIZES):
    """Data of one's own, as people have them: JPEGs, a photo on its side, grey, in folders."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for i in range(count):
            name = f"{split}/{'ulm' if i % 2 else 'köln'}/{i}"
            for kind in ("images", "labels"):
                (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
            height, width = sizes[i % len(sizes)]
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            mask = rng.integers(0, len(classes), (height, width)).astype(depth)
            mask[:9, :9] = np.iinfo(depth).max
            photo, exif = Image.fromarray(pixels), Image.Exif()
            if i == 2:
                exif[ExifTags.Base.Orientation] = 6
                mask = np.rot90(mask, -1)
            suffix = ".png" if i == 3 else ".jpg"
            photo = photo.convert("L") if i == 3 else photo
            photo.save(root / "images" / f"{name}{suffix}", exif=exif)
            Image.fromarray(np.ascontiguousarray(mask)).save(root / "labels" / f"{name}.png")
    (root / "classes.csv").write_text("\n".join(["name,split", *classes]) + "\n")
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The folder of files, and that of the records made of them."""
    root = drawn(tmp_path_factory.mktemp("files"))
    records = tmp_path_factory.mktemp("records")
    prepare("folder", root, str(records), threads=2)
    return root, records


@pytest.fixture
def copied(roots, tmp_path):
    """Records to spoil."""
    shutil.copytree(roots[1], tmp_path / "records")
    return tmp_path / "records"


def place(records):
    return records / "folder" / "1.0.0"


def both(roots, split):
    return [splits.open_split("folder", root, split) for root in roots]


def options(root, **fields):
    fields = {"data.dataset": "folder", "data.root": str(root), **fields}
    return small.settings(**fields)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_example_is_that_of_the_files(roots, split):
    files, records = both(roots, split)
    assert isinstance(files, folders.Folder)
    assert not isinstance(records, folders.Folder)
    assert len(files) == len(records)
    assert files.vocabulary == records.vocabulary
    for i in (*range(len(files)), -1):
        ours, theirs = records[i], files[i]
        assert ours["name"] == theirs["name"] == records.name(i)
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        np.testing.assert_array_equal(ours["label"], theirs["label"])
        assert records.files(i)[0].data == files.files(i)[0].read_bytes()
    with pytest.raises(IndexError):
        records[len(files)]


def test_the_same_seed_gives_the_same_batches(roots):
    runs = []
    for root in roots:
        chosen = options(root, **{"train.batch_size": 4})
        runs.append(start.batches(chosen, build.open_split(chosen, "train"), 2))
    for files, records in itertools.islice(zip(*runs, strict=True), 5):
        assert files.keys() == records.keys()
        for name in files:
            assert files[name].dtype == records[name].dtype
            np.testing.assert_array_equal(files[name], records[name])


def test_evaluation_gets_the_same_examples(roots):
    runs = [pipeline.eval_examples(split, lambda example: example) for split in both(roots, "val")]
    for files, records in zip(*runs, strict=True):
        assert files.keys() == records.keys() == {"image", "label", "name"}
        assert files["name"] == records["name"]
        np.testing.assert_array_equal(files["image"], records["image"])
        np.testing.assert_array_equal(files["label"], records["label"])


def test_labels_are_inspected_as_those_of_files(roots):
    for split, regime in (("train", "inductive"), ("val", None)):
        found = []
        for part in both(roots, split):
            known = part.vocabulary
            if regime:
                taught = regimes.resolve(regime, num_classes=3, unseen=known.unseen)
            found.append(inspect.inspect(part, taught if regime else None))
        assert found[0].pixels.tolist() == found[1].pixels.tolist()
        assert found[0].ignored == found[1].ignored
        assert found[0].doubts == found[1].doubts
        assert found[1].problems == []


def test_tensorflow_datasets_reads_them_without_tensorflow(roots):
    files, records = splits.open_split("folder", roots[0], "train"), roots[1]
    source = tfds.data_source("folder", split="train", data_dir=records)
    built = tfds.builder_from_directory(place(records))
    assert built.info.features["label"].names == ["cat", "dog", "newt"]
    assert built.info.metadata["classes"]["unseen"] == [2]
    assert {name: split.num_examples for name, split in built.info.splits.items()} == {
        "train": 7,
        "val": 3,
    }
    for found in (source, built.as_data_source("train")):
        assert len(found) == len(files)
        for i, example in enumerate(found):
            label = files[i]["label"]
            wanted = np.where(label < 0, 255, label)[..., None]
            np.testing.assert_array_equal(example["label"], wanted)
            assert example["name"].decode() == files[i]["name"]
    assert len(built.as_data_source("train[:50%]")) in (3, 4)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("count", "bits"), [(255, 8), (256, 16), (300, 16)])
def test_many_classes_have_masks_of_16_bits(tmp_path, count, bits):
    names = [f"class {k},{'unseen' if k == 7 else 'seen'}" for k in range(count)]
    depth = np.uint8 if bits == 8 else np.uint16
    root = drawn(tmp_path / "files", names, depth, sizes=((90, 90),))
    prepare("folder", root, str(tmp_path / "records"))
    files, records = both((root, tmp_path / "records"), "val")
    assert records.vocabulary == files.vocabulary
    for i in range(len(files)):
        np.testing.assert_array_equal(records[i]["label"], files[i]["label"])
    source = tfds.data_source("folder", split="val", data_dir=tmp_path / "records")
    label = files[0]["label"]
    assert (label.max(), label.min()) == (count - 1, -1)
    assert source[0]["label"].dtype == depth
    np.testing.assert_array_equal(source[0]["label"][..., 0], label.astype(depth))


def test_a_root_is_the_folder_above_or_the_records_themselves(roots):
    files, records = roots
    for root in (records, records / "folder", place(records)):
        assert splits.find(root, "folder") == place(records)
    assert splits.find(files, "folder") is None
    assert splits.find(records, "voc12") is None
    assert splits.find(records / "nothing", "voc12") is None


def test_the_classes_of_a_published_file_come_from_records_too(roots):
    names = [published.vocabulary_of(options(root)).names for root in roots]
    assert names == [("cat", "dog", "newt")] * 2


def test_a_damaged_photo_is_named(roots):
    source = splits.open_split("folder", roots[1], "val")
    photo, mask = source.files(1)
    spoilt = Stored(photo.name, photo.data[: len(photo.data) // 2])
    with pytest.raises(ValueError, match=r"1\.0\.0, val, .* \(photo\) cannot be used: .*truncated"):
        decode.example(spoilt, mask, source.coding, "a")


def test_the_doctor_looks_at_records(roots, copied):
    found = dataset.look("folder", roots[1], every=True)
    assert [(finding.severity, finding.what) for finding in found] == [
        ("ok", "train: 7 photos in records, 7 masks read"),
        ("ok", "val: 3 photos in records, 3 masks read"),
    ]
    with pytest.raises(ValueError, match="--contact_sheet is of files: name the folder that they"):
        dataset.look("folder", roots[1], every=True, contact_sheet=copied / "sheet.png")
    _shard(copied).unlink()
    found = dataset.look("folder", copied, every=True)
    assert [finding.severity for finding in found] == ["ok", "error"]
    assert "shards are missing or not whole" in found[1].what


def _shard(folder):
    return next(place(folder).glob("folder-val*"))


def _cut(folder):
    shard = _shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1000])


def _flip(folder):
    """Bytes in the middle are others, and there are as many."""
    shard = _shard(folder)
    data = bytearray(shard.read_bytes())
    data[2000:2600] = bytes(600)
    shard.write_bytes(data)


def _strange(folder):
    """Features that are code of somebody's."""
    features = place(folder) / "features.json"
    text = features.read_text()
    features.write_text(
        text.replace("tensorflow_datasets.core.features.text_feature.Text", "antigravity.Text")
    )


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_cut, r"1 of 1 shards are missing or not whole, folder-val\.array_record-00000-of-00001"),
        (lambda folder: _shard(folder).unlink(), r"1 of 1 shards are missing or not whole"),
        (_flip, r"record \d of val in .*1\.0\.0 cannot be read \(.*\): copy it again, or let"),
        (_strange, r"features\.json names antigravity\.Text, code that is not of TFDS: it is not"),
        (lambda f: (place(f) / "metadata.json").write_text("{"), r"metadata\.json cannot be read"),
        (lambda f: (place(f) / "metadata.json").write_text('{"dataset": "folder"}'), "is damaged"),
        (lambda f: (place(f) / "dataset_info.json").write_text("{}"), "is no whole folder of TFDS"),
        (lambda f: (place(f) / "dataset_info.json").unlink(), "is no whole folder of TFDS"),
        (lambda f: (place(f) / "metadata.json").unlink(), "was not written by .*dataset=tfds:NAME"),
    ],
)
def test_what_is_damaged_is_refused(copied, spoil, line):
    spoil(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        list(splits.open_split("folder", copied, "val"))
    assert "antigravity" not in sys.modules
