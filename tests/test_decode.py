"""Photos and masks decode to known pixels, and every file that would be misread is refused."""

import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from otseg_jax.data import codings, decode
from otseg_jax.data.classes import IGNORE

CODING = codings.reduced_coding(20, zero="background", hint="fix it")


def _noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _png(width, height, depth, colour, rows):
    """A PNG written by hand, for headers that Pillow would not write."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


def test_photo_equals_opencv_on_real_photos(photos):
    paths = sorted((photos / "voc2012_mini").rglob("*.jpg"))[:5]
    assert len(paths) == 5
    for path in paths:
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(decode.photo(path), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_is_upright_as_in_opencv(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(_noise(20, 30, 3)).save(path, exif=exif)
    expected = cv2.imread(str(path), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_array_equal(decode.photo(path), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("exif", [b"MM\x00*garbage", b"neither byte order", b"II*\x00"])
def test_photo_ignores_broken_exif(tmp_path, exif):
    path = tmp_path / "a.jpg"
    Image.fromarray(_noise(20, 30, 3)).save(path, exif=b"Exif\x00\x00" + exif)
    assert decode.photo(path).shape == (20, 30, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_photo_of_any_8_bit_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(_noise(20, 30, 3)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    with Image.open(path) as again:
        np.testing.assert_array_equal(decode.photo(path), np.asarray(again.convert("RGB")))


@pytest.mark.parametrize("mode", ["P", "L"])
def test_mask_of_palette_or_grey_keeps_its_ids(tmp_path, mode):
    ids = np.arange(21, dtype=np.uint8).reshape(3, 7)
    ids[0, 0] = 255
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(_noise(768).tobytes())
    image.save(tmp_path / "a.png")
    # background 0 went under the border; 1..20 become 0..19
    expected = ids.astype(int) - 1
    expected[0, [0, 0]] = IGNORE
    label = decode.mask(tmp_path / "a.png", CODING)
    assert label.dtype == np.int16
    np.testing.assert_array_equal(label, expected)


def test_mask_of_one_bit_holds_0_and_1(tmp_path):
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    Image.fromarray(ids.astype(bool)).save(tmp_path / "a.png")
    coding = codings.plain_coding(2, hint="fix it")
    np.testing.assert_array_equal(decode.mask(tmp_path / "a.png", coding), ids)


def _save_16_bit(path, values):
    Image.fromarray(np.asarray(values, np.uint16)).save(path)
    with Image.open(path) as image:
        assert image.mode == "I;16"
    return path


def test_codings_are_exact():
    none, rest = codings.MEANINGLESS, 65_535 - 256
    raw = codings.raw_coco_coding(hint="fix it").table.tolist()
    gaps = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert [k for k in raw if k >= 0] == list(range(171))
    assert [value for value in range(182) if raw[value] == none] == gaps
    assert raw[182:] == [none] * 73 + [IGNORE] + [none] * rest + [IGNORE]
    reduced = codings.reduced_coding(150, zero="other", hint="fix it").table.tolist()
    assert reduced[:256] == [IGNORE, *range(150), *[none] * 104, IGNORE]
    assert reduced[256:] == [none] * rest + [IGNORE]
    plain = codings.plain_coding(171, hint="fix it").table.tolist()
    assert plain == [*range(171), *[none] * 84, IGNORE, *[none] * rest, IGNORE]
    # class 255 (255 + 1 in the reduced one) takes the place of "no class"
    plain = codings.plain_coding(847, hint="fix it").table.tolist()
    assert plain == [*range(847), *[none] * (65_535 - 847), IGNORE]
    reduced = codings.reduced_coding(847, zero="other", hint="fix it").table.tolist()
    assert reduced == [IGNORE, *range(847), *[none] * (65_534 - 847), IGNORE]


@pytest.mark.parametrize("classes", [3, 255, 256, 847, 2**15])
def test_16_bit_mask_keeps_its_ids(tmp_path, classes):
    ids = np.random.default_rng(0).integers(0, classes, (40, 50))
    ids[0, :2] = 0, classes - 1
    values = ids.copy()
    values[1], ids[1] = 65_535, IGNORE
    if classes <= 255:
        values[2], ids[2] = 255, IGNORE
    path = _save_16_bit(tmp_path / "a.png", values)
    label = decode.mask(path, codings.plain_coding(classes, hint="fix it"))
    assert label.dtype == np.int16
    np.testing.assert_array_equal(label, ids)
    if classes < 2**15:
        values = np.where(ids == IGNORE, 0, ids + 1)
        path = _save_16_bit(tmp_path / "b.png", values)
        coding = codings.reduced_coding(classes, zero="other", hint="fix it")
        np.testing.assert_array_equal(decode.mask(path, coding), ids)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize(
    ("coding", "wanted"),
    [
        (codings.plain_coding(256, hint="fix it"), r"0\.\.255 or 65535"),
        (codings.plain_coding(847, hint="fix it"), r"0\.\.846 or 65535"),
        (
            codings.reduced_coding(255, zero="other", hint="fix it"),
            r"0 \(other\), 1\.\.255 or 65535",
        ),
    ],
)
def test_8_bit_mask_of_a_large_vocabulary_is_refused(tmp_path, mode, coding, wanted):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 1], [7, 254]], np.uint8)).convert(mode).save(path)
    message = rf"a.png cannot be used: mode {mode} has 8 bits, in which 255 .* 16-bit grey PNG of "
    with pytest.raises(ValueError, match=message + wanted):
        decode.mask(path, coding)


def test_8_bit_mask_of_255_classes_holds_them_and_no_class(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    plain = decode.mask(tmp_path / "a.png", codings.plain_coding(255, hint="fix it"))
    assert plain.ravel().tolist() == [*range(255), IGNORE]
    coding = codings.reduced_coding(254, zero="other", hint="fix it")
    reduced = decode.mask(tmp_path / "a.png", coding)
    assert reduced.ravel().tolist() == [IGNORE, *range(254), IGNORE]


def test_values_without_a_meaning_are_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 20, 21], [255, 254, 21]], np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a.png holds the values \[21, 254\]") as error:
        decode.mask(path, CODING)
    assert str(error.value).endswith("wanted 0 (background), 1..20 or 255: fix it")


def test_many_values_without_a_meaning_are_counted(tmp_path):
    path = _save_16_bit(tmp_path / "a.png", np.arange(1_000).reshape(20, 50))
    with pytest.raises(
        ValueError, match=r"a.png holds the values \[847, .*, 856, and 143 more\], "
    ):
        decode.mask(path, codings.plain_coding(847, hint="fix it"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_mask_with_colours_is_refused(tmp_path, mode):
    path = tmp_path / "a.png"
    Image.fromarray(_noise(4, 4, 3)).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"a.png cannot be used: mode {mode}, .* one channel"):
        decode.mask(path, CODING)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_mask_of_32_bits_is_refused(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(_noise(4, 4)).convert(mode).save(path)
    with pytest.raises(ValueError, match=rf"a.tif cannot be used: mode {mode}, .* 8 or 16 bits"):
        decode.mask(path, CODING)


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_few_bits_is_refused_rather_than_stretched(tmp_path, depth):
    path = tmp_path / "a.png"
    path.write_bytes(_png(8, 1, depth, 0, b"\x00" + b"\x1b" * depth))
    with Image.open(path) as image:  # what Pillow makes of ids 0..3 (or 1 and 11)
        assert np.asarray(image).max() > 2**depth
    with pytest.raises(ValueError, match="2- or 4-bit grey"):
        decode.mask(path, CODING)


def test_16_bit_photo_is_refused_rather_than_clipped(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode.photo(path)


# A JPEG stream with flipped bits is not here: libjpeg decodes it to grey without an error.
@pytest.mark.parametrize(
    ("suffix", "damage"),
    [(".png", "flipped")]
    + [(s, d) for s in (".jpg", ".png") for d in ("truncated", "garbage", "empty", "text")],
)
def test_damaged_file_is_one_clear_error(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(_noise(64, 64)).save(path)
    good = path.read_bytes()
    path.write_bytes(
        {
            "truncated": good[: len(good) // 2],
            "garbage": _noise(2000).tobytes(),
            "empty": b"",
            "text": b"<html>404 not found</html>",
            # past the header, every bit of the stream inverted
            "flipped": good[:200] + bytes(255 - b for b in good[200:]),
        }[damage]
    )
    message = rf"{path} cannot be used: .*Replace it or leave it out"
    with pytest.raises(ValueError, match=message):
        decode.photo(path)
    if (suffix, damage) == (".jpg", "truncated"):  # a JPEG is no mask, whole or not
        message = "it is a JPEG"
    with pytest.raises(ValueError, match=message):
        decode.mask(path, CODING)


def test_truncated_16_bit_mask_is_one_clear_error(tmp_path):
    path = _save_16_bit(tmp_path / "a.png", 200 + _noise(64, 64).astype(int))
    coding = codings.plain_coding(847, hint="fix it")
    assert decode.mask(path, coding).shape == (64, 64)
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(ValueError, match=rf"{path} cannot be used: .*Replace it or leave it out"):
        decode.mask(path, coding)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_bomb_is_refused_before_it_is_decoded(tmp_path, side):
    # 9,000² is under Pillow's own warning, 12,000² warns there, 60,000² is an error there
    path = tmp_path / "a.png"
    path.write_bytes(_png(side, side, 8, 0, b""))
    for read in (decode.photo, lambda p: decode.mask(p, CODING)):
        with pytest.raises(ValueError, match=r"a.png cannot be used: .* (pixels|exceeds limit)"):
            read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.jpg: no such file"):
        decode.photo(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "saved", ["a.jpg JPEG", "a.png JPEG", "a.png WEBP", "a.png GIF", "a.tif jpeg"]
)
def test_masks_of_formats_that_change_values_are_refused_by_their_content(tmp_path, saved):
    name, how = saved.split()
    path = tmp_path / name
    options = {"compression": how} if how == "jpeg" else {"format": how}
    Image.fromarray(np.full((32, 32), 3, np.uint8)).save(path, **options)
    with pytest.raises(ValueError, match=r"cannot be used: it is a .*save them as PNG$"):
        decode.mask(path, CODING)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_formats_that_keep_values_keep_them(tmp_path, suffix, mode):
    ids = np.arange(1, 21, dtype=np.uint8).reshape(4, 5)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(_noise(768).tobytes())
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(decode.mask(tmp_path / f"a.{suffix}", CODING), ids - 1)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_tiff_of_16_bits_keeps_its_ids(tmp_path, compression):
    ids = np.arange(800, dtype=np.uint16).reshape(20, 40)
    Image.fromarray(ids).save(tmp_path / "a.tif", compression=compression)
    coding = codings.plain_coding(847, hint="fix it")
    np.testing.assert_array_equal(decode.mask(tmp_path / "a.tif", coding), ids)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_tiff_in_which_0_is_white_is_refused_rather_than_turned_round(tmp_path, mode):
    path = tmp_path / "a.tif"
    white_is_zero = {262: 0}
    Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8)).convert(mode).save(
        path, tiffinfo=white_is_zero
    )
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    with pytest.raises(ValueError, match="a TIFF in which 0 is white; save the mask as PNG"):
        decode.mask(path, CODING)


def test_tiff_of_pages_is_refused_rather_than_cut(tmp_path):
    page = Image.fromarray(np.ones((4, 4), np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    for read in (decode.photo, lambda path: decode.mask(path, CODING)):
        with pytest.raises(ValueError, match="it has 2 pages"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_the_mend_for_equal_channels_works(tmp_path, mode):
    path, ids = tmp_path / "a.png", np.array([[0, 1], [20, 255]], np.uint8)
    Image.fromarray(ids).convert(mode).save(path)
    with pytest.raises(ValueError, match="its channels are equal, and python -c ") as error:
        decode.mask(path, CODING)
    program = str(error.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    np.testing.assert_array_equal(decode.mask(path, CODING), [[IGNORE, 0], [19, IGNORE]])


def test_transparent_masks_are_refused(tmp_path):
    Image.new("RGBA", (4, 4), (1, 1, 1, 7)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="nothing transparent"):
        decode.mask(tmp_path / "a.png", CODING)
