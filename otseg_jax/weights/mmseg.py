"""Names in OTSeg and ZegCLIP training checkpoints of the mmsegmentation layout.

A checkpoint is `{"meta", "state_dict"}`; `state_dict` holds `backbone.*` (CLIP vision tower and
visual prompts), `text_encoder.*` and `decode_head.*`. The rules map those names to leaves of
`OTSeg` and of `TextTower`; `unused` lists the weights that the original program never uses.
"""

import numpy as np

from otseg_jax.weights import openai
from otseg_jax.weights.table import Rule, linear, norm


def otseg_rules(*, blocks: int, layers: int, deep: bool = True) -> list[Rule]:
    """Rules for the leaves of `OTSeg`.

    Args:
        blocks: transformer blocks of the vision tower.
        layers: layers of the decoder.
        deep: whether blocks after the first have prompts of their own.

    Returns:
        One rule per leaf.
    """
    rules = [
        *openai.vision_rules("backbone.", "vision/", blocks=blocks),
        Rule("backbone.prompt_embeddings", "prompts/first"),
        *([Rule("backbone.deep_prompt_embeddings", "prompts/deep")] if deep else []),
        *linear("backbone.prompt_proj", "prompts/proj"),
        *norm("backbone.prompt_norm", "prompts/norm"),
        *linear("decode_head.q_proj", "q_proj"),
    ]
    for i in range(layers):
        source, target = f"decode_head.decoder_1.layers.{i}", f"decoder/layers/{i}"
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
            rules += linear(f"{source}.multihead_attn.{theirs}", f"{target}/attention/{ours}")
        for name in ("linear1", "linear2"):
            rules += linear(f"{source}.{name}", f"{target}/{name}")
        for name in ("norm2", "norm3"):
            rules += norm(f"{source}.{name}", f"{target}/{name}")
    return rules


def text_rules(*, blocks: int) -> list[Rule]:
    """Rules for the leaves of `TextTower`.

    Args:
        blocks: transformer blocks of the text tower.

    Returns:
        One rule per leaf.
    """
    return openai.text_rules("text_encoder.", "", blocks=blocks)


def rules(*, blocks: int, layers: int, text_blocks: int = 0, deep: bool = True) -> list[Rule]:
    """Rules for a whole checkpoint: leaves of `OTSeg`, and those of `TextTower` below "text/".

    Args:
        blocks: transformer blocks of the vision tower.
        layers: layers of the decoder.
        text_blocks: transformer blocks of the text tower; 0: the checkpoint has none.
        deep: whether blocks after the first have prompts of their own.

    Returns:
        One rule per leaf.
    """
    text = openai.text_rules("text_encoder.", "text/", blocks=text_blocks) if text_blocks else []
    return [*otseg_rules(blocks=blocks, layers=layers, deep=deep), *text]


def unused(*, layers: int) -> list[str]:
    """Names of weights that the original program stores and never uses.

    Args:
        layers: layers of the decoder.

    Returns:
        Source names: self-attention and its norm in every decoder layer, and the criterion's
        class weights.
    """
    names = ["decode_head.loss_decode.criterion.empty_weight"]
    for i in range(layers):
        names += [
            f"decode_head.decoder_1.layers.{i}.{leaf}"
            for leaf in (
                "norm1.weight",
                "norm1.bias",
                "self_attn.in_proj_weight",
                "self_attn.in_proj_bias",
                "self_attn.out_proj.weight",
                "self_attn.out_proj.bias",
            )
        ]
    return names


def stand_ins(*, layers: int, width: int, classes: int) -> dict[str, np.ndarray]:
    """Arrays for the unused names of a model that was not trained by the original program.

    Args:
        layers: layers of the decoder.
        width: its channels.
        classes: number of classes trained on.

    Returns:
        Name → array as the original program initialises it (its self-attention: zeros), so that a
        strict load finds every name.
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
