"""Names, splits and palettes equal the reference's; the built-in data set is compositional."""

import json

import numpy as np
import pytest
from oracles import DATA

from otseg_jax.data import classes


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("voc12", "voc2012"),
        ("pascal_context", "pascal_context"),
        ("coco_stuff", "coco_stuff"),
        ("ade20k", "ade20k"),
    ],
)
def test_equals_the_reference_lists(name, reference):
    expected = json.loads((DATA / "classes.json").read_text())[reference]
    vocabulary = classes.VOCABULARIES[name]
    assert list(vocabulary.names) == expected["classes"]
    assert list(vocabulary.unseen) == expected["unseen"]
    assert [vocabulary.names[k] for k in vocabulary.unseen] == expected["unseen_names"]
    assert [list(colour) for colour in vocabulary.palette] == expected["palette"]


def test_seen_and_unseen_partition_the_ids():
    for vocabulary in classes.VOCABULARIES.values():
        assert sorted(vocabulary.seen + vocabulary.unseen) == list(range(len(vocabulary)))
    assert classes.VOCABULARIES["voc12"].seen == tuple(range(15))
    assert classes.VOCABULARIES["ade20k"].seen == tuple(range(150))


def test_unseen_shapes_are_new_combinations_of_seen_attributes():
    attributes = [name.split() for name in classes.VOCABULARIES["shapes"].names]
    assert len({(pattern, colour) for pattern, colour, _ in attributes}) == 20
    assert [len({a[axis] for a in attributes}) for axis in range(3)] == [4, 5, 5]
    # Latin: no pattern and no colour meets a shape twice
    assert len({(pattern, shape) for pattern, _, shape in attributes}) == 20
    assert len({(colour, shape) for _, colour, shape in attributes}) == 20
    assert len(classes.VOCABULARIES["shapes"].unseen) == 5
    for k in classes.VOCABULARIES["shapes"].unseen:
        for axis in range(3):
            seen = [attributes[s][axis] for s in classes.VOCABULARIES["shapes"].seen]
            assert seen.count(attributes[k][axis]) >= 2
    assert len(set(classes.VOCABULARIES["shapes"].palette)) == 20


def test_default_palette_is_that_of_voc_and_distinct():
    published = json.loads((DATA / "classes.json").read_text())["voc2012"]["palette"]
    assert [list(colour) for colour in classes.default_palette(20)] == published
    assert len(set(classes.default_palette(254)) | {(0, 0, 0)}) == 255


@pytest.mark.parametrize("size", [847, 10_000, classes.MOST_CLASSES])
def test_large_palettes_are_distinct_and_begin_like_small_ones(size):
    palette = classes.default_palette(size)
    assert len(set(palette) | {(0, 0, 0), (255, 255, 255)}) == size + 2
    assert palette[:254] == classes.default_palette(254)
    assert set(np.ravel(palette).tolist()) <= set(range(256))
    # the published rule, bit by bit, for the last one
    red, green, blue = 0, 0, 0
    for j in range(8):
        bits = size >> 3 * j
        red |= (bits & 1) << 7 - j
        green |= (bits >> 1 & 1) << 7 - j
        blue |= (bits >> 2 & 1) << 7 - j
    assert palette[-1] == (red, green, blue)


def test_ids_of_the_largest_vocabulary_fit_a_label_map():
    names = tuple(str(k) for k in range(classes.MOST_CLASSES))
    vocabulary = classes.Vocabulary(names, unseen=tuple(range(0, len(names), 3)))
    assert len(vocabulary.seen) == len(names) - len(vocabulary.unseen)
    assert len(names) - 1 == np.iinfo(np.int16).max
    assert classes.IGNORE not in range(len(names))
    with pytest.raises(ValueError, match="32769 names: wanted 1 to 32768"):
        classes.Vocabulary((*names, "one more"))
    with pytest.raises(ValueError, match=r"names repeat: \['7'\]"):
        classes.Vocabulary((*names[:-1], "7"))


def test_bad_vocabulary_reports_every_problem_at_once():
    with pytest.raises(ValueError, match="Vocabulary: ") as error:
        classes.Vocabulary(("cat", "dog", "cat"), unseen=(1, 1, 7), palette=((0, 0, 0),))
    for part in ("repeat: ['cat']", "[7] lie outside 0..2", "[1, 1, 7]", "1 colours for 3 names"):
        assert part in str(error.value)


def test_reads_your_own_classes(tmp_path):
    path = tmp_path / "classes.csv"
    # a byte order mark, CRLF, a quoted comma, spaces and an empty line, as spreadsheets write them
    text = '\ufeffname,split\r\nred car , seen\r\n\r\n"sofa, grey",unseen\r\nnewt,seen\r\n'
    path.write_bytes(text.encode())
    vocabulary = classes.read(path)
    assert vocabulary.names == ("red car", "sofa, grey", "newt")
    assert (vocabulary.seen, vocabulary.unseen) == ((0, 2), (1,))
    assert vocabulary.palette == classes.default_palette(3)


def test_colours_are_a_third_column(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("name,split,colour\nsky,seen,0080ff\nsea,unseen,00008B\n")
    assert classes.read(path).palette == ((0, 128, 255), (0, 0, 139))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,split,colour\nsky,seen\nsea,seen,blue\n", "line 2 is 'sky,seen'.*line 3 is"),
        ("", "the first line must be: name,split"),
        ("cat,seen\ndog,unseen\n", "the first line must be: name,split"),
        (
            "name,split\ncat\n,seen\ndog,hidden\n",
            "line 2 is 'cat', wanted NAME,seen or NAME,unseen; line 3 is ',seen'.*"
            "line 4 is 'dog,hidden'",
        ),
        ("name,split\n" + "cat\n" * 8, "line 6 is .*; and 3 more$"),
        ("name,split\ncat,seen\ncat,seen\n", "names repeat, capitals and blanks aside: cat$"),
        ("name,split\nred car,seen\nRed  Car,unseen\n", "aside: red car, Red  Car$"),
        (
            "name,split\n",
            "no class below the header: write one line each, NAME,seen or NAME,unseen",
        ),
        ("name,split\nvoid,ignore\n", "no class below the header"),
        ("name,split\n# cat,seen\ndog,seen\n", "line 2 is '# cat,seen', wanted NAME,seen"),
        ("id,name,split\n0,cat,seen\n", "must be: name,split .*, not 'id,name,split'$"),
        ("name,split\n\xff", "not text in UTF-8 .*: save it as UTF-8"),
        ("n\0a\0m\0e\0,\0", "not text in UTF-8 but UTF-16 or binary: save it as UTF-8"),
        ('name,split\n"' + "x" * 131073 + '",seen\n', "not a CSV file: field larger"),
    ],
)
def test_bad_class_file_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "classes.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"(?s)^{path}: .*{message}"):
        classes.read(path)


@pytest.mark.parametrize(
    "text",
    [
        "name;split\r\nred car;seen\r\nnewt;unseen\r\n",
        "sep=;\nname;split\nred car;seen\nnewt;unseen\n",
        "name\tsplit\nred car\tseen\nnewt\tunseen\n",
        "Name,Split\nred car,Seen\nnewt,UNSEEN\n",
        "name,split,,\nred car,seen,,\nnewt,unseen,,\n",
        'name, split\n"red car", "seen"\n"newt", "unseen"\n',
        "\n  \nname,split\n\nred car , seen \n,,\nnewt,unseen",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-sig"])
def test_reads_what_spreadsheets_and_shells_write(tmp_path, text, encoding):
    path, mark = tmp_path / "classes.csv", "\ufeff" * encoding.endswith("be-sig")
    path.write_bytes((mark + text).encode(encoding.removesuffix("-be-sig") + "-be" * bool(mark)))
    vocabulary = classes.read(path)
    assert (vocabulary.names, vocabulary.unseen) == (("red car", "newt"), (1,))


def test_ignored_lines_are_values_but_no_classes(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text(
        "name,split,colour\nbackground,ignore,000000\ncat,seen,ff0000\nrider,ignore,00ff00\n"
        "dog,unseen,0000ff\n"
    )
    listing = classes.read_listing(path)
    assert listing.vocabulary == classes.read(path)
    assert listing.vocabulary.names == ("cat", "dog")
    assert listing.vocabulary.unseen == (1,)
    assert listing.vocabulary.palette == ((255, 0, 0), (0, 0, 255))
    assert listing.ignored == (0, 2)
    assert listing.colours == ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def test_words_take_the_place_of_names():
    asked, class_of = classes.in_words(
        ("bed ", "sofa", "a=b"), ("bed=bed", "sofa=sofa| couch|settee")
    )
    assert asked == ("bed", "sofa", "couch", "settee", "a=b")
    assert class_of == (0, 1, 1, 1, 2)
    assert classes.in_words(("cat|dog",), ()) == (("cat|dog",), (0,))
    told = r"'sofa' has 2 entries; 'soffa' is no class: did you mean 'sofa'\? \(the classes are"
    with pytest.raises(ValueError, match=told):
        classes.in_words(("bed", "sofa"), ("sofa=couch", "sofa=settee", "soffa=couch"))


def test_cityscapes_has_the_names_and_colours_of_its_authors():
    """Rows of cityscapesScripts' table of labels."""
    city = classes.VOCABULARIES["cityscapes"]
    rows = {"road": (128, 64, 128), "traffic sign": (220, 220, 0), "rider": (255, 0, 0)}
    rows |= {"train": (0, 80, 100), "motorcycle": (0, 0, 230), "bicycle": (119, 11, 32)}
    assert {name: city.palette[city.names.index(name)] for name in rows} == rows
    assert [city.names.index(name) for name in rows] == [0, 7, 12, 16, 17, 18]
    assert len(city) == len(set(city.palette)) == 19
