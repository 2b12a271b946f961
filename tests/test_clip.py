"""CLIP's towers against plain NumPy loops; transformers' own towers are in test_hugging_face.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from oracles import torch
from scipy.special import erf

from otseg_jax import sharding
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower, resize_positions
from otseg_jax.models.transformer import Block
from otseg_jax.weights.names import assign, flatten

VISION = {"image_size": 16, "patch_size": 4, "width": 24, "layers": 3, "heads": 4}
VISION |= {"mlp_width": 40, "embed_dim": 20}
LARGE_MLP = {"layers": 2, "mlp_width": 2**16}  # times 17 tokens: more than 2**20
TEXT = {"vocab_size": 30, "context_length": 9, "width": 16, "layers": 2, "heads": 2}
TEXT |= {"mlp_width": 24, "embed_dim": 20}


def randomised(make):
    """Every leaf drawn anew: at initialisation biases are 0 and norms 1, and would hide a swap."""
    rng = np.random.default_rng(7)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    leaves = {
        name: rng.normal(size=leaf.shape) * leaf.shape[0] ** -0.5 + name.endswith("scale")
        for name, leaf in flatten(state).items()
    }
    return nnx.merge(graphdef, assign(state, leaves))


def vision_tower(*, dtype=jnp.float32, remat=False, double_class_embedding=True, **sizes):
    config = VisionConfig(**{**VISION, **sizes})
    return randomised(
        lambda: VisionTower(
            config,
            double_class_embedding=double_class_embedding,
            dtype=dtype,
            remat=remat,
            rngs=nnx.Rngs(0),
        )
    )


def text_tower(*, dtype=jnp.float32):
    return randomised(lambda: TextTower(TextConfig(**TEXT), dtype=dtype, rngs=nnx.Rngs(0)))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def norm_by_hand(x, leaves, name, eps):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * leaves[f"{name}/scale"] + leaves[f"{name}/bias"]


def block_by_hand(x, leaves, name, config):
    """One image, one head at a time."""

    def linear(x, layer):
        return x @ leaves[f"{name}/{layer}/kernel"] + leaves[f"{name}/{layer}/bias"]

    y = norm_by_hand(x, leaves, f"{name}/ln_1", config.eps)
    query, key, value = (linear(y, f"attention/{part}") for part in ("query", "key", "value"))
    size, mixed = config.width // config.heads, []
    for head in range(config.heads):
        part = slice(head * size, (head + 1) * size)
        weight = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
        mixed.append(weight / weight.sum(1, keepdims=True) @ value[:, part])
    x = x + linear(np.concatenate(mixed, 1), "attention/out")
    y = linear(norm_by_hand(x, leaves, f"{name}/ln_2", config.eps), "mlp/up")
    quick = config.activation == "quick_gelu"
    y = y / (1 + np.exp(-1.702 * y)) if quick else y * (1 + erf(y / np.sqrt(2))) / 2
    return x + linear(y, "mlp/down")


def encode_by_hand(tower, image, prompts, *, times):
    """float64, one image and one patch at a time; `times` counts the class embedding."""
    config = tower.config
    leaves = {name: np.asarray(v, np.float64) for name, v in flatten(nnx.state(tower)).items()}
    patch, outputs = config.patch_size, []
    height, width = image.shape[1] // patch, image.shape[2] // patch
    position = leaves["position_embedding"]
    square = torch.tensor(position[1:].reshape(1, config.grid, config.grid, -1)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, (height, width), mode="bilinear")[0].numpy()
    for i, photo in enumerate(np.asarray(image, np.float64)):
        class_token = times * leaves["class_embedding"] + position[0]
        patches = [
            np.einsum(
                "hwc,hwcd->d",
                photo[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch],
                leaves["patch_embedding/kernel"],
            )
            + resized[:, y, x]
            for y in range(height)
            for x in range(width)
        ]
        tokens = norm_by_hand(np.stack([class_token, *patches]), leaves, "ln_pre", config.eps)
        for layer in range(config.layers):
            inserted = prompts is not None and layer < len(prompts)
            middle = np.asarray(prompts[layer][i]) if inserted else np.zeros((0, config.width))
            tokens = np.concatenate([tokens[:1], middle, tokens[1:][-height * width :]])
            tokens = block_by_hand(tokens, leaves, f"blocks/{layer}", config)
        outputs.append(np.concatenate([tokens[:1], tokens[-height * width :]]))
    return np.stack(outputs)


@pytest.mark.parametrize(
    ("size", "prompted", "options"),
    [
        ((16, 16), None, {}),
        ((16, 16), None, {"double_class_embedding": False, "activation": "gelu"}),
        ((16, 16), 1, {"heads": 3, "eps": 1e-2}),
        ((16, 16), 2, {}),
        ((16, 16), 3, {}),
        ((24, 12), 2, {"layers": 4, "patch_size": 3, "image_size": 12}),
        ((13, 30), 3, {}),
        ((4, 4), 2, {}),
        ((16, 16), 1, LARGE_MLP),
    ],
)
def test_encode_is_the_plain_loop(size, prompted, options):
    tower = vision_tower(**options)
    image = normal(2, *size, 3)
    prompts = None if prompted is None else normal(prompted, 2, 5, tower.config.width, seed=1)
    got = jax.jit(lambda image, prompts: tower.encode(image, prompts))(image, prompts)
    want = encode_by_hand(
        tower, image, prompts, times=1 + options.get("double_class_embedding", True)
    )
    assert got.dtype == jnp.float32
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_prompts_are_looked_at_and_go_through_no_block():
    tower, image, prompts = vision_tower(), normal(2, 16, 16, 3), normal(3, 2, 5, 24)
    stages = jax.eval_shape(lambda *inputs: [*tower.stages(*inputs)], image, prompts)
    assert [tokens.shape for tokens in stages] == [(2, 17, 24)] * 4


@pytest.mark.parametrize("remat", [False, True])
def test_large_images_are_one_after_the_other_on_a_cpu_only(remat):
    graphdef, state = nnx.split(vision_tower(remat=remat, **LARGE_MLP))
    image, prompts = normal(3, 16, 16, 3), normal(2, 3, 5, 24, seed=1)

    def trace(image, prompts):
        def run(state, image, prompts):
            tokens, pull = jax.vjp(nnx.merge(graphdef, state).encode, image, prompts)
            return tokens, pull(jnp.sin(tokens))

        return jax.jit(run).trace(state, image, prompts)

    traced = trace(image, prompts)
    on_cpu, on_gpu = (
        traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")
    )
    with jax.set_mesh(sharding.make_mesh()):
        split = trace(image, prompts).lower().as_text()
    whole, one = "tensor<3x17x65536xf32>", "tensor<1x17x65536xf32>"
    assert one in on_cpu
    for text in (on_gpu, split):
        assert one not in text
        assert whole in text

    got = traced.lower().compile()(state, image, prompts)
    alone = trace(image[:1], prompts[:, :1]).lower().compile()
    for i in range(3):
        tokens, gradients = alone(state, image[i : i + 1], prompts[:, i : i + 1])
        pairs = [(got[0][i], tokens[0]), (got[1][0][i], gradients[0][0])]
        for found, want in [*pairs, (got[1][1][:, i], gradients[1][:, 0])]:
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_a_large_tower_is_exported_for_any_number_of_images():
    tower, image = vision_tower(**LARGE_MLP), normal(3, 16, 16, 3)
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *image.shape[1:]), jnp.float32)
    platforms = {"cpu", "cuda", jax.default_backend()}
    exported = export.export(jax.jit(tower.encode), platforms=sorted(platforms))(shape)
    want = jax.jit(tower.encode)(image)
    for count in (1, 3):
        got = exported.call(image[:count])
        np.testing.assert_allclose(got, want[:count], rtol=0, atol=1e-6 * np.abs(want).max())


def test_project_is_norm_then_projection_of_every_token():
    tower, tokens = vision_tower(), normal(2, 7, 24)
    got = jax.jit(lambda tokens: tower.project(tokens))(tokens)
    leaves = {name: np.asarray(v, np.float64) for name, v in flatten(nnx.state(tower)).items()}
    want = norm_by_hand(np.asarray(tokens, np.float64), leaves, "ln_post", 1e-5)
    want = want @ leaves["projection/kernel"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("height", "width"), [(8, 8), (3, 7), (1, 1)])
def test_positions_are_resized_as_torch_does(height, width):
    embedding = normal(26, 6)
    square = torch.tensor(np.asarray(embedding[1:]).reshape(1, 5, 5, 6)).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(square, (height, width), mode="bilinear")
    got = resize_positions(embedding, height, width, grid=5)
    np.testing.assert_array_equal(got[0], embedding[0])
    np.testing.assert_allclose(got[1:], want[0].flatten(1).T.numpy(), atol=1e-6)


def test_native_positions_are_not_touched():
    embedding = normal(26, 6)
    assert resize_positions(embedding, 5, 5, grid=5) is embedding


def test_remat_changes_neither_values_nor_gradients():
    plain, remat = vision_tower(layers=6), vision_tower(layers=6, remat=True)
    image, prompts = normal(2, 16, 16, 3), normal(6, 2, 5, 24, seed=1)

    def loss(tower):
        graphdef, state = nnx.split(tower)
        weight = normal(2, 17, 20, seed=2)

        def run(state, image, prompts):
            model = nnx.merge(graphdef, state)
            return jnp.sum(weight * jnp.tanh(model.project(model.encode(image, prompts))))

        return jax.value_and_grad(run, argnums=(0, 1, 2)), state

    def stored(function, state):
        program = jax.jit(function).lower(state, image, prompts).compile()
        return program.memory_analysis().temp_size_in_bytes

    (one, state), (two, same_state) = loss(plain), loss(remat)
    # XLA for CPU undoes `jax.checkpoint`, so that the program is looked at and not its source
    assert stored(two, same_state) < 0.7 * stored(one, state)
    want, got = jax.jit(one)(state, image, prompts), jax.jit(two)(same_state, image, prompts)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(want[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, np.abs(b).max()))
    assert all(np.abs(layer).max() > 1e-3 for layer in want[1][2])


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    full, half = vision_tower(), vision_tower(dtype=jnp.bfloat16)
    image, prompts = normal(2, 16, 16, 3), normal(2, 2, 5, 24, seed=1)
    want, got = (
        jax.jit(lambda x, p, tower=tower: tower.project(tower.encode(x, p)))(image, prompts)
        for tower in (full, half)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    assert got.dtype == jnp.float32
    error = np.abs(got - want).max() / np.abs(want).max()
    # bfloat16 has 8 bits of mantissa: 0.4 % a product; below 1e-5 nothing would be bfloat16
    assert 1e-5 < error < 2e-2


def run(tower, tokens):
    return jax.jit(lambda tokens: tower(tokens))(tokens)


def test_bfloat16_text():
    tokens = jnp.array([[28, 1, 2, 29, 0, 0, 0, 0, 0]])
    full, half = (run(text_tower(dtype=dtype), tokens) for dtype in (jnp.float32, jnp.bfloat16))
    assert half.dtype == jnp.float32
    # as above
    assert 1e-5 < np.abs(full - half).max() / np.abs(full).max() < 2e-2


def test_text_is_causal_and_pooled_at_the_first_end():
    tower = text_tower()
    base = [28, 3, 4, 29, 0, 0, 0, 0, 0]
    padded, changed = [28, 3, 4, 29, 29, 7, 1, 29, 2], [28, 3, 5, 29, 0, 0, 0, 0, 0]
    one, two, three = run(tower, jnp.array([base, padded, changed]))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert np.abs(one - three).max() > 1e-2
    np.testing.assert_allclose(run(tower, jnp.array([base[:4]]))[0], one, rtol=1e-5, atol=1e-6)


def test_unknown_token_ids_give_nan():
    out = run(text_tower(), jnp.array([[28, 3, 29], [28, 3, 30]]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


def test_vit_b16_has_exactly_openais_parameters():
    vision = VisionConfig(
        image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, embed_dim=512
    )
    size = {"width": 512, "layers": 12, "heads": 8, "mlp_width": 2048, "embed_dim": 512}
    text = TextConfig(vocab_size=49408, context_length=77, **size)

    def count(make):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make))))

    assert count(lambda: VisionTower(vision, rngs=nnx.Rngs(0))) == 86_192_640
    # the published 149,620,737 of both, less the logit scale
    assert count(lambda: TextTower(text, rngs=nnx.Rngs(0))) == 149_620_736 - 86_192_640


def test_leaf_names():
    layers = [f"attention/{part}" for part in ("query", "key", "value", "out")]
    layers += ["mlp/up", "mlp/down"]
    block = {f"blocks/0/{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias")}
    block |= {f"blocks/0/{norm}/{leaf}" for norm in ("ln_1", "ln_2") for leaf in ("scale", "bias")}
    block |= {"position_embedding", "projection/kernel"}
    one_layer = VisionConfig(**{**VISION, "layers": 1}), TextConfig(**{**TEXT, "layers": 1})
    vision = nnx.eval_shape(lambda: VisionTower(one_layer[0], rngs=nnx.Rngs(0)))
    text = nnx.eval_shape(lambda: TextTower(one_layer[1], rngs=nnx.Rngs(0)))
    norms = {f"{norm}/{leaf}" for norm in ("ln_pre", "ln_post") for leaf in ("scale", "bias")}
    vision_only = {"class_embedding", "patch_embedding/kernel"} | norms
    text_only = {"token_embedding", "ln_final/scale", "ln_final/bias"}
    assert set(flatten(nnx.state(vision))) == block | vision_only
    assert set(flatten(nnx.state(text))) == block | text_only
    assert vision.patch_embedding.kernel.shape == (4, 4, 3, 24)


def test_initialisation_has_openais_spread():
    config = TextConfig(**{**TEXT, "width": 128, "heads": 2, "mlp_width": 512, "layers": 4})
    block = Block(config, causal=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    got = {name: np.std(leaf) for name, leaf in flatten(nnx.state(block)).items()}
    want = {
        "attention/query/kernel": 128**-0.5,
        "attention/out/kernel": 128**-0.5 * 8**-0.5,
        "mlp/up/kernel": 256**-0.5,
        "mlp/down/kernel": 128**-0.5 * 8**-0.5,
    }
    # 16,384 draws or more: a standard error of 0.6 % or less
    assert {name: got[name] for name in want} == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 24 is not a multiple of heads 5"),
        ({"layers": 0, "heads": 0}, r"layers is 0.*heads is 0"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"image_size": 3}, "image_size 3 is below patch_size 4"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        VisionConfig(**{**VISION, **change})


def test_inputs_that_do_not_fit():
    tower = vision_tower()
    with pytest.raises(ValueError, match=r"image is \(3, 16\) pixels, wanted at least 4"):
        tower.encode(normal(1, 3, 16, 3))
    with pytest.raises(ValueError, match="prompts hold 4 layers, the tower has 3 blocks"):
        tower.encode(normal(1, 16, 16, 3), normal(4, 1, 5, 24))
    text = text_tower()
    with pytest.raises(ValueError, match="10 tokens, the tower takes 9"):
        text(jnp.zeros((1, 10), jnp.int32))
