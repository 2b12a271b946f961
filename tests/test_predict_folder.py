"""Many photos from the command line: masks, a page, and what is said of those that are bad."""

import io
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from messages.predict import PHOTO
from PIL import Image

import otseg_jax
from otseg_jax.predict import __main__ as command
from otseg_jax.predict import folder as folders
from otseg_jax.predict import photos

WORDS = ["sky", "red disc|red circle"]


@pytest.fixture
def folder(tmp_path):
    """Three photos, one with a name that is HTML, and two that are none."""
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    for name in ("a.png", "a.jpg", '<b>&"q" 100%#?.png', "sub/c.JPG"):
        Image.fromarray(PHOTO).save(place / name)
    (place / "no.jpg").write_bytes(b"no")
    (place / "empty.png").touch()
    (place / "notes.txt").write_text("no photo")
    return place


def names(found):
    return [path.name for path in found]


def test_what_arguments_stand_for(folder):
    pngs = [p for p in sorted(folder.iterdir()) if p.suffix == ".png"]
    assert photos.find([f"{folder}/*.png"], []) == pngs
    assert "c.JPG" not in names(photos.find([str(folder)], []))
    assert names(photos.find([f"{folder}/**/*.JPG"], [])) == ["c.JPG"]
    assert names(photos.find([f"{folder}/a.png", "-"], ["x.png\n", "\n", f"{folder}/a.png"])) == [
        "a.png",
        "x.png",
    ]
    with pytest.raises(ValueError, match="standard input names no photo"):
        photos.find(["-"], [])
    # a name is what it is, whatever it holds
    (folder / "[x].png").touch()
    assert names(photos.find([f"{folder}/[x].png"], [])) == ["[x].png"]


def test_results_of_like_names_are_told_apart():
    found = photos.stems([Path(n) for n in ("a.png", "b/A.jpg", "c/a.tif", "a_2.png")])
    assert found == ["a", "A_2", "a_3", "a_2_2"]


def test_no_photo_is_replaced(tmp_path):
    """Neither its own mask nor that of another photo of its name may lie where it does."""
    paths = [tmp_path / "a.jpg", tmp_path / "a.png"]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    before = paths[1].read_bytes()
    with pytest.raises(ValueError, match=r"would replace .*a\.png: choose another --output"):
        folders.segment(paths, tmp_path, lambda photo: pytest.fail(photo), title="")
    assert (paths[1].read_bytes(), sorted(tmp_path.iterdir())) == (before, paths)


class Page(HTMLParser):
    """The files that a page names, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.files: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.files += [unquote(value) for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.text += data


def run(*argv):
    command.FLAGS.unparse_flags()
    for name in command.FLAGS:
        command.FLAGS[name].unparse()
    command.main(["otseg_jax.predict", *map(str, argv)])


def test_a_folder_becomes_results_and_a_page(folder, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        run(folder, f"--words={','.join(WORDS)}", "--model=shapes-clip", f"--output={out}")
    assert end.value.code == 1
    printed = capsys.readouterr()
    last = printed.out.splitlines()[-1]
    assert last.startswith(f"{out / 'index.html'}: 3 photos, 2 refused, ")
    assert last.endswith(" images/s")
    assert f"refused: {folder / 'no.jpg'} cannot be used" in printed.err
    assert f"refused: {folder / 'empty.png'} cannot be used" in printed.err
    page = Page((out / "index.html").read_text())
    assert page.files
    assert all((out / name).is_file() for name in page.files)
    assert {Path(name).name for name in page.files} | {"index.html"} == {
        path.name for path in out.iterdir()
    }
    assert "b" in page.tags, "of the name of a file"
    assert '<b>&"q" 100%#?.png' in page.text
    assert "no.jpg cannot be used" in page.text
    want = otseg_jax.load("shapes-clip")(PHOTO, WORDS)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a_2.png")), want.labels)


def test_a_list_of_files_and_of_words(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "words.txt").write_text("\ufeffsky\r\n\r\nred disc|red circle\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder / 'a.png'}\n"))
    out = tmp_path / "out"
    options = ["--model=shapes-clip", "--background=wall,floor", "--method=sclip"]
    run("-", f"--words={tmp_path / 'words.txt'}", f"--output={out}", *options)
    assert ": 1 photos, " in capsys.readouterr().out.splitlines()[-1]
    model = otseg_jax.load("shapes-clip", method="sclip")
    want = model(PHOTO, WORDS, background=["wall", "floor"])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "a.png")), want.labels)
