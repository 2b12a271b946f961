"""Sliding windows and scores against the authors' numbers, and photos of any size in one pass."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from oracles import numbers, reference_sinkhorn, relative_error

from otseg_jax import sharding
from otseg_jax.data.classes import Vocabulary
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling, metrics, sliding, stitching, stream, windows
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.placed import placed
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Words
from otseg_jax.models.otseg import TRAINABLE, OTSegConfig
from otseg_jax.models.outputs import upsample

VOCABULARY = Vocabulary(tuple(f"c{k}" for k in range(7)), unseen=tiny.UNSEEN)
OFFSET = np.where(np.isin(np.arange(7), tiny.SEEN), 0.1, 0.0).astype(np.float32)


HOW = Inference(
    method=OTSegConfig(),
    patch=8,
    window=32,
    stride=24,
    batch_size=4,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
)


def predictor(kind=sliding.Predict, **options):
    graphdef, trainable, frozen = nnx.split(tiny.otseg(**options), TRAINABLE, ...)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    runner = sliding.Runner(graphdef=graphdef, trainable=trainable, frozen=frozen, mesh=mesh)
    text = tiny.text("transductive")
    return kind(runner=runner, text=text, outputs=OTSegConfig().outputs(), how=HOW)


def asked():
    return Words.of_classes(tiny.text("transductive"), OFFSET)


def test_a_model_is_hashed_once_and_one_alike_compiles_nothing(monkeypatch, caplog):
    predict, other, image = predictor(), predictor(), np.asarray(tiny.image())
    predict(image)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        other(image)
    assert "Compiling" not in caplog.text
    monkeypatch.setattr(nnx.GraphDef, "__hash__", lambda _: pytest.fail("hashed again"))
    predict(image)


@pytest.mark.parametrize(
    ("regime", "offset"), [("inductive", OFFSET), ("transductive", 0 * OFFSET)]
)
def test_scores_equal_the_authors(regime, offset):
    predict = predictor(transport=reference_sinkhorn)
    logits = predict(np.asarray(tiny.image()))["otseg_plus"]
    ours = jax.nn.sigmoid(upsample(jnp.asarray(logits), (32, 32))) - offset[None, :, None, None]
    assert relative_error(ours, numbers("otseg_tiny_io")[f"scores_{regime}"]) < 1e-5


def slide(predict, image, size):
    """Scores of a whole image at `size`."""
    # one window at a time, as the authors do: their stop depends on what shares a batch
    logits = [predict(one[None])["otseg_plus"] for one in HOW.cut(image)]
    whole = [{"otseg_plus": np.concatenate(logits)}]
    return labelling.score_maps(whole, [View(image)], asked(), HOW, size=size)["otseg_plus"]


def test_sliding_windows_equal_the_authors():
    expected = numbers("otseg_tiny_io")
    predict = predictor(transport=reference_sinkhorn)
    image = np.asarray(tiny.image("image_slide")[0])
    native = slide(predict, image, (48, 72))
    assert relative_error(native, expected["scores_slide"][0]) < 1e-5
    rescaled = slide(predict, image, (60, 90))
    assert relative_error(rescaled, expected["scores_slide_rescaled"][0]) < 1e-5


def examples(sizes):
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        views = [View(rng.normal(size=(height, width, 3)).astype(np.float32))]
        label = rng.integers(0, 7, (2 * height, 2 * width)).astype(np.int16)
        yield stream.cut({"label": label, "name": str(number)}, views, HOW, classes=7)


def test_photos_of_any_size_share_batches():
    sizes = [(48, 72), (32, 32), (20, 90), (70, 33), (10, 10)]
    predict, found, batches = predictor(), {}, []

    class Counted(sliding.Predict):
        def embed(self, batch):
            batches.append(batch.shape)
            return super().embed(batch)

    tally = Tally(VOCABULARY, ["otseg", "otseg_plus"])
    stream.evaluate(
        predictor(Counted),
        examples(sizes),
        asked(),
        HOW,
        tally,
        total=len(sizes),
        on_photo=lambda number, example, maps: found.update({number: maps}),
    )
    results = tally.finished(dataset="", main="otseg").results
    assert set(batches) == {(4, 32, 32, 3)}, "one shape, so one compile"
    assert set(results) == {"otseg", "otseg_plus"}
    counts = np.zeros((7, 7), np.int64)
    for number, example in enumerate(examples(sizes)):
        height, width = sizes[number]
        image = np.pad(
            example["views"][0].image, ((0, max(32 - height, 0)), (0, max(32 - width, 0)), (0, 0))
        )
        # the plain way: the padded image alone, windows one by one, cut to the photo at the end
        expected = slide_plain(predict, image, (height, width), example["label"].shape)
        np.testing.assert_array_equal(found[number]["otseg_plus"], expected)
        counts += metrics.confusion(example["label"], expected, 7)
    summary = metrics.summary(counts, VOCABULARY.names, VOCABULARY.unseen)
    assert results["otseg_plus"] == summary


def test_a_swept_evaluation_finds_the_same_labels():
    """As one without, and at another offset what the curve says of it."""
    predict, sizes = predictor(), [(48, 72), (20, 40)]
    labelled, methods = OFFSET > 0, ["otseg", "otseg_plus"]

    def evaluated(asked, **options):
        maps, tally = {}, Tally(VOCABULARY, methods, **options)

        def on_photo(number, example, found):
            maps.update({(number, name): labels for name, labels in found.items()})

        stream.evaluate(predict, examples(sizes), asked, HOW, tally, total=2, on_photo=on_photo)
        return maps, tally.finished(dataset="", main="otseg")

    plain, one = evaluated(asked())
    swept, other = evaluated(asked(), labelled=labelled, offset=0.1)
    assert plain.keys() == swept.keys()
    for key, labels in plain.items():
        np.testing.assert_array_equal(labels, swept[key])
    assert not one.sweeps
    _, third = evaluated(replace(asked(), offset=OFFSET + np.float32(0.06) * labelled))
    for method in methods:
        curve = other.sweeps[method].curve(VOCABULARY.unseen)
        for evaluation, offset in ((one, 0.1), (third, 0.16)):
            place = int(np.flatnonzero(curve.offsets == offset)[0])
            found = evaluation.results[method]
            assert curve.harmonic[place] == pytest.approx(found["hiou"], abs=0.02)
            assert curve.seen[place] == pytest.approx(found["miou_seen"], abs=0.02)


@pytest.mark.parametrize("groups", [None, OFFSET > 0])
def test_all_words_at_once_find_the_same_labels(groups):
    """As on a GPU; a CPU compares them in bands of rows."""
    view, rng = View(np.zeros((70, 50, 3), np.float32)), np.random.default_rng(0)
    logits = rng.normal(size=(len(HOW.origins(view.size)), 7, 4, 4)).astype(np.float32)
    whole = stitching.of([logits], [view], asked(), HOW, size=(140, 100))
    kept = np.ones(7, bool) if groups is None else np.stack([groups, ~groups])
    one, other = (replace(whole, banded=way).best(kept, sums=True) for way in (True, False))
    inside = (..., slice(140), slice(100))
    np.testing.assert_array_equal(one.label[inside], other.label[inside])
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x[inside], y[inside], rtol=1e-5)


def test_words_one_after_the_other_have_the_scores_of_all_at_once(monkeypatch):
    """As on a CPU; a GPU takes all of them."""
    view, rng = View(np.zeros((70, 50, 3), np.float32)), np.random.default_rng(0)
    logits = rng.normal(size=(len(HOW.origins(view.size)), 7, 4, 4)).astype(np.float32)
    (grid,) = stitching.of([logits], [view], asked(), HOW, size=(140, 100)).layouts
    given = jnp.asarray(logits), jnp.asarray(OFFSET)
    one = grid.half(*given)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    np.testing.assert_allclose(one, grid.half(*given), rtol=0, atol=1e-6)


def test_batches_are_full_where_every_photo_is_one_window(monkeypatch):
    batches = []

    class Counted(sliding.Predict):
        def embed(self, batch):
            batches.append(np.any(batch, axis=(1, 2, 3)).sum())
            return batch

        def match(self, batch, *, height):
            return {"otseg": jnp.zeros((len(batch), 7, height // 8, 4))}

    def photos(sizes):
        batches.clear()
        predict, tally = predictor(Counted), Tally(VOCABULARY, ["otseg"])
        stream.evaluate(predict, examples(sizes), asked(), HOW, tally, total=len(sizes))
        return batches

    assert photos([(32, 32)] * 20) == [4] * 5
    # one of another size waits for others like it, and then goes alone
    monkeypatch.setattr(Inference, "window_size", lambda how, size: (size[0], 32))
    assert sorted(photos([(24, 32)] + [(32, 32)] * 20)) == [1] + [4] * 5


def test_a_batch_is_embedded_before_the_photos_of_the_one_before_are_counted():
    done = []

    class Told(sliding.Predict):
        def embed(self, batch):
            done.append("embed")
            return super().embed(batch)

        def match(self, embedded, *, height):
            done.append("match")
            return super().match(embedded, height=height)

    class Counting(Tally):
        def count(self, canvas, best):
            done.append("count")
            return super().count(canvas, best)

    tally = Counting(VOCABULARY, ["otseg", "otseg_plus"])
    stream.evaluate(predictor(Told), examples([(32, 32)] * 12), asked(), HOW, tally, total=12)
    one, counted = ["match", "embed"], ["count"] * 4
    assert done == ["embed", *one, *counted, *one, *counted, "match", *counted]


def test_equal_arrays_are_one_on_the_device():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    given = placed({"one": array, "other": array.copy(), "none": None})
    assert given["one"] is given["other"]
    assert given["none"] is None
    others = array.view(np.float32), array.reshape(3, 2), array.T
    for other in (array, *others, np.float32(0.5)):
        found = placed(other)
        assert (found.dtype, found.shape) == (other.dtype, np.shape(other))
        np.testing.assert_array_equal(found, other)


def slide_plain(predict, image, size, output):
    height, width = image.shape[:2]
    total, weight = np.zeros((7, height, width)), np.zeros((height, width))
    for y, x in windows.grid(*size, window=32, stride=24):
        z = jnp.asarray(predict(image[None, y : y + 32, x : x + 32])["otseg_plus"])
        found = jax.nn.sigmoid(upsample(z, (32, 32)))[0] - OFFSET[:, None, None]
        total[:, y : y + 32, x : x + 32] += found
        weight[y : y + 32, x : x + 32] += 1
    mean = (total / weight)[:, : size[0], : size[1]].astype(np.float32)
    resized = jax.image.resize(mean, (7, *output), "bilinear", antialias=False)
    return np.argmax(np.asarray(resized), axis=0)
