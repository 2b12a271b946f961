"""Losses against the authors' numbers and torch autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DATA, torch

from otseg_jax.data.classes import IGNORE
from otseg_jax.training import losses

SEEN, UNSEEN = (0, 1, 2, 4, 6), (3, 5)
OTSEG, ZEGCLIP = np.load(DATA / "otseg_tiny_io.npz"), np.load(DATA / "zegclip_tiny_io.npz")
MAPS = {  # map → (file, its logits, prefix of its losses)
    "decoder": (OTSEG, "decoder_logits", "decode."),
    "mps": (OTSEG, "mps_logits", "score."),
    "zegclip": (ZEGCLIP, "decoder_logits", ""),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def labels_of(regime, file):
    """What the authors' program trained on, by hand: ids of seen classes, or pseudo-labels."""
    truth = np.where(OTSEG["labels"] == 255, IGNORE, OTSEG["labels"].astype(np.int32))
    if regime == "inductive":
        table = np.full(8, IGNORE, np.int32)  # 7 classes, and the index -1
        table[list(SEEN)] = np.arange(len(SEEN))
        return table[truth]
    logits = file["transductive_decoder_logits"]
    if file is OTSEG:
        logits = (logits + file["transductive_mps_logits"]) / 2
    guess = np.array(UNSEEN, np.int32)[sigmoid(logits[:, list(UNSEEN)]).argmax(axis=1)]
    return np.where(np.isin(truth, UNSEEN), guess, truth)


def torch_losses(logits, labels, *, alpha=0.25, gamma=2.0, smooth=1.0):
    """Focal and dice the way the papers write them, one-hot and float64."""
    classes = logits.shape[1]
    target = torch.stack([labels == index for index in range(classes)], 1).to(logits.dtype)
    p = torch.sigmoid(logits)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = alpha * target + (1 - alpha) * (1 - target)
    focal = (alpha_t * bce * (1 - p_t) ** gamma).flatten(2).mean(-1).sum()
    dice = logits.new_zeros(())
    for image in range(logits.shape[0]):
        for index in range(classes):
            t = target[image, index]
            if t.any():
                overlap = (p[image, index] * t).sum()
                total = p[image, index].sum() + t.sum()
                dice = dice + 1 - (2 * overlap + smooth) / (total + smooth)
    return focal, dice


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(3, 5, 9, 7)).astype(np.float32)
    labels = rng.choice([0, 1, 3, 4, IGNORE], size=(3, 9, 7)).astype(np.int32)  # class 2 is absent
    labels[1] = 3
    labels[2] = IGNORE
    return logits, labels


@pytest.mark.parametrize("regime", ["inductive", "transductive"])
@pytest.mark.parametrize("name", MAPS)
def test_losses_and_accuracy_are_the_authors(regime, name):
    file, key, prefix = MAPS[name]
    logits = jnp.asarray(file[f"{regime}_{key}"])
    labels = jnp.asarray(labels_of(regime, file))
    pairs = float(losses.count_pairs(labels, logits.shape[1]))
    result = losses.segmentation(logits, labels)
    expected = {part: file[f"{regime}_loss.{prefix}{part}"] for part in ("loss_mask", "loss_dice")}
    np.testing.assert_allclose(result["focal"] / pairs, expected["loss_mask"], rtol=2e-6)
    np.testing.assert_allclose(result["dice"] / pairs, expected["loss_dice"], rtol=2e-6)
    accuracy = losses.pixel_accuracy(jnp.argmax(logits, axis=1), labels)
    np.testing.assert_allclose(100 * accuracy, file[f"{regime}_loss.{prefix}acc_seg"], rtol=1e-6)


@pytest.mark.parametrize("regime", ["inductive", "transductive"])
def test_total_is_the_authors(regime):
    total = 0.0
    for name in ("decoder", "mps"):
        logits = jnp.asarray(OTSEG[f"{regime}_{MAPS[name][1]}"])
        labels = jnp.asarray(labels_of(regime, OTSEG))
        total += sum(losses.segmentation(logits, labels).values())
    pairs = losses.count_pairs(labels, logits.shape[1])
    np.testing.assert_allclose(total / pairs, OTSEG[f"{regime}_total"], rtol=2e-6)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.6, "gamma": 0.0}, {"gamma": 1.5}])
def test_focal_and_its_gradient_equal_torch(example, options):
    logits, labels = example
    value, gradient = jax.value_and_grad(losses.sigmoid_focal)(
        jnp.asarray(logits), jnp.asarray(labels), **options
    )
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    oracle, _ = torch_losses(leaf, torch.tensor(labels), **options)
    oracle.backward()
    np.testing.assert_allclose(value, oracle.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=2e-5, atol=1e-7 * leaf.grad.abs().max())


@pytest.mark.parametrize("options", [{}, {"smooth": 0.1}])
def test_dice_and_its_gradient_equal_torch(example, options):
    logits, labels = example
    value, gradient = jax.value_and_grad(losses.dice)(
        jnp.asarray(logits), jnp.asarray(labels), **options
    )
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    _, oracle = torch_losses(leaf, torch.tensor(labels), **options)
    oracle.backward()
    np.testing.assert_allclose(value, oracle.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=2e-5, atol=1e-7 * leaf.grad.abs().max())


@pytest.mark.parametrize("regime", ["inductive", "transductive"])
@pytest.mark.parametrize("name", MAPS)
def test_gradient_on_real_maps_equals_torch(regime, name):
    file, key, _ = MAPS[name]
    logits, labels = file[f"{regime}_{key}"], labels_of(regime, file)
    gradient = jax.grad(lambda z: sum(losses.segmentation(z, jnp.asarray(labels)).values()))(
        jnp.asarray(logits)
    )
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    focal, dice = torch_losses(leaf, torch.tensor(labels))
    (100 * focal + dice).backward()
    np.testing.assert_allclose(gradient, leaf.grad, rtol=0, atol=1e-6 * leaf.grad.abs().max())


def test_ignored_pixels_are_negatives_of_every_class_in_focal():
    logits = jnp.array([[[[0.0]], [[2.0]]]])
    p = sigmoid(np.array([0.0, 2.0]))
    expected = np.sum(0.75 * -np.log(1 - p) * p**2)
    result = losses.sigmoid_focal(logits, jnp.array([[[IGNORE]]]))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_weights_scale_the_terms(example):
    logits, labels = map(jnp.asarray, example)
    result = losses.segmentation(logits, labels, focal_weight=20.0, dice_weight=3.0)
    np.testing.assert_allclose(result["focal"], 20 * losses.sigmoid_focal(logits, labels), rtol=0)
    np.testing.assert_allclose(result["dice"], 3 * losses.dice(logits, labels), rtol=0)


def test_losses_of_small_batches_add_up(example):
    logits, labels = map(jnp.asarray, example)
    for measure in (
        losses.sigmoid_focal,
        losses.dice,
        lambda z, y: losses.count_pairs(y, z.shape[1]),
    ):
        parts = sum(measure(logits[i : i + 1], labels[i : i + 1]) for i in range(3))
        np.testing.assert_allclose(measure(logits, labels), parts, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [88.0, 1e4, 1e36])
def test_extreme_logits_keep_value_and_gradient_finite(size, gamma):
    logits = jnp.array([[[[size, -size], [size, -size]], [[-size, size], [0.0, size]]]])
    labels = jnp.array([[[0, 0], [1, IGNORE]]])
    focal = jax.value_and_grad(losses.sigmoid_focal)(logits, labels, gamma=gamma)
    dice = jax.value_and_grad(losses.dice)(logits, labels)
    for value, gradient in (focal, dice):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_confident_pixels_cost_nothing_and_wrong_ones_their_margin():
    logits = jnp.array([[[[50.0, 50.0]], [[-50.0, -50.0]]]])
    labels = jnp.array([[[0, 1]]])
    # left pixel right: 0; right pixel: class 0 is a false positive, class 1 a missed positive
    np.testing.assert_allclose(
        losses.sigmoid_focal(logits, labels), (0.75 * 50 + 0.25 * 50) / 2, rtol=1e-6
    )


def test_half_precision_logits_are_raised_first(example):
    logits, labels = map(jnp.asarray, example)
    half = logits.astype(jnp.bfloat16)
    for loss in (losses.sigmoid_focal, losses.dice):
        result = loss(half, labels)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, loss(half.astype(jnp.float32), labels), rtol=0)


def test_pairs_equal_a_plain_count(example):
    _, labels = example
    expected = sum(len(set(image.ravel().tolist()) - {IGNORE}) for image in labels)
    result = losses.count_pairs(jnp.asarray(labels), 5)
    assert result.dtype == jnp.float32
    assert result == expected


def test_nothing_labelled():
    logits = jnp.ones((2, 3, 4, 4))
    labels = jnp.full((2, 4, 4), IGNORE)
    assert losses.count_pairs(labels, 3) == 0
    assert losses.dice(logits, labels) == 0
    assert losses.pixel_accuracy(jnp.zeros_like(labels), labels) == 0
    assert not jax.grad(losses.dice)(logits, labels).any()


def test_pixel_accuracy_equals_a_plain_loop(example):
    logits, labels = example
    right = [
        logits[b, :, y, x].argmax() == labels[b, y, x]
        for b, y, x in np.ndindex(labels.shape)
        if labels[b, y, x] != IGNORE
    ]
    result = losses.pixel_accuracy(jnp.argmax(logits, axis=1), jnp.asarray(labels))
    np.testing.assert_allclose(result, np.mean(right), rtol=1e-6)


def test_ignored_pixel_is_never_right():
    guess = jnp.array([[[IGNORE, 4]]])
    assert losses.pixel_accuracy(guess, jnp.array([[[IGNORE, 0]]])) == 0


def test_ids_beyond_8_bits_are_classes_of_their_own():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 847, 4, 6)).astype(np.float32)
    labels = rng.choice([254, 255, 256, 511, 846, IGNORE], size=(2, 4, 6)).astype(np.int32)
    logits[0, 846, 0] = 9.0  # some pixels are right
    labels[0, 0] = 846
    focal, dice = torch_losses(torch.tensor(logits).double(), torch.tensor(labels))
    z, y = jnp.asarray(logits), jnp.asarray(labels)
    np.testing.assert_allclose(losses.sigmoid_focal(z, y), focal.item(), rtol=1e-6)
    np.testing.assert_allclose(losses.dice(z, y), dice.item(), rtol=1e-6)
    pairs = sum(len(set(image.ravel().tolist()) - {IGNORE}) for image in labels)
    assert losses.count_pairs(y, 847) == pairs
    right = (logits.argmax(1) == labels)[labels != IGNORE]
    assert right.any()
    np.testing.assert_allclose(
        losses.pixel_accuracy(jnp.argmax(z, axis=1), y), right.mean(), rtol=1e-6
    )


def test_label_dtype_does_not_matter(example):
    logits, labels = example
    for dtype in (np.int8, np.int16):
        for loss in (losses.sigmoid_focal, losses.dice):
            narrow = loss(jnp.asarray(logits), jnp.asarray(labels.astype(dtype)))
            assert narrow == loss(jnp.asarray(logits), jnp.asarray(labels))
