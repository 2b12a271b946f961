"""The shapes data set: its promises to a loader, and that a picture shows what its label says.

What a picture shows is read back with OpenCV (hue, corners of a contour) and with nearest
neighbours between 8-pixel patches, none of which knows how the picture was drawn.
"""

import hashlib
import pickle

import cv2
import numpy as np
import pytest

from otseg_jax.data.classes import IGNORE
from otseg_jax.data.shapes import Shapes, draw

HUES = {"red": 0.0, "yellow": 50.0, "green": 135.0, "blue": 215.0, "purple": 280.0}
CORNERS = {"disc": 8, "square": 4, "triangle": 3, "star": 10, "cross": 12}


@pytest.fixture(scope="module")
def train() -> list[dict]:
    return list(Shapes("train", size=500))


@pytest.fixture(scope="module")
def val() -> list[dict]:
    return list(Shapes("val", size=100))


def test_an_example_keeps_the_protocol_of_a_folder(val):
    shapes = Shapes("val", size=100)
    assert len(shapes) == len(val) == 100
    assert len(shapes.vocabulary) == 20
    assert len({example["name"] for example in val}) == 100
    for example in val:
        assert example["image"].shape == (96, 96, 3)
        assert example["label"].shape == (96, 96)
        assert (example["image"].dtype, example["label"].dtype) == (np.uint8, np.int16)
        assert set(np.unique(example["label"])) <= {*range(20), IGNORE}


def test_an_index_is_any_integer_within_the_split(val):
    shapes = Shapes("val", size=100)
    assert shapes[np.int64(7)]["name"] == val[7]["name"] == "val_000007"
    for outside in (100, -1):
        with pytest.raises(IndexError, match=f"index {outside} of a split of 100 images"):
            shapes[outside]


def test_bytes_are_the_same_everywhere_and_always():
    digest = hashlib.sha256()
    for split, image_size in (("train", 96), ("val", 96), ("val", 130)):
        shapes = Shapes(split, size=10**6, image_size=image_size)
        for index in (0, 1, 23, 456_789):
            example = shapes[index]
            # the digest was taken of 8-bit labels in which 255 is ignored: -1, wrapped around
            label = example["label"].astype(np.uint8)
            digest.update(example["image"].tobytes() + label.tobytes())
    # a run that is resumed, or repeated on another machine, must meet the same pictures
    assert digest.hexdigest() == "325270dfbf470744803307bb80b75121f23260d649268a5f80beae9e9dfd2550"


def test_an_example_depends_on_its_index_alone(val):
    shapes = pickle.loads(pickle.dumps(Shapes("val", size=12)))
    assert shapes == Shapes("val", size=12)
    for index in (11, 3, 11):
        example = shapes[index]
        np.testing.assert_array_equal(example["image"], val[index]["image"])
        np.testing.assert_array_equal(example["label"], val[index]["label"])


def test_a_scene_says_which_thing_is_seen_where():
    things = [("plain", "red", "disc"), ("dotted", "blue", "star"), ("plain", "green", "cross")]
    for seed in range(5):
        image, which = draw(np.random.default_rng(seed), things, image_size=96)
        assert which.dtype == np.int16
        assert set(np.unique(which)) == {IGNORE, 0, 1, 2}
        for order, channel in enumerate((0, 2, 1)):
            # the strongest channel of its colour; cream dots are a third of the second thing
            assert (image[which == order].argmax(-1) == channel).mean() > 0.6


def test_splits_and_seeds_share_no_picture():
    sources = [Shapes("train", size=40), Shapes("val", size=40), Shapes("train", size=40, seed=1)]
    pictures = {example["image"].tobytes() for source in sources for example in source}
    assert len(pictures) == 120


@pytest.mark.parametrize("start", [0, 17, 60])
def test_any_twenty_consecutive_images_show_every_class(val, start):
    labels = np.stack([example["label"] for example in val[start : start + 20]])
    assert set(np.unique(labels)) == {*range(20), IGNORE}


def test_every_object_is_large_and_one_to_four_share_an_image(train):
    counts = []
    for index, example in enumerate(train):
        ids, areas = np.unique(example["label"], return_counts=True)
        areas = areas[ids != IGNORE]
        assert areas.min() >= 250, f"image {index}: too little is left of an object"
        counts.append(len(areas))
    assert set(counts) == {1, 2, 3, 4}


def test_a_border_parts_objects_that_overlap(train):
    overlaps = 0
    kernel = np.ones((3, 3), np.uint8)
    for example in train:
        near = [
            cv2.dilate((example["label"] == k).astype(np.uint8), kernel)
            for k in np.unique(example["label"])
            if k != IGNORE
        ]
        for k in np.unique(example["label"][example["label"] != IGNORE]):
            others = (example["label"] != IGNORE) & (example["label"] != k)
            touched = cv2.dilate((example["label"] == k).astype(np.uint8), kernel) & others
            assert not touched.any()
        overlaps += int(np.sum(near, axis=0).max() > 1)
    assert overlaps > 100  # or the check above never met a pair of neighbours


def test_objects_have_the_colour_and_the_corners_of_their_name(train):
    names = Shapes("train", size=1).vocabulary.names
    met = set()
    for example in train:
        hsv = cv2.cvtColor(example["image"].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        for k in np.unique(example["label"][example["label"] != IGNORE]):
            _, colour, shape = names[k].split()
            inside = example["label"] == k
            hue = np.median((hsv[..., 0][inside & (hsv[..., 1] > 0.4)] + 60) % 360) - 60
            assert min(HUES, key=lambda name: abs(HUES[name] - hue)) == colour
            if (corners := _corners(example["label"], k)) is not None:
                assert corners == CORNERS[shape], f"{example['name']}: {names[k]}"
                met.add(shape)
    assert met == set(CORNERS)


def _corners(label: np.ndarray, k: int) -> int | None:
    """Corners of the outline of a lone object; None if there are others or the frame cuts it."""
    inside = (label == k).astype(np.uint8)
    frame = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if frame.any() or len(contours) > 1 or len(np.unique(label)) > 2:
        return None
    tolerance = 0.025 * cv2.arcLength(contours[0], True)
    return len(cv2.approxPolyDP(contours[0], tolerance, True))


def test_a_patch_of_eight_pixels_tells_its_class(train, val):
    patches, classes = _whole_patches(train)
    asked, answers = _whole_patches(val)
    known, query = _features(patches), _features(asked)
    squared = (query**2).sum(1)[:, None] + (known**2).sum(1) - 2 * query @ known.T
    guess = classes[squared.argmin(1)]
    assert len(answers) > 1000
    assert np.mean(guess % 5 == answers % 5) > 0.995  # 5 colours in each pattern
    assert np.mean(guess == answers) > 0.95


def _whole_patches(examples: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The 8 × 8 patches of the grid of a ViT that lie inside one object, and their classes."""
    images = np.stack([e["image"] for e in examples]).reshape(-1, 12, 8, 12, 8, 3)
    labels = np.stack([e["label"] for e in examples]).reshape(-1, 12, 8, 12, 8)
    images = images.swapaxes(2, 3).reshape(-1, 8, 8, 3)
    labels = labels.swapaxes(2, 3).reshape(-1, 64)
    whole = (labels == labels[:, :1]).all(1) & (labels[:, 0] != IGNORE)
    return images[whole].astype(np.float64) / 255, labels[whole, 0].astype(int)


def _features(patches: np.ndarray) -> np.ndarray:
    """Amplitudes of the grey spectrum, which know no position, and the direction of the colour."""
    grey = patches.mean(-1)
    spectrum = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True)))[:, :5]
    chroma = patches - grey[..., None]
    colour = (chroma * chroma.std(-1, keepdims=True)).sum((1, 2))
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    return np.concatenate([spectrum.reshape(len(patches), -1) / 20, 3 * colour], axis=1)


def test_backgrounds_are_paler_than_any_class(val):
    for example in val:
        saturation = cv2.cvtColor(example["image"].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[
            ..., 1
        ]
        objects = (example["label"] != IGNORE).astype(np.uint8)
        background = cv2.dilate(objects, np.ones((9, 9), np.uint8)) == 0
        assert saturation[background].max() < 0.3
        for k in np.unique(example["label"][example["label"] != IGNORE]):
            assert np.percentile(saturation[example["label"] == k], 75) > 0.45


def test_a_larger_image_is_the_same_scene(val):
    large = Shapes("val", size=20, image_size=192)
    for index in range(20):
        example = large[index]
        # cells of 2 × 2 pixels, compared where both labels are away from borders
        label = example["label"].reshape(96, 2, 96, 2).swapaxes(1, 2).reshape(96, 96, 4)
        inside = (label == label[..., :1]).all(-1) & (label[..., 0] != IGNORE)
        inside &= val[index]["label"] != IGNORE
        assert inside.sum() > 250
        np.testing.assert_array_equal(label[inside, 0], val[index]["label"][inside])
        small = example["image"].reshape(96, 2, 96, 2, 3).mean((1, 3))
        # grain and the rims of patterns differ
        assert np.abs(small - val[index]["image"]).mean() < 2.5


def test_other_words_are_for_the_same_pictures(val):
    names = Shapes("val", size=1).vocabulary.names
    colours = [name.split()[1] for name in names]
    by_colour = Shapes("val", size=20, words="shapes_colours")
    by_synonym = Shapes("val", size=20, words="shapes_synonyms")
    assert not set(names) & set(by_synonym.vocabulary.names)
    assert by_synonym.vocabulary.unseen == Shapes("val", size=1).vocabulary.unseen
    for example, coloured, renamed in zip(val, by_colour, by_synonym, strict=False):
        np.testing.assert_array_equal(coloured["image"], example["image"])
        np.testing.assert_array_equal(renamed["label"], example["label"])
        for k in np.unique(example["label"]):
            (found,) = np.unique(coloured["label"][example["label"] == k])
            wanted = "" if k == IGNORE else f"{colours[k]} thing"
            assert wanted == ("" if found == IGNORE else by_colour.vocabulary.names[found])


def test_all_bad_arguments_are_named_at_once():
    with pytest.raises(ValueError, match="cannot be drawn") as caught:
        Shapes("test", size=0, image_size=16, seed=-1, words="animals")
    for part in ("split='test'", "train, val", "size=0", "image_size=16", "seed=-1", "'animals'"):
        assert part in str(caught.value)
