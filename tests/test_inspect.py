"""What labels have to teach is counted, and what would make a run useless is found."""

import itertools
import logging

import numpy as np
import own_data
import pytest
import small
from own_data import MASK
from PIL import ExifTags, Image

from otseg_jax import build
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.data import decode, folders, inspect, regimes
from otseg_jax.data.shapes import Shapes
from otseg_jax.training import loop, start

NOTHING = np.full((3, 4), 255, np.uint8)


def _inspect(split, regime="inductive", **options):
    vocabulary = split.vocabulary
    if regime:
        regime = regimes.resolve(regime, num_classes=len(vocabulary), unseen=vocabulary.unseen)
    return inspect.inspect(split, regime, **options)


@pytest.mark.parametrize("regime", [*regimes.NAMES, None])
def test_labels_in_order_are_counted_and_passed(tmp_path, regime):
    found = _inspect(own_data.folder(tmp_path), regime)
    assert (found.masks, found.total) == (2, 2)
    assert found.pixels.tolist() == [6, 6, 6]
    assert found.ignored == 6
    assert dict(found.values) == {0: 6, 1: 6, 2: 6, 255: 6}
    assert (found.problems, found.doubts) == ([], [])


@pytest.mark.parametrize("regime", [*regimes.NAMES, None])
def test_real_and_drawn_data_raise_no_doubt(photos, regime):
    for split in (
        folders.index("voc12", photos / "voc2012_mini", "train"),
        Shapes("train", size=2000),
    ):
        found = _inspect(split, regime)
        assert (found.problems, found.doubts) == ([], [])
        assert 0 < found.masks <= 64 < found.total
        assert (found.pixels > 0).mean() > 0.7


def test_pixels_are_those_of_a_plain_count():
    split, counts = Shapes("train", size=30), np.zeros(20, int)
    for example in split:
        for k in range(20):
            counts[k] += (example["label"] == k).sum()
    assert _inspect(split, sample=0).pixels.tolist() == counts.tolist()


@pytest.mark.parametrize(("sample", "looked"), [(0, 10), (1, 1), (3, 3), (4, 4), (64, 10)])
def test_a_sample_is_bounded_and_even(tmp_path, sample, looked):
    split = own_data.folder(tmp_path, [MASK] * 10)
    found = _inspect(split, sample=sample)
    assert (found.masks, found.total) == (looked, 10)


def test_wrong_values_of_all_files_are_told_at_once(tmp_path):
    bad = np.where(MASK == 255, 7, MASK)
    split = own_data.folder(tmp_path, [MASK, bad, MASK, np.where(MASK == 2, 9, bad)])
    (problem,) = _inspect(split).problems
    assert problem.startswith("2 of the 4 masks hold values that no class has, 7 (6 pixels), 9 (3")
    assert "/0001.png, " in problem
    assert "/0003.png; wanted 0..2 or 255" in problem


def test_one_wrong_mask_in_the_sample_has_all_of_them_read(tmp_path):
    masks = [MASK] * 10
    for i in (0, 3, 9):
        masks[i] = np.where(MASK == 255, 7, MASK)
    split = own_data.folder(tmp_path, masks)
    split.labels[5].write_bytes(b"no picture")
    damaged, problem = _inspect(split, sample=2, threads=2).problems
    assert "0005.png" in damaged
    assert problem.startswith("3 of the 10 masks hold values that no class has, 7 (9 pixels), in ")
    assert all(f"/000{i}.png" in problem for i in (0, 3, 9))


def _missed(root, split):
    """A split with three faults that no sample meets: 66 masks, of which every other is read."""
    masks = [MASK] * 66
    masks[1] = masks[65] = np.where(MASK == 255, 7, MASK)
    found = own_data.folder(root, masks, split=split)
    Image.new("RGB", (2, 2)).save(found.images[33])
    assert not _inspect(found).problems
    return found


def _tell_all_three(error, split):
    told = str(error.value)
    assert f"{split.labels[33]} is 4 x 3 pixels, its photo {split.images[33]} 2 x 2" in told
    assert "2 of the 66 masks hold values that no class has, 7 (6 pixels)" in told
    assert f"{split.labels[1]}, {split.labels[65]}" in told


def test_what_no_sample_meets_is_told_of_at_once_when_one_is_read(tmp_path):
    split = _missed(tmp_path, "train")
    batches = itertools.islice(start.batches(_settings(tmp_path), split, 0), 66)
    with pytest.raises(ValueError, match="hold values") as error:
        list(batches)
    _tell_all_three(error, split)


def test_a_mask_that_is_wrong_in_validation_costs_no_step(tmp_path):
    own_data.write(tmp_path / "data")
    split = _missed(tmp_path / "data", "val")
    with pytest.raises(ValueError, match="hold values") as error:
        loop.train(_settings(tmp_path / "data"), tmp_path / "run")
    _tell_all_three(error, split)
    with Checkpoints(tmp_path / "run/checkpoints") as saved:
        assert saved.latest_step() == 4


def test_an_upright_size_is_read_from_the_header(tmp_path):
    for suffix in ("jpg", "png", "tif", "webp"):
        for turn in (None, *range(1, 10)):
            exif = Image.Exif()
            if turn:
                exif[ExifTags.Base.Orientation] = turn
            path = tmp_path / f"{turn}.{suffix}"
            Image.new("RGB", (5, 3)).save(path, exif=exif)
            assert decode.size(path) == decode.photo(path).shape[:2], path
    assert decode.size(tmp_path / "6.jpg") == (5, 3)
    with pytest.raises(FileNotFoundError, match=r"no\.jpg: no such file"):
        decode.size(tmp_path / "no.jpg")


def test_the_mend_for_a_background_of_0_works(tmp_path):
    split = own_data.folder(tmp_path, [np.array([[0, 1, 2, 3]], np.uint8)])
    (problem,) = _inspect(split).problems
    assert "if 0 is the background, begin classes.csv with the line background,ignore" in problem
    assert "if 3 stands for unlabelled, end it with the line unlabelled,ignore" in problem
    for lines in (
        ("background,ignore", *own_data.CLASSES),
        (*own_data.CLASSES, "unlabelled,ignore"),
    ):
        own_data.write(tmp_path, [], lines)
        mended = folders.index("folder", tmp_path, "train")
        found = _inspect(mended)
        assert (found.problems, found.doubts) == ([], [])
        assert found.pixels.tolist() == [1, 1, 1]


def test_ids_that_start_at_1(tmp_path):
    (problem,) = _inspect(own_data.folder(tmp_path, [np.array([[1, 2, 3]], np.uint8)])).problems
    assert "begin classes.csv with the line background,ignore" in problem
    assert "unlabelled" not in problem


def test_grey_levels(tmp_path):
    (problem,) = _inspect(own_data.folder(tmp_path, [np.array([[0, 85, 170]], np.uint8)])).problems
    assert problem.endswith(
        "grey levels, no ids: number the classes in the masks, 0 for 0, 1 for 85, 2 for 170"
    )


@pytest.mark.parametrize("regime", regimes.NAMES)
def test_nothing_but_ignored_pixels(tmp_path, regime):
    (problem,) = _inspect(own_data.folder(tmp_path, [NOTHING, NOTHING]), regime).problems
    assert problem.startswith(
        "in the 2 masks all 24 pixels are of no class, so there is nothing to"
    )


def test_masks_of_nothing_can_be_evaluated(tmp_path):
    found = _inspect(own_data.folder(tmp_path, [NOTHING, NOTHING]), None)
    assert found.problems == []
    assert found.doubts == [
        "in the 2 masks all 24 pixels are of no class: predictions are made, but no figures"
    ]


def test_labels_far_apart_are_looked_for(tmp_path):
    masks = [NOTHING] * 20
    masks[11] = MASK
    found = _inspect(own_data.folder(tmp_path, masks), sample=2)
    assert found.problems == []
    assert 2 < found.masks < 20


def test_unseen_pixels_alone_teach_an_inductive_run_nothing(tmp_path):
    split = own_data.folder(tmp_path, [np.where(MASK < 255, 2, MASK)])
    (problem,) = _inspect(split).problems
    assert "all labelled pixels are of newt, which inductive training ignores" in problem
    assert _inspect(split, "supervised").problems == []


def test_one_class_has_nothing_to_be_told_apart_from(tmp_path):
    split = own_data.folder(tmp_path, [np.array([[0, 255]], np.uint8)], ("cat,seen",))
    (doubt,) = _inspect(split).doubts
    assert doubt.startswith("'cat' is the only class: every pixel will be of it")
    own_data.write(tmp_path, [np.array([[0, 1]], np.uint8)], ("cat,seen", "background,seen"))
    assert _inspect(folders.index("folder", tmp_path, "train")).doubts == []


def test_a_foreground_of_255_is_told(tmp_path):
    classes = ("background,seen", "cat,seen")
    (doubt,) = _inspect(own_data.folder(tmp_path, [np.array([[0, 255]], np.uint8)], classes)).doubts
    assert "'background' is the only class with labelled pixels" in doubt
    assert "255 stands for no class: write 1 for it" in doubt


def test_seen_classes_without_a_pixel_are_named(tmp_path):
    classes = ("cat,seen", "dog,seen", "newt,seen", "owl,unseen")
    (doubt,) = _inspect(
        own_data.folder(tmp_path, [np.array([[0, 1, 0]], np.uint8)], classes)
    ).doubts
    assert doubt == "in the 1 masks there is no pixel of newt"
    # in a sample a rare class may be missing by chance, most classes may not
    masks = [np.array([[0, 1, 0]], np.uint8)] * 9
    assert _inspect(own_data.folder(tmp_path, masks, classes), sample=3).doubts == []
    many = tuple(f"class {k},seen" for k in range(9))
    (doubt,) = _inspect(own_data.folder(tmp_path, masks, many), sample=3).doubts
    assert "in the 3 masks looked at (of 9) there is no pixel of class 2, class 3" in doubt


def test_pseudo_labels_without_a_pixel_to_draw_them_for(tmp_path):
    split = own_data.folder(tmp_path, [np.where(MASK == 2, 255, MASK)])
    (doubt,) = _inspect(split, "transductive").doubts
    assert "no pixel of the unseen newt" in doubt
    assert _inspect(split).doubts == []


def test_masks_that_cannot_be_read_are_collected(tmp_path):
    split = own_data.folder(tmp_path, [MASK] * 9)
    for path in split.labels[:7]:
        path.write_bytes(b"<html>")
    (problem,) = _inspect(split).problems
    assert problem.startswith(f"{split.labels[0]} cannot be used")
    assert problem.endswith("; and 2 more")


def _settings(root, **fields):
    return small.settings(**{"data.dataset": "folder", "data.root": str(root)} | fields)


@pytest.mark.parametrize("spoilt", ["train", "val"])
def test_a_run_stops_before_its_first_step(tmp_path, spoilt):
    for split in ("train", "val"):
        bad = np.where(MASK == 2, 8, MASK)
        own_data.write(tmp_path / "data", [bad if split == spoilt else MASK] * 2, split=split)
    with pytest.raises(
        ValueError, match=rf"^{spoilt}: 2 of the 2 masks hold values that no class has"
    ):
        loop.train(_settings(tmp_path / "data"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_told_once_and_of_which_split(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="otseg_jax")
    splits = {}
    for split, mask in (("train", np.where(MASK == 1, 0, MASK)), ("val", NOTHING)):
        splits[split] = own_data.folder(tmp_path, [mask], split=split)
    build.check_labels(_settings(tmp_path), **splits)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "train: in the 1 masks 'cat' is the only class with labelled pixels: there is nothing to "
        "tell it apart from",
        "val: in the 1 masks all 12 pixels are of no class: predictions are made",
    ]
