"""A CLIP alone as a row of a table: what the command finds is what its formulas say."""

import functools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from oracles import torch
from PIL import Image

from configs import common
from configs.training_free import cityscapes, voc21
from configs.training_free import shapes as shapes_config
from otseg_jax import build
from otseg_jax.data import decode, folders
from otseg_jax.data.shapes import Shapes
from otseg_jax.evaluation import metrics, report
from otseg_jax.models.training_free import TrainingFreeConfig
from otseg_jax.weights import hub, names

BACKGROUND = (
    "sky wall tree wood grass road sea river mountain sands desk bed building cloud lamp door "
    "window wardrobe ceiling shelf curtain stair floor hill rail fence"
)
OBJECTS = (
    "aeroplane bicycle bird ship bottle bus car cat chair cow table dog horse motorbike PERSON "
    "pottedplant sheep sofa train SCREEN"
)
SEVERAL = {
    "PERSON": [
        "person",
        *(f"person in {x}" for x in ["shirt", "jeans", "dress", "sweater", "skirt", "jacket"]),
    ],
    "SCREEN": ["television monitor", "tv monitor", "monitor", "television", "screen"],
}


def options(config, **fields):
    """Settings of a configuration with fields set, for the packaged CLIP."""
    plain = {"clip.source": hub.BUILT_IN, "text.cache": ""}
    with config.unlocked():
        small.update(config, plain | fields)
    return build.settings_of(config)


@functools.cache
def naclip():
    """The packaged CLIP, and a function of photos and words around it."""
    clip = build.load_clip(hub.BUILT_IN).clip
    model = names.build(
        lambda: TrainingFreeConfig().build(clip.vision_config, rngs=nnx.Rngs(0)),
        names.under("vision/", clip.vision),
    )
    graphdef, state = nnx.split(model)
    return clip, jax.jit(lambda *x: nnx.merge(graphdef, state)(*x)["cosine"])


def cosines(photo, words, templates):
    """Cosines of the patches of a normalised photo with every word, [1, words, h, w]."""
    clip, compare = naclip()
    text = jnp.asarray(clip.embed(words, templates))
    return torch.from_numpy(np.array(compare(jnp.asarray(photo)[None], text)))


def normalised(image, size) -> np.ndarray:
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    mean, std = map(np.array, common.CLIP)
    return ((resized - mean) / std).astype(np.float32)


def stretched(x, size):
    return torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def test_shapes_by_a_clip_alone_is_the_argmax_of_its_cosines(tmp_path):
    asked = options(shapes_config.get_config(), **{"data.images.val": 4})
    report.evaluate(asked, tmp_path / "run")
    split, counts = Shapes("val", size=4, seed=0), 0
    for example in split:
        photo = normalised(example["image"], (96, 96))
        found = stretched(cosines(photo, split.vocabulary.names, asked.templates), (96, 96))
        labels = found[0].argmax(0).numpy()
        counts = counts + metrics.confusion(example["label"], labels, 20)
    want = metrics.summary(counts, split.vocabulary.names, split.vocabulary.unseen)
    got = json.loads((tmp_path / "run" / report.RESULTS).read_text())
    assert got.keys() == {"naclip"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No curve. A CLIP alone" in page
    assert "naclip runs the CLIP as it is" in page
    # in points: rounding decides pixels at which two words are as likely
    assert got["naclip"]["hiou"] == pytest.approx(want["hiou"], abs=0.02)
    assert got["naclip"]["iou"] == pytest.approx(want["iou"], abs=0.1)


def test_words_and_threshold_of_voc_are_the_published_ones(tmp_path, photos):
    """56 words of 21 classes, whole photos, in NumPy and torch."""
    templates, root = ("a photo of a {}.", "a {}."), photos / "voc2012_mini"
    fields = {"data.root": str(root), "text.templates": templates, "eval.scale": (2048, 64)}
    fields |= {"eval.images": 1, "eval.save_predictions": True, "eval.threshold": 0.03}
    report.evaluate(options(voc21.get_config(), **fields), tmp_path)
    groups = [BACKGROUND.split(), *(SEVERAL.get(name, [name]) for name in OBJECTS.split())]
    words = [word for group in groups for word in group]
    class_of = np.array([k for k, group in enumerate(groups) for _ in group])
    assert len(words) == 56
    split = folders.index("voc21", root, "val")
    saved = sorted((tmp_path / "predictions" / "naclip").glob("*.png"))
    assert len(saved) == 1
    seen = set()
    for path in saved:
        (photo,) = (image for image in split.images if image.stem == path.stem)
        image = decode.photo(photo)
        height, width = image.shape[:2]
        factor = 64 / min(height, width)
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        fine = stretched(cosines(normalised(image, size), words, templates), size)
        logits = 40 * stretched(fine, (height, width))[0].double()
        chances = torch.softmax(logits, 0).numpy()
        best = np.stack([chances[class_of == k].max(0) for k in range(21)])
        labels = np.where(best.max(0) < 0.03, 0, best.argmax(0))
        second, first = np.sort(best, axis=0)[-2:]
        sure = (first - second > 1e-4) & (abs(first - 0.03) > 1e-4)
        found = np.asarray(Image.open(path))
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(found[sure], labels[sure])
        seen |= set(labels.ravel().tolist())
    assert len(seen) > 2


def test_cityscapes_from_its_folders_to_its_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for city in ("aachen", "bonn"):
        stem = f"{city}/{city}_000000_000019"
        for kind, array in (
            ("leftImg8bit/val/{}_leftImg8bit.png", rng.integers(0, 256, (32, 64, 3))),
            ("gtFine/val/{}_gtFine_labelIds.png", rng.choice([0, 7, 23], (32, 64))),
        ):
            path = tmp_path / kind.format(stem)
            path.parent.mkdir(parents=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    fields = {"data.root": str(tmp_path), "eval.scale": (2048, 32), "text.templates": ("{}",)}
    fields |= {"data.crop": 32, "eval.stride": 16, "eval.save_predictions": True}
    asked = options(cityscapes.get_config("clearclip"), **fields)
    report.evaluate(asked, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "traffic light" in printed
    assert "unseen" not in printed
    (row,) = json.loads((tmp_path / "run" / report.RESULTS).read_text()).values()
    assert row["miou_unseen"] is None
    assert {name for name, value in row["iou"].items() if value is not None} >= {"road", "sky"}
    found = sorted((tmp_path / "run" / "predictions" / "clearclip").rglob("*.png"))
    assert [path.parent.name for path in found] == ["aachen", "bonn"]
    for path in found:
        assert np.asarray(Image.open(path)).shape == (32, 64)
