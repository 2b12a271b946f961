"""Meshes, what is split over them, and what devices exchange in steps and predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import exchange
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from experiments import sharding as inspection
from otseg_jax import sharding

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def exchanged():
    """What `exchange.py` prints."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # programs from there have no text
    command = [sys.executable, TESTS / "exchange.py"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
    return json.loads(ended.stdout)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_mesh_that_does_not_fit_names_the_fields():
    with pytest.raises(ValueError, match=r"mesh\.data=3 × mesh\.model=1.*4 device"):
        sharding.make_mesh(data=3)
    with pytest.raises(ValueError, match=r"mesh\.model=3"):
        sharding.make_mesh(model=3)


def test_blocks_are_split_by_heads_and_hidden_channels_and_the_rest_is_whole():
    block = {
        "attention": {
            "query": {"kernel": shape(8, 8), "bias": shape(8)},
            "out": {"bias": shape(8)},
        },
        "mlp": {"up": {"kernel": shape(8, 32)}, "down": {"kernel": shape(32, 8)}},
        "ln_1": {"scale": shape(8)},
    }
    tower = {"vision": {"blocks": {0: block}, "projection": {"kernel": shape(8, 8)}}}
    found = sharding.of_tower(sharding.make_mesh(model=2), tower, heads=2)
    split = {name: where.spec for name, where in nested(found).items() if where.spec != jax.P()}
    assert split == {
        "vision/blocks/0/attention/query/kernel": jax.P(None, "model"),
        "vision/blocks/0/attention/query/bias": jax.P("model"),
        "vision/blocks/0/mlp/up/kernel": jax.P(None, "model"),
        "vision/blocks/0/mlp/down/kernel": jax.P("model"),
    }
    alone = sharding.of_tower(sharding.make_mesh(model=1), tower, heads=2)
    assert all(where.spec == jax.P() for where in nested(alone).values())


def nested(tree):
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in paths}


def test_heads_that_devices_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"mesh\.model=4 does not divide.* 2 .*one of 1, 2$"):
        sharding.of_tower(sharding.make_mesh(model=4), {}, heads=2)


@pytest.mark.parametrize("model", [1, 2])
def test_rows_are_worked_on_where_they_lie(model):
    mesh, x = sharding.make_mesh(model=model), jnp.arange(4.0 * 3 * 2).reshape(4, 3, 2)

    def cumulated(x):  # a loop over rows and over heads
        assert x.shape == (model, 3, 2 // model)
        return jnp.stack([jnp.cumsum(row, axis=0) for row in x])

    with jax.set_mesh(mesh):
        found = jax.jit(lambda x: sharding.own_rows(cumulated, x, heads=2))(x)
    np.testing.assert_array_equal(found, np.cumsum(x, axis=1))


def test_rows_that_devices_cannot_share_and_no_mesh_change_nothing():
    assert sharding.own_rows(jnp.shape, jnp.zeros((3, 2))) == (3, 2)
    with jax.set_mesh(sharding.make_mesh()):
        assert sharding.own_rows(jnp.shape, jnp.zeros((3, 2))) == (3, 2)


def test_devices_exchange_gradients_and_nothing_else(exchanged):
    """Along `data`; along `model`, what leaves a block's attention and its MLP."""
    rows = exchanged["steps"]
    for row, (fields, devices, model) in zip(rows, exchange.STEPS, strict=True):
        assert row["mesh"] == {"data": devices // model, "model": model}
        check_exchange(row, small.settings(**fields))
    # what one device holds does not grow with their number
    for name in ("held_bytes", "own_bytes", "collectives"):
        assert rows[0][name] == rows[1][name]
    split = split_entries(small.settings().clip.random.vision)
    assert rows[0]["held_bytes"] - rows[2]["held_bytes"] == pytest.approx(2 * split, abs=64 * 32)


def test_predictions_are_made_where_windows_lie(exchanged):
    """Along `data` logits are gathered, and nothing else; along `model` it is as in a step."""
    found = exchanged["predictions"]
    for programs, (config, _) in zip(found, exchange.PREDICTIONS, strict=True):
        entries = 4 * 5 * 36
        logits = ["all-gather", "data", entries, 4 * entries, False]
        assert programs["jit__match"] == [logits] * len(config.outputs().mixtures)
        assert {(one[0], one[1]) for one in programs["jit__embed"]} == {("all-reduce", "model")}
        assert len(programs) == 2


def check_exchange(row, options):
    vision, parts, model = (
        options.clip.random.vision,
        options.train.accumulate,
        row["mesh"]["model"],
    )
    found = row["collectives"]
    assert {one["kind"] for one in found} == {"all-reduce"}
    assert {one["axes"] for one in found} == ({"data", "model"} if model > 1 else {"data"})
    assert {one["looped"] for one in found} == {parts > 1}
    gradients = [one for one in found if one["axes"] == "data"]
    # What follows the last scores has no gradient: of the last layer two projections, MLP, norms.
    # Prompts are the same for all images: their gradient may be summed before their projection.
    c = options.clip.random.embed_dim
    learning = row["trainable"] - (10 * c * c + 11 * c)
    entries = sum(one["entries"] * one["times"] for one in gradients)
    assert learning - vision.width * (vision.width + 1) <= entries <= learning + 16
    assert sum(one["times"] for one in gradients) == 2
    # images of a device and part × tokens of the tower's stream, and with prompts
    images, tokens = 2 // parts, 25 + 1
    seen = tokens + options.model.prompt_tokens
    sums = [one["entries"] * one["times"] for one in found if one["axes"] == "model"]
    # of a block, 2 forward, and backward those of query, key, value and the MLP; what enters the
    # first block has no gradient, hence none through its query
    block = 4 * tokens + 2 * seen
    stream = images * (vision.layers * block - tokens) * vision.width
    assert sum(sums) == (stream if model > 1 else 0)


def split_entries(sizes):
    kernels = 4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_width
    return sizes.layers * (kernels + 3 * sizes.width + sizes.mlp_width)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,2},{1,3}}", "data"),
        ("{{0,1},{2,3}}", "model"),
        ("[2,2]<=[4]", "model"),
        ("[2,2]<=[2,2]T(1,0)", "data"),
        ("[1,4]<=[4]", "data+model"),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_0'}", "data"),
        ("mesh['data'=2,'model'=2] {'model'}", "model"),
        ("{}", "data+model"),
        ("{{0,3},{1,2}}", "?"),
    ],
)
def test_collectives_are_read_in_every_way_that_xla_writes_them(groups, axes):
    program = f"""\
%body (p: f32[2]) -> f32[2] {{
  %a = (f32[2,3]{{1,0}}, /*index=1*/bf16[4]) all-reduce-start(%p), replica_groups={groups}, x=1
}}

%once (p: f32[2]) -> f32[2] {{
  %b = f32[] all-gather(%p), replica_groups={groups}, x=1
}}

ENTRY %main (p: f32[2]) -> f32[2] {{
  %w = f32[2] while(%p), condition=%c, body=%body
  ROOT %v = f32[2] while(%w), condition=%c, body=%once, x={{"known_trip_count":{{"n":"1"}}}}
}}
"""
    found = inspection.collectives(program, sharding.make_mesh(model=2))
    assert found == [("all-reduce", axes, 10, 32, True), ("all-gather", axes, 1, 4, False)]
