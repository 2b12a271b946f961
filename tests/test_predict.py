"""Photos and words as people have them, and models evaluated as they were trained."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from messages.predict import PHOTO, alone, segmenter
from oracles import DATA
from PIL import Image

import otseg_jax
from otseg_jax import text
from otseg_jax.checkpoints import spec
from otseg_jax.convert import convert
from otseg_jax.data import decode
from otseg_jax.evaluation import report, sliding, stitching, windows
from otseg_jax.models.clip import TextConfig, TextTower
from otseg_jax.predict import asked
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
    numbers = PHOTO.astype(int), PHOTO * 1.0, PHOTO / 255, (PHOTO / 255).astype(np.float32)
    images = Image.fromarray(PHOTO), Image.fromarray(rgba)
    for same in (PHOTO, rgba, jnp.asarray(PHOTO), *numbers, *images):
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
    assert label.labels.shape == (30, 20)


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (300, 2), (130, 260)])
def test_label_maps_are_the_best_scores(shape):
    photo = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    names = [f"thing {i}" for i in range(300)]
    got = segmenter()(photo, names).labels
    scores = segmenter().scores(segmenter().prepare(photo), names, size=shape)
    chosen = np.take_along_axis(np.asarray(scores), got[None], axis=0)[0]
    # of 300 words two may be as good up to the last bit, which two programs round differently
    np.testing.assert_allclose(chosen, scores.max(0), rtol=0, atol=3e-7)
    assert np.mean(got != scores.argmax(0)) < 1e-3


def plain_probabilities(cosines, size, output, *, window, stride):
    """Of words f32[v, H, W] from cosines of windows, by whole arrays and one window at a time."""
    (height, width), count = size, cosines.shape[1]
    total, weight = np.zeros((count, height, width)), np.zeros((height, width))
    origins = windows.grid(height, width, window=window, stride=stride)
    for (y, x), one in zip(origins, cosines, strict=True):
        fine = jax.image.resize(one, (count, window, window), "bilinear", antialias=False)
        total[:, y : y + window, x : x + window] += fine
        weight[y : y + window, x : x + window] += 1
    mean = jnp.asarray(total / weight, jnp.float32)
    whole = jax.image.resize(mean, (count, *output), "bilinear", antialias=False)
    return np.asarray(jax.nn.softmax(40.0 * whole, axis=0))


def test_a_clip_alone_is_run_as_the_protocol_says():
    photo = np.random.default_rng(3).integers(0, 256, (60, 110, 3), np.uint8)
    words = ["red disc|red circle", "blue star", "green square"]
    plain = ["red disc", "red circle", "blue star", "green square"]
    image = alone().prepare(photo)
    assert image.shape == (96, 176, 4), "half as large again as the 64 pixels of its training"
    spec = alone().spec
    plainly = ((image[..., :3] - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)
    parts = windows.cut(plainly, windows.grid(96, 176, window=64, stride=32), window=64)
    text = alone().embed(plain)
    cosines = np.asarray(alone().model(jnp.asarray(parts), text)["cosine"])
    chances = plain_probabilities(cosines, (96, 176), (60, 110), window=64, stride=32)
    by_class = np.stack([chances[:2].max(0), *chances[2:]])
    found = alone()(photo, words)
    # of a softmax of 40 × cosine, whose rounding it multiplies
    np.testing.assert_allclose(found.scores(), by_class, atol=2e-5)
    np.testing.assert_array_equal(found.labels, by_class.argmax(0))
    assert found.names == ("red disc", "blue star", "green square")
    np.testing.assert_array_equal(found.scores("red circle"), found.scores("red disc"))
    # what is not sure enough is background, class 0
    least = float(np.quantile(by_class.max(0), 0.3))
    unsure = alone()(photo, words, background=least)
    assert unsure.names[0] == "background"
    want = np.where(by_class.max(0) < least, 0, by_class.argmax(0) + 1)
    # at the threshold rounding decides
    near = np.abs(by_class.max(0) - least) < 2e-5
    np.testing.assert_array_equal(unsure.labels[~near], want[~near])
    # other things compete, and are class 0
    rivals = alone()(photo, words[:1], background=["blue star", "green square"])
    want = np.where(by_class.argmax(0) == 0, 1, 0)
    np.testing.assert_array_equal(rivals.labels, want)


def test_words_by_the_thousand_and_photos_of_many_pixels_go_through_in_parts(monkeypatch):
    words = [f"thing {i}" for i in range(600)]
    found = alone()(PHOTO, words, templates=["{}"])
    np.testing.assert_array_equal(found.labels, found.scores().argmax(0))
    for model in (alone(), segmenter()):
        whole = model(PHOTO, words[:40])
        with monkeypatch.context() as little:
            little.setattr(stitching, "CELLS", 3 * 128 * 128)
            parts = model(PHOTO, words[:40])
            np.testing.assert_array_equal(parts.labels, whole.labels)
            np.testing.assert_allclose(parts.scores(), whole.scores(), atol=1e-6)


def test_other_words_on_a_photo_need_neither_its_tower_nor_a_compiler(monkeypatch, caplog):
    calls = []
    embedded = sliding.photo_embedded
    monkeypatch.setattr(
        sliding, "photo_embedded", lambda *a, **k: calls.append(a) or embedded(*a, **k)
    )
    photo = PHOTO[::-1].copy()
    for model in (alone(), segmenter()):
        first = model(photo, ["a cat", "a dog"])
        with jax.log_compiles(), caplog.at_level("WARNING"):
            again = model(photo, ["a cow", "a pig", "a hen"])
        assert not [line for line in caplog.messages if line.startswith("Compiling")]
        assert again.labels.shape == first.labels.shape
    assert len(calls) == 2


def test_a_list_gives_a_list_and_an_iterator_an_iterator(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    words = ["sky", "disc"]
    want = segmenter()(PHOTO, words).labels
    found = segmenter()([PHOTO, tmp_path / "a.png", Image.fromarray(PHOTO)], words)
    for one in found:
        np.testing.assert_array_equal(one.labels, want)
    assert [one.source for one in found] == ["", str(tmp_path / "a.png"), ""]
    lazy = segmenter()(iter([tmp_path / "a.png", tmp_path / "none.png"]), words)
    np.testing.assert_array_equal(next(lazy).labels, want)
    with pytest.raises(FileNotFoundError, match="no such file"):
        next(lazy)


def test_a_model_says_what_it_is():
    assert re.fullmatch(
        r"Segmenter\(naclip, ViT-4×128/8, 0\.843 M parameters, words of your own, float32, cpu\)",
        repr(alone()),
    )
    assert "otseg_plus, ViT-2×32/8" in repr(segmenter())
    assert "20 classes" in repr(segmenter())
    other = otseg_jax.load("shapes-clip", method="sclip", pamr=True, dtype="bfloat16")
    assert "sclip + PAMR" in repr(other)
    assert "bfloat16" in repr(other)


@pytest.mark.parametrize("method", ["maskclip_original", "clearclip", "pearl"])
def test_photos_of_any_shape_are_segmented_by_every_method(method):
    model = otseg_jax.load("shapes-clip", method=method)
    for shape in ((1, 1), (3, 40), (41, 7)):
        photo = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
        found = model(photo, ["sky", "disc"])
        assert found.labels.shape == shape
        np.testing.assert_array_equal(found.labels, found.scores().argmax(0))


def test_a_file_that_does_not_tell_is_completed(tmp_path):
    lone = tmp_path / "clip.safetensors"
    shutil.copy(DATA / "training_free_clip.safetensors", lone)
    with pytest.raises(ValueError, match="vision_heads"):
        otseg_jax.load(lone)
    model = otseg_jax.load(lone, vision_heads=4, text_heads=4, activation="quick_gelu")
    assert model.clip.vision_config.heads == 4
    assert model.clip.vision_config.image_size == 64, "as stored"
    with pytest.raises(ValueError, match="no tokenizer beside"):
        model(PHOTO, ["sky"])


def test_filling_never_wins_over_a_name_with_an_offset():
    asked = segmenter()
    name = asked.vocabulary.names[asked.vocabulary.seen[0]]
    model = segmenter(1.0)
    assert model(PHOTO, ["nothing", name]).labels.max() <= 1
    assert model(PHOTO, [name]).labels.max() == 0


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
    np.testing.assert_array_equal(
        spaced.offsets([name for (name,) in asked.check_words(spaced.classes)]), as_trained
    )
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


@pytest.mark.core
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
