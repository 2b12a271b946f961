"""Transforms against plain loops, torch and colorsys; random ones against their distributions."""

import colorsys
import math

import numpy as np
import pytest
from oracles import torch

from configs import common
from otseg_jax.data import folders, transforms
from otseg_jax.data.classes import IGNORE

SCALE = (2048, 512)
MEAN, STD = common.IMAGENET


class Fixed(np.random.Generator):
    """A generator whose bits are listed: numbers of [0, 1) that walk down one branch."""

    def __init__(self, *numbers):
        super().__init__(np.random.PCG64(0))
        self.numbers = list(numbers)

    def random(self, size=None):
        if size is None:
            return self.numbers.pop(0)
        return np.array([self.numbers.pop(0) for _ in range(size)])

    def uniform(self, low, high):
        return low + (high - low) * self.random()

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        return low + int(self.random() * (high - low))


def _image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _label(height, width, classes=4, seed=0):
    return np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.int16)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((375, 500), (2048, 512), (512, 683)),  # short side decides; 682.67 is rounded up
        ((500, 375), (2048, 512), (683, 512)),
        ((100, 500), (2048, 512), (410, 2048)),  # long side decides; 409.6
        ((100, 500), (math.inf, 512), (512, 2560)),
        ((300, 400), (520, 520), (390, 520)),
        ((100, 111), (512, 50), (50, 56)),  # 55.5 goes up
        ((100, 109), (512, 50), (50, 55)),  # 54.5 as well: not to even
        ((300, 400), (512, 2048), (512, 683)),
        ((512, 512), (2048, 512), (512, 512)),
        ((1, 5000), (256, 64), (1, 256)),  # 0.05 would be no pixel
    ],
)
def test_fit(size, scale, expected):
    assert transforms.fit(*size, scale=scale) == expected


@pytest.mark.parametrize("size", [(30, 41), (200, 170)])
def test_resize_equals_torch_and_a_loop(size):
    image, label = _image(*size), _label(*size, classes=847)
    label[::3] = IGNORE
    new_image, new_label = transforms.resize(image, label, scale=(100, 64))
    height, width = transforms.fit(*size, scale=(100, 64))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    )[0].permute(1, 2, 0)
    # 8-bit results of OpenCV's fixed-point weights: off by rounding, at most one
    assert np.abs(new_image - expected.numpy()).max() < 1.01
    for y in range(height):
        for x in range(width):
            source = label[y * size[0] // height, x * size[1] // width]
            assert new_label[y, x] == source


def test_crop_takes_the_same_window_of_image_and_label():
    image, label = _image(40, 60), _label(40, 60)
    image[..., 0] = label
    starts = set()
    for seed in range(300):
        a, b = transforms.random_crop(image, label, np.random.default_rng(seed), size=32)
        assert a.shape == (32, 32, 3)
        np.testing.assert_array_equal(a[..., 0], b)
        found = np.flatnonzero((image[:9, :29] == a[0, 0]).all(-1))
        starts.update(tuple(divmod(int(i), 29)) for i in found)
    # every offset on either axis occurs, the first and the last included
    assert {y for y, _ in starts} == set(range(9))
    assert {x for _, x in starts} == set(range(29))


def test_crop_keeps_sides_that_are_too_short():
    rng = np.random.default_rng(0)
    image, label = transforms.random_crop(_image(20, 50), _label(20, 50), rng, size=32)
    assert image.shape == (20, 32, 3)
    assert label.shape == (20, 32)


def _halves(left, right):
    label = np.empty((8, 32), np.int16)
    label[:, :16], label[:, 16:] = left, right
    return label


def _crop_start(label, fraction, *draws):
    """Column where the crop starts, and how many draws of (y, x) were taken."""
    image = np.zeros((*label.shape, 3), np.uint8)
    image[...] = np.arange(label.shape[1], dtype=np.uint8)[:, None]
    numbers = [n for x in draws for n in (0.0, (x + 0.5) / (label.shape[1] - 7))]
    rng = Fixed(*numbers)
    crop, _ = transforms.random_crop(image, label, rng, size=8, max_class_fraction=fraction)
    return int(crop[0, 0, 0]), (len(numbers) - len(rng.numbers)) // 2


@pytest.mark.parametrize(
    ("label", "fraction", "draws", "expected"),
    [
        (_halves(1, 2), 0.75, [0, 20, 12], (12, 3)),  # one class alone twice, then half and half
        (_halves(1, 2), 0.75, [10, 12], (12, 2)),  # 6 of 8 columns: the bound itself is too much
        (_halves(1, 2), 0.75, [11, 3], (11, 1)),  # 5 of 8
        (_halves(1, IGNORE), 0.75, [12] * 11, (12, 11)),  # ignored pixels do not count: 1 is all
        (_halves(IGNORE, IGNORE), 0.75, [5] * 11, (5, 11)),  # nothing at all counts as dominated
        (_halves(255, 846), 0.75, [0, 20, 12], (12, 3)),  # 255 is a class like any other
        (_halves(1, 2), 0.75, [*range(11), 12], (10, 11)),  # the 11th is kept unseen
        (_halves(1, 1), 1.0, [7], (7, 1)),  # switched off
    ],
)
def test_crop_is_drawn_again_while_a_class_dominates(label, fraction, draws, expected):
    assert _crop_start(label, fraction, *draws) == expected


def test_flip_mirrors_both_or_neither():
    image, label = _image(4, 7), _label(4, 7)
    for number, expected in ((0.49, slice(None, None, -1)), (0.5, slice(None))):
        a, b = transforms.flip(image, label, Fixed(number))
        np.testing.assert_array_equal(a, image[:, expected])
        np.testing.assert_array_equal(b, label[:, expected])


NO, YES = 0.9, 0.1


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.999])
def test_brightness_equals_the_formula(draw):
    image = _image(9, 9)
    shifted = image.astype(np.float64) + (-32 + 64 * draw)
    expected = np.floor(np.clip(shifted, 0, 255)).astype(np.uint8)
    rng = Fixed(YES, NO, NO, NO, NO, draw)
    np.testing.assert_array_equal(transforms.photometric(image, rng), expected)
    assert rng.numbers == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("draw", [0.0, 0.3, 0.999])
def test_contrast_equals_the_formula(draw, first):
    image = _image(9, 9)
    # float32 as in the reference: in float64 a product may fall on the other side of an integer
    scaled = image.astype(np.float32) * (0.5 + draw)
    expected = np.clip(scaled, 0, 255).astype(np.uint8)
    rng = Fixed(NO, YES, YES if first else NO, NO, NO, draw)
    np.testing.assert_array_equal(transforms.photometric(image, rng), expected)
    assert rng.numbers == []


def test_contrast_first_or_last_are_different_places():
    image = _image(9, 9)
    first = transforms.photometric(image, Fixed(NO, YES, YES, YES, NO, 0.1, 0.9))
    last = transforms.photometric(image, Fixed(NO, YES, NO, YES, NO, 0.9, 0.1))
    assert (first != last).any()
    # to each other they are close: only the rounding in between differs
    assert np.abs(first.astype(int) - last).max() <= 6


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_saturation_equals_colorsys(draw):
    image = _image(12, 12)
    result = transforms.photometric(image, Fixed(NO, NO, NO, YES, NO, draw))
    for before, after in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, min(1, saturation * (0.5 + draw)), value)
        # HSV in 8 bits: hue in steps of 2° moves a channel by up to 255/60 per degree of error
        assert np.abs(after - np.multiply(expected, 255)).max() < 7


@pytest.mark.parametrize(("draw", "steps"), [(0.0, -18), (0.5, 0), (0.75, 9), (0.999, 17)])
def test_hue_turns_by_two_degrees_a_step(draw, steps):
    image = _image(12, 12)
    result = transforms.photometric(image, Fixed(NO, NO, NO, NO, YES, draw))
    for before, after in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb((hue + steps / 180) % 1, saturation, value)
        # as above: 8-bit HSV
        assert np.abs(after - np.multiply(expected, 255)).max() < 7


def test_photometric_draws_have_the_stated_distribution():
    """On a grey pixel only brightness and contrast show: half, and half, and uniform between."""
    grey = np.full((1, 1, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    values = np.array([transforms.photometric(grey, rng)[0, 0] for _ in range(4000)])
    assert (values == values[:, :1]).all()
    values = values[:, 0].astype(int)
    # a quarter stays at 100; both extremes of (100 ± 32) · (0.5 .. 1.5) are approached
    assert abs((values == 100).mean() - 0.25) < 0.03
    assert 34 <= values.min() < 45
    assert 185 < values.max() <= 198
    assert abs(np.median(values) - 100) <= 1


def test_statistics_are_the_published_ones():
    np.testing.assert_allclose(
        np.array(common.CLIP[0]) / 255, [0.48145466, 0.4578275, 0.40821073], atol=1e-8
    )
    np.testing.assert_allclose(
        np.array(common.CLIP[1]) / 255, [0.26862954, 0.26130258, 0.27577711], atol=1e-8
    )
    np.testing.assert_allclose(np.array(MEAN) / 255, [0.485, 0.456, 0.406], atol=1e-12)
    np.testing.assert_allclose(np.array(STD) / 255, [0.229, 0.224, 0.225], atol=1e-12)


def test_pad_adds_below_and_right():
    image, label = np.full((2, 3, 3), 9, np.uint8), np.ones((2, 3), np.int16)
    a, b = transforms.pad(image, label, size=4)
    there = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(a, there[..., None] * [9, 9, 9, 1])
    np.testing.assert_array_equal(b, [[1, 1, 1, IGNORE]] * 2 + [[IGNORE] * 4] * 2)
    assert b.dtype == np.int16


def test_for_train_is_its_steps_in_order():
    """Every step switched to a known branch, the whole against the steps written out."""
    example = {"image": _image(60, 80), "label": _label(60, 80), "name": "a"}
    # ratio 1.25; crop at (2 of 12, 50 of 62), accepted; flipped; brightness up; no more
    draws = (0.5, 2.5 / 13, 50.5 / 69, YES, YES, NO, NO, NO, NO, 0.9)
    rng = Fixed(*draws)
    options = {"crop": 64, "scale": (400, 61)}
    result = transforms.for_train(example, rng, **options)
    assert rng.numbers == []
    image, label = transforms.resize(example["image"], example["label"], scale=(500, 76))
    assert label.shape == (76, 101)
    image, label = image[2:66, 27:91][:, ::-1], label[2:66, 27:91][:, ::-1]
    bright = np.clip(image.astype(np.float64) + 25.6, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(result["image"][..., :3], bright)
    assert (result["image"][..., 3] == 1).all()
    np.testing.assert_array_equal(result["label"], label)
    assert result["label"].dtype == np.int16
    assert set(result) == {"image", "label"}


def test_for_train_takes_any_vocabulary():
    """Ids are only moved: renamed before or after, the result is the same."""
    example = {"image": _image(60, 80), "label": _label(60, 80)}
    renamed = np.array([255, 300, 846, 32_767, IGNORE], np.int16)
    options = {"crop": 64, "scale": (400, 61)}
    for seed in range(20):
        small = transforms.for_train(example, np.random.default_rng(seed), **options)
        large = transforms.for_train(
            {**example, "label": renamed[example["label"]]}, np.random.default_rng(seed), **options
        )
        np.testing.assert_array_equal(large["image"], small["image"])
        np.testing.assert_array_equal(large["label"], renamed[small["label"]])


@pytest.mark.parametrize("split", ["train", "val"])
def test_for_train_on_real_photos(photos, split):
    folder = folders.index("voc12", photos / "voc2012_mini", split)
    small = 0
    for i in range(0, len(folder), 5):
        example = folder[i]
        options = {"crop": 512, "scale": SCALE}
        one = transforms.for_train(example, np.random.default_rng(i), **options)
        two = transforms.for_train(example, np.random.default_rng(i), **options)
        assert one["image"].shape == (512, 512, 4)
        assert one["image"].dtype == np.uint8
        assert one["label"].shape == (512, 512)
        assert set(np.unique(one["label"])) <= set(np.unique(example["label"])) | {IGNORE}
        padded = one["image"][..., 3] == 0
        assert not one["image"][padded].any()
        assert (one["label"][padded] == IGNORE).all()
        small += padded.any()
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])
    assert small > 0


def test_for_eval_on_a_real_photo(photos):
    image = folders.index("voc12", photos / "voc2012_mini", "val")[0]["image"]
    result = transforms.for_eval(image, scale=SCALE)
    assert image.shape == (366, 500, 3)
    assert result.shape == (512, 699, 4)
    assert (result[..., 3] == 1).all()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(), size=(512, 699), mode="bilinear"
    )[0].permute(1, 2, 0)
    # 8-bit rounding of OpenCV's fixed-point interpolation
    assert np.abs(result[..., :3] - expected.numpy()).max() < 1.01
