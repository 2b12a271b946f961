"""Regimes against the authors' label maps and their transductive losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DATA

from otseg_jax import losses, regimes

TINY = np.load(DATA / "otseg_tiny_io.npz")
ZEGCLIP = np.load(DATA / "zegclip_tiny_io.npz")
UNSEEN = (3, 5)
LABELS = jnp.asarray(TINY["labels"])


@pytest.mark.parametrize("name", ["inductive", "transductive"])
def test_table_equals_the_authors(name: str) -> None:
    regime = regimes.resolve(name, num_classes=7, unseen=UNSEEN)
    # they hide a class as -1 in both regimes, and ignore it later in the first
    hidden = losses.IGNORE if name == "inductive" else regimes.UNLABELLED
    theirs = TINY[f"{name}_label_map"]
    wanted = np.where(theirs == -1, hidden, theirs)
    # 200 is a marker of theirs that no data set holds; it is an id like any other here
    ids = np.arange(256) != 200
    np.testing.assert_array_equal(regime.label_table[ids], wanted[ids])
    assert regime.label_table.dtype == np.uint8


@pytest.mark.parametrize("name", regimes.NAMES)
def test_table_against_a_loop(name: str) -> None:
    regime = regimes.resolve(name, num_classes=20, unseen=(19, 2, 7))
    hidden = {"inductive": 255, "transductive": 254, "supervised": None}[name]
    for k in range(20):
        entry = regime.label_table[k]
        if k in (2, 7, 19) and hidden is not None:
            assert entry == hidden
        else:
            assert regime.classes[entry] == k
    rest = set(regime.label_table[20:255].tolist())
    assert rest == {254 if name == "transductive" else 255}
    assert regime.label_table[255] == losses.IGNORE


def test_what_a_step_gets() -> None:
    inductive, transductive, supervised = (
        regimes.resolve(name, num_classes=7, unseen=[5, 3]) for name in regimes.NAMES
    )
    assert inductive.classes == (0, 1, 2, 4, 6)
    assert transductive.classes == supervised.classes == tuple(range(7))
    assert (inductive.unseen, transductive.unseen, supervised.unseen) == ((), UNSEEN, ())
    assert (inductive.seen_offset, transductive.seen_offset, supervised.seen_offset) == (0.1, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        inductive.label_table[0] = 3


def test_nothing_unseen_is_supervised_everywhere() -> None:
    tables = [regimes.resolve(name, num_classes=9, unseen=()) for name in regimes.NAMES]
    for regime in tables:
        assert (regime.classes, regime.unseen) == (tuple(range(9)), ())
        np.testing.assert_array_equal(regime.label_table, tables[-1].label_table)


def test_largest_vocabulary_leaves_the_reserved_ids_alone() -> None:
    regime = regimes.resolve("supervised", num_classes=254, unseen=())
    np.testing.assert_array_equal(regime.label_table, [*range(254), 255, 255])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_relabel_looks_up_every_id(dtype: type) -> None:
    table = np.random.default_rng(0).permutation(256).astype(np.uint8)
    labels = np.arange(256, dtype=dtype).reshape(1, 16, 16)
    relabelled = jax.jit(regimes.relabel)(jnp.asarray(labels), table)
    assert relabelled.dtype == jnp.int32
    np.testing.assert_array_equal(relabelled.ravel(), table)


@pytest.mark.parametrize("method", ["otseg", "zegclip"])
@pytest.mark.parametrize("name", ["inductive", "transductive"])
def test_losses_equal_the_authors(name: str, method: str) -> None:
    """The pseudo-labels themselves were not recorded: the losses computed with them were."""
    recording = {"otseg": TINY, "zegclip": ZEGCLIP}[method]
    path_keys = {"otseg": {"decoder": "decode.", "mps": "score."}, "zegclip": {"decoder": ""}}
    regime = regimes.resolve(name, num_classes=7, unseen=UNSEEN)
    logits = {path: jnp.asarray(recording[f"{name}_{path}_logits"]) for path in path_keys[method]}
    labels = regimes.relabel(LABELS, regime.label_table)
    labels = regimes.pseudo_label(logits["decoder"], logits.get("mps"), labels, regime.unseen)
    pairs = losses.count_pairs(labels, len(regime.classes))
    for path, key in path_keys[method].items():
        theirs = {
            term: recording[f"{name}_loss.{key}{term}"]
            for term in ("loss_mask", "loss_dice", "acc_seg")
        }
        terms = losses.segmentation(logits[path], labels)
        # float32 sums over 2,048 pixels and 7 classes, in another order than theirs
        np.testing.assert_allclose(terms["focal"] / pairs, theirs["loss_mask"], rtol=2e-6)
        np.testing.assert_allclose(terms["dice"] / pairs, theirs["loss_dice"], rtol=2e-6)
        accuracy = losses.pixel_accuracy(logits[path], labels)
        np.testing.assert_allclose(100 * accuracy, theirs["acc_seg"], rtol=1e-6)


def pseudo_label_by_loop(decoder, mps, labels, unseen):
    result = np.array(labels)
    for b, y, x in np.argwhere(result == 254):
        best = -np.inf
        for k in unseen:
            z = decoder[b, k, y, x] if mps is None else (decoder[b, k, y, x] + mps[b, k, y, x]) / 2
            if z > best:
                best, result[b, y, x] = z, k
    return result


@pytest.mark.parametrize("with_mps", [True, False])
def test_pseudo_labels_against_a_loop(with_mps: bool) -> None:
    rng = np.random.default_rng(1)
    decoder, mps = rng.normal(size=(2, 2, 6, 5, 4)).astype(np.float32)
    labels = rng.choice([0, 1, 254, 254, 255], size=(2, 5, 4)).astype(np.int32)
    second = mps if with_mps else None
    args = (jnp.asarray(decoder), None if second is None else jnp.asarray(second))
    got = regimes.pseudo_label(*args, jnp.asarray(labels), (2, 3, 5))
    np.testing.assert_array_equal(got, pseudo_label_by_loop(decoder, second, labels, (2, 3, 5)))
    assert set(np.unique(got)) == {0, 1, 2, 3, 5, 255}


def test_confident_logits_do_not_tie() -> None:
    """In float32 σ(20) = σ(30) = 1."""
    logits = jnp.array([0.0, 20.0, 30.0]).reshape(1, 3, 1, 1)
    labels = jnp.full((1, 1, 1), regimes.UNLABELLED, jnp.int32)
    assert regimes.pseudo_label(logits, None, labels, (1, 2)).item() == 2


def test_weight_of_the_mps_path() -> None:
    decoder, mps = jnp.array([[1.0, 0.0], [0.0, 3.0]]).reshape(2, 1, 2, 1, 1)
    labels = jnp.full((1, 1, 1), regimes.UNLABELLED, jnp.int32)
    chosen = [
        regimes.pseudo_label(decoder, mps, labels, (0, 1), mps_weight=w).item()
        for w in (0.0, 0.24, 0.26, 0.5, 1.0)
    ]
    assert chosen == [0, 0, 1, 1, 1]


def test_no_gradient_flows_through_pseudo_labels() -> None:
    labels = jnp.array([[[254, 0], [1, 255]]], jnp.int32)
    logits = jax.random.normal(jax.random.key(0), (1, 4, 2, 2))

    def loss(z: jax.Array, fixed: jax.Array | None) -> jax.Array:
        made = regimes.pseudo_label(z, z, labels, (2, 3)) if fixed is None else fixed
        return sum(losses.segmentation(z, made).values())

    fixed = regimes.pseudo_label(logits, logits, labels, (2, 3))
    ours, wanted = jax.grad(loss)(logits, None), jax.grad(loss)(logits, fixed)
    np.testing.assert_array_equal(ours, wanted)
    assert np.abs(ours).max() > 0


def test_one_step_serves_every_regime() -> None:
    """Nothing to pseudo-label: the labels come back as they are, traced or not."""
    labels = jnp.array([[[0, 1, 255]]], jnp.int32)
    logits = jnp.zeros((1, 2, 1, 3))
    step = jax.jit(lambda z, y: regimes.pseudo_label(z, None, y, ()))
    np.testing.assert_array_equal(step(logits, labels), labels)


@pytest.mark.parametrize(
    ("name", "num_classes", "unseen", "told"),
    [
        ("zero-shot", 7, (1,), ["'zero-shot'", "inductive, transductive, supervised"]),
        ("inductive", 255, (), ["255", "1 to 254"]),
        ("supervised", 0, (), ["0", "1 to 254"]),
        ("inductive", 5, (5, -1), ["[-1, 5]", "0 to 4"]),
        ("transductive", 5, (2, 2), ["[2]", "more than once"]),
        ("inductive", 2, (0, 1), ["all 2 classes", "inductive"]),
        ("transductive", 2, (0, 1), ["all 2 classes", "transductive"]),
        ("mine", 300, (300, 300), ["'mine'", "1 to 254", "[300]", "more than once"]),
    ],
)
def test_bad_arguments(name: str, num_classes: int, unseen: tuple[int, ...], told: list[str]):
    with pytest.raises(ValueError, match=r"^regime: ") as error:
        regimes.resolve(name, num_classes=num_classes, unseen=unseen)
    for part in told:
        assert part in str(error.value)


def test_every_vocabulary_resolves() -> None:
    for entry in json.loads((DATA / "classes.json").read_text()).values():
        size, unseen = len(entry["classes"]), entry["unseen"]
        regime = regimes.resolve("inductive", num_classes=size, unseen=unseen)
        assert sorted({*regime.classes, *unseen}) == list(range(size))
        assert not {*regime.classes} & {*unseen}
