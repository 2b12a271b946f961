"""The roofline: toys by hand, a step's counts by XLA's own, and what the committed file says."""

import json

import jax
import jax.numpy as jnp
import pytest

from experiments import cost, scaling
from experiments.scaling import Machine, Setup, Work
from otseg_jax import devices

RECORD = json.loads(scaling.RESULT.read_text())


def test_a_step_takes_the_longer_of_multiply_adds_and_bytes():
    machine = Machine({"bfloat16": 100.0, "float32": 10.0}, bandwidth=8.0, elements=float("inf"))
    # 3 products limited by multiply-adds, 1 by bytes
    products = {("bfloat16", 200, 8): 2, ("float32", 40, 8): 1, ("float32", 10, 40): 1}
    done = Work(products, elements=16)
    assert done.multiply_adds == 2 * 200 + 40 + 10
    assert done.bytes == 2 * 8 + 8 + 40 + 16
    assert scaling.seconds(done, machine, 1.0) == 2 * 2.0 + 4.0 + 5.0 + 16 / 8
    slow = machine._replace(elements=2.0)
    assert scaling.seconds(done, slow, 0.5) == (2 * 2.0 + 4.0 + 5.0 + 16 / 2) / 2


def test_what_nothing_needs_and_what_loops_repeat_is_counted_as_it_runs():
    def loss(learning, frozen, x):
        hidden, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ frozen), None), x, length=3)
        return jnp.sum(hidden @ learning)

    def both(learning, frozen, x):  # as a custom rule does, whoever asks
        return jax.grad(loss, argnums=(0, 1))(learning, frozen, x)[0]

    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    jaxpr = jax.make_jaxpr(both)(square, square, square).jaxpr

    def counted(needed: bool) -> int:
        runs = cost.walk(jaxpr, {}, needed=needed)
        products = [run for run in runs if run.equation.primitive.name in cost.PRODUCTS]
        return sum(run.times * cost.multiply_adds(run.equation) for run in products)

    # 3 rounds and the gradient of what learns; else back through the rounds, too
    assert counted(needed=True) == (3 + 1) * 8**3
    assert counted(needed=False) > (3 + 1 + 3) * 8**3


def test_a_steps_count_follows_from_the_forward_pass():
    counts = json.loads(scaling.HERE.joinpath("cost.json").read_text())["models"]["OTSeg"]
    forward = counts["multiply_adds"]
    attention = forward["parts"]["attention, cosines (two activations)"]
    weights = forward["everything"] - attention
    (row,) = [
        row
        for row in RECORD["rows"]
        if [row[name] for name in ("dataset", "method", "regime")]
        == ["voc12", "OTSeg", "supervised"]
    ]
    # Backward, a frozen weight's product is done once more, for its input; of attention's two
    # products, one is done again and each has two gradients.
    assert row["multiply_adds"] == pytest.approx(2 * weights + 3.5 * attention, rel=0.02)


def test_predictions_follow_the_data_sheet():
    row = {"batch": 16, "steps": 3600, "memory": {"held": 1e9, "image": 2e9}}
    done = Work({("bfloat16", 10**12, 1): 1}, elements=0)
    kind = "NVIDIA H100 80GB HBM3"
    found = scaling.predicted(row, done, Setup(kind, 8, price=2.0, reached=(0.5, 1.0)))
    step = 2 * 2e12 / (0.5 * devices.PEAKS[kind].bfloat16)
    assert found["step_seconds"] == pytest.approx(step)
    assert found["hours"] == pytest.approx(step)
    assert found["cost"] == pytest.approx(step * 8 * 2.0)
    assert found["peak_fraction"] == pytest.approx(0.5)
    assert found["images_per_second"] == pytest.approx(2 / step)
    assert (found["gigabytes"], found["fits"]) == (5.0, True)


def test_the_committed_predictions_hold():
    """Within a quarter of what this kind of machine was measured to take; every run is there."""
    assert {abs(row["error"]) < 0.25 for row in RECORD["check"]["steps"]} == {True}
    assert len(RECORD["rows"]) == len(scaling.DATASETS) * len(scaling.DECODERS) * 3
    (voc, *_) = RECORD["rows"]
    assert (voc["dataset"], voc["method"], voc["regime"]) == ("voc12", "OTSeg", "inductive")
