"""Photos and words as people have them, and models evaluated as they were trained."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from messages.predict import PHOTO, segmenter
from PIL import Image

import otseg_jax
from otseg_jax import text
from otseg_jax.checkpoints import spec
from otseg_jax.convert import convert
from otseg_jax.data import decode
from otseg_jax.evaluation import report
from otseg_jax.models.clip import TextConfig, TextTower
from otseg_jax.training import loop


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a short inductive run with its offset of 0.1."""
    workdir = tmp_path_factory.mktemp("run")
    loop.train(small.settings(**{"eval.seen_offset": 0.1, "train.steps": 1}), workdir)
    return workdir


def test_photos_in_memory_become_rgb():
    grey = PHOTO[..., 0]
    rgba = np.dstack([PHOTO, np.zeros_like(grey)])
    for same in (PHOTO, rgba, jnp.asarray(PHOTO), Image.fromarray(PHOTO), Image.fromarray(rgba)):
        np.testing.assert_array_equal(decode.rgb(same), PHOTO)
    for same in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(decode.rgb(same), np.dstack([grey] * 3))
    assert decode.rgb(PHOTO[..., ::-1]).flags.c_contiguous


def test_a_path_and_its_picture_are_upright(tmp_path, monkeypatch):
    image, tags = Image.fromarray(PHOTO), Image.Exif()
    tags[0x0112] = 6  # the camera was turned: upright after a quarter turn clockwise
    image.save(tmp_path / "a.png", exif=tags)
    monkeypatch.setenv("HOME", str(tmp_path))
    want = np.rot90(PHOTO, k=-1)
    for photo in (tmp_path / "a.png", "~/a.png", Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(segmenter().read(photo), want)
    label = segmenter()("~/a.png", ["sky", "disc"])
    assert label.shape == (30, 20)


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (300, 2), (130, 260)])
def test_label_maps_are_the_best_scores(shape):
    photo = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    names = [f"thing {i}" for i in range(300)]
    got = segmenter()(photo, names)
    scores = segmenter().scores(segmenter().prepare(photo), names, size=shape)
    np.testing.assert_array_equal(got, scores.argmax(0))


def test_filling_never_wins_over_a_name_with_an_offset():
    asked = segmenter()
    name = asked.vocabulary.names[asked.vocabulary.seen[0]]
    model = segmenter(1.0)
    assert model(PHOTO, ["nothing", name]).max() <= 1
    assert model(PHOTO, [name]).max() == 0


class CountingTower(TextTower):
    """Counts its traces: one for each compiled shape."""

    traces = 0

    def __call__(self, tokens):
        CountingTower.traces += 1
        return super().__call__(tokens)


def test_word_lists_of_one_size_compile_once():
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16, "embed_dim": 8}
    tower = CountingTower(TextConfig(vocab_size=64, context_length=16, **sizes), rngs=nnx.Rngs(0))
    tokens = np.tile(np.int32([62, 5, 63] + [0] * 13), (16, 1))
    for count in (1, 3, 5, 16):
        assert text.embed(tower, tokens[:count], shape=(count, 1)).shape == (count, 1, 8)
    assert CountingTower.traces == 1


def test_the_offset_goes_by_names_trained_with_labels():
    trained = segmenter().spec
    inductive = replace(trained, seen_offset=0.1)
    seen, unseen = (trained.classes[ids[0]] for ids in (trained.vocabulary.seen, trained.unseen))
    as_trained = inductive.offsets(trained.classes)
    assert set(np.flatnonzero(as_trained)) == set(trained.vocabulary.seen)
    np.testing.assert_array_equal(inductive.offsets(trained.classes[::-1]), as_trained[::-1])
    # as the text tower reads them: ADE20K's "bed " is the "bed" that somebody asks for
    spaced = replace(inductive, classes=tuple(f"{name} " for name in trained.classes))
    np.testing.assert_array_equal(spaced.offsets(text.check_words(spaced.classes)), as_trained)
    foreign = [seen, unseen, "hippo"]
    np.testing.assert_array_equal(inductive.offsets(foreign), [0, 0, 0])
    np.testing.assert_array_equal(inductive.offsets(foreign, 0.5), [0.5, 0, 0])
    supervised = replace(inductive, regime="supervised")
    np.testing.assert_array_equal(supervised.offsets(foreign, 0.5), [0.5, 0.5, 0])


def test_adopt_leaves_the_settings_of_the_caller(caplog):
    asked = small.settings("supervised", **{"text.templates": ("the {}.",)})
    copy = small.settings("supervised", **{"text.templates": ("the {}.",)})
    caplog.set_level("INFO")
    adopted = spec.adopt(asked, segmenter().spec, None)
    assert asked == copy
    assert adopted.text.templates == segmenter().spec.templates
    assert "text.templates=" in caplog.text


def test_a_run_loads_and_a_foreign_vocabulary_is_split_by_name(run, tmp_path):
    convert(str(run), tmp_path / "m")
    one, other = otseg_jax.load(run), otseg_jax.load(tmp_path / "m", batch_size=1)
    np.testing.assert_array_equal(one(PHOTO), other(PHOTO))
    listing = [("sky", "seen"), (one.vocabulary.names[one.vocabulary.seen[0]], "unseen")]
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / f"d/{kind}/{split}").mkdir(parents=True)
        Image.fromarray(PHOTO).save(tmp_path / f"d/images/{split}/a.png")
        mask = np.arange(600).reshape(20, 30) % 2
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / f"d/labels/{split}/a.png")
    rows = "".join(f"{name},{part}\n" for name, part in listing)
    (tmp_path / "d/classes.csv").write_text(f"name,split\n{rows}")
    fields = {"data.dataset": "folder", "data.root": str(tmp_path / "d"), "init_from": str(run)}
    found = {}
    for offset in (None, 0.0, 1.0):
        options = small.settings(**fields, **{"eval.seen_offset": offset})
        report.evaluate(options, tmp_path / f"{offset}")
        result = json.loads((tmp_path / f"{offset}" / report.RESULTS).read_text())
        found[offset] = result["otseg_plus"]
    assert found[None] == found[0.0]
    # by the run, "sky" was not trained with labels, whatever classes.csv says
    assert found[None]["miou_unseen"] == found[None]["iou"]["sky"]
    # less 1.0, the name that was trained with labels gets no pixel
    assert found[1.0]["pixel_accuracy_unseen"] == 100
    assert found[1.0]["pixel_accuracy_seen"] == 0


def test_one_prompt_takes_the_first_template_of_a_file(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    options = {"classes": 4, "templates": 1, "width": 8, "first": True}
    for array in (rows, rows[:, :1], rows[:, 0]):
        np.save(tmp_path / "t.npy", array)
        got = text.read_embeddings(tmp_path / "t.npy", **options)
        want = rows[:, :1] / np.linalg.norm(rows[:, :1], axis=-1, keepdims=True)
        np.testing.assert_allclose(got, want, rtol=1e-6)
