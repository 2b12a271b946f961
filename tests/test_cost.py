"""What the cost table says: toys counted by hand, and the papers' numbers for both models."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import cost

multiply_adds = functools.cache(cost.count_multiply_adds)  # tracing takes seconds


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_a_toy_equals_the_count_by_hand():
    parameters = {"conv": shape(3, 3, 2, 4), "up": shape(4, 7), "loop": shape(7, 7)}

    def toy(parameters, image):
        strides, padding = (2, 2), "VALID"
        x = jax.lax.conv_general_dilated(
            image,
            parameters["conv"],
            strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.checkpoint(jax.jit(jnp.matmul))(x.reshape(-1, 4), parameters["up"])

        def body(x, _):
            return jnp.tanh(x @ parameters["loop"].astype(jnp.bfloat16)).astype(x.dtype), None

        x, _ = jax.lax.scan(body, x, length=5)
        return jnp.einsum("ic,jc->ij", x, x)

    # A 9×7 image gives 4×3 pixels of 4 channels, 3·3·2 multiply-adds each.
    assert cost.products(toy, parameters, shape(1, 9, 7, 2)) == [
        ("conv", 4 * 3 * 4 * 3 * 3 * 2),
        ("up", 12 * 4 * 7),
        ("loop", 5 * 12 * 7 * 7),
        ("", 12 * 12 * 7),
    ]


def test_grouped_convolution_and_batched_product():
    def toy(parameters, x):
        y = jax.lax.conv_general_dilated(
            x,
            parameters["kernel"],
            (1,),
            "SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=3,
        )
        return jnp.einsum("bwc,bvc->bwv", y, y)

    # 6 channels in 3 groups: an output reads 5 positions of 2 channels.
    assert cost.products(toy, {"kernel": shape(5, 2, 9)}, shape(2, 8, 6)) == [
        ("kernel", 2 * 8 * 9 * 5 * 2),
        ("", 2 * 8 * 8 * 9),
    ]


def test_a_loop_of_unknown_length_is_refused():
    def toy(kernel, x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ kernel, x)

    with pytest.raises(ValueError, match="within `while`"):
        cost.products(toy, shape(2, 2), shape(2, 2))


@pytest.mark.parametrize(("name", "published"), [("OTSeg", "61.9"), ("ZegCLIP", "61.1")])
def test_modules_alone_equal_the_published_digit(name, published):
    # the original puts 10 prompts through every block and drops what comes out
    dropped = 12 * 10 * 8 * 768**2
    assert f"{(multiply_adds(name)['modules_alone'] + dropped) / 1e9:.1f}" == published


@pytest.mark.parametrize(("name", "prompts"), [("OTSeg", 6), ("ZegCLIP", 1)])
def test_everything_equals_the_count_by_hand(name, prompts):
    tokens, seen, queries, pixels = 1 + 1024, 1 + 1024 + 10, 20 * prompts, 1024
    linear = tokens * (2 + 8) * 768**2 + seen * 2 * 768**2
    tower = 12 * (linear + 2 * tokens * seen * 768)
    ends = pixels * 16**2 * 3 * 768 + tokens * 768 * 512 + 12 * 10 * 768**2
    layer = 2 * (pixels + queries) * 512**2 + queries * 8 * 512**2 + 2 * queries * pixels * 512
    # of the MPS path, and what four plans move
    similarity = queries * pixels * (512 + 4) if name == "OTSeg" else 0
    expected = tower + ends + queries * 2 * 512**2 + 3 * layer + similarity
    assert multiply_adds(name)["everything"] == expected


def test_trainable_parameters_are_the_published_ones_less_the_unused():
    counts = cost.count_parameters("OTSeg")
    # The authors' layers also store a self-attention and a norm that nothing calls.
    unused = 3 * (4 * (512**2 + 512) + 2 * 512)
    assert f"{(counts['trainable']['all'] + unused) / 1e6:.1f}" == "13.8"


def test_the_committed_file_holds_these_counts():
    models = json.loads(Path(cost.__file__).with_suffix(".json").read_text())["models"]
    assert set(models) == set(cost.MODELS)
    for name, model in models.items():
        assert model["parameters"] == cost.count_parameters(name)
        assert model["multiply_adds"] == multiply_adds(name)
        assert model["images_per_second"] > 0
