"""What is found in a photo: counted, drawn, saved, and shown in a notebook."""

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from otseg_jax.predict import Segmentation

PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
LABELS = np.zeros((30, 40), np.int32)
LABELS[:, 20:] = 1
LABELS[:3, :4] = 2
NAMES = ("background", '<sofa> & "couch"', "кот")


def segmentation(**fields) -> Segmentation:
    def scores(size, classes):
        chosen = range(3) if classes is None else classes
        return np.stack([np.full(size, k, np.float32) for k in chosen])

    fields = {
        "photo": PHOTO,
        "labels": LABELS,
        "names": NAMES,
        "palette": ((0, 0, 0), (200, 0, 0), (0, 200, 0)),
        "words": ((), ('<sofa> & "couch"', "settee"), ("кот",)),
        "background": True,
        "seconds": 0.5,
        "made_by": "naclip, ViT-B/16",
        "source": "photos/a b.jpg",
        "make_scores": scores,
    } | fields
    return Segmentation(**fields)


def test_it_counts_and_is_an_array():
    found = segmentation()
    assert found.ratios == {'<sofa> & "couch"': 0.5, "background": 0.49, "кот": 0.01}
    np.testing.assert_array_equal(np.asarray(found), LABELS)
    assert np.asarray(found, np.uint8).dtype == np.uint8
    assert "30 × 40" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["size"] == [30, 40]


def test_scores_of_all_classes_or_of_one():
    found = segmentation()
    assert found.scores().shape == (3, 30, 40)
    assert found.scores(size=(2, 5)).shape == (3, 2, 5)
    for name in (NAMES[1], "settee"):
        np.testing.assert_array_equal(found.scores(name), np.full((30, 40), 1.0))
    with pytest.raises(ValueError, match=r"'dog' is none of background, <sofa>"):
        found.scores("dog")
    with pytest.raises(ValueError, match=r"size=\(0, 3\): wanted"):
        found.scores(size=(0, 3))


def test_the_overlay_keeps_the_photo_where_it_is_background():
    found = segmentation()
    plain = np.asarray(found.overlay(legend=False))
    np.testing.assert_array_equal(plain[LABELS == 0], PHOTO[LABELS == 0])
    want = np.rint(0.4 * PHOTO[10, 30] + 0.6 * np.array([200, 0, 0]))
    np.testing.assert_allclose(plain[10, 30], want, atol=1)
    whole = found.overlay()
    assert whole.height > 30
    assert whole.width >= 40
    np.testing.assert_array_equal(np.asarray(whole)[:30, :40], plain)
    # squares of the colours of the classes that are there
    below = {tuple(pixel) for pixel in np.asarray(whole)[30:].reshape(-1, 3).tolist()}
    assert {(200, 0, 0), (0, 200, 0)} <= below
    shown = segmentation(background=False).overlay(legend=False)
    assert not np.array_equal(np.asarray(shown)[LABELS == 0], PHOTO[LABELS == 0])


@pytest.mark.parametrize(("classes", "mode"), [(3, "P"), (300, "I;16")])
def test_saved_files_hold_ids_and_names(tmp_path, classes, mode):
    names = (*NAMES, *(f"thing {k}" for k in range(classes - 3)))
    palette = ((0, 0, 0), *[(9, 8, 7)] * (classes - 1))
    labels = np.where(LABELS == 1, classes - 1, LABELS).astype(np.int32)
    found = segmentation(
        names=names, palette=palette, words=tuple((n,) for n in names), labels=labels
    )
    mask, overlay, numbers = found.save(tmp_path / "new/folder")
    assert mask.name == "a b.png"
    with Image.open(mask) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), labels)
    with Image.open(overlay) as picture:
        assert picture.format == "JPEG"
    assert json.loads(numbers.read_text())["names"][2] == "кот"
    assert sorted(p.name for p in mask.parent.iterdir()) == [
        "a b.json",
        "a b.png",
        "a b_overlay.jpg",
    ]
    assert segmentation(source="").save(tmp_path)[0].name == "photo.png"


def test_a_notebook_shows_a_picture_of_a_size_to_look_at():
    assert segmentation()._repr_png_().startswith(b"\x89PNG")
    large = np.zeros((10, 5000), np.int32)
    wide = segmentation(labels=large, photo=np.zeros((10, 5000, 3), np.uint8))
    assert len(wide._repr_png_()) < 100_000


def test_the_photo_is_never_replaced(tmp_path):
    source = tmp_path / "a.png"
    source.write_bytes(b"a photo")
    with pytest.raises(
        ValueError, match=r"a\.png would be replaced: choose another folder or stem="
    ):
        segmentation(source=str(source)).save(tmp_path)
    assert (source.read_bytes(), [*tmp_path.iterdir()]) == (b"a photo", [source])
    segmentation(source=str(source)).save(tmp_path, stem="b")  # the mend


def test_long_names_are_written(tmp_path):
    stem = "x" * 200  # what a file's name may hold is 255, and a part adds to it
    segmentation().save(tmp_path, stem=stem)
    assert (tmp_path / f"{stem}.png").is_file()


def test_other_libraries_get_one_mask_a_class(monkeypatch):
    # the library is no dependency: a double with the two names that are called
    found = {}
    double = types.SimpleNamespace(
        Detections=lambda **fields: found.update(fields) or found,
        mask_to_xyxy=lambda masks: np.zeros((len(masks), 4)),
    )
    monkeypatch.setitem(sys.modules, "supervision", double)
    segmentation().to_supervision()
    assert found["class_id"].tolist() == [1, 2]
    np.testing.assert_array_equal(found["mask"][1], LABELS == 2)
    assert found["data"]["class_name"].tolist() == [NAMES[1], "кот"]
