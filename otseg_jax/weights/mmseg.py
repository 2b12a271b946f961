"""Names in OTSeg and ZegCLIP training checkpoints of the mmsegmentation layout.

A checkpoint is `{"meta", "state_dict"}`; `state_dict` holds `backbone.*` (CLIP vision tower and
visual prompts), `text_encoder.*` and `decode_head.*`. `blocks` and `text_blocks` count the blocks
of the vision and the text tower (0: it has none), `layers` those of the decoder; `deep` says
whether blocks after the first have prompts of their own.
"""

import numpy as np

from otseg_jax.weights import openai
from otseg_jax.weights.rules import Rule, linear, norm


def otseg_rules(*, blocks: int, layers: int, deep: bool = True) -> list[Rule]:
    """Rules for the leaves of `OTSeg`."""
    rules = openai.vision_rules("backbone.", "vision/", blocks=blocks)
    rules.append(Rule("backbone.prompt_embeddings", "prompts/first"))
    if deep:
        rules.append(Rule("backbone.deep_prompt_embeddings", "prompts/deep"))
    rules += linear("backbone.prompt_proj", "prompts/proj")
    rules += norm("backbone.prompt_norm", "prompts/norm")
    rules += linear("decode_head.q_proj", "q_proj")
    for i in range(layers):
        source, target = f"decode_head.decoder_1.layers.{i}", f"decoder/layers/{i}"
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
            rules += linear(f"{source}.multihead_attn.{theirs}", f"{target}/attention/{ours}")
        for name in ("linear1", "linear2"):
            rules += linear(f"{source}.{name}", f"{target}/{name}")
        # norm1 belongs to the self-attention that is never used, see `unused`
        for name in ("norm2", "norm3"):
            rules += norm(f"{source}.{name}", f"{target}/{name}")
    return rules


def text_rules(*, blocks: int) -> list[Rule]:
    """Rules for the leaves of `TextTower`."""
    return openai.text_rules("text_encoder.", "", blocks=blocks)


def rules(*, blocks: int, layers: int, text_blocks: int = 0, deep: bool = True) -> list[Rule]:
    """Rules for a whole checkpoint: leaves of `OTSeg`, and those of `TextTower` below "text/"."""
    text = openai.text_rules("text_encoder.", "text/", blocks=text_blocks) if text_blocks else []
    return [*otseg_rules(blocks=blocks, layers=layers, deep=deep), *text]


def unused(*, layers: int) -> list[str]:
    """Names of weights that the original program stores and never uses.

    They are self-attention and its norm in every decoder layer, and the criterion's class weights.
    """
    return list(stand_ins(layers=layers, width=0, classes=0))


def stand_ins(*, layers: int, width: int, classes: int) -> dict[str, np.ndarray]:
    """Arrays for the unused names of a model that was not trained by the original program.

    They are what that program starts from (its self-attention: zeros), so that a strict load finds
    every name. `width` is that of the decoder, `classes` the number of classes trained on.
    """
    shapes = {
        "norm1.weight": np.ones(width, np.float32),
        "norm1.bias": np.zeros(width, np.float32),
        "self_attn.in_proj_weight": np.zeros((3 * width, width), np.float32),
        "self_attn.in_proj_bias": np.zeros(3 * width, np.float32),
        "self_attn.out_proj.weight": np.zeros((width, width), np.float32),
        "self_attn.out_proj.bias": np.zeros(width, np.float32),
    }
    arrays = {
        f"decode_head.decoder_1.layers.{i}.{name}": array
        for i in range(layers)
        for name, array in shapes.items()
    }
    weights = np.ones(classes + 1, np.float32)
    weights[-1] = 0.1  # of "no object"
    return {"decode_head.loss_decode.criterion.empty_weight": weights, **arrays}
