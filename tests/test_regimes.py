"""Regimes against the authors' label maps; the tables of every vocabulary."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import DATA

from otseg_jax.data import regimes
from otseg_jax.data.classes import IGNORE, MOST_CLASSES
from otseg_jax.data.regimes import HIDDEN
from otseg_jax.training.pseudo_labels import relabel

TINY = np.load(DATA / "otseg_tiny_io.npz")
UNSEEN = (3, 5)


@pytest.mark.parametrize("name", ["inductive", "transductive"])
def test_table_equals_the_authors(name: str) -> None:
    regime = regimes.resolve(name, num_classes=7, unseen=UNSEEN)
    # they hide a class as -1 in both regimes, and ignore it later in the first
    theirs = TINY[f"{name}_label_map"]
    wanted = np.where(theirs == -1, IGNORE if name == "inductive" else HIDDEN, theirs)
    wanted = np.where(theirs == 255, IGNORE, wanted)
    ids = np.arange(256)
    labels = jnp.asarray(np.where(ids == 255, IGNORE, ids))
    ours = np.asarray(relabel(labels, regime.label_table))
    # 200 is a marker of theirs that no data set holds; it is an id like any other here
    np.testing.assert_array_equal(ours[ids != 200], wanted[ids != 200])
    assert ours[200] == wanted[199]
    assert regime.label_table.dtype == np.int16


@pytest.mark.parametrize("size", [20, 847, MOST_CLASSES])
@pytest.mark.parametrize("name", regimes.NAMES)
def test_table_against_a_loop(name: str, size: int) -> None:
    unseen = (size - 1, 2, 7)
    regime = regimes.resolve(name, num_classes=size, unseen=unseen)
    hidden = {"inductive": IGNORE, "transductive": HIDDEN, "supervised": None}[name]
    assert len(regime.label_table) == size + 1
    for k, entry in enumerate(regime.label_table[:size].tolist()):
        if k in unseen and hidden is not None:
            assert entry == hidden
        else:
            assert entry >= 0
            assert regime.classes[entry] == k
    assert regime.label_table[size] == (HIDDEN if name == "transductive" else IGNORE)


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


@pytest.mark.parametrize(
    ("name", "num_classes", "unseen", "told"),
    [
        ("zero-shot", 7, (1,), ["'zero-shot'", "inductive, transductive, supervised"]),
        ("inductive", 32769, (), ["32769", "1 to 32768"]),
        ("supervised", 0, (), ["0", "1 to 32768"]),
        ("inductive", 5, (5, -1), ["[-1, 5]", "0 to 4"]),
        ("transductive", 5, (2, 2), ["[2]", "more than once"]),
        ("inductive", 2, (0, 1), ["all 2 classes", "inductive"]),
        ("transductive", 2, (0, 1), ["all 2 classes", "transductive"]),
        ("mine", 0, (300, 300), ["'mine'", "1 to 32768", "[300]", "more than once"]),
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
