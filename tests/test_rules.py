"""The rename table: exact coverage both ways, and the way back."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from oracles import torch

from otseg_jax.models.modules import Modules
from otseg_jax.weights.clip import resize_position_embedding
from otseg_jax.weights.names import assign, fingerprint, flatten
from otseg_jax.weights.rules import Rule, fill, invert, linear, norm

RULES = [
    Rule("conv.weight", "conv/kernel", (2, 3, 1, 0)),
    *linear("fc", "fc"),
    *norm("ln", "ln"),
    *[Rule("in_proj_weight", f"{n}/kernel", (1, 0), (i, 3)) for i, n in enumerate("qkv")],
    *[Rule("in_proj_bias", f"{n}/bias", part=(i, 3)) for i, n in enumerate("qkv")],
]
SOURCE_SHAPES = {
    "conv.weight": (5, 3, 2, 4),
    "fc.weight": (6, 4),
    "fc.bias": (6,),
    "ln.weight": (4,),
    "ln.bias": (4,),
    "in_proj_weight": (12, 5),
    "in_proj_bias": (12,),
}
TARGET_SHAPES = {
    "conv/kernel": (2, 4, 3, 5),
    "fc/kernel": (4, 6),
    "fc/bias": (6,),
    "ln/scale": (4,),
    "ln/bias": (4,),
    **{f"{name}/kernel": (5, 4) for name in "qkv"},
    **{f"{name}/bias": (4,) for name in "qkv"},
}


def source():
    rng = np.random.default_rng(0)
    return {n: rng.normal(size=shape).astype(np.float32) for n, shape in SOURCE_SHAPES.items()}


def target():
    return {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in TARGET_SHAPES.items()}


def test_every_entry_lands_where_torch_would_use_it():
    arrays = source()
    leaves = fill(RULES, arrays, target())
    assert leaves["conv/kernel"][1, 3, 2, 4] == arrays["conv.weight"][4, 2, 1, 3]
    assert leaves["fc/kernel"][3, 5] == arrays["fc.weight"][5, 3]
    x = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)
    stacked = torch.nn.functional.linear(
        torch.tensor(x),
        torch.tensor(arrays["in_proj_weight"]),
        torch.tensor(arrays["in_proj_bias"]),
    )
    for name, want in zip("qkv", stacked.chunk(3, -1), strict=True):
        got = x @ leaves[f"{name}/kernel"] + leaves[f"{name}/bias"]
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_invert_gives_the_source_back():
    arrays = source()
    back = invert(list(reversed(RULES)), fill(RULES, arrays, target()))
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_leaves_have_the_dtype_that_the_model_wants():
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in source().items()}
    leaves = fill(RULES, arrays, target())
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(leaves["fc/bias"], arrays["fc.bias"].astype(np.float32))


def test_unused_names_may_be_there_or_not():
    arrays = {**source(), "logit_scale": np.zeros(())}
    leaves = fill(RULES, arrays, target(), unused=["logit_scale", "position_ids"])
    assert set(leaves) == set(TARGET_SHAPES)


def test_all_problems_are_told_at_once():
    arrays, wanted = source(), target()
    arrays["surplus"] = arrays.pop("fc.bias")
    wanted["new/leaf"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    del wanted["ln/scale"]
    wanted["q/bias"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    arrays["conv.weight"] = np.zeros((5, 3), np.float32)
    arrays["in_proj_weight"] = np.zeros((13, 5), np.float32)
    rules = [*RULES, Rule("ln.bias", "ln/bias")]
    with pytest.raises(ValueError, match=r"problem\(s\) in weights") as error:
        fill(rules, arrays, wanted)
    message = str(error.value)
    for line in (
        "unmapped: surplus is in the source, no rule takes it",
        "missing: fc.bias is not in the source",
        "unfilled: no rule gives new/leaf",
        "unknown: the model has no ln/scale",
        "twice: 2 rules give ln/bias",
        "parts: ln.bias is taken as [(0, 1), (0, 1)], wanted each of its parts once",
        "shape: q/bias wants (5,), in_proj_bias (12,) does not give it",
        "shape: conv/kernel wants (2, 4, 3, 5), conv.weight (5, 3) does not give it",
        "shape: q/kernel wants (5, 4), in_proj_weight (13, 5) does not give it",
    ):
        assert line in message
    # in_proj_weight cannot be cut into three: each of its three leaves is named
    assert message.startswith("11 problem(s)")


def test_a_part_left_out_is_a_problem():
    rules = [rule for rule in RULES if rule.target != "k/bias"]
    wanted = target()
    del wanted["k/bias"]
    with pytest.raises(ValueError, match=r"in_proj_bias is taken as \[\(0, 3\), \(2, 3\)\]"):
        fill(rules, source(), wanted)


def test_invert_tells_all_problems_at_once():
    leaves = fill(RULES, source(), target())
    leaves["extra"] = leaves.pop("ln/bias")
    rules = [rule for rule in RULES if rule.target != "v/bias"]
    with pytest.raises(ValueError, match=r"4 problem") as error:
        invert(rules, leaves)
    for line in (
        "unmapped: no rule takes extra",
        "unmapped: no rule takes v/bias",
        "missing: ln/bias is not in the leaves",
        "parts: in_proj_bias",
    ):
        assert line in str(error.value)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = Modules([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
        self.scale = nnx.Param(jnp.ones(3))


def test_assign_is_the_inverse_of_flatten():
    _, state = nnx.split(Net(nnx.Rngs(0)))
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(state).items()}
    assert len(leaves) == 23
    assert "blocks/10/kernel" in leaves
    abstract_graph, abstract = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
    filled = assign(abstract, leaves)
    model = nnx.merge(abstract_graph, filled)
    np.testing.assert_array_equal(model.blocks[10].kernel[...], leaves["blocks/10/kernel"])
    assert flatten(abstract)["scale"] == jax.ShapeDtypeStruct((3,), jnp.float32)
    assert jax.tree.structure(filled) == jax.tree.structure(state)


def test_assign_tells_all_problems_at_once():
    _, state = nnx.split(Net(nnx.Rngs(0)))
    leaves = flatten(state)
    leaves["scale"] = np.ones(4)
    leaves["blocks/11/bias"] = leaves.pop("blocks/0/bias")
    with pytest.raises(ValueError, match=r"3 problem") as error:
        assign(state, leaves)
    for line in ("unfilled: blocks/0/bias", "unknown: the model has no blocks/11/bias"):
        assert line in str(error.value)
    assert "shape: scale is (4,), wanted (3,)" in str(error.value)


def by_torch(embedding, grid):
    side = round((len(embedding) - 1) ** 0.5)
    square = torch.tensor(embedding[1:].T.reshape(1, -1, side, side))
    resized = torch.nn.functional.interpolate(square, (grid, grid), mode="bilinear")
    return np.concatenate([embedding[:1], resized[0].flatten(1).T.numpy()])


@pytest.mark.parametrize("grid", [1, 3, 14, 32])
def test_position_embedding_is_resized_as_torch_does(grid):
    embedding = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    got = resize_position_embedding(embedding, grid)
    np.testing.assert_allclose(got, by_torch(embedding, grid), atol=2e-6)


def test_real_position_embedding(clip_files):
    embedding = np.load(clip_files / "vit-b-16-pos_emb_197x768.npy").astype(np.float32)
    got = resize_position_embedding(embedding, 32)
    np.testing.assert_allclose(got, by_torch(embedding, 32), atol=1e-6)
    np.testing.assert_array_equal(resize_position_embedding(embedding, 14), embedding)


@pytest.mark.parametrize("rows", [0, 1, 12])
def test_position_embedding_that_is_not_square(rows):
    with pytest.raises(ValueError, match=f"{rows} rows, wanted 1 \\+ a square"):
        resize_position_embedding(np.zeros((rows, 4), np.float32), 3)


def test_fingerprint_depends_on_everything_but_order():
    leaves = {"a": np.zeros(6, np.float32), "b": np.ones((2, 2), np.float32)}
    others = [
        {"a": leaves["a"], "c": leaves["b"]},
        {"a": leaves["a"].reshape(2, 3), "b": leaves["b"]},
        {"a": leaves["a"].view(np.int32), "b": leaves["b"]},
        {"a": leaves["a"], "b": np.nextafter(leaves["b"], 2)},
        {"a": leaves["a"].astype(ml_dtypes.bfloat16), "b": leaves["b"]},
    ]
    prints = [fingerprint(leaves), fingerprint(leaves, config=1), *map(fingerprint, others)]
    assert len(set(prints)) == 7
    assert fingerprint(dict(reversed(leaves.items()))) == prints[0]
    strided = np.asfortranarray(leaves["b"])
    assert fingerprint({**leaves, "b": strided}) == prints[0]
