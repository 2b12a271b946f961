"""Photos and masks that belong together are found; what lies in place of a mask is named."""

import subprocess
import unicodedata

import pytest

from otseg_jax.data import pairs


def _touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def _match(root, photos, masks):
    """Match photos that are there with masks of their names."""
    _touch(root / "images", *photos)
    _touch(root / "labels", *masks)
    found = pairs.photos(root / "images")
    wanted = [(photo, (root / "labels" / f"{photo.stem}.png",)) for photo in found]
    return [path.name for path in pairs.match(wanted, mend="add them")[1]]


@pytest.mark.parametrize(
    ("photos", "masks"),
    [
        (["0.jpg", "1.jpg"], ["0.PNG", "1.Png"]),
        (["0.jpg", "1.JPEG"], ["0.tif", "1.TIFF"]),
        (["0.tif", "1.webp"], ["0.bmp", "1.png"]),
        (["2024.05.01.jpg"], ["2024.05.01.png"]),
        (["a.jpg", "a_b.jpg"], ["a.png", "a_b.png"]),
    ],
)
def test_found_under_another_suffix(tmp_path, photos, masks):
    assert _match(tmp_path, photos, masks) == masks


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_found_in_another_unicode_form(tmp_path, forms):
    photo, mask = (unicodedata.normalize(form, "Köln") for form in forms)
    assert _match(tmp_path, [f"{photo}.jpg"], [f"{mask}.png"]) == [f"{mask}.png"]


def test_the_exact_name_comes_first(tmp_path):
    assert _match(tmp_path, ["0.jpg"], ["0.PNG", "0.png", "0.tif", "0.jpg"]) == ["0.png"]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (["0.jpg", "1.jpg"], r"found 0.jpg there: JPEG changes values.*save them as PNG$"),
        (["0.tif", "0.bmp", "1.png"], r"found 0.bmp there: save it as 0.png, and keep one"),
        (["0.npy", "1.npy"], r"found 0.npy there: save it as 0.png"),
        (["A.png", "1.png"], r"labels/0.png; add them$"),
        (
            ["0 (1).txt", "x.png"],
            r"labels holds x.png, 0 \(1\).txt, but a mask has the name of its",
        ),
        ([], r"^2 of 4 photos and masks are missing: .*0.png, .*1.png; add them$"),
    ],
)
def test_named_where_it_is_in_doubt(tmp_path, masks, message):
    with pytest.raises(FileNotFoundError, match=message):
        _match(tmp_path, ["0.jpg", "1.jpg"], masks)


def test_another_case_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found img_1.png there: rename it to IMG_1.png"):
        _match(tmp_path, ["IMG_1.jpg"], ["img_1.png"])


@pytest.mark.parametrize(
    "form", ["{}_mask.png", "{}-seg.tif", "mask_{}.png", "{}.label.png", "{} label.PNG"]
)
def test_the_command_that_renames_masks_works(tmp_path, form):
    root = tmp_path / "my data"
    photos = ["0.jpg", "0_1.jpg", "ten.jpg"]
    masks = [form.format(photo[:-4]) for photo in photos]
    with pytest.raises(FileNotFoundError, match="but a mask has its photo's name: ") as error:
        _match(root, photos, masks)
    command = str(error.value).split("photo's name: ")[1]
    subprocess.run(["bash", "-c", command], check=True)
    suffix = form[-4:]
    assert _match(root, photos, []) == [f"0{suffix}", f"0_1{suffix}", f"ten{suffix}"]


def test_a_mask_of_another_photo_is_not_offered(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels/a.png; add them$"):
        _match(tmp_path, ["a.jpg", "a_b.jpg"], ["a_b.png"])


def test_pictures_that_are_left_out_are_said(tmp_path, caplog):
    _touch(tmp_path, "0.jpg", "1.heic", "2.gif", "notes.txt", "Thumbs.db", ".hidden.jpg", "x.json")
    assert [path.name for path in pairs.photos(tmp_path)] == ["0.jpg"]
    assert "left out 2 pictures that are not .jpg" in caplog.text
    assert "1.heic, 2.gif: save them as .png or .jpg" in caplog.text


def test_only_other_pictures(tmp_path):
    _touch(tmp_path, "1.heic")
    with pytest.raises(FileNotFoundError, match=r"holds no photo but 1 pictures .* 1.heic: save"):
        pairs.photos(tmp_path)


def test_folders_links_and_circles(tmp_path):
    _touch(tmp_path / "photos/aachen", "1.jpg", "0.jpg")
    _touch(tmp_path / "elsewhere", "2.jpg")
    _touch(tmp_path / "photos/.cache", "3.jpg")
    (tmp_path / "photos/ulm").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/aachen/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/9.jpg").mkdir()
    found = [
        path.relative_to(tmp_path / "photos").as_posix()
        for path in pairs.photos(tmp_path / "photos")
    ]
    assert found == ["aachen/0.jpg", "aachen/1.jpg", "ulm/2.jpg"]
