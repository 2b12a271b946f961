"""Every layout is found and read, on real samples and on trees written here; or refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otseg_jax.data import classes, folders
from otseg_jax.data.classes import IGNORE

VALUES = np.array([[0, 1, 2], [1, 255, 2]], np.uint8)
"""Valid in every coding; 0 is background or class 0."""

IDS = np.array([[0, 1, 2], [1, IGNORE, 2]])
"""What they mean where ids are written as they are."""


def _save(path: Path, *, size=(3, 2), values=VALUES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        Image.new("RGB", size, (10, 200, 30)).save(path)


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _voc(root: Path, *, aug="aug.txt", aug_names=("c", "d")) -> Path:
    lists = root / "ImageSets/Segmentation"
    _write(lists / "train.txt", "a", "b")
    _write(lists / "val.txt", "v")
    _write(lists / aug, *aug_names)
    for name in "abcdv":
        _save(root / f"JPEGImages/{name}.jpg")
        folder = "SegmentationClassAug" if name in "cd" else "SegmentationClass"
        _save(root / f"{folder}/{name}.png")
    return root


def _own(root: Path) -> Path:
    _write(root / "classes.csv", "name,split", "cat,seen", "dog,seen", "newt,unseen")
    for split in ("train", "val"):
        for name in ("x.jpg", "y.PNG", "z.jpeg"):
            path = root / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (3, 2)).save(path)
            _save(root / "labels" / split / f"{path.stem}.png")
    return root


def _stems(folder):
    return [path.stem for path in folder.images]


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_real_voc(photos, place):
    root = photos / "voc2012_mini" / place
    train = folders.index("voc12", root, "train")
    assert len(train) == 62 + 29
    assert len(folders.index("voc12", root, "train", augmented=False)) == 62
    assert {path.parent.name for path in train.labels[:62]} == {"SegmentationClass"}
    assert {path.parent.name for path in train.labels[62:]} == {"SegmentationClassAug"}
    val = folders.index("voc12", root, "val")
    assert len(val) == 49
    assert val.vocabulary is classes.VOCABULARIES["voc12"]


def test_real_voc_labels_count_the_classes_of_the_published_table(photos):
    """Images per class, counted from our ids, against the table that came with the sample."""
    lines = (photos / "voc2012_mini/class_counts.tsv").read_text().splitlines()
    expected = {row[1]: int(row[4]) for row in (line.split("\t") for line in lines[1:])}
    counts = dict.fromkeys(classes.VOCABULARIES["voc12"].names, 0)
    for example in folders.index("voc12", photos / "voc2012_mini", "val"):
        assert example["image"].shape == (*example["label"].shape, 3)
        for k in set(np.unique(example["label"])) - {IGNORE}:
            counts[classes.VOCABULARIES["voc12"].names[k]] += 1
    assert counts == {name: expected[name] for name in counts}
    assert sum(counts.values()) > 49


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco_raw_ids_convert_to_the_shipped_train_ids(photos, split):
    root = photos / "cocostuff_sample21"
    shipped = folders.index("coco_stuff", root, split)
    converted = folders.index("coco_stuff", root / "MSCOCO", split, raw_ids=True)
    assert len(shipped) == len(converted) == {"train": 13, "val": 8}[split]
    for one, other in zip(shipped, converted, strict=True):
        assert one["name"] == other["name"]
        np.testing.assert_array_equal(one["label"], other["label"])


def test_real_ade_reduces_zero(photos):
    val = folders.index("ade20k", photos / "ade_sample3", "val")
    assert len(val) == 3
    for i, example in enumerate(val):
        raw = np.asarray(Image.open(val.labels[i])).astype(int)
        np.testing.assert_array_equal(example["label"], np.where(raw == 0, IGNORE, raw - 1))
        assert example["name"] == f"ADE_val_0000000{i + 1}"
    # 1, 2 and 3 on disk, by objectInfo150.txt of the sample
    ids = np.unique(val[0]["label"])
    assert ids[0] == IGNORE
    names = [classes.VOCABULARIES["ade20k"].names[k] for k in ids[1:4]]
    assert names == ["wall", "building", "sky"]


def test_voc_tree_is_read_in_list_order(tmp_path):
    folder = folders.index("voc12", _voc(tmp_path), "train")
    assert _stems(folder) == ["a", "b", "c", "d"]
    example = folder[1]
    assert example["name"] == "b"
    assert (example["image"].dtype, example["label"].dtype) == (np.uint8, np.int16)
    np.testing.assert_array_equal(example["label"], [[IGNORE, 0, 1], [0, IGNORE, 1]])


@pytest.mark.parametrize("aug", ["aug.txt", "trainaug.txt"])
def test_voc_double_counting_is_corrected_and_said(tmp_path, caplog, aug):
    root = _voc(tmp_path, aug=aug, aug_names=("a", "b", "c", "d"))
    assert _stems(folders.index("voc12", root, "train")) == ["a", "b", "c", "d"]
    said = f"{aug} repeats 2 images of train.txt: each is used once, 4 instead of 6 images"
    assert said in caplog.text


@pytest.mark.parametrize("empty", ["SegmentationClass", "SegmentationClassAug"])
def test_voc_masks_all_in_one_folder(tmp_path, empty):
    root = _voc(tmp_path)
    (full,) = {"SegmentationClass", "SegmentationClassAug"} - {empty}
    for path in (root / empty).iterdir():
        path.rename(root / full / path.name)
    assert len(folders.index("voc12", root, "train")) == 4
    assert len(folders.index("voc12", root, "val")) == 1


def test_voc_without_the_augmented_list_names_the_option(tmp_path):
    root = _voc(tmp_path, aug="other.txt")
    with pytest.raises(FileNotFoundError, match=r"--config.data.augmented=False trains on train"):
        folders.index("voc12", root, "train")
    assert _stems(folders.index("voc12", root, "train", augmented=False)) == ["a", "b"]


@pytest.mark.parametrize("dataset", ["voc12", "pascal_context"])
def test_training_on_validation_images_is_refused(tmp_path, dataset):
    if dataset == "voc12":
        _voc(tmp_path, aug_names=("c", "v"))
    else:
        _write(tmp_path / "train.txt", "a", "v")
        _write(tmp_path / "val.txt", "v")
        for name in "av":
            _save(tmp_path / f"JPEGImages/{name}.jpg")
            _save(tmp_path / f"SegmentationClassContext/{name}.png")
    with pytest.raises(ValueError, match=r"val.txt holds out: v$"):
        folders.index(dataset, tmp_path, "train")


@pytest.mark.parametrize("lists", ["ImageSets/SegmentationContext", ""])
@pytest.mark.parametrize("place", ["", "VOC2010", "VOCdevkit/VOC2010"])
def test_context_layouts(tmp_path, lists, place):
    home = tmp_path / place
    for split, name in (("train", "a"), ("val", "b")):
        _write(home / lists / f"{split}.txt", name)
        _save(home / f"JPEGImages/{name}.jpg")
        _save(
            home / f"SegmentationClassContext/{name}.png", values=np.where(VALUES == 2, 59, VALUES)
        )
        folder = folders.index("pascal_context", tmp_path, split)
        assert _stems(folder) == [name]
        np.testing.assert_array_equal(folder[0]["label"], [[IGNORE, 0, 58], [0, IGNORE, 58]])
        assert folder.vocabulary is classes.VOCABULARIES["pascal_context"]


@pytest.mark.parametrize("place", ["", "coco_stuff164k", "MSCOCO"])
@pytest.mark.parametrize("images", ["images/val2017", "val2017"])
def test_coco_layouts(tmp_path, place, images):
    home = tmp_path / place
    for name in ("2", "1"):
        _save(home / images / f"{name}.jpg")
        _save(home / f"annotations/val2017/{name}_labelTrainIds.png")
    folder = folders.index("coco_stuff", tmp_path, "val")
    assert _stems(folder) == ["1", "2"]
    np.testing.assert_array_equal(folder[0]["label"], IDS)


def test_coco_raw_maps_alone_name_the_option_that_converts_them(tmp_path):
    _save(tmp_path / "images/train2017/1.jpg")
    raw = np.array([[0, 12, 181], [26, 255, 92]], np.uint8)
    _save(tmp_path / "annotations/train2017/1.png", values=raw)
    with pytest.raises(ValueError, match=r"raw ids alone .* --config.data.raw_ids=True converts"):
        folders.index("coco_stuff", tmp_path, "train")
    folder = folders.index("coco_stuff", tmp_path, "train", raw_ids=True)
    np.testing.assert_array_equal(folder[0]["label"], [[0, 11, 170], [24, IGNORE, 81]])


def test_coco_train_ids_alone_are_not_converted_again(tmp_path):
    _save(tmp_path / "images/train2017/1.jpg")
    _save(tmp_path / "annotations/train2017/1_labelTrainIds.png")
    with pytest.raises(ValueError, match=r"train ids alone .* --config.data.raw_ids=False"):
        folders.index("coco_stuff", tmp_path, "train", raw_ids=True)


@pytest.mark.parametrize(
    ("raw_ids", "name", "value", "hint"),
    [
        (False, "1_labelTrainIds.png", 171, "--config.data.raw_ids=True"),
        (True, "1.png", 11, "--config.data.raw_ids=False"),
    ],
)
def test_coco_ids_under_the_wrong_name_are_told_by_their_values(
    tmp_path, raw_ids, name, value, hint
):
    _save(tmp_path / "images/val2017/1.jpg")
    _save(tmp_path / "annotations/val2017" / name, values=np.where(VALUES == 2, value, VALUES))
    folder = folders.index("coco_stuff", tmp_path, "val", raw_ids=raw_ids)
    with pytest.raises(ValueError, match=rf"holds the values \[{value}\].*{hint}$"):
        folder[0]


def test_a_background_is_class_0_of_its_data_set(tmp_path, photos):
    """VOC with 21 classes and Context with 60 are the same files, and nothing else is a class."""
    root = photos / "voc2012_mini"
    with_background = folders.index("voc21", root, "val")
    without = folders.index("voc12", root, "val")
    for one, other, mask in zip(without, with_background, with_background.labels, strict=True):
        raw = np.asarray(Image.open(mask)).astype(int)
        np.testing.assert_array_equal(other["label"], np.where(raw == 255, IGNORE, raw))
        classed = one["label"] != IGNORE
        np.testing.assert_array_equal(other["label"][classed], one["label"][classed] + 1)
    _write(tmp_path / "val.txt", "b")
    _save(tmp_path / "JPEGImages/b.jpg")
    values = np.where(VALUES == 2, 59, VALUES)
    _save(tmp_path / "SegmentationClassContext/b.png", values=values)
    folder = folders.index("context60", tmp_path, "val")
    np.testing.assert_array_equal(folder[0]["label"], [[0, 1, 59], [1, IGNORE, 59]])
    for name, without in (("voc21", "voc12"), ("context60", "pascal_context")):
        names = classes.VOCABULARIES[without].names
        assert classes.VOCABULARIES[name].names == ("background", *names)


@pytest.mark.parametrize("raw_ids", [False, True])
def test_things_of_coco_are_classes_and_all_else_is_background(photos, raw_ids):
    root = photos / "cocostuff_sample21"
    stuff = classes.VOCABULARIES["coco_stuff"].names
    things = classes.VOCABULARIES["coco_object"].names
    assert things == ("background", *stuff[:80])
    split = folders.index("coco_object", root, "val", raw_ids=raw_ids)
    shown = set()
    for example, named in zip(split, folders.index("coco_stuff", root, "val"), strict=True):
        for k in np.unique(named["label"]):
            (found,) = set(example["label"][named["label"] == k])
            name = stuff[k] if k != IGNORE else ""
            assert things[found] == (name if 0 <= k < 80 else "background")
            shown.add(found)
    assert len(shown) > 10


@pytest.mark.parametrize("place", ["", "cityscapes"])
@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, place, kind):
    """By the downloaded ids and by the train ids that its authors' scripts make of them."""
    # road, sky, bicycle and what is no class: "out of roi" and "rail track"
    values = {"labelIds": [7, 23, 33, 3, 10], "labelTrainIds": [0, 10, 18, 255, 255]}[kind]
    for city in ("aachen", "bonn"):
        stem = f"{city}/{city}_000000_000019"
        photo = tmp_path / place / f"leftImg8bit/val/{stem}_leftImg8bit.png"
        photo.parent.mkdir(parents=True)
        Image.new("RGB", (5, 1)).save(photo)
        masks = tmp_path / place / "gtFine/val"
        _save(masks / f"{stem}_gtFine_labelIds.png", values=np.full((1, 5), 7, np.uint8))
        _save(masks / f"{stem}_gtFine_color.png")
        _save(masks / f"{stem}_gtFine_{kind}.png", values=np.array([values], np.uint8))
    folder = folders.index("cityscapes", tmp_path, "val")
    assert [example["name"] for example in folder] == [
        "aachen/aachen_000000_000019_leftImg8bit",
        "bonn/bonn_000000_000019_leftImg8bit",
    ]
    np.testing.assert_array_equal(folder[1]["label"], [[0, 10, 18, IGNORE, IGNORE]])
    names = [folder.vocabulary.names[k] for k in (0, 10, 18)]
    assert names == ["road", "sky", "bicycle"]


def test_cityscapes_masks_that_are_missing_are_named(tmp_path):
    _save(tmp_path / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png", values=VALUES)
    (tmp_path / "gtFine/val/bonn").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"bonn_000000_000019_gtFine_labelIds.png"):
        folders.index("cityscapes", tmp_path, "val")
    with pytest.raises(FileNotFoundError, match=r"leftImg8bit/train/ and gtFine/train/"):
        folders.index("cityscapes", tmp_path, "train")


@pytest.mark.parametrize("place", ["", "ADEChallengeData2016", "ade/ADEChallengeData2016"])
def test_ade_layouts(tmp_path, place):
    _save(tmp_path / place / "images/training/a.jpg")
    _save(
        tmp_path / place / "annotations/training/a.png", values=np.where(VALUES == 2, 150, VALUES)
    )
    folder = folders.index("ade20k", tmp_path, "train")
    np.testing.assert_array_equal(folder[0]["label"], [[IGNORE, 0, 149], [0, IGNORE, 149]])


def test_your_own_folder(tmp_path):
    (_own(tmp_path) / "images/train/._x.jpg").write_bytes(b"left by macOS")
    (tmp_path / "images/train/notes.txt").write_text("not a photo")
    folder = folders.index("folder", str(tmp_path), "train")
    assert _stems(folder) == ["x", "y", "z"]
    assert folder.vocabulary.names == ("cat", "dog", "newt")
    assert folder.vocabulary.unseen == (2,)
    np.testing.assert_array_equal(folder[2]["label"], IDS)
    assert [example["name"] for example in folder] == ["x", "y", "z"]


def test_your_own_847_classes(tmp_path):
    _own(tmp_path)
    _write(tmp_path / "classes.csv", "name,split", *(f"c{k},seen" for k in range(847)))
    folder = folders.index("folder", tmp_path, "val")
    with pytest.raises(ValueError, match=r"x.png cannot be used: mode L has 8 bits"):
        folder[0]
    values = np.array([[0, 255, 256], [846, 65535, 2]], np.uint16)
    for path in folder.labels:
        _save(path, values=values)
    np.testing.assert_array_equal(folder[0]["label"], [[0, 255, 256], [846, IGNORE, 2]])
    _save(folder.labels[1], values=values + 1)
    with pytest.raises(
        ValueError, match=r"y.png holds .* \[847\], wanted 0..846 or 65535: line up"
    ):
        folder[1]


def test_partial_copy_is_said(tmp_path, caplog):
    folders.index("voc12", _voc(tmp_path), "val")
    assert "voc12 val: 1 images, the published split has 1449" in caplog.text
    caplog.clear()
    folders.index("voc12", tmp_path, "train", augmented=False)
    folders.index("folder", _own(tmp_path / "own"), "val")
    assert not caplog.text


@pytest.mark.parametrize("dataset", ["voc12", "pascal_context", "coco_stuff", "ade20k", "folder"])
def test_missing_root_and_empty_root(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder: --config.data.root"):
        folders.index(dataset, tmp_path / "nowhere", "val")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        folders.index(dataset, tmp_path, "val")


def test_wrong_root_lists_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        folders.index("pascal_context", tmp_path, "val")
    for part in ("JPEGImages/ and SegmentationClassContext/", f"{tmp_path}/VOCdevkit/VOC2010"):
        assert part in str(error.value)


def test_unknown_data_set_and_split(tmp_path):
    with pytest.raises(ValueError, match=r"data set 'kitti' .*wanted voc12, voc21, pascal_context"):
        folders.index("kitti", tmp_path, "val")
    with pytest.raises(ValueError, match="split 'test': wanted 'train' or 'val'"):
        folders.index("voc12", tmp_path, "test")


def test_missing_and_empty_lists(tmp_path):
    path = _voc(tmp_path) / "ImageSets/Segmentation/val.txt"
    _write(path)
    with pytest.raises(ValueError, match=r"val.txt is empty: wanted one image name"):
        folders.index("voc12", tmp_path, "val")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"found no .*val.txt"):
        folders.index("voc12", tmp_path, "val")


def test_missing_files_are_collected(tmp_path):
    root = _voc(tmp_path, aug_names=[f"n{i}" for i in range(10)])
    (root / "SegmentationClass/b.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        folders.index("voc12", root, "train")
    message = str(error.value)
    assert message.startswith(f"21 of 24 photos and masks are missing: {root}/SegmentationClass/b")
    assert f"{root}/SegmentationClassAug/n1.png, and 16 more; complete the download" in message
    assert message.count(".png") + message.count(".jpg") == 5


def test_missing_masks_of_your_own(tmp_path):
    (_own(tmp_path) / "labels/val/y.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"^1 of 6 .*labels/val/y.png;"):
        folders.index("folder", tmp_path, "val")


def test_photos_that_share_a_mask_are_refused(tmp_path):
    _save(_own(tmp_path) / "images/val/y.jpg")
    with pytest.raises(ValueError, match=r"photos that share a mask, rename one of each: y$"):
        folders.index("folder", tmp_path, "val")


def test_folder_without_photos(tmp_path):
    for path in (_own(tmp_path) / "images/val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images/val holds no photo \(.jpg, .jpeg, .png, "):
        folders.index("folder", tmp_path, "val")


def test_sizes_that_differ_name_both_files(tmp_path):
    _save(_own(tmp_path) / "images/val/x.jpg", size=(4, 2))
    with pytest.raises(
        ValueError, match=r"labels/val/x.png is 3 x 2 pixels, its photo .*x.jpg 4 x 2"
    ):
        folders.index("folder", tmp_path, "val")[0]


def test_values_outside_the_class_list(tmp_path):
    _save(_own(tmp_path) / "labels/val/x.png", values=np.where(VALUES == 2, 3, VALUES))
    with pytest.raises(ValueError, match=r"x.png holds the values \[3\], wanted 0..2 or 255: line"):
        folders.index("folder", tmp_path, "val")[0]


def test_corrupt_photo_is_named_when_read(tmp_path):
    (_own(tmp_path) / "images/val/x.jpg").write_bytes(b"<html>not found</html>")
    folder = folders.index("folder", tmp_path, "val")
    assert folder[1]["name"] == "y"
    with pytest.raises(ValueError, match=r"images/val/x.jpg cannot be used"):
        folder[0]


def test_one_folder_per_city(tmp_path):
    root = _own(tmp_path)
    for city, name in (("ulm", "x"), ("aachen", "x"), ("aachen/north", "q")):
        _save(root / f"images/val/{city}/{name}.jpg")
        _save(root / f"labels/val/{city}/{name}.png")
    (root / "images/val/9.jpg").mkdir()
    folder = folders.index("folder", root, "val")
    # paths that differ, so that predictions of two cities do not overwrite each other
    names = ["aachen/north/q", "aachen/x", "ulm/x", "x", "y", "z"]
    assert [example["name"] for example in folder] == names
    assert [path.relative_to(root / "labels/val").as_posix() for path in folder.labels] == [
        f"{name}.png" for name in names
    ]


def test_masks_of_a_city_that_are_not_in_its_folder_are_named(tmp_path):
    root = _own(tmp_path)
    for name in "xyz":
        (root / "labels/val" / f"{name}.png").unlink()
    _save(root / "labels/val/x.png")
    for path in [*(root / "images/val").iterdir()]:
        path.unlink()
    _save(root / "images/val/ulm/x.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"labels/val holds x.png, but a mask has the name of"
    ):
        folders.index("folder", root, "val")


def test_other_formats_of_photos_are_used_and_the_rest_is_said(tmp_path, caplog):
    root = _own(tmp_path)
    for suffix in (".tif", ".bmp", ".webp"):
        Image.new("RGB", (3, 2), (9, 9, 9)).save(root / f"images/val/new{suffix[1:]}{suffix}")
        _save(root / f"labels/val/new{suffix[1:]}.png")
    (root / "images/val/phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    folder = folders.index("folder", root, "val")
    assert _stems(folder) == ["newbmp", "newtif", "newwebp", "x", "y", "z"]
    assert (folder[1]["image"] == 9).all()
    assert "left out 1 pictures that are not .jpg" in caplog.text
    assert "phone.HEIC: save them as .png or .jpg" in caplog.text


@pytest.mark.parametrize("masks", ["none", "empty"])
def test_photos_alone_are_answered_with_the_way_that_exists(tmp_path, masks):
    root = _own(tmp_path)
    for path in (root / "labels/val").iterdir():
        path.unlink()
    if masks == "none":
        (root / "labels/val").rmdir()
    with pytest.raises(
        FileNotFoundError, match=r"labels/val holds no masks.*otseg_jax.load\(WORKDIR"
    ):
        folders.index("folder", root, "val")


def test_ignored_ids_are_no_class(tmp_path, caplog):
    root = _own(tmp_path)
    _write(root / "classes.csv", "name,split", "cat,seen", "void,ignore", "newt,Unseen")
    caplog.set_level("INFO")
    folder = folders.index("folder", root, "val")
    assert folder.vocabulary.names == ("cat", "newt")
    # values 0, 1 (void), 2; 255
    expected = np.select([VALUES == 0, VALUES == 2], [0, 1], IGNORE)
    np.testing.assert_array_equal(folder[0]["label"], expected)
    assert "ids [1] stand for no class; the others are classes 0..1" in caplog.text


def test_colour_masks_are_read_by_the_colours_of_the_classes(tmp_path):
    root = _own(tmp_path)
    colours = np.array([[0, 0, 0], [220, 30, 30], [30, 200, 60]], np.uint8)
    picture = colours[np.array([[0, 1, 2], [1, 0, 2]])]
    for name in "xyz":
        _save(root / f"labels/val/{name}.png", values=picture)
    with pytest.raises(ValueError, match=r"colour mask of 3 colours .*third column `colour`"):
        folders.index("folder", root, "val")[0]
    _write(root / "classes.csv", "name,split,colour", "a,ignore,000000", "b,seen,dc1e1e")
    with pytest.raises(ValueError, match=r"its colours #1ec83c are not in classes.csv"):
        folders.index("folder", root, "val")[0]
    lines = ("back,ignore,000000", "cat,seen,dc1e1e", "newt,unseen,dc1e1e", "eft,seen,1ec83c")
    _write(root / "classes.csv", "name,split,colour", *lines)
    with pytest.raises(ValueError, match=r"colours repeat in classes.csv"):
        folders.index("folder", root, "val")[0]
    _write(
        root / "classes.csv",
        "name,split,colour",
        "back,ignore,000000",
        "cat,seen,DC1E1E",
        "newt,unseen,1ec83c",
    )
    example = folders.index("folder", root, "val")[0]
    np.testing.assert_array_equal(example["label"], [[IGNORE, 0, 1], [0, IGNORE, 1]])


@pytest.mark.parametrize("raw", [b"a\r\nb\r\n", "\ufeffa\nb\n".encode(), "a\r\nb".encode("utf-16")])
def test_voc_lists_of_any_editor(tmp_path, raw):
    root = _voc(tmp_path)
    (root / "ImageSets/Segmentation/train.txt").write_bytes(raw)
    assert _stems(folders.index("voc12", root, "train")) == ["a", "b", "c", "d"]


def test_voc_lists_of_one_class_are_no_incomplete_download(tmp_path):
    root = _voc(tmp_path)
    _write(root / "ImageSets/Segmentation/train.txt", "a  1", "b -1")
    with pytest.raises(ValueError, match=r"line 1 is 'a  1'.* list of one class") as error:
        folders.index("voc12", root, "train")
    assert "download" not in str(error.value)


def test_a_class_file_of_another_name_is_named(tmp_path):
    root = _own(tmp_path)
    (root / "classes.csv").rename(root / "Classes.csv.txt")
    with pytest.raises(FileNotFoundError, match=r"Classes.csv.txt is there: rename it, or write"):
        folders.index("folder", root, "val")
