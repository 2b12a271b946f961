"""CLIP alone against its authors' programs: arrays of every method, runs of whole protocols."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import DATA, numbers, relative_error

from otseg_jax import sharding
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling, sliding, stitching, words
from otseg_jax.evaluation.inference import Inference
from otseg_jax.models import clip as clip_module
from otseg_jax.models import last_block, pearl, resclip, sc_clip
from otseg_jax.models.pamr import pamr
from otseg_jax.models.training_free import (
    EARLIER,
    METHODS,
    TrainingFree,
    TrainingFreeConfig,
    average,
)
from otseg_jax.text import embed
from otseg_jax.weights import clip, names, source
from otseg_jax.weights.towers import Stated

RUNS = json.loads((DATA / "training_free_io.json").read_text())
SIZES = RUNS.pop("clip")
# ours → the prefix of the authors' arrays
AUTHORS = {
    "clip": "clip",
    "naclip": "naclip",
    "maskclip": "value_only",
    "maskclip_original": "maskclip",
    "sclip": "sclip",
    "clearclip": "clearclip",
    "itaclip": "itaclip",
    "pearl": "pearl",
    "sc_clip": "scclip",
    "resclip": "resclip",
}
CASES = [
    (method, size)
    for method in AUTHORS
    for size in ("64x64", "72x72" if method == "sc_clip" else "56x88")
]


def expected(name: str) -> np.ndarray:
    return numbers("training_free_io")[name]


def image(name: str) -> jax.Array:
    """An image of the parity file, NHWC."""
    return jnp.asarray(np.moveaxis(expected(name).astype(np.float32), 0, -1))[None]


def text() -> jax.Array:
    return jnp.asarray(expected("text_features"))[:, None]


@functools.cache
def authors_clip() -> clip.Clip:
    stated = Stated(vision_heads=SIZES["vision_heads"], text_heads=SIZES["text_heads"])
    return source.find(DATA / "training_free_clip.safetensors", stated=stated).clip


@functools.cache
def model(**choices) -> TrainingFree:
    """A method around the authors' tiny CLIP."""
    found = authors_clip()
    config = TrainingFreeConfig(**({"first_threshold": 0.3} | choices))
    return names.build(
        lambda: config.build(found.vision_config, rngs=nnx.Rngs(0)),
        names.under("vision/", found.vision),
    )


def run(model, image, text) -> jax.Array:
    """Cosines [b, k, h, w], compiled: op by op it takes three times as long."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *x: nnx.merge(graphdef, state)(*x)["cosine"])(state, image, text)


@pytest.mark.parametrize(("method", "size"), CASES, ids=[f"{m}-{s}" for m, s in CASES])
def test_cosines_equal_the_authors(method, size):
    cosines = run(model(method=method), image(f"image_{size}"), text())
    assert relative_error(cosines[0], expected(f"{AUTHORS[method]}_{size}.cosines")) < 1e-5


def test_every_method_is_compared():
    assert AUTHORS.keys() == METHODS.keys()


@pytest.mark.parametrize("size", ["64x64", "56x88"])
def test_resclips_first_pass_equals_the_authors(size):
    cosines = run(model(method="resclip", second_pass=False), image(f"image_{size}"), text())
    assert relative_error(cosines[0], expected(f"resclip_rcs_{size}.cosines")) < 1e-5


@pytest.mark.parametrize("size", ["64x64", "56x88"])
def test_resclips_mask_equals_the_authors(size):
    first = run(model(method="resclip", second_pass=False), image(f"image_{size}"), text())
    found = resclip.patch_words(
        first[0], image(f"image_{size}")[0], text()[:, 0], patch=8, scale=40.0, threshold=0.3
    )
    assert np.array_equal(found, expected(f"resclip_{size}.patch_classes"))
    mask = jax.jit(resclip.same_word)(found)
    assert relative_error(mask, expected(f"resclip_{size}.same_class")) < 1e-6


def test_sc_clips_parts_equal_the_authors():
    graphdef, state = nnx.split(model(method="sc_clip"))
    vision = nnx.merge(graphdef, state).vision
    *stages, _ = vision.stages(image("image_72x72"))
    factors = sc_clip.outlier_factors(stages[11][0, 1:])
    assert relative_error(factors, expected("scclip_72x72.lof")) < 1e-5
    outliers = sc_clip.find_outliers(stages[11][0, 1:])
    assert np.flatnonzero(outliers).tolist() == sorted(expected("scclip_72x72.outliers"))
    similarity = sc_clip.likeness(sc_clip.repair(stages[9][0, 1:], outliers, (9, 9)))
    assert relative_error(similarity, expected("scclip_72x72.similarity")) < 1e-5
    entering = sc_clip.aggregate(sc_clip.repair(stages[11][0, 1:], outliers, (9, 9)), similarity)
    assert relative_error(entering, expected("scclip_72x72.block_input")) < 1e-5


@pytest.mark.parametrize("size", ["64x64", "56x88"])
def test_tower_equals_the_authors_up_to_the_last_block(size):
    *_, last, _ = model().vision.stages(image(f"image_{size}"))
    assert relative_error(last[0], expected(f"block_input_{size}")) < 1e-5


@pytest.mark.parametrize("method", ["naclip", "pearl"])
def test_attention_equals_the_authors(method):
    tower = model().vision
    *_, tokens, _ = tower.stages(image("image_56x88"))
    query, key, _ = last_block.heads(tower.blocks[-1], tokens)
    if method == "pearl":
        weights = pearl.align(query, key)
    else:
        logits = last_block.logits(key, key) + last_block.neighbours((7, 11), 5.0)[None, None]
        weights = jax.nn.softmax(logits, axis=-1)
    assert relative_error(weights[0], expected(f"{method}_56x88.attention")) < 1e-5


@pytest.mark.parametrize("size", [(4, 4), (9, 9), (7, 11)])
def test_positions_equal_the_authors(size):
    embedding = model().vision.position_embedding[...]
    resized = clip_module.resize_positions_bicubic(embedding, *size, grid=8)
    name = f"position_{8 * size[0]}x{8 * size[1]}"
    assert relative_error(resized[1:].reshape(*size, -1), expected(name)) < 1e-6
    if size == (7, 11):
        by_size = clip_module.resize_positions_bicubic(embedding, *size, grid=8, offset=0.0)
        got = by_size[1:].reshape(*size, -1)
        assert relative_error(got, expected(f"{name}_by_size")) < 1e-6
    assert np.array_equal(resized[0], embedding[0])


def test_maskclip_pads_right_and_below():
    cosines = run(model(method="maskclip_original"), image("image_odd"), text())
    assert relative_error(cosines[0], expected("maskclip_odd.cosines")) < 1e-5


def resized(x: jax.Array, size) -> jax.Array:
    return jax.image.resize(x, (len(x), *size), "bilinear", antialias=False)


def inference(name: str) -> Inference:
    """A run of the authors' as ours."""
    options = RUNS[name]
    choices = {"scale": float(options["scale"]), "pamr": "pamr_iterations" in options}
    choices |= {"first_threshold": 0.3, "grid": options.get("grid", 80)}
    return Inference(
        method=TrainingFreeConfig(
            method=name.split("_")[0].replace("scclip", "sc_clip"), **choices
        ),
        patch=8,
        window=options["window"],
        stride=options.get("stride", 0),
        batch_size=1,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        threshold=options["threshold"],
        least_share=options.get("area", 0.0),
    )


@functools.cache
def logits(method: str, image_name: str, window: int, stride: int) -> dict[str, np.ndarray]:
    """Cosines of all windows of an image, which several runs share."""
    graphdef, state = nnx.split(model(method=method))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    runner = sliding.Runner(graphdef=graphdef, trainable=state, frozen={}, mesh=mesh)
    how = replace(inference("naclip_slide"), method=model(method=method).config)
    how = replace(how, window=window, stride=stride)
    predict = sliding.Predict(runner=runner, text=text(), outputs=how.method.outputs(), how=how)
    return jax.device_get(predict(how.cut(np.asarray(image(image_name)[0]))))


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("noprop")])
def test_protocol_equals_the_authors(name):
    options, known, how = RUNS[name], numbers("training_free_io"), inference(name)
    found = logits(how.method.method, options["image"], how.window, how.stride)
    photo, size = np.asarray(image(options["image"])[0]), tuple(options["size"])
    asked = words.Words(text(), known["query_index"].astype(np.int32), np.zeros(8, np.float32), 5)
    read = {"views": [View(photo)], "how": how, "size": size}
    (labels,) = labelling.label_maps([found], asked=asked, **read).values()
    assert np.array_equal(labels, known[f"{name}.labels"])
    (chances,) = labelling.score_maps([found], asked=asked, **read).values()
    if options["renormalised"]:
        chances = chances / np.sum(chances, axis=0, keepdims=True)
    # theirs of pearl is a float32 run of 25 steps that amplify rounding
    tolerance = 4e-3 if "cg_iterations" in options else 2e-5
    assert np.abs(chances - known[f"{name}.probabilities"]).max() < tolerance
    if f"{name}.logits" in known and "cg_iterations" not in options and "area" not in options:
        # a class for each word: what is left of cosines after a softmax is their differences
        each = words.Words.of_classes(text(), np.zeros(8, np.float32))
        (chances,) = labelling.score_maps([found], asked=each, **read).values()
        ours, theirs = np.log(chances) / options["scale"], known[f"{name}.logits"]
        assert np.abs((ours - ours[:1]) - (theirs - theirs[:1])).max() < 1e-5 * theirs.max()


@pytest.mark.parametrize("method", ["naclip", "resclip"])
def test_words_are_matched_together_where_they_must(method, monkeypatch):
    whole = logits(method, "image_slide", 32, 16)[method]
    monkeypatch.setattr(sliding, "WORDS", 3)
    logits.cache_clear()
    parts = logits(method, "image_slide", 32, 16)[method]
    assert relative_error(parts, whole) < 1e-5


def test_a_batch_is_its_images():
    both = jnp.concatenate([image("image_64x64"), image("image_64x64")[:, ::-1]])
    for method in ("resclip", "sc_clip"):
        segmenter = model(method=method)
        alone = [run(segmenter, x[None], text())[0] for x in both]
        assert relative_error(run(segmenter, both, text()), np.stack(alone)) < 1e-5


def test_sclips_rows_sum_to_two():
    tower = model().vision
    *_, tokens, _ = tower.stages(image("image_64x64"))
    query, key, _ = last_block.heads(tower.blocks[-1], tokens)
    assert np.allclose(last_block.both(query, key).sum(-1), 2.0, atol=1e-5)


def test_naclip_without_width_is_its_limit():
    # exp(−d²/2σ²) → 1 on the diagonal of patches, 0 elsewhere
    grid = last_block.neighbours((3, 4), 1e-3)
    assert np.array_equal(grid, np.diag([0.0] + [1.0] * 12).astype(np.float32))
    segmenter, photo = model(sigma=1e-3), image("image_56x88")
    block, (*_, tokens, _) = segmenter.vision.blocks[-1], segmenter.vision.stages(photo)
    _, key, value = last_block.heads(block, tokens)
    own = jnp.eye(78).at[0, 0].set(0.0)[None, None]
    weights = jax.nn.softmax(last_block.logits(key, key) + own, axis=-1)
    pixels = segmenter.vision.project(last_block.mix(block, weights, value)[:, 1:])
    pixels = pixels / jnp.linalg.norm(pixels, axis=-1, keepdims=True)
    cosines = jnp.einsum("bmc, kc -> bkm", pixels, text()[:, 0]).reshape(1, 8, 7, 11)
    assert relative_error(run(segmenter, photo, text()), cosines) < 5e-6
    # and a Gaussian without end is a constant over patches
    wide = last_block.neighbours((3, 4), 1e6)
    assert np.allclose(wide[1:, 1:], 1.0)
    assert not wide[0].any()
    assert not wide[:, 0].any()


def test_maskclip_is_a_tower_whose_last_attention_is_the_identity():
    segmenter = model(method="maskclip")
    block, photo = segmenter.vision.blocks[-1], image("image_56x88")
    *_, tokens, _ = segmenter.vision.stages(photo)
    moved = block.attention.out(block.attention.value(block.ln_1(tokens)))[:, 1:]
    pixels = segmenter.vision.project(moved)
    pixels = pixels / jnp.linalg.norm(pixels, axis=-1, keepdims=True)
    cosines = jnp.einsum("bmc, kc -> bkm", pixels, text()[:, 0]).reshape(1, 8, 7, 11)
    assert relative_error(run(segmenter, photo, text()), cosines) < 5e-6


def test_plain_clip_is_the_tower_itself():
    segmenter = model(method="clip")
    *_, tokens = segmenter.vision.stages(image("image_64x64"))
    pixels = segmenter.vision.project(tokens)[:, 1:]
    pixels = pixels / jnp.linalg.norm(pixels, axis=-1, keepdims=True)
    cosines = jnp.einsum("bmc, kc -> bkm", pixels, text()[:, 0]).reshape(1, 8, 8, 8)
    assert relative_error(run(segmenter, image("image_64x64"), text()), cosines) < 5e-6


def test_text_equals_the_authors():
    tokens = expected("text_tokens")
    embedded = embed(authors_clip().build_text(), tokens.reshape(24, 16), shape=(8, 3))
    assert relative_error(average(jnp.asarray(embedded)), expected("text_features")) < 1e-5


@pytest.mark.parametrize("method", ["sc_clip", "resclip", "pearl"])
def test_a_photo_of_one_colour_has_finite_scores(method):
    photo = jnp.full((1, 64, 64, 3), 0.5)
    cosines = run(model(method=method), photo, text())
    assert np.isfinite(cosines).all()
    flat = jnp.full((3, 8, 8), 0.5)
    assert np.isfinite(pamr(cosines[0], flat)).all()
    assert np.isfinite(pearl.solve(np.asarray(cosines[0]), np.asarray(flat), text()[:, 0])).all()


def test_a_grid_of_one_colour_is_like_itself():
    """Rounding may put every cosine below their mean."""
    same = jnp.full((9, 9), 0.9)
    assert jnp.max(same) < jnp.mean(same)
    weights = sc_clip.as_attention(same)
    assert np.isfinite(weights).all()


def test_templates_are_averaged():
    several = jax.random.normal(jax.random.key(0), (3, 4, 5))
    several = several / jnp.linalg.norm(several, axis=-1, keepdims=True)
    mean = np.asarray(several).mean(1)
    unit = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    assert relative_error(average(several), unit) < 1e-6


def test_pamr_is_a_plain_loop():
    rng = np.random.default_rng(0)
    photo = rng.normal(size=(3, 5, 6)).astype(np.float32)
    scores = rng.normal(size=(2, 5, 6)).astype(np.float32)

    def at(array, y, x):
        return array[:, min(max(y, 0), 4), min(max(x, 0), 5)]

    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    moved = np.zeros_like(scores)
    for y in range(5):
        for x in range(6):
            all_of = [at(photo, y + d * a, x + d * b) for d in (1, 3) for a, b in around]
            sd = np.std(all_of, axis=0, ddof=1)
            near = [(d * a, d * b) for d in (1, 3) for a, b in around if (a, b) != (0, 0)]
            like = [
                -np.mean(np.abs(at(photo, y + a, x + b) - photo[:, y, x]) / (1e-8 + 0.1 * sd))
                for a, b in near
            ]
            weight = np.exp(like - np.max(like))
            weight /= weight.sum()
            moved[:, y, x] = sum(
                w * at(scores, y + a, x + b) for w, (a, b) in zip(weight, near, strict=True)
            )
    ours = pamr(jnp.asarray(scores), jnp.asarray(photo), dilations=(1, 3), iterations=1)
    assert relative_error(ours, moved) < 1e-5


@pytest.mark.parametrize("name", ["pearl_slide", "pearl_slide_grid16"])
def test_propagation_equals_the_authors(name):
    """To 1e-5 as it is run, of their float64; their float32 drifts further."""
    how, size = inference(name), tuple(RUNS[name]["size"])
    (found,) = logits("pearl", "image_slide", how.window, how.stride).values()
    asked = words.Words.of_classes(text(), np.zeros(8, np.float32))
    views = [View(np.asarray(image("image_slide")[0]))]
    whole = stitching.of([found], views, asked, how, size=size)
    parts = np.concatenate([whole.scores(part) for part in whole.parts()])
    theirs = expected(f"{name}.logits_f64")
    assert relative_error(parts[:8, : size[0], : size[1]], theirs) < 1e-5


def test_a_word_of_zeros_only_fills_up():
    filled = jnp.pad(text(), ((0, 3), (0, 0), (0, 0)))
    for method in ("naclip", "resclip"):
        segmenter = model(method=method)
        cosines = run(segmenter, image("image_64x64"), text())
        more = run(segmenter, image("image_64x64"), filled)
        assert relative_error(more[:, :8], cosines) < 5e-6
        assert not np.any(more[:, 8:])
    photo = np.asarray(resized(jnp.moveaxis(image("image_64x64")[0], -1, 0), (8, 8)))
    plain = pearl.solve(np.asarray(cosines[0]), photo, text()[:, 0])
    assert relative_error(pearl.solve(np.asarray(more[0]), photo, filled[:, 0])[:8], plain) < 1e-5


def read(scores, class_of, kept=(True,) * 5) -> words.Best:
    """The best of words that come one after the other."""
    best = words.nothing(*scores.shape[1:])
    for values, label in zip(scores, class_of.tolist(), strict=True):
        wins = jnp.asarray(label >= 0 and kept[label])
        best = words.compare(best, values, jnp.int32(label), wins)
    return best


def test_one_word_after_the_other_is_a_softmax_over_all():
    scores = 9 * jax.random.normal(jax.random.key(0), (8, 3, 4))
    class_of = expected("query_index").astype(np.int32)
    best, chances = read(scores, class_of), jax.nn.softmax(scores, axis=0)
    by_class = jax.ops.segment_max(chances, jnp.asarray(class_of), 5)
    assert np.array_equal(best.label, jnp.argmax(by_class, axis=0))
    assert relative_error(words.probability(best.score[None], best)[0], by_class.max(0)) < 1e-6
    # what only fills up is neither found nor counted
    filled = jnp.concatenate([scores, jnp.full((1, 3, 4), 99.0)])
    more = read(filled, np.append(class_of, np.int32(-1)))
    assert all(np.array_equal(x, y) for x, y in zip(more, best, strict=True))


@pytest.mark.parametrize("groups", [(), (2,)])
def test_all_words_at_once_are_as_one_after_the_other(groups):
    """Of scores in eighths many are equal; in two parts, with words that may not win."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.integers(0, 8, (9, 4, 5)) / 8, jnp.float32)
    labels = np.array([0, 1, 1, 2, 3, 4, 4, 5, -1], np.int32)
    wins = rng.random((9, *groups)) < 0.7
    wins[labels < 0] = False
    one = once = words.nothing(4, 5, groups=groups)
    for values, label, may_win in zip(scores, labels, wins, strict=True):
        one = words.compare(one, values, jnp.int32(label), jnp.asarray(may_win))
    for part in (slice(0, 4), slice(4, 9)):
        once = words.compare_all(
            once, scores[part], jnp.asarray(labels[part]), jnp.asarray(wins[part])
        )
    for x, y in zip(once, one, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_small_classes_go():
    label = np.ones((2, 5), np.int32)
    label[0, 0] = 2
    assert words.large(label, classes=3, share=0.1).tolist() == [True, True, False]
    assert words.large(label, classes=3, share=0.09).tolist() == [True, True, True]
    scores = jnp.zeros((3, 1, 1)).at[2].set(2.0).at[1].set(1.0)
    best = read(scores, np.arange(3, dtype=np.int32), kept=(True, True, False))
    # the next best, with the probability that it had among all
    assert best.label.item() == 1
    chance = words.probability(best.score[None], best).item()
    assert chance == pytest.approx(jax.nn.softmax(jnp.arange(3.0))[1].item())


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"method": "dino"}, "model.method='dino': choose one of naclip, maskclip"),
        ({"sigma": 0.0}, "model.sigma=0.0: wanted a number above 0"),
        ({"scale": float("nan")}, "model.scale=nan: wanted a number above 0"),
        ({"earlier_share": 1.5}, "model.earlier_share=1.5: wanted 0 to 1"),
    ],
)
def test_choices_that_do_not_exist(choices, problem):
    with pytest.raises(ValueError, match=problem):
        TrainingFreeConfig(**choices)


@pytest.mark.parametrize("method", EARLIER)
def test_a_tower_too_shallow_for_the_method(method):
    sizes = {"image_size": 16, "patch_size": 8, "width": 8, "heads": 2, "mlp_width": 8}
    vision = clip_module.VisionConfig(layers=4, embed_dim=4, **sizes)
    with pytest.raises(ValueError, match="the tower has 4 blocks: naclip works with any"):
        TrainingFreeConfig(method=method).build(vision, rngs=nnx.Rngs(0))
    TrainingFreeConfig(method="naclip").build(vision, rngs=nnx.Rngs(0))


def test_too_few_patches_for_sc_clip():
    with pytest.raises(ValueError, match="30 nearest of other patches, an image has 16"):
        model(method="sc_clip")(image("image_64x64")[:, :32, :32], text())
