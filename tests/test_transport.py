"""The transport plans that a person looks at: those of the model, checked against the solver."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages.predict import PHOTO, segmenter

import otseg_jax
from otseg_jax.data.shapes import Shapes
from otseg_jax.predict.transport import plan


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(asked, whole, pixels, vectors):
    """Cosines of every patch of a window with the prompts of every word, in float64."""
    layer = asked.model.q_proj
    kernel, bias = np.float64(layer.kernel[...]), np.float64(layer.bias[...])
    queries = np.concatenate([whole * vectors, vectors], axis=-1) @ kernel + bias
    return np.einsum("vnc,mc->vmn", unit(queries), unit(pixels))


def run(asked, image, words):
    """What the model makes of a window, and its map of the MPS path."""
    model = asked.model
    whole = jax.jit(lambda image, text: (model.embed(image), model(image, text)["mps"][0]))
    pixels = (image[None, ..., :3] - np.array(asked.spec.mean)) / np.array(asked.spec.std)
    return whole(jnp.asarray(pixels, jnp.float32), asked.embed(words))


def scaled(similarity, epsilon=0.05):
    """The transport plan of a problem, by Sinkhorn's scaling of rows and columns in float64."""
    kernel = np.exp(similarity / epsilon)
    m, n = kernel.shape
    columns = np.ones(n)
    for _ in range(5000):
        rows = 1 / m / (kernel @ columns)
        columns = 1 / n / (kernel.T @ rows)
    return rows[:, None] * kernel * columns


def test_a_plan_is_that_of_the_model_and_solves_the_transport_problem():
    asked = otseg_jax.load("shapes")
    photo = Shapes("val", size=20)[1]["image"]
    words = ["plain purple cross", "striped red square|red thing"]
    found = plan(asked, photo, words, at=(70, 40))
    assert found.words == ("plain purple cross", "striped red square", "red thing")
    vectors = np.float64(asked.embed(words))
    (whole, pixels), mps = run(asked, asked.prepare(photo), words)
    similarity = by_hand(asked, np.float64(whole)[0], np.float64(pixels)[0], vectors)
    want = np.stack([scaled(one) for one in similarity])
    np.testing.assert_allclose(found.plan.reshape(want.shape), want, rtol=2e-5)
    # every patch gives away the same, every prompt takes the same
    m, n = want.shape[1:]
    np.testing.assert_allclose(found.plan.sum(axis=(1, 2)), 1 / n, rtol=1e-5)
    np.testing.assert_allclose(found.plan.sum(axis=3), 1 / m, rtol=1e-5)
    alignment = m * n * (want * similarity).sum(-1)
    np.testing.assert_allclose(found.alignment.reshape(3, m), alignment, atol=2e-5)
    # and is what the model goes by: the map of its MPS path
    np.testing.assert_allclose(found.alignment, mps, atol=2e-6)
    assert found.weight == 0.5
    assert found.at == (70 // 8, 40 // 8)
    np.testing.assert_allclose(found.shares, m * want[:, 8 * 12 + 5], rtol=2e-5)
    np.testing.assert_allclose(found.map(1, 2).ravel(), m * want[1, :, 2], rtol=2e-5)
    assert found.templates[0].replace("{}", found.words[0]) == "a photo of a plain purple cross."


def test_a_pixel_of_a_long_photo_is_found_in_the_window_that_is_filled_up():
    asked = otseg_jax.load("shapes")
    photo = np.tile(Shapes("val", size=20, image_size=192)[1]["image"], (1, 3, 1))
    found = plan(asked, photo, ["plain purple cross"], at=(100, 300))
    # 192 × 576 becomes 32 × 96 in a window of 96 × 96: its 12 × 12 patches are of 48 pixels
    assert found.box == (0, 0, 576, 576)
    assert found.at == (100 // 48, 300 // 48)


def test_of_several_windows_the_one_is_taken_in_whose_middle_the_pixel_lies():
    asked, words = segmenter(), ["sky"]
    asked.spec = replace(asked.spec, scale=(64.0, 64.0))  # windows of 32 from 0, 24 and 32
    photo = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    found = plan(asked, photo, words, at=(50, 10))
    assert found.box == (32, 0, 32, 32)
    assert found.at == ((50 - 32) // 8, 10 // 8)
    _, mps = run(asked, asked.prepare(photo)[32:, :32], words)
    np.testing.assert_allclose(found.alignment, mps, atol=2e-6)


def test_who_has_no_plan_says_so():
    alone = otseg_jax.load("shapes-clip")
    with pytest.raises(ValueError, match=r"no transport plan: .* mean of a word's templates"):
        plan(alone, PHOTO, ["sky"], at=(0, 0))
    with pytest.raises(ValueError, match=r"at=\(20, 0\): the photo has 20 × 30 pixels"):
        plan(segmenter(), PHOTO, ["sky"], at=(20, 0))
