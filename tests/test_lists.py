"""Lists of images are read where they can mean one thing only, else refused."""

import unicodedata

import pytest

from otseg_jax.data import lists

PHOTOS = ["a", "b", "photo 1", "2007.01", "Köln"]


def _read(tmp_path, text, photos=PHOTOS):
    path = tmp_path / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return lists.read_names(path, photos)


@pytest.mark.parametrize(
    "text",
    [
        "a\nb\n",
        "a\r\nb\r\n",
        "a\rb",
        "\ufeffa\nb\n",
        "a b",
        "\ufeffa\n\ufeffb\n",
        "a.jpg\nb.JPG\n",
        "a,\nb,\n",
        '"a"\n"b"\n',
        "JPEGImages/a.jpg\n./JPEGImages/b\n",
        "C:\\VOC\\JPEGImages\\a.jpg\nJPEGImages\\b.png\n",
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png\nJPEGImages/b.jpg\tmasks/b.png\n",
        "a.jpg,a.png\nb.jpg;b.png\n",
        "# my list\n\n  \na\nb\n# end\n",
        "a\nb\na\n",
        "a\nb\n".encode("utf-16"),
        "\ufeffa\r\nb".encode("utf-16-be"),
    ],
)
def test_what_can_mean_one_thing_is_read(tmp_path, text):
    assert _read(tmp_path, text) == ["a", "b"]


def test_names_with_blanks_and_dots_and_accents(tmp_path):
    other = unicodedata.normalize("NFD", "Köln")
    assert other != "Köln"
    text = f"photo 1\nJPEGImages/photo 1.jpg m/photo 1.png\n2007.01\n2007.01.jpg\n{other}\n"
    assert _read(tmp_path, text) == ["photo 1", "2007.01", "Köln"]
    # in the form in which the file is called
    assert _read(tmp_path, "Köln", [other]) == [other]


def test_photos_that_are_not_there_are_told_later(tmp_path):
    assert _read(tmp_path, "a\nc\nJPEGImages/d.jpg m/d.png\n") == ["a", "c", "d"]
    assert _read(tmp_path, "c\n", []) == ["c"]


@pytest.mark.parametrize(
    "line", ["a.jpg c.png", "a.jpg b.png", "i/a.jpg m/b.png", "a 3", "no such photo", "a c d"]
)
def test_what_is_in_doubt_is_refused_with_an_example(tmp_path, line):
    with pytest.raises(
        ValueError, match=rf"train.txt: line 2 is '{line}'; wanted .*such as 2007.01$"
    ):
        _read(tmp_path, f"b\n{line}\n")


@pytest.mark.parametrize("number", ["1", "-1", "0"])
def test_lists_of_one_class_are_called_that(tmp_path, number):
    with pytest.raises(ValueError, match=r"list of one class.*keep the first word"):
        _read(tmp_path, f"a  {number}\nb -1\n")
    assert _read(tmp_path, "a\nb\n") == ["a", "b"]  # the first words


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\n# nothing\n", "is empty"),
        ("Köln\n".encode("latin-1"), r"not text in UTF-8 .*: save it as UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "UTF-16 or binary: save it as UTF-8"),
        (b"\xff\xfea", "not text in UTF-8"),
    ],
)
def test_what_is_no_list(tmp_path, raw, message):
    with pytest.raises(ValueError, match=rf"train.txt.*{message}"):
        _read(tmp_path, raw)


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"line 5 is 'x y', and 7 more; wanted"):
        _read(tmp_path, "x y\n" * 12)
