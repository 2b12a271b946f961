"""The whole model against the authors' numbers: embeddings, logits, scores, losses, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from oracles import authors_labels, numbers, reference_sinkhorn, relative_error

from otseg_jax.data import regimes
from otseg_jax.models import decoder
from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import TRAINABLE, OTSeg, OTSegConfig
from otseg_jax.models.outputs import upsample, upsampled_argmax
from otseg_jax.training.step import loss_sums
from otseg_jax.weights import mmseg, names

REGIMES = ("inductive", "transductive")


def run(model, image, text, *, key=None):
    """The model's forward pass, compiled: op by op it takes three times as long."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state: nnx.merge(graphdef, state)(image, text, key=key))(state)


def pixels(name: str) -> np.ndarray:
    array = numbers("otseg_tiny_io")[name]
    return array.reshape(*array.shape[:2], -1).transpose(0, 2, 1)


@pytest.mark.core
@pytest.mark.parametrize("suffix", ["", "_40x24"], ids=["native", "40x24"])
def test_embeddings_equal_the_authors(suffix):
    expected = numbers("otseg_tiny_io")
    graphdef, state = nnx.split(tiny.otseg())
    image = tiny.image(f"image{suffix}")
    g, f = jax.jit(lambda state: nnx.merge(graphdef, state).embed(image))(state)
    assert relative_error(g, expected[f"global_embedding{suffix}"]) < 2e-6
    assert relative_error(f, pixels(f"visual_embedding{suffix}")) < 2e-6


@pytest.mark.core
def test_text_features_equal_the_authors():
    expected = numbers("otseg_tiny_io")
    raw = tiny.text_tower()(jnp.asarray(expected["text_tokens"]))
    assert relative_error(raw, expected["text_features_raw"]) < 2e-6
    features = decoder.normalize(raw).reshape(7, 4, 32)
    assert relative_error(features, expected["text_features"]) < 2e-6


@pytest.mark.core
@pytest.mark.parametrize("regime", REGIMES)
def test_logits_equal_the_authors(regime):
    expected = numbers("otseg_tiny_io")
    model = tiny.otseg(transport=reference_sinkhorn)
    logits = run(model, tiny.image(), tiny.text(regime))
    for name, value in logits.items():
        size = expected[f"{regime}_{name}_logits"]
        assert relative_error(upsample(value, (32, 32)), size) < 1e-5


@pytest.mark.parametrize("regime", REGIMES)
def test_converged_logits_are_near_the_authors(regime):
    expected = numbers("otseg_tiny_io")
    logits = run(tiny.otseg(), tiny.image(), tiny.text(regime))
    for name, value in logits.items():
        # 3e-4: all of it is the authors' early stop, see the test above
        error = relative_error(upsample(value, (32, 32)), expected[f"{regime}_{name}_logits"])
        assert 1e-5 < error < 3e-4


def loss_and_gradients(model, logits_of, regime_name):
    """Total loss, its parts and the gradient of every trainable leaf, as the training step does."""
    label = jnp.asarray(authors_labels())
    regime = regimes.resolve(regime_name, num_classes=7, unseen=tiny.UNSEEN)
    graphdef, trainable, frozen = nnx.split(model, TRAINABLE, ...)

    def total(trainable):
        logits = logits_of(nnx.merge(graphdef, trainable, frozen))
        loss, (terms, pairs, accuracies) = loss_sums(
            logits, label, regime, dict.fromkeys(logits, 1 / len(logits))
        )
        pairs = jnp.maximum(pairs, 1.0)
        parts = {name: value / pairs for name, value in terms.items()}
        return loss / pairs, parts | accuracies

    (value, parts), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(trainable)
    return value, parts, names.flatten(gradients)


def check_losses(parts, expected, prefixes):
    for ours, theirs in prefixes.items():
        for term, name in (("focal", "loss_mask"), ("dice", "loss_dice")):
            assert relative_error(parts[f"{ours}_{term}"], expected[f"{theirs}{name}"]) < 1e-4
        # the authors print percent
        accuracy = 100 * parts[f"{ours}_accuracy"]
        assert relative_error(accuracy, expected[f"{theirs}acc_seg"]) < 1e-6


def check_gradients(gradients, expected, prefix):
    rules = {
        rule.source: rule
        for rule in mmseg.otseg_rules(blocks=4, layers=3)
        if rule.target in gradients
    }
    theirs = {n.removeprefix(prefix): a for n, a in expected.items() if n.startswith(prefix)}
    for name, array in theirs.items():
        rule = rules.pop(name)
        ours = gradients[rule.target].transpose(rule.transpose or range(array.ndim))
        # a key's bias moves all logits of a softmax alike: the true gradient is 0, theirs rounding
        scale = max(np.abs(a).max() for a in theirs.values()) if ".k.bias" in name else None
        if scale is None:
            assert relative_error(ours, array) < 1e-4, name
        else:
            assert np.abs(ours - array).max() < 1e-4 * scale, name
    # what the authors' program has no gradient for, the last layer's unused half, has zero here
    for rule in rules.values():
        assert not np.any(gradients[rule.target]), rule.target


@pytest.mark.core
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_and_gradients_equal_the_authors(regime):
    expected = numbers("otseg_tiny_io")

    def logits_of(model):
        return model(tiny.image(), tiny.text(regime))

    model = tiny.otseg(transport=reference_sinkhorn)
    value, parts, gradients = loss_and_gradients(model, logits_of, regime)
    assert relative_error(value, expected[f"{regime}_total"]) < 1e-4
    prefixes = {"decoder": f"{regime}_loss.decode.", "mps": f"{regime}_loss.score."}
    check_losses(parts, expected, prefixes)
    check_gradients(gradients, expected, f"{regime}_grad.")


def test_implicit_gradients_are_the_limit_of_the_unrolled_ones():
    def logits_of(model):
        return model(tiny.image(), tiny.text("inductive"))

    value, _, gradients = loss_and_gradients(tiny.otseg(), logits_of, "inductive")
    unrolled = tiny.otseg(sinkhorn="unrolled", iterations=400)
    expected, _, limits = loss_and_gradients(unrolled, logits_of, "inductive")
    assert relative_error(value, expected) < 1e-5
    scale = max(np.abs(leaf).max() for leaf in limits.values())
    for name, leaf in gradients.items():
        # 1e-4 as above: float32 through four Sinkhorns; a true gradient of 0 is rounding in both
        assert np.abs(leaf - limits[name]).max() < 1e-4 * max(
            np.abs(limits[name]).max(), 1e-3 * scale
        )


@pytest.mark.parametrize("regime", REGIMES)
def test_zegclip_equals_the_authors(regime):
    expected = numbers("zegclip_tiny_io")
    text = jnp.asarray(expected["text_features"])[:, None]
    if regime == "inductive":
        text = text[jnp.array(tiny.SEEN)]
    g = jnp.asarray(numbers("otseg_tiny_io")["global_embedding"])
    f = jnp.asarray(pixels("visual_embedding"))

    def logits_of(model):
        return {"decoder": model.match(g, f, text)["decoder"].reshape(2, -1, 4, 4)}

    model = tiny.otseg(decoder="cross_attention")
    logits = upsample(logits_of(model)["decoder"], (32, 32))
    assert relative_error(logits, expected[f"{regime}_decoder_logits"]) < 1e-5
    _, parts, gradients = loss_and_gradients(model, logits_of, regime)
    check_losses(parts, expected, {"decoder": f"{regime}_loss."})
    of_head = {n: g for n, g in gradients.items() if not n.startswith("prompts/")}
    check_gradients(of_head, expected, f"{regime}_grad.")


VIT_B16 = VisionConfig(
    image_size=512, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, embed_dim=512
)


@pytest.mark.parametrize(("tokens", "expected"), [(10, 684_288), (100, 1_513_728)])
def test_prompt_parameters_are_the_papers(tokens, expected):
    model = nnx.eval_shape(
        lambda: OTSeg(VIT_B16, OTSegConfig(prompt_tokens=tokens), rngs=nnx.Rngs(0))
    )
    assert count(model.prompts) == expected


def test_decoder_parameters_are_the_papers():
    model = nnx.eval_shape(lambda: OTSeg(VIT_B16, rngs=nnx.Rngs(0)))
    c = 512
    # the paper counts the self-attention and norm1 that its program stores and never uses
    unused = 3 * (4 * c * c + 4 * c + 2 * c)
    assert count(model.decoder) + count(model.q_proj) == 13_136_896 - unused


def count(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def test_the_decoder_layers_start_as_copies():
    model = jax.jit(lambda: nnx.state(OTSeg(tiny.VISION, rngs=nnx.Rngs(0)).decoder))()
    state = model["layers"]
    layers = [names.flatten(state[i]) for i in range(3)]
    for name, leaf in layers[0].items():
        for other in layers[1:]:
            np.testing.assert_array_equal(leaf, other[name])


def test_initial_ranges():
    leaves = names.flatten(
        nnx.state(OTSeg(tiny.VISION, OTSegConfig(prompt_tokens=64), rngs=nnx.Rngs(0)))
    )
    bounds = {
        "prompts/first": (6 / (3 * 8**2 + 48)) ** 0.5,
        "prompts/deep": (6 / (3 * 8**2 + 48)) ** 0.5,
        "prompts/proj/bias": 48**-0.5,
        "q_proj/kernel": 64**-0.5,
        "decoder/layers/0/linear2/kernel": 128**-0.5,
    }
    for name, bound in bounds.items():
        largest = float(jnp.abs(leaves[name]).max())
        assert 0.9 * bound < largest <= bound, name
    # N(0, 2/fan_out) over 2,304 draws: the deviation is known to 1.5 %, three of them allowed
    np.testing.assert_allclose(leaves["prompts/proj/kernel"].std(), (2 / 48) ** 0.5, rtol=0.045)


def test_dropout_needs_a_key_and_differs_by_image():
    graphdef, state = nnx.split(tiny.otseg())
    same, text = jnp.repeat(tiny.image()[:1], 2, axis=0), tiny.text("inductive")
    forward = jax.jit(lambda key: nnx.merge(graphdef, state)(same, text, key=key)["decoder"])
    quiet, loud = forward(None), forward(jax.random.key(0))
    np.testing.assert_allclose(quiet[0], quiet[1], rtol=1e-5)
    assert relative_error(loud[0], loud[1]) > 1e-3
    np.testing.assert_array_equal(loud, forward(jax.random.key(0)))


def test_dropout_keeps_the_mean():
    x = jnp.ones((100, 100))
    dropped = decoder.dropout(x, 0.1, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, float(np.float32(1 / 0.9))}
    # 10,000 draws: the standard error of the mean is 0.0033
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.012)


def test_bfloat16_is_near_float32():
    exact = run(tiny.otseg(), tiny.image(), tiny.text("inductive"))
    model = tiny.otseg(dtype=jnp.bfloat16)
    coarse = run(model, tiny.image(), tiny.text("inductive"))
    # bf16 keeps 8 bits; the tiny model's weights are large on purpose
    for name, tolerance in (("mps", 0.1), ("decoder", 0.3)):
        assert coarse[name].dtype == jnp.float32
        assert relative_error(coarse[name], exact[name]) < tolerance


def test_bad_choices_name_the_field():
    with pytest.raises(ValueError, match=r"model\.decoder='softmax'"):
        OTSegConfig(decoder="softmax")
    with pytest.raises(ValueError, match=r"model\.sinkhorn='exact'.*implicit, unrolled"):
        OTSegConfig(sinkhorn="exact")
    with pytest.raises(ValueError, match=r"model\.prompt_blocks=5.*4 blocks"):
        OTSeg(tiny.VISION, OTSegConfig(prompt_blocks=5), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"model\.prompt_tokens=0"):
        OTSegConfig(prompt_tokens=0)
    with pytest.raises(ValueError, match=r"decoder_heads=5"):
        tiny.otseg(decoder="cross_attention", decoder_heads=5)
    with pytest.raises(ValueError, match="one prompt per class"):
        tiny.otseg(decoder="cross_attention")(tiny.image(), tiny.text("inductive"))


@pytest.mark.parametrize(
    ("cells", "size"), [((32, 32), (512, 512)), ((3, 5), (24, 40)), ((14, 14), (7, 9))]
)
def test_upsampling_equals_jax(cells, size):
    logits = np.random.default_rng(0).standard_normal((2, 3, *cells)).astype(np.float32)
    expected = jax.image.resize(logits, (2, 3, *size), "bilinear", antialias=False)
    np.testing.assert_allclose(upsample(jnp.asarray(logits), size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("classes", "size"), [(1, (7, 5)), (20, (40, 33)), (300, (8, 8))])
def test_upsampled_argmax_is_that_of_all_classes_at_once(classes, size):
    logits = np.random.default_rng(0).standard_normal((2, classes, 8, 6)).astype(np.float32)
    logits[1] = np.round(logits[1])  # of equals the first
    expected = jnp.argmax(upsample(jnp.asarray(logits), size), axis=1)
    np.testing.assert_array_equal(
        jax.jit(upsampled_argmax, static_argnums=1)(logits, size), expected
    )
