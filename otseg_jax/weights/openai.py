"""Names in OpenAI's CLIP files (`ViT-B-16.pt` and its state dict) and in open_clip's.

Both programs name a ViT alike: `visual.*` is the vision tower, `transformer.*` and its siblings the
text tower, which open_clip's newer models keep under `text.`. Sizes are read off the shapes;
heads and activation are not in the file (`weights.towers`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from otseg_jax import text
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.weights import towers
from otseg_jax.weights.clip import Clip, assemble
from otseg_jax.weights.rules import Rule, linear, norm
from otseg_jax.weights.towers import Stated

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
    stated: Stated = Stated(),  # noqa: B008 (a named tuple is immutable)
) -> tuple[Clip, list[Rule]]:
    """Build a CLIP from the arrays of a file; and the table between the two.

    A tokenizer beside the file is taken where none is stated.

    Raises:
        ValueError: no ViT CLIP, heads that nobody tells, or weights that do not cover the towers;
            all problems of a kind at once.
    """
    where, prefix = str(path), "text." if "text.token_embedding.weight" in arrays else ""
    vision, words = configs(arrays, "visual.", prefix, where, stated)
    assert words is not None
    table = rules(vision.layers, words.layers, text_prefix=prefix)
    tokenizer = stated.tokenizer or (path.parent if text.holds_tokenizer(path.parent) else None)
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


def configs(
    arrays: Mapping[str, np.ndarray], vision: str, text: str | None, where: str, stated: Stated
) -> tuple[VisionConfig, TextConfig | None]:
    """Both towers, read off their shapes and completed by what is known or stated.

    Args:
        vision: before every name of that tower: "visual." or "backbone.".
        text: before those of the text tower; None: there is none.
        where: the file, for messages.

    Raises:
        ValueError: they are no transformers of CLIP's, or nobody tells their heads.
    """
    sizes = {"vision": _vision_sizes(arrays, vision, where)}
    if text is not None:
        sizes["text"] = _text_sizes(arrays, text, where)
    heads = towers.heads(sizes, stated, where)
    activation = towers.activation(sizes["vision"]["width"], stated, where)
    seen = VisionConfig(**sizes["vision"], heads=heads["vision"], activation=activation)
    if text is None:
        return seen, None
    return seen, TextConfig(**sizes["text"], heads=heads["text"], activation=activation)


def _vision_sizes(arrays: Mapping[str, np.ndarray], prefix: str, where: str) -> dict[str, int]:
    wanted = {"conv1.weight": 4, "proj": 2}
    conv, positions, sizes = _sizes(arrays, prefix, where, wanted)
    grid = round(max(positions[0] - 1, 0) ** 0.5)
    if grid * grid + 1 != positions[0] or conv[2] != conv[3] or conv[1] != 3:
        raise ValueError(
            f"{where}: {prefix}positional_embedding {list(positions)} and {prefix}conv1.weight "
            f"{list(conv)} are not those of a ViT for square RGB images"
        )
    side = conv[2]
    return {"image_size": grid * side, "patch_size": side, **sizes}


def _text_sizes(arrays: Mapping[str, np.ndarray], prefix: str, where: str) -> dict[str, int]:
    wanted = {"token_embedding.weight": 2, "text_projection": 2}
    tokens, positions, sizes = _sizes(arrays, prefix, where, wanted)
    return {"vocab_size": tokens[0], "context_length": positions[0], **sizes}


def _sizes(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    where: str,
    ends: Mapping[str, int],  # the embedding and the projection, and their numbers of axes
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, int]]:
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
    numbered = [re.match(rf"{re.escape(blocks)}(\d+)\.", name) for name in arrays]
    layers = 1 + max(int(match[1]) for match in numbered if match)
    sizes = {"width": width, "layers": layers, "mlp_width": up[0], "embed_dim": projection[1]}
    return embedding, positions, sizes
