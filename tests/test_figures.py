"""Figures: colour maps against a plain loop, PNG files read back with Pillow."""

import numpy as np
import pytest
from PIL import Image

from otseg_jax.data import codings, decode
from otseg_jax.data.classes import IGNORE, Vocabulary, default_palette
from otseg_jax.evaluation import figures

PALETTE = ((220, 20, 60), (20, 160, 70), (30, 60, 200), (250, 200, 0))
PETS = Vocabulary(("cat", "dog", "newt", "owl"), unseen=(2,), palette=PALETTE)


@pytest.fixture
def label() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([0, 1, 3, IGNORE], np.int16), size=(14, 23))


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (14, 23, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_colorize_equals_a_loop(label, dtype):
    coloured = figures.colorize(label.astype(dtype), PALETTE)
    assert coloured.dtype == np.uint8
    for y, x in np.ndindex(label.shape):
        expected = (255, 255, 255) if label[y, x] == IGNORE else PALETTE[label[y, x]]
        assert tuple(coloured[y, x]) == expected


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_overlay_mixes_classes_and_keeps_ignored_pixels(photo, label, alpha):
    mixed = figures.overlay(photo, label, PALETTE, alpha=alpha)
    for y, x in np.ndindex(label.shape):
        expected = photo[y, x].astype(float)
        if label[y, x] != IGNORE:
            expected = (1 - alpha) * expected + alpha * np.array(PALETTE[label[y, x]])
        # rounding: at most half a level, and a hair for float32
        np.testing.assert_allclose(mixed[y, x], expected, rtol=0, atol=0.5001)


@pytest.mark.parametrize("wrong", [4, 255, -2, 65_535])
def test_an_id_without_a_colour_is_named(photo, tmp_path, wrong):
    label = np.zeros((14, 23), np.int32)
    label[3, 5] = wrong
    for draw in (
        lambda: figures.colorize(label, PALETTE),
        lambda: figures.overlay(photo, label, PALETTE),
        lambda: figures.label_png(tmp_path / "label.png", label, PALETTE),
    ):
        with pytest.raises(ValueError, match=rf"ids \[{wrong}\]; wanted 0\.\.3"):
            draw()
    assert not (tmp_path / "label.png").exists()


def test_alpha_is_a_weight(photo, label):
    with pytest.raises(ValueError, match=r"alpha=1\.5: wanted a weight in \[0, 1\]"):
        figures.overlay(photo, label, PALETTE, alpha=1.5)


@pytest.mark.parametrize("classes", [300, 847])
def test_colours_of_a_large_vocabulary(classes):
    palette = default_palette(classes)
    label = np.arange(-1, classes).reshape(1, -1)
    coloured = figures.colorize(label, palette)
    assert [tuple(c) for c in coloured[0].tolist()] == [(255, 255, 255), *palette]
    photo = np.zeros((1, classes + 1, 3), np.uint8)
    mixed = figures.overlay(photo, label, palette, alpha=1.0)
    np.testing.assert_array_equal(mixed[0, 1:], palette)
    assert not mixed[0, 0].any()


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_an_indexed_png_holds_the_ids_and_shows_the_colours(label, tmp_path, dtype):
    path = tmp_path / "new" / "folder" / "label.png"
    figures.label_png(path, label.astype(dtype), PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), np.where(label == IGNORE, 255, label))
        np.testing.assert_array_equal(
            np.asarray(picture.convert("RGB")), figures.colorize(label, PALETTE)
        )


@pytest.mark.parametrize("dtype", [np.int16, np.int64])
@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("classes", [255, 256, 257, 847])
def test_a_label_png_round_trips(tmp_path, classes, ignored, dtype):
    label = np.arange(classes, dtype=dtype)[None].repeat(3, 0)
    if ignored:
        label[1, ::2] = IGNORE
    path = tmp_path / "label.png"
    palette = default_palette(classes)
    figures.label_png(path, label, palette)
    indexed = classes == 255 or (classes == 256 and not ignored)
    with Image.open(path) as picture:
        assert picture.mode == ("P" if indexed else "I;16")
        none = 255 if indexed else 65_535
        values = np.where(label == IGNORE, none, label.astype(np.int64))
        np.testing.assert_array_equal(np.asarray(picture), values)
        if indexed:
            np.testing.assert_array_equal(
                np.asarray(picture.convert("RGB")), figures.colorize(label, palette)
            )
    if not (indexed and classes == 256):  # an 8-bit mask of 256 classes is not read back
        coding = codings.plain_coding(classes, hint="fix it")
        np.testing.assert_array_equal(decode.mask(path, coding), label)


def _read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _pixels(picture: np.ndarray, colour) -> int:
    return int((picture == np.array(colour, np.uint8)).all(-1).sum())


def test_the_legend_of_a_panel_names_the_classes_that_are_scored(tmp_path):
    photo = np.full((40, 60, 3), 128, np.uint8)
    truth = np.full((40, 60), IGNORE, np.int16)
    truth[10:30, 10:30] = 0
    prediction = np.full((40, 60), 3, np.int32)  # but also at the object:
    prediction[10:30, 10:30] = 2
    figures.panel(tmp_path / "panel.png", [(photo, truth, prediction)], PETS)
    picture = _read(tmp_path / "panel.png")
    # the tiles are mixtures with the photo: a pure colour can only stand in the legend
    assert [_pixels(picture, colour) > 100 for colour in PALETTE] == [True, False, True, False]


def test_a_panel_shows_photo_truth_and_prediction_side_by_side(tmp_path):
    photo = np.full((40, 60, 3), (90, 128, 40), np.uint8)
    truth = np.full((40, 60), 1, np.uint8)
    prediction = np.full((40, 60), 3, np.uint8)
    figures.panel(tmp_path / "panel.png", [(photo, truth, prediction)] * 2, PETS)
    picture = _read(tmp_path / "panel.png")
    mixed = [photo[:1, :1]] + [
        figures.overlay(photo[:1, :1], label[:1, :1], PALETTE, alpha=0.8)
        for label in (truth, prediction)
    ]
    for column, colour in enumerate(mixed):
        third = slice(picture.shape[1] * column // 3, picture.shape[1] * (column + 1) // 3)
        for row, band in enumerate((slice(0, 400), slice(350, 800))):
            assert _pixels(picture[band, third], colour[0, 0]) > 50_000, (row, column)
    assert sum(_pixels(picture, colour[0, 0]) for colour in mixed) > 0.6 * picture[..., 0].size


def test_an_unseen_class_is_marked_in_the_legend_alone(tmp_path):
    label = np.ones((40, 60), np.uint8)
    row = (np.full((40, 60, 3), 128, np.uint8), label, label)
    seen = Vocabulary(PETS.names, unseen=(), palette=PALETTE)
    unseen = Vocabulary(PETS.names, unseen=(1,), palette=PALETTE)
    pictures = []
    for vocabulary in (seen, unseen):
        figures.panel(tmp_path / "panel.png", [row], vocabulary)
        pictures.append(_read(tmp_path / "panel.png"))
    tiles = [np.flatnonzero((p != 255).all(-1).mean(1) > 0.5).max() + 1 for p in pictures]
    assert tiles[0] == tiles[1]
    # titles and frames move by a fraction of a pixel as the page grows
    np.testing.assert_array_equal(*(p[60 : tiles[0] - 10] for p in pictures))
    text = [int((p[tiles[0] :] < 100).all(-1).sum()) for p in pictures]
    assert text[1] > 1.5 * text[0] > 0  # a star, and a line that says what it means


def _panel_of(path, classes, size=96) -> np.ndarray:
    """A panel of so many classes, class k being the larger the smaller k is."""
    names = tuple(f"class {k}" for k in range(847))
    order = np.repeat(np.arange(classes), np.arange(classes, 0, -1))
    label = np.resize(order, (size, size)).astype(np.int16)
    label[np.arange(size**2).reshape(size, size) >= order.size] = IGNORE
    # no mixture of this grey with a colour of the palette is a colour of the palette
    row = (np.full((size, size, 3), 100, np.uint8), label, label)
    figures.panel(path, [row], Vocabulary(names, unseen=(3, 50)))
    return _read(path)


def test_a_legend_of_many_classes_names_the_largest_and_counts_the_rest(tmp_path):
    fewer, one, two, most = (_panel_of(tmp_path / "panel.png", n) for n in (40, 41, 42, 100))
    # an entry more is a line more, for 10 full lines hold 40 names; it stays at that
    assert fewer.shape[0] + 20 < one.shape[0] == two.shape[0] == most.shape[0]
    shown = [k for k, c in enumerate(default_palette(100)) if _pixels(most, c) > 100]
    assert shown == list(range(40))
    # the digit of "and 1 more" and "and 2 more" is all that their legends differ in
    rows, columns = np.nonzero((one[-330:] != two[-330:]).any(-1))
    assert 0 < np.ptp(rows) < 20
    assert 0 < np.ptp(columns) < 20


def test_rows_of_a_panel_may_differ_in_size(tmp_path):
    rows = [
        (np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8), np.ones((h, w), np.int64))
        for h, w in ((30, 60), (60, 30))
    ]
    figures.panel(tmp_path / "one.png", rows[:1], PETS)
    figures.panel(tmp_path / "two.png", rows, PETS)
    one, two = _read(tmp_path / "one.png"), _read(tmp_path / "two.png")
    assert one.shape[1] == two.shape[1]
    # the tall row is four times as high as the wide one, and both are drawn to scale
    tile = 8.2 * 150 / 3
    assert abs((two.shape[0] - one.shape[0]) - 2 * tile) <= 2


def test_all_bad_rows_of_a_panel_are_named_at_once(tmp_path):
    good, wide = np.zeros((4, 6), np.uint8), np.zeros((4, 7), np.uint8)
    photo = np.zeros((4, 6, 3), np.uint8)
    unknown = np.full((4, 6), 9, np.uint8)
    rows = [(photo, good, good), (photo, wide, good), (photo, good, unknown)]
    with pytest.raises(ValueError, match=r"row 1: truth is \(4, 7\), the photo \(4, 6\)") as caught:
        figures.panel(tmp_path / "panel.png", rows, PETS)
    assert "row 2: prediction holds ids [9]" in str(caught.value)
    assert "row 0" not in str(caught.value)
    with pytest.raises(ValueError, match="no rows"):
        figures.panel(tmp_path / "panel.png", [], PETS)
    assert not list(tmp_path.iterdir())
