"""Rows: a model that is loaded, photos and words that it is given."""

import functools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import small
from PIL import Image

import otseg_jax
from messages import Row, typed
from otseg_jax.build import assemble
from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.spec import Origin
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.predict import Segmenter, asked
from otseg_jax.weights import clip, names


@functools.cache
def untrained() -> pretrained.Model:
    """An untrained model of the shapes' classes."""
    options = small.settings()
    parts = assemble(options, VOCABULARIES["shapes"])
    drawn = clip.draw(asdict(options.clip.random), image_size=options.data.crop, seed=options.seed)
    return pretrained.Model(
        clip=drawn,
        origin=Origin(name="drawn", format="random"),
        spec=parts.spec,
        trained={n: np.asarray(leaf) for n, leaf in names.flatten(parts.trainable).items()},
        embeddings=np.asarray(parts.text),
    )


@functools.cache
def segmenter(seen_offset: float | None = None) -> Segmenter:
    """It, ready to segment."""
    return Segmenter(untrained(), seen_offset=seen_offset)


PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def photo(typed: str, make, line: str) -> Row:
    """A photo that is refused; `make` gets the folder."""
    return Row(f"segmenter({typed})", lambda folder: segmenter()(make(folder)), line)


def words(given, line: str, *, refused: bool = True) -> Row:
    """Class names; those that are refused never reach the model."""
    typed = repr(given) if len(repr(given)) < 60 else f"{repr(given)[:50]}…"
    act = asked.check_words if refused else (lambda names: segmenter().embed(names))
    return Row(f"words={typed}", lambda _: act(given), line, refused=refused)


def load(typed: str, make, line: str, **options) -> Row:
    """What is loaded; `make` puts it into the folder and gives its name."""
    return Row(f"load({typed})", lambda folder: otseg_jax.load(make(folder), **options), line)


def written(folder: Path, content: bytes) -> Path:
    (folder / "photo.jpg").write_bytes(content)
    return folder / "photo.jpg"


def bomb(folder: Path) -> Path:
    """A file of some kilobytes that declares 85 million pixels."""
    Image.new("1", (9_000, 9_500)).save(folder / "bomb.png")
    return folder / "bomb.png"


def inside_a_run(folder: Path) -> Path:
    (folder / "run/checkpoints/2").mkdir(parents=True)
    return folder / "run/checkpoints/2"


def file_of_a_model(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"format": "otseg_jax"}))
    return folder / "config.json"


def nothing(folder: Path) -> str:
    return str(folder / "none")


def model(_: Path) -> str:
    return "shapes-clip"


@functools.cache
def alone() -> Segmenter:
    """The packaged CLIP with nothing trained."""
    return otseg_jax.load("shapes-clip")


def background(typed: str, given, line: str) -> Row:
    """What else competes, or limits; it is refused before the photo is read."""
    act = lambda _: segmenter()(PHOTO, ["sky", "disc"], background=given)  # noqa: E731
    return Row(f"background={typed}", act, line)


def command(flags: str, line: str, *, photo: str = "none.jpg") -> Row:
    """A command line of otseg_jax.predict."""
    return typed(f"otseg_jax.predict {photo} {flags} --output={{folder}}/out", line)


def many_lists(folder: Path) -> None:
    """A word of another list is the same to the tower."""
    segmenter().embed(["Disc"])
    segmenter().embed(["disc", "sky"])
    segmenter().embed(["Disc", "disc"])


MANY = ",".join(f"{1 + i / 100}" for i in range(100))


ROWS = [
    photo("'none.jpg'", lambda _: "none.jpg", r"none\.jpg: no such file"),
    photo("'~/none.jpg'", lambda _: "~/none.jpg", rf"^{Path.home()}/none\.jpg: no such file"),
    photo("a file that is no photo", lambda f: written(f, b"no"), r"photo\.jpg cannot be used"),
    photo("a folder", lambda folder: folder, r"cannot be used: .*directory"),
    photo("a bomb", bomb, r"9000 x 9500 pixels, more than the 80,000,000"),
    photo("16 bits", lambda _: PHOTO.astype(np.uint16) * 257, r"give \(photo // 257\)"),
    photo("normalised", lambda _: PHOTO - 120.0, r"as it was before it was normalised"),
    photo("NaN", lambda _: PHOTO * np.nan, r"its values are nan"),
    photo("a batch", lambda _: PHOTO[None], r"uint8\[1, 20, 30, 3\].* photo\[0\]"),
    photo("channels first", lambda _: PHOTO.transpose(2, 0, 1), r"photo\.transpose\(1, 2, 0\)"),
    photo("two channels", lambda _: PHOTO[..., :2], r"and 1, 3 or 4 channels"),
    photo("a list in a list", lambda _: [[PHOTO]], r"the photo is a list; wanted a path"),
    photo("None", lambda _: None, r"a NoneType; wanted a path"),
    photo("no row", lambda _: PHOTO[:0], r"uint8\[0, 30, 3\].* it has no pixel"),
    photo("a mask of booleans", lambda _: PHOTO > 9, r"bool\[20, 30, 3\].* one byte a channel"),
    photo("a 16-bit image", lambda _: Image.new("I;16", (9, 9)), r"more than 8 bits a channel"),
    words("sky", r"'sky' is one text: give a list, \['sky'\]"),
    words("red disc, sky\n", r"give a list, \['red disc', 'sky'\]"),
    words([], r"words is empty"),
    words(["sky", " "], r"words\[1\] is blank"),
    words([1, 2], r"words\[0\] is 1, wanted text; words\[1\] is 2"),
    words(["sky", None], r"words\[1\] is None"),
    words({"sky"}, r"is a set: give a list"),
    words(7, r"is a int: give a list"),
    words(["sky", "cat", "sky "], r"words\[2\] repeats words\[0\], 'sky'"),
    words(["sky,", "cat"], r"words\[0\] is 'sky,': give one name"),
    words(["sky\ncat"], r"words\[0\] is 'sky\\ncat': give one name"),
    words(["sofa|couch", "couch"], r"words\[1\] repeats words\[0\], 'couch'"),
    words(["sofa|", "cat"], r"words\[0\] is 'sofa\|': give words of one class as 'sofa\|couch'"),
    words({"sofa": 1, 2: 3}, r"words\[1\] is 2, wanted text"),
    Row("words that were asked before", many_lists, r"is the same tokens as 'Disc'", refused=False),
    Row("no words for a CLIP", lambda _: alone()(PHOTO), r"CLIP alone has no classes.*--words="),
    Row(
        "templates=['photo']",
        lambda _: alone()(PHOTO, ["sky"], templates=["photo"]),
        r"templates\[0\] 'photo' must hold '{}' once",
    ),
    Row(
        "templates='a {}'",
        lambda _: alone()(PHOTO, ["sky"], templates="a {}"),
        r"give a list, \['a photo of a {}\.'\]",
    ),
    background("'sky'", "sky", r"background='sky': wanted 'words' .*, a list of such words"),
    background("True", True, r"background=True: wanted"),
    background("1.5", 1.5, r"background=1\.5: wanted a least score of 0 to 1"),
    background("['sky', '']", ["wall", ""], r"background: words\[1\] is blank"),
    Row(
        "background twice",
        lambda _: alone()(PHOTO, ["background", "sky"], background="words"),
        r"words hold 'background', and background='words' adds it",
    ),
    command("", r"wanted a photo, a folder, a pattern or - for a list", photo=""),
    command("--words=a --config=configs/shapes.py", r"a model tells how it is run, --model="),
    command("--words=a --words_of=b", r"there is no flag --words_of"),
    command("--words=a, --model=shapes-clip", r"words\[1\] is blank"),
    command("--model=shapes-clip", r"CLIP alone has no classes of its own"),
    command("--words=a --model=shapes-clip --background=sky", r"background='sky': wanted"),
    command("--words=a --scales=0", r"scales\.0=0\.0: wanted greater than or equal to 0\.1"),
    command("--words=a --scales=1,5", r"scales\.1=5\.0: wanted less than or equal to 4"),
    command("--words=a --scales=a", r"--scales=a: wanted numbers .*, --scales=0\.75,1,1\.25"),
    command("--words=a --scales=", r"--scales=: wanted numbers with commas between them"),
    command("--words=a --scales=nan", r"scales\.0=nan: wanted"),
    command("--words=a --scales=1,1", r"scales=\(1\.0, 1\.0\): wanted 1 to 16 factors, no two"),
    command(f"--words=a --scales={MANY}", r"wanted 1 to 16 factors, no two the same"),
    command("--words=a --flip=maybe", r"flip.*maybe"),
    command("--words=nowhere/words.txt", r"--words=nowhere/words\.txt: no such file; words stand"),
    command("--words=a --model=nowhere", r"'nowhere' is no folder"),
    command("--words=a", r"\*\.gif matches no file", photo='"*.gif"'),
    command(
        "--words=a",
        r"^error: otseg_jax/data/shapes_model holds a model and no photo: give it as --model=otseg",
        photo="otseg_jax/data/shapes_model photo.jpg",
    ),
    command("--words=a", r"configs holds no photo \(\.jpg", photo="configs"),
    typed(
        "otseg_jax.predict none.jpg --words=a --output=README.md/out",
        r"--output=README\.md/out can",
    ),
    words(["red " * 90 + "x", "cat"], r"2 of 4 texts are longer than the 77", refused=False),
    words(["a " * 90 + "x", "a " * 90 + "y"], r"1 of 2 class names .*get no pixel", refused=False),
    words(["Disc", "disc"], r"'disc' is the same tokens as 'Disc'", refused=False),
    load("''", lambda _: "", r"load\(''\): wanted a model directory"),
    load("'shapes-clip2'", lambda _: "shapes-clip2", r"no folder, and no hub name of the form"),
    load("'~/none'", lambda _: "~/none", r"'~/none' is no folder"),
    load("a name with a typo", nothing, r"none' is no folder"),
    load("an empty folder", lambda folder: folder, r"is an empty folder"),
    load("CLIP, method='dino'", model, r"'dino': of a CLIP alone, choose one of n", method="dino"),
    load("CLIP, method='resclip'", model, r"tower has 4 blocks: naclip works", method="resclip"),
    load("CLIP, transport=", model, r"naclip solves no transport problem", transport=print),
    load("CLIP, vision_heads=3", model, r"vision_heads=3 does not divide", vision_heads=3),
    load("a step of a run", inside_a_run, r"is a part of .*/run: give that, load\('.*/run'\)"),
    load("a file of a model", file_of_a_model, r"config\.json is a part of"),
    load(
        "dtype='fp32'",
        nothing,
        r"dtype='fp32': choose float32, tensor",
        dtype="fp32",
    ),
    load("scales=()", nothing, r"scales=\(\): wanted 1 to 16 factors", scales=()),
    load("scales=(1, 0)", nothing, r"scales\.1=0: wanted greater than", scales=(1, 0)),
    load("dtype='float16'", nothing, r"dtype='float16': choose", dtype="float16"),
    load("batch_size=0", nothing, r"batch_size=0: wanted a whole number", batch_size=0),
    load(
        "seen_offset=5", nothing, r"seen_offset=5\.0: wanted a number in \[0, 1\]", seen_offset=5.0
    ),
    Row(
        "scores of a photo that was not prepared",
        lambda _: segmenter().scores(PHOTO),
        r"uint8\[20, 30, 3\], wanted what `prepare` gives, .*scores\(segmenter\.prepare\(photo",
    ),
    Row(
        "method='zegclip' of an OTSeg",
        lambda _: segmenter().scores(segmenter().prepare(PHOTO), method="zegclip"),
        r"method='zegclip': this model has otseg",
    ),
]
