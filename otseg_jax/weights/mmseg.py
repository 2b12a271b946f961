"""Names in OTSeg and ZegCLIP training checkpoints of the mmsegmentation layout.

A checkpoint is `{"meta", "state_dict"}`; `state_dict` holds `backbone.*` (CLIP vision tower and
visual prompts), `text_encoder.*` and `decode_head.*`. The rules map those names to leaves of
`OTSeg` and of `TextTower`; `unused` lists the weights that the original program never uses.
"""

from otseg_jax.weights.table import Rule


def otseg_rules(*, blocks: int, layers: int) -> list[Rule]:
    """Rules for the leaves of `OTSeg`.

    Args:
        blocks: transformer blocks of the vision tower.
        layers: layers of the decoder.

    Returns:
        One rule per leaf.
    """
    rules = [
        Rule("backbone.class_embedding", "vision/class_embedding"),
        Rule("backbone.positional_embedding", "vision/position_embedding"),
        Rule("backbone.conv1.weight", "vision/patch_embedding/kernel", transpose=(2, 3, 1, 0)),
        *_norm("backbone.ln_pre", "vision/ln_pre"),
        *_norm("backbone.ln_post", "vision/ln_post"),
        Rule("backbone.proj", "vision/projection/kernel"),
        Rule("backbone.prompt_embeddings", "prompts/first"),
        Rule("backbone.deep_prompt_embeddings", "prompts/deep"),
        *_linear("backbone.prompt_proj", "prompts/proj"),
        *_norm("backbone.prompt_norm", "prompts/norm"),
        *_linear("decode_head.q_proj", "q_proj"),
    ]
    for i in range(blocks):
        rules += _block(f"backbone.transformer.resblocks.{i}", f"vision/blocks/{i}")
    for i in range(layers):
        source, target = f"decode_head.decoder_1.layers.{i}", f"decoder/layers/{i}"
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj", "out")):
            rules += _linear(f"{source}.multihead_attn.{theirs}", f"{target}/attention/{ours}")
        for name in ("linear1", "linear2"):
            rules += _linear(f"{source}.{name}", f"{target}/{name}")
        for name in ("norm2", "norm3"):
            rules += _norm(f"{source}.{name}", f"{target}/{name}")
    return rules


def text_rules(*, blocks: int) -> list[Rule]:
    """Rules for the leaves of `TextTower`.

    Args:
        blocks: transformer blocks of the text tower.

    Returns:
        One rule per leaf.
    """
    rules = [
        Rule("text_encoder.token_embedding.weight", "token_embedding"),
        Rule("text_encoder.positional_embedding", "position_embedding"),
        *_norm("text_encoder.ln_final", "ln_final"),
        Rule("text_encoder.text_projection", "projection/kernel"),
    ]
    for i in range(blocks):
        rules += _block(f"text_encoder.transformer.resblocks.{i}", f"blocks/{i}")
    return rules


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


def _norm(source: str, target: str) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def _linear(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}/kernel", transpose=(1, 0)),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def _block(source: str, target: str) -> list[Rule]:
    rules = [
        *_norm(f"{source}.ln_1", f"{target}/ln_1"),
        *_norm(f"{source}.ln_2", f"{target}/ln_2"),
        *_linear(f"{source}.attn.out_proj", f"{target}/attention/out"),
        *_linear(f"{source}.mlp.c_fc", f"{target}/mlp/up"),
        *_linear(f"{source}.mlp.c_proj", f"{target}/mlp/down"),
    ]
    for i, name in enumerate(("query", "key", "value")):
        attention = f"{target}/attention/{name}"
        rules += [
            Rule(
                f"{source}.attn.in_proj_weight",
                f"{attention}/kernel",
                transpose=(1, 0),
                part=(i, 3),
            ),
            Rule(f"{source}.attn.in_proj_bias", f"{attention}/bias", part=(i, 3)),
        ]
    return rules
