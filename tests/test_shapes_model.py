"""The trained model that the package ships: small, the one on record, and one that segments."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import otseg_jax
from experiments import shapes_model
from otseg_jax.checkpoints import pretrained
from otseg_jax.data.classes import IGNORE
from otseg_jax.data.shapes import Shapes
from otseg_jax.weights import hub

FOLDER = shapes_model.SHIPPED
RECORD = json.loads(shapes_model.RESULT.read_text())


def test_it_is_small_and_the_one_on_record():
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert files.keys() == {"config.json", "model.safetensors"}
    assert sum(map(len, files.values())) == RECORD["bytes"] <= 3e6
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert digests == RECORD["sha256"]


def test_it_segments_new_pictures_and_answers_other_words():
    segmenter = otseg_jax.load(FOLDER)
    examples = [Shapes("val", size=100)[i] for i in range(0, 100, 25)]
    right = total = 0
    for example in examples:
        counted = example["label"] != IGNORE
        right += np.sum((segmenter(example["image"]) == example["label"])[counted])
        total += np.sum(counted)
    assert right / total > 0.6
    words = [segmenter.vocabulary.names[k] for k in (3, 8)]
    found = segmenter(examples[0]["image"], words)
    assert set(np.unique(found)) <= {0, 1}


def test_its_clip_is_the_packaged_one_and_a_copy_is_whole(tmp_path):
    model = pretrained.read(FOLDER)
    assert model.clip.tokenizer == hub.find(hub.BUILT_IN, ())
    pretrained.write(tmp_path / "copy", model)
    copy = pretrained.read(tmp_path / "copy")
    assert copy.clip.tokenizer == tmp_path / "copy" / "tokenizer"
    assert copy.leaves().keys() == model.leaves().keys()
    for name, leaf in copy.leaves().items():
        np.testing.assert_array_equal(leaf, model.leaves()[name])


def test_another_packaged_clip_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    fingerprint = json.loads(config.read_text())["clip"]["fingerprint"]
    config.write_text(config.read_text().replace(fingerprint, "0" * 64))
    with pytest.raises(ValueError, match=r"another shapes-clip than .* install otseg_jax anew"):
        pretrained.read(tmp_path / "m")
    config.write_text(config.read_text().replace('"shapes-clip"', '"someone/else"', 1))
    with pytest.raises(ValueError, match=r"clip.source='someone/else': wanted '' or 'shapes-clip'"):
        pretrained.read(tmp_path / "m")


def test_words_for_other_things_keep_a_picture_from_being_painted():
    """Three classes that a picture holds nothing of, with all other classes as background."""
    pictures = Shapes("val", size=100)
    names = pictures.vocabulary.names
    for source in ("shapes", "shapes-clip"):
        segmenter = otseg_jax.load(source)
        painted = []
        for i in range(0, 100, 20):
            example = pictures[i]
            held = np.unique(example["label"]).tolist()
            absent = sorted({*range(len(names))} - {*held})
            words = [names[k] for k in np.random.default_rng(i).choice(absent, 3, replace=False)]
            others = [name for name in names if name not in words]
            found = segmenter(example["image"], words, background=others).labels
            painted.append((found > 0).mean())
        assert np.mean(painted) < 0.5, "of 1 without a background"


def test_the_record_names_no_place_on_a_machine():
    text = (FOLDER / "config.json").read_text() + shapes_model.RESULT.read_text()
    assert str(Path.home()) not in text
    assert "/tmp" not in text
