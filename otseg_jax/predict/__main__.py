r"""Segment photos by words: masks, pictures, numbers, and a page that shows them all.

    python -m otseg_jax.predict photo.jpg --words="cat,sofa|couch,grass" \
        --model=openai/clip-vit-base-patch16
    python -m otseg_jax.predict photos/ "more/**/*.jpg" --words="car,road" --background=words \
        --model=ViT-B-16.pt --tokenizer=openai/clip-vit-base-patch16 --output=cars
    find . -name "*.png" | python -m otseg_jax.predict - --model=runs/shapes --output=found
    python -m otseg_jax.predict photo.jpg --words="cat,grass" --scales=1,1.25,1.5 --flip

PHOTO is a file, a folder, a pattern, or - for a list of files on standard input. --model is what
`otseg_jax.load` takes: a CLIP (folder, file or hub name), with which nothing is trained, a workdir,
or a model directory. Each photo gets NAME.png (class ids; 16 bits for more than 255),
NAME_overlay.jpg and NAME.json; index.html shows all. A photo that cannot be used is named at the
end, and the status is then 1.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags

from otseg_jax import cli, compile_cache, paths
from otseg_jax.convert.hints import HELP
from otseg_jax.models.training_free import METHODS
from otseg_jax.models.transformer import ACTIVATIONS
from otseg_jax.predict import asked, folder, photos
from otseg_jax.predict.loading import SHIPPED, load

BETTER = "openai/clip-vit-base-patch16"
FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_string(
    "words",
    "",
    "What to look for, separated by commas, with | between words of one class; or a .txt file with "
    'a class on each line; "": the classes that the model was trained for',
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "model",
    "",
    f"Model, run or CLIP; shapes and shapes-clip come with us, {BETTER} is better for photos",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", "predictions", "Folder for the results", flag_values=FLAGS)
flags.DEFINE_string(
    "background",
    "",
    "What shows none of the words: words (usual things compete), words of your own with commas, "
    'threshold or a number of 0 to 1 (the least score); "": every pixel is one of the words',
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "method",
    "",
    f"Of a CLIP alone: {', '.join(METHODS)}; of a trained model one of its outputs",
    flag_values=FLAGS,
)
flags.DEFINE_bool("pamr", False, "Refine by colours what a CLIP alone finds", flag_values=FLAGS)
flags.DEFINE_string(
    "scales",
    "1",
    "Sizes at which a photo is looked at, times the usual one, 1,1.25,1.5; scores are averaged. On "
    "the shapes that come with us these gain, 0.75 loses",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "flip",
    False,
    "Look at it mirrored, too, and average; gains a little there, twice the time",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "tensorfloat32", "bfloat16"],
    "Of matrix products",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "compile_cache",
    compile_cache.FOLDER,
    'Compiled programs are kept there, at most 2 GB; "": not at all',
    flag_values=FLAGS,
)
flags.DEFINE_string("checkpoint", "latest", HELP["checkpoint"], flag_values=FLAGS)
flags.DEFINE_string("tokenizer", "", HELP["tokenizer"], flag_values=FLAGS)
for name in ("vision_heads", "text_heads"):
    flags.DEFINE_integer(name, 0, HELP[name], lower_bound=0, flag_values=FLAGS)
flags.DEFINE_enum("activation", "", ["", *ACTIVATIONS], HELP["activation"], flag_values=FLAGS)
OPTIONS = (
    "method",
    "pamr",
    "flip",
    "dtype",
    "checkpoint",
    "tokenizer",
    "vision_heads",
    "text_heads",
    "activation",
)


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, usage=__doc__)
    if config is not None:
        sys.exit("error: --config is of a training: a model tells how it is run, --model=WORKDIR")
    if not rest:
        sys.exit("error: wanted a photo, a folder, a pattern or - for a list; --help shows how")
    cli.quiet_libraries()
    cli.run(lambda: work(rest))


def work(arguments: Sequence[str]) -> None:
    """Segment the photos that the arguments name; SystemExit with 1 where some were refused."""
    given: dict[str, Any] = {name: FLAGS[name].value for name in FLAGS}
    words = _words(given["words"])
    background, scales = _background(given["background"]), _scales(given["scales"])
    found = photos.find(arguments, sys.stdin)
    paths.check_writable(given["output"], flag="--output")
    compile_cache.keep(given["compile_cache"])
    if not given["model"]:
        print(
            f"--model={SHIPPED}, a small model of drawn shapes; for photos take a CLIP, "
            f"--model={BETTER}, or a model of your own"
        )
    options = {name: given[name] for name in OPTIONS}
    segmenter = load(given["model"] or SHIPPED, scales=scales, **options)
    segmenter([], words, background=background)  # words that cannot be used are no photo's fault
    done = folder.segment(
        found,
        given["output"],
        partial(segmenter, words=words, background=background),
        title=f"{len(found)} photos, {segmenter}",
    )
    for problem in done.refused:
        print(f"refused: {problem}", file=sys.stderr)
    print(done.line)
    if done.refused:
        sys.exit(1)


def _words(given: str) -> list[str] | None:
    """Words of a flag: a list with commas, or a file of lines; None: none are given."""
    if not given.strip():
        return None
    words = given.split(",")
    if given.endswith((".txt", ".csv")):
        file = paths.local(given)
        if not file.is_file():
            raise FileNotFoundError(f"--words={given}: no such file; words stand between commas")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{file} is no text in UTF-8: wanted a class on each line") from None
        words = [line for line in lines if line.strip()]
    asked.check_words(words)
    return words


def _background(given: str) -> asked.Background:
    """A mode, a number, or words of one's own with commas."""
    if given in ("", "None", "none"):
        return None
    try:
        return float(given)
    except ValueError:
        return given.split(",") if "," in given else given


def _scales(given: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(number) for number in given.split(","))
    except ValueError:
        raise ValueError(
            f"--scales={given}: wanted numbers with commas between them, --scales=0.75,1,1.25"
        ) from None


if __name__ == "__main__":
    main(sys.argv)
