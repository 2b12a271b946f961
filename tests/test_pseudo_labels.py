"""Labels of a step against plain loops, and against the authors' transductive losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DATA

from otseg_jax.data import regimes
from otseg_jax.data.classes import IGNORE, MOST_CLASSES
from otseg_jax.data.regimes import HIDDEN
from otseg_jax.training import losses
from otseg_jax.training.pseudo_labels import pseudo_label, relabel

MIXTURES = {"otseg": {"decoder": 0.5, "mps": 0.5}, "zegclip": {"decoder": 1.0}}


def _load(name):
    recorded = dict(np.load(DATA / f"{name}_tiny_io.npz"))
    if "labels" in recorded:
        recorded["labels"] = np.where(recorded["labels"] == 255, IGNORE, recorded["labels"])
    return recorded


RECORDED = {"otseg": _load("otseg"), "zegclip": _load("zegclip")}
LABELS = jnp.asarray(RECORDED["otseg"]["labels"].astype(np.int16))
UNSEEN = (3, 5)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("size", [7, 847, MOST_CLASSES])
def test_relabel_looks_up_every_id(dtype: type, size: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.permutation(size + 1).astype(np.int16)
    labels = rng.integers(-3, min(2 * size, np.iinfo(dtype).max), (1, 64, 64)).astype(dtype)
    labels[0, 0] = np.linspace(0, size - 1, 64)
    labels[0, 1, :4] = [IGNORE, -2, size - 1, np.iinfo(dtype).max]
    relabelled = jax.jit(relabel)(jnp.asarray(labels), table)
    assert relabelled.dtype == jnp.int32
    wanted = [
        IGNORE if k < 0 else table[k] if k < size else table[size] for k in labels.ravel().tolist()
    ]
    np.testing.assert_array_equal(relabelled.ravel(), wanted)


def test_relabel_takes_narrow_labels() -> None:
    """The end of the table is no number of the dtype."""
    table = np.arange(1000, 1848, dtype=np.int16)
    for dtype in (np.uint8, np.int8):
        labels = jnp.asarray(np.array([0, 3, 127], dtype))
        np.testing.assert_array_equal(relabel(labels, table), [1000, 1003, 1127])


@pytest.mark.parametrize("name", regimes.NAMES)
def test_relabel_in_a_regime_of_847_classes(name: str) -> None:
    unseen = tuple(range(0, 847, 5))
    regime = regimes.resolve(name, num_classes=847, unseen=unseen)
    labels = np.arange(-1, 900).reshape(1, 17, 53).astype(np.int16)
    found = np.asarray(relabel(jnp.asarray(labels), regime.label_table))
    hidden = {"inductive": IGNORE, "transductive": HIDDEN, "supervised": None}[name]
    for k, position in zip(labels.ravel().tolist(), found.ravel().tolist(), strict=True):
        if k == IGNORE:
            assert position == IGNORE
        elif k >= 847:
            assert position == (HIDDEN if name == "transductive" else IGNORE)
        elif k in unseen and hidden is not None:
            assert position == hidden
        else:
            assert position >= 0
            assert regime.classes[position] == k


@pytest.mark.parametrize("method", ["otseg", "zegclip"])
@pytest.mark.parametrize("name", ["inductive", "transductive"])
def test_losses_equal_the_authors(name: str, method: str) -> None:
    """The pseudo-labels themselves were not recorded: the losses computed with them were."""
    recorded = RECORDED[method]
    keys = {"otseg": {"decoder": "decode.", "mps": "score."}, "zegclip": {"decoder": ""}}[method]
    regime = regimes.resolve(name, num_classes=7, unseen=UNSEEN)
    maps = {path: jnp.asarray(recorded[f"{name}_{path}_logits"]) for path in keys}
    labels = relabel(LABELS, regime.label_table)
    labels = pseudo_label(maps, labels, regime.unseen, mixture=MIXTURES[method])
    pairs = losses.count_pairs(labels, len(regime.classes))
    for path, key in keys.items():
        theirs = {
            term: recorded[f"{name}_loss.{key}{term}"]
            for term in ("loss_mask", "loss_dice", "acc_seg")
        }
        terms = losses.segmentation(maps[path], labels)
        # float32 sums over 2,048 pixels and 7 classes, in another order than theirs
        np.testing.assert_allclose(terms["focal"] / pairs, theirs["loss_mask"], rtol=2e-6)
        np.testing.assert_allclose(terms["dice"] / pairs, theirs["loss_dice"], rtol=2e-6)
        accuracy = losses.pixel_accuracy(jnp.argmax(maps[path], axis=1), labels)
        np.testing.assert_allclose(100 * accuracy, theirs["acc_seg"], rtol=1e-6)


def _by_loop(maps, labels, unseen):
    """The unseen class of the largest mean over the maps, at hidden pixels."""
    result = np.array(labels)
    for b, y, x in np.argwhere(result == HIDDEN):
        best = -np.inf
        for k in unseen:
            z = sum(z[b, k, y, x] for z in maps) / len(maps)
            if z > best:
                best, result[b, y, x] = z, k
    return result


@pytest.mark.parametrize("method", ["otseg", "zegclip"])
@pytest.mark.parametrize(("classes", "unseen"), [(6, (2, 3, 5)), (847, (2, 255, 256, 300, 846))])
def test_pseudo_labels_against_a_loop(method: str, classes: int, unseen: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    maps = {
        name: rng.normal(size=(2, classes, 5, 9)).astype(np.float32) for name in MIXTURES[method]
    }
    labels = rng.choice([0, 1, HIDDEN, HIDDEN, IGNORE], size=(2, 5, 9)).astype(np.int32)
    arrays = jax.tree.map(jnp.asarray, maps)
    got = pseudo_label(arrays, jnp.asarray(labels), unseen, mixture=MIXTURES[method])
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, _by_loop(maps.values(), labels, unseen))
    assert set(np.unique(got)) == {IGNORE, 0, 1, *unseen}


def test_maps_outside_the_mixture_do_not_vote() -> None:
    maps = {"decoder": jnp.array([1.0, 0.0]), "mps": jnp.array([0.0, 3.0])}
    maps = {name: z.reshape(1, 2, 1, 1) for name, z in maps.items()}
    labels = jnp.full((1, 1, 1), HIDDEN, jnp.int32)
    for weight, chosen in ((0.0, 0), (0.24, 0), (0.26, 1), (0.5, 1), (1.0, 1)):
        mixture = {"decoder": 1 - weight, "mps": weight}
        assert pseudo_label(maps, labels, (0, 1), mixture=mixture).item() == chosen
    assert pseudo_label(maps, labels, (0, 1), mixture={"decoder": 1.0}).item() == 0


def test_half_precision_maps_are_mixed_in_float32() -> None:
    """In bfloat16 the two sums would both be 50.5, and the first of them would win."""
    maps = {"decoder": jnp.array([100.0, 100.0]), "mps": jnp.array([1.0, 1.125])}
    maps = {name: z.reshape(1, 2, 1, 1).astype(jnp.bfloat16) for name, z in maps.items()}
    labels = jnp.full((1, 1, 1), HIDDEN, jnp.int32)
    assert pseudo_label(maps, labels, (0, 1), mixture=MIXTURES["otseg"]).item() == 1


def test_confident_logits_do_not_tie() -> None:
    """In float32 σ(20) = σ(30) = 1."""
    logits = jnp.array([0.0, 20.0, 30.0]).reshape(1, 3, 1, 1)
    labels = jnp.full((1, 1, 1), HIDDEN, jnp.int32)
    found = pseudo_label({"decoder": logits}, labels, (1, 2), mixture=MIXTURES["zegclip"])
    assert found.item() == 2


def test_no_gradient_flows_through_pseudo_labels() -> None:
    labels = jnp.array([[[HIDDEN, 0], [1, IGNORE]]], jnp.int32)
    logits = jax.random.normal(jax.random.key(0), (1, 4, 2, 2))

    def make(z: jax.Array) -> jax.Array:
        return pseudo_label({"decoder": z}, labels, (2, 3), mixture=MIXTURES["zegclip"])

    def loss(z: jax.Array, fixed: jax.Array | None) -> jax.Array:
        return sum(losses.segmentation(z, make(z) if fixed is None else fixed).values())

    ours, wanted = jax.grad(loss)(logits, None), jax.grad(loss)(logits, make(logits))
    np.testing.assert_array_equal(ours, wanted)
    assert np.abs(ours).max() > 0


def test_one_step_serves_every_regime() -> None:
    """Nothing to pseudo-label: the labels come back as they are, traced or not."""
    labels = jnp.array([[[0, 1, IGNORE]]], jnp.int32)
    logits = jnp.zeros((1, 2, 1, 3))
    step = jax.jit(lambda z, y: pseudo_label({"decoder": z}, y, (), mixture={"decoder": 1.0}))
    np.testing.assert_array_equal(step(logits, labels), labels)
