"""Names in OpenAI's CLIP files (`ViT-B-16.pt` and its state dict) and in open_clip's.

Both programs name a ViT alike: `visual.*` is the vision tower, `transformer.*` and its siblings the
text tower, which open_clip's newer models keep under `text.`. Sizes are read off the shapes; the
width of a head and the activation are not in the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        vision_heads: 0: one per 64 channels; `text_heads` likewise.
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
    """The table of names: "vision/…" and "text/…" leaves from an OpenAI state dict."""
    return [
        *vision_rules("visual.", "vision/", blocks=vision_layers),
        *text_rules(text_prefix, "text/", blocks=text_layers),
    ]


def vision_rules(source: str, target: str, *, blocks: int) -> list[Rule]:
    """Rules of a vision tower whose names begin with `source`, for leaves below `target`."""
    return [
        Rule(f"{source}class_embedding", f"{target}class_embedding"),
        Rule(f"{source}conv1.weight", f"{target}patch_embedding/kernel", transpose=(2, 3, 1, 0)),
        *norm(f"{source}ln_pre", f"{target}ln_pre"),
        *norm(f"{source}ln_post", f"{target}ln_post"),
        Rule(f"{source}proj", f"{target}projection/kernel"),
        *_transformer(source, target, blocks),
    ]


def text_rules(source: str, target: str, *, blocks: int) -> list[Rule]:
    """Rules of a text tower, as of `vision_rules`."""
    return [
        Rule(f"{source}token_embedding.weight", f"{target}token_embedding"),
        *norm(f"{source}ln_final", f"{target}ln_final"),
        Rule(f"{source}text_projection", f"{target}projection/kernel"),
        *_transformer(source, target, blocks),
    ]


def _transformer(source: str, target: str, blocks: int) -> list[Rule]:
    table = [Rule(f"{source}positional_embedding", f"{target}position_embedding")]
    for i in range(blocks):
        theirs, ours = f"{source}transformer.resblocks.{i}", f"{target}blocks/{i}"
        table += norm(f"{theirs}.ln_1", f"{ours}/ln_1")
        table += norm(f"{theirs}.ln_2", f"{ours}/ln_2")
        table += linear(f"{theirs}.attn.out_proj", f"{ours}/attention/out")
        table += linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up")
        table += linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down")
        stacked = f"{theirs}.attn.in_proj_"
        for part, name in enumerate(("query", "key", "value")):
            leaf = f"{ours}/attention/{name}"
            table += [
                Rule(f"{stacked}weight", f"{leaf}/kernel", transpose=(1, 0), part=(part, 3)),
                Rule(f"{stacked}bias", f"{leaf}/bias", part=(part, 3)),
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
    wanted = {"conv1.weight": 4, "proj": 2}
    conv, positions, sizes = _sizes(arrays, prefix, where, wanted, heads, "vision_heads")
    grid = round(max(positions[0] - 1, 0) ** 0.5)
    if grid * grid + 1 != positions[0] or conv[2] != conv[3] or conv[1] != 3:
        raise ValueError(
            f"{where}: {prefix}positional_embedding {list(positions)} and {prefix}conv1.weight "
            f"{list(conv)} are not those of a ViT for square RGB images"
        )
    side = conv[2]
    return VisionConfig(image_size=grid * side, patch_size=side, activation=activation, **sizes)


def text_config(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
    *,
    heads: int = 0,
    activation: str = "quick_gelu",
) -> TextConfig:
    """Sizes of a text tower, as of `vision_config`."""
    wanted = {"token_embedding.weight": 2, "text_projection": 2}
    tokens, positions, sizes = _sizes(arrays, prefix, where, wanted, heads, "text_heads")
    return TextConfig(
        vocab_size=tokens[0], context_length=positions[0], activation=activation, **sizes
    )


def _sizes(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
    ends: Mapping[str, int],  # the embedding and the projection, and their numbers of axes
    heads: int,
    option: str,
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of the embedding and of the positions, and the sizes that both towers have."""
    blocks = f"{prefix}transformer.resblocks."
    wanted = {prefix + name: axes for name, axes in ends.items()}
    wanted |= {f"{prefix}positional_embedding": 2, f"{blocks}0.mlp.c_fc.weight": 2}
    shapes = {name: arrays[name].shape for name in wanted if name in arrays}
    problems = [
        f"{name} is {list(shapes[name])}, wanted {axes} axes"
        if name in shapes
        else f"{name} is missing"
        for name, axes in wanted.items()
        if len(shapes.get(name, ())) != axes
    ]
    if problems:
        raise ValueError(
            f"{where} is no CLIP with vision and text transformers (a ResNet's cannot be used): "
            f"{'; '.join(problems)}"
        )
    embedding, projection, positions, up = shapes.values()
    # a convolution is [out, in, height, width], a table of tokens [token, channel]
    width = embedding[0] if len(embedding) == 4 else embedding[1]
    if not heads and width % HEAD:
        raise ValueError(
            f"{where}: {prefix} is {width} channels wide, no multiple of {HEAD}: its number of "
            f"heads is not in the file, give --{option}"
        )
    numbered = [re.match(rf"{re.escape(blocks)}(\d+)\.", name) for name in arrays]
    layers = 1 + max(int(match[1]) for match in numbered if match)
    sizes = {"width": width, "layers": layers, "heads": heads or width // HEAD}
    return embedding, positions, sizes | {"mlp_width": up[0], "embed_dim": projection[1]}
