"""Weights meet the CLIP and the tokenizer that they were trained with, or are refused by name."""

import json
import shutil
import string
from types import SimpleNamespace

import numpy as np
import pytest
import small
from oracles import torch

import otseg_jax
from otseg_jax import build
from otseg_jax.checkpoints import compare, pretrained, restore, spec
from otseg_jax.cli import is_ours
from otseg_jax.convert import convert
from otseg_jax.convert.hints import Hints
from otseg_jax.data import classes
from otseg_jax.training import start
from otseg_jax.weights.towers import Stated


def tokenizer(folder, letters):
    """One of 64 ids, whose letters have them in this order."""
    folder.mkdir()
    words = [f"{letter}{end}" for end in ("", "</w>") for letter in f"{letters}."]
    words += [*"01234567", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return str(folder)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run whose CLIP file tells neither heads nor activation, and has no tokenizer beside it."""
    home = tmp_path_factory.mktemp("told")
    import openai_clip

    torch.save(openai_clip.make().state_dict(), home / "clip.pt")
    theirs = tokenizer(home / "theirs", string.ascii_lowercase)
    other = tokenizer(home / "other", string.ascii_lowercase[::-1])
    said = {"vision_heads": 4, "text_heads": 2, "activation": "gelu", "tokenizer": theirs}
    source = {"clip.source": str(home / "clip.pt")}
    options = small.settings(**source, **{f"clip.{name}": value for name, value in said.items()})
    parts = build.assemble(options, classes.VOCABULARIES["shapes"])
    with start.checkpoints_of(home / "run", options, parts.vocabulary) as checkpoints:
        state = {"trainable": parts.trainable}
        checkpoints.save(1, state, parts.record.to_json(), text=np.asarray(parts.text))
    convert(str(home / "run"), home / "model")
    return SimpleNamespace(home=home, source=source, options=options, said=said, other=other)


def evaluated(told, **fields):
    """What an evaluation compares with the run, of settings with these fields."""
    found = restore.find(told.home / "run")
    options = spec.adopt(small.settings(**told.source, **fields), found.spec, found.settings)
    vocabulary = classes.VOCABULARIES[options.data.dataset]
    described, opened = spec.describe(options, vocabulary), build.open_clip(options)
    record = spec.Record(build.embed(described, opened, options)[1], options)
    compare.check_same_model(found, record)
    return options


def test_what_was_stated_of_the_clip_is_adopted(told, caplog):
    caplog.set_level("INFO", logger="otseg_jax")
    options = evaluated(told)
    assert build.stated(options) == Stated(**told.said)
    for name, value in told.said.items():
        assert f"clip.{name}={value!r}, as the weights were trained with" in caplog.text
    # a run that goes on, and one that starts from it
    for workdir, init_from in ((told.home / "run", ""), (told.home / "new", told.home / "run")):
        options = small.settings(**told.source, init_from=str(init_from))
        vocabulary = classes.VOCABULARIES["shapes"]
        with start.checkpoints_of(workdir, options, vocabulary) as checkpoints:
            origin = start.origin(options, vocabulary, checkpoints)
        assert spec.adopt_clip(options, origin.settings).clip == told.options.clip


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"clip.activation": "quick_gelu", "clip.vision_heads": 2},
            r"does not fit: its CLIP is not this one: --config\.clip\.vision_heads was 4 and is 2, "
            r"--config\.clip\.activation was 'gelu' and is 'quick_gelu'\. Give",
        ),
        ({"clip.tokenizer": "other"}, r"does not fit: its tokenizer is not this one: --config\.cl"),
        # none of its classes was trained, and the tokenizer is another all the same
        (
            {"clip.tokenizer": "other", "data.dataset": "shapes_colours"},
            r"its tokenizer is not this one: --config\.clip\.tokenizer was '.*theirs' and is",
        ),
    ],
    ids=["heads and activation", "tokenizer", "tokenizer on other data"],
)
def test_another_clip_is_refused_by_what_differs(told, fields, line):
    if "clip.tokenizer" in fields:
        fields = fields | {"clip.tokenizer": told.other}
    with pytest.raises(ValueError, match=line) as error:
        evaluated(told, **fields)
    assert is_ours(error.value)


def test_a_trained_model_keeps_its_tokenizer_and_tells_its_towers(told, tmp_path):
    for place in ("run", "model"):
        with pytest.raises(ValueError, match=r"other is not the tokenizer that .* was trained"):
            convert(str(told.home / place), tmp_path / "m", hints=Hints(tokenizer=told.other))
    model = str(told.home / "model")
    with pytest.raises(ValueError, match=r"other is not the tokenizer that .* was trained"):
        build.load_clip(model, stated=Stated(tokenizer=told.other))
    with pytest.raises(ValueError, match=r"tells vision_heads=4 itself: leave --vision_heads=2"):
        build.load_clip(model, stated=Stated(vision_heads=2))
    # the same, wherever it lies now
    build.load_clip(model, stated=Stated(**told.said))
    assert pretrained.read(model).spec.tokenizer_fingerprint
    # another one in its place
    shutil.copytree(model, tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "tokenizer")
    shutil.copytree(told.other, tmp_path / "m" / "tokenizer")
    with pytest.raises(ValueError, match=r"m/tokenizer is not the tokenizer that the model from"):
        otseg_jax.load(tmp_path / "m").embed(["cat"])


def test_another_folder_is_no_other_place(told, tmp_path, monkeypatch):
    monkeypatch.chdir(told.home)
    clip = small.settings(**{"clip.source": "clip.pt", "clip.tokenizer": "theirs"}).clip
    assert clip.source == str(told.home / "clip.pt")
    assert clip.tokenizer == str(told.home / "theirs")
    # what lies nowhere here keeps its name
    clip = small.settings(**{"clip.source": "openai/none", "clip.tokenizer": "shapes-clip"}).clip
    assert (clip.source, clip.tokenizer) == ("openai/none", "shapes-clip")
