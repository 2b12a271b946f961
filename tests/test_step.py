"""The training step: the same on one device and four, whole or in parts, and it learns."""

import jax
import numpy as np
import pytest
import small

from otseg_jax import build, sharding
from otseg_jax.data import pipeline
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.training import optim
from otseg_jax.training.step import State, make_train_step
from otseg_jax.weights import names

SHAPES = VOCABULARIES["shapes"]


def batch(size=4):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(size, 32, 32, 3)).astype(np.float32),
        # blocks of classes, seen and unseen, with ignored pixels between
        "label": np.kron(rng.integers(0, 20, (size, 4, 4)), np.ones((8, 8))).astype(np.int16),
    }


def one_step(*, devices, data, model, regime="inductive", steps=1, rate=1e-3, **fields):
    """Losses and updated weights after some steps on a grid of devices."""
    if devices > jax.device_count():
        pytest.skip(f"{devices} devices, and this machine has {jax.device_count()}")
    mesh = sharding.make_mesh(data=data, model=model, devices=jax.devices()[:devices])
    options = small.settings(regime, **fields)
    parts = build.assemble(options, SHAPES, mesh=mesh)
    if model > 1:
        kernel = parts.frozen["vision"]["blocks"][0]["mlp"]["up"]["kernel"][...]
        assert kernel.sharding.spec == jax.P(None, "model")
    optimizer = optim.make_optimizer(rate)
    whole = sharding.replicated(mesh)
    state = State(parts.trainable, jax.jit(optimizer.init, out_shardings=whole)(parts.trainable))
    step = make_train_step(
        parts.graphdef,
        optimizer,
        parts.regime,
        mesh=mesh,
        outputs=options.model.outputs(),
        mean=options.data.mean,
        std=options.data.std,
        accumulate=options.train.accumulate,
        seed=3,
    )
    placed = pipeline.put(batch(), sharding.by_image(mesh))
    history = []
    for number in range(steps):
        with jax.set_mesh(mesh):
            state, scalars = step(state, parts.frozen, parts.text, placed, np.int32(number))
        history.append({name: float(value) for name, value in scalars.items()})
    weights = {n: np.asarray(x) for n, x in names.flatten(state.trainable).items()}
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


def test_four_devices_equal_one():
    # MLPs wide enough to be worth splitting, or `model` would have nothing to do
    wide = {"clip.random.vision": {"width": 32, "layers": 2, "heads": 2, "mlp_width": 2048}}
    alone = one_step(devices=1, data=1, model=1, **wide)
    for data, model in ((4, 1), (2, 2)):
        spread = one_step(devices=4, data=data, model=model, **wide)
        assert_same(spread, alone, 1e-5)


def test_parts_of_a_batch_equal_the_whole():
    fields = {"regime": "transductive", "model.dropout": 0.0}  # each part draws its own dropout
    grid = {"devices": 2, "data": 2, "model": 1}
    whole = one_step(**grid, **fields)
    parts = one_step(**grid, **fields, **{"train.accumulate": 2})
    assert_same(parts, whole, 1e-5)


@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_one_batch_can_be_learned(decoder):
    fields = {"model.decoder": decoder, "model.dropout": 0.0, "model.sinkhorn": "implicit"}
    history, _ = one_step(
        devices=1, data=1, model=1, regime="supervised", steps=40, rate=3e-3, **fields
    )
    assert ("mps_focal" in history[0]) == (decoder == "mpsa")
    # the batch is noise on a tower that never learned: its loss falls, its accuracy only wanders
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]
    assert all(0.0 <= line["decoder_accuracy"] <= 1.0 for line in history)
