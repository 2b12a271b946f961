"""The training step: the same on one device and four, whole or in parts, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from otseg_jax import experiment, optim, sharding
from otseg_jax.data import pipeline
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.train_step import State, make_train_step
from otseg_jax.weights import table

MAKE_MESH = sharding.make_mesh
SHAPES = VOCABULARIES["shapes"]


def batch(size=4):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(size, 32, 32, 3)).astype(np.float32),
        # blocks of classes, seen and unseen, with ignored pixels between
        "label": np.kron(rng.integers(0, 20, (size, 4, 4)), np.ones((8, 8))).astype(np.uint8),
    }


def one_step(monkeypatch, *, devices, data, model, regime="inductive", steps=1, **fields):
    """Losses and updated weights after some steps on a grid of devices."""
    mesh = MAKE_MESH(data=data, model=model, devices=jax.devices()[:devices])
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
    # split even the small model's weights, or `model` would have nothing to do
    monkeypatch.setattr(sharding, "SPLIT_FROM", 64)
    config = small.config(regime, **fields)
    parts = experiment.assemble(config, SHAPES)
    if model > 1:
        kernel = parts.frozen["vision"]["blocks"][0]["mlp"]["up"]["kernel"][...]
        assert kernel.sharding.spec == jax.P(None, "model")
    optimizer = optim.make_optimizer(1e-3)
    whole = sharding.replicated(mesh)
    state = State(parts.trainable, jax.jit(optimizer.init, out_shardings=whole)(parts.trainable))
    step = make_train_step(
        parts.graphdef,
        optimizer,
        parts.regime,
        mesh=mesh,
        accumulate=config.train.accumulate,
        seed=3,
    )
    placed = pipeline.put(batch(), sharding.by_image(mesh))
    history = []
    for number in range(steps):
        state, scalars = step(state, parts.frozen, parts.text, placed, np.int32(number))
        history.append({name: float(value) for name, value in scalars.items()})
    weights = {n: np.asarray(x) for n, x in table.flatten(state.trainable).items()}
    return history, weights


def assert_same(one, other, tolerance):
    for ours, theirs in zip(one[0], other[0], strict=True):
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=tolerance, err_msg=name)
    for name, value in one[1].items():
        theirs = other[1][name]
        np.testing.assert_allclose(
            value, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name
        )


def test_four_devices_equal_one(monkeypatch):
    alone = one_step(monkeypatch, devices=1, data=1, model=1)
    for data, model in ((4, 1), (2, 2)):
        spread = one_step(monkeypatch, devices=4, data=data, model=model)
        assert_same(spread, alone, 1e-5)


def test_parts_of_a_batch_equal_the_whole(monkeypatch):
    fields = {"regime": "transductive", "model.dropout": 0.0}  # each part draws its own dropout
    grid = {"devices": 2, "data": 2, "model": 1}
    whole = one_step(monkeypatch, **grid, **fields)
    parts = one_step(monkeypatch, **grid, **fields, **{"train.accumulate": 2})
    assert_same(parts, whole, 1e-5)


@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_one_batch_can_be_learned(monkeypatch, decoder):
    fields = {"model.decoder": decoder, "model.dropout": 0.0, "model.sinkhorn": "implicit"}
    history, _ = one_step(
        monkeypatch, devices=1, data=1, model=1, regime="supervised", steps=40, **fields
    )
    assert ("mps_focal" in history[0]) == (decoder == "mpsa")
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["decoder_accuracy"] > history[0]["decoder_accuracy"]


def test_mesh_that_does_not_fit_names_the_fields():
    with pytest.raises(ValueError, match=r"mesh\.data=3 × mesh\.model=1.*4 device"):
        sharding.make_mesh(data=3)
    with pytest.raises(ValueError, match=r"mesh\.model=3"):
        sharding.make_mesh(model=3)


def test_small_and_indivisible_weights_stay_whole(monkeypatch):
    mesh = sharding.make_mesh(model=4)
    spec = {
        shape: sharding.by_weight(mesh, jax.ShapeDtypeStruct(shape, jnp.float32)).spec
        for shape in [(768, 3072), (3072, 768), (768,), (255, 257), (771, 3072)]
    }
    assert spec[768, 3072] == jax.P(None, "model")
    assert spec[3072, 768] == jax.P("model", None)
    assert spec[(768,)] == spec[255, 257] == jax.P()
    assert spec[771, 3072] == jax.P(None, "model")
