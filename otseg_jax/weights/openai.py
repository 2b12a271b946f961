"""Names in OpenAI's CLIP files (`ViT-B-16.pt` and its state dict) and in open_clip's.

Both programs name a ViT alike: `visual.*` is the vision tower, `transformer.*` and its siblings the
text tower, which open_clip's newer models keep under `text.`. Sizes are read off the shapes; the
width of a head and the activation are not in the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from otseg_jax import text
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.weights.clip import Clip, assemble
from otseg_jax.weights.rules import Rule, linear, norm

HEAD = 64  # channels of a head in every published CLIP ViT

UNUSED = (
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "text.attn_mask",
    # numbers that TorchScript keeps
    "input_resolution",
    "context_length",
    "vocab_size",
    "visual.input_resolution",
)


def load(
    arrays: Mapping[str, np.ndarray],
    path: Path,
    *,
    vision_heads: int = 0,
    text_heads: int = 0,
    activation: str = "quick_gelu",
) -> tuple[Clip, list[Rule]]:
    """Build a CLIP from the arrays of a file; and the table between the two.

    Args:
        path: the file; a tokenizer beside it is taken.
        vision_heads: 0: one per 64 channels.
        text_heads: 0: one per 64 channels.
        activation: "quick_gelu" (OpenAI's weights) or "gelu" (most of open_clip's own).

    Raises:
        ValueError: no ViT CLIP, or weights that do not cover the towers; all problems at once.
    """
    where, prefix = str(path), "text." if "text.token_embedding.weight" in arrays else ""
    vision = vision_config(arrays, "visual.", where, heads=vision_heads, activation=activation)
    words = text_config(arrays, prefix, where, heads=text_heads, activation=activation)
    table = rules(vision.layers, words.layers, text_prefix=prefix)
    tokenizer = path.parent if text.holds_tokenizer(path.parent) else None
    clip = assemble(
        table, arrays, vision, words, unused=UNUSED, where=where, name=where, tokenizer=tokenizer
    )
    return clip, table


def rules(vision_layers: int, text_layers: int, *, text_prefix: str = "") -> list[Rule]:
    """The table of names: "vision/…" and "text/…" leaves from an OpenAI state dict.

    Args:
        text_prefix: "text." for open_clip's newer models.
    """
    return [
        *vision_rules("visual.", "vision/", blocks=vision_layers),
        *text_rules(text_prefix, "text/", blocks=text_layers),
    ]


def vision_rules(source: str, target: str, *, blocks: int) -> list[Rule]:
    """Rules of a vision tower whose names begin with `source`, for leaves below `target`."""
    table = [
        Rule(f"{source}class_embedding", f"{target}class_embedding"),
        Rule(f"{source}positional_embedding", f"{target}position_embedding"),
        Rule(f"{source}conv1.weight", f"{target}patch_embedding/kernel", transpose=(2, 3, 1, 0)),
        *norm(f"{source}ln_pre", f"{target}ln_pre"),
        *norm(f"{source}ln_post", f"{target}ln_post"),
        Rule(f"{source}proj", f"{target}projection/kernel"),
    ]
    for i in range(blocks):
        table += _block(f"{source}transformer.resblocks.{i}", f"{target}blocks/{i}")
    return table


def text_rules(source: str, target: str, *, blocks: int) -> list[Rule]:
    """Rules of a text tower whose names begin with `source`, for leaves below `target`."""
    table = [
        Rule(f"{source}token_embedding.weight", f"{target}token_embedding"),
        Rule(f"{source}positional_embedding", f"{target}position_embedding"),
        *norm(f"{source}ln_final", f"{target}ln_final"),
        Rule(f"{source}text_projection", f"{target}projection/kernel"),
    ]
    for i in range(blocks):
        table += _block(f"{source}transformer.resblocks.{i}", f"{target}blocks/{i}")
    return table


def _block(source: str, target: str) -> list[Rule]:
    table = [
        *norm(f"{source}.ln_1", f"{target}/ln_1"),
        *norm(f"{source}.ln_2", f"{target}/ln_2"),
        *linear(f"{source}.attn.out_proj", f"{target}/attention/out"),
        *linear(f"{source}.mlp.c_fc", f"{target}/mlp/up"),
        *linear(f"{source}.mlp.c_proj", f"{target}/mlp/down"),
    ]
    for i, name in enumerate(("query", "key", "value")):
        part, leaf = (i, 3), f"{target}/attention/{name}"
        table += [
            Rule(f"{source}.attn.in_proj_weight", f"{leaf}/kernel", transpose=(1, 0), part=part),
            Rule(f"{source}.attn.in_proj_bias", f"{leaf}/bias", part=part),
        ]
    return table


def vision_config(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
    *,
    heads: int = 0,
    activation: str = "quick_gelu",
) -> VisionConfig:
    """Sizes of a vision tower, read off its shapes.

    Args:
        prefix: before every name: "visual." or "backbone.".
        where: the file, for messages.
        heads: 0: one per 64 channels.

    Raises:
        ValueError: it is no vision transformer of CLIP's.
    """
    wanted = {
        "conv1.weight": 4,
        "positional_embedding": 2,
        "proj": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
    }
    conv, positions, proj, up = _shapes(arrays, prefix, wanted, where)
    grid = round(max(positions[0] - 1, 0) ** 0.5)
    if grid * grid + 1 != positions[0] or conv[2] != conv[3] or conv[1] != 3:
        raise ValueError(
            f"{where}: {prefix}positional_embedding {list(positions)} and {prefix}conv1.weight "
            f"{list(conv)} are not those of a ViT for square RGB images"
        )
    return VisionConfig(
        image_size=grid * conv[2],
        patch_size=conv[2],
        width=conv[0],
        layers=_blocks(arrays, prefix),
        heads=heads or _heads(conv[0], f"{where}: {prefix}", "vision_heads"),
        mlp_width=up[0],
        embed_dim=proj[1],
        activation=activation,
    )


def text_config(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
    *,
    heads: int = 0,
    activation: str = "quick_gelu",
) -> TextConfig:
    """Sizes of a text tower, read off its shapes; arguments as of `vision_config`.

    Raises:
        ValueError: it is no text transformer of CLIP's.
    """
    wanted = {
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "text_projection": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
    }
    tokens, positions, proj, up = _shapes(arrays, prefix, wanted, where)
    return TextConfig(
        vocab_size=tokens[0],
        context_length=positions[0],
        width=tokens[1],
        layers=_blocks(arrays, prefix),
        heads=heads or _heads(tokens[1], f"{where}: {prefix}", "text_heads"),
        mlp_width=up[0],
        embed_dim=proj[1],
        activation=activation,
    )


def _shapes(
    arrays: Mapping[str, np.ndarray], prefix: str, wanted: Mapping[str, int], where: str
) -> list[tuple[int, ...]]:
    problems = [
        f"{prefix}{name} is {list(arrays[prefix + name].shape)}, wanted {axes} axes"
        if prefix + name in arrays
        else f"{prefix}{name} is missing"
        for name, axes in wanted.items()
        if prefix + name not in arrays or arrays[prefix + name].ndim != axes
    ]
    if problems:
        raise ValueError(
            f"{where} is no CLIP with vision and text transformers (a ResNet's cannot be used): "
            f"{'; '.join(problems)}"
        )
    return [arrays[prefix + name].shape for name in wanted]


def _blocks(arrays: Mapping[str, np.ndarray], prefix: str) -> int:
    pattern = re.compile(re.escape(f"{prefix}transformer.resblocks.") + r"(\d+)\.")
    return 1 + max(int(m[1]) for m in map(pattern.match, arrays) if m)


def _heads(width: int, where: str, option: str) -> int:
    if width % HEAD:
        raise ValueError(
            f"{where} is {width} channels wide, no multiple of {HEAD}: its number of heads is not "
            f"in the file, give --{option}"
        )
    return width // HEAD
