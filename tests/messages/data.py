"""Rows: data sets and labels, as people have them."""

import numpy as np
import own_data
import small
from own_data import CLASSES, MASK
from PIL import Image

from messages import Row
from otseg_jax import build
from otseg_jax.data import classes, folders


def _prepare(folder, regime):
    """What a run does before its model is built, on the data in a folder."""
    options = small.settings(regime, **{"data.dataset": "folder", "data.root": str(folder)})
    splits = {split: build.open_split(options, split) for split in ("train", "val")}
    build.check_labels(options, **splits)


def _run(
    typed, line, masks=(MASK, MASK), lines=CLASSES, *, change=None, refused=True, regime="inductive"
):
    """A run on data of one's own, after a change to its folder."""

    def act(folder):
        for split in ("train", "val"):
            own_data.write(
                folder, [np.asarray(mask, np.uint8) for mask in masks], lines, split=split
            )
        if change:
            change(folder)
        _prepare(folder, regime)

    return Row(typed, act, line, refused)


def _classes(typed, text, line):
    def act(folder):
        (folder / "classes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        classes.read(folder / "classes.csv")

    return Row(f"classes.csv: {typed}", act, line)


def _list(typed, text, line):
    def act(folder):
        lists = folder / "ImageSets/Segmentation"
        for place in (lists, folder / "JPEGImages", folder / "SegmentationClass"):
            place.mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (4, 3)).save(folder / f"JPEGImages/{name}.jpg")
            Image.fromarray(MASK).save(folder / f"SegmentationClass/{name}.png")
        (lists / "val.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        folders.index("voc12", folder, "val")

    return Row(f"val.txt: {typed}", act, line)


def _each_mask(change):
    """Do something to every mask of a folder."""

    def act(folder):
        for path in sorted((folder / "labels").rglob("*.png")):
            change(path)

    return act


def _as(suffix, **options):
    def save(path):
        Image.open(path).save(path.with_suffix(suffix), **options)
        if suffix != ".png":
            path.unlink()

    return _each_mask(save)


def _coloured(path):
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, 255]] = (220, 30, 30), (30, 200, 60), (255, 255, 255)
    Image.fromarray(colours[np.asarray(Image.open(path))]).save(path)


def _nest_photos(folder):
    for split in ("train", "val"):
        for path in list((folder / "images" / split).iterdir()):
            (path.parent / "ulm").mkdir(exist_ok=True)
            path.rename(path.parent / "ulm" / path.name)


def _phone(folder):
    (folder / "images/train/new.HEIC").write_bytes(b"\0\0\0\x18ftypheic")


def _as_photos(folder, suffix):
    for path in list((folder / "images").rglob("*.png")):
        path.rename(path.with_suffix(suffix))


ROWS = [
    # lists of images
    _list("a list of one class", "a  1\nb -1\n", r"list of one class.* keep the first"),
    _list("masks of other names", "a.jpg b.png\n", r"line 1 is 'a.jpg b.png'; wanted the name"),
    _list("Latin-1", "Köln\n".encode("latin-1"), r"val.txt: not text in UTF-8 .*as UTF-8"),
    _list("comments alone", "# nothing\n", r"val.txt is empty: wanted one image name"),
    _list("a photo that is not there", "a\nc\n", r"^2 of 4 .*c.png; complete the download"),
    _list("another case", "A\n", r"found a.jpg there: rename it to A.jpg"),
    # masks and photos
    _run("masks called 0000_mask.png", r"found 0000_mask.png there, but .* for f in \*'_mask.png'",
         change=_each_mask(lambda p: p.rename(p.with_name(f"{p.stem}_mask.png")))),
    _run("masks called mask_0000.png", r"found mask_0000.png there, but .*#mask_}\"; done\)$",
         change=_each_mask(lambda p: p.rename(p.with_name(f"mask_{p.name}")))),
    _run("masks saved as JPEG", r"found 0000.jpg there: JPEG changes values.*save them as PNG$",
         change=_as(".jpg")),
    _run("JPEG masks under the name .png", r"it is a JPEG, whatever its name says.* as PNG",
         change=_as(".png", format="JPEG")),
    _run("WebP masks", r"found 0000.webp there: JPEG changes", change=_as(".webp")),
    _run("masks as NumPy arrays", r"found 0000.npy there: save it as 0000.png",
         change=_each_mask(lambda p: p.rename(p.with_suffix(".npy")))),
    _run("colour masks", r"colour mask of 4 colours \(#000000, .*third column `colour`",
         change=_each_mask(_coloured)),
    _run("grey masks saved as RGB", r"its channels are equal, and python -c .* keeps one of them",
         change=_each_mask(lambda p: Image.open(p).convert("RGB").save(p))),
    _run("no masks at all", r"labels/train holds no masks.* otseg_jax.load\(WORKDIR\)\(PHOTO\)",
         change=_each_mask(lambda p: p.unlink())),
    _run("one mask of two", r"1 of 4 photos and masks are missing: .*0001.png; a mask has the name",
         change=lambda folder: (folder / "labels/train/0001.png").unlink()),
    _run("photos in folders, masks not", r"labels/train holds 0000.png, 0001.png, but a mask has",
         change=_nest_photos),
    _run("photos of a phone", r"left out 1 pictures .*new.HEIC: save them as .png or .jpg",
         change=_phone, refused=False),
    _run("photos in a format that nobody reads", r"holds no photo but 2 pictures .*0000.heic",
         change=lambda folder: _as_photos(folder, ".heic")),
    # classes.csv
    _classes("no header", "cat,seen\n", r"first line must be: name,split .*, not 'cat,seen'$"),
    _classes("header only", "name,split\n", r"no class below the header: write one line each"),
    _classes("red and Red", "name,split\nred,seen\nRed,seen\n", r"repeat.* aside: red, Red$"),
    _classes("novel", "name;split\nred;novel\n", r"line 2 is 'red,novel', wanted NAME,seen"),
    _classes("no colour", "name,split,colour\nred,seen\n", r"'red,seen', wanted NAME,seen,RRGGBB"),
    _classes("a class taken out", "name,split\n# red,seen\n", r"line 2 is '# red,seen', wanted"),
    _classes("Latin-1", "name,split\nKöln,seen\n".encode("latin-1"), r"UTF-8 .*save it as UTF-8$"),
    # labels that say nothing
    _run("0 is the background", r"train: .*3 \(2 pixels\).*with the line background,ignore",
         [[[0, 1, 2, 3]]] * 2),
    _run("ids with a gap", r"7 \(1 pixels\), 9 \(1 pixels\), .* line NAME,ignore stands for",
         [[[0, 1, 7]], [[0, 2, 9]]]),
    _run("grey levels as ids", r"grey levels, no ids: number .*, 0 for 0, 1 for 127",
         [[[0, 127, 254]]] * 2),
    _run("masks of 255", r"all 8 pixels are of no class, so there is nothing to learn",
         [[[255] * 4]] * 2),
    _run("unseen pixels alone", r"all labelled pixels are of newt, which inductive",
         [[[2, 2, 255]]] * 2),
    _run("one class", r"train: 'cat' is the only class: every pixel", [[[0, 255]]], ("cat,seen",),
         refused=False),
    _run("a foreground of 255", r"255 stands for no class: write 1 for it", [[[0, 255]]],
         ("back,seen", "cat,seen"), refused=False),
    _run("a class that never occurs", r"train: in the 2 masks there is no pixel of owl", [MASK] * 2,
         (*CLASSES, "owl,seen"), refused=False),
    _run("transductive, unseen pixels left out", r"no pixel of the unseen newt: transductive",
         [[[0, 1, 255]]] * 2, refused=False, regime="transductive"),
]  # fmt: skip
