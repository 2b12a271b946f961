"""Where a step's time goes, its operations a second, and the trace that is asked for."""

import json
import logging
import time

import jax
import jax.numpy as jnp
import pytest
import small

from otseg_jax import devices, sharding
from otseg_jax.training import loop, watch
from otseg_jax.training.watch import Watch

SIDE, STEPS = 384, 6


@pytest.fixture(scope="module")
def step():
    """Some ten milliseconds of products, which XLA does not see that it could leave out."""

    def products(x, number):
        for _ in range(24):
            x = jnp.sin(x @ x + number)
        return x

    return jax.jit(products).lower(jnp.zeros((SIDE, SIDE)), jnp.float32(0)).compile()


def run(step, *, data=0.0, host=0.0):
    """Figures of some steps that take this long beside the device, seconds."""
    seen = Watch(small.settings(), sharding.make_mesh(devices=jax.devices()[:1]))
    seen.compiled(step)
    x = jax.block_until_ready(step(jnp.ones((SIDE, SIDE)), jnp.float32(0)))
    seen.restart()
    began = time.perf_counter()
    for number in range(STEPS):
        with seen.waiting("data"):
            time.sleep(data)
        with seen.dispatching():
            x = step(x, jnp.float32(number))
        time.sleep(host)
    with seen.waiting("device"):
        jax.block_until_ready(x)
    figures, whole = seen.figures(), time.perf_counter() - began
    assert figures["step_seconds"] * STEPS == pytest.approx(whole, rel=0.2)
    return seen, figures


@pytest.mark.parametrize("slow", watch.PARTS)
def test_the_slow_part_is_named_and_the_parts_are_the_whole(step, slow, caplog):
    alone = run(step)[1]["device_seconds"]
    spent = {"data": 0.0, "host": 0.0} | ({} if slow == "device" else {slow: 4 * alone})
    seen, figures = run(step, **spent)
    parts = {part: figures[f"{part}_seconds"] for part in watch.PARTS}
    assert sum(parts.values()) == pytest.approx(figures["step_seconds"])
    assert parts[slow] > spent.get(slow, 0.0)
    assert figures["images_per_second"] * figures["step_seconds"] == pytest.approx(4)
    caplog.set_level(logging.INFO)
    assert seen.bottleneck == slow
    seen.tell()
    assert f"Bottleneck: {slow} ({watch.ADVICE[slow]})" in caplog.text
    assert seen.figures() == {}  # no step since
    assert figures.keys() | {"bottleneck", "peak_fraction"} == {*watch.FIGURES}


def test_operations_are_those_of_the_products_and_the_peak_is_the_devices(
    step, monkeypatch, caplog
):
    of_products = 24 * 2 * SIDE**3
    _, figures = run(step)
    counted = figures["flops_per_second"] * figures["step_seconds"]
    assert of_products <= counted <= 1.01 * of_products  # and some additions
    assert "peak_fraction" not in figures  # of a CPU
    best = 10 * figures["flops_per_second"]
    kind, peak = jax.devices()[0].device_kind, devices.Peak(best / 4, best / 2, best, 0.0, 0.0)
    monkeypatch.setattr(devices, "PEAKS", {kind: peak})
    seen, figures = run(step)
    assert figures["peak_fraction"] == pytest.approx(figures["flops_per_second"] / best)
    caplog.set_level(logging.INFO)
    seen.tell()
    assert f"{figures['peak_fraction']:.0%} of its peak" in caplog.text


# a type that jaxlib 0.12 reads a trace with
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_a_run_says_what_took_its_time_and_traces_its_steps(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    loop.train(small.settings(profile=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = {line["step"]: line for line in lines if "loss" in line}
    assert "step_seconds" not in steps[1]  # it compiles
    assert steps[4]["bottleneck"] in watch.PARTS
    assert "bottleneck" not in steps[2]
    assert all(
        steps[4][name] >= 0 for name in watch.FIGURES if name in steps[4].keys() - {"bottleneck"}
    )
    assert caplog.text.count("Bottleneck: ") == 1
    (found,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    events = [
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(found)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(events) == [2, 3]
