"""Configurations: the published settings in numbers, full-size shapes, and no unread field."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from flax import nnx

from configs import ade20k, coco_stuff, common, folder, pascal_context, shapes, voc12
from otseg_jax import experiment
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import OTSeg

FILES = {
    "voc12": voc12,
    "pascal_context": pascal_context,
    "coco_stuff": coco_stuff,
    "ade20k": ade20k,
    "folder": folder,
    "shapes": shapes,
}
REGIMES = ("inductive", "transductive", "supervised")

# the published settings: iterations by regime, crop, prompt tokens, templates, train and test
# resize, stride
TABLE = {
    "voc12": ((20_000, 10_000, 20_000), 512, 10, 6, (2048, 512), (2048, 512), 426),
    "pascal_context": ((40_000, 20_000, 40_000), 480, 10, 8, (520, 520), (2048, 520), 80),
    "coco_stuff": ((80_000, 40_000, 80_000), 512, 100, 8, (2048, 512), (2048, 512), 426),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_settings(name):
    steps, crop, tokens, templates, train_scale, test_scale, stride = TABLE[name]
    configs = [FILES[name].get_config(regime) for regime in REGIMES]
    assert tuple(config.train.steps for config in configs) == steps
    for config in configs:
        assert config.data.dataset == name
        assert config.data.crop == crop
        assert config.model.prompt_tokens == tokens
        assert len(config.text.templates) == templates
        assert tuple(config.data.scale) == train_scale
        assert tuple(config.eval.scale) == test_scale
        assert config.eval.stride == stride
        assert (config.train.batch_size, config.train.learning_rate) == (16, 2e-4)
        assert (config.data.mean, config.data.std) == common.IMAGENET


def test_ade20k_has_clips_normalisation():
    config = ade20k.get_config()
    assert (config.data.mean, config.data.std) == common.CLIP


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", FILES)
def test_configs_are_locked(name, regime):
    config = FILES[name].get_config(regime)
    assert isinstance(config, ml_collections.ConfigDict)
    assert config.regime == regime
    with pytest.raises(AttributeError, match="batchsize"):
        config.train.batchsize = 1


@pytest.mark.parametrize("name", ["voc12", "pascal_context", "coco_stuff", "ade20k"])
@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_full_size_shapes(name, decoder):
    config = FILES[name].get_config("supervised")
    config.model.decoder = decoder
    sizes = config.clip.random
    vision = VisionConfig(
        image_size=config.data.crop,
        patch_size=sizes.patch_size,
        embed_dim=sizes.embed_dim,
        **sizes.vision,
    )
    classes = len(VOCABULARIES[name])
    prompts = 1 if decoder == "cross_attention" else len(config.text.templates)
    crop = config.data.crop

    def run(image, text):
        return OTSeg(vision, **config.model, rngs=nnx.Rngs(0))(image, text)

    logits = jax.eval_shape(
        run, jnp.zeros((2, crop, crop, 3)), jnp.zeros((classes, prompts, sizes.embed_dim))
    )
    assert logits.decoder.shape == (2, classes, crop // 16, crop // 16)
    assert (logits.mps is None) == (decoder == "cross_attention")


def leaves(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_is_read_and_commented():
    package = Path(experiment.__file__).parent
    code = "\n".join(file.read_text() for file in package.rglob("*.py"))
    source = Path(common.__file__).read_text() + Path(shapes.__file__).read_text()
    for name in leaves(shapes.get_config()):
        group, _, leaf = name.rpartition(".")
        if group == "model":  # handed to the model as keywords
            pattern = rf"^        {leaf}: "
        elif group.startswith("clip.random"):
            pattern = rf'sizes\["({leaf}|vision|text)"\]'
        elif group.startswith("data.images"):
            pattern = r"data\.images\[split\]"
        else:
            pattern = rf"\b(config|data|train|options|{group.rpartition('.')[2]})\.{leaf}\b"
        assert re.search(pattern, code, re.MULTILINE), f"nothing reads {name}"
        assert re.search(rf'"{leaf}"|\.{leaf}\b', source), f"{name} is not in the configs"
