"""A configuration so small that a whole run takes seconds: shapes, 32 pixels, two blocks."""

import ml_collections

from configs import shapes
from otseg_jax import build
from otseg_jax.settings import Settings


def config(regime: str = "inductive", **fields) -> ml_collections.ConfigDict:
    """The shapes configuration, shrunk; `fields` are set by dotted name."""
    config = shapes.get_config(regime)
    small = {
        "data.crop": 32,
        "data.scale": (32, 32),
        "data.images.train": 24,
        "data.images.val": 6,
        "clip.source": "random",
        "clip.random.patch_size": 8,
        "clip.random.embed_dim": 16,
        "clip.random.vision": {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64},
        "clip.random.text": {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32},
        "text.templates": ("a photo of a {}.", "a part of a {}."),
        "text.cache": "",
        "model.prompt_tokens": 3,
        "model.decoder_layers": 2,
        # implicit compiles for longer; what they differ in, test_otseg and test_implicit look at
        "model.sinkhorn": "unrolled",
        "model.iterations": 20,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.warmup": 2,
        "train.log_every": 1,
        "train.eval_every": 0,
        "train.checkpoint_every": 100,
        "eval.batch_size": 4,
        "eval.scale": (32, 32),
        "eval.stride": 24,
    }
    update(config, small | fields)
    return config


def settings(regime: str = "inductive", **fields) -> Settings:
    """The same as plain settings."""
    return build.settings_of(config(regime, **fields))


def update(config: ml_collections.ConfigDict, fields: dict) -> None:
    """Set fields by dotted name, new ones too."""
    with config.unlocked():
        for name, value in fields.items():
            *groups, leaf = name.split(".")
            node = config
            for group in groups:
                node = node[group]
            node[leaf] = value
