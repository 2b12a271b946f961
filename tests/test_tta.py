"""Test-time augmentation: the mean over scales and mirrored photos, computed by hand from one view.

Each view is resized, normalised and mirrored here, and given to a segmenter of one view.
"""

import functools
from dataclasses import replace

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import small
from messages.predict import segmenter, untrained
from PIL import Image

import otseg_jax
from otseg_jax import build
from otseg_jax.checkpoints import pretrained
from otseg_jax.data import transforms
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import report, sliding, stitching
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.words import Words
from otseg_jax.models import pearl
from otseg_jax.models.pamr import pamr
from otseg_jax.models.training_free import TrainingFreeConfig
from otseg_jax.predict import Segmenter

WORDS = ["star", "sky", "red disc", "hat"]
SCALES = (0.5, 2.0)
# fitted, they are smaller than a window at half the scale, and have several at twice
PHOTOS = [
    np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for shape in ((20, 30), (50, 41))
]


@functools.cache
def trained(**options) -> Segmenter:
    return Segmenter(untrained(), batch_size=1, **options)


@functools.cache
def clip(**options) -> Segmenter:
    return otseg_jax.load("shapes-clip", batch_size=1, **options)


def view(model, photo, factor, mirrored):
    """A photo resized and normalised as `model` does, at another scale."""
    long, short = factor * max(model.spec.scale), factor * min(model.spec.scale)
    by = min(long / max(photo.shape[:2]), short / min(photo.shape[:2]))
    height, width = (max(int(side * by + 0.5), 1) for side in photo.shape[:2])
    resized = cv2.resize(photo, (width, height)).astype(np.float64)
    found = ((resized - model.spec.mean) / model.spec.std).astype(np.float32)
    return found[:, ::-1] if mirrored else found


def averages(model, photo):
    """Scores of each view alone, turned back and averaged as windows are; and without the last."""
    found = []
    for factor in SCALES:
        for mirrored in (False, True):
            image = view(model, photo, factor, mirrored)
            scores = model.scores(image, WORDS, size=photo.shape[:2])
            found.append(scores[..., ::-1] if mirrored else scores)
    if model.spec.model.scale is None:
        return np.mean(found, axis=0), np.mean(found[:-1], axis=0)
    # probabilities: their logarithms are cosines times a factor, less the same of all words
    logits = [np.mean(np.log(each), axis=0) for each in (found, found[:-1])]
    chances = [np.exp(z - z.max(axis=0)) for z in logits]
    return [each / each.sum(axis=0) for each in chances]


@pytest.mark.parametrize(("make", "photo"), [(trained, 0), (trained, 1), (clip, 0)])
def test_scores_are_the_mean_over_views(make, photo):
    model, photo = make(scales=SCALES, flip=True), PHOTOS[photo]
    found, (want, less) = model(photo, WORDS), averages(make(), photo)
    np.testing.assert_allclose(found.scores(), want, atol=2e-5)
    assert np.abs(found.scores() - less).max() > 1e-3
    np.testing.assert_array_equal(found.labels, found.scores().argmax(0))
    # what is compared with a threshold is the mean as well
    least = float(np.quantile(want.max(0), 0.4))
    labels = model(photo, WORDS, background=least).labels
    near = np.abs(want.max(0) - least) < 2e-5  # there rounding decides
    np.testing.assert_array_equal((labels == 0)[~near], (want.max(0) < least)[~near])


def scores_of(views, logits, **choices):
    """Scores of a photo from the logits of its views, in another size, by a CLIP alone."""
    method = TrainingFreeConfig(**choices)
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # of views that are normalised
    how = Inference(method=method, patch=8, window=16, stride=8, batch_size=1, **plain)
    words = Words.of_classes(jnp.eye(3, 4)[:, None], np.zeros(3, np.float32))
    whole = stitching.of(logits, views, words, how, size=(20, 26))
    return np.concatenate([whole.scores(part) for part in whole.parts()])[:3, :20, :26]


def test_the_mean_is_what_is_refined_by_the_photo_at_its_largest():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in ((16, 24), (24, 36))]
    views = [View(images[0]), View(images[1]), View(images[1][:, ::-1], mirrored=True)]
    logits = [rng.uniform(-1, 1, (n, 3, 2, 2)).astype(np.float32) for n in (2, 8, 8)]
    alone = [scores_of([one], [z]) for one, z in zip(views, logits, strict=True)]
    mean = np.mean(alone, axis=0)
    np.testing.assert_allclose(scores_of(views, logits), mean, atol=1e-6)
    photo = jnp.moveaxis(cv2.resize(images[1], (26, 20)), -1, 0)
    np.testing.assert_allclose(scores_of(views, logits, pamr=True), pamr(mean, photo), atol=1e-5)
    cell = pearl.cells((20, 26), 5)
    coarse = pearl.solve(pearl.pool(mean, cell), pearl.pool(photo, cell), np.eye(3, 4))
    solved = np.stack([cv2.resize(x, (26, 20)) for x in coarse])
    found = scores_of(views, logits, method="pearl", grid=5)
    np.testing.assert_allclose(found, solved, atol=1e-4)


@pytest.mark.parametrize(("make", "shape"), [(trained, (32, 32)), (clip, (96, 144))])
def test_a_symmetric_photo_is_segmented_symmetrically(make, shape):
    photo = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    model = make(scales=SCALES, flip=True)
    assert model.prepare(photo).shape[:2] == shape, "half and twice of it stay symmetric"
    # any photo and its mirror image have mirrored maps; views are summed in another order
    found, turned = (model(one, WORDS).scores() for one in (photo, photo[:, ::-1].copy()))
    np.testing.assert_allclose(found, turned[..., ::-1], atol=1e-5)
    photo[:, shape[1] // 2 :] = photo[:, : shape[1] // 2][:, ::-1]
    scores = model(photo, WORDS).scores()
    np.testing.assert_allclose(scores, scores[..., ::-1], atol=1e-5)
    alone = make().scores(view(model, photo, 2.0, False), WORDS, size=shape)
    assert np.abs(alone - alone[..., ::-1]).max() > 1e-3, "without, they are not"


def test_one_scale_and_no_flip_is_one_view():
    scores = trained().scores(trained().prepare(PHOTOS[1]), WORDS, size=(50, 41))
    np.testing.assert_array_equal(trained()(PHOTOS[1], WORDS).scores(), scores)
    assert repr(trained()) == repr(segmenter())


def test_evaluation_and_prediction_agree(tmp_path):
    pretrained.write(tmp_path / "m", untrained())
    views = {"scales": (0.75, 1.5), "flip": True}
    options = small.settings(init_from=str(tmp_path / "m"), **{"eval.save_predictions": True})
    report.evaluate(replace(options, eval=replace(options.eval, **views)), tmp_path / "eval")
    source = build.open_split(options, "val")
    folder = tmp_path / "eval/predictions/otseg_plus"
    stored = [np.asarray(Image.open(folder / f"{source[i]['name']}.png")) for i in range(6)]
    # one window at a time; the evaluation has four together, of several views and photos
    model = otseg_jax.load(tmp_path / "m", batch_size=1, **views)
    found = model([source[i]["image"] for i in range(6)])
    for one, want in zip(found, stored, strict=True):
        np.testing.assert_array_equal(one.labels, want)
    assert "otseg_plus + scales 0.75/1.5 + flip, ViT" in repr(model)
    assert found[0].made_by in repr(model)


def test_other_words_on_a_photo_go_without_the_tower_and_one_photo_is_kept(monkeypatch):
    looks, embedded = [], sliding.photo_embedded
    monkeypatch.setattr(
        sliding, "photo_embedded", lambda *a, **k: looks.append(a) or embedded(*a, **k)
    )
    model, (one, other) = trained(scales=SCALES, flip=True), PHOTOS
    model(other, ["sky"])
    looks.clear()
    first = model(one, ["sky"])
    again = model(one, ["sky", "disc"])
    assert len(looks) == 1
    np.testing.assert_allclose(again.scores("sky"), first.scores("sky"), atol=1e-6)
    model(other, ["sky"])
    model(one, ["sky"])
    assert len(looks) == 3, "views of one photo take the place of several"


def test_many_words_go_through_in_parts(monkeypatch):
    words, model = [f"thing {i}" for i in range(30)], trained(scales=SCALES, flip=True)
    whole = model(PHOTOS[0], words)
    monkeypatch.setattr(stitching, "MOST", 16)
    parts = model(PHOTOS[0], words)
    np.testing.assert_array_equal(parts.labels, whole.labels)
    np.testing.assert_allclose(parts.scores(), whole.scores(), atol=1e-6)


def test_views_are_resized_from_the_photo_as_mmsegmentation_does():
    photo = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    found = transforms.views(photo, scales=(0.75, 1.0, 1.25), flip=True, scale=(2048, 512))
    assert [one.size for one in found[::2]] == [(384, 512), (512, 683), (640, 853)]
    for plain, turned in zip(found[::2], found[1::2], strict=True):
        want = np.dstack([cv2.resize(photo, plain.size[::-1]), np.ones(plain.size, np.uint8)])
        np.testing.assert_array_equal(plain.image, want)
        np.testing.assert_array_equal(turned.image, want[:, ::-1])
        assert (plain.mirrored, turned.mirrored) == (False, True)
