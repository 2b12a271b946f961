"""The authors' tiny model, loaded into ours: what parity tests of the whole model start from."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from oracles import DATA, numbers

from configs import common
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig
from otseg_jax.models.otseg import OTSeg, OTSegConfig
from otseg_jax.weights import mmseg, names, rules, torch_file

VISION = VisionConfig(
    image_size=32, patch_size=8, width=48, layers=4, heads=12, mlp_width=192, embed_dim=32
)
TEXT = TextConfig(
    vocab_size=64, context_length=12, width=32, layers=3, heads=8, mlp_width=128, embed_dim=32
)
UNSEEN = (3, 5)
SEEN = (0, 1, 2, 4, 6)


@functools.cache
def state_dict() -> dict[str, np.ndarray]:
    """Arrays of the authors' checkpoint by their names."""
    return torch_file.read(DATA / "otseg_tiny.pth")["state_dict"]


def select(prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state_dict().items() if name.startswith(prefixes)}


def otseg(*, transport=None, dtype=jnp.float32, **choices) -> OTSeg:
    """OTSeg with the authors' weights."""
    config = OTSegConfig(prompt_tokens=5, **choices)
    model = nnx.eval_shape(
        lambda: OTSeg(VISION, config, transport=transport, dtype=dtype, rngs=nnx.Rngs(0))
    )
    graphdef, state = nnx.split(model)
    leaves = rules.fill(
        mmseg.otseg_rules(blocks=4, layers=3),
        select(("backbone.", "decode_head.")),
        names.flatten(state),
        unused=mmseg.unused(layers=3),
    )
    return nnx.merge(graphdef, names.assign(state, leaves))


def text_tower() -> TextTower:
    """The text tower with the authors' weights."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: TextTower(TEXT, rngs=nnx.Rngs(0))))
    leaves = rules.fill(
        mmseg.text_rules(blocks=3), select(("text_encoder.",)), names.flatten(state)
    )
    return nnx.merge(graphdef, names.assign(state, leaves))


CLASSES = "name,split\n" + "".join(
    f"c{k},{'unseen' if k in UNSEEN else 'seen'}\n" for k in range(7)
)


def config(regime: str = "inductive", *, embeddings="", templates: int = 4):
    """What the authors' file does not tell, as a configuration; its classes are CLASSES."""
    config = common.defaults(regime, steps=10)
    config.update_from_flattened_dict(
        {
            "data.dataset": "folder",
            "data.crop": 32,
            "eval.stride": 24,
            "eval.scale": (96, 32),
            "text.templates": tuple(f"template {i}: {{}}" for i in range(templates)),
            "text.embeddings": str(embeddings),
            "text.cache": "",
        }
    )
    return ml_collections.ConfigDict(config)


def image(name: str = "image") -> jax.Array:
    """An image of the parity file, NHWC."""
    return jnp.asarray(numbers("otseg_tiny_io")[name].transpose(0, 2, 3, 1))


def text(regime: str) -> jax.Array:
    """Prompt embeddings that the regime trains on."""
    features = jnp.asarray(numbers("otseg_tiny_io")["text_features"])
    return features[jnp.array(SEEN)] if regime == "inductive" else features
